from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from imgstore.changes import Change, Entry, FileType, HardLink, Opaque, Whiteout
from imgstore.errors import NoSpaceError
from imgstore.layers.tar_header import TarError, signed_checksum
from imgstore.layers.tar_reader import read_changes
from tests.raw_tar import END, base256, file, header, long_name, pax, pax_raw, record, sparse_block, sparse_header

CAPACITY = 1 << 40


def read(data: bytes, piece_size: int = 1 << 20) -> list[Change]:
    """All Changes; data is joined to one piece, so that they can be compared."""
    changes = []
    for change in read_changes(cut(data, piece_size), capacity=CAPACITY):
        if isinstance(change, Entry):
            change.data = b"".join(change.data)  # type: ignore[assignment]
        changes.append(change)
    return changes


def read_entry(data: bytes) -> Entry:
    (change,) = read(data)
    assert isinstance(change, Entry)
    return change


def cut(data: bytes, size: int) -> Iterator[memoryview]:
    view = memoryview(data)
    return (view[start : start + size] for start in range(0, len(data), size))


def test_fields_of_a_regular_file() -> None:
    entry = read_entry(file(b"usr/bin/tool", b"data", mode=0o104755, uid=1000, gid=50, mtime=1_700_000_000) + END)
    assert entry == Entry(
        b"usr/bin/tool",
        FileType.REGULAR,
        0o4755,
        1000,
        50,
        1_700_000_000 * 10**9,
        4,
        data=b"data",  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        (b"2", Entry(b"a", FileType.SYMLINK, 0o644, target=b"../b/")),
        (b"3", Entry(b"a", FileType.CHARACTER_DEVICE, 0o644, rdev=(5, 0o1234))),
        (b"4", Entry(b"a", FileType.BLOCK_DEVICE, 0o644, rdev=(5, 0o1234))),
        (b"5", Entry(b"a", FileType.DIRECTORY, 0o644)),
        (b"6", Entry(b"a", FileType.FIFO, 0o644)),
        (b"7", Entry(b"a", FileType.REGULAR, 0o644, data=b"")),  # type: ignore[arg-type]
        (b"\0", Entry(b"a", FileType.REGULAR, 0o644, data=b"")),  # type: ignore[arg-type]
        (b"1", HardLink(b"a", b"../b/".strip(b"./"))),
    ],
)
def test_types(flag: bytes, expected: Change) -> None:
    link = b"./b" if flag == b"1" else b"../b/"
    (change,) = read(header(b"./a", flag=flag, link=link, rdev=(5, 0o1234)) + END)
    if isinstance(expected, Entry):
        expected.data = b""  # type: ignore[assignment]
    assert change == expected


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (b"./a", b"a"),
        (b"/a", b"a"),
        (b"//a//b", b"a/b"),
        (b"./a/./b", b"a/b"),
        (b"a/.b", b"a/.b"),
        (b".a", b".a"),
        (b"...", b"..."),
        (b"a/..b/c..", b"a/..b/c.."),
        (b"\xff\xfe", b"\xff\xfe"),
        (b"new\nline", b"new\nline"),
        (b"n" * 100, b"n" * 100),
        (b".//./.a", b".a"),
        (b"a\\b", b"a\\b"),
    ],
)
def test_names_become_normal(name: bytes, path: bytes) -> None:
    assert [change.path for change in read(header(name) + END)] == [path]


@pytest.mark.parametrize("name", [b".", b"./", b"/", b"./.", b"//"])
def test_root_has_the_empty_path(name: bytes) -> None:
    assert read_entry(header(name, flag=b"5", mode=0o755) + END).path == b""


def test_names_at_their_bounds() -> None:
    component = b"n" * 255
    path = b"/".join([component] * 16) + b"/"
    assert len(path) == 4096
    assert read_entry(pax((b"path", b"./" + path)) + header(flag=b"5") + END).path == path[:-1]
    assert read_entry(long_name(component) + header() + END).path == component
    assert read_entry(header(b"n" * 100, prefix=b"p" * 155) + END).path == b"p" * 155 + b"/" + b"n" * 100
    assert read_entry(pax((b"linkpath", b"l" * 4095)) + header(flag=b"2") + END).target == b"l" * 4095


def test_star_keeps_times_behind_a_shorter_prefix() -> None:
    prefix = b"p" * 131 + b"00000000001 00000000002 "
    assert read_entry(header(b"n", prefix=prefix, tail=bytes(8) + b"tar\0") + END).path == b"p" * 131 + b"/n"


