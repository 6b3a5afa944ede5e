"""Every kind of damage is found, checksums being right; and every damaged byte where they are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from imgstore.blocks import MemoryBlockDevice
from imgstore.ext4 import checksums
from imgstore.ext4.check import check_file_system
from imgstore.ext4.directories import encode_directory
from imgstore.ext4.extents import single_root
from imgstore.ext4.geometry import SUPER_OFFSET, write_super_block
from imgstore.ext4.groups import GroupTable
from imgstore.ext4.reader import FileSystem
from imgstore.ext4.structures import BLOCK_SIZE, JOURNAL_INODE, Inode, InodeFlag, SuperBlock
from imgstore.ext4.xattrs import seal_xattr_block
from tests.ext4_layers import EVERY_STRUCTURE, apply_layer, contents, formatted


class Image:
    """A sound file system, and ways to damage it that leave the checksums right."""

    def __init__(self) -> None:
        self.device = formatted()
        apply_layer(self.device, EVERY_STRUCTURE)
        self.file_system = FileSystem(self.device)
        seed = self.file_system.geometry.checksum_seed
        assert seed is not None
        self.seed = seed

    def super_block(self, **fields: int) -> None:
        super_block: SuperBlock = self.file_system.super_block
        for name, value in fields.items():
            setattr(super_block, name, value)
        self.device.write(SUPER_OFFSET, write_super_block(super_block))

    def group(self, change: Callable[[GroupTable], None]) -> None:
        groups = self.file_system.groups
        change(groups)
        self.device.write(groups.descriptor_offset(0), groups.descriptor(0))

    def bitmap(self, kind: str, bit: int) -> None:
        groups = self.file_system.groups
        offset = (groups.block_bitmap if kind == "block" else groups.inode_bitmap)[0] * BLOCK_SIZE
        bitmap = bytearray(self.device.read(offset, BLOCK_SIZE))
        bitmap[bit >> 3] ^= 1 << (bit & 7)
        self.device.write(offset, bitmap)
        if kind == "block":
            groups.block_bitmap_checksum[0] = checksums.update(self.seed, bitmap)
        else:
            groups.inode_bitmap_checksum[0] = checksums.update(
                self.seed, bitmap[: self.file_system.geometry.inodes_per_group // 8]
            )
        self.group(lambda _: None)

    def number(self, path: bytes) -> int:
        return self.file_system.lookup(path).number

    def inode(self, number: int, **fields: object) -> None:
        offset = self.file_system.groups.inode_offset(number)
        inode = Inode.from_bytes(self.device.read(offset, 256))
        for name, value in fields.items():
            setattr(inode, name, value)
        inode.checksum_lo = inode.checksum_hi = 0
        checksum = checksums.inode(self.seed, number, inode.to_bytes())
        inode.checksum_lo, inode.checksum_hi = checksum & 0xFFFF, checksum >> 16
        self.device.write(offset, inode.to_bytes())

    def directory(self, path: bytes, entries: dict[bytes, int], parent: int | None = None) -> None:
        node = self.file_system.lookup(path)
        seed = checksums.inode_seed(self.seed, node.number, 0)
        blocks, _ = encode_directory(entries, node.number, parent or 2, seed, self.file_system.super_block.hash_seed)
        run = next(self.file_system.runs(node))
        self.device.write(run.physical * BLOCK_SIZE, blocks[0])

    def entries(self, path: bytes) -> dict[bytes, int]:
        return dict(self.file_system.directory_entries(self.file_system.lookup(path)))

    def xattr_block(self, offset: int, data: bytes) -> None:
        block = self.file_system.lookup(b"d/file").xattr_block
        raw = bytearray(self.device.read(block * BLOCK_SIZE, BLOCK_SIZE))
        raw[offset : offset + len(data)] = data
        self.device.write(block * BLOCK_SIZE, seal_xattr_block(bytes(raw), block, self.seed))

    def journal(self, offset: int, value: int) -> None:
        run = next(self.file_system.runs(self.file_system.node(JOURNAL_INODE)))
        self.device.write(run.physical * BLOCK_SIZE + offset, value.to_bytes(4, "big"))


def _free_more(groups: GroupTable) -> None:
    groups.free_blocks[0] += 1


def _free_less(groups: GroupTable) -> None:
    groups.free_inodes[0] -= 1


def _no_directories(groups: GroupTable) -> None:
    groups.used_dirs[0] = 0


def _all_unused(groups: GroupTable) -> None:
    groups.itable_unused[0] = 4080


DAMAGES: list[tuple[str, Callable[[Image], None], str, str]] = [
    ("state", lambda i: i.super_block(state=0), "SuperBlock", "state is 0"),
    ("orphans", lambda i: i.super_block(last_orphan=12), "SuperBlock", "orphan list starts at inode 12"),
    ("sb blocks", lambda i: i.super_block(free_blocks_count_lo=7), "SuperBlock", "7 free blocks, the groups have"),
    ("sb inodes", lambda i: i.super_block(free_inodes_count=7), "SuperBlock", "7 free inodes, the groups have"),
    ("recover", lambda i: i.super_block(feature_incompat=0x2246), "SuperBlock", "journal must be replayed"),
    ("journal inode", lambda i: i.super_block(journal_inum=99999), "SuperBlock", "inode 99999 of 4096"),
    ("journal start", lambda i: i.journal(0x1C, 1), "journal", "starts at block 1"),
    ("journal magic", lambda i: i.journal(0, 1), "journal", "magic"),
    ("journal length", lambda i: i.journal(0x10, 1 << 20), "journal", "1048576 blocks"),
    ("gd blocks", lambda i: i.group(_free_more), "GroupDescriptor 0", "free blocks, counted"),
    ("gd inodes", lambda i: i.group(_free_less), "GroupDescriptor 0", "free inodes, counted"),
    ("gd dirs", lambda i: i.group(_no_directories), "GroupDescriptor 0", "0 directories, counted 3"),
    ("gd unused", lambda i: i.group(_all_unused), "GroupDescriptor 0", "the last 4080 of 4096 inodes are unused"),
    (
        "leaked block",
        lambda i: i.bitmap("block", 16000),
        "block bitmap 0",
        "1 blocks are used, and nothing has them; first 16000",
    ),
    ("free block", lambda i: i.bitmap("block", 0), "block bitmap 0", "1 blocks are free, and in use; first 0 to 0"),
    ("leaked inode", lambda i: i.bitmap("inode", 3999), "inode bitmap 0", "1 inodes are used, and nothing has them; first 4000"),
    ("free inode", lambda i: i.bitmap("inode", 11), "inode bitmap 0", "1 inodes are free, and in use; first 12"),
    ("links", lambda i: i.inode(i.number(b"d/file"), links=3), "inode", "has 3 links, and 2 names"),
    ("link", lambda i: i.inode(i.number(b"d/file"), links=1), "inode", "has 1 links, and 2 names"),
    ("dir links", lambda i: i.inode(i.number(b"d"), links=5), "directory inode", "has 5 links, should have 2"),
    ("sectors", lambda i: i.inode(i.number(b"d/file"), blocks_lo=8), "inode", "says 8 sectors, has 24"),
    ("size", lambda i: i.inode(i.number(b"d/other"), size_lo=4096), "inode", "size is 4096, and it has logical block 1"),
    ("dir size", lambda i: i.inode(i.number(b"d"), size_lo=8192), "directory inode", "size is 8192"),
    ("mode", lambda i: i.inode(i.number(b"d/other"), mode=0o120777), "inode", "says type 1"),
    ("no mode", lambda i: i.inode(i.number(b"d/other"), mode=0), "inode", "is of no file"),
    ("index flag", lambda i: i.inode(i.number(b"d/other"), flags=InodeFlag.EXTENTS | InodeFlag.INDEX), "inode", "INDEX flag"),
    ("extents flag", lambda i: i.inode(i.number(b"d/other"), flags=0), "inode", "mapped by indirect blocks"),
    ("fast extents", lambda i: i.inode(i.number(b"fast"), size_lo=5), "inode", "goes on behind them"),
    ("no target", lambda i: i.inode(i.number(b"fast"), size_lo=0), "symlink inode", "target has 0 bytes"),
    ("null target", lambda i: i.inode(i.number(b"fast"), size_lo=9), "symlink inode", "null byte"),
    ("acl", lambda i: i.inode(i.number(b"d/other"), file_acl_lo=1 << 20), "inode", "xattr block 1048576"),
    (
        "shared",
        lambda i: i.inode(i.number(b"d/other"), block=i.file_system.lookup(b"d/file").block),
        "inode",
        "belong to another",
    ),
    ("outside", lambda i: i.inode(i.number(b"d/other"), block=single_root(1 << 20, 2)), "inode", "2 blocks at block 1048576"),
    ("xattr order", lambda i: i.xattr_block(32, _swapped(i)), "xattr block", "not sorted"),
    ("xattr hash", lambda i: i.xattr_block(32 + 12, b"abcd"), "xattr block", "hash of b'user.a'"),
    ("xattr block hash", lambda i: i.xattr_block(12, b"abcd"), "xattr block", "hash of the block"),
    ("xattr refcount", lambda i: i.xattr_block(4, b"\2"), "xattr block", "is used by 2 inodes, it is by 1"),
    ("xattr size", lambda i: i.xattr_block(32 + 9, b"\xff"), "inode", "extended attribute at byte 32"),
    ("reserved", lambda i: i.directory(b"d", i.entries(b"d") | {b"j": 8 << 4 | 1}), "directory inode", "j is reserved inode 8"),
    (
        "dir type",
        lambda i: i.directory(b"d", i.entries(b"d") | {b"q": i.number(b"wide") << 4 | 2}),
        "directory inode",
        "another name",
    ),
    (
        "wrong type",
        lambda i: i.directory(b"d", i.entries(b"d") | {b"other": i.number(b"d/other") << 4 | 7}),
        "inode",
        "says type 7",
    ),
    ("ghost", lambda i: i.directory(b"d", i.entries(b"d") | {b"ghost": 4000 << 4 | 1}), "inode 4000", "checksum is 0x00000000"),
    ("lost", lambda i: i.directory(b"d", {}), "inode bitmap 0", "nothing has them"),
    ("parent", lambda i: i.directory(b"d", i.entries(b"d"), parent=12), "directory inode", "starts with"),
    ("self", lambda i: i.directory(b"d", i.entries(b"d") | {b"me": i.number(b"d") << 4 | 2}), "directory inode", "another name"),
]


def _swapped(image: Image) -> bytes:
    raw = image.device.read(image.file_system.lookup(b"d/file").xattr_block * BLOCK_SIZE + 32, 40)
    return raw[20:] + raw[:20]


def test_sound() -> None:
    assert list(check_file_system(Image().device)) == []


@pytest.mark.parametrize(("damage", "what", "problem"), [case[1:] for case in DAMAGES], ids=[case[0] for case in DAMAGES])
def test_damage(damage: Callable[[Image], None], what: str, problem: str) -> None:
    image = Image()
    damage(image)
    found = list(check_file_system(image.device))
    assert any(what in finding.object + finding.problem and problem in finding.problem for finding in found), found
    assert all(0 < finding.offset < image.device.size for finding in found)


def metadata_blocks(device: MemoryBlockDevice) -> list[tuple[str, int]]:
    file_system = FileSystem(device)
    groups = file_system.groups
    wide = next(file_system.runs(file_system.lookup(b"wide"))).physical
    tree = file_system.extent_tree(file_system.lookup(b"tree"))
    list(tree)
    return [
        ("superblock", SUPER_OFFSET),
        ("descriptors", BLOCK_SIZE),
        ("block bitmap", groups.block_bitmap[0] * BLOCK_SIZE),
        ("inode bitmap", groups.inode_bitmap[0] * BLOCK_SIZE),
        ("inode", groups.inode_offset(file_system.lookup(b"d/file").number)),
        ("directory", next(file_system.runs(file_system.lookup(b"d"))).physical * BLOCK_SIZE),
        ("index", wide * BLOCK_SIZE),
        ("leaf", (wide + 1) * BLOCK_SIZE),
        ("extents", tree.blocks[0] * BLOCK_SIZE),
        ("xattrs", file_system.lookup(b"d/file").xattr_block * BLOCK_SIZE),
    ]


@pytest.mark.parametrize("case", range(10))
def test_damaged_bytes(case: int) -> None:
    device = Image().device
    what, start = metadata_blocks(device)[case]
    sound = contents(device)
    for position in range(0, 32, 5):
        device.write(start + position, bytes((device.read(start + position, 1)[0] ^ 0x10,)))
        assert list(check_file_system(device)), f"{what}, byte {position}"
        device.write(start + position, bytes((device.read(start + position, 1)[0] ^ 0x10,)))
    assert contents(device) == sound
