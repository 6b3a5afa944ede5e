"""OverlayDevice: what is written goes to one disk's file, whole grains at a time; the rest is read through a map."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence

from imgstore.blocks import GRAIN, BlockMap, Bytes, Extent, ReadableFile, Run
from imgstore.vmdk.chain import check_range, mapped_extents, read_mapped

CACHE_SIZE = 8 << 20
"""Bytes of grains in memory that were written in part."""


class OverlayDevice(abc.ABC):
    """A WritableBlockDevice over the disks of a chain, of which the last is written. For one thread.

    Whole grains go to the file at once, a run by one pwrite. Grains written in part are completed from what was there before and kept in
    memory, at most ``cache_size`` bytes of them, those that rested longest leaving first.

    Args:
        files: of the chain, the one to be written last.
        block_map: where the chain's grains are; changed.
        size: bytes.
        cache_size: bytes.
    """

    def __init__(self, files: Sequence[ReadableFile], block_map: BlockMap, size: int, cache_size: int) -> None:
        self._files = tuple(files)
        self._disk = len(self._files) - 1
        self._map = block_map
        self._size = size
        self._dirty: dict[int, bytearray] = {}
        self._dirty_limit = max(1, cache_size // GRAIN)
        self._written = False

    @abc.abstractmethod
    def _allocate(self, grain: int, count: int) -> list[Run]:
        """Where ``count`` grains from ``grain`` on go in the file.

        Raises:
            NoSpaceError: the file would grow beyond what a grain table can name.
        """

    @abc.abstractmethod
    def _put(self, first: int, runs: list[Run], data: Bytes) -> None:
        """Writes grains to the runs that ``_allocate`` gave, ``data`` being those from ``first`` on."""

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._size

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

    def _put_whole(self, first: int, count: int, view: memoryview) -> None:
        for grain in list(self._dirty_between(first, first + count)):
            del self._dirty[grain]
        runs = self._allocate(first, count)
        for run in runs:
            self._map.assign(run.grain, run.length, self._disk, run.sector)
        self._put(first, runs, view)

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
