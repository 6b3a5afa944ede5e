"""Paths as the kernel follows them for a process whose root is the file system (``path_resolution(7)``, ``fs/namei.c``).

Nothing leads out: ``..`` of the root is the root, an absolute link starts at it, and every component is looked up in the blocks of
the file system itself, never by name on the machine that reads it (CVE-2018-15664 came of the latter).
"""

from __future__ import annotations

from typing import NamedTuple

from imgstore.changes import FileType
from imgstore.errors import InvalidError, NotFoundError
from imgstore.ext4.inodes import Node
from imgstore.ext4.reader import FileSystem, show_path
from imgstore.ext4.structures import NAME_MAX, ROOT_INODE

MOST_LINKS = 40
"""As many symbolic links on one way as Linux follows (``MAXSYMLINKS`` in linux/namei.h)."""

_LONGEST_PATH = 4095


class NotDirectoryError(NotFoundError):
    """The way goes on behind what is no directory (``ENOTDIR``)."""


class ResolvedPath(NamedTuple):
    """Where a path leads.

    Attributes:
        path: in normal form, with no link on its way; ``b""`` is the root.
        node: what is there; None if its directory is there and has no such name, so that it could be made.
    """

    path: bytes
    node: Node | None


def resolve_path(file_system: FileSystem, path: bytes, *, follow_last: bool = True) -> ResolvedPath:
    """Follows ``path``, absolute or not, from the root of the file system.

    Args:
        follow_last: follow the last component if it is a link; always done when ``path`` ends with a slash, or with ``.``.

    Raises:
        NotFoundError: a component that is not the last is missing; the message names it.
        NotDirectoryError: a component that must be a directory, as also the last one before a slash, is none.
        InvalidError: more than 40 links (``ELOOP``), a null byte, a name or a path that is too long (``ENAMETOOLONG``).
        CorruptError, UnsupportedError: a directory or link on the way cannot be read.
    """
    if b"\0" in path or len(path) > _LONGEST_PATH:
        raise InvalidError(f"{show_path(path[:300])}: a path of {len(path)} bytes, allowed are {_LONGEST_PATH} and no null byte")
    ahead = path.split(b"/")[::-1]
    names: list[bytes] = []
    nodes = [file_system.node(ROOT_INODE)]
    links = 0
    while ahead:
        name = ahead.pop()
        here = nodes[-1]
        if here.type is not FileType.DIRECTORY:
            raise NotDirectoryError(f"{show_path(path)}: /{show_path(b'/'.join(names))} is not a directory")
        if name in (b"", b"."):
            continue
        if name == b"..":
            if names:
                names.pop()
                nodes.pop()
            continue
        if len(name) > NAME_MAX:
            raise InvalidError(f"{show_path(path)}: a name of {len(name)} bytes, ext4 allows {NAME_MAX}")
        node = file_system.child(here, name)
        if node is None:
            names.append(name)
            if any(ahead):
                raise NotFoundError(f"{show_path(path)}: /{show_path(b'/'.join(names))} does not exist")
            return ResolvedPath(b"/".join(names), None)
        if node.type is FileType.SYMLINK and (ahead or follow_last):
            links += 1
            if links > MOST_LINKS:
                raise InvalidError(f"{show_path(path)}: too many levels of symbolic links, more than {MOST_LINKS}")
            target = file_system.read_target(node)
            if target.startswith(b"/"):
                names.clear()
                del nodes[1:]
            ahead += target.split(b"/")[::-1]
            continue
        names.append(name)
        nodes.append(node)
    return ResolvedPath(b"/".join(names), nodes[-1])
