"""Files of a vSphere datastore: their bytes over HTTPS, all else by the FileManager and the datastore's browser.

Sources: "HTTP access to vSphere Server files" in the vSphere Web Services SDK programming guide; FileManager and HostDatastoreBrowser in
the vSphere Web Services API reference.

The browser shows a virtual disk as one file, whose size may be that of its extents: so sizes of ``.vmdk`` are asked over HTTPS.
"""

from __future__ import annotations

import contextlib
import datetime
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO
from urllib.parse import quote

import requests

from imgstore.errors import (
    AlreadyExistsError,
    CorruptError,
    ImgstoreError,
    InvalidError,
    NoSpaceError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)
from imgstore.vsphere.faults import FULL
from imgstore.vsphere.locations import DatastoreLocation
from imgstore.vsphere.machine_disks import in_directory
from imgstore.vsphere.session import VsphereSession
from imgstore.vsphere.soap import vim
from imgstore.vsphere.transport import start_of

_UPLOAD_TIMEOUT = 600.0
"""Seconds that the server may take between the last byte of a file and its answer."""

_ADAPTER = vim.VirtualDiskManager.VirtualDiskAdapterType.lsiLogic

_WORDS_LIMIT = 4096
"""Bytes of an answer that is no success which are read for its words."""

_CONTENT_RANGE = re.compile(r"bytes (?:(?P<first>\d{1,19})-(?P<last>\d{1,19})|\*)/(?P<size>\d{1,19})")

_PATTERN_LETTERS = re.compile(r"[*?\[\]\\]")


@dataclass(frozen=True, slots=True)
class Entry:
    """What a datastore's browser says of a file or directory.

    Attributes:
        size: bytes; of directories what the server says.
        modified: None if the server does not say.
    """

    name: str
    is_directory: bool
    size: int
    modified: datetime.datetime | None


