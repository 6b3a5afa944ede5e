"""Which inodes of a file system changed, told by the bytes of the inode tables that lie in changed ranges.

Whatever the kernel does to the content, the names or the attributes of a file, it changes a time of its inode; and an inode that lies in
bytes that did not change is the same.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

from imgstore.errors import InvalidError
from imgstore.ext4.geometry import SUPER_OFFSET
from imgstore.ext4.groups import GroupTable
from imgstore.ext4.reader import FileSystem
from imgstore.ext4.structures import BLOCK_SIZE, ROOT_INODE

_PIECE = 1 << 20


def changed_inodes(
    before: FileSystem, after: FileSystem, changed: Iterable[tuple[int, int]]
) -> Iterator[tuple[int, bytes, bytes]]:
    """(number, bytes before, bytes after) of the files whose inode differs in more than the time of the last access.

    Bytes of an inode that is not in use may be anything that ``in_use`` says no to. Nothing is proved. A number may come twice.

    Args:
        before: the file system.
        after: the same later; it may have grown.
        changed: as ``diff`` takes it.

    Raises:
        InvalidError: the inode tables are those of different file systems.
    """
    size, per_group = after.geometry.inode_size, after.geometry.inodes_per_group
    if (before.geometry.inode_size, before.geometry.inodes_per_group) != (size, per_group):
        raise InvalidError(
            f"SuperBlock at byte {SUPER_OFFSET}: groups of {per_group} inodes of {size} bytes, "
            f"before {before.geometry.inodes_per_group} of {before.geometry.inode_size}: not the same file system"
        )
    internal = {after.super_block.prj_quota_inum, after.super_block.orphan_file_inum}
    step = max(_PIECE // size, 1)
    for group, first, stop in _touched(before.groups, after.groups, changed):
        for start in range(first, stop, step):
            count = min(step, stop - start)
            old, new = _read(before, group, start, count), _read(after, group, start, count)
            if old == new:
                continue
            number = group * per_group + start + 1
            for offset in range(0, count * size, size):
                left, right = old[offset : offset + size], new[offset : offset + size]
                if (
                    left != right
                    and _differ(left, right)
                    and (number >= after.geometry.first_inode or number == ROOT_INODE)
                    and number not in internal
                ):
                    yield number, left, right
                number += 1


def in_use(raw: bytes) -> bool:
    """Whether an inode is that of a file with a name."""
    return raw[26:28] != b"\0\0" and raw[1] & 0xF0 != 0


def _differ(left: bytes, right: bytes) -> bool:
    """Whether anything differs but i_atime, i_atime_extra and the checksum."""
    return (
        left[12:124] != right[12:124]
        or left[:8] != right[:8]
        or left[126:130] != right[126:130]
        or left[132:140] != right[132:140]
        or left[144:] != right[144:]
    )


def _touched(before: GroupTable, after: GroupTable, changed: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """(group, first, stop) of inodes, counted inside the group, whose bytes lie in changed ranges.

    Where growing moved a table, the ranges have all of it that is in use: other bytes were there.
    """
    size = after.geometry.inode_size
    tables: list[tuple[int, int, int]] = []  # first byte, group, inodes
    for group in range(after.geometry.groups):
        count = after.initialized_inodes(group)
        if group < before.geometry.groups:
            count = max(count, before.initialized_inodes(group))
        if count:
            tables.append((after.inode_table[group] * BLOCK_SIZE, group, count))
    tables.sort()
    starts = [start for start, _, _ in tables]
    for offset, length in changed:
        for place in range(max(bisect_right(starts, offset) - 1, 0), len(tables)):
            start, group, count = tables[place]
            if start >= offset + length:
                break
            first, stop = max(offset - start, 0) // size, min(-(-(offset + length - start) // size), count)
            if first < stop:
                yield group, first, stop


def _read(file_system: FileSystem, group: int, first: int, count: int) -> bytes:
    """Inodes of a group; zeros for those that were never in use."""
    size = file_system.geometry.inode_size
    known = file_system.groups.initialized_inodes(group) if group < file_system.geometry.groups else 0
    there = max(min(known - first, count), 0)
    if not there:
        return bytes(count * size)
    offset = file_system.groups.inode_table[group] * BLOCK_SIZE + first * size
    return file_system.device.read(offset, there * size).ljust(count * size, b"\0")
