"""Finds the directories that have a name of an inode, without walking the tree: ext4 keeps no way back from a file to its names.

The directories of a group are told by the modes in its inode table, and an inode number is looked for in their blocks as bytes before
anything is decoded. Those near the file come first: what one tar or one kernel made together has neighbouring numbers.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Container, Iterator, Sequence

from imgstore.errors import CorruptError
from imgstore.ext4.extents import INLINE, LONGEST
from imgstore.ext4.reader import FileSystem
from imgstore.ext4.structures import BLOCK_SIZE, EXTENT, EXTENT_HEADER, EXTENT_MAGIC

_PIECE = 1 << 20
_GAP = 16  # blocks that are read though nobody needs them, to save a read
_FIRST_BATCH = 32
_BATCH = 1024
_NEEDLES = 6
"""So many numbers are looked for one after the other; for more it is faster to decode every name."""

_DIRECTORY_MODES = re.compile(rb"[\x40-\x4f]")

_Directory = tuple[int, "list[tuple[int, int]] | None"]
"""Inode number, and the (first block, blocks) of its content; None where the inode does not say it itself."""


def directories_naming(file_system: FileSystem, missing: dict[int, int], known: Container[int]) -> list[int]:
    """The directories that have the names of some inodes.

    Args:
        missing: inode to how many names it has outside of ``known``; is used up.
        known: directories that need not be looked at.

    Raises:
        CorruptError: there are fewer names.
    """
    found: list[int] = []
    for batch in _batches(file_system, sorted(missing)):
        candidates = [directory for directory in batch if directory[0] not in known]
        numbers = (
            _with_needles(file_system, candidates, list(missing)) if len(missing) <= _NEEDLES else [c[0] for c in candidates]
        )
        for number in numbers:
            names = 0
            for _, value in file_system.directory_entries(file_system.node(number)):
                if value >> 4 in missing:
                    names += 1
                    missing[value >> 4] -= 1
            if names:
                found.append(number)
        for number in [number for number, count in missing.items() if count <= 0]:
            del missing[number]
        if not missing:
            return found
    number, count = min(missing.items())
    raise CorruptError(f"inode {number}: {count} of its {file_system.node(number).links} names are in no directory")


def _batches(file_system: FileSystem, targets: Sequence[int]) -> Iterator[list[_Directory]]:
    """All directories, those nearest to ``targets`` first."""
    geometry, groups = file_system.geometry, file_system.groups
    wanted = sorted({(number - 1) // geometry.inodes_per_group for number in targets})
    order = [group for group in range(geometry.groups) if groups.used_dirs[group] and groups.initialized_inodes(group)]
    for group in sorted(order, key=lambda group: _distance(group, wanted)):
        directories = _directories_of(file_system, group)
        directories.sort(key=lambda directory: _distance(directory[0], targets))
        start, count = 0, _FIRST_BATCH
        while start < len(directories):
            yield directories[start : start + count]
            start, count = start + count, _BATCH


def _distance(number: int, targets: Sequence[int]) -> int:
    place = bisect_left(targets, number)
    return min(abs(number - target) for target in targets[max(place - 1, 0) : place + 1])


def _directories_of(file_system: FileSystem, group: int) -> list[_Directory]:
    size = file_system.geometry.inode_size
    base = file_system.groups.inode_table[group] * BLOCK_SIZE
    number = group * file_system.geometry.inodes_per_group + 1
    count = file_system.groups.initialized_inodes(group)
    step = max(_PIECE // size, 1)
    found: list[_Directory] = []
    for first in range(0, count, step):
        table = file_system.device.read(base + first * size, min(step, count - first) * size)
        for match in _DIRECTORY_MODES.finditer(table[1::size]):
            index = match.start()
            offset = index * size
            if table[offset + 26] or table[offset + 27]:
                found.append((number + first + index, _runs(table, offset + 40, file_system.geometry.blocks)))
    return found


def _runs(table: bytes, offset: int, blocks: int) -> list[tuple[int, int]] | None:
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
            offset = data.find(needle)
            while offset >= 0:
                if not offset & 3:
                    found.add(owned[bisect_right(starts, first + offset // BLOCK_SIZE) - 1][2])
                offset = data.find(needle, offset + 1)
    return sorted(found)


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
