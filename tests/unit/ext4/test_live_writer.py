"""The writer on a file system in use: times as the kernel sets them, free places among the used ones first."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from imgstore.blocks import MemoryBlockDevice
from imgstore.changes import Change, FileType, HardLink
from imgstore.ext4.allocation import FileSystemFullError
from imgstore.ext4.check import check_file_system
from imgstore.ext4.inodes import decode_time
from imgstore.ext4.reader import FileSystem
from imgstore.ext4.structures import Inode
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
