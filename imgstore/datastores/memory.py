"""MemoryDatastore: a datastore in this process's memory, for tests and for those who use imgstore as a library."""

from __future__ import annotations

import contextlib
import io
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

from imgstore.blocks import Bytes
from imgstore.datastores.datastore import (
    Datastore,
    LiveFile,
    StagedFile,
    Staging,
    StoredFile,
    in_use,
    is_private,
    join_path,
    part_name,
    single_name,
    split_name,
    split_path,
)
from imgstore.errors import AlreadyExistsError, ImgstoreError, InvalidError, NotFoundError

from fs import errors, memoryfs  # isort: skip


class MemoryDatastore(Datastore):
    """Files in a ``MemoryFS``. Gone with the process, so that durability costs and means nothing; holes take memory like data.

    A published file can be altered through ``fs``, which knows no modes.
    """

    can_replace = True

    def __init__(self) -> None:
        self.fs = memoryfs.MemoryFS()
        self._owner = secrets.token_hex(6)
        self._users: dict[str, list[bool]] = {}
        """Who has a file open by ``open_live``: True for one who writes."""
        self._lock = threading.RLock()

    def open(self, path: str) -> StoredFile:
        split_name(path)
        with _named_errors(path, "open it"):
            return MemoryFile(path, self.fs.openbin(path, "r"))

    def create(self, path: str) -> MemoryLiveFile:
        components, _ = split_name(path)
        with _named_errors(path, "create it"), self._lock:
            self.fs.makedirs("/".join(components), recreate=True)
            return MemoryLiveFile(path, self.fs.openbin(path, "x+"), None)

    def open_live(self, path: str, *, writable: bool) -> MemoryLiveFile:
        split_name(path)
        with _named_errors(path, "open it"), self._lock:
            users = self._users.setdefault(path, [])
            if any(users) or (writable and users):
                raise in_use(path)
            file = MemoryLiveFile(path, self.fs.openbin(path, "r+"), lambda: users.remove(writable))
            users.append(writable)
            return file

    def create_unnamed(self, label: str) -> MemoryLiveFile:
        return MemoryLiveFile(label, io.BytesIO(), None)

    def sync(self) -> None:
        """Nothing to do."""

    def stage(self, directory: str, name: str) -> MemoryStaging:
        split_path(directory)
        part = join_path(directory, part_name(single_name(name), self._owner))
        with _named_errors(join_path(directory, name), "stage it"), self._lock:
            self.fs.makedirs(directory, recreate=True)
            self.fs.makedir(part)
        return MemoryStaging(self, directory, name, part)

    def write_atomic(self, path: str, data: bytes) -> None:
        components, name = split_name(path)
        part = "/".join((*components, part_name(name, self._owner)))
        with _named_errors(path, "write it"), self._lock:
            if self.fs.isdir(path):
                raise NotFoundError(f"{path}: cannot write it: is a directory")
            self.fs.makedirs("/".join(components), recreate=True)
            self.fs.writebytes(part, data)
            self.fs.move(part, path, overwrite=True)

    def write_many(self, directory: str, files: Sequence[tuple[str, bytes]]) -> None:
        split_path(directory)
        paths = [join_path(directory, single_name(name)) for name, _ in files]
        with _named_errors(directory, "write into it"), self._lock:
            self.fs.makedirs(directory, recreate=True)
            for path, (_, data) in zip(paths, files, strict=True):
                self.fs.writebytes(path, data)

    def exists(self, path: str) -> bool:
        split_path(path)
        return self.fs.exists(path)

    def list(self, path: str = "") -> list[str]:
        split_path(path)
        with _named_errors(path, "list it"):
            return sorted(name for name in self.fs.listdir(path) if not is_private(name))

    def remove_file(self, path: str) -> None:
        split_name(path)
        with _named_errors(path, "remove it"):
            self.fs.remove(path)

    def remove_tree(self, path: str) -> None:
        split_name(path)
        with _named_errors(path, "remove it"), self._lock:
            self.fs.removetree(path)

    def usage(self, path: str = "") -> int:
        split_path(path)
        with _named_errors(path, "measure it"):
            if path and self.fs.isfile(path):
                return self.fs.getsize(path)
            return sum(self.fs.getsize(file) for file in self.fs.walk.files(path or "/"))

    def usages(self, directory: str) -> dict[str, int]:
        split_path(directory)
        with _named_errors(directory, "measure it"):
            if not self.fs.isdir(directory):
                return {}
            entries = self.fs.scandir(directory, namespaces=["details"])
            return {entry.name: entry.size for entry in entries if entry.is_file and not is_private(entry.name)}

    def sweep(self) -> Sequence[str]:
        return []

    def local_path(self, path: str) -> None:
        split_path(path)

    def close(self) -> None:
        self.fs.close()

    def publish(self, part: str, directory: str, filenames: Sequence[str], *, replace: bool) -> None:
        """Moves the files of the directory ``part`` into ``directory``; what a ``MemoryStaging`` calls."""
        with _named_errors(directory, "publish into it"), self._lock:
            for filename in filenames:
                if not replace and self.fs.exists(path := join_path(directory, filename)):
                    raise AlreadyExistsError(f"{path}: exists already")
            for filename in filenames:
                self.fs.move(f"{part}/{filename}", join_path(directory, filename), overwrite=replace)
            self.fs.removedir(part)


