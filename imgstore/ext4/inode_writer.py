"""InodeWriter: files and directories as they come to the disk and leave it - inode, data, extent tree, extended attributes."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from imgstore.changes import Entry, FileType
from imgstore.errors import CorruptError, InvalidError, UnsupportedError
from imgstore.ext4 import checksums
from imgstore.ext4.allocation import BlockAllocator, InodeAllocator
from imgstore.ext4.directories import DIRECTORY_TYPE, TYPE_MASK, encode_directory
from imgstore.ext4.directory_edits import DirectoryBlocks
from imgstore.ext4.extents import EMPTY_ROOT, LONGEST, Run, encode_extents, single_root
from imgstore.ext4.inode_table import InodeTable
from imgstore.ext4.inodes import FAST_SYMLINK, Node, encode_device, encode_time
from imgstore.ext4.pages import WritablePageCache
from imgstore.ext4.reader import FileSystem, show_path
from imgstore.ext4.stream import BlockStream, FileContent
from imgstore.ext4.structures import (
    BLOCK_SHIFT,
    BLOCK_SIZE,
    LINK_MAX,
    SECTORS_PER_BLOCK,
    UNSIGNED_HASH,
    InodeFlag,
    RoCompatFeature,
    XattrHeader,
)
from imgstore.ext4.xattrs import INODE_ROOM, encode_xattrs, seal_xattr_block

_LARGEST_FILE = ((1 << 32) - 1) * BLOCK_SIZE
_LONGEST_TARGET = 4095
_NO_AREA = bytes(INODE_ROOM)
_NO_BLOCK = bytes(60)
_EXTENTS = int(InodeFlag.EXTENTS)
_INDEX = int(InodeFlag.INDEX)
_REGULAR_MODE = int(FileType.REGULAR) << 12
_DIRECTORY_MODE = int(FileType.DIRECTORY) << 12
_SYMLINK_MODE = int(FileType.SYMLINK) << 12 | 0o777
_LINKS_AT = 26
_EXTRA = 32


class ChangeError(InvalidError):
    """A Change that cannot be applied; the message has its path."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a directory has beside its children."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: Mapping[bytes, bytes]


