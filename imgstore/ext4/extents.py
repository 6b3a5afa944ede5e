"""Extents: which blocks of a file lie where (``fs/ext4/ext4_extents.h``).

Four fit into the inode; more make a tree of blocks of 340.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from imgstore.errors import CorruptError
from imgstore.ext4 import checksums
from imgstore.ext4.structures import BLOCK_SIZE, EXTENT, EXTENT_HEADER, EXTENT_INDEX, EXTENT_MAGIC

INLINE = 4
PER_BLOCK = (BLOCK_SIZE - 12) // 12
_TAIL = 12 + PER_BLOCK * 12
LONGEST = 32768
"""Blocks of one extent; a longer length says that it is unwritten."""

MAXIMUM_DEPTH = 5


class Run(NamedTuple):
    """``length`` blocks of a file that lie side by side. ``physical`` of an unwritten run is allocated but reads as zeros."""

    logical: int
    physical: int
    length: int
    unwritten: bool = False


EMPTY_ROOT = EXTENT_HEADER.pack(EXTENT_MAGIC, 0, INLINE, 0, 0) + bytes(48)
_ONE = EXTENT_HEADER.pack(EXTENT_MAGIC, 1, INLINE, 0, 0)
_REST = bytes(36)


def single_root(physical: int, count: int) -> bytes:
    """The 60 bytes of an inode whose blocks are one run of at most ``LONGEST``."""
    return _ONE + EXTENT.pack(0, count, physical >> 32, physical & 0xFFFFFFFF) + _REST


def encode_extents(runs: Sequence[Run], seed: int, allocate: Callable[[list[bytes]], list[int]]) -> tuple[bytes, int]:
    """The 60 bytes for the inode, and how many blocks the tree takes beside it.

    Args:
        runs: ascending and disjoint, of any length, all written.
        seed: of the inode's checksums.
        allocate: puts blocks on the disk and says where.
    """
    records: list[tuple[int, bytes]] = []
    for run in runs:
        logical, physical, left = run.logical, run.physical, run.length
        while left:
            take = min(left, LONGEST)
            records.append((logical, EXTENT.pack(logical, take, physical >> 32, physical & 0xFFFFFFFF)))
            logical, physical, left = logical + take, physical + take, left - take
    depth = 0
    used = 0
    while len(records) > INLINE:
        nodes = [records[start : start + PER_BLOCK] for start in range(0, len(records), PER_BLOCK)]
        blocks = allocate([_encode_node(node, depth, seed) for node in nodes])
        used += len(blocks)
        records = [
            (node[0][0], EXTENT_INDEX.pack(node[0][0], block & 0xFFFFFFFF, block >> 32, 0))
            for node, block in zip(nodes, blocks, strict=True)
        ]
        depth += 1
    body = b"".join(record for _, record in records)
    return EXTENT_HEADER.pack(EXTENT_MAGIC, len(records), INLINE, depth, 0) + body.ljust(48, b"\0"), used


def _encode_node(records: list[tuple[int, bytes]], depth: int, seed: int) -> bytes:
    body = EXTENT_HEADER.pack(EXTENT_MAGIC, len(records), PER_BLOCK, depth, 0) + b"".join(record for _, record in records)
    body = body.ljust(_TAIL, b"\0")
    return body + checksums.update(seed, body).to_bytes(4, "little")


class ExtentTree:
    """Reads the extents of one inode.

    Attributes:
        blocks: the blocks of the tree itself, of those nodes that were read so far.
    """

    def __init__(self, what: str, root: bytes, seed: int | None, limit: int, read_block: Callable[[int], bytes]) -> None:
        """``limit`` is the number of blocks of the file system; ``seed`` None means that nodes have no checksum."""
        self._what = what
        self._root = root
        self._seed = seed
        self._limit = limit
        self._read_block = read_block
        self._next = 0
        self.blocks: list[int] = []

    def __iter__(self) -> Iterator[Run]:
        """The runs, ascending.

        Raises:
            CorruptError: a node is damaged, a run lies outside the file system, or the tree is no tree.
        """
        self._next = 0
        self.blocks = []
        seen: set[int] = set()
        return self._node(self._root, None, INLINE, f"{self._what}: extent tree in the inode", seen)

    def _node(self, data: bytes, depth: int | None, room: int, where: str, seen: set[int]) -> Iterator[Run]:
        magic, entries, maximum, level, _ = EXTENT_HEADER.unpack_from(data)
        if magic != EXTENT_MAGIC or entries > maximum or maximum > room or level > MAXIMUM_DEPTH:
            raise CorruptError(f"{where}: magic 0x{magic:04x}, {entries} of at most {maximum} entries, depth {level}")
        if depth is not None and level != depth:
            raise CorruptError(f"{where}: depth is {level}, its parent says {depth}")
        if level == 0:
            for number in range(entries):
                yield self._run(data, 12 + 12 * number, where)
            return
        for number in range(entries):
            logical, low, high, _ = EXTENT_INDEX.unpack_from(data, 12 + 12 * number)
            block = low | high << 32
            if logical < self._next or not 0 < block < self._limit or block in seen:
                raise CorruptError(f"{where}: entry {number} points to block {block} for logical block {logical}")
            seen.add(block)
            self.blocks.append(block)
            child = f"{self._what}: extent block {block} at byte {block * BLOCK_SIZE}"
            node = self._read_block(block)
            if self._seed is not None:
                tail = 12 + 12 * min(int.from_bytes(node[4:6], "little"), PER_BLOCK)
                expected = checksums.update(self._seed, node[:tail])
                found = int.from_bytes(node[tail : tail + 4], "little")
                if found != expected:
                    raise CorruptError(f"{child}: checksum is 0x{found:08x}, the bytes give 0x{expected:08x}")
            yield from self._node(node, level - 1, PER_BLOCK, child, seen)

    def _run(self, data: bytes, offset: int, where: str) -> Run:
        logical, length, high, low = EXTENT.unpack_from(data, offset)
        physical = low | high << 32
        unwritten = length > LONGEST
        count = length - LONGEST if unwritten else length
        if not count or logical < self._next or not 0 < physical <= self._limit - count or logical + count > 1 << 32:
            raise CorruptError(
                f"{where}: extent of {count} blocks at block {physical} for logical block {logical}, after {self._next}"
            )
        self._next = logical + count
        return Run(logical, physical, count, unwritten)
