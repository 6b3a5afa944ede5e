"""Proves a file system: what e2fsck proves, and what it passes over in silence (state, orphans, order and hashes of xattrs).

Memory: one bit per block and per inode, what the hard-linked files take, and the widest directory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from imgstore.blocks import BlockDevice
from imgstore.changes import FileType
from imgstore.errors import CorruptError, UnsupportedError
from imgstore.ext4.bitmaps import clear_runs, count_bits, highest_bit, set_bits
from imgstore.ext4.directories import DIRECTORY_TYPE, TYPE_MASK
from imgstore.ext4.geometry import SUPER_OFFSET
from imgstore.ext4.groups import BaseMetadata, load_block_bitmap, load_inode_bitmap
from imgstore.ext4.inodes import DIRENT_TYPES, Node
from imgstore.ext4.orphans import list_orphans
from imgstore.ext4.reader import FileSystem, show_path
from imgstore.ext4.recovery import RecoveredDevice
from imgstore.ext4.structures import (
    BLOCK_SIZE,
    LINK_MAX,
    ROOT_INODE,
    SECTORS_PER_BLOCK,
    CompatFeature,
    InodeFlag,
    JournalSuperBlock,
    XattrHeader,
)
from imgstore.ext4.xattrs import xattr_block_problems

_RESIZE_INODE = 7
_DOUBLE_INDIRECT = slice(13 * 4, 14 * 4)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        object: what it is: ``SuperBlock``, ``inode 12``, ``block bitmap 3``.
        problem: what is wrong with it, with the numbers.
        offset: byte of the device where the object lies.
    """

    object: str
    problem: str
    offset: int


def check_file_system(device: BlockDevice) -> Iterator[Finding]:
    """All that is wrong with the file system on ``device``; nothing if it is sound. Reads all metadata, no file data.

    Damage is found, not raised. Where the superblock or a group descriptor is damaged, the rest cannot be judged and the check ends.
    Orphans are no damage where a kernel was stopped, which is where a journal had to be replayed: on a RecoveredDevice.
    """
    try:
        file_system = FileSystem(device)
    except (CorruptError, UnsupportedError) as error:
        yield Finding("SuperBlock", str(error), SUPER_OFFSET)
        return
    yield from _Check(file_system, device).run()


