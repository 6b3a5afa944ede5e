"""moby's rules for what changed between two trees (``go-archive``: ``changes.go``, ``changes_unix.go``), by comparing all of both."""

from __future__ import annotations

import stat
from dataclasses import replace

from tests.judges.tree import Node, Tree

CHANGED, ADDED, DELETED = range(3)
_SECOND = 10**9


def changes(before: Tree, after: Tree, *, exact: bool = False) -> list[tuple[bytes, int]]:
    """(path, kind) of what docker lists, sorted by path; ``exact`` compares all that the trees know, which docker does not."""
    found = dict.fromkeys(after.keys() - before.keys(), ADDED)
    for path in before.keys() - after.keys():
        above = after.get(_above(path))
        if above is not None and above.type == stat.S_IFDIR:
            found[path] = DELETED
    for path in before.keys() & after.keys():
        if path and (_differ_exactly if exact else _differ)(before[path], after[path]):
            found[path] = CHANGED
    for path in list(found):
        while path := _above(path):
            found.setdefault(path, CHANGED)
    return sorted(found.items())


def _above(path: bytes) -> bytes:
    return path.rpartition(b"/")[0]


def _differ(old: Node, new: Node) -> bool:
    if (old.type, old.mode, old.uid, old.gid, old.rdev) != (new.type, new.mode, new.uid, new.gid, new.rdev):
        return True
    if old.type != stat.S_IFDIR and (old.size != new.size or not _same_time(old.mtime_ns or 0, new.mtime_ns or 0)):
        return True
    return old.xattrs.get(b"security.capability", b"") != new.xattrs.get(b"security.capability", b"")


def _same_time(old: int, new: int) -> bool:
    return old == new or (old // _SECOND == new // _SECOND and 0 in (old % _SECOND, new % _SECOND))


def _differ_exactly(old: Node, new: Node) -> bool:
    return replace(old, names=()) != replace(new, names=())
