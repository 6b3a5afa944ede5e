from __future__ import annotations

import pytest

from imgstore.blocks import MemoryBlockDevice
from imgstore.errors import InvalidError
from imgstore.ext4.check import check_file_system
from imgstore.ext4.format import MAXIMUM_SIZE, MINIMUM_SIZE, format_file_system
from imgstore.ext4.reader import FileSystem
from imgstore.ext4.structures import BLOCK_SIZE, JOURNAL_INODE
from tests.ext4_layers import contents, formatted, paths

GIB = 1 << 30
SIZES = [MINIMUM_SIZE, MINIMUM_SIZE + 65536, 128 << 20, (128 << 20) + 65536, GIB - 65536, GIB, 8 * GIB + 65536, 32 * GIB]


@pytest.mark.parametrize("size", SIZES)
def test_is_empty_and_sound(size: int) -> None:
    device = formatted(size)
    file_system = FileSystem(device)
    assert file_system.geometry.blocks * BLOCK_SIZE == size
    assert paths(file_system) == []
    assert list(check_file_system(device)) == []


@pytest.mark.parametrize("size", [MINIMUM_SIZE, 32 * GIB])
def test_same_size_same_bytes(size: int) -> None:
    assert contents(formatted(size)) == contents(formatted(size))


@pytest.mark.parametrize(("size", "grains"), [(MINIMUM_SIZE, 2), (32 * GIB, 4), (256 * GIB, 10), (MAXIMUM_SIZE, 28)])
def test_writes_a_handful_of_grains(size: int, grains: int) -> None:
    assert len(contents(formatted(size))) <= grains


def test_free_blocks_are_one_run() -> None:
    groups = FileSystem(formatted(32 * GIB)).groups
    free = groups.free_blocks
    partly = [group for group, count in enumerate(free) if 0 < count < 32768]
    assert len(partly) == 1
    assert free == sorted(free)


@pytest.mark.parametrize("size", [0, MINIMUM_SIZE - 65536, MINIMUM_SIZE + 4096, MAXIMUM_SIZE + 65536])
def test_sizes_that_are_refused(size: int) -> None:
    device = MemoryBlockDevice(size)
    with pytest.raises(InvalidError, match=f"a file system of {size} bytes: the size must be a multiple of 65536"):
        format_file_system(device)
    assert contents(device) == {}


def test_own_uuid() -> None:
    """What tells two file systems apart, and what hangs on it: checksums, the journal's name for its user, the order of names."""
    one, other = MemoryBlockDevice(MINIMUM_SIZE), MemoryBlockDevice(MINIMUM_SIZE)
    format_file_system(one, uuid=bytes(range(16)))
    format_file_system(other, uuid=bytes(range(1, 17)))
    file_system = FileSystem(one)
    assert file_system.super_block.uuid == bytes(range(16))
    assert list(check_file_system(one)) == []
    assert file_system.super_block.hash_seed != FileSystem(other).super_block.hash_seed
    assert file_system.geometry.checksum_seed != FileSystem(other).geometry.checksum_seed
    (journal,) = file_system.runs(file_system.node(JOURNAL_INODE))
    assert one.read(journal.physical * BLOCK_SIZE + 0x30, 16) == bytes(range(16))
    again = MemoryBlockDevice(MINIMUM_SIZE)
    format_file_system(again, uuid=bytes(range(16)))
    assert contents(again) == contents(one)


@pytest.mark.parametrize("uuid", [b"", bytes(16), b"short", bytes(range(17))])
def test_no_uuid(uuid: bytes) -> None:
    device = MemoryBlockDevice(MINIMUM_SIZE)
    with pytest.raises(InvalidError, match="it must have 16 bytes, not all zero"):
        format_file_system(device, uuid=uuid)
    assert contents(device) == {}
