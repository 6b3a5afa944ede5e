"""The tree of a container: paths across mounts, and links that point anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from imgstore.changes import NO_XATTRS, FileType
from imgstore.copies.tree import MountedTree, MountPoint, NotDirectoryError, Place, normal
from imgstore.errors import InvalidError
from imgstore.ext4.reader import FileStatus

D, F = FileType.DIRECTORY, FileType.REGULAR


@dataclass
class Model:
    """A file system as a dict: a type, or the target of a link."""

    nodes: Mapping[bytes, FileType | bytes]

    def type_at(self, path: bytes) -> FileType | None:
        found = self.nodes.get(path, None if path else D)
        return FileType.SYMLINK if isinstance(found, bytes) else found

    def status_at(self, path: bytes) -> FileStatus:
        target = self.nodes[path]
        assert isinstance(target, bytes)
        return FileStatus(0, FileType.SYMLINK, 0o777, 0, 0, len(target), 0, 1, (0, 0), target, NO_XATTRS, 0)


OWN = Model(
    {
        b"a": D,
        b"a/b": D,
        b"a/b/file": F,
        b"a/up": b"../../../../a/b",
        b"abs": b"/a/b",
        b"rel": b"a/./b/",
        b"chain": b"rel",
        b"loop": b"loop",
        b"one": b"other",
        b"other": b"one/x",
        b"dangling": b"/none/../not/./there",
        b"dots": b"..",
        b"root": b"/",
        b"into-volume": b"/a/v/l",
    }
)
VOLUME = Model({b"l": b"/a/b", b"d": D, b"d/up": b"../..", b"d/f": F})


def mounted(*mounts: tuple[bytes, bool]) -> MountedTree[Model]:
    points = [MountPoint(destination, "vv", read_only) for destination, read_only in mounts]
    return MountedTree(OWN, [MountPoint(b"", "", False), *points], lambda name: VOLUME)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/", b""),
        (b"a/b/../b/./file", b"a/b/file"),
        (b"../../..", b""),
        (b"a/up/file", b"a/b/file"),
        (b"abs", b"a/b"),
        (b"rel/file", b"a/b/file"),
        (b"chain", b"a/b"),
        (b"dangling", b"not/there"),
        (b"dots/dots/a", b"a"),
        (b"root/root/abs/../up", b"a/b"),
        (b"none/../x/y", b"x/y"),
        (b"into-volume/file", b"a/b/file"),
        (b"a/v/d/up", b"a"),
        (b"a/v/d/up/b", b"a/b"),
    ],
)
def test_where_paths_lead(path: bytes, expected: bytes) -> None:
    assert expected == mounted((b"/a/v", False)).follow(path)


@pytest.mark.parametrize(
    ("path", "kind", "words"),
    [
        (b"loop", InvalidError, "stat /loop: too many levels of symbolic links"),
        (b"one/y", InvalidError, "too many levels"),
        (b"a/b/file/x", NotDirectoryError, "lstat /a/b/file/x: not a directory"),
        (b"a/b/file/.", NotDirectoryError, "not a directory"),
        (b"a\0", InvalidError, "no NUL byte"),
        (b"x" * 5000, InvalidError, "a path of 5000 bytes"),
    ],
)
def test_paths_that_lead_nowhere(path: bytes, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        mounted().follow(path)


def test_mounts() -> None:
    tree = mounted((b"/x/y/deep", True), (b"/abs/inner", False), (b"/a/b", False), (b"/abs/inner/d/more", False))
    assert tree.points == [b"", b"a/b", b"a/b/inner", b"x/y/deep", b"a/b/inner/d/more"]
    assert [mount.read_only for mount in tree.mounts] == [False, False, False, True, False]
    assert tree.place(b"a/b/inner/d/f") == Place(2, b"d/f")
    assert tree.place(b"a/b/innermost") == Place(1, b"innermost")
    assert tree.place(b"a") == Place(0, b"a")
    assert tree.mounts_below(b"a/b") == [2, 4] and tree.mounts_below(b"") == [1, 2, 3, 4]
    assert tree.covered(0) == {b"a/b", b"x/y/deep"} and tree.covered(1) == {b"inner"} and tree.covered(2) == {b"d/more"}
    assert tree.ways(0) == [b"x", b"x/y"] and tree.ways(2) == []
    for path in (b"x", b"x/y", b"x/y/deep", b"a/b/inner", b"a/b/inner/d"):
        assert tree.type_at(path) is D, path
    assert tree.type_at(b"x/z") is None


def test_volumes_are_opened_when_they_are_needed() -> None:
    opened = []

    def open_volume(name: str) -> Model:
        opened.append(name)
        return VOLUME

    tree = MountedTree(OWN, [MountPoint(b"", "", False), MountPoint(b"/a/v", "vv", False)], open_volume)
    assert tree.type_at(b"a/b/file") is F and tree.follow(b"/a/v") == b"a/v"
    assert opened == []
    assert tree.type_at(b"a/v/d/f") is F and tree.type_at(b"a/v/d") is D
    assert opened == ["vv"]


@pytest.mark.parametrize(
    ("path", "expected"), [(b"/", b""), (b"//a//b/", b"a/b"), (b"a/../../b", b"b"), (b".", b""), (b"a/.", b"a"), (b"/..", b"")]
)
def test_normal_paths(path: bytes, expected: bytes) -> None:
    assert expected == normal(path)
