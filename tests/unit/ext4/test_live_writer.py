"""The writer on a file system in use: times as the kernel sets them, free places among the used ones first."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from imgstore.blocks import MemoryBlockDevice
from imgstore.changes import Change, FileType, HardLink, Opaque
from imgstore.errors import InvalidError, UnsupportedError
from imgstore.ext4 import checksums
from imgstore.ext4.allocation import FileSystemFullError
from imgstore.ext4.check import check_file_system
from imgstore.ext4.geometry import SUPER_OFFSET, read_super_block, write_super_block
from imgstore.ext4.inodes import decode_time
from imgstore.ext4.reader import FileSystem
from imgstore.ext4.structures import CompatFeature, Inode, RoCompatFeature
from imgstore.ext4.writer import LayerWriter
from tests.ext4_layers import (
    EVERY_STRUCTURE,
    MIB,
    MTIME,
    apply_layer,
    content,
    contents,
    device_node,
    directory,
    formatted,
    regular,
    symlink,
)

NOW = 1_790_000_000_987_654_321


def change_live(device: MemoryBlockDevice, changes: Iterable[Change], now_ns: int = NOW) -> None:
    writer = LayerWriter(device, now_ns=now_ns)
    for change in changes:
        writer.apply(change)
    writer.finish()
    assert list(check_file_system(device)) == []


def times(device: MemoryBlockDevice, path: bytes) -> tuple[int, int, int, int]:
    """Access, change, modification and creation."""
    file_system = FileSystem(device)
    inode = Inode.from_bytes(device.read(file_system.groups.inode_offset(file_system.lookup(path).number), 256))
    return (
        decode_time(inode.atime, inode.atime_extra),
        decode_time(inode.ctime, inode.ctime_extra),
        decode_time(inode.mtime, inode.mtime_extra),
        decode_time(inode.crtime, inode.crtime_extra),
    )


@pytest.fixture
def device() -> MemoryBlockDevice:
    device = formatted()
    apply_layer(device, [directory(b""), directory(b"d"), *EVERY_STRUCTURE])
    return device


@pytest.mark.parametrize(
    "entry", [regular(b"new", b"x"), symlink(b"new", b"t"), device_node(b"new", FileType.FIFO), directory(b"new")]
)
def test_a_new_file_is_of_now_and_has_its_mtime(device: MemoryBlockDevice, entry: Change) -> None:
    change_live(device, [entry])
    assert times(device, b"new") == (NOW, NOW, MTIME, NOW)
    assert times(device, b"") == (MTIME, NOW, NOW, MTIME)


def test_implied_directories_are_of_now(device: MemoryBlockDevice) -> None:
    change_live(device, [regular(b"a/b/c")])
    assert times(device, b"a") == times(device, b"a/b") == (NOW, NOW, NOW, NOW)


def test_a_stated_directory_keeps_its_mtime(device: MemoryBlockDevice) -> None:
    """As tar sets it, after all that is in it."""
    change_live(device, [directory(b"d", mtime_ns=5), regular(b"d/new")])
    assert times(device, b"d") == (MTIME, NOW, 5, MTIME)


def test_a_directory_stated_as_it_is_gets_a_name(device: MemoryBlockDevice) -> None:
    change_live(device, [directory(b"d"), regular(b"d/new")])
    assert times(device, b"d") == (MTIME, NOW, MTIME, MTIME)


def test_nothing_changes_what_is_said_again(device: MemoryBlockDevice) -> None:
    before = contents(device)
    change_live(device, [directory(b"d"), HardLink(b"d/link", b"d/file")])
    assert contents(device) == before


def test_links_change_the_ctime(device: MemoryBlockDevice) -> None:
    change_live(device, [HardLink(b"more", b"fast")])
    assert times(device, b"fast") == (MTIME, NOW, MTIME, MTIME)
    change_live(device, [regular(b"d/file")], NOW + 1)
    assert times(device, b"d/link") == (MTIME, NOW + 1, MTIME, MTIME)
    assert times(device, b"d/file") == (NOW + 1, NOW + 1, MTIME, NOW + 1)


def test_a_file_written_again_and_again_stays_in_front() -> None:
    """What was freed is used again before the disk below must grow for long."""
    device = formatted(256 * MIB)
    apply_layer(device, [regular(b"first", b"f" * MIB)])
    for number in range(20):
        change_live(device, [regular(b"file", bytes((number + 1,)) * MIB)], NOW + number)
    file_system = FileSystem(device)
    first = next(file_system.runs(file_system.lookup(b"first"))).physical
    (run,) = file_system.runs(file_system.lookup(b"file"))
    assert run.physical - first < 4096
    assert content(file_system, b"file") == bytes((20,)) * MIB


def test_freed_inodes_are_taken_first(device: MemoryBlockDevice) -> None:
    number = FileSystem(device).lookup(b"d/other").number
    change_live(device, [HardLink(b"d/other", b"fast")])
    change_live(device, [regular(b"one more", b"new")])
    assert FileSystem(device).lookup(b"one more").number == number


def test_big_files_get_long_runs_where_holes_are_many() -> None:
    device = formatted(128 * MIB)
    apply_layer(device, [regular(b"%d" % number, b"x" * 8192) for number in range(2000)])
    change_live(device, [regular(b"%d" % number) for number in range(0, 2000, 2)])
    change_live(device, [regular(b"big", b"b" * (40 * MIB))])
    file_system = FileSystem(device)
    assert len(list(file_system.runs(file_system.lookup(b"big")))) <= 3
    free = file_system.super_block.free_blocks_count_lo
    change_live(device, [regular(b"rest", b"r" * (4096 * (free - 64)))])
    assert len(list(FileSystem(device).runs(FileSystem(device).lookup(b"rest")))) > 500


def test_full_says_how_full(device: MemoryBlockDevice) -> None:
    free = FileSystem(device).super_block.free_blocks_count_lo
    writer = LayerWriter(device, now_ns=NOW)
    with pytest.raises(FileSystemFullError, match=r"^big: no block is free: \d+ of 16384 blocks are used$"):
        writer.apply(regular(b"big", b"x" * (4096 * (free + 1))))


def test_a_file_is_replaced_on_a_full_disk(device: MemoryBlockDevice) -> None:
    free = FileSystem(device).super_block.free_blocks_count_lo
    apply_layer(device, [regular(b"big", b"x" * (4096 * free))])
    change_live(device, [regular(b"big", b"y" * (4096 * free))])
    assert FileSystem(device).super_block.free_blocks_count_lo == 0
    assert set(content(FileSystem(device), b"big")) == {ord("y")}


def place(device: MemoryBlockDevice, path: bytes) -> list[int]:
    """The blocks of a directory."""
    file_system = FileSystem(device)
    return [run.physical + number for run in file_system.runs(file_system.lookup(path)) for number in range(run.length)]


def names(device: MemoryBlockDevice, path: bytes) -> set[bytes]:
    file_system = FileSystem(device)
    return {name for name, _, _ in file_system.list_directory(file_system.lookup(path))}


@pytest.mark.parametrize(("count", "length"), [(10, 20), (3000, 20), (9000, 250)])
def test_a_directory_stays_where_it_is(count: int, length: int) -> None:
    """One block, an index of one level, an index of two: a name changes one of its blocks."""
    device = formatted(256 * MIB)
    first = [(b"%d-" % number).ljust(length, b"x") for number in range(count)]
    apply_layer(device, [regular(b"d/" + name) for name in first])
    blocks = place(device, b"d")
    before = [device.read(block * 4096, 4096) for block in blocks]
    change_live(device, [regular(b"d/new"), HardLink(b"other/moved", b"d/" + first[3]), regular(b"d/" + first[3])])
    assert place(device, b"d") == blocks
    assert names(device, b"d") == {*first, b"new"}
    changed = [block for block, data in zip(blocks, before, strict=True) if device.read(block * 4096, 4096) != data]
    assert 1 <= len(changed) <= 2
    assert FileSystem(device).lookup(b"d/" + first[3]).links == 1


def test_a_directory_is_written_anew_when_a_block_is_full() -> None:
    device = formatted()
    first = [(b"%d-" % number).ljust(200, b"x") for number in range(300)]
    apply_layer(device, [regular(b"d/" + name) for name in first])
    blocks = place(device, b"d")
    more = [(b"more-%d-" % number).ljust(200, b"x") for number in range(150)]
    change_live(device, [regular(b"d/" + name) for name in more])
    assert len(place(device, b"d")) > len(blocks)
    assert names(device, b"d") == {*first, *more}


def test_a_directory_is_written_anew_when_a_block_gets_empty() -> None:
    device = formatted()
    apply_layer(device, [regular(b"d/" + (b"%d-" % number).ljust(200, b"x")) for number in range(300)])
    change_live(device, [Opaque(b"d"), regular(b"d/only")])
    assert names(device, b"d") == {b"only"}
    assert len(place(device, b"d")) == 1


def change_inode(device: MemoryBlockDevice, path: bytes, **fields: object) -> None:
    file_system = FileSystem(device)
    number = file_system.lookup(path).number
    offset = file_system.groups.inode_offset(number)
    inode = Inode.from_bytes(device.read(offset, 256))
    for name, value in fields.items():
        setattr(inode, name, value)
    assert file_system.geometry.checksum_seed is not None
    checksum = checksums.inode(file_system.geometry.checksum_seed, number, inode.to_bytes())
    inode.checksum_lo, inode.checksum_hi = checksum & 0xFFFF, checksum >> 16
    device.write(offset, inode.to_bytes())


def test_smaller_extra_fields_stay_until_attributes_are_replaced() -> None:
    """Inodes that old programs made have 28 bytes; xattrs begin 4 bytes earlier."""
    device = formatted()
    apply_layer(device, [directory(b"d", xattrs={b"user.a": b"before"})])
    raw = Inode.from_bytes(device.read(FileSystem(device).groups.inode_offset(FileSystem(device).lookup(b"d").number), 256))
    area = raw.to_bytes()[0xA0:] + bytes(4)
    change_inode(device, b"d", extra_isize=28, projid=int.from_bytes(area[:4], "little"), xattrs=area[4:])
    value = FileSystem(device).status(FileSystem(device).lookup(b"d")).xattrs
    assert value == {b"user.a": b"before"}
    change_live(device, [regular(b"d/new")])
    assert times(device, b"d") == (MTIME, NOW, NOW, MTIME)
    assert FileSystem(device).status(FileSystem(device).lookup(b"d")).xattrs == value
    change_live(device, [directory(b"d", xattrs={b"user.a": b"after", b"user.b": b"b" * 200})])
    assert dict(FileSystem(device).status(FileSystem(device).lookup(b"d")).xattrs) == {b"user.a": b"after", b"user.b": b"b" * 200}


def test_extra_fields_that_are_not_known_stay() -> None:
    device = formatted()
    apply_layer(device, [directory(b"d")])
    change_inode(device, b"d", extra_isize=36, xattrs=b"new!" + bytes(92))
    change_live(device, [regular(b"d/new")])
    number = FileSystem(device).lookup(b"d").number
    assert device.read(FileSystem(device).groups.inode_offset(number) + 0xA0, 4) == b"new!"
    with pytest.raises(UnsupportedError, match=f"inode {number}: extra fields of 36 bytes"):
        change_live(device, [directory(b"d", xattrs={b"user.a": b"b"})])


def test_no_room_for_times() -> None:
    device = formatted()
    apply_layer(device, [directory(b"d")])
    change_inode(device, b"d", extra_isize=4)
    with pytest.raises(UnsupportedError, match="extra fields of 4 bytes, at least 28"):
        change_live(device, [regular(b"d/new")])


def without(device: MemoryBlockDevice, field: str, feature: int) -> None:
    super_block = read_super_block(device)
    setattr(super_block, field, getattr(super_block, field) & ~feature)
    device.write(SUPER_OFFSET, write_super_block(super_block))


def test_more_directories_than_links_can_count() -> None:
    device = formatted(2048 * MIB)
    without(device, "feature_ro_compat", RoCompatFeature.DIR_NLINK)
    with pytest.raises(InvalidError, match=r"65000 directories in it, without dir_nlink ext4 allows 64998"):
        change_live(device, [directory(b"d/%d" % number) for number in range(65_000)])


def test_without_index_nothing_is_written() -> None:
    device = formatted()
    without(device, "feature_compat", CompatFeature.DIR_INDEX)
    with pytest.raises(UnsupportedError, match="cannot write without dir_index"):
        LayerWriter(device, now_ns=NOW)
