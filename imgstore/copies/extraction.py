"""Extraction: the entries of a tar put into a container's tree, by the rules of dockerd's unpacker.

What dockerd does in a process whose root is the container's is done here on the disks: links on the way to an entry's directory are
followed inside of the tree, directories that are missing are made, and what an entry finds in its place goes, but for a directory that
meets a directory.

Source: moby ``pkg/archive/archive.go`` (Unpack, createTarFile), ``daemon/archive_unix.go`` (checkWritablePath). Not done as there: an entry
over a directory that a volume is mounted in is refused before anything of that volume is removed; a file that is made in a directory
with a default ACL does not get it; a hard link does not take the owner of its file, nor its setuid bit, from it.
"""

from __future__ import annotations

import os
import posixpath
import stat

from imgstore.changes import Change, Entry, FileType, HardLink
from imgstore.copies.tree import FilesWritten, MountedTree, normal, shown
from imgstore.copies.users import Owner
from imgstore.errors import DeniedError, InUseError, InvalidError
from imgstore.ext4.writer import LayerWriter
from imgstore.layers.acl import acl_with_mode
from imgstore.layers.pax import ACL_ACCESS


class Extraction:
    """One tar on its way into a directory of a container. Give it the entries in their order; after an error throw the tree away.

    Args:
        tree: the file systems that can be written are LayerWriters.
        destination: a directory, with no link on its way.
        keep_directories: refuse entries that would put a directory in the place of another file, or the reverse.
        owner: of all entries; None: as the tar says.
        now_ns: nanoseconds since the epoch: the time of directories that no entry tells of.
    """

    def __init__(
        self,
        tree: MountedTree[FilesWritten],
        destination: bytes,
        *,
        keep_directories: bool,
        owner: Owner | None,
        now_ns: int,
    ) -> None:
        self._tree = tree
        self._destination = destination
        self._now_ns = now_ns
        self._keep_directories = keep_directories
        self._owner = owner
        # Directory of the archive to where it is in the container; it is there, and is a directory.
        self._directories: dict[bytes, bytes] = {b"": destination}

    def apply(self, change: Change) -> None:
        """Puts one entry in.

        Raises:
            InvalidError: it cannot be put there; docker's and the kernel's words.
            DeniedError: its place cannot be written.
            InUseError: a volume is mounted on or below what it would replace.
            NoSpaceError: a file system is full.
        """
        if not isinstance(change, Entry | HardLink):
            raise TypeError(f"{change}: is of a layer")
        if not change.path:
            return  # of "." docker takes no attributes
        above, _, name = change.path.rpartition(b"/")
        path = _joined(self._directory(above, change), name)
        kind = change.type if isinstance(change, Entry) else None
        found = self._tree.type_at(path)
        if found is not None:
            self._check_replacement(change.path, path, found, kind)
        if isinstance(change, HardLink):
            self._link(change, path)
        else:
            self._put(change, path, found)
        if found is FileType.SYMLINK or (found is FileType.DIRECTORY and kind is not FileType.DIRECTORY):
            self._directories = {b"": self._destination}  # ways through it lead elsewhere now

    def _put(self, entry: Entry, path: bytes, found: FileType | None) -> None:
        if entry.type is FileType.SYMLINK:
            self._check_target(entry)
        writer, inner = self._writer(path)
        entry.path = inner
        if self._owner is not None:
            entry.uid, entry.gid = self._owner
        if found is FileType.DIRECTORY and entry.type is FileType.DIRECTORY:
            self._merge_attributes(entry, writer)
        writer.apply(entry)

    @staticmethod
    def _merge_attributes(directory: Entry, writer: LayerWriter) -> None:
        """What a directory that is there keeps: extended attributes, which are only added to, and what its ACL says beside the mode."""
        if writer.type_at(directory.path) is None:
            return  # it is on the way to a mount point, and not on the disk
        kept = dict(writer.status_at(directory.path).xattrs)
        if ACL_ACCESS in kept:
            kept[ACL_ACCESS] = acl_with_mode(kept[ACL_ACCESS], directory.mode)
        directory.xattrs = {**kept, **directory.xattrs}

    def _link(self, link: HardLink, path: bytes) -> None:
        above, _, name = link.target.rpartition(b"/")
        words = f"link {self._shown(link.target)} {self._shown(link.path)}"
        target = _joined(self._tree.follow(_joined(self._destination, above)), name)
        found = self._tree.type_at(target)
        if found is None:
            raise InvalidError(f"{words}: no such file or directory")
        if found is FileType.DIRECTORY:
            raise InvalidError(f"{words}: operation not permitted")
        writer, inner = self._writer(path)
        mount, inner_target = self._tree.place(target)
        if mount != self._tree.place(path).mount:
            raise InvalidError(f"{words}: invalid cross-device link")
        writer.apply(HardLink(inner, inner_target))

    def _check_replacement(self, name: bytes, path: bytes, found: FileType, kind: FileType | None) -> None:
        is_directory, was_directory = kind is FileType.DIRECTORY, found is FileType.DIRECTORY
        if is_directory and was_directory:
            return
        if self._keep_directories and was_directory:
            raise InvalidError(
                f'cannot overwrite directory "{self._shown(name)}" with non-directory "{shown(self._destination)}"'
            )
        if self._keep_directories and is_directory:
            raise InvalidError(
                f'cannot overwrite non-directory "{self._shown(name)}" with directory "{shown(self._destination)}"'
            )
        mounted = self._tree.place(path).path == b"" or self._tree.mounts_below(path)
        if was_directory and mounted:
            raise InUseError(f"unlinkat {shown(path)}: device or resource busy")

    def _check_target(self, entry: Entry) -> None:
        """Docker refuses links that lead out of the directory that is extracted into, by their text alone."""
        place = _joined(self._destination, entry.path)
        if not shown(normal(posixpath.dirname(place) + b"/" + entry.target)).startswith(shown(self._destination)):
            raise InvalidError(f'invalid symlink "{shown(place)}" -> "{os.fsdecode(entry.target)}"')

    def _directory(self, name: bytes, change: Change) -> bytes:
        """Where a directory of the archive is in the container; those that are missing are made.

        Args:
            change: what it is wanted for.
        """
        found = self._directories.get(name)
        if found is not None:
            return found
        known = name
        while known not in self._directories:
            known = known.rpartition(b"/")[0]
        path = self._directories[known]
        for component in name[len(known) + 1 if known else 0 :].split(b"/"):
            known = _joined(known, component)
            path = self._directories[known] = self._subdirectory(_joined(path, component), change)
        return path

    def _subdirectory(self, path: bytes, change: Change) -> bytes:
        kind = self._tree.type_at(path)
        if kind is FileType.SYMLINK:
            path = self._tree.follow(path)
            kind = self._tree.type_at(path)
            if kind is None:
                raise InvalidError(f"{self._verb(change)}: no such file or directory")  # a link that leads nowhere
        if kind is None:
            writer, inner = self._writer(path)
            above = inner.rpartition(b"/")[0]
            # mkdir(2) hands the bit down.
            inherited = 0 if writer.type_at(above) is None else writer.status_at(above).mode & stat.S_ISGID
            writer.apply(Entry(inner, FileType.DIRECTORY, 0o755 | inherited, mtime_ns=self._now_ns))
        elif kind is not FileType.DIRECTORY:
            raise InvalidError(f"{self._verb(change)}: not a directory")
        return path

    def _verb(self, change: Change) -> str:
        is_directory = isinstance(change, Entry) and change.type is FileType.DIRECTORY
        return f"{'mkdir' if is_directory else 'open'} {self._shown(change.path)}"

    def _writer(self, path: bytes) -> tuple[LayerWriter, bytes]:
        number, inner = self._tree.place(path)
        files = self._tree.files(number)
        if not isinstance(files, LayerWriter) or self._tree.mounts[number].read_only:
            raise DeniedError(f"open {shown(path)}: read-only file system")
        return files, inner

    def _shown(self, name: bytes) -> str:
        """A name of the archive, as a path of the container whose links are not followed: docker's messages have it so."""
        return shown(_joined(self._destination, name))


def _joined(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory and name else directory or name
