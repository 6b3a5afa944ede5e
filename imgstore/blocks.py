"""BlockDevice: numbered bytes with extents. BlockMap: which disk of a chain holds each grain.

BlockDevice is the whole vocabulary between ``ext4`` and ``vmdk``, ReadableFile and WritableFile that between ``vmdk`` and
``datastores``. Offsets and lengths are bytes, except in BlockMap, which counts grains and 512-byte sectors.
"""

from __future__ import annotations

import enum
from array import array
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol, TypeAlias

Bytes: TypeAlias = bytes | bytearray | memoryview
"""What may be written. The callee does not keep it after it returned."""


SECTOR = 512
"""Bytes per sector: the unit of VMDK's own numbers."""

GRAIN = 1 << 16
"""Bytes per grain: the unit in which a snapshot disk owns data."""


class ExtentKind(enum.Enum):
    """What is known of a run of bytes without reading it."""

    DATA = "data"
    HOLE = "hole"
    """Never written: reads as zeros."""


class Extent(NamedTuple):
    """A run of bytes of one kind."""

    offset: int
    length: int
    kind: ExtentKind


class BlockDevice(Protocol):
    """Numbered bytes that can be read. Reads from several threads are safe unless the implementation says otherwise."""

    @property
    def size(self) -> int:
        """Length in bytes; a multiple of 4096."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes at ``offset``; holes read as zeros.

        Raises:
            ValueError: the range is not inside the device.
        """
        ...

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        """The runs that tile the range, ascending; neighbours may be of one kind."""
        ...


class WritableBlockDevice(BlockDevice, Protocol):
    """A BlockDevice that can be written; a read sees every write that returned before it."""

    def write(self, offset: int, data: Bytes) -> None:
        """Puts ``data`` at ``offset``. Long writes aligned to 64 KiB are the fast ones.

        Raises:
            ValueError: the range is not inside the device.
        """
        ...


class GuestDevice(BlockDevice, Protocol):
    """A device in the hands of a guest, which reads and writes it piece by piece. Calls from several threads are safe.

    As with a disk of iron: what was written is read at once, and survives a crash once a `flush` that began afterwards has returned; of
    what was not flushed any part may be lost, each sector by itself. Ranges may begin and end at any byte.
    """

    @property
    def read_only(self) -> bool:
        """Whether everything that would change it is a DeniedError."""
        ...

    def read_ready_into(self, offset: int, buffer: memoryview) -> bool:
        """As `read`, filling ``buffer`` with what is in memory already; whether it is filled. If not, `read` would have to wait."""
        ...

    def write(self, offset: int, data: Bytes) -> None:
        """Puts ``data`` at ``offset``.

        Raises:
            ValueError: the range is not inside the device.
            DeniedError: it is read-only.
            NoSpaceError: the datastore is full; of the range any part may have the new data.
        """
        ...

    def zero(self, offset: int, length: int, *, keep_space: bool = False) -> None:
        """Makes the range read as zeros, and gives its storage back unless ``keep_space``. Raises what `write` raises."""
        ...

    def trim(self, offset: int, length: int) -> None:
        """Says that nobody needs the contents of the range any more: what is read there afterwards is open. Raises what `write` raises."""
        ...

    def flush(self) -> None:
        """Returns when all that was written before would survive a power cut.

        Raises:
            NoSpaceError: the datastore is full; nothing is lost, and a later flush may do it.
            UnavailableError: the storage failed; what was written since the last flush may be lost.
        """
        ...

    def close(self) -> None:
        """Flushes, and gives the disk back, also if that fails; allowed more than once. No other call may be running."""
        ...


