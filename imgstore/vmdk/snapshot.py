"""SnapshotDevice: a disk that is being written on top of its parent chain."""

from __future__ import annotations

from imgstore.blocks import BlockMap, Bytes, Run
from imgstore.vmdk.chain import Chain
from imgstore.vmdk.hosted import DiskSummary, HostedDiskWriter
from imgstore.vmdk.overlay import CACHE_SIZE, OverlayDevice


class SnapshotDevice(OverlayDevice):
    """A WritableBlockDevice over a parent chain; what is written goes to a new disk. For one thread.

    Whole grains go to the file at once, a run by one pwrite. Grains written in part are completed from the parent and kept in memory,
    at most ``cache_size`` bytes of them, those that rested longest leaving first. The same calls always make the same file.

    Args:
        writer: takes the grains; the device seals it.
        parent: what is read where nothing was written; stays open. None for a disk without parent.
        cache_size: bytes.

    Raises:
        ValueError: disk and parent differ in size, or the writer names another parent.
    """

    def __init__(self, writer: HostedDiskWriter, parent: Chain | None, *, cache_size: int = CACHE_SIZE) -> None:
        if parent is not None and parent.size != writer.capacity:
            raise ValueError(f"{writer.file.path}: is a disk of {writer.capacity} bytes, but its parent one of {parent.size}")
        if writer.descriptor.parent_cid != (None if parent is None else parent.cid):
            raise ValueError(f"{writer.file.path}: names another parent than {'none' if parent is None else parent.path}")
        files = () if parent is None else parent.files
        super().__init__(
            (*files, writer.file), BlockMap() if parent is None else parent.block_map.copy(), writer.capacity, cache_size
        )
        self._writer = writer
        self._parent = parent

    def chain(self) -> Chain:
        """The chain with this disk on top, as it is now, read from the file being made, without reading its tables again.

        Flushes. The next layer can start on it while this disk is sealed and published elsewhere, as long as its file stays open.
        After it nothing may be written to this device.
        """
        self.flush()
        block_map = self._map.copy()
        cid = self._writer.descriptor.cid
        if self._parent is None:
            return Chain.of_scratch(self._writer.file, self.size, cid, block_map)
        return self._parent.with_disk(self._writer.file, cid, block_map)

    def seal(self) -> DiskSummary:
        """Flushes and seals the disk; from any thread, as the last call but ``read``.

        Takes an fsync of the file. A crash before it returned leaves a file that no reader takes for a disk.

        Raises:
            NoSpaceError: the datastore or the file is full.
        """
        self.flush()
        return self._writer.seal()

    def close(self) -> None:
        """Drops what was not flushed: the disk is given up. Allowed more than once."""
        self._dirty.clear()

    def _allocate(self, grain: int, count: int) -> list[Run]:
        return self._writer.allocate(grain, count)

    def _put(self, first: int, runs: list[Run], data: Bytes) -> None:
        self._writer.put(first, runs, data)
