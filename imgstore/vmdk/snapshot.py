"""SnapshotDevice: a disk that is being written on top of its parent chain."""

from __future__ import annotations

from collections.abc import Iterator

from imgstore.blocks import GRAIN, BlockMap, Bytes, Extent, ReadableFile
from imgstore.vmdk.chain import Chain, check_range, mapped_extents, read_mapped
from imgstore.vmdk.hosted import DiskSummary, HostedDiskWriter

CACHE_SIZE = 8 << 20
"""Bytes of grains in memory that were written in part."""


class SnapshotDevice:
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
        self._writer = writer
        self._parent = parent
        self._files: tuple[ReadableFile, ...] = (*(() if parent is None else parent.files), writer.file)
        self._disk = len(self._files) - 1
        self._map = BlockMap() if parent is None else parent.block_map.copy()
        self._dirty: dict[int, bytearray] = {}
        self._dirty_limit = max(1, cache_size // GRAIN)
        self._written = False

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._writer.capacity

    @property
    def written(self) -> bool:
        """Whether anything was written: a layer that changes nothing needs no disk."""
        return self._written

    def write(self, offset: int, data: Bytes) -> None:
        """Puts ``data`` at ``offset``.

        Raises:
            ValueError: the range is not inside the device, or the device is sealed.
            NoSpaceError: the datastore or the file is full.
        """
        view = memoryview(data).cast("B")
        check_range(offset, len(view), self.size)
        if not view:
            return
        self._written = True
        grain, start = divmod(offset, GRAIN)
        if start:
            self._put_part(grain, start, view[: GRAIN - start])
            view = view[GRAIN - start :]
            if len(view) >= GRAIN:
                # Keeps a stream in order in the file: this grain is full now, and the next ones follow at once.
                self._write_back([grain])
            grain += 1
        whole = len(view) // GRAIN
        if whole:
            self._put_whole(grain, whole, view[: whole * GRAIN])
        if len(view) > whole * GRAIN:
            self._put_part(grain + whole, 0, view[whole * GRAIN :])

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes at ``offset``: what was written, else what the parent has, else zeros.

        Raises:
            ValueError: the range is not inside the device.
        """
        check_range(offset, length, self.size)
        end = offset + length
        parts: list[Bytes] = []
        for grain in self._dirty_between(offset // GRAIN, -(-end // GRAIN)):
            start, stop = grain * GRAIN, (grain + 1) * GRAIN
            if start > offset:
                parts.append(self._read_mapped(offset, start - offset))
                offset = start
            parts.append(memoryview(self._dirty[grain])[offset - start : min(end, stop) - start])
            offset = min(end, stop)
        if not parts:
            return self._read_mapped(offset, length)
        if offset < end:
            parts.append(self._read_mapped(offset, end - offset))
        return b"".join(parts)

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        """The runs that tile the range, ascending: DATA where this disk or one below has the grain. Flushes."""
        end = self.size if length is None else offset + length
        check_range(offset, end - offset, self.size)
        self.flush()
        return mapped_extents(self._map, offset, end)

    def flush(self) -> None:
        """Hands all that was written to the operating system; not yet to stable storage.

        Raises:
            NoSpaceError: the datastore or the file is full.
        """
        self._write_back(sorted(self._dirty))

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

    def _put_whole(self, first: int, count: int, view: memoryview) -> None:
        for grain in list(self._dirty_between(first, first + count)):
            del self._dirty[grain]
        runs = self._writer.allocate(first, count)
        for run in runs:
            self._map.assign(run.grain, run.length, self._disk, run.sector)
        self._writer.put(first, runs, view)

    def _put_part(self, grain: int, start: int, view: memoryview) -> None:
        page = self._dirty.pop(grain, None)
        if page is None:
            if len(self._dirty) >= self._dirty_limit:
                # A quarter at once: neighbours written one after the other leave as one run.
                self._write_back(sorted(list(self._dirty)[: max(1, self._dirty_limit // 4)]))
            page = bytearray(self._read_mapped(grain * GRAIN, GRAIN))
        page[start : start + len(view)] = view
        self._dirty[grain] = page

    def _write_back(self, grains: list[int]) -> None:
        position = 0
        while position < len(grains):
            first = grains[position]
            pages: list[bytearray] = []
            while position < len(grains) and grains[position] == first + len(pages):
                pages.append(self._dirty.pop(grains[position]))
                position += 1
            data: Bytes = pages[0] if len(pages) == 1 else b"".join(pages)
            self._put_whole(first, len(pages), memoryview(data))

    def _dirty_between(self, first: int, end: int) -> Iterator[int]:
        if not self._dirty:
            return iter(())
        if end - first > len(self._dirty):
            return iter(sorted(grain for grain in self._dirty if first <= grain < end))
        return (grain for grain in range(first, end) if grain in self._dirty)

    def _read_mapped(self, offset: int, length: int) -> bytes:
        return read_mapped(self._map, self._files, offset, length)