class MemoryFile(StoredFile):
    """A file opened for reading; takes over ``handle``."""

    def __init__(self, path: str, handle: BinaryIO) -> None:
        self._path = path
        self._file = handle
        self._lock = threading.Lock()  # the handle has one position for all threads

    @property
    def path(self) -> str:
        return self._path

    @property
    def size(self) -> int:
        with self._lock:
            return self._handle().seek(0, 2)

    def pread(self, offset: int, length: int) -> bytes:
        with self._lock:
            self._handle().seek(offset)
            return self._file.read(length)

    def read_ready_into(self, offset: int, buffer: memoryview) -> bool:
        data = self.pread(offset, len(buffer))
        if len(data) < len(buffer):
            return False
        buffer[:] = data
        return True

    def data_ranges(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        end = min(offset + length, self.size)
        if offset < end:
            yield offset, end - offset

    def close(self) -> None:
        self._file.close()

    def _handle(self) -> BinaryIO:
        if self._file.closed:  # MemoryFS would go on
            raise ValueError(f"{self._path} is closed")
        return self._file


class MemoryStagedFile(MemoryFile, StagedFile):
    """A file that is being made."""

    def pwrite(self, offset: int, data: Bytes) -> None:
        with self._lock:
            self._handle().seek(offset)
            self._file.write(data)

    def truncate(self, size: int) -> None:
        with self._lock:
            end = self._handle().seek(0, 2)
            if size > end:
                self._file.write(bytes(size - end))  # MemoryFS grows a file only if its position allows
            else:
                self._file.truncate(size)

    def fsync(self) -> None:
        """Nothing to do."""


class MemoryLiveFile(MemoryStagedFile, LiveFile):
    """A file at its final place.

    Args:
        release: called once, when it is closed; None for a file that is not locked.
    """

    def __init__(self, path: str, handle: BinaryIO, release: Callable[[], None] | None) -> None:
        super().__init__(path, handle)
        self._release = release

    def punch(self, offset: int, length: int) -> None:
        """Nothing to do: holes take memory."""

    def zero(self, offset: int, length: int, *, keep_space: bool = False) -> None:
        self.pwrite(offset, bytes(length))

    def fdatasync(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        super().close()
        release, self._release = self._release, None
        if release is not None:
            release()


class MemoryStaging(Staging):
    """A private directory inside the one where its files will lie."""

    def __init__(self, datastore: MemoryDatastore, directory: str, name: str, part: str) -> None:
        self._datastore = datastore
        self._directory = directory
        self._label = join_path(directory, name)
        self._part = part
        self._files: dict[str, MemoryStagedFile] = {}
        self._open = True

    def create(self, filename: str) -> MemoryStagedFile:
        path = join_path(self._directory, single_name(filename))
        with _named_errors(path, "create it"):
            file = MemoryStagedFile(path, self._datastore.fs.openbin(f"{self._part}/{filename}", "x+"))
        self._files[filename] = file
        return file

    def publish(self) -> None:
        self._publish(replace=False)

    def replace(self) -> None:
        self._publish(replace=True)

    def discard(self) -> None:
        if self._open:
            self._open = False
            for file in self._files.values():
                file.close()
            self._datastore.fs.removetree(self._part)

    def _publish(self, *, replace: bool) -> None:
        if not self._open:
            raise ValueError(f"{self._label} was published or discarded already")
        self._datastore.publish(self._part, self._directory, list(self._files), replace=replace)
        self._open = False


@contextlib.contextmanager
def _named_errors(path: str, what: str) -> Iterator[None]:
    """Turns PyFilesystem's errors into the kind of ImgstoreError they are, naming the file."""
    try:
        yield
    except errors.FSError as error:
        raise _kind_of(error)(f"{path or 'the root of the datastore'}: cannot {what}: {error}") from error


def _kind_of(error: errors.FSError) -> type[ImgstoreError]:
    match error:
        case errors.FileExists() | errors.DirectoryExists() | errors.DestinationExists():
            return AlreadyExistsError
        case errors.ResourceNotFound() | errors.FileExpected() | errors.DirectoryExpected():
            return NotFoundError
        case _:
            return InvalidError
