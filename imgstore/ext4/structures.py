"""The structures of ext4, as ``fs/ext4/ext4.h``, ``ext4_extents.h``, ``xattr.h`` and ``include/linux/jbd2.h`` declare them.

The hot loops (inodes, directory entries, extents) use the precompiled ``struct.Struct`` beside the Record.
"""

from __future__ import annotations

import enum
import struct

from imgstore.ondisk import Record, raw, u8, u16, u32, u64

BLOCK_SIZE = 4096
BLOCK_SHIFT = 12
SECTORS_PER_BLOCK = 8  # i_blocks counts 512-byte sectors
BLOCKS_PER_GROUP = 32768  # one bitmap block
INODE_SIZE = 256
DESCRIPTOR_SIZE = 32

ROOT_INODE = 2
JOURNAL_INODE = 8
FIRST_INODE = 11
"""The first that is not reserved; ``lost+found`` has it elsewhere."""

LINK_MAX = 65000
NAME_MAX = 255
UNSIGNED_HASH = 0x2
"""In ``s_flags``: names are hashed as unsigned bytes. Without it as signed ones, as mke2fs on x86 wants it."""

SUPER_MAGIC = 0xEF53
EXTENT_MAGIC = 0xF30A
XATTR_MAGIC = 0xEA020000
JOURNAL_MAGIC = 0xC03B3998


class CompatFeature(enum.IntFlag):
    """``s_feature_compat``: unknown ones do no harm."""

    HAS_JOURNAL = 0x0004
    EXT_ATTR = 0x0008
    RESIZE_INODE = 0x0010
    DIR_INDEX = 0x0020
    SPARSE_SUPER2 = 0x0200
    ORPHAN_FILE = 0x1000


class IncompatFeature(enum.IntFlag):
    """``s_feature_incompat``: who does not know one must not read."""

    COMPRESSION = 0x0001
    FILETYPE = 0x0002
    RECOVER = 0x0004
    JOURNAL_DEV = 0x0008
    META_BG = 0x0010
    EXTENTS = 0x0040
    BIT64 = 0x0080
    MMP = 0x0100
    FLEX_BG = 0x0200
    EA_INODE = 0x0400
    DIRDATA = 0x1000
    CSUM_SEED = 0x2000
    LARGEDIR = 0x4000
    INLINE_DATA = 0x8000
    ENCRYPT = 0x10000
    CASEFOLD = 0x20000


class RoCompatFeature(enum.IntFlag):
    """``s_feature_ro_compat``: who does not know one must not write."""

    SPARSE_SUPER = 0x0001
    LARGE_FILE = 0x0002
    HUGE_FILE = 0x0008
    GDT_CSUM = 0x0010
    DIR_NLINK = 0x0020
    EXTRA_ISIZE = 0x0040
    QUOTA = 0x0100
    BIGALLOC = 0x0200
    METADATA_CSUM = 0x0400
    READONLY = 0x1000
    PROJECT = 0x2000
    VERITY = 0x8000
    ORPHAN_PRESENT = 0x10000


class GroupFlag(enum.IntFlag):
    """``bg_flags``."""

    INODE_UNINIT = 0x1
    BLOCK_UNINIT = 0x2
    INODE_ZEROED = 0x4


class InodeFlag(enum.IntFlag):
    """``i_flags``."""

    INDEX = 0x1000
    HUGE_FILE = 0x40000
    EXTENTS = 0x80000
    EA_INODE = 0x200000
    INLINE_DATA = 0x10000000


