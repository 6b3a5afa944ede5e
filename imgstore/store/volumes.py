"""Volumes: disks that outlive the containers that have them, and the places where they lie."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from imgstore import layout
from imgstore.answers import Volume, VolumePruneReport, VolumeSnapshot, VolumeStoreInfo, VolumeUsage
from imgstore.blocks import Bytes
from imgstore.errors import ImgstoreError, InUseError, NotFoundError
from imgstore.filters import Filters
from imgstore.inputs import open_input
from imgstore.stop import Stop
from imgstore.store.core import StoreCore
from imgstore.timestamps import parse_timestamp
from imgstore.volume_contents import measure_tree, read_tree, write_tree
from imgstore.volume_filters import parse_list_filters, parse_prune_filters
from imgstore.volume_markers import FoundVolume, marker_paths, own_size, own_sizes, whole_size
from imgstore.volume_options import ANONYMOUS_LABEL, new_name, parse_options

_NOTHING: Mapping[str, str] = {}


class Volumes(StoreCore):
    """The methods of an `ImageStore` that are about volumes and volume stores."""

    def create_volume(
        self,
        name: str | None = None,
        *,
        driver: str = "local",
        options: Mapping[str, str] = _NOTHING,
        labels: Mapping[str, str] = _NOTHING,
        exist_ok: bool = False,
    ) -> Volume:
        """Makes a volume: a disk with an empty file system of its own, durably.

        Args:
            name: None or empty: one is made up, and the volume is anonymous.
            driver: ``local`` or ``vsphere``, which mean the same.
            options: ``VolumeStore``, the name of a volume store, and ``Capacity``, as ``imgstore.volume_options.parse_capacity`` reads it
                (1 GiB if it is not given), in any case.
            exist_ok: the volume that has the name is given, if there is one, whatever its options: what docker's API does.

        Raises:
            AlreadyExistsError: there is a volume of that name, in some volume store.
            NotFoundError: no such driver or volume store.
            InvalidError: name, options or labels that make no sense.
            NoSpaceError: the datastore is full, or the quota is exceeded.
        """
        wanted = parse_options(driver, options)
        labels = dict(labels)
        if not name:
            name = new_name()
            labels.setdefault(ANONYMOUS_LABEL, "")
        self._quota.check()
        found = self._volumes.create(name, wanted, labels, exist_ok=exist_ok)
        return self._volume(found) if exist_ok else _shown(found, _top_size(found), ())

    def volumes(self, filters: Filters | None = None) -> tuple[list[Volume], list[str]]:
        """The volumes by name, and what could not be read and why, a sentence each.

        Args:
            filters: as docker has them: ``dangling``, ``driver``, ``label``, ``name``; name to values.

        Raises:
            InvalidError: an unknown filter, or a value that makes no sense.
        """
        wanted = parse_list_filters(filters or {})
        found, problems = self._volumes.read_all()
        users = self._catalog.volume_users()
        sizes = own_sizes(found)
        volumes = [_shown(volume, sizes[volume.marker.name], users.get(volume.marker.name, ())) for volume in found]
        return wanted.select(volumes), [f"{problem.object}: {problem.problem}" for problem in problems]

    def volume(self, name: str) -> Volume:
        """The volume of that name.

        Raises:
            NotFoundError: there is none.
        """
        return self._volume(self._volumes.find(name))

    def remove_volume(self, name: str, *, force: bool = False) -> None:
        """Removes a volume with its snapshots. Its clones stay as they are.

        Args:
            force: that there is none is fine.

        Raises:
            NotFoundError: there is none.
            InUseError: a container or a guest has it; nothing is removed.
        """
        with contextlib.suppress(*((NotFoundError,) if force else ())):
            self._volumes.remove([name])

    def prune_volumes(self, filters: Filters | None = None) -> VolumePruneReport:
        """Removes the anonymous volumes that no container has, or all that none has.

        Args:
            filters: as docker has them: ``all`` (false if it is not given), ``label``, ``label!``.

        Raises:
            InvalidError: an unknown filter, or a value that makes no sense.
        """
        wanted = parse_prune_filters(filters or {})
        found, _ = self._volumes.read_all()
        users = self._catalog.volume_users()
        names = [
            volume.name for volume in wanted.select(_shown(volume, 0, users.get(volume.marker.name, ())) for volume in found)
        ]
        removed, reclaimed = self._volumes.remove(names, skip=(NotFoundError, InUseError))
        return VolumePruneReport(tuple(removed), reclaimed)

    def grow_volume(self, name: str, capacity: int) -> Volume:
        """Gives a volume a larger disk with the same contents, and lets its file system fill it; snapshots keep the size they had.

        Args:
            capacity: bytes; rounded up to 64 KiB.

        Raises:
            NotFoundError: there is none.
            InvalidError: smaller than it is, or larger than a disk can be.
            InUseError: a guest has it open.
            NoSpaceError: the copy does not fit the datastore or the quota.
        """
        with self._quota.reserved(whole_size(self._volumes.find(name))):
            self._volumes.grow(name, capacity)
        return self.volume(name)

    def snapshot_volume(self, name: str, snapshot: str) -> VolumeSnapshot:
        """Keeps what a volume is now under a name of its own; costs an empty disk.

        Raises:
            NotFoundError: there is no such volume.
            AlreadyExistsError: it has a snapshot of that name.
            InvalidError: a snapshot cannot be called that.
            InUseError: a guest has it open.
        """
        return _shown(self._volumes.snapshot(name, snapshot), 0, ()).snapshots[-1]

    def remove_snapshot(self, name: str, snapshot: str) -> None:
        """Removes a snapshot of a volume, and the disks that nothing needs then.

        Raises:
            NotFoundError: there is no such volume or snapshot.
        """
        self._volumes.remove_snapshot(name, snapshot)

    def clone_volume(
        self,
        source: str,
        name: str | None = None,
        *,
        driver: str = "local",
        options: Mapping[str, str] = _NOTHING,
        labels: Mapping[str, str] = _NOTHING,
    ) -> Volume:
        """Makes a volume with the contents of another one, or of ``VOLUME@SNAPSHOT``; neither sees later what the other writes.

        It shares the disks of its source, and its file system's UUID; in another volume store, or with a larger capacity, it is a copy.

        Args:
            name, driver, options, labels: of the new one, as for `create_volume`; it lies in the volume store of its source, and has the
                capacity of that, if options do not say otherwise.

        Raises:
            NotFoundError: no such volume, snapshot, driver or volume store.
            AlreadyExistsError: there is a volume of that name.
            InvalidError: name, options or labels that make no sense, or a smaller capacity.
            InUseError: a guest has the source open.
            NoSpaceError: it does not fit the datastore or the quota.
        """
        volume, _, snapshot = source.partition("@")
        found = self._volumes.find(volume)
        wanted = parse_options(driver, options)
        if "volumestore" not in map(str.lower, options):
            wanted = replace(wanted, store=found.store.name)
        labels = dict(labels)
        if not name:
            name = new_name()
            labels.setdefault(ANONYMOUS_LABEL, "")
        self._quota.check()
        made = self._volumes.clone(volume, snapshot or None, name, wanted, labels)
        return _shown(made, _top_size(made), ())

    def export_volume(self, source: str) -> Generator[Bytes, None, None]:
        """The files of a volume, or of ``VOLUME@SNAPSHOT``, as a tar whose first entry is the root; the same tree gives the same bytes.

        Nobody writes the volume until the last piece has come, or the iterator is closed.

        Raises:
            NotFoundError: there is no such volume or snapshot; before this returns.
            InUseError: a guest is writing it; before this returns.
            CorruptError: from the iterator as well: the file system is damaged.
        """
        volume, _, snapshot = source.partition("@")
        stack = contextlib.ExitStack()
        chain = stack.enter_context(self._volumes.read(volume, snapshot or None))

        def pieces() -> Generator[Bytes, None, None]:
            with stack:
                yield from read_tree(chain)

        return pieces()

    def import_volume(
        self, name: str, archive: Path | BinaryIO, *, archive_name: str = "archive", stop: Stop | None = None
    ) -> None:
        """Unpacks a tar over what a volume holds: all of it, or after an error nothing.

        Args:
            archive: a file, or an open body; may be compressed with gzip, Zstandard, xz or bzip2.
            archive_name: what errors call an open body.
            stop: ends it from another thread.

        Raises:
            NotFoundError: no such volume or file.
            InUseError: a guest has the volume open.
            InvalidError: the tar cannot be unpacked.
            CorruptError: it is damaged or cut off.
            NoSpaceError: it does not fit the volume, the datastore or the quota.
        """
        if isinstance(archive, Path):
            archive_name = str(archive)
        self._volumes.find(name)
        with open_input(archive, archive_name, self._directory) as body:
            size = body.seek(0, 2)
            body.seek(0)
            with self._quota.reserved(size), self._volumes.edit(name) as device:
                write_tree(device, body, archive_name, stop or Stop())

    def volume_usage(self) -> list[VolumeUsage]:
        """What each volume takes on its datastore, and what its file system holds; by name. Reads every superblock."""
        found, _ = self._volumes.read_all()
        sizes = own_sizes(found)
        usages = []
        for volume in found:
            name = volume.marker.name
            used = free = None
            with contextlib.suppress(ImgstoreError), volume.store.disks.read(volume.marker.disk) as chain:
                used, free = measure_tree(chain)
            usages.append(VolumeUsage(name, volume.store.name, volume.marker.capacity, sizes[name], used, free))
        return usages

    def add_volume_store(self, name: str, location: str) -> VolumeStoreInfo:
        """Adds a place for volumes; what lies there already is there at once, in all processes.

        Args:
            location: a directory that is there, ``file://`` or ``osfs://`` with one, or ``mem://``.

        Raises:
            AlreadyExistsError: there is one of that name, or at that place.
            NotFoundError: the directory is missing.
            InvalidError, UnsupportedError: no name, or no location.
        """
        self._volume_stores.add(name, location)
        return next(info for info in self.volume_stores() if info.name == name)

    def volume_stores(self) -> list[VolumeStoreInfo]:
        """The places for volumes: ``default``, the datastore of the store, then the others by name, also those that cannot be used."""
        stores, problems = self._volume_stores.open_all()
        infos = []
        for store in stores:
            volumes, problem = 0, None
            try:
                volumes = len(marker_paths(store))
            except ImgstoreError as error:
                problem = str(error)
            infos.append(VolumeStoreInfo(store.name, store.location, volumes, problem))
        infos.extend(VolumeStoreInfo(problem.name, problem.location, 0, problem.problem) for problem in problems)
        return [infos[0], *sorted(infos[1:], key=lambda info: info.name)]

    def remove_volume_store(self, name: str) -> None:
        """Forgets a place for volumes, also one that cannot be reached. The volumes stay there, and come back with the place.

        Raises:
            NotFoundError: there is none.
            InvalidError: it is ``default``.
            InUseError: a container has a volume there.
        """
        found, _ = self._volumes.read_all()
        used = self._catalog.used_volumes()
        names = [volume.marker.name for volume in found if volume.store.name == name and volume.marker.name in used]
        if names:
            raise InUseError(f"volume store ({name}): containers have its volumes {', '.join(names[:10])}")
        self._volume_stores.remove(name)

    def _volume(self, found: FoundVolume) -> Volume:
        users = self._catalog.containers_with(found.marker.name)
        return _shown(found, own_size(found), users)


def _top_size(found: FoundVolume) -> int:
    """What a new volume takes: nothing else is its own yet."""
    return found.store.disks.size(found.marker.disk)


def _shown(found: FoundVolume, size: int, users: Sequence[str]) -> Volume:
    marker, store = found.marker, found.store

    def path(disk: str) -> str:
        return store.datastore.prefix + layout.volume_disk(disk)

    return Volume(
        name=marker.name,
        store=store.name,
        driver=marker.driver,
        options=marker.options,
        labels=marker.labels,
        created=parse_timestamp(marker.created),
        capacity=marker.capacity,
        disk=path(marker.disk),
        image=marker.image,
        snapshots=tuple(
            VolumeSnapshot(snapshot.name, parse_timestamp(snapshot.created), path(snapshot.disk)) for snapshot in marker.snapshots
        ),
        size=size,
        used_by=tuple(users),
        anonymous=ANONYMOUS_LABEL in marker.labels,
    )
