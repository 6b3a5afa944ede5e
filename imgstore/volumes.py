"""Volumes: made, found, read, written, grown, copied at a moment, and removed. The rules of their names and options: ``volume_options``.

A volume is a marker, which is written last and removed first, and a disk; both lie in the ``volumes`` directory of its volume store.
There is no catalog of them: the markers are read. Names are one set over all volume stores. A snapshot or a clone seals the disk that
the volume has, and puts a new one on top of it: the marker is what says which. Disks go when no marker leads to them any more.

Who changes a volume holds its lease, who needs it to stay shares it; who makes a disk, before a marker names that, shares one lease of
the volume store, so that it is not taken for a leftover; who takes away what a marker named holds another, so that of two who look which
disks are still needed none sees half of what the other does.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from imgstore import layout
from imgstore.blocks import WritableBlockDevice
from imgstore.catalog.catalog import Catalog
from imgstore.errors import AlreadyExistsError, CorruptError, ImgstoreError, InUseError, InvalidError, NotFoundError
from imgstore.ext4.grow import grow_file_system
from imgstore.ext4.recovery import recover
from imgstore.leases import held
from imgstore.markers import SnapshotRecord, VolumeMarker
from imgstore.timestamps import format_timestamp
from imgstore.vmdk.chain import Chain
from imgstore.vmdk.guest import GuestDisk
from imgstore.volume_markers import (
    FoundVolume,
    VolumeProblem,
    disks_of,
    encode_marker,
    lineages_of,
    place_of,
    read_volume,
    read_volumes,
    snapshot_of,
    survey,
)
from imgstore.volume_options import DEFAULT_CAPACITY, DEFAULT_STORE, VolumeOptions, check_name, round_capacity
from imgstore.volume_stores import VolumeStore, VolumeStores

DEPTH_LIMIT = 64
"""Disks that a volume stands on at most; one more snapshot or clone first makes one disk of them."""

_MAKING = "volume-disks"
"""Lease, shared, of who makes a disk that no marker names yet."""

_REMOVING = "volume-removal"
"""Lease of who takes disks or snapshots from a marker, or a marker away, and then the disks that nothing leads to any more."""


_LEFT = "volume-leftovers"
"""Lease that is given up as by a death: what `_mend` finds."""


class NoSuchVolumeError(NotFoundError):
    """No volume has this name."""


class Volumes:
    """The volumes of a store, in all its volume stores."""

    def __init__(self, stores: VolumeStores, catalog: Catalog) -> None:
        self._stores = stores
        self._catalog = catalog

    def find(self, name: str) -> FoundVolume:
        """The volume of that name; a volume store that cannot be reached does not hide those of others.

        Raises:
            NoSuchVolumeError: there is none.
            CorruptError: its marker is damaged.
        """
        if name.isascii():  # else it is none, and may be nothing that can be looked for
            stores, _ = self._stores.open_all()
            for store in stores:
                with contextlib.suppress(NotFoundError):
                    return read_volume(store, name)
        raise NoSuchVolumeError(f"No such volume: {name}")

    def read_all(self) -> tuple[list[FoundVolume], list[VolumeProblem]]:
        """All volumes, by name; and what could not be read, which hides nothing else."""
        stores, unusable = self._stores.open_all()
        problems = [VolumeProblem(f"volume store {store.name}", store.problem) for store in unusable]
        found = [volume for store in stores for volume in read_volumes(store, problems)]
        return sorted(found, key=lambda volume: (volume.marker.name, volume.store.name != DEFAULT_STORE)), problems

    def create(
        self, name: str, options: VolumeOptions, labels: Mapping[str, str], *, image: str = "", exist_ok: bool = False
    ) -> FoundVolume:
        """Makes an empty volume, durably. After a crash it is there or not.

        Args:
            image: reference of the image whose contents it will get.
            exist_ok: the volume of that name is as good as a new one, if there is one.

        Raises:
            AlreadyExistsError: there is one of that name, in some volume store.
            NotFoundError: there is no such volume store.
            InvalidError: the name cannot be one, or labels and options are too long.
            NoSpaceError: the datastore is full.
            UnsupportedError: the volume store is on a datastore that has no disks for guests.
        """
        check_name(name)
        store = self._store_of(options)
        store.datastore.check_live()
        with self._creating(store, name):
            with contextlib.suppress(NoSuchVolumeError):
                found = self.find(name)
                if exist_ok:
                    return found
                raise already_exists(name)
            marker = VolumeMarker(
                name=name,
                driver=options.driver,
                options=dict(options.options),
                labels=dict(labels),
                created=_now(),
                capacity=options.capacity or DEFAULT_CAPACITY,
                disk="",
                image=image,
                snapshots=(),
            )
            encode_marker(marker)
            with held(store.leases, _MAKING, shared=True):
                return self._write(store, msgspec.structs.replace(marker, disk=store.disks.create(marker.capacity)))

    @contextlib.contextmanager
    def kept(self, names: Iterable[str]) -> Iterator[None]:
        """Keeps volumes and their disks as they are inside the block: until the catalog says that a container has them.

        They can be read and edited meanwhile, by the holder too.

        Raises:
            NoSuchVolumeError: one is not there.
        """
        with contextlib.ExitStack() as stack:
            for name in sorted(set(names)):
                stack.enter_context(self._staying(name))
            yield

    @contextlib.contextmanager
    def read(self, name: str, snapshot: str | None = None) -> Iterator[Chain]:
        """The disk of a volume, or of a snapshot of it, for reading; its journal may wait for replay.

        Raises:
            NotFoundError: there is no such volume or snapshot.
            InUseError: a guest or another thread or process is writing it.
        """
        with contextlib.ExitStack() as stack:
            with self._staying(name) as found:
                disk = found.marker.disk if snapshot is None else snapshot_of(found.marker, snapshot).disk
                chain = stack.enter_context(found.store.disks.read(disk))
            yield chain

    @contextlib.contextmanager
    def edit(self, name: str) -> Iterator[WritableBlockDevice]:
        """The disk of a volume as a device: what is written becomes its contents when the block ends well, as a whole.

        Raises:
            NotFoundError: there is no such volume.
            InUseError: a guest or another thread or process has it open.
            NoSpaceError: the datastore is full.
        """
        with contextlib.ExitStack() as stack:
            with self._staying(name) as found:
                device = stack.enter_context(found.store.disks.edit(found.marker.disk))
            yield device

    def attach(self, name: str) -> GuestDisk:
        """The disk of a volume as a guest has it, until it is closed.

        Raises:
            NotFoundError: there is no such volume.
            InUseError: a guest or another thread or process has it open.
        """
        with self._staying(name) as found:
            return found.store.disks.attach(found.marker.disk)

    def grow(self, name: str, capacity: int) -> None:
        """Gives a volume a larger disk, a copy of what it has, and lets the file system fill it. Snapshots keep the old one.

        Takes the time to copy what the volume holds, and the space until the old disks are removed. After a crash it has the one disk
        or the other.

        Args:
            capacity: bytes; rounded up as for a new volume.

        Raises:
            InvalidError: less than it has now, or more than a disk can have.
            InUseError: a guest has it open.
            NoSpaceError: the datastore is full.
        """
        with self._changing(name) as found:
            now = found.marker.capacity
            if capacity < now:
                raise InvalidError(f"volume {name} has {now} bytes: it cannot get smaller, to {capacity}")
            capacity = round_capacity(capacity)
            if capacity > now:
                self._replace_disk(found, capacity)

    def snapshot(self, name: str, snapshot: str) -> FoundVolume:
        """Keeps what the volume is now under a name. The disk is sealed, and a new one on top of it takes what is written from now on.

        Raises:
            AlreadyExistsError: the volume has a snapshot of that name.
            InUseError: a guest has it open.
        """
        check_name(snapshot)
        with self._changing(name) as found:
            if any(record.name == snapshot for record in found.marker.snapshots):
                raise AlreadyExistsError(f"volume {name}: there is a snapshot {snapshot} already")
            record = SnapshotRecord(snapshot, found.marker.disk, _now())
            encode_marker(msgspec.structs.replace(found.marker, snapshots=(*found.marker.snapshots, record)))
            with self._frozen(found) as (marker, disk):
                record = msgspec.structs.replace(record, disk=disk)
                marker = msgspec.structs.replace(marker, snapshots=(*marker.snapshots, record))
                written = self._write(found.store, marker)
            found.store.disks.seal(disk)
            return written

    def remove_snapshot(self, name: str, snapshot: str) -> None:
        """Forgets a snapshot, and removes the disks that nothing needs any more.

        Raises:
            NotFoundError: there is no such volume or snapshot.
        """
        with self._changing(name) as found:
            record = snapshot_of(found.marker, snapshot)
            kept = tuple(other for other in found.marker.snapshots if other is not record)
            with held(found.store.leases, _REMOVING):
                self._write(found.store, msgspec.structs.replace(found.marker, snapshots=kept))
                self._collect(found.store, lineages_of(found.store, [record.disk]))

    def clone(
        self, source: str, snapshot: str | None, name: str, options: VolumeOptions, labels: Mapping[str, str]
    ) -> FoundVolume:
        """Makes a volume that shows what another one, or a snapshot of it, is now; neither sees what is written to the other.

        In the volume store of the source it costs one or two empty disks, however much there is, and has the source's UUID; in another
        one it is a full copy.

        Args:
            options: of the clone. Without a capacity it has that of the source.

        Raises:
            NotFoundError: no such volume, snapshot or volume store.
            AlreadyExistsError: there is a volume ``name``.
            InvalidError: the name cannot be one, or the capacity is less than the source's.
            InUseError: a guest has the source open.
        """
        check_name(name)
        with contextlib.suppress(NoSuchVolumeError):
            self.find(name)
            raise already_exists(name)
        store = self._store_of(options)
        with self._changing(source) as found, self._creating(store, name):
            with contextlib.suppress(NoSuchVolumeError):
                self.find(name)
                raise already_exists(name)
            capacity = found.marker.capacity if snapshot is None else self._capacity_of(found, snapshot)
            wanted = options.capacity or capacity
            if wanted < capacity:
                raise InvalidError(f"volume {source} has {capacity} bytes: a clone cannot have less, {wanted}")
            marker = VolumeMarker(
                name, options.driver, dict(options.options), dict(labels), _now(), wanted, "", found.marker.image, ()
            )
            encode_marker(marker)
            with held(store.leases, _MAKING, shared=True):
                if store.name != found.store.name or wanted > capacity:
                    disk = found.marker.disk if snapshot is None else snapshot_of(found.marker, snapshot).disk
                    with found.store.disks.read(disk) as chain:
                        made = store.disks.copy(chain, wanted, _grow if wanted > capacity else _nothing)
                    return self._write(store, msgspec.structs.replace(marker, disk=made))
                if snapshot is not None:
                    link = store.disks.link(snapshot_of(found.marker, snapshot).disk)
                    return self._write(store, msgspec.structs.replace(marker, disk=store.disks.create_child(link)))
                with self._frozen(found) as (own, disk):
                    if own.disk != found.marker.disk:
                        self._write(store, own)
                    store.disks.seal(disk)
                    made = store.disks.create_child(store.disks.link(disk))
                    return self._write(store, msgspec.structs.replace(marker, disk=made))

    def remove(self, names: Iterable[str], *, skip: tuple[type[ImgstoreError], ...] = ()) -> tuple[list[str], int]:
        """Removes volumes, with their snapshots, and the disks that nothing needs then.

        The marker goes first: after a crash a volume is there or not, and its disks go with the next one who works here. Those before
        one that cannot be removed are removed.

        Args:
            skip: a volume that cannot be removed for such a reason stays, and the others go.

        Returns:
            The names of those that were removed, and the bytes that their disks took.

        Raises:
            NotFoundError: one is not there.
            InUseError: a container has one, or a guest; nothing of it is removed.
        """
        removed: list[str] = []
        freed = 0
        left: dict[str, tuple[VolumeStore, set[str]]] = {}
        try:
            for name in names:
                with contextlib.suppress(*skip):
                    try:
                        with self._changing(name) as found:
                            size, disks = self._remove(found)
                    except NoSuchVolumeError:
                        raise NoSuchVolumeError(f"Get {name}: no such volume") from None
                    removed.append(name)
                    freed += size
                    left.setdefault(found.store.name, (found.store, set()))[1].update(disks)
        finally:
            for store, disks in left.values():
                with held(store.leases, _REMOVING):
                    freed += self._collect(store, disks)
        return removed, freed

    def tidy(self) -> None:
        """Removes what interrupted work left in the store's own datastore, unless someone is working there."""
        store = self._stores.default
        if store.leases.sweep():
            self._remove_leftovers(store)

    def used_bytes(self) -> int:
        """What the volumes take on all datastores that can be reached."""
        stores, _ = self._stores.open_all()
        used = 0
        for store in stores:
            with contextlib.suppress(ImgstoreError):
                used += sum(store.datastore.usages(layout.VOLUMES).values())
        return used

    def leftovers(self) -> list[str]:
        """Places of disks that no volume needs; none of a volume store where someone is making one, or where a damaged one may need it."""
        found: list[str] = []
        stores, _ = self._stores.open_all()
        for store in stores:
            with contextlib.suppress(ImgstoreError):
                making = store.leases.acquire(_MAKING) if store.disks.ids() else None
                if making is not None:
                    try:
                        strays = store.disks.ids() - survey(store).needed
                    finally:
                        making.release()
                    found.extend(place_of(store, layout.volume_disk(disk)) for disk in sorted(strays))
        return found

    # What the operations have in common

    def _store_of(self, options: VolumeOptions) -> VolumeStore:
        try:
            return self._stores.open(options.store)
        except NotFoundError:
            raise NotFoundError(f"No volume store named ({options.store}) exists") from None

    @contextlib.contextmanager
    def _creating(self, store: VolumeStore, name: str) -> Iterator[None]:
        """Nobody else makes a volume of that name inside the block, here, or at the same place from another store."""
        self._mend(store)
        with contextlib.ExitStack() as stack:
            stack.enter_context(held(self._stores.default.leases, _lease(name)))
            if store is not self._stores.default:
                stack.enter_context(held(store.leases, _lease(name)))
            yield

    @contextlib.contextmanager
    def _changing(self, name: str) -> Iterator[FoundVolume]:
        """The volume, which nobody else changes or keeps inside the block."""
        store = self.find(name).store
        self._mend(store)
        with held(store.leases, _lease(name)):
            yield self._still(store, name)

    @contextlib.contextmanager
    def _staying(self, name: str) -> Iterator[FoundVolume]:
        """The volume, which nobody removes, and whose disk nobody replaces, inside the block."""
        store = self.find(name).store
        with held(store.leases, _lease(name), shared=True):
            yield self._still(store, name)

    @staticmethod
    def _still(store: VolumeStore, name: str) -> FoundVolume:
        try:
            return read_volume(store, name)
        except NotFoundError:
            raise NoSuchVolumeError(f"No such volume: {name}") from None

    def _mend(self, store: VolumeStore) -> None:
        if store.leases.sweep():
            self._remove_leftovers(store)

    def _write(self, store: VolumeStore, marker: VolumeMarker) -> FoundVolume:
        store.datastore.write_atomic(layout.volume_marker(marker.name), encode_marker(marker))
        return FoundVolume(store, marker)

    @contextlib.contextmanager
    def _frozen(self, found: FoundVolume) -> Iterator[tuple[VolumeMarker, str]]:
        """The volume's marker, with a new disk for what is written from now on, and the disk that has what it is now.

        Nobody writes that disk inside the block, in which the caller writes the marker. The new disk is not made where the volume's is
        still empty; then the marker is the one that it has.
        """
        if len(found.store.disks.lineage(found.marker.disk)) >= DEPTH_LIMIT:
            found = self._replace_disk(found, found.marker.capacity)
        store, marker = found.store, found.marker
        with contextlib.ExitStack() as stack:
            stack.enter_context(held(store.leases, _MAKING, shared=True))
            link = stack.enter_context(store.disks.held(marker.disk))
            below = store.disks.empty_over(marker.disk)
            if below is not None:
                yield marker, below
            else:
                yield msgspec.structs.replace(marker, disk=store.disks.create_child(link)), marker.disk

    def _capacity_of(self, found: FoundVolume, snapshot: str) -> int:
        return found.store.disks.link(snapshot_of(found.marker, snapshot).disk).size

    def _replace_disk(self, found: FoundVolume, capacity: int) -> FoundVolume:
        """Gives the volume one disk without parent, of what it is now."""
        store, marker = found.store, found.marker
        with held(store.leases, _MAKING, shared=True), contextlib.ExitStack() as reading:
            chain = reading.enter_context(store.disks.read(marker.disk))
            given_up = lineages_of(store, [marker.disk])
            disk = store.disks.copy(chain, capacity, _grow if capacity > chain.size else _nothing)
            with held(store.leases, _REMOVING):
                written = self._write(store, msgspec.structs.replace(marker, disk=disk, capacity=capacity))
                reading.close()
                self._collect(store, given_up)
        return written

    def _remove(self, found: FoundVolume) -> tuple[int, set[str]]:
        """Removes a volume with the disk that only it can have; the bytes that gave, and the disks that it stood on."""
        store, marker = found.store, found.marker
        if users := self._catalog.containers_with(marker.name):
            raise InUseError(f"volume {marker.name} in use by {', '.join(users)}")
        with held(store.leases, _REMOVING):
            others = lineages_of(store, disks_of(marker)) - {marker.disk}
            freed = store.disks.size(marker.disk)
            with contextlib.ExitStack() as stack:
                with contextlib.suppress(NotFoundError, CorruptError):
                    stack.enter_context(store.disks.held(marker.disk))
                store.datastore.remove_file(layout.volume_marker(marker.name))
            self._remove_disk(store, marker.disk)
        return freed, others

    def _collect(self, store: VolumeStore, candidates: set[str]) -> int:
        """Removes those of the disks that no volume needs; all stay where a damaged marker or disk may need them. The bytes freed."""
        if not candidates:
            return 0
        try:
            unneeded = candidates - survey(store).needed
        except ImgstoreError:
            return 0  # `imgstore check` tells what is damaged, and then what is left over
        freed = 0
        for disk in sorted(unneeded):
            freed += store.disks.size(disk)
            self._remove_disk(store, disk)
        return freed

    @staticmethod
    def _remove_disk(store: VolumeStore, disk: str) -> None:
        """Removes a disk that nothing leads to; has the next who works here do it if somebody reads it just now."""
        try:
            store.disks.remove(disk)
        except InUseError:
            if lease := store.leases.acquire(_LEFT):
                lease.abandon()

    def _remove_leftovers(self, store: VolumeStore) -> None:
        """Removes stagings and disks that nothing leads to, and seals the disks that have to be; nothing if someone is making one."""
        store.datastore.sweep()
        making = store.leases.acquire(_MAKING)
        if making is None:
            return
        try:
            with held(store.leases, _REMOVING):
                self._collect(store, store.disks.ids())
                with contextlib.suppress(ImgstoreError):
                    for disk in survey(store).sealed:
                        store.disks.seal(disk)
        finally:
            making.release()


def already_exists(name: str) -> AlreadyExistsError:
    """What is said of a name that a volume has."""
    return AlreadyExistsError(f"A volume named {name} already exists. Choose a different volume name.")


def _grow(device: WritableBlockDevice) -> None:
    recover(device)
    grow_file_system(device)


def _nothing(device: WritableBlockDevice) -> None:
    """The copy is the same, its journal too."""


def _lease(name: str) -> str:
    return f"volume-{hashlib.sha256(name.encode()).hexdigest()}"


def _now() -> str:
    return format_timestamp(time.time_ns())
