from __future__ import annotations

import pytest

from imgstore.blocks import MemoryBlockDevice
from imgstore.changes import Change, Entry, FileType, HardLink
from imgstore.errors import CorruptError, InvalidError, NotFoundError, UnsupportedError
from imgstore.ext4.geometry import SUPER_OFFSET, read_super_block, write_super_block
from imgstore.ext4.reader import FileSystem
from imgstore.ext4.structures import IncompatFeature, RoCompatFeature
from tests.ext4_layers import MTIME, apply_layer, device_node, directory, formatted, regular, sparse, symlink

LAYER: list[Change] = [
    directory(b"d", 0o750, uid=1, gid=2, xattrs={b"user.a": b"b"}),
    regular(b"d/file", b"0123456789", xattrs={b"user.big": b"v" * 200}),
    sparse(b"d/sparse", 20_000, [(8192, b"s" * 100)]),
    regular(b"d/empty"),
    HardLink(b"link", b"d/file"),
    symlink(b"sym", b"d/file"),
    symlink(b"long", b"t" * 100),
    device_node(b"null", FileType.CHARACTER_DEVICE, 1, 3),
]


@pytest.fixture(scope="module")
def file_system() -> FileSystem:
    device = formatted()
    apply_layer(device, LAYER)
    return FileSystem(device)


def test_status(file_system: FileSystem) -> None:
    status = file_system.status(file_system.lookup(b"d/file"))
    assert (status.type, status.mode, status.size, status.mtime_ns, status.links) == (FileType.REGULAR, 0o644, 10, MTIME, 2)
    assert status.xattrs == {b"user.big": b"v" * 200}
    assert status.blocks == 16
    assert file_system.status(file_system.lookup(b"sym")).target == b"d/file"
    assert file_system.status(file_system.lookup(b"long")).target == b"t" * 100
    assert file_system.status(file_system.lookup(b"null")).rdev == (1, 3)


@pytest.mark.parametrize("path", [b"missing", b"d/missing", b"sym/x", b"d/file/x", b"d/", b"/d", b"."])
def test_lookup_of_what_is_not_there(file_system: FileSystem, path: bytes) -> None:
    with pytest.raises(NotFoundError, match="no such file"):
        file_system.lookup(path)


def test_list(file_system: FileSystem) -> None:
    assert [(name, kind) for name, _, kind in file_system.list_directory(file_system.lookup(b"d"))] == [
        (b"empty", FileType.REGULAR),
        (b"file", FileType.REGULAR),
        (b"sparse", FileType.REGULAR),
    ]
    with pytest.raises(InvalidError, match="is no directory"):
        file_system.list_directory(file_system.lookup(b"null"))


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [(0, 100, b"0123456789"), (3, 4, b"3456"), (9, 1, b"9"), (10, 5, b""), (50, 5, b""), (0, 0, b"")],
)
def test_read(file_system: FileSystem, offset: int, length: int, expected: bytes) -> None:
    assert file_system.read(file_system.lookup(b"d/file"), offset, length) == expected


def test_read_before_the_start(file_system: FileSystem) -> None:
    with pytest.raises(InvalidError, match="cannot read 1 bytes at byte -1"):
        file_system.read(file_system.lookup(b"d/file"), -1, 1)


def test_holes(file_system: FileSystem) -> None:
    node = file_system.lookup(b"d/sparse")
    expected = bytes(8192) + b"s" * 100 + bytes(20_000 - 8292)
    assert b"".join(file_system.read_file(node)) == expected
    assert file_system.read(node, 8190, 104) == expected[8190:8294]


def test_read_file_of_a_directory(file_system: FileSystem) -> None:
    with pytest.raises(InvalidError, match="is no regular file"):
        list(file_system.read_file(file_system.lookup(b"d")))


def test_changes_of_a_subtree(file_system: FileSystem) -> None:
    found = list(file_system.changes(b"d"))
    assert [change.path for change in found] == [b"d", b"d/empty", b"d/file", b"d/sparse"]
    last = found[-1]
    assert isinstance(last, Entry)
    assert last.segments == [(8192, 4096)]
    assert b"".join(last.data) == b"s" * 100 + bytes(3996)


def test_first_name_is_the_entry(file_system: FileSystem) -> None:
    assert HardLink(b"link", b"d/file") in list(file_system.changes())


def changed(**fields: object) -> MemoryBlockDevice:
    device = formatted()
    super_block = read_super_block(device)
    for name, value in fields.items():
        setattr(super_block, name, value)
    device.write(SUPER_OFFSET, write_super_block(super_block))
    return device


@pytest.mark.parametrize(
    ("device", "words"),
    [
        (MemoryBlockDevice(1024), "the device has only 1024 bytes"),
        (MemoryBlockDevice(1 << 20), "no ext4 file system: .* magic is 0, not 61267"),
        (changed(blocks_count_lo=16385), "16385 blocks of 4096 bytes, the device has 67108864 bytes"),
        (changed(blocks_count_lo=0), "0 blocks"),
        (changed(blocks_per_group=0), "0 blocks per group"),
        (changed(blocks_per_group=32776), "32776 blocks per group"),
        (changed(first_data_block=1), "first data block 1"),
        (changed(inodes_per_group=0), "of which 0 in each of 1 groups"),
        (changed(inodes_per_group=65536), "of which 65536 in each"),
        (changed(inodes_count=8192), "8192 inodes, of which 4096 in each of 1 groups"),
        (changed(inode_size=100), "inode size is 100"),
        (changed(inode_size=8192), "inode size is 8192"),
        (changed(first_ino=5), "first inode is 5"),
        (changed(feature_incompat=0x2C2, desc_size=33), "descriptor size is 33"),
    ],
)
def test_damaged_super_block(device: MemoryBlockDevice, words: str) -> None:
    with pytest.raises(CorruptError, match=words):
        FileSystem(device)


@pytest.mark.parametrize(
    ("device", "words"),
    [
        (changed(feature_incompat=0x242 | IncompatFeature.INLINE_DATA), "incompatible features .*INLINE_DATA"),
        (changed(feature_incompat=0x242 | IncompatFeature.ENCRYPT), "incompatible features"),
        (changed(feature_incompat=0x242 | 0x40000000), "incompatible features"),
        (changed(feature_incompat=0x242 | IncompatFeature.RECOVER), "the journal must be replayed first"),
        (changed(feature_ro_compat=RoCompatFeature.BIGALLOC), "bigalloc"),
        (changed(log_block_size=0), "block size is 1024"),
        (changed(log_block_size=0xFFFFFFFF), "only 4096 is supported"),
        (changed(rev_level=0), "revision 0"),
        (changed(checksum_type=2), "checksum type is 2"),
    ],
)
def test_unsupported_super_block(device: MemoryBlockDevice, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        FileSystem(device)


@pytest.mark.parametrize(
    ("offset", "words"),
    [
        (SUPER_OFFSET + 0x60, "SuperBlock at byte 1024: checksum is"),
        (4096 + 8, "GroupDescriptor 0 at byte 4096: checksum is"),
    ],
)
def test_damaged_bytes(offset: int, words: str) -> None:
    device = formatted()
    device.write(offset, bytes((device.read(offset, 1)[0] ^ 1,)))
    with pytest.raises(CorruptError, match=words):
        FileSystem(device)


@pytest.mark.parametrize("inode", [0, 1 << 32, 4097])
def test_inode_that_is_not_there(file_system: FileSystem, inode: int) -> None:
    with pytest.raises(CorruptError, match=f"inode {inode}: the file system has 4096"):
        file_system.node(inode)