def test_gnu_header_with_access_and_creation_time() -> None:
    times = b"14524770447\x0014524770447\0"
    assert read_entry(header(b"n", magic=b"ustar  \0", prefix=times) + END).path == b"n"


def test_oldest_directories_are_known_by_their_slash() -> None:
    assert read_entry(header(b"a/", flag=b"\0", magic=b"") + END).type is FileType.DIRECTORY


@pytest.mark.parametrize(
    ("field", "seconds"),
    [(b"        644 ", 0o644), (b"644\0garbage!", 0o644), (b"", 0), (base256(-5, 12), -5), (base256(2**40, 12), 2**40)],
)
def test_numbers_in_all_their_forms(field: bytes, seconds: int) -> None:
    assert read_entry(header(mtime=field) + END).mtime_ns == seconds * 10**9


@pytest.mark.parametrize(
    ("text", "time_ns"),
    [
        (b"1", 10**9),
        (b"1.5", 1_500_000_000),
        (b"-1.5", -1_500_000_000),
        (b"-0.000000001", -1),
        (b"1700000000.123456789", 1_700_000_000_123_456_789),
        (b"1.0000000019999", 1_000_000_001),
        (b"2.", 2 * 10**9),
    ],
)
def test_pax_times_are_exact(text: bytes, time_ns: int) -> None:
    assert read_entry(pax((b"mtime", text)) + header(mtime=7) + END).mtime_ns == time_ns


def test_pax_overrides_owner_and_devices() -> None:
    records = pax((b"uid", b"4294967294"), (b"gid", b"3000000"), (b"SCHILY.devmajor", b"4095"), (b"SCHILY.devminor", b"1048575"))
    entry = read_entry(records + header(flag=b"3") + END)
    assert (entry.uid, entry.gid, entry.rdev) == (4294967294, 3000000, (4095, 1048575))


def test_pax_counts_for_one_entry_only() -> None:
    first, second = read(pax((b"path", b"long"), (b"mtime", b"5")) + header(b"a") + header(b"b") + END)
    assert (first.path, second.path) == (b"long", b"b")
    assert isinstance(second, Entry)
    assert second.mtime_ns == 0


@pytest.mark.parametrize("in_header", [0, 0o77777777777])
def test_pax_size_where_ustar_has_no_room(in_header: int) -> None:
    big = 8 << 30
    changes = read_changes([pax((b"size", b"%d" % big)) + header(size=in_header)], capacity=CAPACITY)
    entry = next(changes)
    assert isinstance(entry, Entry)
    assert entry.size == big


def test_unknown_records_and_comments_are_passed_over() -> None:
    comment = pax((b"comment", b"c" * 40), flag=b"g")
    assert read_entry(comment + pax((b"atime", b"1.5"), (b"VENDOR.x", b"\0")) + header(b"a") + END).path == b"a"


def test_xattrs_in_both_forms() -> None:
    records = (
        (b"SCHILY.xattr.security.capability", b"\1\0\0\2=\n\0"),
        (b"LIBARCHIVE.xattr.user.a%3Db%25", b"AAEC"),
        (b"LIBARCHIVE.xattr.security.capability", b"AQAAAj0KAA"),
        (b"SCHILY.xattr.user.empty", b""),
    )
    assert read_entry(pax(*records) + header() + END).xattrs == {
        b"security.capability": b"\1\0\0\2=\n\0",
        b"user.a=b%": b"\0\1\2",
        b"user.empty": b"",
    }


def test_acl_becomes_the_kernels_form() -> None:
    text = b"user::rwx\nuser:1000:r-x\ngroup::r--\ngroup:staff:-w-:50\nmask::rwx\nother::---\n"
    entries = [(1, 7, 2**32 - 1), (2, 5, 1000), (4, 4, 2**32 - 1), (8, 2, 50), (16, 7, 2**32 - 1), (32, 0, 2**32 - 1)]
    expected = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    found = read_entry(pax((b"SCHILY.acl.access", text), (b"SCHILY.acl.default", text)) + header(flag=b"5") + END).xattrs
    assert found == {b"system.posix_acl_access": expected, b"system.posix_acl_default": expected}


