from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence

import pytest

from imgstore.changes import Change, Entry, FileType, HardLink, Opaque, Whiteout
from imgstore.errors import InvalidError
from imgstore.layers.tar_reader import read_changes
from imgstore.layers.tar_writer import write_tar


def written(*changes: Change) -> bytes:
    out = bytearray()
    write_tar(changes, out.extend)
    return bytes(out)


def read(data: bytes) -> list[Change]:
    changes = []
    for change in read_changes([data], capacity=1 << 62):
        if isinstance(change, Entry):
            change.data = [memoryview(b"".join(change.data))] if change.size else ()
        changes.append(change)
    return changes


def regular(path: bytes, data: bytes = b"", **fields: object) -> Entry:
    content: Sequence[memoryview] = [memoryview(data)] if data else ()
    return Entry(path, FileType.REGULAR, 0o644, size=len(data), data=content, **fields)  # type: ignore[arg-type]


CHANGES: list[Change] = [
    Entry(b"", FileType.DIRECTORY, 0o755, mtime_ns=1),
    Entry(b"d", FileType.DIRECTORY, 0o1777, 2**32 - 2, 2**21, -1_500_000_000),
    regular(
        b"d/" + b"n" * 255, b"x" * 1000, xattrs={b"security.capability": b"\0=\n", b"user.a=b c%": b"\xff", b"user.empty": b""}
    ),
    regular(b"d/" + b"/".join([b"p" * 100, b"q" * 50, b"n" * 98]), b"ustar has a prefix for this"),
    regular(b"d/\xff\xfe", b"raw bytes"),
    regular("d/\u00fc\u4e2d".encode(), b"", mtime_ns=8**11 * 10**9),
    Entry(b"link", FileType.SYMLINK, 0o777, target=b"t" * 4095),
    Entry(b"link2", FileType.SYMLINK, 0o777, target="\u00fc/".encode()),
    Entry(b"tty", FileType.CHARACTER_DEVICE, 0o620, rdev=(4095, 2**20 - 1)),
    Entry(b"sda", FileType.BLOCK_DEVICE, 0o660, rdev=(8, 0)),
    Entry(b"fifo", FileType.FIFO, 0o600, mtime_ns=1_700_000_000_123_456_789),
    HardLink(b"another", b"d/" + b"n" * 255),
    Whiteout(b"gone"),
    Whiteout(b"d/gone too"),
    Opaque(b"d"),
    Opaque(b""),
]


def test_round_trip() -> None:
    assert read(written(*CHANGES)) == CHANGES


def test_the_same_changes_give_the_same_bytes() -> None:
    assert written(*CHANGES) == written(*CHANGES)


def test_plain_entries_need_no_pax() -> None:
    data = written(regular(b"a/b", b"data", mtime_ns=10**9), Entry(b"a", FileType.DIRECTORY, 0o755), HardLink(b"c", b"a/b"))
    assert len(data) == 512 * (2 + 1 + 1 + 2)


def test_python_reads_it() -> None:
    with tarfile.open(fileobj=io.BytesIO(written(*CHANGES)), encoding="utf-8", errors="surrogateescape") as tar:
        names = [member.name.encode(errors="surrogateescape") for member in tar]
        link = tar.getmember("another")
    assert names[1:5] == [change.path for change in CHANGES[1:5]]
    assert names[-4:] == [b".wh.gone", b"d/.wh.gone too", b"d/.wh..wh..opq", b".wh..wh..opq"]
    assert link.linkname == "d/" + "n" * 255


def test_hard_links_carry_the_attributes_of_their_target() -> None:
    entry = Entry(b"a", FileType.REGULAR, 0o4755, 1, 2, 3 * 10**9)
    with tarfile.open(fileobj=io.BytesIO(written(entry, HardLink(b"b", b"a"), HardLink(b"c", b"below")))) as tar:
        found = [(member.mode, member.uid, member.gid, member.mtime) for member in tar]
    assert found == [(0o4755, 1, 2, 3), (0o4755, 1, 2, 3), (0o644, 0, 0, 0)]


