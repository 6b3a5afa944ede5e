"""Geometry: the sizes of a file system, proved against each other and against the device before anything is allocated for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from imgstore.blocks import BlockDevice
from imgstore.errors import CorruptError, UnsupportedError
from imgstore.ext4 import checksums
from imgstore.ext4.structures import (
    BLOCK_SIZE,
    BLOCKS_PER_GROUP,
    DESCRIPTOR_SIZE,
    IncompatFeature,
    RoCompatFeature,
    SuperBlock,
)

SUPER_OFFSET = 1024
_READABLE = (
    IncompatFeature.FILETYPE
    | IncompatFeature.EXTENTS
    | IncompatFeature.BIT64
    | IncompatFeature.FLEX_BG
    | IncompatFeature.CSUM_SEED
)
_BITMAP_BITS = BLOCK_SIZE * 8


def read_super_block(device: BlockDevice) -> SuperBlock:
    """The primary superblock, its magic and checksum proved.

    Raises:
        CorruptError: there is none, or its checksum is wrong.
        UnsupportedError: the checksums are of an unknown kind.
    """
    if device.size < SUPER_OFFSET + SuperBlock.SIZE:
        raise CorruptError(f"SuperBlock at byte {SUPER_OFFSET}: the device has only {device.size} bytes")
    data = device.read(SUPER_OFFSET, SuperBlock.SIZE)
    try:
        super_block = SuperBlock.from_bytes(data)
    except CorruptError as error:
        raise CorruptError(f"no ext4 file system: {error} (counted from byte {SUPER_OFFSET})") from None
    if super_block.feature_ro_compat & RoCompatFeature.METADATA_CSUM:
        if super_block.checksum_type != 1:
            raise UnsupportedError(
                f"SuperBlock at byte {SUPER_OFFSET}: checksum type is {super_block.checksum_type}, not 1 (crc32c)"
            )
        if super_block.checksum != (expected := checksums.super_block(data)):
            raise CorruptError(
                f"SuperBlock at byte {SUPER_OFFSET}: checksum is 0x{super_block.checksum:08x}, the bytes give 0x{expected:08x}"
            )
    return super_block


def write_super_block(super_block: SuperBlock) -> bytes:
    """The bytes of ``super_block`` with their checksum, which is also put into it."""
    super_block.checksum = checksums.super_block(super_block.to_bytes())
    return super_block.to_bytes()


@dataclass(frozen=True, slots=True)
class Geometry:
    """The sizes of one file system. A block has 4096 bytes.

    Attributes:
        blocks: all blocks.
        groups: block groups; each has ``blocks_per_group`` blocks but the last, which may have fewer.
        inodes_per_group: a multiple of 8, at most 32768.
        inode_size: bytes.
        descriptor_size: bytes of a group descriptor: 32, or 64 and more.
        first_inode: the first that is not reserved.
        checksum_seed: of all metadata checksums, or None if the file system has none.
        group_checksums: whether the uninit flags of the groups count.
    """

    blocks: int
    groups: int
    blocks_per_group: int
    inodes_per_group: int
    inode_size: int
    descriptor_size: int
    first_inode: int
    checksum_seed: int | None
    group_checksums: bool

    @property
    def inodes(self) -> int:
        return self.groups * self.inodes_per_group

    @property
    def descriptor_blocks(self) -> int:
        return -(-self.groups * self.descriptor_size // BLOCK_SIZE)

    @property
    def inode_table_blocks(self) -> int:
        """Of one group."""
        return -(-self.inodes_per_group * self.inode_size // BLOCK_SIZE)

    def blocks_in_group(self, group: int) -> int:
        return min(self.blocks_per_group, self.blocks - group * self.blocks_per_group)

    @classmethod
    def from_super_block(cls, super_block: SuperBlock, device_size: int) -> Self:
        """The geometry that ``super_block`` states.

        Raises:
            CorruptError: the numbers contradict each other or the device.
            UnsupportedError: a feature that is not read here, or a block size other than 4096.
        """
        where = f"SuperBlock at byte {SUPER_OFFSET}"
        # As int, for ~ of an IntFlag forgets the bits that have no name.
        if unknown := super_block.feature_incompat & ~int(_READABLE | IncompatFeature.RECOVER):
            raise UnsupportedError(f"{where}: incompatible features {IncompatFeature(unknown)!r} are not supported")
        if super_block.feature_ro_compat & RoCompatFeature.BIGALLOC:
            raise UnsupportedError(f"{where}: bigalloc is not supported")
        if super_block.log_block_size != 2 or super_block.log_cluster_size != 2:
            raise UnsupportedError(
                f"{where}: block size is {1024 << min(super_block.log_block_size, 16)}, only 4096 is supported"
            )
        if super_block.rev_level < 1:
            raise UnsupportedError(f"{where}: revision {super_block.rev_level} is not supported")
        wide = bool(super_block.feature_incompat & IncompatFeature.BIT64)
        blocks = super_block.blocks_count_lo | (super_block.blocks_count_hi << 32 if wide else 0)
        if not 0 < blocks <= device_size // BLOCK_SIZE:
            raise CorruptError(f"{where}: {blocks} blocks of {BLOCK_SIZE} bytes, the device has {device_size} bytes")
        per_group, inodes = super_block.blocks_per_group, super_block.inodes_per_group
        if super_block.first_data_block != 0 or not 0 < per_group <= BLOCKS_PER_GROUP or per_group % 8:
            raise CorruptError(f"{where}: first data block {super_block.first_data_block}, {per_group} blocks per group")
        size = super_block.inode_size
        if size < 128 or size > BLOCK_SIZE or size & (size - 1):
            raise CorruptError(f"{where}: inode size is {size}")
        groups = -(-blocks // per_group)
        if not 0 < inodes <= _BITMAP_BITS or inodes % 8 or super_block.inodes_count != inodes * groups:
            raise CorruptError(
                f"{where}: {super_block.inodes_count} inodes, of which {inodes} in each of {groups} groups of {per_group} blocks"
            )
        descriptor = super_block.desc_size if wide else DESCRIPTOR_SIZE
        if wide and (descriptor < 64 or descriptor > 1024 or descriptor & (descriptor - 1)):
            raise CorruptError(f"{where}: descriptor size is {descriptor}")
        if not 10 < super_block.first_ino <= super_block.inodes_count:
            raise CorruptError(f"{where}: first inode is {super_block.first_ino} of {super_block.inodes_count}")
        seed: int | None = None
        if super_block.feature_ro_compat & RoCompatFeature.METADATA_CSUM:
            seeded = super_block.feature_incompat & IncompatFeature.CSUM_SEED
            seed = super_block.checksum_seed if seeded else checksums.update(checksums.ALL_ONES, super_block.uuid)
        return cls(
            blocks=blocks,
            groups=groups,
            blocks_per_group=per_group,
            inodes_per_group=inodes,
            inode_size=size,
            descriptor_size=descriptor,
            first_inode=super_block.first_ino,
            checksum_seed=seed,
            group_checksums=seed is not None or bool(super_block.feature_ro_compat & RoCompatFeature.GDT_CSUM),
        )
