"""VsphereDatastore: a directory of a vSphere datastore, reached over the network.

Files are made in a temporary directory of this machine and uploaded when they are published, under their final names: vSphere has no
directory that appears at once, and to move a ``.vmdk`` it rewrites it as flat, without its parent. So a crash while one is uploaded
leaves a part of it, which nobody takes for whole before a marker says so; markers, which are small and no disks, are uploaded under a
private name and moved.

There are no locks between machines: one of them at a time may write. Guests' disks are not made here: the platform makes them.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import secrets
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import IO, BinaryIO, NoReturn, cast

from imgstore.blocks import Bytes
from imgstore.datastores.datastore import (
    Datastore,
    LiveFile,
    R,
    Space,
    Staging,
    StoredFile,
    T,
    is_private,
    join_path,
    owner_of,
    part_name,
    single_name,
    split_name,
    split_path,
)
from imgstore.datastores.local_files import LocalStagedFile
from imgstore.datastores.vsphere_files import DatastoreFiles
from imgstore.datastores.vsphere_fs import VsphereFS
from imgstore.errors import (
    AlreadyExistsError,
    DeniedError,
    ImgstoreError,
    InUseError,
    NoSpaceError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)
from imgstore.vsphere.locations import DatastoreLocation
from imgstore.vsphere.machine_disks import files_of_machines
from imgstore.vsphere.session import VsphereLogin, VsphereSession
from imgstore.vsphere.soap import vim

_WINDOW = 64 << 10
"""Bytes that are read at least: more than a marker has, and about what one question takes the time of."""

_WINDOW_MAX = 1 << 20
"""Bytes that are read ahead of who reads one after the other."""

_WINDOWS = 4
"""Places of a file that are kept: tables of grains, inodes, directories and data lie apart."""

_QUESTIONS = 8
"""That are asked at once: over a slow line each takes long, and nobody much work."""

_PART_AGE = datetime.timedelta(hours=1)
"""Older leftovers of markers are swept: to upload one takes seconds."""


@dataclass(frozen=True, slots=True)
class DatastoreDescription:
    """What a datastore says it is.

    Attributes:
        type: ``VMFS 5``, ``VMFS 6``, ``NFS``, ``NFS41``, ``vsan``, ``VVOL``, ``local``; others as the server calls them.
        capacity, free: bytes.
    """

    name: str
    type: str
    capacity: int
    free: int


class VsphereDatastore(Datastore):
    """See the module. Logs in when it is used first.

    Files that are open are read by ranges, some of them ahead; one that is replaced meanwhile reads as the new one behind its first
    64 KiB. Sizes and usage are what the datastore's browser says.

    Args:
        location: its directory is made when something is.
        login: closed with the datastore.
    """

    platform_disks = True

    def __init__(self, location: DatastoreLocation, login: VsphereLogin) -> None:
        self._files = DatastoreFiles(VsphereSession(login), location)
        self.fs = VsphereFS(self._files)
        self._owner = secrets.token_hex(6)
        self._closed = False

    @property
    def files(self) -> DatastoreFiles:
        """The same files as the server has them, with the session."""
        return self._files

    def open(self, path: str) -> StoredFile:
        split_name(path)
        self._check_open()
        size, start = self._files.read_start(path, _WINDOW)
        return VsphereFile(self._files, path, size, start)

    def create(self, path: str) -> NoReturn:
        """Raises UnsupportedError: no file of a datastore can be written in place over the network."""
        split_name(path)
        raise self._unsupported(path)

    def open_live(self, path: str, *, writable: bool) -> NoReturn:
        """Raises UnsupportedError, as `create`."""
        split_name(path)
        raise self._unsupported(path)

    def create_unnamed(self, label: str) -> LiveFile:
        raise self._unsupported(label)

    def sync(self) -> None:
        """Nothing to do: the server has stored what it has answered for."""

    def stage(self, directory: str, name: str) -> VsphereStaging:
        split_path(directory)
        single_name(name)
        self._check_open()
        self._files.make_directories(directory)
        return VsphereStaging(self, directory, name)

    def write_atomic(self, path: str, data: bytes) -> None:
        components, name = split_name(path)
        self._check_open()
        directory = "/".join(components)
        self._files.make_directories(directory)
        entry = self._files.find(path)
        if entry is not None and entry.is_directory:
            raise NotFoundError(f"{path}: cannot write it: is a directory")
        part = join_path(directory, part_name(name, self._owner))
        self._files.upload(part, BytesIO(data), len(data))
        try:
            self._files.move(part, path, replace=True)
        except BaseException:
            with contextlib.suppress(ImgstoreError):
                self._files.remove(part)
            raise

    def write_many(self, directory: str, files: Sequence[tuple[str, bytes]]) -> None:
        split_path(directory)
        paths = [join_path(directory, single_name(name)) for name, _ in files]
        self._files.make_directories(directory)
        for path, (_, data) in zip(paths, files, strict=True):
            self.write_atomic(path, data)

    def exists(self, path: str) -> bool:
        split_path(path)
        self._check_open()
        if path.endswith(".vmdk"):  # the browser does not show all files that a disk has
            with contextlib.suppress(NotFoundError):
                self._files.size(path)
                return True
        return not path or self._files.find(path) is not None

    def list(self, path: str = "") -> list[str]:
        split_path(path)
        self._check_open()
        return sorted(entry.name for entry in self._files.scan(path) if not is_private(entry.name))

    def remove_file(self, path: str) -> None:
        split_name(path)
        self._check_open()
        if path.endswith(".vmdk"):  # the browser does not show all files that a disk has
            self._files.size(path)
        else:
            self._find(path, directory=False)
        self._files.remove(path)

    def remove_tree(self, path: str) -> None:
        split_name(path)
        self._check_open()
        self._find(path, directory=True)
        self._files.remove(path)

    def remove_platform_disk(self, path: str) -> None:
        """Removes the disk by the VirtualDiskManager, which knows its files and refuses where one is open, then the directory around it."""
        directory = "/".join(split_name(path)[0])
        self._check_open()
        for file, machine in files_of_machines(self._files.session, self._files.datastore).items():
            if self._files.relative(file) == path:
                raise InUseError(f"{self._files.shown(path)}: VM {machine} has it", hint="imgstore detach takes it from there")
        self._files.remove_disk(path)
        self.remove_tree(directory)

    def make_disk(self, path: str, capacity: int) -> None:
        self._files.make_directories("/".join(split_name(path)[0]))
        self._check_open()
        self._files.create_disk(path, capacity)

    def import_disk(self, source: str, path: str) -> None:
        split_name(path)
        self._check_open()
        self._files.copy_disk(source, path)

    def describe_disk(self, path: str, descriptor: bytes) -> None:
        split_name(path)
        self._check_open()
        self._files.upload(path, BytesIO(descriptor), len(descriptor))

    def remove_disk(self, path: str) -> None:
        split_name(path)
        self._check_open()
        self._files.remove_disk(path)

    def files_in_use(self) -> frozenset[str]:
        files = files_of_machines(self._files.session, self._files.datastore)
        return frozenset(path for file in files if (path := self._files.relative(file)) is not None)

    def usage(self, path: str = "") -> int:
        split_path(path)
        self._check_open()
        return self._files.usage(path)

    def usages(self, directory: str) -> dict[str, int]:
        split_path(directory)
        self._check_open()
        try:
            entries = self._files.scan(directory)
        except NotFoundError:
            return {}
        return {entry.name: entry.size for entry in entries if not entry.is_directory and not is_private(entry.name)}

    def sweep(self) -> Sequence[str]:
        """Removes leftovers of markers that are older than an hour: who made them is not known."""
        self._check_open()
        found = self._files.find_below("", ".*.part")
        if not found:
            return []
        latest = self._files.session.now() - _PART_AGE
        removed = []
        for path, entry in found:
            if owner_of(entry.name) is not None and entry.modified is not None and entry.modified < latest:
                with contextlib.suppress(NotFoundError):
                    self._files.remove(path)
                    removed.append(path)
        return removed

    def parts(self, path: str) -> Sequence[str]:
        split_path(path)
        try:
            return [join_path(path, entry.name) for entry in self._files.scan(path) if owner_of(entry.name) is not None]
        except NotFoundError:
            return []

    def local_path(self, path: str) -> None:
        split_path(path)

    @property
    def location(self) -> str:
        return self._files.location.url

    @property
    def prefix(self) -> str:
        return self._files.shown("x")[:-1]

    def space(self) -> Space:
        description = self.describe()
        return Space(description.capacity, description.free)

    def each(self, call: Callable[[T], R], values: Iterable[T]) -> Iterable[R]:
        with ThreadPoolExecutor(_QUESTIONS, thread_name_prefix="imgstore-vsphere") as pool:
            return list(pool.map(call, values))

    def check_live(self) -> None:
        raise self._unsupported("")

    def describe(self) -> DatastoreDescription:
        """What the datastore says it is.

        Raises:
            NotFoundError: there is no such datacenter, or datastore.
            DeniedError: we may not see it.
            UnavailableError: no host reaches it, or it is in maintenance.
        """
        self._check_open()
        found = self._files.session.properties([self._files.datastore], "summary", "info")[self._files.datastore]
        if "summary" not in found or "info" not in found:
            raise DeniedError(
                f"{self._files.shown('')}: what the datastore is cannot be read: the privilege System.Read is missing"
            )
        return describe(found["summary"], found["info"])

    def storage_type(self) -> str:
        return self.describe().type

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.fs.close()
            self._files.session.close()

    def publish(self, directory: str, files: Sequence[tuple[str, IO[bytes]]]) -> None:
        """Uploads files into a directory in this order; what `VsphereStaging.publish` calls."""
        paths = [join_path(directory, name) for name, _ in files]
        for path in paths:
            if self.exists(path):
                raise AlreadyExistsError(f"{path}: exists already")
        uploaded: list[str] = []
        try:
            for path, (_, file) in zip(paths, files, strict=True):
                self._files.upload(path, cast("BinaryIO", file), os.fstat(file.fileno()).st_size)
                uploaded.append(path)
        except BaseException:
            for path in reversed(uploaded):
                with contextlib.suppress(ImgstoreError):
                    self._files.remove(path)
            raise

    def _find(self, path: str, *, directory: bool) -> None:
        entry = self._files.find(path)
        if entry is None or entry.is_directory != directory:
            kind = "directory" if directory else "file"
            raise NotFoundError(f"{path}: cannot remove it: there is no such {kind}")

    def _unsupported(self, path: str) -> UnsupportedError:
        return UnsupportedError(
            f"{self._files.shown(path)}: disks that guests write cannot be made on a vSphere datastore over the network",
            hint="use a store on a file system of this machine, or let the platform make them: imgstore attach --vm",
        )

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"the datastore {self.location} is closed")


class VsphereFile(StoredFile):
    """A file opened for reading. Reads some bytes ahead, and remembers the last places.

    Args:
        start: its first bytes.
    """

    def __init__(self, files: DatastoreFiles, path: str, size: int, start: bytes) -> None:
        self._files = files
        self._path = path
        self._size = size
        self._windows: list[tuple[int, bytes]] = [(0, start)]  # the last one used comes last
        self._ahead = _WINDOW
        self._lock = threading.Lock()
        self._closed = False

    @property
    def path(self) -> str:
        return self._path

    @property
    def size(self) -> int:
        self._check_open()
        return self._size

    def pread(self, offset: int, length: int) -> bytes:
        self._check_open()
        length = min(length, self._size - offset)
        if length <= 0:
            return b""
        with self._lock:
            found = self._find(offset, length)
            if found is not None:
                return found
            follows = any(start <= offset <= start + len(data) for start, data in self._windows)
            self._ahead = min(self._ahead * 2, _WINDOW_MAX) if follows else _WINDOW
            wanted = min(max(length, self._ahead), self._size - offset)
        data = self._files.read(self._path, offset, wanted)
        if len(data) < wanted:
            raise UnavailableError(f"{self._path}: has {self._size} bytes no more: {len(data)} of {wanted} at byte {offset}")
        if wanted <= _WINDOW_MAX:
            with self._lock:
                self._windows = [*self._windows[1 - _WINDOWS :], (offset, data)]
        return data[:length]

    def data_ranges(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        end = min(offset + length, self.size)
        if offset < end:
            yield offset, end - offset

    def close(self) -> None:
        self._closed = True
        self._windows = []

    def _find(self, offset: int, length: int) -> bytes | None:
        for index, (start, data) in enumerate(self._windows):
            if start <= offset and offset + length <= start + len(data):
                self._windows.append(self._windows.pop(index))
                return data[offset - start : offset - start + length]
        return None

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"{self._path} is closed")


class VsphereStaging(Staging):
    """Files without a name in the temporary directory of this machine: a crash leaves nothing of them."""

    def __init__(self, datastore: VsphereDatastore, directory: str, name: str) -> None:
        self._datastore = datastore
        self._directory = directory
        self._label = join_path(directory, name)
        self._spooled: dict[str, IO[bytes]] = {}
        self._files: list[SpooledFile] = []
        self._open = True

    def create(self, filename: str) -> SpooledFile:
        path = join_path(self._directory, single_name(filename))
        if filename in self._spooled:
            raise AlreadyExistsError(f"{path}: exists already")
        spool = self._spooled[filename] = tempfile.TemporaryFile(prefix="imgstore-")  # noqa: SIM115  # until it is uploaded
        file = SpooledFile(path, os.dup(spool.fileno()), None)
        self._files.append(file)
        return file

    def publish(self) -> None:
        if not self._open:
            raise ValueError(f"{self._label} was published or discarded already")
        self._datastore.publish(self._directory, list(self._spooled.items()))
        self._close()

    def discard(self) -> None:
        if self._open:
            for file in self._files:
                file.close()
            self._close()

    def _close(self) -> None:
        self._open = False
        for spool in self._spooled.values():
            spool.close()


class SpooledFile(LocalStagedFile):
    """A file that is being made, in the temporary directory of this machine."""

    def pwrite(self, offset: int, data: Bytes) -> None:
        try:
            super().pwrite(offset, data)
        except NoSpaceError as error:
            raise NoSpaceError(
                f"{error}, in {tempfile.gettempdir()}, where it is made before it is uploaded",
                hint="TMPDIR names another directory",
            ) from error

    def fsync(self) -> None:
        """Nothing to do: it is durable when it is published."""


def describe(summary: vim.Datastore.Summary, info: vim.Datastore.Info) -> DatastoreDescription:
    """What a datastore's properties say. Raises as `VsphereDatastore.describe`."""
    if not summary.accessible:
        raise UnavailableError(f"[{summary.name}]: no host reaches the datastore")
    if summary.maintenanceMode not in (None, "", "normal"):
        raise UnavailableError(f"[{summary.name}]: the datastore is in maintenance ({summary.maintenanceMode})")
    return DatastoreDescription(summary.name, _type_of(summary, info), int(summary.capacity), int(summary.freeSpace))


def _type_of(summary: vim.Datastore.Summary, info: vim.Datastore.Info) -> str:
    if isinstance(info, vim.host.VmfsDatastoreInfo):
        version = info.vmfs.majorVersion if info.vmfs is not None else None
        return f"VMFS {version}" if version else "VMFS"
    if isinstance(info, vim.host.LocalDatastoreInfo):
        return "local"
    return str(summary.type)
