"""Volume disks: the disks in the ``volumes`` directory of a datastore, and what stands on what.

A disk is written by guests and by us as long as nothing stands on it. When a snapshot or a clone needs it as it is, it is sealed: a
new disk on top of it takes the writes, and it is not written again. Which disk stands on which is in the disks themselves.
"""

from __future__ import annotations

import contextlib
import posixpath
import re
import secrets
from collections.abc import Callable, Iterator
from uuid import uuid4

from imgstore import layout
from imgstore.blocks import ExtentKind, WritableBlockDevice
from imgstore.datastores.datastore import Datastore, list_names
from imgstore.errors import CorruptError, NotFoundError
from imgstore.ext4.format import format_file_system
from imgstore.live_disks import LiveDisks, ParentLink
from imgstore.vmdk.chain import MAX_DEPTH, Chain, parent_path
from imgstore.vmdk.child import random_cid
from imgstore.vmdk.guest import GuestDisk
from imgstore.vmdk.hosted import HostedDisk, HostedDiskWriter, open_disk
from imgstore.vmdk.snapshot import SnapshotDevice

_COPY = 4 << 20
"""Bytes that are copied at once."""

_SEALED_MODE = 0o444
_DISK_ID = re.compile(r"[0-9a-f]{32}")


class VolumeDisks:
    """The disks of volumes on one datastore. A crash leaves disks that no marker leads to; removing them is up to the caller."""

    def __init__(self, datastore: Datastore) -> None:
        self._datastore = datastore
        self._live = LiveDisks(datastore)

    def create(self, capacity: int) -> str:
        """Makes a disk with an empty file system of its own UUID, durably; its id.

        Raises:
            NoSpaceError: the datastore is full; nothing is left.
        """
        return self._create(capacity, lambda device: format_file_system(device, uuid=uuid4().bytes))

    def create_child(self, parent: ParentLink) -> str:
        """Makes an empty disk on top of another one, which must not be written from now on; its id.

        Raises:
            NoSpaceError: the datastore is full; nothing is left.
        """
        disk_id = secrets.token_hex(16)
        self._live.create(layout.volume_disk(disk_id), parent.size, parent)
        return disk_id

    def copy(self, chain: Chain, capacity: int, finish: Callable[[WritableBlockDevice], None]) -> str:
        """Makes a disk without parent of all that a chain shows, holes left out, durably; its id.

        Args:
            capacity: of the new disk in bytes, not less than the chain's.
            finish: changes the copy before it is complete.

        Raises:
            NoSpaceError: the datastore is full; nothing is left.
        """

        def fill(device: WritableBlockDevice) -> None:
            for extent in chain.extents():
                if extent.kind is ExtentKind.DATA:
                    end = extent.offset + extent.length
                    for offset in range(extent.offset, end, _COPY):
                        device.write(offset, chain.read(offset, min(_COPY, end - offset)))
            finish(device)

        return self._create(capacity, fill)

    def _create(self, capacity: int, fill: Callable[[WritableBlockDevice], None]) -> str:
        disk_id = secrets.token_hex(16)
        path = layout.volume_disk(disk_id)
        with self._datastore.create(path) as file:
            try:
                writer = HostedDiskWriter(file, capacity=capacity, cid=random_cid(), extent_name=posixpath.basename(path))
                device = SnapshotDevice(writer, None)
                fill(device)
                device.seal()
                file.fsync()
            except BaseException:
                self._datastore.remove_file(path)
                raise
        return disk_id

    @contextlib.contextmanager
    def read(self, disk_id: str) -> Iterator[Chain]:
        """The disk with all below it; see `LiveDisks.read`."""
        with self._live.read(layout.volume_disk(disk_id)) as chain:
            yield chain

    @contextlib.contextmanager
    def edit(self, disk_id: str) -> Iterator[WritableBlockDevice]:
        """The disk, to be written as a whole or not at all; see `LiveDisks.edit`."""
        with self._live.edit(layout.volume_disk(disk_id)) as device:
            yield device

    def attach(self, disk_id: str) -> GuestDisk:
        """The disk as a guest has it; see `LiveDisks.attach`."""
        return self._live.attach(layout.volume_disk(disk_id))

    @contextlib.contextmanager
    def held(self, disk_id: str) -> Iterator[ParentLink]:
        """Keeps everybody else from the disk inside the block; what a child of it must know.

        Raises:
            InUseError: a guest or another thread or process has it open.
            NotFoundError: it is missing.
        """
        path = layout.volume_disk(disk_id)
        self._live.recover(path)
        with self._datastore.open_live(path, writable=True) as file:
            disk = HostedDisk(file)
            yield ParentLink(path, disk.cid, disk.capacity)

    def seal(self, disk_id: str) -> None:
        """Takes everybody's permission to write the disk, where files have such and it is ours; it is not written any more."""
        path = self._datastore.local_path(layout.volume_disk(disk_id))
        if path is not None:
            with contextlib.suppress(
                OSError
            ):  # only a second line of defence: who writes it breaks the content ids of its children
                path.chmod(_SEALED_MODE)

    def link(self, disk_id: str) -> ParentLink:
        """What a child of a sealed disk must know.

        Raises:
            NotFoundError: it is missing.
            CorruptError: it is damaged.
        """
        with self._open(disk_id) as disk:
            return ParentLink(disk.path, disk.cid, disk.capacity)

    def parent(self, disk_id: str) -> str | None:
        """Id of the disk that this one stands on, or None.

        Raises:
            NotFoundError: it is missing.
            CorruptError: it is damaged, or stands on no disk of a volume.
        """
        with self._open(disk_id) as disk:
            return self._parent_of(disk)

    def empty_over(self, disk_id: str) -> str | None:
        """Id of the disk that shows the same as this one, which nobody wrote yet; None if it has something of its own."""
        with self._open(disk_id) as disk:
            return None if disk.grain_tables() else self._parent_of(disk)

    def lineage(self, disk_id: str, parents: dict[str, str | None] | None = None) -> list[str]:
        """Ids of the disk and of all that it stands on, the disk first.

        Args:
            parents: what is known of parents; what is found is added.

        Raises:
            NotFoundError: one is missing.
            CorruptError: one is damaged, or they stand in a circle.
        """
        known = {} if parents is None else parents
        found = [disk_id]
        while True:
            if found[-1] not in known:
                known[found[-1]] = self.parent(found[-1])
            below = known[found[-1]]
            if below is None:
                return found
            found.append(below)
            if len(found) > MAX_DEPTH:
                raise CorruptError(f"{layout.volume_disk(disk_id)}: more than {MAX_DEPTH} disks in a chain, or a circle")

    def ids(self) -> set[str]:
        """Ids of all disks that are there, whole or not."""
        names = list_names(self._datastore, layout.VOLUMES)
        return {
            stem
            for stem, _, suffix in (name.partition(".") for name in names)
            if suffix in ("vmdk", "intent") and is_disk_id(stem)
        }

    def sizes(self) -> dict[str, int]:
        """Bytes that each disk takes on the datastore, by id."""
        usages = self._datastore.usages(layout.VOLUMES)
        return {name.removesuffix(".vmdk"): size for name, size in usages.items() if name.endswith(".vmdk")}

    def size(self, disk_id: str) -> int:
        """Bytes that the disk takes on the datastore; 0 where there is none."""
        try:
            return self._datastore.usage(layout.volume_disk(disk_id))
        except NotFoundError:
            return 0

    def remove(self, disk_id: str) -> None:
        """Removes the disk, durably; not there is fine.

        Raises:
            InUseError: a guest or another thread or process has it open.
        """
        path = layout.volume_disk(disk_id)
        for remove, part in ((self._live.remove, path), (self._datastore.remove_file, f"{path.removesuffix('.vmdk')}.intent")):
            with contextlib.suppress(NotFoundError):
                remove(part)

    @contextlib.contextmanager
    def _open(self, disk_id: str) -> Iterator[HostedDisk]:
        with contextlib.closing(open_disk(self._datastore.open(layout.volume_disk(disk_id)))) as disk:
            yield disk

    @staticmethod
    def _parent_of(disk: HostedDisk) -> str | None:
        path = parent_path(disk)
        if path is None:
            return None
        directory, _, name = path.rpartition("/")
        if directory != layout.VOLUMES or not is_disk_id(stem := name.removesuffix(".vmdk")):
            raise CorruptError(f"{disk.path}: its parent {path} is no disk of a volume")
        return stem


def is_disk_id(text: str) -> bool:
    """Whether a disk can have this id."""
    return _DISK_ID.fullmatch(text) is not None
