"""Volume stores: the named places where volumes lie, added to a store and taken away while it is in use.

``default`` is the datastore of the store itself. Any other is a marker in ``volume-stores/`` that names a directory; its volumes lie
wholly in the directory ``volumes`` there, with the leases of who works on them, so that several stores, on several hosts if the file
system is shared, can have one place in common.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from dataclasses import dataclass
from pathlib import Path

from imgstore import layout, markers
from imgstore.datastores.datastore import Datastore, list_names
from imgstore.datastores.local import LocalDatastore
from imgstore.datastores.memory import MemoryDatastore
from imgstore.errors import AlreadyExistsError, CorruptError, ImgstoreError, InvalidError, NotFoundError, UnavailableError
from imgstore.leases import FileLeases, Leases, MemoryLeases, held
from imgstore.location import directory_of
from imgstore.markers import VolumeStoreMarker
from imgstore.volume_disks import VolumeDisks
from imgstore.volume_options import DEFAULT_STORE, check_name

MEMORY = "mem://"

_LEASES = ".leases"
_CHANGE = "volume-stores"
"""Lease of who adds a volume store."""


@dataclass(frozen=True, slots=True)
class VolumeStore:
    """A volume store that is open.

    Attributes:
        location: its directory, absolute, or ``mem://`` or ``vsphere://``.
        leases: of all who work on its volumes.
    """

    name: str
    location: str
    datastore: Datastore
    leases: Leases
    disks: VolumeDisks


@dataclass(frozen=True, slots=True)
class VolumeStoreProblem:
    """A volume store that cannot be used.

    Attributes:
        name: of the volume store; of its marker where that does not tell.
        location: empty where nobody knows.
    """

    name: str
    location: str
    problem: str


class VolumeStores:
    """The volume stores of a store. Who they are is read anew each time, so that all processes agree; what is open stays open.

    Args:
        datastore: of the store, not closed by ``close``.
        directory: of the store, or None for one in memory.
    """

    def __init__(self, datastore: Datastore, directory: Path | None) -> None:
        self._datastore = datastore
        self.default = _volume_store(DEFAULT_STORE, directory, datastore)
        self._open: dict[tuple[VolumeStoreMarker, int, int], VolumeStore] = {}
        """By marker, and by device and inode of the directory: what is mounted there can change."""
        self._guard = threading.Lock()

    def add(self, name: str, location: str) -> VolumeStoreMarker:
        """Adds a volume store, durably.

        Args:
            location: a directory, ``file://`` or ``osfs://`` with one, or ``mem://`` for one in the memory of each process.

        Raises:
            AlreadyExistsError: there is one of that name, or at that place.
            InvalidError: no name, or no location.
            NotFoundError: the directory is missing: it is not made, for it may be a file system that is not mounted.
            UnsupportedError: another kind of location.
        """
        check_name(name)
        directory = directory_of(location)
        if directory is not None:
            _prove_directory(directory, NotFoundError)
        marker = VolumeStoreMarker(name, MEMORY if directory is None else os.path.normpath(directory))
        path = layout.volume_store_marker(name)
        with held(self.default.leases, _CHANGE):
            if name == DEFAULT_STORE or self._datastore.exists(path):
                raise AlreadyExistsError(f"volumestore ({name}) already added")
            stores, _ = self.open_all()
            for store in stores:
                if directory is not None and store.location != MEMORY and directory.samefile(store.location):
                    raise AlreadyExistsError(f"{marker.location}: is the place of volume store ({store.name})")
            self._datastore.write_atomic(path, markers.encode(marker))
        return marker

    def remove(self, name: str) -> None:
        """Forgets a volume store, whatever is wrong with it; its volumes stay where they are.

        Raises:
            NotFoundError: there is none of that name.
            InvalidError: it is the one that is always there.
        """
        if name == DEFAULT_STORE:
            raise InvalidError(f"volume store ({name}) is the store itself: it cannot be removed")
        try:
            self._datastore.remove_file(layout.volume_store_marker(name))
        except NotFoundError:
            raise _not_found(name) from None

    def open(self, name: str) -> VolumeStore:
        """The volume store of that name.

        Raises:
            NotFoundError: there is none.
            UnavailableError: its directory cannot be reached.
            CorruptError: its marker is damaged.
        """
        if name == DEFAULT_STORE:
            return self.default
        try:
            marker = self._read(layout.volume_store_marker(name))
        except NotFoundError:
            raise _not_found(name) from None
        return self._opened(marker)

    def open_all(self) -> tuple[list[VolumeStore], list[VolumeStoreProblem]]:
        """All that can be reached, ``default`` first, then by name; and what is wrong with the others."""
        stores, problems = [], []
        for file in list_names(self._datastore, layout.VOLUME_STORES):
            path = f"{layout.VOLUME_STORES}/{file}"
            name, location = path, ""
            try:
                marker = self._read(path)
                name, location = marker.name, marker.location
                stores.append(self._opened(marker))
            except ImgstoreError as error:
                problems.append(VolumeStoreProblem(name, location, str(error)))
        stores.sort(key=lambda store: store.name)
        return [self.default, *stores], sorted(problems, key=lambda problem: problem.name)

    def close(self) -> None:
        """Gives back what is open; allowed more than once."""
        with self._guard, contextlib.ExitStack() as stack:
            for store in self._open.values():
                stack.callback(store.datastore.close)
            self._open.clear()

    def _read(self, path: str) -> VolumeStoreMarker:
        marker = markers.decode(VolumeStoreMarker, self._datastore.read_bytes(path, markers.LIMIT), path)
        if layout.volume_store_marker(marker.name) != path:
            raise CorruptError(f"{path}: is the marker of volume store {marker.name}")
        return marker

    def _opened(self, marker: VolumeStoreMarker) -> VolumeStore:
        directory = directory_of(marker.location)
        device, inode = (0, 0) if directory is None else _prove_directory(directory, UnavailableError)
        with self._guard:
            store = self._open.get((marker, device, inode))
            if store is None:
                datastore = MemoryDatastore() if directory is None else LocalDatastore(directory)
                store = self._open[marker, device, inode] = _volume_store(marker.name, directory, datastore)
        return store


def _volume_store(name: str, directory: Path | None, datastore: Datastore) -> VolumeStore:
    leases = MemoryLeases() if directory is None else FileLeases(directory / layout.VOLUMES / _LEASES)
    return VolumeStore(name, datastore.location, datastore, leases, VolumeDisks(datastore))


def _prove_directory(directory: Path, kind: type[ImgstoreError]) -> tuple[int, int]:
    """Device and inode of the directory."""
    try:
        status = directory.stat()
    except FileNotFoundError:
        raise kind(f"{directory}: no such directory") from None
    except OSError as error:
        raise kind(f"{directory}: cannot be looked at: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode):
        raise kind(f"{directory}: is no directory")
    return status.st_dev, status.st_ino


def _not_found(name: str) -> NotFoundError:
    return NotFoundError(f"volume store ({name}) not found")
