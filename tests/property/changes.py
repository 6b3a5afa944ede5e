"""Strategies: any Change that a layer can hold."""

from __future__ import annotations

from hypothesis import strategies as st

from imgstore.changes import Change, Entry, FileType, HardLink, Opaque, Whiteout


def _is_file_name(component: bytes) -> bool:
    return component not in (b".", b"..") and not component.startswith(b".wh.")


_short = st.binary(min_size=1, max_size=12) | st.sampled_from([b"a", b"b", b"usr", b"n" * 99, b"n" * 100, b"n" * 101, b"n" * 255])
components = _short.map(lambda name: name.replace(b"\0", b"_").replace(b"/", b".")).filter(_is_file_name)
paths = st.lists(components, min_size=1, max_size=5).map(b"/".join)
ids = st.integers(0, 2**32 - 2) | st.sampled_from([0, 1000, 2097151, 2097152])
times = st.integers(-(2**63), 2**63) | st.sampled_from([0, 1, -1, 10**9, 8**11 * 10**9, 1_700_000_000_123_456_789])
xattrs = st.dictionaries(
    st.binary(min_size=1, max_size=20).filter(lambda name: b"\0" not in name).map(lambda name: b"user." + name),
    st.binary(max_size=50),
    max_size=3,
)


@st.composite
def sparse_maps(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    """Size, and segments with holes between them of all sizes."""
    position = 0
    segments = []
    for gap, length in draw(st.lists(st.tuples(st.integers(1, 1 << 21), st.integers(1, 2000)), max_size=5)):
        segments.append((position + gap, length))
        position += gap + length
    return position + draw(st.integers(1, 1 << 21)), segments


@st.composite
def regular_files(draw: st.DrawFn) -> Entry:
    data = draw(st.binary(max_size=3000))
    size, segments = len(data), None
    if draw(st.booleans()):
        size, segments = draw(sparse_maps())
        data = (data + bytes(10_000))[: sum(length for _, length in segments)]
    entry = draw(_entries(st.just(FileType.REGULAR)))
    entry.size, entry.segments, entry.data = size, segments, [memoryview(data)]
    return entry


@st.composite
def _entries(draw: st.DrawFn, types: st.SearchStrategy[FileType]) -> Entry:
    entry = Entry(draw(paths), draw(types), draw(st.integers(0, 0o7777)), draw(ids), draw(ids), draw(times), xattrs=draw(xattrs))
    if entry.type is FileType.SYMLINK:
        entry.target = draw(st.binary(min_size=1, max_size=200).filter(lambda target: b"\0" not in target))
    if entry.type in (FileType.CHARACTER_DEVICE, FileType.BLOCK_DEVICE):
        entry.rdev = (draw(st.integers(0, 4095)), draw(st.integers(0, 2**20 - 1)))
    return entry


_others = [FileType.DIRECTORY, FileType.SYMLINK, FileType.CHARACTER_DEVICE, FileType.BLOCK_DEVICE, FileType.FIFO]
_links = st.tuples(paths, paths).filter(lambda pair: pair[0] != pair[1]).map(lambda pair: HardLink(*pair))
changes: st.SearchStrategy[Change] = st.one_of(
    regular_files(),
    _entries(st.sampled_from(_others)),
    _links,
    paths.filter(lambda path: len(path.rpartition(b"/")[2]) <= 251).map(Whiteout),
    (paths | st.just(b"")).map(Opaque),
)
"""One Change; regular files have all their data in one piece."""