class InodeWriter:
    """Makes, changes and frees inodes together with all their blocks."""

    def __init__(
        self,
        pages: WritablePageCache,
        file_system: FileSystem,
        blocks: BlockAllocator,
        inodes: InodeAllocator,
        stream: BlockStream,
        place: Callable[[int | None, int], None],
        now_ns: int | None,
    ) -> None:
        seed = file_system.geometry.checksum_seed
        if seed is None:
            raise UnsupportedError("file system without metadata checksums cannot be written")
        self._pages = pages
        self._file_system = file_system
        self._blocks = blocks
        self._inodes = inodes
        self._stream = stream
        self._place = place
        self._seed = seed
        self._now = None if now_ns is None else encode_time(now_ns)
        self._hash_seed: Sequence[int] = file_system.super_block.hash_seed
        self._signed_hash = not file_system.super_block.flags & UNSIGNED_HASH
        self._table = InodeTable(pages, file_system.groups, seed)

    def create(self, number: int, entry: Entry) -> None:
        """Makes inode ``number`` of ``entry``, which is no directory.

        Raises:
            ChangeError: size, data, target or device number cannot be held.
            XattrsError, FileSystemFullError: as their names say.
        """
        mode, flags, size, links = _REGULAR_MODE | entry.mode, _EXTENTS, entry.size, 1
        block, blocks = EMPTY_ROOT, 0
        file_type = entry.type
        if file_type is FileType.REGULAR:
            if size:
                block, blocks = self._put_data(number, entry)
        elif file_type is FileType.SYMLINK:
            mode, size = _SYMLINK_MODE, len(entry.target)
            if not 0 < size <= _LONGEST_TARGET or b"\0" in entry.target:
                raise ChangeError(
                    f"{show_path(entry.path)}: a symlink cannot have the target {entry.target[:300]!r} of {size} bytes"
                )
            if size <= FAST_SYMLINK:
                flags, block = 0, entry.target.ljust(60, b"\0")
            else:
                block, blocks = self._encode_runs(number, self._stream.append(entry.target))
        else:
            mode, flags, size, block = file_type << 12 | entry.mode, 0, 0, _NO_BLOCK
            if file_type is not FileType.FIFO and file_type is not FileType.SOCKET:
                major, minor = entry.rdev
                if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
                    raise ChangeError(f"{show_path(entry.path)}: device number {major}:{minor} cannot be held")
                block = encode_device(major, minor)
        area, xattr_block = self._put_xattrs(entry.xattrs) if entry.xattrs else (_NO_AREA, 0)
        if xattr_block:
            blocks += 1
        sectors, mtime = blocks * SECTORS_PER_BLOCK, encode_time(entry.mtime_ns)
        now = self._now or mtime
        self._table.create(number, mode, entry.uid, entry.gid, size, mtime, now, links, sectors, flags, block, xattr_block, area)

    def _put_data(self, number: int, entry: Entry) -> tuple[bytes, int]:
        size = entry.size
        pieces = iter(entry.data)
        if entry.segments is None:
            piece = next(pieces, None)
            if piece is not None:
                # Nearly all files come in one piece that has no block of zeros in it.
                if len(piece) == size and 0 not in bytes(piece[: size & -BLOCK_SIZE : BLOCK_SIZE]):
                    runs = self._stream.append(piece)
                    if len(runs) == 1 and runs[0].length <= LONGEST:
                        self._place(runs[0].physical << BLOCK_SHIFT, size)
                        return single_root(runs[0].physical, runs[0].length), runs[0].length
                    self._place_segments([(0, size)], runs)
                    return self._encode_runs(number, runs)
                pieces = itertools.chain((piece,), pieces)
        if not 0 < size <= _LARGEST_FILE:
            raise ChangeError(f"{show_path(entry.path)}: a file of {size} bytes, ext4 allows {_LARGEST_FILE}")
        return self._encode_runs(number, self._copy_pieces(entry, pieces))

    def _copy_pieces(self, entry: Entry, pieces: Iterator[memoryview]) -> list[Run]:
        content = FileContent(self._stream)
        proved = _prove_segments(entry)
        segments = iter(proved)
        left = 0
        for piece in pieces:
            while piece:
                if not left:
                    offset, left = next(segments, (0, 0))
                    if not left:
                        raise ChangeError(f"{show_path(entry.path)}: has more data than its size of {entry.size} bytes states")
                    content.skip_to(offset)
                take = min(left, len(piece))
                content.write(piece[:take])
                piece = piece[take:]
                left -= take
        left += sum(length for _, length in segments)
        if left:
            raise ChangeError(f"{show_path(entry.path)}: {left} bytes of data are missing, its size is {entry.size}")
        content.finish()
        self._place_segments(proved, content.runs)
        return content.runs

    def _place_segments(self, segments: Iterable[tuple[int, int]], runs: Iterable[Run]) -> None:
        """Tells where a file's data lie, of which ``segments`` were given and ``runs`` were written; all else are zeros."""
        following = iter(runs)
        start = end = distance = 0  # in bytes of the file: the run at hand, and from there to the device
        for offset, length in segments:
            while length:
                while end <= offset and (run := next(following, None)) is not None:
                    start, end = run.logical << BLOCK_SHIFT, (run.logical + run.length) << BLOCK_SHIFT
                    distance = (run.physical - run.logical) << BLOCK_SHIFT
                if start <= offset < end:
                    take = min(length, end - offset)
                    self._place(offset + distance, take)
                else:
                    take = min(length, start - offset) if offset < start else length
                    self._place(None, take)
                offset += take
                length -= take

    def _encode_runs(self, number: int, runs: list[Run]) -> tuple[bytes, int]:
        seed = checksums.inode_seed(self._seed, number, 0)
        root, used = encode_extents(runs, seed, self._stream.append_blocks)
        return root, used + sum(run.length for run in runs)

    def _put_xattrs(self, xattrs: Mapping[bytes, bytes]) -> tuple[bytes, int]:
        area, block = encode_xattrs(xattrs)
        if block is None:
            return area, 0
        place, _ = self._blocks.take(1)
        self._stream.put(place, seal_xattr_block(block, place, self._seed))
        return area, place

    def create_directory(self, number: int, attributes: Attributes) -> None:
        """Makes inode ``number`` a directory; its blocks come with ``write_directory``."""
        area, xattr_block = self._put_xattrs(attributes.xattrs)
        mtime = encode_time(attributes.mtime_ns)
        self._table.create(
            number,
            _DIRECTORY_MODE | attributes.mode,
            attributes.uid,
            attributes.gid,
            0,
            mtime,
            self._now or mtime,
            2,
            SECTORS_PER_BLOCK if xattr_block else 0,
            _EXTENTS,
            EMPTY_ROOT,
            xattr_block,
            area,
        )

    def restate_directory(self, number: int, attributes: Attributes) -> None:
        """Gives a directory other attributes; changes nothing if it has them."""
        raw = self._table.read(number)
        node = self._file_system.node(number)
        before = bytes(raw)
        mtime = encode_time(attributes.mtime_ns)
        struct.pack_into("<HH", raw, 0x00, _DIRECTORY_MODE | attributes.mode, attributes.uid & 0xFFFF)
        struct.pack_into("<H", raw, 0x18, attributes.gid & 0xFFFF)
        struct.pack_into("<HH", raw, 0x78, attributes.uid >> 16, attributes.gid >> 16)
        _set_mtime(raw, mtime)
        if self._now is None:
            _set_other_times(raw, mtime)
        if node.xattr_block:
            self._stream.flush()
        if self._file_system.read_xattrs(node) != dict(attributes.xattrs):
            self._replace_xattrs(node, raw, attributes.xattrs)
        if raw != before:
            if self._now is not None:
                _set_ctime(raw, self._now)
            self._table.change(number, raw)

    def _replace_xattrs(self, node: Node, raw: bytearray, xattrs: Mapping[bytes, bytes]) -> None:
        extra = raw[0x80] | raw[0x81] << 8
        if extra > _EXTRA:
            raise UnsupportedError(f"inode {node.number}: extra fields of {extra} bytes, only {_EXTRA} are known")
        if node.xattr_block:
            self._release_xattr_block(node)
        area, block = self._put_xattrs(xattrs)
        raw[0x80 + extra : 0x80 + _EXTRA] = bytes(_EXTRA - extra)  # what was there were xattrs
        raw[0x80] = _EXTRA
        raw[0x80 + _EXTRA :] = area
        _set_xattr_block(raw, block)
        _set_sectors(raw, node.sectors + SECTORS_PER_BLOCK * ((block > 0) - (node.xattr_block > 0)))

    def touch_directory(self, number: int, *, stated: bool) -> None:
        """Notes that a directory got or lost a name now, unless this is a layer; its mtime stays if it was ``stated``."""
        if self._now is not None:
            raw = self._table.read(number)
            if not stated:
                _set_mtime(raw, self._now)
            _set_ctime(raw, self._now)
            self._table.change(number, raw)

    def write_directory(self, number: int, parent: int, entries: Mapping[bytes, int]) -> None:
        """Puts the entries of a directory on the disk, unless they are there.

        Raises:
            InvalidError: an index of two levels cannot hold them, or they have more directories than links can count.
            FileSystemFullError: as its name says.
        """
        node = self._file_system.node(number)
        links = 2 + sum(value & TYPE_MASK == DIRECTORY_TYPE for value in entries.values())
        if links > LINK_MAX and not self._file_system.super_block.feature_ro_compat & RoCompatFeature.DIR_NLINK:
            raise ChangeError(
                f"directory inode {number}: {links - 2} directories in it, without dir_nlink ext4 allows {LINK_MAX - 2}"
            )
        raw = self._table.read(number)
        struct.pack_into("<H", raw, _LINKS_AT, 1 if links > LINK_MAX else links)
        if node.size:
            old = dict(self._file_system.directory_entries(node))
            if old == entries:
                return
            if self._now is not None and self._edit_directory(node, old, entries):
                self._table.change(number, raw)
                return
            del old  # as much as the new ones, which in a layer may be a million
        before = self._release_blocks(node)
        seed = checksums.inode_seed(self._seed, number, node.generation)
        blocks, indexed = encode_directory(entries, number, parent, seed, self._hash_seed, signed_hash=self._signed_hash)
        runs = self._stream.append(b"".join(blocks))
        root, used = encode_extents(runs, seed, self._stream.append_blocks)
        struct.pack_into("<I", raw, 0x04, len(blocks) * BLOCK_SIZE)
        struct.pack_into("<I", raw, 0x6C, 0)
        struct.pack_into("<I", raw, 0x20, node.flags & ~_INDEX | (_INDEX if indexed else 0))
        raw[0x28:0x64] = root
        _set_sectors(raw, node.sectors + SECTORS_PER_BLOCK * (len(blocks) + used - before))
        self._table.change(number, raw)

    def _edit_directory(self, node: Node, old: Mapping[bytes, int], new: Mapping[bytes, int]) -> bool:
        """Changes what differs in the blocks that the directory has; returns False if that cannot be done."""
        places = [run.physical + index for run in self._file_system.runs(node) for index in range(run.length)]
        blocks = DirectoryBlocks(
            count=len(places),
            read=lambda number: self._pages.read(places[number] * BLOCK_SIZE, BLOCK_SIZE),
            indexed=bool(node.flags & _INDEX),
            seed=checksums.inode_seed(self._seed, node.number, node.generation),
            inodes=self._file_system.geometry.inodes,
            hash_seed=self._hash_seed,
            signed_hash=self._signed_hash,
            where=f"directory inode {node.number}",
        )
        removed = {name for name, value in old.items() if new.get(name) != value}
        added = {name: value for name, value in new.items() if old.get(name) != value}
        edited = blocks.edit(removed, added)
        for number, block in (edited or {}).items():
            self._pages.write(places[number] * BLOCK_SIZE, block)
        return edited is not None

    def add_link(self, number: int) -> int:
        """Counts one more name of a file; returns how many it has. Not stored beyond 65,535."""
        raw = self._table.read(number)
        links = int.from_bytes(raw[_LINKS_AT : _LINKS_AT + 2], "little") + 1
        if links <= LINK_MAX:
            self._set_links(number, raw, links)
        return links

    def _set_links(self, number: int, raw: bytearray, links: int) -> None:
        struct.pack_into("<H", raw, _LINKS_AT, links)
        if self._now is not None:
            _set_ctime(raw, self._now)
        self._table.change(number, raw)

    def remove_link(self, number: int) -> None:
        """Counts one name less of a file that is no directory, and frees it with the last."""
        node = self._file_system.node(number)
        if node.type is FileType.DIRECTORY:
            raise CorruptError(f"inode {number}: is a directory, its name says that it is none")
        if node.links == 1:
            self.release(node)
            return
        self._set_links(number, self._table.read(number), node.links - 1)

    def release(self, node: Node) -> None:
        """Frees an inode and all its blocks.

        Raises:
            CorruptError: it, or one of its blocks, is free already.
        """
        self._inodes.free(node.number, directory=node.type is FileType.DIRECTORY)
        if not node.is_fast_symlink and node.type in (FileType.REGULAR, FileType.DIRECTORY, FileType.SYMLINK):
            self._release_blocks(node)
        if node.xattr_block:
            self._stream.flush()
            self._release_xattr_block(node)
        self._table.clear(node.number)

    def _release_blocks(self, node: Node) -> int:
        """Frees what an inode's extents map, and their tree; returns the number of blocks."""
        if node.block[6] or node.block[7]:
            self._stream.flush()  # the tree may be of this very layer
        tree = self._file_system.extent_tree(node)
        runs = list(tree)
        for run in runs:
            self._blocks.free(run.physical, run.length)
        for block in tree.blocks:
            self._blocks.free(block, 1)
        return sum(run.length for run in runs) + len(tree.blocks)

    def _release_xattr_block(self, node: Node) -> None:
        """Frees the block, or counts one user less: the kernel lets inodes share it."""
        self._file_system.read_xattrs(node)
        offset = node.xattr_block * BLOCK_SIZE
        data = self._pages.read(offset, BLOCK_SIZE)
        header = XattrHeader.from_bytes(data)
        if header.refcount <= 1:
            self._blocks.free(node.xattr_block, 1)
            return
        header.refcount -= 1
        self._pages.write(offset, seal_xattr_block(header.to_bytes() + data[XattrHeader.SIZE :], node.xattr_block, self._seed))


