"""GroupTable: the group descriptors, by columns."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from imgstore.blocks import BlockDevice
from imgstore.errors import CorruptError
from imgstore.ext4 import checksums
from imgstore.ext4.bitmaps import set_bits
from imgstore.ext4.geometry import Geometry
from imgstore.ext4.structures import (
    BLOCK_SIZE,
    CompatFeature,
    GroupDescriptor,
    GroupFlag,
    RoCompatFeature,
    SuperBlock,
)

_LOW = struct.Struct("<IIIHHHHIHHHH")
_HIGH = struct.Struct("<IIIHHHHIHHI")
_COLUMNS = (
    "block_bitmap",
    "inode_bitmap",
    "inode_table",
    "free_blocks",
    "free_inodes",
    "used_dirs",
    "flags",
    "block_bitmap_checksum",
    "inode_bitmap_checksum",
    "itable_unused",
)
TABLE_BLOCK = 1
"""The descriptors follow the superblock's block."""


class GroupTable:
    """One list per field of the descriptors; index is the group.

    A file system of 2 TiB has 16,384 groups, so this stays small.
    """

    def __init__(self, geometry: Geometry) -> None:
        count = geometry.groups
        self.geometry = geometry
        self.block_bitmap = [0] * count
        self.inode_bitmap = [0] * count
        self.inode_table = [0] * count
        self.free_blocks = [0] * count
        self.free_inodes = [0] * count
        self.used_dirs = [0] * count
        self.flags = [0] * count
        self.block_bitmap_checksum = [0] * count
        self.inode_bitmap_checksum = [0] * count
        self.itable_unused = [0] * count
        self.changed: set[int] = set()

    def resized(self, geometry: Geometry) -> GroupTable:
        """A copy with as many groups as ``geometry`` has; the descriptors of those that are new are all zero."""
        table = GroupTable(geometry)
        for name in _COLUMNS:
            column = getattr(self, name)[: geometry.groups]
            getattr(table, name)[: len(column)] = column
        return table

    @classmethod
    def load(cls, device: BlockDevice, geometry: Geometry) -> GroupTable:
        """Reads all descriptors.

        Raises:
            CorruptError: a checksum is wrong, or a bitmap or inode table lies outside the file system.
        """
        table = cls(geometry)
        size = geometry.descriptor_size
        start = TABLE_BLOCK * BLOCK_SIZE
        if start + geometry.groups * size > geometry.blocks * BLOCK_SIZE:
            raise CorruptError(
                f"group descriptors at byte {start}: {geometry.groups} of {size} bytes end after {geometry.blocks} blocks"
            )
        data = device.read(start, geometry.groups * size)
        for group in range(geometry.groups):
            offset = group * size
            if geometry.checksum_seed is not None:
                raw = data[offset : offset + size]
                expected = checksums.group_descriptor(geometry.checksum_seed, group, raw)
                found = int.from_bytes(raw[0x1E:0x20], "little")
                if found != expected:
                    raise CorruptError(
                        f"GroupDescriptor {group} at byte {start + offset}: checksum is 0x{found:04x}, the bytes give 0x{expected:04x}"
                    )
            low = _LOW.unpack_from(data, offset)
            high = _HIGH.unpack_from(data, offset + 32) if size >= 64 else (0,) * 11
            table.block_bitmap[group] = low[0] | high[0] << 32
            table.inode_bitmap[group] = low[1] | high[1] << 32
            table.inode_table[group] = low[2] | high[2] << 32
            table.free_blocks[group] = low[3] | high[3] << 16
            table.free_inodes[group] = low[4] | high[4] << 16
            table.used_dirs[group] = low[5] | high[5] << 16
            table.flags[group] = low[6] if geometry.group_checksums else 0
            table.block_bitmap_checksum[group] = low[8] | high[8] << 16
            table.inode_bitmap_checksum[group] = low[9] | high[9] << 16
            table.itable_unused[group] = low[10] | high[6] << 16
            table._prove(group, start + offset)
        return table

    def _prove(self, group: int, offset: int) -> None:
        geometry = self.geometry
        last_table = geometry.blocks - geometry.inode_table_blocks
        places = self.block_bitmap[group], self.inode_bitmap[group], self.inode_table[group]
        if min(places) < 1 or max(places[:2]) >= geometry.blocks or places[2] > last_table:
            raise CorruptError(
                f"GroupDescriptor {group} at byte {offset}: bitmaps at blocks {places[0]} and {places[1]}, "
                f"inode table at {places[2]}, of {geometry.blocks} blocks"
            )
        unused, free = self.itable_unused[group], self.free_inodes[group]
        blocks = self.free_blocks[group]
        if max(unused, free) > geometry.inodes_per_group or blocks > geometry.blocks_in_group(group):
            raise CorruptError(
                f"GroupDescriptor {group} at byte {offset}: {blocks} free blocks, {free} free inodes, {unused} unused inodes"
            )

    def descriptor(self, group: int) -> bytes:
        """The 32 bytes of a descriptor, checksum included."""
        raw = GroupDescriptor(
            block_bitmap=self.block_bitmap[group],
            inode_bitmap=self.inode_bitmap[group],
            inode_table=self.inode_table[group],
            free_blocks=self.free_blocks[group],
            free_inodes=self.free_inodes[group],
            used_dirs=self.used_dirs[group],
            flags=self.flags[group],
            block_bitmap_checksum=self.block_bitmap_checksum[group] & 0xFFFF,
            inode_bitmap_checksum=self.inode_bitmap_checksum[group] & 0xFFFF,
            itable_unused=self.itable_unused[group],
        )
        assert self.geometry.checksum_seed is not None  # noqa: S101 - we write none without checksums
        raw.checksum = checksums.group_descriptor(self.geometry.checksum_seed, group, raw.to_bytes())
        return raw.to_bytes()

    def descriptor_offset(self, group: int) -> int:
        """Byte of the device where the descriptor lies."""
        return TABLE_BLOCK * BLOCK_SIZE + group * self.geometry.descriptor_size

    def initialized_inodes(self, group: int) -> int:
        """How many inodes at the start of the group's table may be in use; behind them the table may hold anything."""
        if self.flags[group] & GroupFlag.INODE_UNINIT:
            return 0
        count = self.geometry.inodes_per_group
        return count - self.itable_unused[group] if self.geometry.group_checksums else count

    def inode_offset(self, number: int) -> int:
        """Byte of the device where inode ``number`` lies; it must be from 1 to ``geometry.inodes``."""
        group, index = divmod(number - 1, self.geometry.inodes_per_group)
        return self.inode_table[group] * BLOCK_SIZE + index * self.geometry.inode_size


