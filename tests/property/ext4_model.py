"""A file tree as a dict, with the rules by which a layer changes it; and strategies that make layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from hypothesis import strategies as st

from imgstore.changes import Change, Entry, FileType, HardLink, Opaque, Whiteout
from imgstore.ext4.reader import FileSystem


@dataclass(eq=False)
class File:
    """One file; hard links are one object under several paths."""

    type: FileType
    mode: int
    uid: int = 0
    mtime_ns: int = 0
    data: bytes = b""
    target: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


Tree = dict[bytes, File]


def _implied() -> File:
    return File(FileType.DIRECTORY, 0o755)


def _above(path: bytes) -> list[bytes]:
    parts = path.split(b"/")
    return [b"/".join(parts[:depth]) for depth in range(1, len(parts))]


def _remove(tree: Tree, path: bytes, *, itself: bool) -> None:
    prefix = path + b"/" if path else b""
    for name in [name for name in tree if name.startswith(prefix) and name]:
        if name != path:
            del tree[name]
    if itself:
        tree.pop(path, None)


def apply_model(tree: Tree, layer: Sequence[Change]) -> list[Change]:
    """Changes ``tree`` as ``layer`` says; returns the layer without the hard links that cannot be made."""
    for change in layer:
        if isinstance(change, Whiteout) and all(_is_directory(tree, above) for above in _above(change.path)):
            _remove(tree, change.path, itself=True)
        if isinstance(change, Opaque) and _is_directory(tree, change.path):
            _remove(tree, change.path, itself=False)
    possible: list[Change] = []
    for change in layer:
        if isinstance(change, HardLink):
            target = tree.get(change.target)
            if target is None or target.type is FileType.DIRECTORY:
                continue
            _make_way(tree, change.path)
            tree[change.path] = target
        elif isinstance(change, Entry):
            _apply_entry(tree, change)
        possible.append(change)
    return possible


def _is_directory(tree: Tree, path: bytes) -> bool:
    return path in tree and tree[path].type is FileType.DIRECTORY


def _make_way(tree: Tree, path: bytes) -> None:
    for above in _above(path):
        if not _is_directory(tree, above):
            tree[above] = _implied()
    _remove(tree, path, itself=True)


def _apply_entry(tree: Tree, entry: Entry) -> None:
    file = File(entry.type, entry.mode, entry.uid, entry.mtime_ns, b"".join(entry.data), entry.target, dict(entry.xattrs))
    if entry.segments is not None:
        whole, position = bytearray(entry.size), 0
        for offset, length in entry.segments:
            whole[offset : offset + length] = file.data[position : position + length]
            position += length
        file = replace(file, data=bytes(whole))
    if not (entry.type is FileType.DIRECTORY and _is_directory(tree, entry.path)):
        _make_way(tree, entry.path)
    tree[entry.path] = file


def describe_model(tree: Tree) -> dict[bytes, tuple[object, ...]]:
    """What ``describe_file_system`` gives of the same files."""
    first: dict[int, bytes] = {}
    found: dict[bytes, tuple[object, ...]] = {}
    for path, file in sorted(tree.items(), key=lambda item: item[0].split(b"/")):
        link = first.setdefault(id(file), path)
        mode = 0o777 if file.type is FileType.SYMLINK else file.mode
        found[path] = (file.type, mode, file.uid, file.mtime_ns, file.data, file.target, file.xattrs, link)
    return found


def describe_file_system(file_system: FileSystem, *, without: bytes | None = None) -> dict[bytes, tuple[object, ...]]:
    """Type, mode, uid, mtime, content, target, xattrs and first name of every file but those in ``without``."""
    found: dict[bytes, tuple[object, ...]] = {}
    for change in file_system.changes():
        if without is not None and change.path.split(b"/")[0] == without:
            continue
        if isinstance(change, HardLink):
            found[change.path] = (*found[change.target][:-1], change.target)
            continue
        assert isinstance(change, Entry)
        node = file_system.lookup(change.path)
        data = b"".join(file_system.read_file(node)) if change.type is FileType.REGULAR else b""
        row = (change.type, change.mode, change.uid, change.mtime_ns, data, change.target, dict(change.xattrs), change.path)
        found[change.path] = row
    return found


NAMES = st.sampled_from([b"a", b"b", b"c", b"long-" * 50, "é".encode()])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)
TIMES = st.integers(-(2**31) * 10**9, (2**31 - 1 + 3 * 2**32) * 10**9)
XATTRS = st.dictionaries(
    st.sampled_from([b"user.a", b"user.long-name-of-an-attribute", b"security.capability", b"trusted.x"]),
    st.binary(max_size=40) | st.binary(min_size=800, max_size=900),
    max_size=3,
)
_BLOCKS = st.lists(st.sampled_from([bytes(4096), b"x" * 4096, bytes(4095) + b"y"]), max_size=6).map(b"".join)
DATA = st.binary(max_size=50) | st.tuples(_BLOCKS, st.binary(max_size=30)).map(b"".join)


@st.composite
def _files(draw: st.DrawFn) -> Entry:
    data = draw(DATA)
    entry = Entry(draw(PATHS), FileType.REGULAR, draw(st.integers(0, 0o7777)), draw(st.sampled_from([0, 1000, 2**32 - 2])))
    entry.mtime_ns, entry.xattrs, entry.size = draw(TIMES), draw(XATTRS), len(data)
    step = draw(st.sampled_from([1 << 20, 4096, 5000, 512]))
    entry.data = [memoryview(data)[start : start + step] for start in range(0, len(data), step)]
    if draw(st.booleans()) and data:
        entry.segments, offset = [], 0
        for start in range(0, len(data), 6000):
            length = min(6000, len(data) - start)
            offset += draw(st.integers(0, 10_000))
            entry.segments.append((offset, length))
            offset += length
        entry.size = offset + draw(st.integers(0, 10_000))
    return entry


_DIRECTORIES = st.builds(
    Entry, PATHS | st.just(b""), st.just(FileType.DIRECTORY), st.integers(0, 0o7777), mtime_ns=TIMES, xattrs=XATTRS
)
_SYMLINKS = st.builds(
    Entry, PATHS, st.just(FileType.SYMLINK), st.just(0o777), mtime_ns=TIMES, target=st.integers(1, 80).map(lambda n: b"t" * n)
)
CHANGES = st.one_of(
    _files(),
    _files(),
    _DIRECTORIES,
    _SYMLINKS,
    st.builds(HardLink, PATHS, PATHS),
    st.builds(Whiteout, PATHS),
    st.builds(Opaque, PATHS),
)
LAYERS = st.lists(st.lists(CHANGES, max_size=12), min_size=1, max_size=4)
