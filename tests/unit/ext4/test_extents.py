from __future__ import annotations

import pytest

from imgstore.errors import CorruptError
from imgstore.ext4.extents import EMPTY_ROOT, ExtentTree, Run, encode_extents, single_root
from imgstore.ext4.structures import EXTENT, EXTENT_HEADER, EXTENT_INDEX

SEED = 5


class Blocks:
    """Blocks that a tree was given, by number."""

    def __init__(self) -> None:
        self.stored: dict[int, bytes] = {}

    def allocate(self, blocks: list[bytes]) -> list[int]:
        numbers = [1000 + len(self.stored) + number for number in range(len(blocks))]
        self.stored.update(zip(numbers, blocks, strict=True))
        return numbers

    def tree(self, root: bytes, limit: int = 1 << 40) -> ExtentTree:
        return ExtentTree("inode 12", root, SEED, limit, self.stored.__getitem__)


def spread(count: int) -> list[Run]:
    return [Run(2 * number, 5000 + 3 * number, 1) for number in range(count)]


@pytest.mark.parametrize(("count", "blocks"), [(0, 0), (1, 0), (4, 0), (5, 1), (340, 1), (341, 2), (1361, 6), (20_000, 60)])
def test_round_trip(count: int, blocks: int) -> None:
    disk = Blocks()
    root, used = encode_extents(spread(count), SEED, disk.allocate)
    assert len(root) == 60
    assert used == blocks == len(disk.stored)
    tree = disk.tree(root)
    assert list(tree) == spread(count)
    assert sorted(tree.blocks) == sorted(disk.stored)
    assert list(tree) == spread(count)


def test_long_runs_are_split() -> None:
    disk = Blocks()
    root, _ = encode_extents([Run(0, 1 << 33, 70_000)], SEED, disk.allocate)
    assert list(disk.tree(root)) == [
        Run(0, 1 << 33, 32768),
        Run(32768, (1 << 33) + 32768, 32768),
        Run(65536, (1 << 33) + 65536, 4464),
    ]


def test_single_root_is_what_the_encoder_makes() -> None:
    assert single_root(77, 5) == encode_extents([Run(0, 77, 5)], SEED, Blocks().allocate)[0]
    assert encode_extents([], SEED, Blocks().allocate)[0] == EMPTY_ROOT


def test_unwritten() -> None:
    root = EXTENT_HEADER.pack(0xF30A, 1, 4, 0, 0) + EXTENT.pack(3, 32768 + 9, 0, 100) + bytes(36)
    assert list(Blocks().tree(root)) == [Run(3, 100, 9, True)]


def leaf(
    *extents: tuple[int, int, int, int], magic: int = 0xF30A, entries: int | None = None, maximum: int = 4, depth: int = 0
) -> bytes:
    head = EXTENT_HEADER.pack(magic, len(extents) if entries is None else entries, maximum, depth, 0)
    return (head + b"".join(EXTENT.pack(*extent) for extent in extents)).ljust(60, b"\0")


@pytest.mark.parametrize(
    ("root", "words"),
    [
        (leaf(magic=0), "magic 0x0000"),
        (leaf(entries=5), "5 of at most 4 entries"),
        (leaf(entries=5, maximum=5), "5 of at most 5 entries"),
        (leaf(depth=6), "depth 6"),
        (leaf((0, 0, 0, 100)), "extent of 0 blocks"),
        (leaf((0, 2, 0, 999_999)), "extent of 2 blocks at block 999999"),
        (leaf((0, 2, 1, 0)), "extent of 2 blocks at block 4294967296"),
        (leaf((0, 2, 0, 0)), "extent of 2 blocks at block 0"),
        (leaf((5, 2, 0, 100), (6, 1, 0, 200)), "for logical block 6, after 7"),
        (leaf((0xFFFFFFFF, 2, 0, 100)), "extent of 2 blocks"),
    ],
)
def test_damaged_root(root: bytes, words: str) -> None:
    with pytest.raises(CorruptError, match=f"inode 12: .*{words}"):
        list(Blocks().tree(root, limit=1_000_000))


@pytest.mark.parametrize("position", [0, 2, 4, 6, 12, 16, 500, 4092])
def test_damaged_block(position: int) -> None:
    disk = Blocks()
    root, _ = encode_extents(spread(340), SEED, disk.allocate)
    damaged = bytearray(disk.stored[1000])
    damaged[position] ^= 1
    disk.stored[1000] = bytes(damaged)
    with pytest.raises(CorruptError, match="inode 12: extent block 1000 at byte 4096000"):
        list(disk.tree(root))


def test_a_tree_that_contains_itself() -> None:
    node = EXTENT_HEADER.pack(0xF30A, 2, 340, 4, 0) + EXTENT_INDEX.pack(0, 7, 0, 0) + EXTENT_INDEX.pack(0, 7, 0, 0)
    root = EXTENT_HEADER.pack(0xF30A, 1, 4, 5, 0) + EXTENT_INDEX.pack(0, 7, 0, 0) + bytes(36)
    with pytest.raises(CorruptError, match="entry 0 points to block 7"):
        list(ExtentTree("inode 12", root, None, 1000, lambda block: node.ljust(4096, b"\0")))
