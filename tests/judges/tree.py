"""A directory tree as comparable values: everything a container could see, nothing that depends on the file system below.

The walk opens each directory relative to its parent, so that paths may be as long as the kernel allows inside the tree (4095 bytes),
wherever the tree itself lies.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

BLOCK = 1 << 16
"""Content is hashed in blocks of this size; a block of zeros counts as a hole, whether it is stored or not."""

_PIECE = 64 * BLOCK
_ZEROS = bytes(_PIECE)


@dataclass(frozen=True, slots=True)
class Node:
    """One file of a tree. Two nodes are equal when a container could not tell them apart.

    Attributes:
        type: ``stat.S_IFMT`` of the mode.
        size: bytes of a regular file or of a symlink's target; 0 for other types, where the file system decides.
        content: digest of a regular file, see ``content_digest``.
        names: all names of this file inside the tree, sorted; of length 1 for a directory.
        mtime_ns: None where nobody says what it should be (parents that no layer mentions).
    """

    type: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int | None
    size: int = 0
    content: str = ""
    names: tuple[bytes, ...] = ()
    target: bytes = b""
    rdev: tuple[int, int] = (0, 0)
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)


Tree = dict[bytes, Node]
"""Path relative to the root, without a leading slash, to node; the root itself is ``b""``."""


class ContentDigest:
    """Digest of a sparse byte string: sha256 over (offset, bytes) of each 64 KiB block that is not all zeros.

    Equal for equal contents, whichever zeros are holes; the length is not part of it. Pieces come at ascending multiples of ``BLOCK``;
    what is skipped is zeros.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def update(self, offset: int, data: bytes) -> None:
        if data == _ZEROS:
            return
        for start in range(0, len(data), BLOCK):
            block = data[start : start + BLOCK]
            if block.count(0) != len(block):
                self._hash.update((offset + start).to_bytes(8, "little"))
                self._hash.update(block)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def content_digest(data: bytes) -> str:
    """The digest that ``tree_of`` gives a file of these bytes."""
    digest = ContentDigest()
    digest.update(0, data)
    return digest.hexdigest()


def data_runs(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """The (offset, length) runs of an open file that may hold data, widened to multiples of ``BLOCK``, ascending and disjoint."""
    position = 0
    while position < size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        stop = os.lseek(descriptor, start, os.SEEK_HOLE)
        start -= start % BLOCK
        stop = min(stop + -stop % BLOCK, size)
        yield start, stop - start
        position = stop


def tree_of(directory: Path, *, contents: bool = True) -> Tree:
    """Reads everything below ``directory``: attributes, all xattrs that root sees, and with ``contents`` every byte.

    Raises:
        OSError: something cannot be read, as where an xattr is listed and not there.
    """
    nodes: Tree = {}
    inodes: dict[bytes, tuple[int, int]] = {}
    # (descriptor of the directory, its path, names that are left): one descriptor a level, never a path longer than a name.
    root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    nodes[b""] = _node(root, b".", os.fstat(root), contents)
    stack: list[tuple[int, bytes, list[bytes]]] = [(root, b"", _names(root))]
    try:
        while stack:
            parent, prefix, left = stack[-1]
            if not left:
                os.close(parent)
                stack.pop()
                continue
            name = left.pop()
            path = prefix + name
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            nodes[path] = _node(parent, name, status, contents)
            if stat.S_ISDIR(status.st_mode):
                child = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
                stack.append((child, path + b"/", _names(child)))
            elif status.st_nlink > 1:
                inodes[path] = (status.st_dev, status.st_ino)
    finally:
        for descriptor, _, _ in stack:
            os.close(descriptor)
    _name_links(nodes, inodes)
    return nodes


def _name_links(nodes: Tree, inodes: Mapping[bytes, tuple[int, int]]) -> None:
    groups: dict[tuple[int, int], list[bytes]] = {}
    for path, inode in inodes.items():
        groups.setdefault(inode, []).append(path)
    for path, node in nodes.items():
        names = tuple(sorted(groups[inodes[path]])) if path in inodes else (path,)
        nodes[path] = replace(node, names=names)


def _names(directory: int) -> list[bytes]:
    return [os.fsencode(name) for name in os.listdir(directory)]


def _node(parent: int, name: bytes, status: os.stat_result, contents: bool) -> Node:
    # The xattr calls take no directory descriptor; this path stays short and does not follow the last name.
    path = b"/proc/self/fd/%d/%s" % (parent, name)
    kind = stat.S_IFMT(status.st_mode)
    target = os.readlink(name, dir_fd=parent) if kind == stat.S_IFLNK else b""
    device = kind in (stat.S_IFCHR, stat.S_IFBLK)
    return Node(
        type=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        size=status.st_size if kind in (stat.S_IFREG, stat.S_IFLNK) else 0,
        content=_content(parent, name, status.st_size) if contents and kind == stat.S_IFREG else "",
        target=target,
        rdev=(os.major(status.st_rdev), os.minor(status.st_rdev)) if device else (0, 0),
        xattrs=_xattrs(path),
    )


def _xattrs(path: bytes) -> dict[bytes, bytes]:
    return {os.fsencode(key): os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)}


