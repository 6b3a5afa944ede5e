"""Finds the directories that have a name of an inode, without walking the tree: ext4 keeps no way back from a file to its names.

The directories are told by the modes in the inode tables, and an inode number is looked for in their blocks as bytes before anything is
decoded. Those near the file come first: what one tar or one kernel made together has neighbouring numbers.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Sequence

from imgstore.errors import CorruptError
from imgstore.ext4.extents import INLINE, LONGEST
from imgstore.ext4.reader import FileSystem
from imgstore.ext4.structures import BLOCK_SIZE, EXTENT, EXTENT_HEADER, EXTENT_MAGIC

_PIECE = 1 << 20
_GAP = 16  # blocks that are read though nobody needs them, to save a read
_SLICE = 512  # inodes whose directories are looked at together
_BEYOND_ASCII = 0x80
_NEEDLES = 6
"""So many numbers are looked for one after the other; for more it is faster to decode every name."""

_ONE_RUN = EXTENT_HEADER.pack(EXTENT_MAGIC, 1, INLINE, 0, 0)[:8]
_DIRECTORY_MODES = re.compile(rb"[\x40-\x4f]")

_Directory = tuple[int, "list[tuple[int, int]] | None"]
"""Inode number, and the (first block, blocks) of its content; None where the inode does not say it itself."""


def directories_naming(file_system: FileSystem, missing: dict[int, int], known: Collection[int]) -> list[int]:
    """The directories that have the names of some inodes.

    Args:
        missing: inode to how many names it has outside of ``known``, at least one; is used up.
        known: directories that need not be looked at.

    Raises:
        CorruptError: there are fewer names.
    """
    slices = _slices(file_system)
    wanted = sorted({bisect_right(slices, (number, _SLICE)) - 1 for number in missing})
    found: list[int] = []
    for place in sorted(range(len(slices)), key=lambda place: _distance(place, wanted)):
        directories = [each for each in _directories_in(file_system, *slices[place]) if each[0] not in known]
        numbers = [number for number, _ in directories]
        if len(missing) <= _NEEDLES:
            numbers = _with_needles(file_system, directories, list(missing))
        for number in numbers:
            has_names = False
            for _, value in file_system.directory_entries(file_system.node(number)):
                inode = value >> 4
                if inode in missing:
                    has_names = True
                    missing[inode] -= 1
                    if not missing[inode]:
                        del missing[inode]
            if has_names:
                found.append(number)
        if not missing:
            return found
    number, count = min(missing.items())
    raise CorruptError(f"inode {number}: {count} of its {file_system.node(number).links} names are in no directory")


def _slices(file_system: FileSystem) -> list[tuple[int, int]]:
    """(first inode, inodes) of all that may be in use, ascending."""
    per_group = file_system.geometry.inodes_per_group
    return [
        (group * per_group + first + 1, min(_SLICE, count - first))
        for group in range(file_system.geometry.groups)
        if (count := file_system.groups.initialized_inodes(group))
        for first in range(0, count, _SLICE)
    ]


def _distance(number: int, targets: Sequence[int]) -> int:
    place = bisect_left(targets, number)
    return min(abs(number - target) for target in targets[max(place - 1, 0) : place + 1])


def _directories_in(file_system: FileSystem, first: int, count: int) -> Iterator[_Directory]:
    size = file_system.geometry.inode_size
    table = file_system.device.read(file_system.groups.inode_offset(first), count * size)
    for match in _DIRECTORY_MODES.finditer(table[1::size]):
        index = match.start()
        offset = index * size
        if table[offset + 26] or table[offset + 27]:
            yield first + index, _runs(table, offset + 40, file_system.geometry.blocks)


def _runs(table: bytes, offset: int, blocks: int) -> list[tuple[int, int]] | None:
    if table.startswith(_ONE_RUN, offset):  # most directories
        _, length, high, low = EXTENT.unpack_from(table, offset + 12)
        first = low | high << 32
        return None if length > LONGEST or first + length > blocks else [(first, length)]
    magic, entries, _, depth, _ = EXTENT_HEADER.unpack_from(table, offset)
    if magic != EXTENT_MAGIC or depth or entries > INLINE:
        return None
    runs = []
    for place in range(offset + 12, offset + 12 + 12 * entries, 12):
        _, length, high, low = EXTENT.unpack_from(table, place)
        first = low | high << 32
        if length > LONGEST or first + length > blocks:
            return None
        runs.append((first, length))
    return runs


def _with_needles(file_system: FileSystem, directories: Sequence[_Directory], targets: Sequence[int]) -> list[int]:
    """Those in whose blocks one of the numbers stands where an entry may begin."""
    found = {number for number, runs in directories if runs is None}
    owned = sorted((first, length, number) for number, runs in directories if runs for first, length in runs)
    starts = [first for first, _, _ in owned]
    needles = [number.to_bytes(4, "little") for number in targets]
    for first, count in _pieces(owned):
        data = file_system.device.read(first * BLOCK_SIZE, count * BLOCK_SIZE)
        for needle in needles:
            short = _rarest(needle)
            lead = needle.index(short)
            place = data.find(short)
            while place >= 0:
                offset = place - lead
                if not offset & 3 and data.startswith(needle, offset):
                    found.add(owned[bisect_right(starts, first + offset // BLOCK_SIZE) - 1][2])
                place = data.find(short, place + 1)
    return sorted(found)


def _rarest(needle: bytes) -> bytes:
    """What of a needle is looked for in directories: zeros are most of them, ASCII the rest, and one byte is found fastest."""
    short = needle.strip(b"\0")
    best = max(short)
    return bytes([best]) if best >= _BEYOND_ASCII else short


def _pieces(owned: Sequence[tuple[int, int, int]]) -> Iterator[tuple[int, int]]:
    """(first block, blocks) that cover ascending runs, in pieces of at most 1 MiB."""
    limit = _PIECE // BLOCK_SIZE
    start = stop = 0
    for first, length, _ in owned:
        if stop and (first > stop + _GAP or first + length - start > limit):
            yield start, stop - start
            stop = 0
        if not stop:
            start = stop = first
        stop = max(stop, first + length)
        while stop - start > limit:
            yield start, limit
            start += limit
    if stop > start:
        yield start, stop - start
