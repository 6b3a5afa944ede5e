"""VsphereFS: a directory of a vSphere datastore as a PyFilesystem2 file system; ``fs.open_fs("vsphere://...")`` opens one.

Files are read by ranges, and written into a temporary file of this machine, which is uploaded when they are closed: under a private name
that is then moved, so that whoever looks sees the old or the new one; ``.vmdk``, which the server would rewrite when it moves them,
under their own names, so that a reader may see half of one, and one that is replaced is lost if the upload fails.
"""

from __future__ import annotations

import contextlib
import io
import secrets
import tempfile
from collections.abc import Collection, Iterator, Mapping
from typing import IO, Any, BinaryIO, cast
from urllib.parse import parse_qs

from imgstore import _fscompat  # noqa: F401  # before fs
from imgstore.datastores.datastore import part_name
from imgstore.datastores.vsphere_files import DatastoreFiles, Entry
from imgstore.errors import (
    AlreadyExistsError,
    DeniedError,
    ImgstoreError,
    InUseError,
    NoSpaceError,
    NotFoundError,
    UnavailableError,
)
from imgstore.vsphere.locations import parse_datastore
from imgstore.vsphere.session import VsphereLogin, VsphereSession

from fs import errors  # isort: skip
from fs.base import FS  # isort: skip
from fs.enums import ResourceType  # isort: skip
from fs.info import Info  # isort: skip
from fs.mode import Mode  # isort: skip
from fs.opener import Opener  # isort: skip
from fs.path import dirname  # isort: skip
from fs.permissions import Permissions  # isort: skip

_READ_BUFFER = 1 << 20

_KINDS: tuple[tuple[type[ImgstoreError], type[errors.ResourceError] | type[errors.OperationFailed]], ...] = (
    (NotFoundError, errors.ResourceNotFound),
    (AlreadyExistsError, errors.FileExists),
    (DeniedError, errors.PermissionDenied),
    (NoSpaceError, errors.InsufficientStorage),
    (InUseError, errors.ResourceLocked),
    (UnavailableError, errors.RemoteConnectionError),
)


