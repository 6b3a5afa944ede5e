"""Files: where layouts and archives keep their documents and blobs: a directory, or a tar file that is read in place."""

from __future__ import annotations

import gzip
import os
import stat
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import BinaryIO, Protocol

from registry_client.blobs import BlobStream, Body
from registry_client.errors import InvalidError, MalformedError, NotFoundError, RegistryError, SizeMismatchError, UnsupportedError
from registry_client.manifest import Descriptor
from registry_client.tar_index import TarIndex, TarMember

GZIP_MAGIC = b"\x1f\x8b"
_OTHER_COMPRESSIONS = {b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ\0": "xz", b"BZh": "bzip2"}
_SPOOL_MAX = 1 << 40  # bytes; a gzip bomb ends here at the latest, mostly because the disk is full
_COPY_SIZE = 1 << 20


class Files(Protocol):
    """Named files, read-only. Names are relative, with ``/``."""

    def size(self, name: str) -> int:
        """Bytes. Raises NotFoundError."""

    def open(self, name: str, offset: int = 0) -> Body:
        """The bytes from an offset on. Raises NotFoundError."""

    def close(self) -> None:
        """Closes what is open."""


def read_file(files: Files, name: str, size_max: int) -> bytes:
    """A whole small file.

    Raises:
        NotFoundError: there is none.
        MalformedError: bigger than ``size_max`` bytes.
    """
    if (size := files.size(name)) > size_max:
        raise MalformedError(f"{name}: {size} bytes, more than {size_max}")
    body = files.open(name)
    try:
        pieces = []
        while piece := body.read(size_max):
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        body.close()


def open_file_blob(files: Files, name: str, descriptor: Descriptor, offset: int) -> BlobStream:
    """A file as the blob that the descriptor describes. A wrong size is an error before the first piece."""

    def open_body(start: int) -> Body:
        if (size := files.size(name)) != descriptor.size:
            raise SizeMismatchError(f"blob {descriptor.digest}: {name} has {size} bytes, its descriptor says {descriptor.size}")
        return files.open(name, start)

    return BlobStream(descriptor, open_body, offset=offset)


class DirectoryFiles:
    """The files below a directory. Links that leave a name's last component are not followed."""

    def __init__(self, path: Path) -> None:
        """Takes the directory; raises NotFoundError if there is none."""
        if not path.is_dir():
            raise NotFoundError(f"{path}: no such directory" if not path.exists() else f"{path}: not a directory")
        self._path = path

    def size(self, name: str) -> int:
        fd = self._open(name)
        try:
            return os.fstat(fd).st_size
        finally:
            os.close(fd)

    def open(self, name: str, offset: int = 0) -> Body:
        fd = self._open(name)
        return FileBody(fd, offset, os.fstat(fd).st_size, owned=True)

    def close(self) -> None:
        """Nothing stays open between calls."""

    def _open(self, name: str) -> int:
        path = self._path / name
        try:
            # NONBLOCK: a FIFO in the place of a blob must not hold us up.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            raise NotFoundError(f"{path}: no such file") from None
        except OSError as error:
            raise RegistryError(f"{path}: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise MalformedError(f"{path}: not a regular file")
        return fd


class ArchiveFiles:
    """The files in a tar. A tar in gzip is unpacked first, into a temporary file that has no name."""

    def __init__(self, path: PurePath, spool_directory: Path | None = None, *, file: BinaryIO | None = None) -> None:
        """Opens the archive and reads its headers.

        Args:
            file: the archive, if it is open already: a regular file that is not compressed, read from its first byte on, which its
                owner may close at once.
                The path is then no more than what it is called.

        Raises:
            NotFoundError: no such file.
            MalformedError: no tar, or damaged.
            UnsupportedError: compressed with something else than gzip.
        """
        try:
            self._fd = os.dup(file.fileno()) if file else os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise NotFoundError(f"{path}: no such file") from None
        except OSError as error:
            raise RegistryError(f"{path}: {error.strerror}") from error
        try:
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                raise InvalidError(f"{path}: not a regular file")
            start = b"" if file else os.pread(self._fd, 8, 0)
            for magic, name in _OTHER_COMPRESSIONS.items():
                if start.startswith(magic):
                    raise UnsupportedError(f"{path}: is compressed with {name}; decompress it first")
            if start.startswith(GZIP_MAGIC):
                packed, self._fd = self._fd, _gunzip(path, self._fd, spool_directory)
                os.close(packed)
            self._index = TarIndex(self._fd, str(path))
        except BaseException:
            os.close(self._fd)
            raise

    def __contains__(self, name: str) -> bool:
        return name in self._index

    def names(self) -> Iterator[str]:
        """names of all files and links."""
        return self._index.names()

    def size(self, name: str) -> int:
        return self._index.find(name).size

    def open(self, name: str, offset: int = 0) -> Body:
        member: TarMember = self._index.find(name)
        return FileBody(self._fd, member.offset + offset, member.offset + member.size, owned=False)

    def close(self) -> None:
        """Streams that are still open fail from here on."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class FileBody:
    """The Body of a range of a file.

    Args:
        owned: whether closing it closes the file.
    """

    def __init__(self, fd: int, offset: int, end: int, *, owned: bool) -> None:
        self._fd = fd
        self._offset = offset
        self._end = end
        self._owned = owned

    def read(self, size: int) -> bytes:
        try:
            data = os.pread(self._fd, min(size, self._end - self._offset), self._offset)
        except OSError as error:
            raise RegistryError(f"byte {self._offset} of the file: {error.strerror}") from error
        self._offset += len(data)
        return data

    def interrupt(self) -> None:
        """A read from a file does not wait."""

    def close(self) -> None:
        if self._owned:
            self._owned = False
            os.close(self._fd)


def _gunzip(path: PurePath, fd: int, spool_directory: Path | None) -> int:
    """Descriptor of a nameless file with the unpacked bytes; it is gone when it is closed, or when the process ends."""
    with (
        tempfile.TemporaryFile(dir=spool_directory) as spool,
        open(fd, "rb", closefd=False) as packed,
        gzip.open(packed, "rb") as unpacked,
    ):
        length = 0
        try:
            while piece := unpacked.read(_COPY_SIZE):
                length += len(piece)
                if length > _SPOOL_MAX:
                    raise MalformedError(f"{path}: unpacks to more than {_SPOOL_MAX} bytes")
                spool.write(piece)
            spool.flush()
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise MalformedError(f"{path}: damaged gzip: {error}") from None
        except OSError as error:
            raise RegistryError(f"{path}: unpacking to a temporary file failed at byte {length}: {error.strerror}") from error
        return os.dup(spool.fileno())
