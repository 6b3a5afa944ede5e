"""Lets a file system fill a device that became larger, as ``resize2fs`` does, for the layout that ``format_file_system`` makes.

The bitmaps and inode tables of new groups lie packed where the device goes on (``flex_bg`` lets them lie anywhere). The group
descriptors must stay one run behind the superblock; what is in the way of those that are added - bitmaps and inode tables of the first
groups - moves to the new part. The first blocks, up to where the descriptors of the largest disk end, hold nothing but metadata that
can move: where an inode table leaves a hole there, bitmaps fill it before a file can. So a file system can grow as often as it likes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

from imgstore.blocks import WritableBlockDevice
from imgstore.errors import CorruptError, InvalidError, UnsupportedError
from imgstore.ext4 import checksums
from imgstore.ext4.bitmaps import clear_bits, clear_runs, count_bits, set_bits
from imgstore.ext4.features import prove_writable
from imgstore.ext4.format import MAXIMUM_SIZE, SIZE_MULTIPLE
from imgstore.ext4.geometry import SUPER_OFFSET, Geometry, write_super_block
from imgstore.ext4.groups import TABLE_BLOCK, BaseMetadata, load_block_bitmap
from imgstore.ext4.pages import WritablePageCache
from imgstore.ext4.reader import FileSystem
from imgstore.ext4.structures import (
    BLOCK_SIZE,
    BLOCKS_PER_GROUP,
    DESCRIPTOR_SIZE,
    CompatFeature,
    GroupFlag,
    IncompatFeature,
    SuperBlock,
)

_MOST_GROUPS = -(-MAXIMUM_SIZE // (BLOCKS_PER_GROUP * BLOCK_SIZE))
_DESCRIPTORS_END = TABLE_BLOCK + -(-_MOST_GROUPS * DESCRIPTOR_SIZE // BLOCK_SIZE)
"""Behind the last block that descriptors can ever have."""

_NEW_GROUP = GroupFlag.INODE_ZEROED | GroupFlag.INODE_UNINIT | GroupFlag.BLOCK_UNINIT


def grow_file_system(device: WritableBlockDevice) -> None:
    """Lets the file system go on to the end of ``device``; does nothing if it is there already.

    The part of the device behind the file system must read as zeros. No file moves, no inode changes, nothing is taken from the blocks
    that were free. As with ``resize2fs`` a last group that is too small for what it costs, at most 4 MiB, is left out until the device
    grows again. What is written follows the number of groups with something in them: a grown disk of 2 TiB has some 30 grains of 64
    KiB more. An error leaves the device as it was; a crash leaves it half changed, so it must be one that can be thrown away.

    Raises:
        InvalidError: the size of the device is not a multiple of 64 KiB up to ``MAXIMUM_SIZE`` (2 TiB - 64 KiB).
        UnsupportedError: another layout, a feature that is not written here, a journal to replay, or no clean unmount.
        CorruptError: the file system is damaged.
    """
    if device.size > MAXIMUM_SIZE or device.size % SIZE_MULTIPLE:
        raise InvalidError(
            f"a file system of {device.size} bytes: the size must be a multiple of {SIZE_MULTIPLE} up to {MAXIMUM_SIZE}"
        )
    pages = WritablePageCache(device)
    file_system = FileSystem(pages)
    prove_writable(file_system.super_block, file_system.geometry)
    _prove_layout(file_system.super_block, file_system.geometry)
    blocks = device.size // BLOCK_SIZE
    growth = _Growth(pages, file_system, blocks)
    if not growth.has_room:
        growth = _Growth(pages, file_system, blocks - blocks % BLOCKS_PER_GROUP)
    if growth.added > 0:
        growth.write()


def _prove_layout(super_block: SuperBlock, geometry: Geometry) -> None:
    compat = super_block.feature_compat
    if (
        geometry.descriptor_size != DESCRIPTOR_SIZE
        or geometry.blocks_per_group != BLOCKS_PER_GROUP
        or not super_block.feature_incompat & IncompatFeature.FLEX_BG
        or not compat & CompatFeature.SPARSE_SUPER2
        or compat & CompatFeature.RESIZE_INODE
        or any(super_block.backup_bgs)
    ):
        raise UnsupportedError(
            f"SuperBlock at byte {SUPER_OFFSET}: cannot grow a file system with descriptors of {geometry.descriptor_size} bytes, "
            f"{geometry.blocks_per_group} blocks per group, compatible features {CompatFeature(compat)!r} and backups of the "
            f"superblock in groups {super_block.backup_bgs}",
            hint="resize2fs can grow it",
        )


class _Part(NamedTuple):
    """A bitmap or the inode table of one group: what can lie anywhere."""

    column: str
    """Attribute of the GroupTable."""
    group: int
    blocks: int


class _Growth:
    """One growth to ``blocks`` blocks: worked out in memory, then written."""

    def __init__(self, pages: WritablePageCache, file_system: FileSystem, blocks: int) -> None:
        self._pages = pages
        self._super_block = file_system.super_block
        self._old = file_system.groups
        self._base = BaseMetadata(self._super_block, self._old)
        before = self._old.geometry
        self.added = blocks - before.blocks
        geometry = dataclasses.replace(before, blocks=blocks, groups=-(-blocks // BLOCKS_PER_GROUP))
        self._before = before
        self._geometry = geometry
        self._table = self._old.resized(geometry)
        self._bitmaps: dict[int, bytearray] = {}
        self._pointer = before.blocks
        self._moving = list(self._parts_between(TABLE_BLOCK + before.descriptor_blocks, TABLE_BLOCK + geometry.descriptor_blocks))

    @property
    def has_room(self) -> bool:
        """Whether what is added can hold the metadata that it costs."""
        each = 2 + self._geometry.inode_table_blocks
        moved = sum(part.blocks for part in self._moving)
        return (self._geometry.groups - self._before.groups) * each + moved <= self.added

    def _parts_between(self, start: int, end: int) -> list[_Part]:
        """The parts of old groups that have one of these blocks."""
        return [
            _Part(column, group, blocks)
            for column, blocks in (("block_bitmap", 1), ("inode_bitmap", 1), ("inode_table", self._before.inode_table_blocks))
            for group, place in enumerate(getattr(self._old, column))
            if place < end and place + blocks > start
        ]

    def write(self) -> None:
        """Does it.

        Raises:
            UnsupportedError: something that cannot move lies where the descriptors must go.
            CorruptError: metadata lies in free blocks.
        """
        before, table_blocks = self._before, self._geometry.inode_table_blocks
        new = range(before.groups, self._geometry.groups)
        self._extend_last_group()
        for group in new:
            self._table.flags[group] = _NEW_GROUP
            self._table.free_inodes[group] = self._table.itable_unused[group] = self._geometry.inodes_per_group
            self._table.free_blocks[group] = self._geometry.blocks_in_group(group)
        copies = [self._move(part, self._take(part.blocks)) for part in self._moving]
        self._claim_descriptors()
        holes = self._holes()
        for column in ("block_bitmap", "inode_bitmap"):
            for group in new:
                self._place(_Part(column, group, 1), holes.pop() if holes else self._take(1))
        copies += [self._move(part, hole) for part, hole in zip(self._movable_bitmaps(), reversed(holes), strict=False)]
        for group in new:
            self._place(_Part("inode_table", group, table_blocks), self._take(table_blocks))
        self._mark(before.blocks, self._pointer - before.blocks)
        self._bitmap(self._geometry.groups - 1)  # e2fsck wants that of the last group stated always
        # In this order: a hole that a bitmap fills may be of an inode table that moves.
        for source, part in copies:
            self._copy(source, part)
        self._save()

    def _bitmap(self, group: int) -> bytearray:
        bitmap = self._bitmaps.get(group)
        if bitmap is None:
            if group < self._before.groups:
                bitmap = load_block_bitmap(self._pages, self._old, self._base, group)
            else:
                size = self._geometry.blocks_in_group(group)
                bitmap = bytearray(BLOCK_SIZE)
                set_bits(bitmap, size, BLOCKS_PER_GROUP - size)
            self._bitmaps[group] = bitmap
        return bitmap

    def _extend_last_group(self) -> None:
        group = self._before.groups - 1
        size = self._before.blocks_in_group(group)
        more = self._geometry.blocks_in_group(group) - size
        if more:
            clear_bits(self._bitmap(group), size, more)
            self._table.free_blocks[group] += more

    def _take(self, blocks: int) -> int:
        """The first of so many of the new blocks."""
        self._pointer += blocks
        return self._pointer - blocks

    def _place(self, part: _Part, place: int) -> None:
        getattr(self._table, part.column)[part.group] = place
        if place < self._before.blocks:
            self._mark(place, part.blocks)

    def _move(self, part: _Part, place: int) -> tuple[int, _Part]:
        """Gives a part another place; returns the one it had, and the part."""
        source = getattr(self._table, part.column)[part.group]
        self._free(source, part.blocks)
        self._place(part, place)
        return source, part

    def _mark(self, start: int, count: int) -> None:
        for group, bit, length in _pieces(start, count):
            set_bits(self._bitmap(group), bit, length)
            self._table.free_blocks[group] -= length

    def _free(self, start: int, count: int) -> None:
        for group, bit, length in _pieces(start, count):
            if (used := count_bits(self._bitmap(group), bit, length)) != length:
                raise CorruptError(
                    f"block bitmap {group} at byte {self._old.block_bitmap[group] * BLOCK_SIZE}: {length - used} of blocks {start} to "
                    f"{start + count - 1} are free, and hold metadata"
                )
            clear_bits(self._bitmap(group), bit, length)
            self._table.free_blocks[group] += length

    def _claim_descriptors(self) -> None:
        start, count = (
            TABLE_BLOCK + self._before.descriptor_blocks,
            self._geometry.descriptor_blocks - self._before.descriptor_blocks,
        )
        if used := count_bits(self._bitmap(0), start, count):
            raise UnsupportedError(
                f"group descriptors of {self._geometry.groups} groups need blocks {start} to {start + count - 1}: "
                f"files have {used} of them",
                hint="resize2fs can grow it",
            )
        self._mark(start, count)

    def _holes(self) -> list[int]:
        """Free blocks where descriptors may have to go one day, the first last."""
        start = TABLE_BLOCK + self._geometry.descriptor_blocks
        runs = clear_runs(self._bitmap(0), _DESCRIPTORS_END)
        return [block for first, length in runs for block in range(max(first, start), first + length)][::-1]

    def _movable_bitmaps(self) -> Iterator[_Part]:
        """Bitmaps of old groups that lie where no descriptors will ever go, the last first."""
        for group in range(self._before.groups - 1, -1, -1):
            for column in ("block_bitmap", "inode_bitmap"):
                if getattr(self._table, column)[group] >= _DESCRIPTORS_END:
                    yield _Part(column, group, 1)

    def _copy(self, source: int, part: _Part) -> None:
        """Copies what counts of a part to its new place; the rest of an inode table is zeros in both."""
        size, flags = part.blocks * BLOCK_SIZE, self._old.flags[part.group]
        if part.column == "inode_table":
            size = (self._geometry.inodes_per_group - self._old.itable_unused[part.group]) * self._geometry.inode_size
        elif flags & (GroupFlag.BLOCK_UNINIT if part.column == "block_bitmap" else GroupFlag.INODE_UNINIT):
            return
        if size:
            self._pages.write(
                getattr(self._table, part.column)[part.group] * BLOCK_SIZE, self._pages.read(source * BLOCK_SIZE, size)
            )

    def _save(self) -> None:
        table, geometry, super_block = self._table, self._geometry, self._super_block
        assert geometry.checksum_seed is not None  # noqa: S101 - proved to be there
        for group, bitmap in sorted(self._bitmaps.items()):
            self._pages.write(table.block_bitmap[group] * BLOCK_SIZE, bitmap)
            table.block_bitmap_checksum[group] = checksums.update(geometry.checksum_seed, bitmap)
            table.flags[group] &= ~int(GroupFlag.BLOCK_UNINIT)
        self._pages.write(TABLE_BLOCK * BLOCK_SIZE, b"".join(map(table.descriptor, range(geometry.groups))))
        added_groups = geometry.groups - self._before.groups
        added_descriptors = geometry.descriptor_blocks - self._before.descriptor_blocks
        super_block.r_blocks_count_lo = super_block.r_blocks_count_lo * geometry.blocks // self._before.blocks
        super_block.blocks_count_lo = geometry.blocks
        super_block.inodes_count = geometry.inodes
        super_block.free_blocks_count_lo = sum(table.free_blocks)
        super_block.free_inodes_count = sum(table.free_inodes)
        super_block.log_groups_per_flex = max(super_block.log_groups_per_flex, (geometry.groups - 1).bit_length())
        if super_block.overhead_clusters:
            super_block.overhead_clusters += added_descriptors + added_groups * (2 + geometry.inode_table_blocks)
        self._pages.write(SUPER_OFFSET, write_super_block(super_block))
        self._pages.flush()


def _pieces(start: int, count: int) -> Iterator[tuple[int, int, int]]:
    """(group, first bit, count) of a range of blocks."""
    while count:
        group, bit = divmod(start, BLOCKS_PER_GROUP)
        take = min(count, BLOCKS_PER_GROUP - bit)
        yield group, bit, take
        start += take
        count -= take