class SuperBlock(Record, size=1024):
    """``struct ext4_super_block``, at byte 1024 of the device."""

    inodes_count: int = u32(0x00)
    blocks_count_lo: int = u32(0x04)
    r_blocks_count_lo: int = u32(0x08)
    free_blocks_count_lo: int = u32(0x0C)
    free_inodes_count: int = u32(0x10)
    first_data_block: int = u32(0x14)
    log_block_size: int = u32(0x18, default=2)
    log_cluster_size: int = u32(0x1C, default=2)
    blocks_per_group: int = u32(0x20, default=BLOCKS_PER_GROUP)
    clusters_per_group: int = u32(0x24, default=BLOCKS_PER_GROUP)
    inodes_per_group: int = u32(0x28)
    mtime: int = u32(0x2C)
    wtime: int = u32(0x30)
    mnt_count: int = u16(0x34)
    max_mnt_count: int = u16(0x36, default=0xFFFF)
    magic: int = u16(0x38, default=SUPER_MAGIC, fixed=True)
    state: int = u16(0x3A, default=1)
    errors: int = u16(0x3C, default=1)
    minor_rev_level: int = u16(0x3E)
    lastcheck: int = u32(0x40)
    checkinterval: int = u32(0x44)
    creator_os: int = u32(0x48)
    rev_level: int = u32(0x4C, default=1)
    def_resuid: int = u16(0x50)
    def_resgid: int = u16(0x52)
    first_ino: int = u32(0x54, default=FIRST_INODE)
    inode_size: int = u16(0x58, default=INODE_SIZE)
    block_group_nr: int = u16(0x5A)
    feature_compat: int = u32(0x5C)
    feature_incompat: int = u32(0x60)
    feature_ro_compat: int = u32(0x64)
    uuid: bytes = raw(0x68, 16)
    volume_name: bytes = raw(0x78, 16)
    last_mounted: bytes = raw(0x88, 64)
    algorithm_usage_bitmap: int = u32(0xC8)
    prealloc: bytes = raw(0xCC, 2)
    reserved_gdt_blocks: int = u16(0xCE)
    journal_uuid: bytes = raw(0xD0, 16)
    journal_inum: int = u32(0xE0)
    journal_dev: int = u32(0xE4)
    last_orphan: int = u32(0xE8)
    hash_seed: tuple[int, ...] = u32(0xEC, count=4)
    def_hash_version: int = u8(0xFC)
    jnl_backup_type: int = u8(0xFD)
    desc_size: int = u16(0xFE)
    default_mount_opts: int = u32(0x100)
    first_meta_bg: int = u32(0x104)
    mkfs_time: int = u32(0x108)
    jnl_blocks: tuple[int, ...] = u32(0x10C, count=17)
    blocks_count_hi: int = u32(0x150)
    r_blocks_count_hi: int = u32(0x154)
    free_blocks_count_hi: int = u32(0x158)
    min_extra_isize: int = u16(0x15C)
    want_extra_isize: int = u16(0x15E)
    flags: int = u32(0x160)
    raid_stride: int = u16(0x164)
    mmp: bytes = raw(0x166, 10)
    raid_stripe_width: int = u32(0x170)
    log_groups_per_flex: int = u8(0x174)
    checksum_type: int = u8(0x175)
    rest: bytes = raw(0x176, 0xD2)  # what the kernel keeps here (lifetime writes, errors, quota) goes back as it came
    overhead_clusters: int = u32(0x248)
    backup_bgs: tuple[int, ...] = u32(0x24C, count=2)
    encryption: bytes = raw(0x254, 20)
    lpf_ino: int = u32(0x268)
    prj_quota_inum: int = u32(0x26C)
    checksum_seed: int = u32(0x270)
    encoding: bytes = raw(0x274, 12)
    orphan_file_inum: int = u32(0x280)
    tail: bytes = raw(0x284, 0x178)
    checksum: int = u32(0x3FC)


class GroupDescriptor(Record, size=DESCRIPTOR_SIZE):
    """``struct ext4_group_desc`` without the 64-bit half."""

    block_bitmap: int = u32(0x00)
    inode_bitmap: int = u32(0x04)
    inode_table: int = u32(0x08)
    free_blocks: int = u16(0x0C)
    free_inodes: int = u16(0x0E)
    used_dirs: int = u16(0x10)
    flags: int = u16(0x12)
    exclude_bitmap: int = u32(0x14)
    block_bitmap_checksum: int = u16(0x18)
    inode_bitmap_checksum: int = u16(0x1A)
    itable_unused: int = u16(0x1C)
    checksum: int = u16(0x1E)


class Inode(Record, size=INODE_SIZE):
    """``struct ext4_inode`` of 256 bytes, with 32 bytes of extra fields."""

    mode: int = u16(0x00)
    uid_lo: int = u16(0x02)
    size_lo: int = u32(0x04)
    atime: int = u32(0x08)
    ctime: int = u32(0x0C)
    mtime: int = u32(0x10)
    dtime: int = u32(0x14)
    gid_lo: int = u16(0x18)
    links: int = u16(0x1A)
    blocks_lo: int = u32(0x1C)
    flags: int = u32(0x20)
    version_lo: int = u32(0x24)
    block: bytes = raw(0x28, 60)
    generation: int = u32(0x64)
    file_acl_lo: int = u32(0x68)
    size_hi: int = u32(0x6C)
    fragment: int = u32(0x70)
    blocks_hi: int = u16(0x74)
    file_acl_hi: int = u16(0x76)
    uid_hi: int = u16(0x78)
    gid_hi: int = u16(0x7A)
    checksum_lo: int = u16(0x7C)
    reserved: int = u16(0x7E)
    extra_isize: int = u16(0x80, default=32)
    checksum_hi: int = u16(0x82)
    ctime_extra: int = u32(0x84)
    mtime_extra: int = u32(0x88)
    atime_extra: int = u32(0x8C)
    crtime: int = u32(0x90)
    crtime_extra: int = u32(0x94)
    version_hi: int = u32(0x98)
    projid: int = u32(0x9C)
    xattrs: bytes = raw(0xA0, 96)