def acl_of(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NO_ID = 2**32 - 1


def test_mode_follows_the_access_acl() -> None:
    for records in (
        pax((b"SCHILY.acl.access", b"u::rw-,u:7:rwx,g::---,m::r-x,o::--x")),
        pax(
            (
                b"SCHILY.xattr.system.posix_acl_access",
                acl_of((1, 6, NO_ID), (2, 7, 7), (4, 0, NO_ID), (16, 5, NO_ID), (32, 1, NO_ID)),
            )
        ),
    ):
        entry = read_entry(records + header(mode=0o4777) + END)
        assert entry.mode == 0o4651
        assert list(entry.xattrs) == [b"system.posix_acl_access"]


def test_access_acl_that_says_no_more_than_the_mode_is_left_out() -> None:
    text = b"u::rw-,g::r--,o::r--"
    entry = read_entry(pax((b"SCHILY.acl.access", text), (b"SCHILY.acl.default", text)) + header(flag=b"5", mode=0o777) + END)
    assert entry.mode == 0o644
    assert entry.xattrs == {b"system.posix_acl_default": acl_of((1, 6, NO_ID), (4, 4, NO_ID), (32, 4, NO_ID))}


def test_whiteouts() -> None:
    names = (b"a/.wh.b", b".wh.c", b"./d/.wh..wh..opq", b".wh..wh..opq", b"a/x.wh.y", b".whx")
    assert [type(change)(change.path) for change in read(b"".join(header(name) for name in names) + END)[:4]] == [  # type: ignore[call-arg]
        Whiteout(b"a/b"),
        Whiteout(b"c"),
        Opaque(b"d"),
        Opaque(b""),
    ]
    assert [change.path for change in read(b"".join(header(name) for name in names) + END)[4:]] == [b"a/x.wh.y", b".whx"]


def test_aufs_leavings() -> None:
    data = (
        header(b".wh..wh.aufs", link=b"")
        + header(b".wh..wh.plnk/", flag=b"5")
        + file(b".wh..wh.plnk/1.2", b"data" * 400)
        + header(b".wh..wh.orph/", flag=b"5")
        + header(b"a/.wh.b", flag=b"1", link=b".wh..wh.aufs")
        + header(b"c")
        + END
    )
    changes = read(data)
    assert changes[0] == Whiteout(b"a/b")
    assert [change.path for change in changes[1:]] == [b"c"]
    assert read(data, 700) == changes


@pytest.mark.parametrize(
    "end", [b"", bytes(512), END, END + bytes(9000), END + bytes(13)], ids=["none", "one block", "two", "padded", "crooked"]
)
def test_ends(end: bytes) -> None:
    assert [change.path for change in read(file(b"a", b"x") + end)] == [b"a"]


def test_empty_tars() -> None:
    assert read(b"") == []
    assert read(END) == []


def test_reads_the_source_to_its_end() -> None:
    left = cut(header(b"a") + END + bytes(300_000), 1000)
    assert len(list(read_changes(left, capacity=0))) == 1
    assert next(left, None) is None


def test_signed_checksums_are_taken() -> None:
    block = bytearray(header(b"\xe9t\xe9", checksum=b" " * 8))
    block[148:156] = b"%06o\0 " % signed_checksum(block)
    assert read_entry(bytes(block) + END).path == b"\xe9t\xe9"


SPARSE = [(1000, 10), (5000, 700)]
STORED = b"a" * 10 + b"b" * 700


def sparse_forms() -> dict[str, bytes]:
    pairs = b"".join(
        record(b"GNU.sparse.offset", b"%d" % offset) + record(b"GNU.sparse.numbytes", b"%d" % length) for offset, length in SPARSE
    )
    in_data = b"3\n1000\n10\n5000\n700\n9000\n0\n".ljust(512, b"\0")
    version = (
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.name", b"sparse"),
        (b"GNU.sparse.realsize", b"9000"),
    )
    return {
        "old": sparse_header([*SPARSE, (9000, 0)], 9000, 710) + STORED.ljust(1024, b"\0"),
        "old, continued": (
            sparse_header([(1000, 10), (5000, 1), (5001, 1), (5002, 1)], 9000, 710, extended=True)
            + sparse_block([(5003 + at, 1) for at in range(21)], extended=True)
            + sparse_block([(5024, 676), (9000, 0)])
            + STORED.ljust(1024, b"\0")
        ),
        "0.0": pax_raw(record(b"GNU.sparse.size", b"9000") + record(b"GNU.sparse.numblocks", b"2") + pairs)
        + file(b"sparse", STORED),
        "0.1": (
            pax(
                (b"GNU.sparse.name", b"sparse"),
                (b"GNU.sparse.size", b"9000"),
                (b"GNU.sparse.numblocks", b"2"),
                (b"GNU.sparse.map", b"1000,10,5000,700"),
            )
            + file(b"GNUSparseFile.1/sparse", STORED)
        ),
        "1.0": pax(*version) + file(b"GNUSparseFile.1/sparse", in_data + STORED),
    }


@pytest.mark.parametrize("piece_size", [1 << 20, 333])
@pytest.mark.parametrize("form", sparse_forms())
def test_sparse_files(form: str, piece_size: int) -> None:
    sparse, after = read(sparse_forms()[form] + file(b"after", b"x") + END, piece_size)
    assert isinstance(sparse, Entry)
    assert (sparse.path, sparse.type, sparse.size) == (b"sparse", FileType.REGULAR, 9000)
    assert sparse.segments is not None
    content = bytearray(9000)
    position = 0
    for offset, length in sparse.segments:
        content[offset : offset + length] = bytes(sparse.data)[position : position + length]  # type: ignore[arg-type]
        position += length
    assert content == bytes(1000) + b"a" * 10 + bytes(3990) + b"b" * 700 + bytes(3300)
    assert after.path == b"after"


def test_sparse_file_that_is_all_hole() -> None:
    data = pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"5368709120"))
    entry = read_entry(data + file(b"s", b"1\n5368709120\n0\n".ljust(512, b"\0")) + END)
    assert entry == Entry(b"s", FileType.REGULAR, 0o644, size=5 << 30, segments=[], data=b"")  # type: ignore[arg-type]


