from __future__ import annotations

import pytest

from imgstore.blocks import BlockDevice, MemoryBlockDevice
from imgstore.errors import InvalidError, UnsupportedError
from imgstore.ext4.check import check_file_system
from imgstore.ext4.format import MAXIMUM_SIZE
from imgstore.ext4.geometry import SUPER_OFFSET, read_super_block, write_super_block
from imgstore.ext4.groups import TABLE_BLOCK
from imgstore.ext4.grow import grow_file_system
from imgstore.ext4.reader import FileSystem
from imgstore.ext4.structures import BLOCK_SIZE, CompatFeature, IncompatFeature, SuperBlock
from tests.ext4_layers import EVERY_STRUCTURE, MIB, apply_layer, contents, formatted, regular
from tests.property.ext4_model import describe_file_system

GIB = 1 << 30
GROUP = 128 * MIB


def larger(device: BlockDevice, size: int) -> MemoryBlockDevice:
    """A copy of ``device`` with zeros behind it."""
    copy = MemoryBlockDevice(size)
    for offset, data in contents(device).items():
        copy.write(offset, data)
    return copy


def grown(device: BlockDevice, size: int) -> MemoryBlockDevice:
    """Such a copy, the file system grown and proved."""
    copy = larger(device, size)
    grow_file_system(copy)
    assert list(check_file_system(copy)) == []
    return copy


def filled(size: int) -> MemoryBlockDevice:
    """Every structure, and not one block or more is free."""
    device = formatted(size)
    apply_layer(device, EVERY_STRUCTURE)
    free = FileSystem(device).super_block.free_blocks_count_lo
    apply_layer(device, [regular(b"rest", b"r" * (4096 * (free - 1)))])
    return device


@pytest.fixture(scope="module")
def full() -> MemoryBlockDevice:
    return filled(64 * MIB)


def inodes(device: BlockDevice, count: int) -> bytes:
    """The raw inodes of the first ``count`` numbers."""
    groups = FileSystem(device).groups
    return b"".join(device.read(groups.inode_offset(number), 256) for number in range(1, count + 1))


@pytest.mark.parametrize(
    "sizes",
    [
        [64 * MIB + 65536],
        [128 * MIB, GIB, 20 * GIB, MAXIMUM_SIZE],
        [MAXIMUM_SIZE],
        # One block of descriptors, three, and one more for one group: the inode table of group 0 leaves a hole in their way.
        [384 * GROUP, 385 * GROUP, 600 * GROUP, MAXIMUM_SIZE],
    ],
)
def test_grows_when_full(full: MemoryBlockDevice, sizes: list[int]) -> None:
    expected, raw = describe_file_system(FileSystem(full)), inodes(full, 300)
    device = full
    for size in sizes:
        free = FileSystem(device).super_block.free_blocks_count_lo
        device = grown(device, size)
        file_system = FileSystem(device)
        assert file_system.geometry.blocks * BLOCK_SIZE == size
        assert file_system.super_block.free_blocks_count_lo > free
    assert describe_file_system(FileSystem(device)) == expected
    assert inodes(device, 300) == raw
    apply_layer(device, [regular(b"more", b"m" * 20_000)])
    assert list(check_file_system(device)) == []


def test_nothing_to_grow(full: MemoryBlockDevice) -> None:
    copy = larger(full, 64 * MIB)
    grow_file_system(copy)
    assert contents(copy) == contents(full)


@pytest.mark.parametrize("more", [65536, MIB])
def test_a_group_that_costs_more_than_it_gives_is_left_out(more: int) -> None:
    device = formatted(128 * MIB)
    copy = larger(device, 128 * MIB + more)
    grow_file_system(copy)
    assert contents(copy) == contents(device)
    again = grown(copy, 132 * MIB)
    assert FileSystem(again).geometry.blocks * BLOCK_SIZE == 132 * MIB


def test_writes_a_handful_of_grains() -> None:
    device = formatted(64 * MIB)
    before = contents(device)
    after = contents(grown(device, MAXIMUM_SIZE))
    assert sum(before.get(offset) != data for offset, data in after.items()) <= 30


@pytest.mark.parametrize("size", [128 * MIB + 4096, MAXIMUM_SIZE + 65536])
def test_sizes_that_are_refused(full: MemoryBlockDevice, size: int) -> None:
    with pytest.raises(InvalidError, match=f"a file system of {size} bytes: the size must be a multiple of 65536 up to"):
        grow_file_system(larger(full, size))


def alter(device: MemoryBlockDevice, **fields: object) -> MemoryBlockDevice:
    super_block = read_super_block(device)
    for name, value in fields.items():
        setattr(super_block, name, value)
    device.write(SUPER_OFFSET, write_super_block(super_block))
    return device


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"feature_incompat": SuperBlock().feature_incompat | IncompatFeature.RECOVER | 0x2242}, "the journal must be replayed"),
        ({"state": 3}, "state is 3"),
        ({"backup_bgs": (1, 0)}, "cannot grow"),
        ({"feature_compat": CompatFeature.DIR_INDEX | CompatFeature.HAS_JOURNAL}, "cannot grow"),
    ],
)
def test_file_systems_that_are_refused(full: MemoryBlockDevice, fields: dict[str, object], words: str) -> None:
    device = alter(larger(full, 128 * MIB), **fields)
    before = contents(device)
    with pytest.raises(UnsupportedError, match=words) as caught:
        grow_file_system(device)
    assert caught.value.hint
    assert contents(device) == before


def test_files_in_the_way_of_the_descriptors() -> None:
    """Not where we would put them: refused, and untouched."""
    device = formatted(64 * MIB)
    file_system = FileSystem(device)
    groups = file_system.groups
    table, size = groups.inode_table[0] * BLOCK_SIZE, file_system.geometry.inode_table_blocks * BLOCK_SIZE
    place = 2000
    device.write(place * BLOCK_SIZE, device.read(table, size))
    device.write(table, bytes(size))
    groups.inode_table[0] = place
    device.write(TABLE_BLOCK * BLOCK_SIZE, groups.descriptor(0))
    copy = larger(device, 1000 * GROUP)
    before = contents(copy)
    with pytest.raises(UnsupportedError, match=r"files have 5 of them"):
        grow_file_system(copy)
    assert contents(copy) == before
