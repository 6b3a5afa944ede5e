"""Applies a layer's Changes to the file system of its parent.

File data go to the disk as they come, behind the last block in use; inodes and bitmaps are changed in a page cache; directories stay in
memory and those that changed are written anew, whole, behind the data. So a layer is one run of the disk and a few metadata blocks,
and the same Changes on the same parent give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from imgstore.blocks import WritableBlockDevice
from imgstore.changes import NO_XATTRS, Change, Entry, FileType, HardLink, Opaque, Whiteout
from imgstore.errors import InvalidError, NotFoundError
from imgstore.ext4.allocation import BlockAllocator, FileSystemFullError, InodeAllocator
from imgstore.ext4.directories import DIRECTORY_TYPE, TYPE_MASK
from imgstore.ext4.features import prove_writable
from imgstore.ext4.geometry import SUPER_OFFSET, write_super_block
from imgstore.ext4.groups import BaseMetadata
from imgstore.ext4.inode_writer import Attributes, ChangeError, InodeWriter
from imgstore.ext4.inodes import DIRENT_TYPES, FILE_TYPES
from imgstore.ext4.pages import WritablePageCache
from imgstore.ext4.reader import FileStatus, FileSystem, show_path
from imgstore.ext4.stream import BlockStream
from imgstore.ext4.structures import LINK_MAX, ROOT_INODE
from imgstore.ext4.tree import Directory, DirectoryTree
from imgstore.ext4.xattrs import XattrsError

_LARGEST_ID = (1 << 32) - 2


@dataclass(frozen=True, slots=True)
class LayerSummary:
    """What a layer did.

    Attributes:
        changed: False if not one byte of the file system had to change; then nothing was written.
        free_blocks: of 4096 bytes, after the layer.
        free_inodes: after the layer.
    """

    changed: bool
    free_blocks: int
    free_inodes: int


class LayerWriter:
    """Applies Changes, in order, to the file system on ``device``; ``device`` takes the writes (copy-on-write is below us).

    It does so in one of two ways. A layer gives the same bytes whenever it is applied: what umoci's unpacking does differently, a
    directory that gets or loses a child but has no Entry in the layer keeps its mtime, and access, change and creation time are the
    mtime. With ``now_ns`` the file system is one in use, and what is done to it looks as if a program had done it under the
    kernel at that time: new inodes have the mtime of their Entry and are otherwise of now, a directory that gets or loses a name has
    mtime and ctime of now (one with an Entry the mtime of that, as tar sets it last), and so has the ctime of a file that gets or
    loses a link; the blocks and inodes that are free among the used ones are taken first. The permission bits of a symlink are
    always 0777, as on any Linux.

    After any error, and after a crash before ``finish`` returned, the file system is half changed: throw the device away.
    For one thread; uses at most some 20 MiB plus what the names of the touched directories take.
    """

    def __init__(
        self,
        device: WritableBlockDevice,
        place: Callable[[int | None, int], None] = lambda offset, length: None,
        *,
        now_ns: int | None = None,
    ) -> None:
        """Reads the superblock, the descriptors, two bitmaps and the root directory of the parent.

        Args:
            place: called for each run of the data of each Entry, in their order, with its byte offset on the device and its length. It
                stays there whatever the layer does afterwards. None: the run is zeros, and lies nowhere.
            now_ns: the time since the epoch, in nanoseconds, if this is a file system in use; None: a layer.

        Raises:
            CorruptError: the parent is damaged.
            UnsupportedError: the parent has a feature that is read but not written here, or was not cleanly unmounted.
        """
        self._pages = WritablePageCache(device)
        self._file_system = FileSystem(self._pages)
        self._geometry = self._file_system.geometry
        self._groups = self._file_system.groups
        prove_writable(self._file_system.super_block, self._geometry)
        base = BaseMetadata(self._file_system.super_block, self._groups)
        self._blocks = BlockAllocator(self._pages, self._geometry, self._groups, base, reuse=now_ns is not None)
        self._inodes = InodeAllocator(self._pages, self._geometry, self._groups, reuse=now_ns is not None)
        stream = BlockStream(self._pages, self._blocks)
        self._files = InodeWriter(self._pages, self._file_system, self._blocks, self._inodes, stream, place, now_ns)
        self._implied = Attributes(0o755, 0, 0, now_ns or 0, NO_XATTRS)
        self._stream = stream
        self._tree = DirectoryTree(self._file_system, self._inodes)

    def type_at(self, path: bytes) -> FileType | None:
        """The type of what is at ``path``, in normal form, after the Changes so far; None if nothing is. No link is followed."""
        value = self._value_at(path)
        if value is None:
            return None
        return FILE_TYPES.get(value & TYPE_MASK) or self._file_system.node(value >> 4).type

    def status_at(self, path: bytes) -> FileStatus:
        """All that is known of what is at ``path``; see ``type_at``. The size of a directory is that before these Changes.

        Raises:
            NotFoundError: nothing is there.
        """
        value = self._value_at(path)
        if value is None:
            raise NotFoundError(f"{show_path(path)}: no such file in the file system")
        node = self._file_system.node(value >> 4)
        if node.xattr_block or (node.type is FileType.SYMLINK and not node.is_fast_symlink):
            self._stream.flush()  # it may be of these very Changes
        return self._file_system.status(node)

    def _value_at(self, path: bytes) -> int | None:
        if not path:
            return ROOT_INODE << 4 | DIRECTORY_TYPE
        above, _, name = path.rpartition(b"/")
        directory = self._tree.find(above)
        return None if directory is None else directory.entries.get(name)

    def apply(self, change: Change) -> None:
        """Applies one Change; the data of an Entry are read to their end.

        Raises:
            FileSystemFullError: blocks or inodes do not suffice.
            InvalidError: the Change cannot be applied (ChangeError, XattrsError, InvalidNameError).
            CorruptError: the parent is damaged.
        """
        try:
            match change:
                case Entry():
                    self._apply_entry(change)
                case HardLink():
                    self._apply_hard_link(change)
                case Whiteout():
                    self._apply_whiteout(change)
                case Opaque():
                    self._apply_opaque(change)
        except (FileSystemFullError, XattrsError) as error:
            raise type(error)(f"{show_path(change.path)}: {error}") from None

    def _apply_entry(self, entry: Entry) -> None:
        if not (0 <= entry.uid <= _LARGEST_ID and 0 <= entry.gid <= _LARGEST_ID and 0 <= entry.mode <= 0o7777):
            raise ChangeError(f"{show_path(entry.path)}: uid {entry.uid}, gid {entry.gid}, mode 0{entry.mode:o} cannot be held")
        if entry.type is FileType.DIRECTORY:
            self._apply_directory(entry)
            return
        if not entry.path:
            raise ChangeError(f"/: the root can only be a directory, not {entry.type.name}")
        above, _, name = entry.path.rpartition(b"/")
        directory = self._tree.require(above, self._imply_directory)
        if name in directory.entries:
            self._remove(directory, name)
        number = self._inodes.take()
        self._files.create(number, entry)
        self._tree.put(directory, name, number << 4 | DIRENT_TYPES[entry.type])

    def _apply_directory(self, entry: Entry) -> None:
        attributes = Attributes(entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.xattrs)
        found = self._tree.find(entry.path)
        if found is None:
            above, _, name = entry.path.rpartition(b"/")
            found = self._make_directory(self._tree.require(above, self._imply_directory), name, attributes)
        else:
            self._files.restate_directory(found.number, attributes)
        found.stated = True

    def _imply_directory(self, parent: Directory, name: bytes) -> Directory:
        return self._make_directory(parent, name, self._implied)

    def _make_directory(self, parent: Directory, name: bytes, attributes: Attributes) -> Directory:
        if name in parent.entries:
            self._remove(parent, name)
        number = self._inodes.take()
        self._inodes.note_directory(number)
        self._files.create_directory(number, attributes)
        self._tree.put(parent, name, number << 4 | DIRECTORY_TYPE)
        path = parent.path + b"/" + name if parent.path else name
        made = Directory(number, parent.number, path, {})
        self._tree.add(made)
        return made

    def _apply_hard_link(self, link: HardLink) -> None:
        if not link.path:
            raise ChangeError(f"/: the root cannot be a hard link to {show_path(link.target)}")
        above, _, name = link.target.rpartition(b"/")
        directory = self._tree.find(above)
        value = directory.entries.get(name) if directory is not None else None
        if value is None:
            raise ChangeError(f"{show_path(link.path)}: hard link to {show_path(link.target)}, which does not exist")
        if value & TYPE_MASK == DIRECTORY_TYPE:
            raise ChangeError(f"{show_path(link.path)}: hard link to {show_path(link.target)}, which is a directory")
        above, _, name = link.path.rpartition(b"/")
        directory = self._tree.find(above)
        if directory is not None and directory.entries.get(name, 0) >> 4 == value >> 4:
            self._tree.claim(directory, name)
            return
        # Counted first: what is replaced by the link, or by its parents, may be the other name of the same file.
        links = self._files.add_link(value >> 4)
        if links > LINK_MAX:
            raise ChangeError(
                f"{show_path(link.path)}: {show_path(link.target)} would have {links} links, ext4 allows {LINK_MAX}"
            )
        directory = self._tree.require(above, self._imply_directory)
        if name in directory.entries:
            self._remove(directory, name)
        self._tree.put(directory, name, value)
        self._tree.claim(directory, name)

    def _apply_whiteout(self, whiteout: Whiteout) -> None:
        if not whiteout.path:
            raise ChangeError("/: the root cannot be removed")
        above, _, name = whiteout.path.rpartition(b"/")
        directory = self._tree.find(above)
        if directory is not None and name in directory.entries:
            self._remove_lower(directory, name)

    def _apply_opaque(self, opaque: Opaque) -> None:
        directory = self._tree.find(opaque.path)
        if directory is not None:
            for name in list(directory.entries):
                self._remove_lower(directory, name)

    def _remove_lower(self, directory: Directory, name: bytes) -> None:
        """Removes what is not of this layer at and under a name.

        Afterwards the tree is as if all of it had been removed before this layer put anything there: a directory of the parent that
        must stay, because this layer put something into it, has the attributes of an implied one unless it is stated.
        """
        kept: list[tuple[Directory, bytes, Directory]] = []
        pending = [(directory, name)]
        while pending:
            directory, name = pending.pop()
            value = directory.entries[name]
            if self._tree.is_own(directory, name, value):
                continue
            child = self._tree.touched(value >> 4) if value & TYPE_MASK == DIRECTORY_TYPE else None
            if child is None:
                self._remove(directory, name)
            else:
                kept.append((directory, name, child))
                pending.extend((child, inner) for inner in child.entries)
        for directory, name, child in reversed(kept):
            if not child.stated:
                if child.entries:
                    self._files.restate_directory(child.number, self._implied)
                else:
                    self._remove(directory, name)

    def _remove(self, directory: Directory, name: bytes) -> None:
        value = self._tree.take_out(directory, name)
        if value & TYPE_MASK != DIRECTORY_TYPE:
            self._files.remove_link(value >> 4)
            return
        pending = [value >> 4]
        while pending:
            number = pending.pop()
            entries = self._tree.forget(number)
            # Freed before what is in it: a directory that contains itself is found free the second time, which is an error.
            self._files.release(self._file_system.node(number))
            for _, inner in entries:
                if inner & TYPE_MASK == DIRECTORY_TYPE:
                    pending.append(inner >> 4)
                else:
                    self._files.remove_link(inner >> 4)

    def finish(self) -> LayerSummary:
        """Writes directories, bitmaps, descriptors and superblock; the file system is whole when this returns.

        Raises:
            FileSystemFullError: the blocks do not suffice for the directories.
            InvalidError: a directory has more names than its index, or more directories than its links, can count.
        """
        for directory in self._tree.changed():
            self._files.touch_directory(directory.number, stated=directory.stated)
            try:
                self._files.write_directory(directory.number, directory.parent, directory.entries)
            except (FileSystemFullError, InvalidError) as error:
                raise type(error)(f"{show_path(directory.path)}: {error}") from None
        self._stream.flush()
        self._blocks.save()
        self._inodes.save()
        for group in sorted(self._groups.changed):
            self._pages.write(self._groups.descriptor_offset(group), self._groups.descriptor(group))
        free_blocks, free_inodes = sum(self._groups.free_blocks), sum(self._groups.free_inodes)
        super_block = self._file_system.super_block
        super_block.free_blocks_count_lo = free_blocks
        super_block.free_inodes_count = free_inodes
        self._pages.write(SUPER_OFFSET, write_super_block(super_block))
        changed = self._pages.flush()
        return LayerSummary(changed=changed, free_blocks=free_blocks, free_inodes=free_inodes)
