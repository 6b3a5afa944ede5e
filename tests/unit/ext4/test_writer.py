from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from imgstore.blocks import Bytes, MemoryBlockDevice
from imgstore.changes import Change, Entry, FileType, HardLink, Opaque, Whiteout
from imgstore.errors import CorruptError, InvalidError, UnsupportedError
from imgstore.ext4.allocation import FileSystemFullError
from imgstore.ext4.check import check_file_system
from imgstore.ext4.geometry import SUPER_OFFSET, read_super_block, write_super_block
from imgstore.ext4.reader import FileSystem
from imgstore.ext4.structures import IncompatFeature, RoCompatFeature
from imgstore.ext4.writer import LayerWriter
from tests.ext4_layers import (
    MIB,
    MTIME,
    apply_layer,
    content,
    contents,
    device_node,
    directory,
    formatted,
    paths,
    regular,
    sparse,
    symlink,
)

GIB = 1 << 30


class RecordingDevice(MemoryBlockDevice):
    """Keeps what it was given, and when."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.written: list[tuple[int, bytes]] = []

    def write(self, offset: int, data: Bytes) -> None:
        super().write(offset, data)
        self.written.append((offset, bytes(data)))


def recording(size: int, layers: Sequence[Sequence[Change]] = ()) -> RecordingDevice:
    device = RecordingDevice(size)
    base = formatted(size)
    for offset, data in contents(base).items():
        device.write(offset, data)
    for layer in layers:
        apply_layer(device, layer)
    device.written.clear()
    return device


def after(*layers: Sequence[Change]) -> FileSystem:
    device = formatted()
    for layer in layers:
        apply_layer(device, layer)
        assert list(check_file_system(device)) == []
    return FileSystem(device)


class TestSummary:
    @pytest.mark.parametrize(
        "layer",
        [
            [],
            [directory(b"", 0o755, mtime_ns=0)],
            [directory(b"d", xattrs={b"user.big": b"v" * 500})],
            [
                Whiteout(b"nothing"),
                Whiteout(b"d/nothing/at/all"),
                Whiteout(b"link/file"),
                Opaque(b"nothing"),
                Opaque(b"d/file"),
                Opaque(b"e"),
            ],
            [HardLink(b"d/file", b"d/file"), HardLink(b"d/file", b"d/other")],
            [Whiteout(b"d/other"), HardLink(b"d/other", b"d/file")],
        ],
    )
    def test_nothing_is_written_where_nothing_changes(self, layer: list[Change]) -> None:
        lower: list[Change] = [
            directory(b"d", xattrs={b"user.big": b"v" * 500}),
            regular(b"d/file", b"data"),
            HardLink(b"d/other", b"d/file"),
            directory(b"e"),
            symlink(b"link", b"d"),
        ]
        device = recording(64 * MIB, [lower])
        summary = apply_layer(device, layer)
        assert not summary.changed
        assert device.written == []

    def test_counts(self) -> None:
        device = formatted()
        before = apply_layer(device, [])
        after = apply_layer(device, [regular(b"file", b"x" * 5000)])
        assert after.changed
        assert before.free_inodes - after.free_inodes == 1
        assert before.free_blocks - after.free_blocks == 2  # the root directory moves, and gives back its block


class TestWrites:
    def test_a_small_layer_is_a_handful_of_grains(self) -> None:
        device = recording(32 * GIB, [[regular(b"usr/bin/%d" % number, b"x" * 5000) for number in range(500)]])
        apply_layer(device, [regular(b"usr/bin/one", b"y"), Whiteout(b"usr/bin/7")])
        grains = {offset + start for offset, data in device.written for start in range(0, len(data), 65536)}
        assert {grain % 65536 for grain in grains} == {0}
        assert len(grains) <= 6  # superblock and descriptors, block bitmaps, inode bitmap, two of the inode tables, data

    def test_data_come_in_long_aligned_runs(self) -> None:
        device = recording(GIB)
        data = random.Random(1).randbytes(10 * MIB + 1)
        apply_layer(device, [regular(b"a", b"small"), regular(b"b", data, piece=100_000), regular(b"c", b"small")])
        sizes = [len(written) for _, written in device.written]
        assert sum(size >= 1 << 19 for size in sizes) >= 10
        assert len(sizes) <= 18
        assert all(offset % 65536 == 0 for offset, _ in device.written)
        assert content(FileSystem(device), b"b") == data

    def test_same_changes_same_bytes(self) -> None:
        layer: list[Change] = [regular(b"b", b"x" * 9000), directory(b"a"), symlink(b"c", b"t" * 100), Whiteout(b"q")]
        one, two = formatted(), formatted()
        apply_layer(one, layer)
        apply_layer(two, layer)
        assert contents(one) == contents(two)

    def test_more_inodes_than_are_kept_in_memory(self) -> None:
        """The page cache forgets the oldest pages of the inode tables; links to their files bring them back."""
        device = formatted(2 * GIB)
        count = 70_000
        layer: list[Change] = [regular(b"d/%d" % number, b"") for number in range(count)]
        layer += [HardLink(b"link-%d" % number, b"d/%d" % number) for number in (0, 1, 300, 69_999)]
        apply_layer(device, layer)
        assert list(check_file_system(device)) == []
        assert FileSystem(device).lookup(b"d/0").links == 2


class TestTree:
    def test_missing_parents(self) -> None:
        node = after([regular(b"a/b/c", b"x", mtime_ns=5)]).lookup(b"a/b")
        assert (node.type, node.mode, node.uid, node.gid, node.mtime_ns) == (FileType.DIRECTORY, 0o755, 0, 0, 0)

    @pytest.mark.parametrize("parent", [regular(b"a", b"x"), symlink(b"a", b"b"), device_node(b"a", FileType.FIFO)])
    @pytest.mark.parametrize("layers", [1, 2])
    def test_a_parent_that_is_none_is_replaced(self, parent: Entry, layers: int) -> None:
        changes: list[Change] = [directory(b"b"), parent, regular(b"a/c", b"y")]
        found = after(changes) if layers == 1 else after(changes[:2], changes[2:])
        assert paths(found) == [b"a", b"a/c", b"b"]

    def test_directory_over_directory_keeps_children(self) -> None:
        lower = [directory(b"d", 0o700, xattrs={b"user.a": b"1", b"user.b": b"v" * 1000}), regular(b"d/x")]
        found = after(lower, [directory(b"d", 0o1777, uid=7, mtime_ns=9, xattrs={b"user.c": b"2"})])
        status = found.status(found.lookup(b"d"))
        assert (status.mode, status.uid, status.mtime_ns, status.xattrs, status.blocks) == (0o1777, 7, 9, {b"user.c": b"2"}, 8)
        assert paths(found) == [b"d", b"d/x"]

    def test_unstated_parent_keeps_its_time(self) -> None:
        found = after([directory(b"d", mtime_ns=MTIME)], [regular(b"d/x", mtime_ns=1)])
        assert found.lookup(b"d").mtime_ns == MTIME

    @pytest.mark.parametrize("other", [regular(b"d", b"x"), symlink(b"d", b"e"), device_node(b"d", FileType.BLOCK_DEVICE, 8, 1)])
    def test_other_types_replace_whole_subtrees(self, other: Entry) -> None:
        lower = [regular(b"d/%d/%d" % (number % 5, number), b"x" * 100) for number in range(50)]
        found = after(lower, [other])
        assert paths(found) == [b"d"]
        assert found.lookup(b"d").type is other.type

    def test_last_of_two_in_one_layer_wins(self) -> None:
        found = after([regular(b"f", b"one"), directory(b"f"), regular(b"f/x"), regular(b"f", b"two")])
        assert content(found, b"f") == b"two"
        assert paths(found) == [b"f"]

    def test_root_takes_attributes(self) -> None:
        assert after([directory(b"", 0o700, uid=5, mtime_ns=MTIME)]).lookup(b"").mode == 0o700

    def test_symlinks_are_open_to_all(self) -> None:
        entry = symlink(b"l", b"target")
        entry.mode = 0o700
        assert after([entry]).lookup(b"l").mode == 0o777


class TestHardLinks:
    def test_across_layers(self) -> None:
        found = after([regular(b"a", b"x")], [HardLink(b"d/b", b"a")], [Whiteout(b"a")], [HardLink(b"c", b"d/b")])
        assert paths(found) == [b"c", b"d", b"d/b"]
        assert found.lookup(b"c") == found.lookup(b"d/b")
        assert found.lookup(b"c").links == 2

    def test_to_a_symlink(self) -> None:
        found = after([symlink(b"s", b"t"), HardLink(b"l", b"s")])
        assert found.status(found.lookup(b"l")).target == b"t"

    def test_link_in_the_place_of_its_target(self) -> None:
        assert content(after([regular(b"a/b", b"x")], [HardLink(b"a", b"a/b")]), b"a") == b"x"
        assert content(after([regular(b"a/b", b"x")], [HardLink(b"a/b/c", b"a/b")]), b"a/b/c") == b"x"

    def test_replaced_link(self) -> None:
        found = after([regular(b"a", b"x"), HardLink(b"b", b"a")], [regular(b"a", b"y")])
        assert (content(found, b"a"), content(found, b"b")) == (b"y", b"x")
        assert found.lookup(b"b").links == 1


LOWER = [regular(b"d/x", b"lower"), regular(b"d/sub/y", b"lower"), directory(b"d/sub/z"), regular(b"e", b"lower")]
OWN: list[Change] = [regular(b"d/sub/new", b"own"), HardLink(b"d/sub/link", b"e")]


class TestWhiteouts:
    @pytest.mark.parametrize("whiteout_first", [True, False])
    @pytest.mark.parametrize(
        ("whiteout", "expected"),
        [
            (Whiteout(b"d"), [b"d", b"d/sub", b"d/sub/link", b"d/sub/new", b"e"]),
            (Opaque(b"d"), [b"d", b"d/sub", b"d/sub/link", b"d/sub/new", b"e"]),
            (Whiteout(b"d/sub"), [b"d", b"d/sub", b"d/sub/link", b"d/sub/new", b"d/x", b"e"]),
            (Opaque(b"d/sub"), [b"d", b"d/sub", b"d/sub/link", b"d/sub/new", b"d/x", b"e"]),
            (Whiteout(b"d/x"), [b"d", b"d/sub", b"d/sub/link", b"d/sub/new", b"d/sub/y", b"d/sub/z", b"e"]),
            (Whiteout(b"d/sub/new"), [b"d", b"d/sub", b"d/sub/link", b"d/sub/new", b"d/sub/y", b"d/sub/z", b"d/x", b"e"]),
            (Opaque(b""), [b"d", b"d/sub", b"d/sub/new"]),
        ],
    )
    def test_only_what_is_below_goes(self, whiteout: Change, expected: list[bytes], whiteout_first: bool) -> None:
        own = OWN[:1] if whiteout == Opaque(b"") else OWN  # the link's target goes with all the rest
        found = after(LOWER, [whiteout, *own] if whiteout_first else [*own, whiteout])
        assert paths(found) == expected

    @pytest.mark.parametrize("whiteout_first", [True, False])
    def test_directory_that_stays_for_its_new_child_is_an_implied_one(self, whiteout_first: bool) -> None:
        own: list[Change] = [Whiteout(b"d"), regular(b"d/new")]
        found = after([directory(b"d", 0o700, uid=5, xattrs={b"user.a": b"b"})], own if whiteout_first else own[::-1])
        status = found.status(found.lookup(b"d"))
        assert (status.mode, status.uid, status.mtime_ns, status.xattrs) == (0o755, 0, 0, {})

    @pytest.mark.parametrize("whiteout_first", [True, False])
    def test_stated_directory_stays(self, whiteout_first: bool) -> None:
        own: list[Change] = [Whiteout(b"d"), directory(b"d", 0o711)]
        found = after(LOWER, own if whiteout_first else own[::-1])
        assert paths(found) == [b"d", b"e"]
        assert found.lookup(b"d").mode == 0o711

    def test_symlinks_are_not_followed(self) -> None:
        found = after([regular(b"d/x"), symlink(b"l", b"d")], [Whiteout(b"l/x"), Opaque(b"l")])
        assert paths(found) == [b"d", b"d/x", b"l"]

    def test_very_deep(self) -> None:
        deep = b"/".join([b"d"] * 2000)
        assert paths(after([regular(deep)], [regular(b"/".join([b"d"] * 1999) + b"/own"), Whiteout(b"d")]))[-1].endswith(b"own")
        assert paths(after([regular(deep)], [Whiteout(b"d")])) == []


class TestData:
    @pytest.mark.parametrize("piece", [1, 511, 4095, 4096, 4097, MIB])
    @pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 9000])
    def test_pieces(self, piece: int, size: int) -> None:
        data = random.Random(size).randbytes(size)
        assert content(after([regular(b"f", data, piece=piece)]), b"f") == data

    def test_blocks_of_zeros_are_holes(self) -> None:
        data = b"a" * 4096 + bytes(8192) + b"b" * 4096 + bytes(4095) + b"c" + bytes(4096 + 10)
        found = after([regular(b"f", data), regular(b"g", data, piece=1000)])
        for name in (b"f", b"g"):
            node = found.lookup(name)
            assert found.data_segments(node) == [(0, 4096), (12288, 8192), (24576, 10)]
            assert node.sectors == 32
            assert content(found, name) == data

    def test_segments(self) -> None:
        size = 100_000
        segments = [(10, b"abc"), (20, b"def"), (4090, b"x" * 10), (50_000, b"y" * 5000), (99_999, b"z")]
        expected = bytearray(size)
        for offset, data in segments:
            expected[offset : offset + len(data)] = data
        assert content(after([sparse(b"f", size, segments)]), b"f") == expected

    def test_beyond_four_gigabytes(self) -> None:
        found = after([sparse(b"f", 5 * GIB, [(4 * GIB + 5, b"far")])])
        node = found.lookup(b"f")
        assert found.read(node, 4 * GIB, 10) == b"\0\0\0\0\0far\0\0"
        assert found.data_segments(node) == [(4 * GIB, 4096)]

    def test_pieces_may_be_reused(self) -> None:
        """A piece is valid until the next is asked for."""
        buffer = bytearray(3000)

        def pieces() -> object:
            for number in range(10):
                buffer[:] = b"%d" % number * 3000
                yield memoryview(buffer)

        entry = Entry(b"f", FileType.REGULAR, 0o644, size=30_000, data=pieces())  # type: ignore[arg-type]
        assert content(after([entry]), b"f") == b"".join(b"%d" % number * 3000 for number in range(10))


def entry(**values: object) -> Entry:
    return Entry(**{"path": b"dir/name", "type": FileType.REGULAR, "mode": 0o644} | values)  # type: ignore[arg-type]


class TestRefused:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (entry(uid=(1 << 32) - 1), "dir/name: uid 4294967295"),
            (entry(gid=-1), "gid -1"),
            (entry(mode=0o10000), "mode 010000"),
            (entry(size=10), "10 bytes of data are missing, its size is 10"),
            (entry(size=10, data=[memoryview(b"x" * 9)]), "1 bytes of data are missing"),
            (entry(size=10, data=[memoryview(b"x" * 11)]), "more data than its size of 10 bytes"),
            (entry(size=(1 << 44), segments=[]), "a file of 17592186044416 bytes, ext4 allows 17592186040320"),
            (entry(size=10, segments=[(5, 6)]), "segment of 6 bytes at byte 5"),
            (entry(size=10, segments=[(5, 2), (6, 2)]), "segment of 2 bytes at byte 6, after 7"),
            (entry(type=FileType.SYMLINK), "cannot have the target b'' of 0 bytes"),
            (entry(type=FileType.SYMLINK, target=b"x" * 4096), "of 4096 bytes"),
            (entry(type=FileType.SYMLINK, target=b"a\0b"), "cannot have the target"),
            (entry(type=FileType.CHARACTER_DEVICE, rdev=(4096, 0)), "device number 4096:0"),
            (entry(xattrs={b"user.a": b"x" * 5000}), r"dir/name: extended attributes take .* user\.a 5000"),
            (entry(xattrs={b"nonsense": b""}), "dir/name: extended attribute b'nonsense'"),
            (entry(path=b"a/" + b"n" * 256), "a name of 256 bytes"),
            (entry(path=b"a/../b"), r"a name of 2 bytes, b'\.\.'"),
            (entry(path=b"a//b"), "a name of 0 bytes"),
            (entry(path=b"a/b\0c"), "a name of 3 bytes"),
            (entry(path=b""), "the root can only be a directory, not REGULAR"),
            (HardLink(b"new", b"missing"), "new: hard link to missing, which does not exist"),
            (HardLink(b"new", b"file/x"), "which does not exist"),
            (HardLink(b"new", b"d"), "new: hard link to d, which is a directory"),
            (HardLink(b"", b"file"), "the root cannot be a hard link"),
            (HardLink(b"new", b""), "which does not exist"),
            (Whiteout(b""), "the root cannot be removed"),
        ],
    )
    def test_change(self, change: Change, words: str) -> None:
        with pytest.raises(InvalidError, match=words):
            apply_layer(formatted(), [regular(b"file"), directory(b"d"), change])

    def test_too_many_links(self) -> None:
        layer: list[Change] = [regular(b"file"), *(HardLink(b"d/%d" % number, b"file") for number in range(65_000))]
        with pytest.raises(InvalidError, match="d/64999: file would have 65001 links, ext4 allows 65000"):
            apply_layer(formatted(), layer)

    def test_full_of_blocks(self) -> None:
        with pytest.raises(FileSystemFullError, match="second: no block is free: 16384 of 16384 blocks are used"):
            apply_layer(formatted(), [regular(b"first", b"x" * (30 * MIB)), regular(b"second", b"x" * (40 * MIB))])

    def test_full_of_inodes(self) -> None:
        with pytest.raises(FileSystemFullError, match="d/4085: no inode is free: all 4096 are used"):
            apply_layer(formatted(), [regular(b"d/%d" % number) for number in range(4100)])

    def test_no_block_for_a_directory(self) -> None:
        device = formatted()
        free = FileSystem(device).super_block.free_blocks_count_lo
        writer = LayerWriter(device)
        writer.apply(directory(b"dir"))
        writer.apply(regular(b"file", b"x" * (free * 4096)))
        with pytest.raises(FileSystemFullError, match="dir: no block is free"):
            writer.finish()

    @pytest.mark.parametrize(
        ("field", "value", "words"),
        [
            ("state", 0, "state is 0"),
            ("last_orphan", 12, "orphans start at inode 12"),
            ("feature_incompat", IncompatFeature.FILETYPE, "cannot write with incompatible features"),
            ("feature_ro_compat", RoCompatFeature.METADATA_CSUM | RoCompatFeature.QUOTA, "cannot write with read-only features"),
            ("feature_ro_compat", RoCompatFeature.LARGE_FILE, "cannot write with read-only features"),
        ],
    )
    def test_parent(self, field: str, value: int, words: str) -> None:
        device = formatted()
        super_block = read_super_block(device)
        setattr(super_block, field, value)
        device.write(SUPER_OFFSET, write_super_block(super_block))
        with pytest.raises(UnsupportedError, match=f"SuperBlock at byte 1024: .*{words}"):
            LayerWriter(device)


def test_a_block_freed_twice_is_damage() -> None:
    device = formatted()
    apply_layer(device, [regular(b"a", b"x"), regular(b"b", b"y")])
    file_system = FileSystem(device)
    writer = LayerWriter(device)
    run = next(file_system.runs(file_system.lookup(b"a")))
    writer._blocks.free(run.physical, 1)
    with pytest.raises(CorruptError, match=f"block bitmap 0 at byte .*: 1 of blocks {run.physical} to {run.physical} are free"):
        writer.apply(Whiteout(b"a"))