def test_sparse_file_without_holes_is_a_plain_one() -> None:
    entry = read_entry(pax((b"GNU.sparse.size", b"4"), (b"GNU.sparse.map", b"0,4")) + file(b"s", b"data") + END)
    assert entry == Entry(b"s", FileType.REGULAR, 0o644, size=4, data=b"data")  # type: ignore[arg-type]


def test_data_inside_a_piece_is_not_copied() -> None:
    piece = file(b"a", b"x" * 5000) + END
    entry = next(read_changes([piece], capacity=CAPACITY))
    assert isinstance(entry, Entry)
    (view,) = entry.data
    assert view.obj is piece


def test_data_that_is_dropped_is_passed_over() -> None:
    data = file(b"a", b"x" * 5000) + file(b"b", b"y" * 5000) + file(b"c") + END
    for piece_size in (100, 1024, 100_000):
        assert [change.path for change in read_changes(cut(data, piece_size), capacity=CAPACITY)] == [b"a", b"b", b"c"]


def test_data_read_in_part_is_passed_over() -> None:
    changes = read_changes(cut(file(b"a", b"x" * 5000) + file(b"b") + END, 1000), capacity=CAPACITY)
    entry = next(changes)
    assert isinstance(entry, Entry)
    assert bytes(next(iter(entry.data))) == b"x" * 488
    assert next(changes).path == b"b"


def test_data_read_too_late_is_an_error() -> None:
    changes = read_changes(cut(file(b"a", b"x" * 5000) + file(b"b") + END, 1000), capacity=CAPACITY)
    entry = next(changes)
    next(changes)
    assert isinstance(entry, Entry)
    with pytest.raises(RuntimeError, match=r"'a' at byte 0: its data was asked for after the next Change"):
        list(entry.data)


def test_capacity() -> None:
    assert len(list(read_changes([file(b"a", b"x" * 100) + END], capacity=100))) == 1
    with pytest.raises(NoSpaceError, match=r"^tar entry 'a' at byte 0: has 101 bytes, and the disk 100$"):
        list(read_changes([file(b"a", b"x" * 101) + END], capacity=100))


def test_changes_before_the_damage_are_yielded() -> None:
    changes = read_changes([header(b"a") + header(b"b", checksum=b"0000000\0") + END], capacity=0)
    assert next(changes).path == b"a"
    with pytest.raises(TarError, match=r"^tar entry 'b' at byte 512: checksum is '0000000\\x00', and"):
        next(changes)


def test_message_escapes_and_shortens_names() -> None:
    with pytest.raises(TarError) as caught:
        read(pax((b"path", b"\x1b[31m\xff" + b"n" * 300)) + header(flag=b"Z") + END)
    assert str(caught.value).startswith("tar entry '\\x1b[31m\\xffnnn")
    assert "nnn'... at byte 1024: has type 'Z'" in str(caught.value)