class ReadableFile(Protocol):
    """A file of a datastore, opened for random access. Reads from several threads are safe."""

    @property
    def path(self) -> str:
        """Where it lies in its datastore: components joined by ``/``, no leading one."""
        ...

    @property
    def size(self) -> int:
        """Length in bytes."""
        ...

    def pread(self, offset: int, length: int) -> bytes:
        """``length`` bytes at ``offset``, fewer only where the file ends."""
        ...

    def read_ready_into(self, offset: int, buffer: memoryview) -> bool:
        """Fills ``buffer`` with what is at ``offset`` if all of it is in memory; whether it is filled. Not what would wait, or fail."""
        ...

    def data_ranges(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """The (offset, length) runs inside the range that may hold data, ascending; what is between them is hole."""
        ...

    def close(self) -> None:
        """Gives the file back; allowed more than once."""
        ...


class WritableFile(ReadableFile, Protocol):
    """A file that is being made. Calls from several threads are safe as long as the ranges they write are disjoint."""

    def pwrite(self, offset: int, data: Bytes) -> None:
        """Puts all of ``data`` at ``offset``; a gap behind the former end of the file becomes a hole.

        Raises:
            NoSpaceError: the datastore, a quota or a size limit is full.
        """
        ...

    def truncate(self, size: int) -> None:
        """Sets the length: what is added is hole."""
        ...

    def fsync(self) -> None:
        """Returns when everything written before would survive a power cut."""
        ...


class MemoryBlockDevice:
    """A sparse device in memory: 64 KiB pages in a dict. For scratch disks, which are small, and for tests."""

    PAGE = 1 << 16

    def __init__(self, size: int) -> None:
        self._size = size
        self._pages: dict[int, bytearray] = {}

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        self._check(offset, length)
        parts: list[Bytes] = []
        while length:
            page, start = divmod(offset, self.PAGE)
            take = min(length, self.PAGE - start)
            stored = self._pages.get(page)
            parts.append(bytes(take) if stored is None else memoryview(stored)[start : start + take])
            offset += take
            length -= take
        return b"".join(parts)

    def write(self, offset: int, data: Bytes) -> None:
        view = memoryview(data)
        self._check(offset, len(view))
        while view:
            page, start = divmod(offset, self.PAGE)
            take = min(len(view), self.PAGE - start)
            self._pages.setdefault(page, bytearray(self.PAGE))[start : start + take] = view[:take]
            offset += take
            view = view[take:]

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        end = self._size if length is None else offset + length
        self._check(offset, end - offset)
        position = offset
        for page in sorted(self._pages):
            start, stop = max(page * self.PAGE, position), min((page + 1) * self.PAGE, end)
            if start >= stop:
                continue
            if start > position:
                yield Extent(position, start - position, ExtentKind.HOLE)
            yield Extent(start, stop - start, ExtentKind.DATA)
            position = stop
        if position < end:
            yield Extent(position, end - position, ExtentKind.HOLE)

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self._size:
            raise ValueError(f"bytes {offset}..{offset + length} are not inside a device of {self._size} bytes")


class Run(NamedTuple):
    """Neighbouring grains that lie one after the other in one disk's file, or are in no disk."""

    grain: int
    length: int
    """Grains."""
    disk: int | None
    """Index of the disk in its chain, or None: the grains read as zeros."""
    sector: int
    """Where the first grain starts in the disk's file; 0 if no disk has it."""


class BlockMap:
    """Which disk of a chain holds each grain, and where: one lookup, whatever the depth of the chain.

    Grains go by segments of 512, which is one grain table. A segment that no disk uses takes no memory, one in use 4 KiB.
    A copy shares all segments with its original; whichever is changed afterwards copies the segments that it changes.
    Not safe for a thread that reads while another one changes the same map.
    """

    SEGMENT = 512
    """Grains per segment."""

    _GRAIN_SECTORS = GRAIN // SECTOR
    _DISK_SHIFT = 32
    _SECTOR_MASK = (1 << _DISK_SHIFT) - 1

    def __init__(self) -> None:
        # An entry is disk index << 32 | sector. 0 is "in no disk": sector 0 holds a header in every disk.
        self._segments: dict[int, array[int]] = {}
        self._owned: set[int] = set()

    def copy(self) -> BlockMap:
        """A map of the same contents that can be changed without changing this one. Takes time by segments in use, not by grains."""
        other = BlockMap()
        other._segments = dict(self._segments)
        self._owned.clear()
        return other

    def child(self, disk: int, tables: Mapping[int, array[int]]) -> BlockMap:
        """A copy in which the grains that ``tables`` has are those of ``disk``.

        Args:
            disk: index of the disk.
            tables: segment number to 512 sector numbers, 0 for a grain that the disk does not have.
        """
        other = self.copy()
        base = disk << self._DISK_SHIFT
        for number, table in tables.items():
            below = other._segments.get(number)
            if below is None:
                merged = array("Q", [base | sector if sector else 0 for sector in table])
            else:
                merged = array("Q", [base | sector if sector else entry for sector, entry in zip(table, below, strict=True)])
            other._segments[number] = merged
            other._owned.add(number)
        return other

    def assign(self, grain: int, count: int, disk: int, sector: int) -> None:
        """Says that ``count`` grains from ``grain`` on lie in ``disk``, one after the other from ``sector`` on."""
        entry = disk << self._DISK_SHIFT | sector
        while count:
            number, start = divmod(grain, self.SEGMENT)
            take = min(count, self.SEGMENT - start)
            if number not in self._owned:
                shared = self._segments.get(number)
                self._segments[number] = array("Q", bytes(8 * self.SEGMENT)) if shared is None else shared[:]
                self._owned.add(number)
            stop = entry + take * self._GRAIN_SECTORS
            self._segments[number][start : start + take] = array("Q", range(entry, stop, self._GRAIN_SECTORS))
            grain += take
            count -= take
            entry = stop

    def tables(self, disk: int) -> Iterator[tuple[int, array[int]]]:
        """The grains that ``disk`` has, as ``child`` takes them: segment number and 512 sector numbers, ascending."""
        shift, mask = self._DISK_SHIFT, self._SECTOR_MASK
        for number in sorted(self._segments):
            segment = self._segments[number]
            if max(segment) >> shift < disk:
                continue
            table = array("I", [entry & mask if entry >> shift == disk else 0 for entry in segment])
            if any(table):
                yield number, table

    def find(self, grain: int) -> tuple[int, int] | None:
        """The (disk index, sector) of a grain, or None if no disk has it."""
        number, position = divmod(grain, self.SEGMENT)
        segment = self._segments.get(number)
        if segment is None or not (entry := segment[position]):
            return None
        return entry >> self._DISK_SHIFT, entry & self._SECTOR_MASK

    def runs(self, grain: int, count: int) -> Iterator[Run]:
        """The runs that tile ``count`` grains from ``grain`` on, ascending. No run goes over the end of a segment."""
        end = grain + count
        while grain < end:
            number, start = divmod(grain, self.SEGMENT)
            stop = min(self.SEGMENT, start + end - grain)
            segment = self._segments.get(number)
            if segment is None:
                yield Run(grain, stop - start, None, 0)
                grain += stop - start
                continue
            position = start
            while position < stop:
                first = position
                entry = expected = segment[first]
                step = self._GRAIN_SECTORS if entry else 0
                while position < stop and segment[position] == expected:
                    expected += step
                    position += 1
                disk = entry >> self._DISK_SHIFT if entry else None
                yield Run(grain, position - first, disk, entry & self._SECTOR_MASK)
                grain += position - first
