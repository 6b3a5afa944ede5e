"""The OCI layer rules as a dict of files: what a stack of layer tars means, computed by Python's tarfile and a tree in memory.

A second judge beside umoci: it says what the specification says (image-spec, layer.md) where umoci cannot go (paths near 4096 bytes) or
goes its own way. Whiteouts and opaque directories of a layer act on the layers below, wherever in the tar they stand.
"""

from __future__ import annotations

import stat
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.judges.tree import BLOCK, ContentDigest, Node, Tree

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_TYPES = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.AREGTYPE: stat.S_IFREG,
    tarfile.CONTTYPE: stat.S_IFREG,
    tarfile.GNUTYPE_SPARSE: stat.S_IFREG,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}


@dataclass(eq=False, slots=True)
class _File:
    type: int
    mode: int
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    content: str = ""
    target: bytes = b""
    rdev: tuple[int, int] = (0, 0)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    children: dict[bytes, _File] = field(default_factory=dict)
    said: bool = True
    """False for a parent that no layer mentions: its attributes are a choice, 0755 root:root 0 being ours."""


class Model:
    """A root file system to which layers are applied one after the other."""

    def __init__(self) -> None:
        self._root = _implicit_directory()

    def apply(self, layer: Path) -> None:
        """Applies one layer, an uncompressed tar."""
        with tarfile.open(layer, "r:", encoding="utf-8", errors="surrogateescape") as tar:
            members = [(_normal(member.name), member) for member in tar]
            for path, _ in members:
                self._remove_below(path)
            for path, member in members:
                if not _last(path).startswith(_WHITEOUT):
                    self._put(path, member, tar)

    def tree(self) -> Tree:
        """What the layers so far mean, comparable to ``tree_of`` a directory."""
        names: dict[int, list[bytes]] = {}
        files = dict(_walk(b"", self._root))
        for path, file in files.items():
            names.setdefault(id(file), []).append(path)
        return {path: _node(file, tuple(sorted(names[id(file)]))) for path, file in files.items()}

    def unsaid(self) -> set[bytes]:
        """Paths of directories that no layer mentions: nobody says what their attributes are."""
        return {path for path, file in _walk(b"", self._root) if not file.said}

    def _remove_below(self, path: bytes) -> None:
        name = _last(path)
        if not name.startswith(_WHITEOUT):
            return
        parent = self._find(path[: -len(name)].rstrip(b"/"))
        if parent is None:
            return
        if name == _OPAQUE:
            parent.children.clear()
        else:
            parent.children.pop(name[len(_WHITEOUT) :], None)

    def _find(self, path: bytes) -> _File | None:
        here = self._root
        for name in path.split(b"/") if path else ():
            found = here.children.get(name)
            if found is None:
                return None
            here = found
        return here

    def _put(self, path: bytes, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
        if member.islnk():
            target = self._find(_normal(member.linkname))
            assert target is not None, f"hard link {path!r} to {member.linkname!r}, which is not there"
            new = target
        else:
            new = _file(member, tar)
        if not path:
            assert new.type == stat.S_IFDIR
            new.children = self._root.children
            self._root = new
            return
        parent = self._root
        *parents, name = path.split(b"/")
        for step in parents:
            below = parent.children.get(step)
            if below is None or below.type != stat.S_IFDIR:
                below = parent.children[step] = _implicit_directory()
            parent = below
        old = parent.children.get(name)
        if old is not None and old.type == stat.S_IFDIR and new.type == stat.S_IFDIR:
            new.children = old.children
        parent.children[name] = new


def model_of(layers: Iterable[Path]) -> Model:
    """The root file system that a stack of uncompressed layers means."""
    model = Model()
    for layer in layers:
        model.apply(layer)
    return model


def _implicit_directory() -> _File:
    return _File(stat.S_IFDIR, 0o755, said=False)


def _walk(path: bytes, file: _File) -> Iterator[tuple[bytes, _File]]:
    stack = [(path, file)]
    while stack:
        path, file = stack.pop()
        yield path, file
        prefix = path + b"/" if path else b""
        stack.extend((prefix + name, child) for name, child in file.children.items())


def _node(file: _File, names: tuple[bytes, ...]) -> Node:
    return Node(
        type=file.type,
        mode=file.mode,
        uid=file.uid,
        gid=file.gid,
        mtime_ns=file.mtime_ns,
        size=len(file.target) if file.type == stat.S_IFLNK else file.size,
        content=file.content,
        names=names,
        target=file.target,
        rdev=file.rdev,
        xattrs=file.xattrs,
    )


def _file(member: tarfile.TarInfo, tar: tarfile.TarFile) -> _File:
    kind = _TYPES[member.type]
    return _File(
        type=kind,
        mode=0o777 if kind == stat.S_IFLNK else stat.S_IMODE(member.mode),
        uid=member.uid,
        gid=member.gid,
        mtime_ns=_mtime_ns(member),
        size=member.size if kind == stat.S_IFREG else 0,
        content=_content(member, tar) if kind == stat.S_IFREG else "",
        target=_bytes(member.linkname) if kind == stat.S_IFLNK else b"",
        rdev=(member.devmajor, member.devminor) if kind in (stat.S_IFCHR, stat.S_IFBLK) else (0, 0),
        xattrs={
            _bytes(key.removeprefix("SCHILY.xattr.")): _bytes(value)
            for key, value in member.pax_headers.items()
            if key.startswith("SCHILY.xattr.")
        },
    )


def _mtime_ns(member: tarfile.TarInfo) -> int:
    text = member.pax_headers.get("mtime")
    if text is None:
        return int(member.mtime) * 10**9
    whole, _, fraction = text.removeprefix("-").partition(".")
    magnitude = int(whole) * 10**9 + int(fraction[:9].ljust(9, "0"))
    return -magnitude if text.startswith("-") else magnitude


def _content(member: tarfile.TarInfo, tar: tarfile.TarFile) -> str:
    digest = ContentDigest()
    file = tar.extractfile(member)
    assert file is not None
    data: list[tuple[int, int]] = [(0, member.size)] if member.sparse is None else list(member.sparse)
    covered = 0
    for start, length in data:
        # Blocks that a run begins or ends inside are read whole; a block that two runs share is read once.
        first = max(start - start % BLOCK, covered)
        stop = min(start + length + -(start + length) % BLOCK, member.size)
        file.seek(first)
        for offset in range(first, stop, 16 * BLOCK):
            digest.update(offset, file.read(min(16 * BLOCK, stop - offset)))
        covered = max(covered, stop)
    return digest.hexdigest()


def _normal(name: str) -> bytes:
    return b"/".join(part for part in _bytes(name).split(b"/") if part not in (b"", b"."))


def _last(path: bytes) -> bytes:
    return path.rpartition(b"/")[2]


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