INODE = struct.Struct("<HHIIIIIHHIII60sIIIIHHHHHHHHIIIIIII96s")
"""The fields of ``Inode`` in its order, for the writer."""


class ExtentHeader(Record, size=12):
    """``struct ext4_extent_header``: starts every node of an extent tree."""

    magic: int = u16(0x00, default=EXTENT_MAGIC, fixed=True)
    entries: int = u16(0x02)
    max: int = u16(0x04)
    depth: int = u16(0x06)
    generation: int = u32(0x08)


EXTENT_HEADER = struct.Struct("<HHHHI")
EXTENT = struct.Struct("<IHHI")  # logical block, length, physical high, physical low
EXTENT_INDEX = struct.Struct("<IIHH")  # logical block, child low, child high, unused
DIRECTORY_ENTRY = struct.Struct("<IHBB")  # inode, rec_len, name_len, file_type
HASH_ENTRY = struct.Struct("<II")  # hash, logical block


class XattrHeader(Record, size=32):
    """``struct ext4_xattr_header``: starts an xattr block."""

    magic: int = u32(0x00, default=XATTR_MAGIC, fixed=True)
    refcount: int = u32(0x04, default=1)
    blocks: int = u32(0x08, default=1, fixed=True)
    hash: int = u32(0x0C)
    checksum: int = u32(0x10)


XATTR_ENTRY = struct.Struct("<BBHIII")  # name_len, name_index, value_offset, value_inode, value_size, hash


class JournalSuperBlock(Record, size=1024):
    """``struct journal_superblock_s``, version 2, big-endian; the first block of the journal."""

    magic: int = u32(0x00, default=JOURNAL_MAGIC, fixed=True, big=True)
    block_type: int = u32(0x04, default=4, fixed=True, big=True)
    header_sequence: int = u32(0x08, big=True)
    block_size: int = u32(0x0C, default=BLOCK_SIZE, big=True)
    max_length: int = u32(0x10, big=True)
    first: int = u32(0x14, default=1, big=True)
    sequence: int = u32(0x18, default=1, big=True)
    start: int = u32(0x1C, big=True)
    error: int = u32(0x20, big=True)
    feature_compat: int = u32(0x24, big=True)
    feature_incompat: int = u32(0x28, big=True)
    feature_ro_compat: int = u32(0x2C, big=True)
    uuid: bytes = raw(0x30, 16)
    users_count: int = u32(0x40, default=1, big=True)
    checksum_type: int = u8(0x50)
    fast_commit_blocks: int = u32(0x54, big=True)
    checksum: int = u32(0xFC, big=True)
    users: bytes = raw(0x100, 768)


class JournalCompatFeature(enum.IntFlag):
    """``s_feature_compat`` of a journal."""

    CHECKSUM = 0x1


class JournalIncompatFeature(enum.IntFlag):
    """``s_feature_incompat`` of a journal."""

    REVOKE = 0x1
    BIT64 = 0x2
    ASYNC_COMMIT = 0x4
    CSUM_V2 = 0x8
    CSUM_V3 = 0x10
    FAST_COMMIT = 0x20


class JournalBlockType(enum.IntEnum):
    """``h_blocktype``: what a block of the log that starts with the magic is."""

    DESCRIPTOR = 1
    COMMIT = 2
    REVOKE = 5


class TagFlag(enum.IntFlag):
    """``t_flags`` of a tag in a descriptor block."""

    ESCAPED = 0x1
    SAME_UUID = 0x2
    LAST = 0x8


class CommitHeader(Record, size=64):
    """``struct commit_header``: ends a transaction; the rest of its block is zeros."""

    magic: int = u32(0x00, default=JOURNAL_MAGIC, big=True)
    block_type: int = u32(0x04, default=int(JournalBlockType.COMMIT), big=True)
    sequence: int = u32(0x08, big=True)
    checksum_type: int = u8(0x0C)
    checksum_size: int = u8(0x0D)
    checksum: int = u32(0x10, big=True)
    seconds: int = u64(0x30, big=True)
    nanoseconds: int = u32(0x38, big=True)


JOURNAL_HEADER = struct.Struct(">III")  # magic, block type, sequence


class DirectoryFileType(enum.IntEnum):
    """``file_type`` of a directory entry."""

    UNKNOWN = 0
    REGULAR = 1
    DIRECTORY = 2
    CHARACTER_DEVICE = 3
    BLOCK_DEVICE = 4
    FIFO = 5
    SOCKET = 6
    SYMLINK = 7
    CHECKSUM = 0xDE