class VsphereFS(FS):
    """See the module. Raises the errors of PyFilesystem.

    Args:
        files: of which datastore.
        owns_session: close its session, too, when this is closed.
    """

    _meta = {  # noqa: RUF012 - as fs has it
        "case_insensitive": False,
        "invalid_path_chars": "\0",
        "network": True,
        "read_only": False,
        "supports_rename": False,
        "thread_safe": True,
        "unicode_paths": True,
        "virtual": False,
    }

    def __init__(self, files: DatastoreFiles, *, owns_session: bool = False) -> None:
        super().__init__()
        self._files = files
        self._owns_session = owns_session
        self._owner = secrets.token_hex(6)

    def __str__(self) -> str:
        return f"<vspherefs '{self._files.location.url}'>"

    def __repr__(self) -> str:
        return f"VsphereFS({self._files.location.url!r})"

    def getinfo(self, path: str, namespaces: Collection[str] | None = None) -> Info:
        """Info of a file or directory: ``details`` has its type, size and time of modification."""
        below = self._below(path)
        with _fs_errors(path):
            entry = self._entry(path, below)
            if not entry.is_directory and "details" in (namespaces or ()) and below.endswith(".vmdk"):
                entry = Entry(entry.name, False, self._files.size(below), entry.modified)
        return _info(entry, namespaces or ())

    def listdir(self, path: str) -> list[str]:
        return [entry.name for entry in self._scan(path)]

    def scandir(
        self, path: str, namespaces: Collection[str] | None = None, page: tuple[int, int] | None = None
    ) -> Iterator[Info]:
        entries = self._scan(path)
        for entry in entries[slice(*page)] if page is not None else entries:
            yield _info(entry, namespaces or ())

    def makedir(self, path: str, permissions: Permissions | None = None, recreate: bool = False) -> Any:
        below = self._below(path)
        with _fs_errors(path):
            if not below:
                if not recreate:
                    raise errors.DirectoryExists(path)
                return self.opendir(path)
            if not self._entry(dirname(path), below.rpartition("/")[0]).is_directory:
                raise errors.DirectoryExpected(dirname(path))
            entry = self._files.find(below)
            if entry is not None and not (recreate and entry.is_directory):
                raise errors.DirectoryExists(path)
            if entry is None:
                self._files.make_directory(below)
        return self.opendir(path)

    def openbin(self, path: str, mode: str = "r", buffering: int = -1, **options: Any) -> BinaryIO:
        parsed = Mode(mode)
        parsed.validate_bin()
        below = self._below(path)
        with _fs_errors(path):
            entry = self._files.find(below)
            if entry is None and not parsed.create:
                raise errors.ResourceNotFound(path)
            if entry is not None and entry.is_directory:
                raise errors.FileExpected(path)
            if entry is not None and parsed.exclusive:
                raise errors.FileExists(path)
            if not parsed.writing:
                return io.BufferedReader(_RangeReader(self._files, path, below), _READ_BUFFER)
            if entry is None and not self._entry(dirname(path), below.rpartition("/")[0]).is_directory:
                raise errors.DirectoryExpected(dirname(path))
            file = _Upload(self, path, parsed)
            try:
                if entry is not None and not parsed.truncate:
                    file.fill(_RangeReader(self._files, path, below))
            except BaseException:
                file.abandon()
                raise
            return cast("BinaryIO", file)

    def remove(self, path: str) -> None:
        below = self._below(path)
        with _fs_errors(path):
            if self._entry(path, below).is_directory:
                raise errors.FileExpected(path)
            self._files.remove(below)

    def removedir(self, path: str) -> None:
        below = self._below(path)
        if not below:
            raise errors.RemoveRootError
        if self._scan(path):
            raise errors.DirectoryNotEmpty(path)
        with _fs_errors(path):
            self._files.remove(below)

    def removetree(self, dir_path: str) -> None:
        below = self._below(dir_path)
        if not below:
            super().removetree(dir_path)  # the root itself stays
            return
        with _fs_errors(dir_path):
            if not self._entry(dir_path, below).is_directory:
                raise errors.DirectoryExpected(dir_path)
            self._files.remove(below)

    def setinfo(self, path: str, info: Mapping[str, Mapping[str, object]]) -> None:
        """Nothing but a look whether the file is there: a datastore keeps its own times, and no permissions."""
        with _fs_errors(path):
            self._entry(path, self._below(path))

    def move(self, src_path: str, dst_path: str, overwrite: bool = False, preserve_time: bool = False) -> None:
        if _is_disk(src_path) or _is_disk(dst_path):
            super().copy(src_path, dst_path, overwrite, preserve_time)
            if self._below(src_path) != self._below(dst_path):
                self.remove(src_path)
            return
        source, target = self._pair(src_path, dst_path, overwrite)
        if source != target:
            with _fs_errors(src_path):
                self._files.move(source, target, replace=True)

    def copy(self, src_path: str, dst_path: str, overwrite: bool = False, preserve_time: bool = False) -> None:
        if _is_disk(src_path) or _is_disk(dst_path):
            super().copy(src_path, dst_path, overwrite, preserve_time)
            return
        source, target = self._pair(src_path, dst_path, overwrite)
        if source != target:
            with _fs_errors(src_path):
                self._files.copy(source, target, replace=True)

    def upload(self, path: str, file: BinaryIO, chunk_size: int | None = None, **options: Any) -> None:
        with self.openbin(path, "wb") as target:
            while data := file.read(max(chunk_size or 0, _READ_BUFFER)):
                target.write(data)

    def close(self) -> None:
        if not self.isclosed() and self._owns_session:
            self._files.session.close()
        super().close()

    def put(self, path: str, below: str, file: BinaryIO, size: int) -> None:
        """Uploads a file as a whole; what a file that was opened for writing does when it is closed."""
        with _fs_errors(path):
            if _is_disk(below):
                self._files.upload(below, file, size)
                return
            directory, slash, name = below.rpartition("/")
            part = f"{directory}{slash}{part_name(name, self._owner)}"
            self._files.upload(part, file, size)
            try:
                self._files.move(part, below, replace=True)
            except ImgstoreError:
                with contextlib.suppress(ImgstoreError):
                    self._files.remove(part)
                raise

    def _below(self, path: str) -> str:
        self.check()
        return str(self.validatepath(path)).strip("/")

    def _entry(self, path: str, below: str) -> Entry:
        entry = self._files.find(below)
        if entry is None:
            raise errors.ResourceNotFound(path)
        return entry

    def _scan(self, path: str) -> list[Entry]:
        below = self._below(path)
        with _fs_errors(path):
            try:
                return self._files.scan(below)
            except NotFoundError:
                if self._files.find(below) is not None:
                    raise errors.DirectoryExpected(path) from None
                raise

    def _pair(self, src_path: str, dst_path: str, overwrite: bool) -> tuple[str, str]:
        """The source and target of a move or a copy, after a look whether they can be."""
        source, target = self._below(src_path), self._below(dst_path)
        with _fs_errors(src_path):
            there = self._files.find(target)
            if there is not None and not overwrite:
                raise errors.DestinationExists(dst_path)
            if self._entry(src_path, source).is_directory:
                raise errors.FileExpected(src_path)
            if there is not None and there.is_directory:
                raise errors.FileExpected(dst_path)
            if there is None and not self._entry(dirname(dst_path), target.rpartition("/")[0]).is_directory:
                raise errors.DirectoryExpected(dirname(dst_path))
        return source, target