def _content(parent: int, name: bytes, size: int) -> str:
    digest = ContentDigest()
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=parent)
    try:
        if size <= BLOCK:
            digest.update(0, os.read(descriptor, BLOCK))
        else:
            for start, length in data_runs(descriptor, size):
                for offset in range(start, start + length, _PIECE):
                    digest.update(offset, os.pread(descriptor, min(_PIECE, start + length - offset), offset))
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def diff(expected: Tree, actual: Tree, *, without_mtime: Collection[bytes] = (), limit: int = 40) -> list[str]:
    """What a reader must know where two trees differ, a line a difference; empty when they are equal.

    Args:
        without_mtime: paths whose mtime is not compared.
        limit: after this many lines the rest is only counted.
    """
    lines: list[str] = []
    for path in sorted(expected.keys() | actual.keys()):
        if path not in actual:
            lines.append(f"{_show(path)}: missing, expected {_kind(expected[path])}")
        elif path not in expected:
            lines.append(f"{_show(path)}: not expected, is {_kind(actual[path])}")
        elif expected[path] != actual[path]:
            lines.extend(_differences(path, expected[path], actual[path], path not in without_mtime))
    if len(lines) > limit:
        lines[limit:] = [f"... and {len(lines) - limit} more"]
    return lines


def _differences(path: bytes, expected: Node, actual: Node, mtime: bool) -> Iterator[str]:
    for one in fields(Node):
        left, right = getattr(expected, one.name), getattr(actual, one.name)
        if left == right or (one.name == "mtime_ns" and (not mtime or left is None or right is None)):
            continue
        if one.name in ("mode", "type"):
            left, right = oct(left), oct(right)
        elif one.name == "xattrs":
            keys = {key for key in left.keys() | right.keys() if left.get(key) != right.get(key)}
            left, right = ({key: _short(side.get(key)) for key in sorted(keys)} for side in (left, right))
        yield f"{_show(path)}: {one.name} is {right}, expected {left}"


def _short(value: bytes | None) -> str:
    if value is None:
        return "absent"
    return (
        repr(value)
        if len(value) <= 64
        else f"{value[:32]!r}... ({len(value)} bytes, sha256 {hashlib.sha256(value).hexdigest()[:12]})"
    )


def _show(path: bytes) -> str:
    text = repr(path)[2:-1] or "/"
    return text if len(text) <= 200 else f"{text[:80]}...({len(path)} bytes)...{text[-80:]}"


def _kind(node: Node) -> str:
    return f"{stat.filemode(node.type | node.mode)} {node.uid}:{node.gid} size {node.size}"
