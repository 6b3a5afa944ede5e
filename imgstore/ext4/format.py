"""Formats a device: an empty ext4 whose bytes depend on nothing but the size and the UUID.

All metadata lie packed at the front (superblock, descriptors, block bitmaps, inode bitmaps, inode tables, root directory, journal);
behind them is one run of free blocks up to the end, without backup superblocks in it. This is what ``mke2fs -O sparse_super2,
^resize_inode,metadata_csum,metadata_csum_seed -E num_backup_sb=0,packed_meta_blocks=1`` makes, without ``lost+found``.
"""

from __future__ import annotations

import hashlib
from uuid import UUID

from imgstore.blocks import WritableBlockDevice
from imgstore.errors import InvalidError
from imgstore.ext4 import checksums
from imgstore.ext4.bitmaps import set_bits
from imgstore.ext4.directories import encode_directory
from imgstore.ext4.directory_hash import HALF_MD4
from imgstore.ext4.extents import single_root
from imgstore.ext4.geometry import SUPER_OFFSET, Geometry, write_super_block
from imgstore.ext4.groups import TABLE_BLOCK, GroupTable
from imgstore.ext4.journal import encode_journal, journal_blocks
from imgstore.ext4.structures import (
    BLOCK_SIZE,
    BLOCKS_PER_GROUP,
    DESCRIPTOR_SIZE,
    FIRST_INODE,
    INODE_SIZE,
    JOURNAL_INODE,
    ROOT_INODE,
    SECTORS_PER_BLOCK,
    UNSIGNED_HASH,
    CompatFeature,
    GroupFlag,
    IncompatFeature,
    Inode,
    InodeFlag,
    RoCompatFeature,
    SuperBlock,
)

MINIMUM_SIZE = 64 << 20
MAXIMUM_SIZE = (2 << 40) - (64 << 10)
"""Sector numbers in a VMDK have 32 bits: 2 TiB, less one grain."""

SIZE_MULTIPLE = 64 << 10

_BYTES_PER_INODE = 16384
_UUID = UUID("6d1f0c5e-8f3a-5c47-9d0e-3a7b2e64c1d8").bytes
_HASH_SEED = (0x5A3C9E17, 0xC46F7DA1, 0x91B02D8E, 0x2E85F6C3)
_DEFAULT_XATTR_AND_ACL = 0x4 | 0x8
_COMPAT = CompatFeature.HAS_JOURNAL | CompatFeature.EXT_ATTR | CompatFeature.DIR_INDEX | CompatFeature.SPARSE_SUPER2
_INCOMPAT = IncompatFeature.FILETYPE | IncompatFeature.EXTENTS | IncompatFeature.FLEX_BG | IncompatFeature.CSUM_SEED
_RO_COMPAT = (
    RoCompatFeature.SPARSE_SUPER
    | RoCompatFeature.LARGE_FILE
    | RoCompatFeature.HUGE_FILE
    | RoCompatFeature.DIR_NLINK
    | RoCompatFeature.EXTRA_ISIZE
    | RoCompatFeature.METADATA_CSUM
)


