"""Volume markers: what a volume store says of its volumes, and which disks they need.

A volume is a marker and the disks that it names, with all that these stand on. The markers are read anew each time: they are small, and
other hosts may have written them.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from imgstore import layout, markers
from imgstore.datastores.datastore import list_names
from imgstore.errors import CorruptError, ImgstoreError, InvalidError, NotFoundError
from imgstore.markers import SnapshotRecord, VolumeMarker
from imgstore.volume_disks import is_disk_id
from imgstore.volume_options import DEFAULT_STORE
from imgstore.volume_stores import VolumeStore


@dataclass(frozen=True, slots=True)
class FoundVolume:
    """A volume and where it lies."""

    store: VolumeStore
    marker: VolumeMarker


class VolumeProblem(NamedTuple):
    """What could not be read: a volume store or a marker, and why."""

    object: str
    problem: str


class Survey(NamedTuple):
    """Disks of a volume store: those that its volumes need, and those of them that are not written any more."""

    needed: set[str]
    sealed: set[str]


def read_volumes(store: VolumeStore, problems: list[VolumeProblem]) -> Iterator[FoundVolume]:
    """The volumes of a volume store.

    Args:
        problems: gets what could not be read.
    """
    try:
        paths = marker_paths(store)
    except ImgstoreError as error:
        problems.append(VolumeProblem(f"volume store {store.name}", str(error)))
        return
    for path in paths:
        try:
            yield FoundVolume(store, read_marker(store, path))
        except NotFoundError:
            continue  # it was removed since
        except ImgstoreError as error:
            problems.append(VolumeProblem(place_of(store, path), str(error)))


def read_volume(store: VolumeStore, name: str) -> FoundVolume:
    """A volume.

    Raises:
        NotFoundError: the volume store has none of that name.
        CorruptError: its marker is damaged.
    """
    return FoundVolume(store, read_marker(store, layout.volume_marker(name)))


def read_marker(store: VolumeStore, path: str) -> VolumeMarker:
    """The marker at a path. Raises what `read_volume` raises."""
    marker = markers.decode(VolumeMarker, store.datastore.read_bytes(path, markers.LIMIT), path)
    if layout.volume_marker(marker.name) != path:
        raise CorruptError(f"{path}: is the marker of volume {marker.name}")
    for disk in disks_of(marker):
        if not is_disk_id(disk):
            raise CorruptError(f"{path}: {disk[:100]!r} is no id of a disk")
    return marker


def encode_marker(marker: VolumeMarker) -> bytes:
    """The marker's file.

    Raises:
        InvalidError: it would be too long to be read again.
    """
    data = markers.encode(marker)
    if len(data) > markers.LIMIT:
        raise InvalidError(
            f"volume {marker.name}: its labels, options and snapshots take {len(data)} bytes, more than {markers.LIMIT}"
        )
    return data


def place_of(store: VolumeStore, path: str) -> str:
    """A path of a volume store, for messages."""
    return path if store.name == DEFAULT_STORE else f"{store.location}/{path}"


def disks_of(marker: VolumeMarker) -> set[str]:
    """Ids of the disks that a marker names."""
    return {marker.disk, *(snapshot.disk for snapshot in marker.snapshots)}


def marker_paths(store: VolumeStore) -> list[str]:
    """Paths of the markers of a volume store's volumes."""
    names = list_names(store.datastore, layout.VOLUMES)
    return [f"{layout.VOLUMES}/{name}" for name in names if name.endswith(".json") and not name.startswith(".")]


def snapshot_of(marker: VolumeMarker, name: str) -> SnapshotRecord:
    """A snapshot of a volume.

    Raises:
        NotFoundError: it has none of that name.
    """
    for record in marker.snapshots:
        if record.name == name:
            return record
    raise NotFoundError(f"volume {marker.name}: no such snapshot: {name}")


def lineages_of(store: VolumeStore, disks: Iterable[str], parents: dict[str, str | None] | None = None) -> set[str]:
    """The disks and all that they stand on, as far as they can be read."""
    found: set[str] = set()
    parents = {} if parents is None else parents
    for disk in disks:
        found.add(disk)
        with contextlib.suppress(ImgstoreError):
            found.update(store.disks.lineage(disk, parents))
    return found


def survey(store: VolumeStore) -> Survey:
    """Which disks the volumes of a volume store need.

    Raises:
        ImgstoreError: a marker or a disk is damaged, so that nobody knows.
    """
    needed: set[str] = set()
    written: set[str] = set()
    parents: dict[str, str | None] = {}
    for path in marker_paths(store):
        with contextlib.suppress(NotFoundError):
            marker = read_marker(store, path)
            written.add(marker.disk)
            for disk in disks_of(marker):
                needed.update(store.disks.lineage(disk, parents))
    return Survey(needed, needed - written)


def own_sizes(volumes: Sequence[FoundVolume]) -> dict[str, int]:
    """Bytes that the disks of each volume take on its datastore, without those that others of these volumes need too; by name."""
    by_store: dict[str, list[FoundVolume]] = {}
    for volume in volumes:
        by_store.setdefault(volume.store.name, []).append(volume)
    found: dict[str, int] = {}
    for theirs in by_store.values():
        disks = theirs[0].store.disks
        sizes = disks.sizes()
        if sizes.keys() <= {volume.marker.disk for volume in theirs}:  # no disk stands on another one
            found.update((volume.marker.name, sizes.get(volume.marker.disk, 0)) for volume in theirs)
            continue
        parents: dict[str, str | None] = {}
        lineages = [lineages_of(volume.store, disks_of(volume.marker), parents) for volume in theirs]
        users = Counter(disk for lineage in lineages for disk in lineage)
        for volume, lineage in zip(theirs, lineages, strict=True):
            found[volume.marker.name] = sum(sizes.get(disk, 0) for disk in lineage if users[disk] == 1)
    return found


def own_size(volume: FoundVolume) -> int:
    """As `own_sizes`, of one volume among all of its volume store."""
    disks = volume.store.disks
    if not volume.marker.snapshots and len(lineages_of(volume.store, [volume.marker.disk])) == 1:
        return disks.size(volume.marker.disk)
    return own_sizes(list(read_volumes(volume.store, []))).get(volume.marker.name, 0)


def whole_size(volume: FoundVolume) -> int:
    """Bytes that the disks take which show the volume as it is now: as much as a copy of it takes at most."""
    return sum(map(volume.store.disks.size, lineages_of(volume.store, [volume.marker.disk])))