class DatastoreFiles:
    """The files below one directory of a datastore. Paths are relative to that: names joined by ``/``, or the empty one.

    Nothing is asked before it is needed. Methods may be called from several threads. All raise, beside what they say:

        DeniedError: a privilege is missing: Datastore.Browse, Datastore.FileManagement.
        UnavailableError: the server does not answer.

    Args:
        session: stays the caller's, to be closed.
    """

    def __init__(self, session: VsphereSession, location: DatastoreLocation) -> None:
        self.session = session
        self.location = location
        self._made: set[str] = set()

    @cached_property
    def datacenter(self) -> vim.Datacenter:
        """Raises NotFoundError if there is none of that name."""
        return self.session.datacenter(self.location.datacenter)

    @cached_property
    def datastore(self) -> vim.Datastore:
        """Raises NotFoundError if there is none of that name."""
        return self.session.datastore(self.datacenter, self.location.datastore)

    @cached_property
    def _browser(self) -> vim.host.DatastoreBrowser:
        found = self.session.properties([self.datastore], "browser")[self.datastore].get("browser")
        if found is None:
            raise UnavailableError(f"[{self.location.datastore}]: no host can browse it")
        return found

    @cached_property
    def _parameters(self) -> Mapping[str, str]:
        return {"dcPath": self.session.datacenter_path(self.datacenter), "dsName": self.location.datastore}

    def shown(self, path: str) -> str:
        """A path as vSphere writes it: ``[DATASTORE] path``."""
        below = "/".join(filter(None, (self.location.path, path)))
        return f"[{self.location.datastore}] {below}" if below else f"[{self.location.datastore}]"

    def relative(self, shown: str) -> str | None:
        """The path below here of one that vSphere has; None if it is not below."""
        prefix = self.shown("x").removesuffix("x")
        path = in_directory(shown, prefix) if self.location.path else shown
        return path.removeprefix(prefix) if path.startswith(prefix) else None

    def scan(self, path: str) -> list[Entry]:
        """What a directory holds.

        Raises:
            NotFoundError: it is missing, or not a directory.
        """
        return self._search(path, "*")

    def find(self, path: str) -> Entry | None:
        """A file or directory, or None if there is neither."""
        _ = self._browser  # that the datastore is missing is more than that the file is
        if not path:
            try:
                self._search(path, "?")  # whatever it holds
            except NotFoundError:
                return None
            return Entry("", True, 0, None)
        directory, _, name = path.rpartition("/")
        try:
            # The browser's patterns know no escapes.
            entries = self._search(directory, _PATTERN_LETTERS.sub("?", name))
        except NotFoundError:
            return None
        return next((entry for entry in entries if entry.name == name), None)

    def usage(self, path: str) -> int:
        """Bytes that a file, or a directory with all below it, takes as the browser says.

        Raises:
            NotFoundError: there is neither.
        """
        entry = self.find(path)
        if entry is None:
            raise NotFoundError(f"{self.shown(path)}: cannot measure it: no such file or directory")
        if not entry.is_directory:
            return entry.size
        return sum(each.size for _, each in self.find_below(path, "*") if not each.is_directory)

    def find_below(self, path: str, pattern: str) -> list[tuple[str, Entry]]:
        """Paths of all that lies in a directory, or below it, and has a name of the pattern (``*`` and ``?``); none if it is not there."""
        shown = self.shown(path)
        browser = self._browser  # that the datastore is missing is more than that the directory is
        try:
            task = self._call(lambda: browser.SearchDatastoreSubFolders_Task(shown, _search_spec(pattern)), path, "search it")
            found = self.session.wait(task, f"{shown}: cannot search it")
        except NotFoundError:
            return []
        top = self.shown("").rstrip("/")
        paths = []
        for folder in found:
            directory = str(folder.folderPath).removeprefix(top).strip("/ ")
            paths += [("/".join(filter(None, (directory, each.path))), _entry(each)) for each in folder.file]
        return paths

    def make_directories(self, path: str) -> None:
        """Makes a directory, and those above it, unless they are there. Remembers those that it made.

        Raises:
            NotFoundError: there is something in the way that is not a directory.
            NoSpaceError: the datastore is full.
        """
        if path in self._made or not (path or self.location.path):
            return
        shown = self.shown(path)
        try:
            self._call(lambda: self._file_manager.MakeDirectory(shown, self.datacenter, True), path, "make it")
        except AlreadyExistsError:
            pass
        except ImgstoreError as error:
            if self._is_file_in_the_way(path):
                raise NotFoundError(f"{shown}: cannot make it: a file is in the way") from error
            raise
        self._made.add(path)

    def make_directory(self, path: str) -> None:
        """Makes a directory in one that is there.

        Raises:
            AlreadyExistsError: there is something of that name.
            NotFoundError: the directory above it is missing.
        """
        shown = self.shown(path)
        self._call(lambda: self._file_manager.MakeDirectory(shown, self.datacenter, False), path, "make it")

    def remove(self, path: str) -> None:
        """Removes a file, or a directory with all that is in it.

        Raises:
            NotFoundError: there is neither.
            InUseError: a running machine has it open.
        """
        self._forget_directories()
        shown = self.shown(path)
        task = self._call(lambda: self._file_manager.DeleteDatastoreFile_Task(shown, self.datacenter), path, "remove it")
        self.session.wait(task, f"{shown}: cannot remove it")

    def create_disk(self, path: str, capacity: int) -> None:
        """Has the server make an empty virtual disk, thin, for an LSI Logic controller.

        Raises:
            AlreadyExistsError: there is one.
            NotFoundError: its directory is missing.
            NoSpaceError: the datastore is full.
        """
        spec = vim.VirtualDiskManager.FileBackedVirtualDiskSpec(
            diskType=vim.VirtualDiskManager.VirtualDiskType.thin, adapterType=_ADAPTER, capacityKb=capacity // 1024
        )
        shown = self.shown(path)
        manager = self.session.content.virtualDiskManager
        task = self._call(lambda: manager.CreateVirtualDisk_Task(shown, self.datacenter, spec), path, "make the disk")
        self.session.wait(task, f"{shown}: cannot make the disk")

    def copy_disk(self, source: str, target: str) -> None:
        """Has the server make a virtual disk of another one, thin where it can be told so.

        Hosts can; vCenters answer NotImplemented, and make what they choose, seen to be thick (vmware/govmomi 1036, 3748).
        Source: VirtualDiskManager.CopyVirtualDisk_Task in the API reference; govmomi ``object/datastore_file_manager.go``.

        Raises:
            NotFoundError: the source is missing.
            AlreadyExistsError: the target is there.
            NoSpaceError: the datastore is full.
            UnsupportedError: it cannot make one of that source.
        """
        what = f"{self.shown(target)}: cannot make the disk of {self.shown(source)}"
        manager = self.session.content.virtualDiskManager
        thin = vim.VirtualDiskManager.VirtualDiskSpec(diskType=vim.VirtualDiskManager.VirtualDiskType.thin, adapterType=_ADAPTER)

        def copy(spec: vim.VirtualDiskManager.VirtualDiskSpec | None) -> None:
            task = self.session.run(
                lambda: manager.CopyVirtualDisk_Task(
                    self.shown(source), self.datacenter, self.shown(target), self.datacenter, spec, False
                ),
                what,
            )
            self.session.wait(task, what)

        try:
            copy(thin)
        except UnsupportedError:
            copy(None)

    def remove_disk(self, path: str) -> None:
        """Removes a virtual disk that the platform made, with all files of it, and without its parents.

        Raises:
            NotFoundError: it is missing.
            InUseError: a running machine has it open.
        """
        self._forget_directories()
        shown = self.shown(path)
        manager = self.session.content.virtualDiskManager
        task = self._call(lambda: manager.DeleteVirtualDisk_Task(shown, self.datacenter), path, "remove the disk")
        self.session.wait(task, f"{shown}: cannot remove the disk")

    def move(self, source: str, target: str, *, replace: bool) -> None:
        """Renames a file or directory on the server. Not for ``.vmdk``: vSphere would take one for a disk, and rewrite it as flat.

        Raises:
            NotFoundError: the source is missing, or the directory of the target.
            AlreadyExistsError: the target is there, and ``replace`` is False.
        """
        self._forget_directories()
        what = f"{self.shown(source)}: cannot move it to {self.shown(target)}"
        task = self.session.run(
            lambda: self._file_manager.MoveDatastoreFile_Task(
                self.shown(source), self.datacenter, self.shown(target), self.datacenter, replace
            ),
            what,
        )
        self.session.wait(task, what)

    def copy(self, source: str, target: str, *, replace: bool) -> None:
        """Copies a file on the server. Not for ``.vmdk``, as `move`. Raises what `move` raises."""
        what = f"{self.shown(source)}: cannot copy it to {self.shown(target)}"
        task = self.session.run(
            lambda: self._file_manager.CopyDatastoreFile_Task(
                self.shown(source), self.datacenter, self.shown(target), self.datacenter, replace
            ),
            what,
        )
        self.session.wait(task, what)

    def size(self, path: str) -> int:
        """Length in bytes of a file, as its bytes can be read.

        Raises:
            NotFoundError: there is no such file.
        """
        with self._request("HEAD", path, "ask for its size") as response:
            if response.status_code == requests.codes.ok and (length := response.headers.get("Content-Length", "")).isdigit():
                return int(length[:20])
            raise self._refused(response, path, "ask for its size")

    def read_start(self, path: str, length: int) -> tuple[int, bytes]:
        """Length in bytes of a file, and its first bytes: ``length``, or all if it has fewer.

        Raises:
            NotFoundError: there is no such file, or it is a directory.
        """
        with self._request("GET", path, "open it", headers={"Range": f"bytes=0-{length - 1}"}) as response:
            if response.status_code == requests.codes.partial_content:
                size = self._total(response, path, 0)
                return size, self._body(response, path, min(length, size))
            if response.status_code not in (requests.codes.ok, requests.codes.requested_range_not_satisfiable):
                raise self._refused(response, path, "open it")
        # An empty file has no first byte, and a directory's list may come instead of a part of it.
        entry = self.find(path)
        if entry is None or entry.is_directory:
            raise NotFoundError(f"{self.shown(path)}: cannot open it: is not a regular file")
        if self.size(path):
            raise UnsupportedError(f"{self.shown(path)}: cannot open it: {self.session.server} gives no parts of files")
        return 0, b""

    def read(self, path: str, offset: int, length: int) -> bytes:
        """``length`` bytes at ``offset``, fewer only where the file ends.

        Raises:
            NotFoundError: there is no such file.
        """
        if not length:
            return b""
        with self._request("GET", path, "read it", headers={"Range": f"bytes={offset}-{offset + length - 1}"}) as response:
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                return b""
            if response.status_code != requests.codes.partial_content:
                raise self._refused(response, path, "read it")
            size = self._total(response, path, offset)
            return self._body(response, path, min(length, size - offset))

    def upload(self, path: str, file: BinaryIO, size: int) -> None:
        """Puts a file's bytes under their final name, which is removed again if not all came to lie there.

        Whoever looks meanwhile sees a part of it, and so does who looks after a crash: say with another file that this one is whole.

        Args:
            file: read from byte 0, more than once if the server had dropped the session.
            size: its length in bytes.

        Raises:
            NotFoundError: there is no such directory.
            NoSpaceError: the datastore is full.
            UnavailableError: the connection broke.
        """
        try:
            self._put(path, file, size)
            kept = self.size(path)
            if kept != size:
                # It answers only when it has had every byte.
                raise NoSpaceError(
                    f"{self.shown(path)}: only {kept} of {size} bytes were kept, though the server says all is well"
                )
        except BaseException as error:
            with contextlib.suppress(ImgstoreError):
                self.remove(path)
            if isinstance(error, UnavailableError):
                self._raise_if_full(path, size, error)
            raise

    def free_space(self) -> int | None:
        """Bytes that are free, as the server finds when it looks anew; None if it does not say."""
        what = f"[{self.location.datastore}]: cannot ask for its free space"
        with contextlib.suppress(ImgstoreError):  # a privilege of its own; what the server knew before will do
            self.session.run(lambda: self.datastore.RefreshDatastore(), what)
        found = self.session.properties([self.datastore], "summary.freeSpace", what=what)
        free = found[self.datastore].get("summary.freeSpace")
        return None if free is None else int(free)

    @property
    def _file_manager(self) -> vim.FileManager:
        return self.session.content.fileManager

    def _call(self, call: Callable[[], Any], path: str, verb: str) -> Any:
        return self.session.run(call, f"{self.shown(path)}: cannot {verb}")

    def _search(self, path: str, pattern: str) -> list[Entry]:
        shown = self.shown(path)
        try:
            task = self._call(lambda: self._browser.SearchDatastore_Task(shown, _search_spec(pattern)), path, "list it")
            found = self.session.wait(task, f"{shown}: cannot list it")
        except InvalidError as error:  # what vcsim says of a file
            raise NotFoundError(f"{shown}: cannot list it: is not a directory") from error
        return [_entry(each) for each in found.file]

    def _is_file_in_the_way(self, path: str) -> bool:
        names = path.split("/")
        for depth in range(1, len(names) + 1):
            entry = self.find("/".join(names[:depth]))
            if entry is None:
                return False
            if not entry.is_directory:
                return True
        return False

    def _forget_directories(self) -> None:
        self._made = set()

    def _put(self, path: str, file: BinaryIO, size: int) -> None:
        def body() -> BinaryIO | bytes:
            file.seek(0)
            return file if size else b""  # of an empty file requests would not say the length

        with self._request("PUT", path, "upload it", body=body, timeout=_UPLOAD_TIMEOUT) as response:
            if response.status_code not in (requests.codes.ok, requests.codes.created, requests.codes.no_content):
                raise self._refused(response, path, "upload it")

    def _raise_if_full(self, path: str, size: int, error: UnavailableError) -> None:
        """ESXi hangs up on an upload that finds no space."""
        free = None
        with contextlib.suppress(ImgstoreError):
            free = self.free_space()
        if free is not None and free < size:
            raise NoSpaceError(f"{self.shown(path)}: cannot upload {size} bytes: {free} are free") from error

    @contextlib.contextmanager
    def _request(self, method: str, path: str, verb: str, **options: Any) -> Iterator[requests.Response]:
        below = "/".join(filter(None, (self.location.path, path)))
        with self.session.request(
            method, f"/folder/{quote(below)}", f"{self.shown(path)}: cannot {verb}", parameters=self._parameters, **options
        ) as response:
            yield response

    def _refused(self, response: requests.Response, path: str, verb: str) -> ImgstoreError:
        words = start_of(response, _WORDS_LIMIT).decode(errors="replace")
        message = f"{self.shown(path)}: cannot {verb}: {self.session.server} says {response.status_code} {response.reason}"
        # vcsim leads from directories to their lists; where else a server may lead says nothing about the file.
        is_directory = response.is_redirect and response.headers["location"].partition("?")[0].endswith("/")
        if response.status_code == requests.codes.not_found or is_directory:
            return NotFoundError(f"{self.shown(path)}: cannot {verb}: is not a regular file, or missing")
        if response.status_code == requests.codes.insufficient_storage or FULL in words:
            return NoSpaceError(f"{self.shown(path)}: cannot {verb}: the datastore is full")
        return UnavailableError(message)

    def _total(self, response: requests.Response, path: str, offset: int) -> int:
        """The length of the whole file that an answer tells which has a part of it, from ``offset``."""
        found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if found is None or found["first"] is None or int(found["first"]) != offset:
            raise CorruptError(
                f"{self.shown(path)}: asked for byte {offset} on, got Content-Range {response.headers.get('Content-Range')!r}"
            )
        return int(found["size"])

    def _body(self, response: requests.Response, path: str, length: int) -> bytes:
        """As many bytes as ``length``, whatever more the server would send."""
        pieces = []
        missing = length
        while missing > 0:
            piece = response.raw.read(missing)
            if not piece:
                raise UnavailableError(f"{self.shown(path)}: cannot read it: {missing} of {length} bytes did not come")
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)


def _search_spec(pattern: str) -> vim.host.DatastoreBrowser.SearchSpec:
    details = vim.host.DatastoreBrowser.FileInfo.Details(fileType=True, fileSize=True, modification=True, fileOwner=False)
    return vim.host.DatastoreBrowser.SearchSpec(details=details, matchPattern=[pattern])


def _entry(found: vim.host.DatastoreBrowser.FileInfo) -> Entry:
    is_directory = isinstance(found, vim.host.DatastoreBrowser.FolderInfo)
    return Entry(found.path, is_directory, found.fileSize or 0, found.modification)