def format_file_system(device: WritableBlockDevice, *, uuid: bytes | None = None) -> None:
    """Writes an empty file system that fills ``device``.

    The device must read as zeros before; only what is not zero is written. Same size and UUID, same bytes. Of a disk of 32 GiB a
    handful of 64-KiB grains is touched. After a crash the device is unusable: format another.

    Args:
        uuid: 16 bytes by which a machine tells this file system from all others; its checksum and hash seeds follow. None: the one
            of all image disks, which must not differ from pull to pull.

    Raises:
        InvalidError: the size is not a multiple of 64 KiB from ``MINIMUM_SIZE`` (64 MiB) to ``MAXIMUM_SIZE`` (2 TiB - 64 KiB), or
            the UUID is none.
    """
    hash_seed: tuple[int, ...] = _HASH_SEED
    if uuid is None:
        uuid = _UUID
    elif len(uuid) != 16 or not any(uuid):
        raise InvalidError(f"a file system with UUID {uuid.hex()}: it must have 16 bytes, not all zero")
    else:
        hash_seed = _words(hashlib.sha256(uuid).digest()[:16])
    if not MINIMUM_SIZE <= device.size <= MAXIMUM_SIZE or device.size % SIZE_MULTIPLE:
        raise InvalidError(
            f"a file system of {device.size} bytes: the size must be a multiple of {SIZE_MULTIPLE} from {MINIMUM_SIZE} to {MAXIMUM_SIZE}"
        )
    blocks = device.size // BLOCK_SIZE
    groups = -(-blocks // BLOCKS_PER_GROUP)
    inodes = min(blocks, BLOCKS_PER_GROUP) * BLOCK_SIZE // _BYTES_PER_INODE
    seed = checksums.update(checksums.ALL_ONES, uuid)
    geometry = Geometry(
        blocks=blocks,
        groups=groups,
        blocks_per_group=BLOCKS_PER_GROUP,
        inodes_per_group=-(-inodes // 16) * 16,  # whole blocks of the inode table
        inode_size=INODE_SIZE,
        descriptor_size=DESCRIPTOR_SIZE,
        first_inode=FIRST_INODE,
        checksum_seed=seed,
        group_checksums=True,
    )
    table = GroupTable(geometry)
    block_bitmaps = TABLE_BLOCK + geometry.descriptor_blocks
    inode_bitmaps = block_bitmaps + groups
    inode_tables = inode_bitmaps + groups
    root_block = inode_tables + groups * geometry.inode_table_blocks
    journal_block = root_block + 1
    journal = journal_blocks(device.size)
    end = journal_block + journal

    for group in range(groups):
        table.block_bitmap[group] = block_bitmaps + group
        table.inode_bitmap[group] = inode_bitmaps + group
        table.inode_table[group] = inode_tables + group * geometry.inode_table_blocks
        table.flags[group] = GroupFlag.INODE_ZEROED | GroupFlag.INODE_UNINIT | GroupFlag.BLOCK_UNINIT
        table.free_inodes[group] = table.itable_unused[group] = geometry.inodes_per_group
        size = geometry.blocks_in_group(group)
        used = min(max(end - group * BLOCKS_PER_GROUP, 0), size)
        table.free_blocks[group] = size - used
        # The kernel works out an uninitialized bitmap from the metadata of the group itself; that of others must be stated.
        # e2fsck wants that of the last group stated always.
        if used or group == groups - 1:
            bitmap = bytearray(BLOCK_SIZE)
            set_bits(bitmap, 0, used)
            set_bits(bitmap, size, BLOCKS_PER_GROUP - size)
            table.flags[group] &= ~GroupFlag.BLOCK_UNINIT
            table.block_bitmap_checksum[group] = checksums.update(seed, bitmap)
            device.write(table.block_bitmap[group] * BLOCK_SIZE, bitmap)

    bitmap = bytearray(BLOCK_SIZE)
    set_bits(bitmap, 0, FIRST_INODE - 1)
    set_bits(bitmap, geometry.inodes_per_group, BLOCK_SIZE * 8 - geometry.inodes_per_group)
    device.write(table.inode_bitmap[0] * BLOCK_SIZE, bitmap)
    table.inode_bitmap_checksum[0] = checksums.update(seed, bitmap[: geometry.inodes_per_group // 8])
    table.flags[0] &= ~GroupFlag.INODE_UNINIT
    table.free_inodes[0] -= FIRST_INODE - 1
    table.itable_unused[0] -= FIRST_INODE - 1
    table.used_dirs[0] = 1

    root = Inode(mode=0o040755, links=2, size_lo=BLOCK_SIZE, block=single_root(root_block, 1))
    log = Inode(mode=0o100600, links=1, size_lo=journal * BLOCK_SIZE, block=single_root(journal_block, journal))
    for number, node in ((ROOT_INODE, root), (JOURNAL_INODE, log)):
        node.flags = InodeFlag.EXTENTS
        node.blocks_lo = node.size_lo // BLOCK_SIZE * SECTORS_PER_BLOCK
        checksum = checksums.inode(seed, number, node.to_bytes())
        node.checksum_lo, node.checksum_hi = checksum & 0xFFFF, checksum >> 16
        device.write(table.inode_offset(number), node.to_bytes())
    content, _ = encode_directory({}, ROOT_INODE, ROOT_INODE, checksums.inode_seed(seed, ROOT_INODE, 0), hash_seed)
    device.write(root_block * BLOCK_SIZE, content[0])
    device.write(journal_block * BLOCK_SIZE, encode_journal(journal, uuid))

    device.write(TABLE_BLOCK * BLOCK_SIZE, b"".join(map(table.descriptor, range(groups))))
    super_block = SuperBlock(
        inodes_count=geometry.inodes,
        blocks_count_lo=blocks,
        free_blocks_count_lo=blocks - end,
        free_inodes_count=geometry.inodes - FIRST_INODE + 1,
        inodes_per_group=geometry.inodes_per_group,
        feature_compat=_COMPAT,
        feature_incompat=_INCOMPAT,
        feature_ro_compat=_RO_COMPAT,
        uuid=uuid,
        journal_inum=JOURNAL_INODE,
        hash_seed=hash_seed,
        def_hash_version=HALF_MD4,
        jnl_backup_type=1,
        jnl_blocks=(*_words(log.block), 0, log.size_lo),
        default_mount_opts=_DEFAULT_XATTR_AND_ACL,
        min_extra_isize=32,
        want_extra_isize=32,
        flags=UNSIGNED_HASH,
        log_groups_per_flex=max(4, (groups - 1).bit_length()),  # all groups in one flex group
        checksum_type=1,
        checksum_seed=seed,
        overhead_clusters=end - 1,  # all in front but the root directory
    )
    device.write(SUPER_OFFSET, write_super_block(super_block))


def _words(data: bytes) -> tuple[int, ...]:
    return tuple(int.from_bytes(data[start : start + 4], "little") for start in range(0, len(data), 4))
