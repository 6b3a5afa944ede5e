"""Orphans: inodes that a kernel had removed, or was cutting, when it was stopped (``fs/ext4/orphan.c``).

The superblock names the first, the deletion time of each the next. One without links was removed while a process had it open, or in
the middle of its removal; one with links was being cut, and may have blocks behind its size.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from imgstore.blocks import WritableBlockDevice
from imgstore.changes import FileType
from imgstore.errors import CorruptError, UnsupportedError
from imgstore.ext4 import checksums
from imgstore.ext4.allocation import BlockAllocator, InodeAllocator
from imgstore.ext4.extents import INLINE, LONGEST, Run
from imgstore.ext4.features import prove_writable
from imgstore.ext4.geometry import SUPER_OFFSET, write_super_block
from imgstore.ext4.groups import BaseMetadata
from imgstore.ext4.inode_table import InodeTable
from imgstore.ext4.inode_writer import InodeWriter
from imgstore.ext4.inodes import Node
from imgstore.ext4.pages import WritablePageCache
from imgstore.ext4.reader import FileSystem
from imgstore.ext4.stream import BlockStream
from imgstore.ext4.structures import (
    BLOCK_SHIFT,
    BLOCK_SIZE,
    EXTENT,
    EXTENT_HEADER,
    EXTENT_INDEX,
    SECTORS_PER_BLOCK,
    InodeFlag,
    RoCompatFeature,
)

_HINT = "mount the file system once, or run e2fsck on it"
_WITH_BLOCKS = (FileType.REGULAR, FileType.DIRECTORY, FileType.SYMLINK)
_ROOT = slice(0x28, 0x64)
_ENTRY = 12


def list_orphans(file_system: FileSystem) -> Iterator[Node]:
    """The inodes of the list, in its order; the list is proved as it is walked.

    Raises:
        CorruptError: the list leads out of the inodes, into itself, or to an inode that is not in use.
    """
    first, inodes = file_system.geometry.first_inode, file_system.geometry.inodes
    seen: set[int] = set()
    number = file_system.super_block.last_orphan
    where = f"SuperBlock at byte {SUPER_OFFSET}"
    while number:
        if not first <= number <= inodes or number in seen:
            raise CorruptError(f"{where}: the list of orphans goes on at inode {number}, after {len(seen)} others")
        seen.add(number)
        node = file_system.node(number, orphan=True)
        yield node
        where, number = f"inode {number}", file_system.next_orphan(number)


def remove_orphans(device: WritableBlockDevice) -> bool:
    """Frees the orphans that have no links, cuts the others at their size, and empties the list. Returns whether there was one.

    After an error the file system is half changed.

    Raises:
        CorruptError: the list, an orphan or a bitmap is damaged.
        UnsupportedError: there are orphans, and the file system is of a kind that LayerWriter does not write either.
    """
    pages = WritablePageCache(device)
    file_system = FileSystem(pages)
    super_block, geometry = file_system.super_block, file_system.geometry
    where = f"SuperBlock at byte {SUPER_OFFSET}"
    if super_block.feature_ro_compat & RoCompatFeature.ORPHAN_PRESENT:
        raise UnsupportedError(f"{where}: an orphan file is not supported", hint=_HINT)
    if not super_block.last_orphan:
        return False
    orphans = list(list_orphans(file_system))
    super_block.last_orphan = 0
    try:
        prove_writable(super_block, geometry)
    except UnsupportedError as error:
        raise UnsupportedError(f"{error}; orphans start at inode {orphans[0].number}", hint=_HINT) from None
    removal = _Removal(pages, file_system)
    for node in orphans:
        if node.links:
            removal.cut(node)
        else:
            removal.files.release(node)
    removal.finish()
    return True


class _Removal:
    def __init__(self, pages: WritablePageCache, file_system: FileSystem) -> None:
        geometry, groups = file_system.geometry, file_system.groups
        assert geometry.checksum_seed is not None  # noqa: S101 - proved to be writable
        self._pages = pages
        self._file_system = file_system
        self._seed = geometry.checksum_seed
        self._blocks = BlockAllocator(pages, geometry, groups, BaseMetadata(file_system.super_block, groups), reuse=True)
        self._inodes = InodeAllocator(pages, geometry, groups, reuse=True)
        self._table = InodeTable(pages, groups, self._seed)
        stream = BlockStream(pages, self._blocks)
        self.files = InodeWriter(pages, file_system, self._blocks, self._inodes, stream, lambda offset, length: None, None)

    def cut(self, node: Node) -> None:
        """Frees what lies behind the size of a file, and zeroes the rest of its last block (``ext4_truncate``)."""
        raw = self._table.read(node.number)
        struct.pack_into("<I", raw, 0x14, 0)
        if node.type in _WITH_BLOCKS and not node.is_fast_symlink:
            runs = list(self._file_system.extent_tree(node))
            limit = -(-node.size >> BLOCK_SHIFT)
            freed = 0
            if runs and runs[-1].logical + runs[-1].length > limit:
                cut = _TreeCut(self._pages, self._blocks, checksums.inode_seed(self._seed, node.number, node.generation), limit)
                raw[_ROOT] = cut.cut_root(bytearray(raw[_ROOT]))
                freed = cut.freed
            self._zero_tail(node, runs)
            sectors = node.sectors - freed * SECTORS_PER_BLOCK
            stored = sectors // SECTORS_PER_BLOCK if node.flags & InodeFlag.HUGE_FILE else sectors
            if stored < 0:
                raise CorruptError(f"inode {node.number}: says {node.sectors} sectors, {freed} blocks behind its size are freed")
            struct.pack_into("<I", raw, 0x1C, stored & 0xFFFFFFFF)
            struct.pack_into("<H", raw, 0x74, stored >> 32)
        self._table.change(node.number, raw)

    def _zero_tail(self, node: Node, runs: Sequence[Run]) -> None:
        used = node.size % BLOCK_SIZE
        if not used:
            return
        last = node.size >> BLOCK_SHIFT
        for run in runs:
            if run.logical <= last < run.logical + run.length and not run.unwritten:
                self._pages.write(((run.physical + last - run.logical) << BLOCK_SHIFT) + used, bytes(BLOCK_SIZE - used))

    def finish(self) -> None:
        self._blocks.save()
        self._inodes.save()
        groups = self._file_system.groups
        for group in sorted(groups.changed):
            self._pages.write(groups.descriptor_offset(group), groups.descriptor(group))
        super_block = self._file_system.super_block
        super_block.free_blocks_count_lo = sum(groups.free_blocks)
        super_block.free_inodes_count = sum(groups.free_inodes)
        self._pages.write(SUPER_OFFSET, write_super_block(super_block))
        self._pages.flush()


class _TreeCut:
    """Takes all logical blocks from ``limit`` on out of an extent tree that has been read once without an error."""

    def __init__(self, pages: WritablePageCache, blocks: BlockAllocator, seed: int, limit: int) -> None:
        self._pages = pages
        self._blocks = blocks
        self._seed = seed
        self._limit = limit
        self.freed = 0

    def cut_root(self, root: bytearray) -> bytes:
        """The 60 bytes for the inode, of a tree no deeper than needed: what fits into the inode is drawn up to it."""
        if not self._cut_node(root):
            struct.pack_into("<H", root, 6, 0)
        while True:
            _, entries, _, depth, _ = EXTENT_HEADER.unpack_from(root)
            if not depth or entries > 1:
                return bytes(root)
            _, low, high, _ = EXTENT_INDEX.unpack_from(root, _ENTRY)
            block = low | high << 32
            child = self._pages.read(block * BLOCK_SIZE, BLOCK_SIZE)
            inner = int.from_bytes(child[2:4], "little")
            if inner > INLINE:
                return bytes(root)
            struct.pack_into("<HHH", root, 2, inner, INLINE, depth - 1)
            root[_ENTRY:] = child[_ENTRY : _ENTRY + _ENTRY * inner].ljust(len(root) - _ENTRY, b"\0")
            self._free(block, 1)

    def _cut_node(self, node: bytearray) -> int:
        """Changes a node, and frees and changes what is below it. Returns how many entries it still has."""
        _, entries, _, depth, _ = EXTENT_HEADER.unpack_from(node)
        kept = 0
        for number in range(entries):
            offset = _ENTRY + _ENTRY * number
            kept += self._cut_child(node, offset) if depth else self._cut_extent(node, offset)
        node[_ENTRY + _ENTRY * kept : _ENTRY + _ENTRY * entries] = bytes(_ENTRY * (entries - kept))
        struct.pack_into("<H", node, 2, kept)
        return kept

    def _cut_extent(self, node: bytearray, offset: int) -> bool:
        logical, length, high, low = EXTENT.unpack_from(node, offset)
        keep: int
        unwritten = length > LONGEST
        count = length - LONGEST if unwritten else length
        keep = min(max(self._limit - logical, 0), count)
        if keep < count:
            self._free((low | high << 32) + keep, count - keep)
            EXTENT.pack_into(node, offset, logical, keep + LONGEST if unwritten else keep, high, low)
        return keep > 0

    def _cut_child(self, node: bytearray, offset: int) -> bool:
        _, low, high, _ = EXTENT_INDEX.unpack_from(node, offset)
        block = low | high << 32
        before = self._pages.read(block * BLOCK_SIZE, BLOCK_SIZE)
        child = bytearray(before)
        if not self._cut_node(child):
            self._free(block, 1)
            return False
        if child != before:
            tail = _ENTRY + _ENTRY * int.from_bytes(child[4:6], "little")
            child[tail : tail + 4] = checksums.update(self._seed, child[:tail]).to_bytes(4, "little")
            self._pages.write(block * BLOCK_SIZE, child)
        return True

    def _free(self, start: int, count: int) -> None:
        self._blocks.free(start, count)
        self.freed += count