class VsphereOpener(Opener):
    """Opens ``vsphere://USER:PASSWORD@HOST[:PORT]/DATACENTER/DATASTORE/path``, the password percent-encoded.

    ``?ca_file=/path.pem`` names the authorities to trust; ``?insecure=1`` takes any certificate.
    """

    protocols = ["vsphere"]  # noqa: RUF012 - as fs has it

    def open_fs(self, fs_url: str, parse_result: Any, writeable: bool, create: bool, cwd: str) -> VsphereFS:
        with _create_errors():
            # Not parse_result.resource, whose percent-encoding is undone before it is split.
            place, _, query = fs_url.partition("://")[2].partition("!")[0].partition("?")
            location = parse_datastore(f"vsphere://{place.rpartition('@')[2]}")
            options = {name: values[0] for name, values in parse_qs(query).items()}
            login = VsphereLogin(
                location.host,
                location.port,
                parse_result.username or "",
                parse_result.password or "",
                insecure=options.get("insecure", "") in ("1", "true"),
                ca_file=options.get("ca_file", ""),
            )
            session = VsphereSession(login)
            try:
                files = DatastoreFiles(session, location)
                if create:
                    files.make_directories("")
                elif files.find("") is None:
                    raise NotFoundError(f"{files.shown('')}: no such directory")
            except BaseException:
                session.close()
                raise
            return VsphereFS(files, owns_session=True)


class _RangeReader(io.RawIOBase):
    """A file that is read by ranges: one request for each read."""

    def __init__(self, files: DatastoreFiles, path: str, below: str) -> None:
        super().__init__()
        self._files = files
        self._path = path
        self._below = below
        self._size = files.size(below)
        self._position = 0
        self.mode = "rb"

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if position < 0:
            raise ValueError(f"{self._path}: position {position} is before the start")
        self._position = position
        return position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self._take(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        # Else it would be read in pieces of 8 KiB.
        return b"".join(iter(lambda: self._take(_READ_BUFFER), b""))

    def _take(self, length: int) -> bytes:
        with _fs_errors(self._path):
            data = self._files.read(self._below, self._position, min(length, max(self._size - self._position, 0)))
        self._position += len(data)
        return data


class _Upload(io.BufferedIOBase):
    """A file that is written: a temporary one of this machine, which is uploaded when it is closed."""

    def __init__(self, fs: VsphereFS, path: str, mode: Mode) -> None:
        super().__init__()
        self._fs = fs
        self._path = path
        self._below = fs._below(path)
        self._mode = mode
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="imgstore-")  # noqa: SIM115  # open until this is closed
        self.mode = mode.to_platform_bin()

    def fill(self, source: io.RawIOBase) -> None:
        """Begins with what the file has, at its end if the mode appends."""
        while data := source.read(_READ_BUFFER):
            self._file.write(data)
        if not self._mode.appending:
            self._file.seek(0)

    def abandon(self) -> None:
        """Closes it without an upload."""
        self._file.close()
        super().close()

    def readable(self) -> bool:
        return bool(self._mode.reading)

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        self._check(self._mode.reading, "read")
        return self._file.read(-1 if size is None else size)

    def read1(self, size: int = -1) -> bytes:
        return self.read(size)

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    readinto1 = readinto

    def write(self, data: Any) -> int:
        self._check(True, "write")
        if self._mode.appending:
            self._file.seek(0, io.SEEK_END)
        return self._file.write(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def truncate(self, size: int | None = None) -> int:
        return self._file.truncate(self._file.tell() if size is None else size)

    def close(self) -> None:
        if self.closed:
            return
        try:
            size = self._file.seek(0, io.SEEK_END)
            self._fs.put(self._path, self._below, self._file, size)  # type: ignore[arg-type]  # IO[bytes] is a BinaryIO
        finally:
            self.abandon()

    def _check(self, allowed: bool, verb: str) -> None:
        if self.closed:
            raise ValueError(f"{self._path} is closed")
        if not allowed:
            raise io.UnsupportedOperation(f"{self._path}: not opened to {verb}")


def _is_disk(path: str) -> bool:
    return path.endswith(".vmdk")


def _info(entry: Entry, namespaces: Collection[str]) -> Info:
    raw: dict[str, dict[str, object]] = {"basic": {"name": entry.name, "is_dir": entry.is_directory}}
    if "details" in namespaces:
        raw["details"] = {
            "type": int(ResourceType.directory if entry.is_directory else ResourceType.file),
            "size": entry.size,
            "modified": entry.modified.timestamp() if entry.modified is not None else None,
            "_write": [],
        }
    return Info(raw)


@contextlib.contextmanager
def _fs_errors(path: str) -> Iterator[None]:
    """Raises ImgstoreErrors as the errors of PyFilesystem that say the same."""
    try:
        yield
    except ImgstoreError as error:
        kind = next((theirs for ours, theirs in _KINDS if isinstance(error, ours)), errors.OperationFailed)
        raise kind(path, exc=error, msg=str(error)) from error


@contextlib.contextmanager
def _create_errors() -> Iterator[None]:
    try:
        yield
    except ImgstoreError as error:
        raise errors.CreateFailed(str(error), exc=error) from error
