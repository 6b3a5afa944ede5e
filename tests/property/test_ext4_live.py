"""File systems in use against a dict of files: changed again and again where there is little room, and grown by any size."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st

from imgstore.blocks import MemoryBlockDevice
from imgstore.changes import Change, FileType, Whiteout
from imgstore.ext4.check import check_file_system
from imgstore.ext4.format import MAXIMUM_SIZE, SIZE_MULTIPLE
from imgstore.ext4.grow import grow_file_system
from imgstore.ext4.reader import FileSystem
from imgstore.ext4.structures import BLOCK_SIZE
from imgstore.ext4.writer import LayerWriter
from tests.ext4_layers import MIB, apply_layer, contents, formatted, regular
from tests.property.ext4_model import LAYERS, File, Tree, apply_model, describe_file_system, describe_model

GROUP = 128 * MIB
NOW = 1_790_000_000 * 10**9


@cache
def fragmented() -> dict[int, bytes]:
    """The pages of a file system in which nothing is free but single blocks, and inodes between those of one directory."""
    device = formatted()
    names = [b"rest/%d" % number for number in range(300)]
    apply_layer(device, [regular(name, b"r" * 4096) for name in names])
    free = FileSystem(device).super_block.free_blocks_count_lo
    apply_layer(device, [regular(b"rest/big", b"r" * (4096 * (free - 4)))])
    apply_layer(device, [Whiteout(name) for name in names[::2]])
    return contents(device)


def copy_of(pages: dict[int, bytes], size: int) -> MemoryBlockDevice:
    device = MemoryBlockDevice(size)
    for offset, data in pages.items():
        device.write(offset, data)
    return device


def without_mtime(rows: dict[bytes, tuple[object, ...]]) -> dict[bytes, tuple[object, ...]]:
    """All but the root, directories without their mtimes: those are of now or of an Entry."""
    return {path: (*row[:3], *row[4:]) if row[0] is FileType.DIRECTORY else row for path, row in rows.items() if path}


@settings(max_examples=30)
@given(LAYERS)
def test_written_where_only_holes_are_left(layers: Sequence[Sequence[Change]]) -> None:
    device = copy_of(fragmented(), 64 * MIB)
    tree: Tree = {b"": File(FileType.DIRECTORY, 0o755)}
    for number, layer in enumerate(layers):
        writer = LayerWriter(device, now_ns=NOW + number)
        for change in apply_model(tree, layer):
            writer.apply(change)
        writer.finish()
        assert list(check_file_system(device)) == []
    assert without_mtime(describe_file_system(FileSystem(device), without=b"rest")) == without_mtime(describe_model(tree))


def first_inodes(device: MemoryBlockDevice) -> bytes:
    """As they lie on the disk; they are in one table."""
    return device.read(FileSystem(device).groups.inode_offset(1), 100 * 256)


SIZES = st.one_of(
    st.integers(64 * MIB, GROUP * 3),
    st.integers(64 * MIB, MAXIMUM_SIZE),
    st.builds(lambda groups, more: groups * GROUP + more, st.integers(1, 2000), st.integers(-4 * MIB, 4 * MIB)),
).map(lambda size: max(size // SIZE_MULTIPLE * SIZE_MULTIPLE, 64 * MIB))


@settings(max_examples=30)
@given(LAYERS, st.lists(SIZES, min_size=2, max_size=4, unique=True).map(sorted))
def test_grown_by_any_size(layers: Sequence[Sequence[Change]], sizes: list[int]) -> None:
    """Layers before, between and after: the last ones find their place as if nothing had happened."""
    device = formatted(sizes[0])
    tree: Tree = {b"": File(FileType.DIRECTORY, 0o755)}
    for number, size in enumerate(sizes):
        before = FileSystem(device)
        inodes = first_inodes(device)
        device = copy_of(contents(device), size)
        grow_file_system(device)
        after = FileSystem(device)
        left = size // BLOCK_SIZE - after.geometry.blocks
        assert 0 <= left < 2 * (after.geometry.inode_table_blocks + 2)
        assert not left or after.geometry.blocks % 32768 == 0 or after.geometry.blocks == before.geometry.blocks
        assert after.super_block.free_blocks_count_lo >= before.super_block.free_blocks_count_lo
        assert inodes == first_inodes(device)
        if number < len(layers):
            apply_layer(device, apply_model(tree, layers[number]))
        assert list(check_file_system(device)) == []
        assert describe_file_system(FileSystem(device)) == describe_model(tree)
