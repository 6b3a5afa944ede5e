"""archive_of: a part of a container's tree as the Changes of a tar, named as docker names them; and what docker says of one path."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from imgstore.changes import NO_XATTRS, Change, Entry, FileType, HardLink
from imgstore.copies.tree import FilesRead, MountedTree, NotDirectoryError, Place, check_path, is_below, normal, shown
from imgstore.errors import InvalidError, NotFoundError
from imgstore.ext4.reader import FileStatus

_CAPABILITY = b"security.capability"
_REVISION_AT = 3  # byte of the value (linux/capability.h, VFS_CAP_REVISION_MASK, little-endian)
_REVISION_2, _REVISION_3 = 2, 3
_REVISION_2_SIZE = 20

_DIRECTORY_SIZE = 4096


class PathStatus(NamedTuple):
    """What is at a path of a container.

    Attributes:
        status: of the file itself; the last component of the path is not followed, unless the path ends with a slash.
        name: last component of the path as it was given: ``/`` for the root, ``.`` for a path that ends with ``/.``.
        link_target: where a symbolic link leads when all links are followed, absolute in the container; names that do not exist are
            taken as they stand. Empty for other files.
    """

    status: FileStatus
    name: str
    link_target: str


class _Source(NamedTuple):
    """A path after its links were followed: all, or all but the last component."""

    path: bytes
    name: bytes


def find_path(tree: MountedTree[FilesRead], path: bytes) -> tuple[PathStatus, bytes]:
    """What is at ``path``, and its place with no link on its way.

    Raises:
        NotFoundError: there is nothing.
        InvalidError: the path is none, leads in circles, or goes on behind what is no directory.
    """
    source = _resolve(tree, path)
    kind = tree.type_at(source.path)
    if kind is None:
        raise NotFoundError(f"{shown(normal(path))}: no such file")
    place = tree.place(source.path)
    link_target = shown(tree.follow(normal(path))) if kind is FileType.SYMLINK else ""
    return PathStatus(_status(tree, place), os.fsdecode(source.name), link_target), source.path


def _resolve(tree: MountedTree[FilesRead], path: bytes) -> _Source:
    if not path:
        raise InvalidError("bad parameter: 'path' cannot be empty")
    check_path(path)
    clean = normal(path)
    base = clean.rpartition(b"/")[2]
    is_current = path == b"." or path.endswith(b"/.")
    if not clean or is_current or path.endswith(b"/"):
        found = tree.follow(clean)
        if tree.type_at(found) not in (None, FileType.DIRECTORY):
            raise NotDirectoryError(f"lstat {shown(clean)}/{'.' if is_current else ''}: not a directory")
        return _Source(found, b"." if is_current else base or b"/")
    above = tree.follow(clean.rpartition(b"/")[0])
    if tree.type_at(above) not in (None, FileType.DIRECTORY):
        raise NotDirectoryError(f"lstat {shown(clean)}: not a directory")
    return _Source(above + b"/" + base if above else base, base)


def _status(tree: MountedTree[FilesRead], place: Place) -> FileStatus:
    file_system = tree.files(place.mount).file_system
    try:
        return file_system.status(file_system.lookup(place.path))
    except NotFoundError:  # a directory on the way to a mount point
        return FileStatus(
            inode=0,
            type=FileType.DIRECTORY,
            mode=0o755,
            uid=0,
            gid=0,
            size=_DIRECTORY_SIZE,
            mtime_ns=_made_ns(tree),
            links=2,
            rdev=(0, 0),
            target=b"",
            xattrs=NO_XATTRS,
            blocks=0,
        )


def _made_ns(tree: MountedTree[FilesRead]) -> int:
    """The time of directories that are not on the disk: that of the root, which is there and does not change with every look."""
    file_system = tree.files(0).file_system
    return file_system.lookup(b"").mtime_ns


def archive_of(tree: MountedTree[FilesRead], path: bytes, name: bytes) -> Iterator[Change]:
    """What is at ``path``, with all that is below it and mounted there, parents first.

    A name that is on a mount's way out of sight is left out. Hard links are kept inside each file system. Of extended attributes there
    is what dockerd gives, ``security.capability``: a client that cannot set another one would give up.

    Args:
        path: no link is on its way; it exists.
        name: what it is called in the archive: of a directory ``/`` and ``.`` as well, and docker puts them before all names.
    """
    first = tree.place(path).mount
    for number in (first, *tree.mounts_below(path)):
        start = path if number == first else tree.points[number]
        head = name if start == path else _joined(name, start[len(path) + 1 if path else 0 :])
        yield from _tree_at(tree, number, start, head)


def _tree_at(tree: MountedTree[FilesRead], number: int, start: bytes, head: bytes) -> Iterator[Change]:
    inner = tree.place(start).path
    cut = len(inner) + 1 if inner else 0
    prefix = _joined(head, b"")
    file_system = tree.files(number).file_system
    if tree.files(number).type_at(inner) is not None:
        for change in file_system.changes(inner, without=tree.covered(number)):
            change.path = prefix + change.path[cut:] if change.path != inner else head
            if isinstance(change, HardLink):
                change.target = prefix + change.target[cut:]
            elif isinstance(change, Entry) and change.xattrs:
                change.xattrs = _portable(change.xattrs.get(_CAPABILITY))
            yield change
    for way in tree.ways(number):
        if way == start:
            yield Entry(head, FileType.DIRECTORY, 0o755, mtime_ns=_made_ns(tree))
        elif is_below(way, start):
            yield Entry(prefix + way[len(start) + 1 if start else 0 :], FileType.DIRECTORY, 0o755, mtime_ns=_made_ns(tree))


def _portable(capability: bytes | None) -> dict[bytes, bytes]:
    """The one attribute that docker copies, without the root of the user namespace that it was set in."""
    if capability is None:
        return {}
    if len(capability) > _REVISION_2_SIZE and capability[_REVISION_AT] == _REVISION_3:
        capability = capability[:_REVISION_AT] + bytes([_REVISION_2]) + capability[_REVISION_AT + 1 : _REVISION_2_SIZE]
    return {_CAPABILITY: capability}


def _joined(directory: bytes, name: bytes) -> bytes:
    return directory + name if directory == b"/" else directory + b"/" + name