def _prove_segments(entry: Entry) -> list[tuple[int, int]]:
    segments = [(0, entry.size)] if entry.segments is None else [segment for segment in entry.segments if segment[1]]
    end = 0
    for offset, length in segments:
        if offset < end or length < 0 or offset + length > entry.size:
            raise ChangeError(
                f"{show_path(entry.path)}: segment of {length} bytes at byte {offset}, after {end}, in a file of {entry.size} bytes"
            )
        end = offset + length
    return segments


def _set_mtime(raw: bytearray, time: tuple[int, int]) -> None:
    struct.pack_into("<I", raw, 0x10, time[0])
    struct.pack_into("<I", raw, 0x88, time[1])


def _set_ctime(raw: bytearray, time: tuple[int, int]) -> None:
    struct.pack_into("<I", raw, 0x0C, time[0])
    struct.pack_into("<I", raw, 0x84, time[1])


def _set_other_times(raw: bytearray, time: tuple[int, int]) -> None:
    """Access, change and creation time."""
    seconds, extra = time
    _set_ctime(raw, time)
    struct.pack_into("<I", raw, 0x08, seconds)
    struct.pack_into("<III", raw, 0x8C, extra, seconds, extra)


def _set_sectors(raw: bytearray, sectors: int) -> None:
    struct.pack_into("<I", raw, 0x1C, sectors & 0xFFFFFFFF)
    struct.pack_into("<H", raw, 0x74, sectors >> 32)


def _set_xattr_block(raw: bytearray, block: int) -> None:
    struct.pack_into("<I", raw, 0x68, block & 0xFFFFFFFF)
    struct.pack_into("<H", raw, 0x76, block >> 32)