class BaseMetadata:
    """Where the superblocks, descriptors, bitmaps and inode tables lie: what is used though no inode owns it."""

    def __init__(self, super_block: SuperBlock, groups: GroupTable) -> None:
        self._groups = groups
        self._reserved = super_block.reserved_gdt_blocks if super_block.feature_compat & CompatFeature.RESIZE_INODE else 0
        self._sparse2 = super_block.backup_bgs if super_block.feature_compat & CompatFeature.SPARSE_SUPER2 else None
        self._sparse = bool(super_block.feature_ro_compat & RoCompatFeature.SPARSE_SUPER)

    def has_super(self, group: int) -> bool:
        """``ext4_bg_has_super``."""
        if group == 0:
            return True
        if self._sparse2 is not None:
            return group in self._sparse2
        if group == 1 or not self._sparse:
            return True
        return any(_is_power(group, base) for base in (3, 5, 7))

    def runs_of(self, group: int) -> Iterator[tuple[int, int]]:
        """(first block, count) of all that ``group`` has, wherever it lies. Of one group they do not overlap."""
        geometry = self._groups.geometry
        if self.has_super(group):
            first = group * geometry.blocks_per_group
            count = 1 + geometry.descriptor_blocks + self._reserved
            yield first, min(count, geometry.blocks - first)
        yield self._groups.block_bitmap[group], 1
        yield self._groups.inode_bitmap[group], 1
        yield self._groups.inode_table[group], geometry.inode_table_blocks

    def initial_bitmap(self, group: int) -> bytearray:
        """The block bitmap that BLOCK_UNINIT stands for (``ext4_init_block_bitmap``)."""
        geometry = self._groups.geometry
        bitmap = bytearray(BLOCK_SIZE)
        first, count = group * geometry.blocks_per_group, geometry.blocks_in_group(group)
        for start, length in self.runs_of(group):
            begin, end = max(start - first, 0), min(start + length - first, count)
            if begin < end:
                set_bits(bitmap, begin, end - begin)
        set_bits(bitmap, count, BLOCK_SIZE * 8 - count)
        return bitmap


def load_block_bitmap(device: BlockDevice, groups: GroupTable, base: BaseMetadata, group: int) -> bytearray:
    """The block bitmap of ``group``, 4096 bytes.

    Raises:
        CorruptError: its checksum is wrong.
    """
    if groups.flags[group] & GroupFlag.BLOCK_UNINIT:
        return base.initial_bitmap(group)
    length = groups.geometry.blocks_per_group // 8
    return _load_bitmap(device, groups, "block", group, groups.block_bitmap[group], groups.block_bitmap_checksum[group], length)


def load_inode_bitmap(device: BlockDevice, groups: GroupTable, group: int) -> bytearray:
    """The inode bitmap of ``group``, 4096 bytes; what is behind the last inode is set.

    Raises:
        CorruptError: its checksum is wrong.
    """
    count = groups.geometry.inodes_per_group
    if groups.flags[group] & GroupFlag.INODE_UNINIT:
        bitmap = bytearray(BLOCK_SIZE)
        set_bits(bitmap, count, BLOCK_SIZE * 8 - count)
        return bitmap
    return _load_bitmap(
        device, groups, "inode", group, groups.inode_bitmap[group], groups.inode_bitmap_checksum[group], count // 8
    )


def _load_bitmap(
    device: BlockDevice, groups: GroupTable, kind: str, group: int, block: int, checksum: int, length: int
) -> bytearray:
    bitmap = bytearray(device.read(block * BLOCK_SIZE, BLOCK_SIZE))
    seed = groups.geometry.checksum_seed
    if seed is not None:
        expected = checksums.update(seed, bitmap[:length])
        if groups.geometry.descriptor_size < 64:
            expected &= 0xFFFF
        if checksum != expected:
            raise CorruptError(
                f"{kind} bitmap {group} at byte {block * BLOCK_SIZE}: checksum is 0x{checksum:x}, the bytes give 0x{expected:x}"
            )
    return bitmap


def _is_power(number: int, base: int) -> bool:
    power = base
    while power < number:
        power *= base
    return power == number