def sparse(size: int, segments: list[tuple[int, int]], data: bytes) -> Entry:
    return Entry(b"d/sparse", FileType.REGULAR, 0o644, size=size, segments=segments, data=[memoryview(data)])


def expanded(entry: Change) -> bytes:
    assert isinstance(entry, Entry)
    content = bytearray(entry.size)
    stored = b"".join(entry.data)
    position = 0
    for offset, length in entry.segments if entry.segments is not None else [(0, entry.size)]:
        content[offset : offset + length] = stored[position : position + length]
        position += length
    assert position == len(stored)
    return bytes(content)


def test_large_holes_are_not_written() -> None:
    five_gib = sparse(5 << 30, [(4096, 3), (1 << 32, 5)], b"abcdefgh")
    data = written(five_gib)
    assert len(data) == 512 * (2 + 1 + 1 + 1 + 2)  # PAX, header, map, data, end
    (entry,) = read(data)
    assert isinstance(entry, Entry)
    assert (entry.path, entry.size, entry.segments) == (b"d/sparse", 5 << 30, [(4096, 3), (1 << 32, 5)])
    assert b"".join(entry.data) == b"abcdefgh"


def test_file_that_is_all_hole() -> None:
    assert read(written(sparse(5 << 30, [], b""))) == [
        Entry(b"d/sparse", FileType.REGULAR, 0o644, size=5 << 30, segments=[], data=[memoryview(b"")])
    ]


def test_small_holes_are_written_as_zeros() -> None:
    (entry,) = read(written(sparse(20_000, [(1, 3), (10_000, 5)], b"abcdefgh")))
    assert isinstance(entry, Entry)
    assert entry.segments is None
    assert expanded(entry) == b"\0abc" + bytes(9996) + b"defgh" + bytes(9995)


def test_too_many_segments_are_joined() -> None:
    segments = [(number * 3000, 2) for number in range(12_000)]
    data = b"".join(b"%02x" % (number % 256) for number in range(12_000))
    assert expanded(read(written(sparse(36 << 20, segments, data)))[0]) == expanded(sparse(36 << 20, segments, data))
    spread = [*segments[::2], ((36 << 20) + (1 << 30), 2)]
    (entry,) = read(written(sparse(2 << 30, spread, data[: 2 * len(spread)])))
    assert isinstance(entry, Entry)
    assert entry.segments == spread


@pytest.mark.parametrize("pieces", [[b"short"], [b"much", b" too", b" long"], []])
@pytest.mark.parametrize("segments", [None, [(0, 3), (5, 5)], [(0, 5), ((1 << 21) - 5, 3)]])
def test_data_of_another_length_is_an_error(segments: list[tuple[int, int]] | None, pieces: list[bytes]) -> None:
    size = 8 if segments is None else 1 << 21
    entry = Entry(b"a", FileType.REGULAR, 0, size=size, segments=segments, data=[memoryview(piece) for piece in pieces])
    with pytest.raises(InvalidError, match=r"^entry 'a': its data (ends \d+ bytes before|is longer)"):
        written(entry)


def test_data_in_pieces() -> None:
    pieces = [memoryview(b"ab"), memoryview(b""), memoryview(b"cdefg"), memoryview(b"h"), memoryview(b"")]
    entry = Entry(b"a", FileType.REGULAR, 0, size=20, segments=[(0, 3), (12, 5)], data=pieces)
    assert expanded(read(written(entry))[0]) == b"abc" + bytes(9) + b"defgh" + bytes(3)


@pytest.mark.parametrize(
    "change",
    [
        regular(b".wh.a"),
        regular(b"a/.wh.b/c"),
        HardLink(b".wh.a", b"b"),
        HardLink(b"a", b".wh.b"),
        Whiteout(b".wh.a"),
        Whiteout(b""),
        Whiteout(b"n" * 252),
    ],
)
def test_what_a_tar_cannot_say(change: Change) -> None:
    with pytest.raises(InvalidError, match="whiteout"):
        written(change)