class _Check:
    def __init__(self, file_system: FileSystem, device: BlockDevice) -> None:
        self._file_system = file_system
        self._device = device
        self._geometry = file_system.geometry
        self._groups = file_system.groups
        self._base = BaseMetadata(file_system.super_block, file_system.groups)
        self._used = bytearray(-(-self._geometry.blocks // 8))
        self._seen = bytearray(-(-self._geometry.inodes // 8))
        self._more_names: Counter[int] = Counter()
        self._links: dict[int, int] = {}
        self._xattr_users: Counter[int] = Counter()
        self._directories = [0] * self._geometry.groups
        self._orphans: set[int] = set()

    def run(self) -> Iterator[Finding]:
        yield from self._check_super_block()
        for group in range(self._geometry.groups):
            for start, count in self._base.runs_of(group):
                yield from self._claim(f"metadata of group {group}", start, count, self._groups.descriptor_offset(group))
        yield from self._check_reserved_inodes()
        yield from self._check_orphans()
        yield from self._walk()
        yield from self._check_links()
        yield from self._check_groups()

    def _check_super_block(self) -> Iterator[Finding]:
        super_block = self._file_system.super_block
        if super_block.state != 1:
            yield Finding("SuperBlock", f"state is {super_block.state}, not 1 (clean)", SUPER_OFFSET)
        if super_block.last_orphan and not isinstance(self._device, RecoveredDevice):
            yield Finding("SuperBlock", f"the orphan list starts at inode {super_block.last_orphan}", SUPER_OFFSET)
        blocks, inodes = sum(self._groups.free_blocks), sum(self._groups.free_inodes)
        stated = super_block.free_blocks_count_lo | (
            super_block.free_blocks_count_hi << 32 if self._geometry.descriptor_size > 32 else 0
        )
        if stated != blocks:
            yield Finding("SuperBlock", f"{stated} free blocks, the groups have {blocks}", SUPER_OFFSET)
        if super_block.free_inodes_count != inodes:
            yield Finding("SuperBlock", f"{super_block.free_inodes_count} free inodes, the groups have {inodes}", SUPER_OFFSET)

    def _check_reserved_inodes(self) -> Iterator[Finding]:
        """The inodes that have no name, and what belongs to them."""
        super_block = self._file_system.super_block
        set_bits(self._seen, 0, self._geometry.first_inode - 1)
        owners = [super_block.journal_inum] if super_block.feature_compat & CompatFeature.HAS_JOURNAL else []
        if super_block.feature_compat & CompatFeature.ORPHAN_FILE:
            owners.append(super_block.orphan_file_inum)
        for number in owners:
            if not 1 <= number <= self._geometry.inodes:
                yield Finding("SuperBlock", f"journal or orphan file is inode {number} of {self._geometry.inodes}", SUPER_OFFSET)
                continue
            set_bits(self._seen, number - 1, 1)
            yield from self._check_inode(number)
            if number == super_block.journal_inum:
                yield from self._check_journal(number)
        if super_block.feature_compat & CompatFeature.RESIZE_INODE:
            yield from self._check_resize_inode()

    def _check_resize_inode(self) -> Iterator[Finding]:
        """Its one block that is not among the reserved descriptors."""
        what, offset = f"inode {_RESIZE_INODE}", self._groups.inode_offset(_RESIZE_INODE)
        try:
            block = int.from_bytes(self._file_system.node(_RESIZE_INODE).block[_DOUBLE_INDIRECT], "little")
        except CorruptError as error:
            yield Finding(what, str(error), offset)
            return
        if block >= self._geometry.blocks:
            yield Finding(what, f"maps block {block} of {self._geometry.blocks}", offset)
        elif block:
            yield from self._claim(what, block, 1, offset)

    def _check_journal(self, number: int) -> Iterator[Finding]:
        offset = self._groups.inode_offset(number)
        try:
            node = self._file_system.node(number)
            journal = JournalSuperBlock.from_bytes(self._file_system.read(node, 0, JournalSuperBlock.SIZE))
        except (CorruptError, UnsupportedError) as error:
            yield Finding("journal", str(error), offset)
            return
        if journal.start:
            yield Finding("journal", f"starts at block {journal.start}: it waits for replay", offset)
        if journal.block_size != BLOCK_SIZE or not 0 < journal.max_length <= node.size // BLOCK_SIZE:
            yield Finding(
                "journal", f"{journal.max_length} blocks of {journal.block_size} bytes in a file of {node.size}", offset
            )

    def _check_orphans(self) -> Iterator[Finding]:
        """Those without a name; the others are noted, for their blocks may lie behind their size."""
        try:
            for node in list_orphans(self._file_system):
                self._orphans.add(node.number)
                if node.links:
                    continue
                set_bits(self._seen, node.number - 1, 1)
                self._directories[(node.number - 1) // self._geometry.inodes_per_group] += node.type is FileType.DIRECTORY
                yield from self._check_inode(node.number)
        except CorruptError as error:
            yield Finding("SuperBlock", str(error), SUPER_OFFSET)

    def _walk(self) -> Iterator[Finding]:
        pending = [(ROOT_INODE, ROOT_INODE)]
        yield from self._check_inode(ROOT_INODE)
        while pending:
            number, parent = pending.pop()
            self._directories[(number - 1) // self._geometry.inodes_per_group] += 1
            offset = self._groups.inode_offset(number)
            what = f"directory inode {number}"
            try:
                node = self._file_system.node(number)
                entries = list(self._file_system.directory_entries(node, dots=True))
            except (CorruptError, UnsupportedError) as error:
                yield Finding(what, str(error), offset)
                continue
            dots = [(b".", number << 4 | DIRECTORY_TYPE), (b"..", parent << 4 | DIRECTORY_TYPE)]
            if entries[:2] != dots:
                yield Finding(what, f"starts with {entries[:2]}, not with {dots} (name, inode << 4 | type)", offset)
            seen: set[bytes] = set()
            children = 0
            for name, value in entries[2:]:
                if name in seen or name in (b".", b".."):
                    yield Finding(what, f"has {show_path(name)} twice", offset)
                    continue
                seen.add(name)
                child = value >> 4
                if child < self._geometry.first_inode:
                    yield Finding(what, f"{show_path(name)} is reserved inode {child}", offset)
                    continue
                is_directory = value & TYPE_MASK == DIRECTORY_TYPE
                children += is_directory
                if self._seen[(child - 1) >> 3] >> ((child - 1) & 7) & 1:
                    self._more_names[child] += 1
                    if is_directory:
                        yield Finding(what, f"{show_path(name)} is directory inode {child}, which has another name", offset)
                    continue
                set_bits(self._seen, child - 1, 1)
                yield from self._check_inode(child, value & TYPE_MASK, f"{what}: {show_path(name)}")
                if is_directory:
                    pending.append((child, number))
            if node.links != 2 + children and not (node.links == 1 and 2 + children > LINK_MAX):
                yield Finding(what, f"has {node.links} links, should have {2 + children}", offset)

    def _check_inode(self, number: int, kind: int | None = None, name: str = "") -> Iterator[Finding]:
        offset = self._groups.inode_offset(number)
        what = f"inode {number}"
        try:
            node = self._file_system.node(number, orphan=number in self._orphans)
            if kind not in (None, 0, DIRENT_TYPES[node.type]):
                yield Finding(what, f"is {node.type.name}, {name} says type {kind}", offset)
            if kind is not None and node.type is not FileType.DIRECTORY and node.links != 1:
                self._links[number] = node.links
            blocks = yield from self._check_blocks(node)
            if node.xattr_area or node.xattr_block:
                self._file_system.read_xattrs(node)
            if node.xattr_block:
                blocks += 1
                self._xattr_users[node.xattr_block] += 1
                if self._xattr_users[node.xattr_block] == 1:
                    yield from self._claim(what, node.xattr_block, 1, offset)
            if node.type is FileType.SYMLINK:
                target = self._file_system.read_target(node)
                if node.is_fast_symlink and any(node.block[len(target) :]):
                    yield Finding(what, f"symlink target of {len(target)} bytes goes on behind them", offset)
        except (CorruptError, UnsupportedError) as error:
            yield Finding(what, str(error), offset)
            return
        if node.sectors != blocks * SECTORS_PER_BLOCK:
            yield Finding(what, f"says {node.sectors} sectors, has {blocks * SECTORS_PER_BLOCK}", offset)
        if node.type is not FileType.DIRECTORY and node.flags & InodeFlag.INDEX:
            yield Finding(what, f"is {node.type.name} and has the INDEX flag", offset)

    def _check_blocks(self, node: Node) -> Generator[Finding, None, int]:
        """Claims the data and extent blocks of an inode; returns how many they are."""
        offset, what = self._groups.inode_offset(node.number), f"inode {node.number}"
        if node.is_fast_symlink or node.type not in (FileType.REGULAR, FileType.DIRECTORY, FileType.SYMLINK):
            if node.has_extents:
                yield Finding(what, f"is {node.type.name} without blocks and has the EXTENTS flag", offset)
            return 0
        tree = self._file_system.extent_tree(node)
        blocks = 0
        for run in tree:
            yield from self._claim(what, run.physical, run.length, offset)
            blocks += run.length
            behind = run.logical + run.length > -(-node.size // BLOCK_SIZE)
            if behind and not run.unwritten and node.number not in self._orphans:
                yield Finding(what, f"size is {node.size}, and it has logical block {run.logical + run.length - 1}", offset)
        for block in tree.blocks:
            yield from self._claim(what, block, 1, offset)
        return blocks + len(tree.blocks)

    def _claim(self, what: str, start: int, count: int, offset: int) -> Iterator[Finding]:
        if used := count_bits(self._used, start, count):
            yield Finding(what, f"{used} of blocks {start} to {start + count - 1} belong to another, too", offset)
        set_bits(self._used, start, count)

    def _check_links(self) -> Iterator[Finding]:
        for number in sorted(self._links.keys() | self._more_names.keys()):
            links, names = self._links.get(number, 1), 1 + self._more_names[number]
            if links != names and not self._is_directory(number):
                yield Finding(f"inode {number}", f"has {links} links, and {names} names", self._groups.inode_offset(number))
        for block, users in sorted(self._xattr_users.items()):
            data = self._device.read(block * BLOCK_SIZE, BLOCK_SIZE)
            offset = block * BLOCK_SIZE
            try:
                problems = xattr_block_problems(data)
                refcount = XattrHeader.from_bytes(data).refcount
            except CorruptError:
                continue  # found with the inode
            if refcount != users:
                problems.append(f"is used by {refcount} inodes, it is by {users}")
            for problem in problems:
                yield Finding(f"xattr block {block}", problem, offset)

    def _is_directory(self, number: int) -> bool:
        try:
            return self._file_system.node(number).type is FileType.DIRECTORY
        except CorruptError:
            return True  # found with the inode

    def _check_groups(self) -> Iterator[Finding]:
        geometry, groups = self._geometry, self._groups
        for group in range(geometry.groups):
            what, offset = f"GroupDescriptor {group}", groups.descriptor_offset(group)
            blocks = geometry.blocks_in_group(group)
            used = self._slice(self._used, group * geometry.blocks_per_group, blocks)
            inodes = geometry.inodes_per_group
            seen = self._slice(self._seen, group * inodes, inodes)
            place = groups.block_bitmap[group] * BLOCK_SIZE
            try:
                yield from _compare(
                    "block", group, group * geometry.blocks_per_group, self._load_blocks(group), used, blocks, place
                )
                place = groups.inode_bitmap[group] * BLOCK_SIZE
                bitmap = load_inode_bitmap(self._device, groups, group)
                yield from _compare("inode", group, group * inodes + 1, bitmap, seen, inodes, place)
            except CorruptError as error:
                yield Finding(what, str(error), place)
            for name, stated, counted in (
                ("free blocks", groups.free_blocks[group], blocks - count_bits(used, 0, blocks)),
                ("free inodes", groups.free_inodes[group], inodes - count_bits(seen, 0, inodes)),
                ("directories", groups.used_dirs[group], self._directories[group]),
            ):
                if stated != counted:
                    yield Finding(what, f"{stated} {name}, counted {counted}", offset)
            last = highest_bit(seen, inodes)
            if geometry.group_checksums and last >= inodes - groups.itable_unused[group]:
                yield Finding(
                    what,
                    f"the last {groups.itable_unused[group]} of {inodes} inodes are unused, number {last + 1} is not",
                    offset,
                )

    def _load_blocks(self, group: int) -> bytearray:
        return load_block_bitmap(self._device, self._groups, self._base, group)

    @staticmethod
    def _slice(bitmap: bytearray, start: int, count: int) -> bytearray:
        return bitmap[start >> 3 : (start + count + 7) >> 3]


def _compare(
    kind: str, group: int, first: int, stated: bytearray, found: bytearray, count: int, offset: int
) -> Iterator[Finding]:
    """Findings for the runs of bits that differ; ``first`` is the number of the first bit."""
    if stated[: count >> 3] == found[: count >> 3] and not count & 7:
        return
    mask = (1 << count) - 1
    stated_bits, found_bits = int.from_bytes(stated, "little") & mask, int.from_bytes(found, "little") & mask
    for problem, bits in (
        ("used, and nothing has them", stated_bits & ~found_bits),
        ("free, and in use", found_bits & ~stated_bits),
    ):
        clear = (mask & ~bits).to_bytes(-(-count // 8), "little")
        runs = list(clear_runs(clear, count))
        total = sum(length for _, length in runs)
        if total:
            start, length = runs[0]
            last = first + start + length - 1
            yield Finding(f"{kind} bitmap {group}", f"{total} {kind}s are {problem}; first {first + start} to {last}", offset)
