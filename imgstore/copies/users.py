"""The user of a container as numbers, looked up in the container's own ``/etc/passwd`` and ``/etc/group``.

Source: moby ``daemon/archive_tarcopyoptions_unix.go`` (getUIDGID of 28.x; before, it looked at the files of the host), ``moby/sys/user``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from imgstore.changes import FileType
from imgstore.copies.tree import FilesRead, MountedTree
from imgstore.errors import InvalidError

_LARGEST_ID: Final = (1 << 31) - 1
_LARGEST_FILE: Final = 16 << 20
"""Bytes of a passwd or group file; 100,000 users take half of it."""


class Owner(NamedTuple):
    """Who owns a file."""

    uid: int
    gid: int


def find_owner(tree: MountedTree[FilesRead], user: str) -> Owner:
    """The numbers of ``user[:group]``, each a name or a number; what is empty is root.

    Without a group it is the user's own, or root's if the container does not know the number.

    Raises:
        InvalidError: a name is not known, or the file with the names cannot be one.
    """
    name, _, group = user.partition(":")
    uid = gid = 0
    if name:
        uid, gid = _find_user(tree, name)
    if group:
        gid = _find_group(tree, group)
    return Owner(uid, gid)


def _find_user(tree: MountedTree[FilesRead], name: str) -> tuple[int, int]:
    number = _number(name)
    for fields in _records(tree, b"etc/passwd"):
        if len(fields) > 3 and (fields[0] == name if number is None else _number(fields[2]) == number):
            return _number(fields[2]) or 0, _number(fields[3]) or 0
    if number is None:
        raise InvalidError(f'failed to look up user "{name}" in container: no matching entries in passwd file')
    return number, 0


def _find_group(tree: MountedTree[FilesRead], name: str) -> int:
    number = _number(name)
    if number is not None:
        return number
    for fields in _records(tree, b"etc/group"):
        if len(fields) > 2 and fields[0] == name:
            return _number(fields[2]) or 0
    raise InvalidError(f'failed to look up group "{name}" in container: no matching entries in group file')


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _LARGEST_ID else None


def _records(tree: MountedTree[FilesRead], path: bytes) -> Iterator[list[str]]:
    found = tree.follow(path)
    if tree.type_at(found) is not FileType.REGULAR:
        return
    number, inner = tree.place(found)
    file_system = tree.files(number).file_system
    node = file_system.lookup(inner)
    if node.size > _LARGEST_FILE:
        raise InvalidError(f"/{path.decode()}: has {node.size} bytes, more than {_LARGEST_FILE}")
    for line in file_system.read(node, 0, node.size).decode(errors="replace").split("\n"):
        yield line.strip().split(":")
