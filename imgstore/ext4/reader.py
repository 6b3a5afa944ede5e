"""Reads an ext4 file system from a BlockDevice: ours, and what mke2fs and the kernel make with 4-KiB blocks.

Not read: a journal that waits for replay (the file system is not what the blocks say: ``recovery`` shows it), inline data, xattr
inodes, encryption, casefolding, bigalloc, files mapped by indirect blocks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from imgstore.blocks import BlockDevice
from imgstore.changes import Change, Entry, FileType, HardLink
from imgstore.errors import CorruptError, InvalidError, NotFoundError, UnsupportedError
from imgstore.ext4 import checksums
from imgstore.ext4.directories import TYPE_MASK, decode_block, prove_block
from imgstore.ext4.extents import ExtentTree, Run
from imgstore.ext4.geometry import SUPER_OFFSET, Geometry, read_super_block
from imgstore.ext4.groups import GroupTable
from imgstore.ext4.inodes import FILE_TYPES, Node, decode_device, decode_inode
from imgstore.ext4.pages import PageCache
from imgstore.ext4.structures import BLOCK_SHIFT, BLOCK_SIZE, ROOT_INODE, IncompatFeature, InodeFlag
from imgstore.ext4.xattrs import decode_inode_xattrs, decode_xattr_block

__all__ = ["FileStatus", "FileSystem", "Node"]

_PIECE = 1 << 20
_LONGEST_TARGET = 4095


@dataclass(frozen=True, slots=True)
class FileStatus:
    """What stat(2), readlink(2) and getxattr(2) tell of a file.

    Attributes:
        inode: number.
        mode: permission bits.
        size: bytes; of a symlink the length of its target.
        links: as the inode says: 1 for a directory of more than 65,000 names.
        rdev: (major, minor) of a device.
        target: of a symlink.
        xattrs: full name to value; a POSIX ACL in its version-2 form.
        blocks: 512-byte units in use.
    """

    inode: int
    type: FileType
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    links: int
    rdev: tuple[int, int]
    target: bytes
    xattrs: Mapping[bytes, bytes]
    blocks: int


class FileSystem:
    """A read-only view of a BlockDevice, which must not change while it is read. For one thread at a time.

    Every checksum that the file system has is proved on the way. A damaged structure is a CorruptError that names it, its block
    and the byte of the device; nothing that the disk says makes a read endless or takes memory before it is proved to be small.

    Attributes:
        device: that it reads, unproved; short reads are remembered.
        super_block: as read.
        geometry: its sizes.
        groups: the group descriptors.
    """

    def __init__(self, device: BlockDevice) -> None:
        """Reads the superblock and the group descriptors.

        Raises:
            CorruptError: there is no ext4, or it contradicts itself.
            UnsupportedError: a feature that is not read here, or a journal that waits for replay.
        """
        self._pages = device if isinstance(device, PageCache) else PageCache(device)
        self.device: BlockDevice = self._pages
        self.super_block = read_super_block(device)
        self.geometry = Geometry.from_super_block(self.super_block, device.size)
        if self.super_block.feature_incompat & IncompatFeature.RECOVER:
            raise UnsupportedError(
                f"SuperBlock at byte {SUPER_OFFSET}: the journal must be replayed first",
                hint="mount the file system once, run e2fsck on it, or open what recovered() shows",
            )
        self.groups = GroupTable.load(device, self.geometry)

    def node(self, number: int, *, orphan: bool = False) -> Node:
        """Inode ``number``, which must be in use; with ``orphan`` it need not have links.

        Raises:
            CorruptError: it is damaged, or there is no such inode.
        """
        if not 1 <= number <= self.geometry.inodes:
            raise CorruptError(f"inode {number}: the file system has {self.geometry.inodes}")
        offset = self.groups.inode_offset(number)
        raw = self._pages.read(offset, self.geometry.inode_size)
        where = f"inode {number} at byte {offset}"
        return decode_inode(raw, number, where, seed=self.geometry.checksum_seed, orphan=orphan)

    def next_orphan(self, number: int) -> int:
        """The inode that follows ``number`` in the list of orphans, 0 at its end: it stands in the place of the deletion time."""
        return int.from_bytes(self._pages.read(self.groups.inode_offset(number) + 0x14, 4), "little")

    def lookup(self, path: bytes) -> Node:
        """The file at ``path``, in normal form; no symlink is followed, neither on the way nor at the end.

        Raises:
            NotFoundError: there is none; the message has the path.
        """
        node: Node | None = self.node(ROOT_INODE)
        for name in path.split(b"/") if path else ():
            node = self.child(node, name) if node is not None and node.type is FileType.DIRECTORY else None
        if node is None:
            raise NotFoundError(f"{show_path(path)}: no such file in the file system")
        return node

    def child(self, directory: Node, name: bytes) -> Node | None:
        """What ``directory`` has as ``name``, or None, as for ``.`` and ``..``. Its blocks are read in their order, no index is used."""
        if name in (b".", b".."):
            return None
        seed, inodes, indexed = self.inode_seed(directory), self.geometry.inodes, bool(directory.flags & InodeFlag.INDEX)
        for where, block, first in self.directory_blocks(directory):
            if name not in block:
                prove_block(block, seed, where, indexed=indexed, first=first)
                continue
            for found, value in decode_block(block, seed, inodes, where, indexed=indexed, first=first):
                if found == name:
                    return self.node(value >> 4)
        return None

    def list_directory(self, node: Node) -> list[tuple[bytes, int, FileType]]:
        """(name, inode, type) of what is in a directory, without ``.`` and ``..``, sorted by the bytes of the names.

        Raises:
            InvalidError: ``node`` is no directory.
            CorruptError: it is damaged, or has a name twice.
        """
        if node.type is not FileType.DIRECTORY:
            raise InvalidError(f"inode {node.number} is no directory")
        entries = []
        last = None
        for name, value in sorted(self.directory_entries(node)):
            if name == last:
                raise CorruptError(f"directory inode {node.number}: has {show_path(name)} twice")
            file_type = FILE_TYPES.get(value & TYPE_MASK) or self.node(value >> 4).type
            entries.append((name, value >> 4, file_type))
            last = name
        return entries

    def directory_entries(self, node: Node, *, dots: bool = False) -> Iterator[tuple[bytes, int]]:
        """Name and ``inode << 4 | file type`` of the entries, in the order of the disk; ``.`` and ``..`` only with ``dots``."""
        for where, block, first in self.directory_blocks(node):
            indexed = bool(node.flags & InodeFlag.INDEX)
            for entry in decode_block(block, self.inode_seed(node), self.geometry.inodes, where, indexed=indexed, first=first):
                if dots or entry[0] not in (b".", b".."):
                    yield entry

    def parent_of(self, node: Node) -> int:
        """Number of the directory that ``..`` of a directory names.

        Raises:
            CorruptError: there is no ``..``.
        """
        number = next((value >> 4 for name, value in self.directory_entries(node, dots=True) if name == b".."), None)
        if number is None:
            raise CorruptError(f"directory inode {node.number}: has no ..")
        return number

    def directory_blocks(self, node: Node) -> Iterator[tuple[str, bytes, bool]]:
        """(what it is, for errors; the block; whether it is the first) of all blocks of a directory."""
        count, rest = divmod(node.size, BLOCK_SIZE)
        expected = 0
        for run in self.runs(node):
            if run.logical != expected or run.unwritten or run.logical + run.length > count:
                break
            expected += run.length
            for number in range(run.length):
                block = run.physical + number
                where = f"directory inode {node.number}: block {block} at byte {block * BLOCK_SIZE}"
                yield where, self._pages.read(block * BLOCK_SIZE, BLOCK_SIZE), run.logical + number == 0
        if rest or not count or expected != count:
            raise CorruptError(
                f"directory inode {node.number}: size is {node.size}, {expected} blocks of {BLOCK_SIZE} bytes are there"
            )

    def inode_seed(self, node: Node) -> int | None:
        """Seed of the checksums of what belongs to ``node``, None if the file system has none."""
        seed = self.geometry.checksum_seed
        return None if seed is None else checksums.inode_seed(seed, node.number, node.generation)

    def extent_tree(self, node: Node) -> ExtentTree:
        """The extents of a file, directory or long symlink.

        Raises:
            UnsupportedError: the file is mapped by indirect blocks.
        """
        if not node.has_extents:
            raise UnsupportedError(f"inode {node.number}: is mapped by indirect blocks, not by extents")
        return ExtentTree(
            f"inode {node.number}",
            node.block,
            self.inode_seed(node),
            self.geometry.blocks,
            lambda block: self._pages.read(block * BLOCK_SIZE, BLOCK_SIZE),
        )

    def runs(self, node: Node) -> Iterator[Run]:
        """Where the blocks of a file lie, ascending."""
        if not node.has_extents and not node.sectors and not any(node.block):
            return iter(())
        return iter(self.extent_tree(node))

    def read_file(self, node: Node) -> Iterator[bytes]:
        """The whole content of a regular file in pieces of at most 1 MiB; holes are zeros.

        Raises:
            InvalidError: ``node`` is no regular file.
        """
        if node.type is not FileType.REGULAR:
            raise InvalidError(f"inode {node.number} is no regular file")
        position = 0
        for offset, piece in self._data(node):
            yield from _zeros(offset - position)
            yield piece
            position = offset + len(piece)
        yield from _zeros(node.size - position)

    def read(self, node: Node, offset: int, length: int) -> bytes:
        """At most ``length`` bytes at ``offset`` of a regular file or long symlink; fewer at its end."""
        if offset < 0 or length < 0:
            raise InvalidError(f"inode {node.number}: cannot read {length} bytes at byte {offset}")
        end = min(offset + length, node.size)
        if offset >= end:
            return b""
        out = bytearray(end - offset)
        for run in self.runs(node):
            begin = max(run.logical << BLOCK_SHIFT, offset)
            stop = min((run.logical + run.length) << BLOCK_SHIFT, end)
            if begin < stop and not run.unwritten:
                place = (run.physical << BLOCK_SHIFT) + begin - (run.logical << BLOCK_SHIFT)
                out[begin - offset : stop - offset] = self._pages.read(place, stop - begin)
        return bytes(out)

    def data_segments(self, node: Node) -> list[tuple[int, int]]:
        """(offset, length) of what is no hole in a regular file, clipped to its size; neighbours are joined."""
        if node.type is not FileType.REGULAR:
            raise InvalidError(f"inode {node.number} is no regular file")
        segments: list[tuple[int, int]] = []
        for run in self.runs(node):
            offset = run.logical << BLOCK_SHIFT
            length = min(run.length << BLOCK_SHIFT, node.size - offset)
            if run.unwritten or length <= 0:
                continue
            if segments and sum(segments[-1]) == offset:
                segments[-1] = (segments[-1][0], segments[-1][1] + length)
            else:
                segments.append((offset, length))
        return segments

    def _data(self, node: Node) -> Iterator[tuple[int, bytes]]:
        """(offset, piece of at most 1 MiB) of what is no hole."""
        for run in self.runs(node):
            if run.unwritten:
                continue
            offset = run.logical << BLOCK_SHIFT
            place = (run.physical << BLOCK_SHIFT) - offset
            end = min(offset + (run.length << BLOCK_SHIFT), node.size)
            while offset < end:
                piece = self._pages.read(place + offset, min(end - offset, _PIECE))
                yield offset, piece
                offset += len(piece)

    def status(self, node: Node) -> FileStatus:
        """All that is known of a file but its content.

        Raises:
            CorruptError: its xattrs or its symlink target are damaged.
        """
        is_device = node.type in (FileType.BLOCK_DEVICE, FileType.CHARACTER_DEVICE)
        return FileStatus(
            inode=node.number,
            type=node.type,
            mode=node.mode,
            uid=node.uid,
            gid=node.gid,
            size=node.size,
            mtime_ns=node.mtime_ns,
            links=node.links,
            rdev=decode_device(node.block) if is_device else (0, 0),
            target=self.read_target(node) if node.type is FileType.SYMLINK else b"",
            xattrs=self.read_xattrs(node),
            blocks=node.sectors,
        )

    def read_target(self, node: Node) -> bytes:
        """The target of a symlink."""
        if not 0 < node.size <= _LONGEST_TARGET:
            raise CorruptError(f"symlink inode {node.number}: target has {node.size} bytes")
        target = node.block[: node.size] if node.is_fast_symlink else self.read(node, 0, node.size)
        if b"\0" in target:
            raise CorruptError(f"symlink inode {node.number}: target has a null byte")
        return target

    def read_xattrs(self, node: Node) -> dict[bytes, bytes]:
        """Full name to value, sorted by name."""
        found = decode_inode_xattrs(node.xattr_area, f"inode {node.number}") if node.xattr_area else {}
        if node.xattr_block:
            block = node.xattr_block
            where = f"inode {node.number}: xattr block {block} at byte {block * BLOCK_SIZE}"
            if block >= self.geometry.blocks:
                raise CorruptError(f"{where}: the file system has {self.geometry.blocks} blocks")
            data = self._pages.read(block * BLOCK_SIZE, BLOCK_SIZE)
            found.update(decode_xattr_block(data, block, self.geometry.checksum_seed, where))
        return dict(sorted(found.items()))

    def changes(self, path: bytes = b"", *, without: Collection[bytes] = ()) -> Iterator[Change]:
        """The tree at ``path`` as Changes that make it anew, parents first, names in the order of their bytes.

        The first name of an inode is an Entry, later ones are HardLinks. Paths count from the root of the file system. Holes are
        told by ``segments``. Sockets are left out: a layer cannot hold one.

        Args:
            path: in normal form; no symlink is followed.
            without: paths that are left out, with all that is below them.

        Raises:
            NotFoundError: there is nothing at ``path``.
            CorruptError: something is damaged, or a directory has two names.
        """
        linked: dict[int, bytes] = {}
        directories: set[int] = set()
        pending = [(path, self.lookup(path).number)]
        while pending:
            path, number = pending.pop()
            node = self.node(number)
            if node.type is FileType.SOCKET or path in without:
                continue
            if node.type is FileType.DIRECTORY:
                if node.number in directories:
                    raise CorruptError(f"directory inode {node.number}: has a second name, {show_path(path)}")
                directories.add(node.number)
                yield self.entry(path, node)
                prefix = path + b"/" if path else b""
                pending.extend((prefix + name, child) for name, child, _ in reversed(self.list_directory(node)))
                continue
            if node.links > 1:
                first = linked.setdefault(node.number, path)
                if first != path:
                    yield HardLink(path, first)
                    continue
            yield self.entry(path, node)

    def entry(self, path: bytes, node: Node) -> Entry:
        """What makes a file anew at ``path``; its data are read from the device when they are asked for."""
        status = self.status(node)
        entry = Entry(
            path=path,
            type=node.type,
            mode=node.mode,
            uid=node.uid,
            gid=node.gid,
            mtime_ns=node.mtime_ns,
            target=status.target,
            rdev=status.rdev,
            xattrs=status.xattrs,
        )
        if node.type is FileType.REGULAR:
            entry.size = node.size
            segments = self.data_segments(node)
            whole = [(0, node.size)] if node.size else []
            entry.segments = None if segments == whole else segments
            entry.data = (memoryview(piece) for _, piece in self._data(node))
        return entry


def _zeros(count: int) -> Iterator[bytes]:
    piece = bytes(min(count, _PIECE)) if count > 0 else b""
    while count > 0:
        yield piece if count >= len(piece) else piece[:count]
        count -= len(piece)


def show_path(path: bytes) -> str:
    """A path for messages."""
    return path.decode(errors="backslashreplace") or "/"
