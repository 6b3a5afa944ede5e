from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator

from hypothesis import given
from hypothesis import strategies as st

from imgstore.changes import Change, Entry, FileType, HardLink
from imgstore.errors import ImgstoreError
from imgstore.layers.tar_reader import read_changes
from imgstore.layers.tar_writer import write_tar
from tests.hostile_tars import HOSTILE, TREE_ATTACKS
from tests.property.changes import changes, components
from tests.raw_tar import END, file, header, long_name, pax, sparse_header

CAPACITY = 1 << 40


def written(content: Iterable[Change]) -> bytes:
    out = bytearray()
    write_tar(content, out.extend)
    return bytes(out)


def read(pieces: Iterable[bytes]) -> list[Change]:
    """All Changes; data is joined to bytes, so that they can be compared."""
    found = []
    for change in read_changes(pieces, capacity=CAPACITY):
        if isinstance(change, Entry):
            change.data = b"".join(change.data)  # type: ignore[assignment]
        found.append(change)
    return found


def cut(data: bytes, at: Iterable[int]) -> Iterator[bytes]:
    """Pieces that end at these places."""
    start = 0
    for end in sorted(place % (len(data) + 1) for place in at):
        yield data[start:end]
        start = end
    yield data[start:]


def expanded(change: Change) -> Change:
    """A regular file with its holes as runs of zeros and the data around them, for files that differ only in how holes are told."""
    if isinstance(change, Entry) and change.type is FileType.REGULAR:
        stored = b"".join(bytes(piece) for piece in change.data) if not isinstance(change.data, bytes) else change.data
        runs = []
        position = 0
        for offset, length in [(0, change.size)] if change.segments is None else change.segments:
            runs.append((offset, stored[position : position + length]))
            position += length
        assert position == len(stored)
        content = bytearray(change.size)
        for offset, data in runs:
            content[offset : offset + len(data)] = data
        change.segments, change.data = None, bytes(content)  # type: ignore[assignment]
    elif isinstance(change, Entry):
        change.data = b""  # type: ignore[assignment]
    return change


@given(st.lists(changes, max_size=6))
def test_what_is_written_is_read(content: list[Change]) -> None:
    data = written(content)
    assert [expanded(change) for change in read([data])] == [expanded(change) for change in content]


@given(st.lists(changes, max_size=4), st.lists(st.integers(0, 1 << 20), max_size=40))
def test_pieces_do_not_matter(content: list[Change], at: list[int]) -> None:
    data = written(content)
    assert read(cut(data, at)) == read([data])


@given(st.binary(max_size=4000))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    refuse_or_read(data)


SEEDS = [
    *(attack.data[:20_000] for attack in HOSTILE.values()),
    *(data[:20_000] for data in TREE_ATTACKS.values()),
    long_name(b"n" * 300) + file(b"a", b"data" * 300) + END,
    pax((b"path", b"p" * 300), (b"size", b"1200"), (b"mtime", b"-1.5")) + file(b"a", b"data" * 300) + END,
    sparse_header([(10, 10), (100, 502)], 1000, 512) + bytes(512) + header(b"after") + END,
    file(b".wh.a") + header(b"b", flag=b"3", rdev=(1, 3)) + file(b"c", flag=b"1", link=b"b") + END,
]


@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 1 << 14), st.integers(0, 255)), min_size=1, max_size=8))
def test_damaged_archives_are_read_or_refused(seed: bytes, edits: list[tuple[int, int]]) -> None:
    data = bytearray(seed)
    for at, value in edits:
        data[at % len(data)] = value
    refuse_or_read(bytes(data))
    # The same with right checksums, so that the damage comes through to what is behind them.
    for start in range(0, len(data) - 511, 512):
        if data[start + 257 : start + 262] == b"ustar":
            data[start + 148 : start + 156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    refuse_or_read(bytes(data))


def refuse_or_read(data: bytes) -> None:
    try:
        found = read(data[start : start + 700] for start in range(0, len(data), 700))
    except ImgstoreError as error:
        assert "at byte" in str(error)
        return
    for change in found:
        check_contract(change)


def check_contract(change: Change) -> None:
    """What ``imgstore.changes`` promises."""
    assert len(change.path) <= 4096
    assert change.path == b"" or all(0 < len(part) <= 255 and part not in (b".", b"..") for part in change.path.split(b"/"))
    assert b"\0" not in change.path
    if isinstance(change, HardLink):
        assert change.target
        assert change.target != change.path
    if isinstance(change, Entry):
        assert 0 <= change.mode <= 0o7777
        assert 0 <= change.uid < 2**32 - 1
        assert 0 <= change.gid < 2**32 - 1
        assert 0 <= change.size <= CAPACITY
        assert (change.type is FileType.SYMLINK) == bool(change.target)
        assert change.type is FileType.REGULAR or (change.size == 0 and change.segments is None)
        stored = change.size
        if change.segments is not None:
            end = 0
            for offset, length in change.segments:
                assert end <= offset
                assert length > 0
                end = offset + length
            assert end <= change.size
            stored = sum(length for _, length in change.segments)
        assert len(change.data) == stored  # type: ignore[arg-type]


NAMES = st.lists(components.map(lambda name: name.decode("utf-8", "surrogateescape")), min_size=1, max_size=4).map("/".join)


@given(
    st.lists(st.tuples(NAMES, st.binary(max_size=1500), st.integers(0, 2**31), st.integers(0, 8**11)), max_size=5),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_reads_what_python_writes(members: list[tuple[str, bytes, int, int]], form: int) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as tar:
        for name, data, uid, mtime in members:
            member = tarfile.TarInfo(name)
            member.size, member.uid, member.mtime = len(data), uid, mtime
            tar.addfile(member, io.BytesIO(data))
    assert read([out.getvalue()]) == [
        Entry(
            name.encode(errors="surrogateescape"),
            FileType.REGULAR,
            0o644,
            uid,
            0,
            mtime * 10**9,
            len(data),
            data=data,  # type: ignore[arg-type]
        )
        for name, data, uid, mtime in members
    ]
