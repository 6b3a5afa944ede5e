"""One suite for every form of VMDK: what is written is read, by us and by others; what is damaged or hostile is refused."""

from __future__ import annotations

import contextlib
import random
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imgstore.blocks import GRAIN, ExtentKind
from imgstore.datastores import Datastore, LocalDatastore, MemoryDatastore
from imgstore.errors import CorruptError, InvalidError, NotFoundError, UnsupportedError
from imgstore.vmdk import Chain, stack, stream_optimized
from imgstore.vmdk.formats import FORMATS, DiskFormat, ParentDisk, data_ranges, read_pieces, write_disk
from imgstore.vmdk.stack import DiskStack, OpenDisks, open_disks
from tests.disk_forms import CHILDREN, WRITTEN, add_chain, cid_of, device_of, joined
from tests.judges import vmdk
from tests.sesparse import UNMAPPED, ZERO, write_sesparse
from tests.tools import need, run

HOSTED, FLAT, VMFS = DiskFormat.HOSTED, DiskFormat.FLAT, DiskFormat.VMFS
COWD, STREAM, SESPARSE = DiskFormat.VMFS_SPARSE, DiskFormat.STREAM_OPTIMIZED, DiskFormat.SESPARSE

CHAINS = {
    "hosted": [HOSTED, HOSTED],
    "flat": [FLAT],
    "vmfs": [VMFS],
    "vmfs-sparse": [COWD],
    "vmfs-sparse on vmfs": [VMFS, COWD, COWD],
    "stream-optimized": [STREAM],
    "stream-optimized child": [STREAM, STREAM],
    "sesparse on vmfs": [VMFS, SESPARSE, SESPARSE],
    "a mixture": [FLAT, HOSTED, STREAM, COWD, SESPARSE, HOSTED],
}
LIBVMDK_REFUSES = {"sesparse on vmfs", "a mixture"}

TESTDATA = Path(__file__).parents[2] / "testdata/vmdk"

SPAN = 32 << 20
"""What a grain table of a hosted disk has: 16 of COWD."""


def damage(datastore: Datastore, path: str, edit: Callable[[bytearray], bytes | bytearray | None]) -> None:
    """Replaces a file by what ``edit`` makes of it."""
    with datastore.open(path) as file:
        data = bytearray(file.pread(0, file.size))
    changed = edit(data)
    datastore.remove_file(path)
    with datastore.create(path) as made:
        made.pwrite(0, data if changed is None else changed)


def read_all(datastore: Datastore, path: str) -> bytes:
    with open_disks(datastore.open, path) as disks:
        return disks.read(0, disks.size)


def extent_file(form: DiskFormat, stem: str = "d0") -> str:
    return FORMATS[form].files(stem)[0] if form is not SESPARSE else f"{stem}-sesparse.vmdk"


def assert_shows(disks: OpenDisks, expected: bytes) -> None:
    """The whole, parts of all lengths, and extents that tile it."""
    assert disks.size == len(expected)
    assert disks.read(0, disks.size) == expected
    chance = random.Random(len(expected))
    for _ in range(50):
        offset = chance.randrange(len(expected))
        length = chance.randrange(min(300_000, len(expected) - offset) + 1)
        assert disks.read(offset, length) == expected[offset : offset + length]
    end = 0
    for extent in disks.extents():
        assert extent.offset == end
        end += extent.length
        assert extent.kind is ExtentKind.DATA or expected.count(0, extent.offset, end) == extent.length
    assert end == disks.size


writes = st.lists(st.tuples(st.integers(0, 1023), st.integers(1, 200), st.integers(0, 3)), max_size=8)


@pytest.mark.parametrize("form", WRITTEN)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(base=writes, own=writes, tables=st.booleans())
def test_what_is_written_is_read(
    form: DiskFormat, base: list[tuple[int, int, int]], own: list[tuple[int, int, int]], tables: bool
) -> None:
    # 1024 sectors, in the middle of a disk or over the border of two of its tables.
    shift = SPAN - 512 * 512 if tables else GRAIN * 3
    model = bytearray(shift + 1024 * 512 + 5 * GRAIN)
    datastore = MemoryDatastore()
    previous = None
    with datastore.stage("", "disks") as staging:
        for number, edits in enumerate((base, own) if FORMATS[form].has_parent else (base,)):
            ranges = []
            for sector, count, value in edits:
                start, length = shift + sector * 512, min(count, 1024 - sector) * 512
                model[start : start + length] = bytes([value]) * length
                ranges.append((start, length))
            device = device_of(model)
            held = joined(ranges) if previous else list(data_ranges(device))
            names = write_disk(form, staging.create, f"d{number}", device, held, cid=cid_of(number), parent=previous)
            assert names == FORMATS[form].files(f"d{number}")
            previous = ParentDisk(f"d{number}.vmdk", cid_of(number), len(model))
        staging.publish()
    with open_disks(datastore.open, f"d{number}.vmdk") as disks:
        assert disks.cid == cid_of(number)
        assert_shows(disks, bytes(model))
        if number:
            unit = FORMATS[form].unit
            widened = joined(
                (start // unit * unit, -(-(start + length) // unit) * unit - start // unit * unit) for start, length in held
            )
            assert list(disks.own_ranges()) == widened


@pytest.mark.parametrize("name", CHAINS)
def test_all_readers_see_the_same_bytes(tmp_path: Path, name: str) -> None:
    forms = CHAINS[name]
    with LocalDatastore(tmp_path) as datastore:
        expected = add_chain(datastore, forms, SPAN + (6 << 20), seed=1, writes=12)
        disks = [tmp_path / f"d{number}.vmdk" for number in range(len(forms))]
        with open_disks(datastore.open, disks[-1].name) as opened:
            assert isinstance(opened, Chain if name == "hosted" else DiskStack)
            assert_shows(opened, expected)
    assert_others_see(disks, expected, tmp_path / "raw", libvmdk=name not in LIBVMDK_REFUSES)
    if forms[-1] is not SESPARSE:
        vmdk.check(disks[-1])


def assert_others_see(disks: list[Path], expected: bytes, raw: Path, *, libvmdk: bool = True) -> None:
    need("qemu-img")
    vmdk.convert(disks[-1], raw)
    assert raw.read_bytes() == expected
    raw.unlink()
    with vmdk.dissect(disks[-1]) as read:
        assert read(0, len(expected)) == expected
    if libvmdk:
        with vmdk.libvmdk(disks) as read:
            assert read(0, len(expected)) == expected
    else:
        with pytest.raises(OSError, match="libvmdk"), vmdk.libvmdk(disks):
            pass


@settings(max_examples=25, deadline=None)
@given(
    base=st.sampled_from(DiskFormat),
    children=st.lists(st.sampled_from([*CHILDREN, SESPARSE]), max_size=6),
    seed=st.integers(0, 99),
)
def test_any_mixture_shows_what_was_written(base: DiskFormat, children: list[DiskFormat], seed: int) -> None:
    datastore = MemoryDatastore()
    expected = add_chain(datastore, [base, *children], 12 * GRAIN, seed=seed, writes=4)
    with open_disks(datastore.open, f"d{len(children)}.vmdk") as disks:
        assert_shows(disks, expected)


def test_threads_read_at_once_with_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "_MAX_CACHED_RUNS", 40)
    monkeypatch.setattr(stack, "_SEGMENT", GRAIN)
    monkeypatch.setattr(stream_optimized, "_INFLATED_GRAINS", 2)
    with LocalDatastore(tmp_path) as datastore:
        expected = add_chain(datastore, CHAINS["a mixture"], 4 << 20, seed=4, writes=20)
        with open_disks(datastore.open, f"d{len(CHAINS['a mixture']) - 1}.vmdk") as disks, ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: assert_shows(disks, expected), range(4)))
            assert isinstance(disks, DiskStack)
            assert sum(len(segment.starts) for segment in disks._segments.values()) == disks._cached_runs <= 80


@pytest.mark.parametrize("depth", [1, 2, 30, 127, 254])
@pytest.mark.parametrize("form", CHILDREN)
def test_deep_chains(tmp_path: Path, form: DiskFormat, depth: int) -> None:
    base = VMFS if form is COWD else form
    with LocalDatastore(tmp_path) as datastore:
        expected = add_chain(datastore, [base, *[form] * (depth - 1)], 1 << 20, seed=depth)
        with open_disks(datastore.open, f"d{depth - 1}.vmdk") as disks:
            assert_shows(disks, expected)
    assert_others_see([tmp_path / f"d{number}.vmdk" for number in range(depth)], expected, tmp_path / "raw")


@pytest.mark.parametrize("form", WRITTEN)
def test_holes_stay_holes(tmp_path: Path, form: DiskFormat) -> None:
    data = bytearray(SPAN)
    data[5 * GRAIN : 6 * GRAIN] = random.Random(1).randbytes(GRAIN)
    device = device_of(data)
    with LocalDatastore(tmp_path) as datastore, datastore.stage("", "disk") as staging:
        write_disk(form, staging.create, "d0", device, [(0, SPAN)], cid=1)
        staging.publish()
        assert sum(datastore.usage(name) for name in FORMATS[form].files("d0")) < 4 * GRAIN
        with open_disks(datastore.open, "d0.vmdk") as disks:
            assert sum(extent.length for extent in disks.extents() if extent.kind is ExtentKind.DATA) == GRAIN


@pytest.mark.parametrize("form", CHILDREN)
def test_zeros_hide_what_the_parent_has(form: DiskFormat) -> None:
    datastore = MemoryDatastore()
    with datastore.stage("", "disks") as staging:
        write_disk(form, staging.create, "d0", device_of(b"\1" * (4 * GRAIN)), [(0, 4 * GRAIN)], cid=1)
        parent = ParentDisk("d0.vmdk", 1, 4 * GRAIN)
        write_disk(form, staging.create, "d1", device_of(bytes(4 * GRAIN)), [(GRAIN, GRAIN)], cid=2, parent=parent)
        staging.publish()
    assert read_all(datastore, "d1.vmdk") == b"\1" * GRAIN + bytes(GRAIN) + b"\1" * (2 * GRAIN)


@pytest.mark.parametrize("form", WRITTEN)
def test_the_same_calls_make_the_same_files(tmp_path: Path, form: DiskFormat) -> None:
    made = []
    for name in ("one", "two"):
        with LocalDatastore(tmp_path / name, create=True) as datastore:
            add_chain(datastore, [form], 8 << 20, seed=3)
        made.append([(tmp_path / name / part).read_bytes() for part in FORMATS[form].files("d0")])
    assert made[0] == made[1]


def test_a_disk_that_others_stand_on_can_be_said_to_be_undeletable() -> None:
    for form in WRITTEN:
        datastore = MemoryDatastore()
        with datastore.stage("", "disk") as staging:
            write_disk(form, staging.create, "d0", device_of(bytes(GRAIN)), [], cid=1, deletable=False)
            staging.publish()
        with datastore.open("d0.vmdk") as file:
            assert b'\nddb.deletable = "false"\n' in file.pread(0, 2048)


@pytest.mark.parametrize(
    ("form", "size", "parent", "error", "match"),
    [
        (SESPARSE, GRAIN, None, UnsupportedError, "only read"),
        (FLAT, GRAIN, ParentDisk("p.vmdk", 1, GRAIN), UnsupportedError, "have no parents"),
        (COWD, GRAIN, ParentDisk("p.vmdk", 1, 2 * GRAIN), InvalidError, "its parent p.vmdk one of 131072"),
        (COWD, 2 * GRAIN, ParentDisk("p.vmdk", 1, GRAIN), InvalidError, "its parent p.vmdk one of 65536"),
        (HOSTED, GRAIN, ParentDisk("p.vmdk", 1, 2 * GRAIN), InvalidError, "its parent"),
        (HOSTED, GRAIN + 512, None, InvalidError, "multiple of 65536"),
        (STREAM, GRAIN + 512, None, InvalidError, "multiple of 65536"),
        (COWD, 2 << 40, None, InvalidError, "at most"),
        (FLAT, 0, None, InvalidError, "multiple of 512"),
        (HOSTED, GRAIN, ParentDisk("/p.vmdk", 1, GRAIN), InvalidError, "not a relative path"),
    ],
)
def test_what_cannot_be_written_is_told_before_anything_is_made(
    form: DiskFormat, size: int, parent: ParentDisk | None, error: type[Exception], match: str
) -> None:
    class Sized:
        """A device of which only the size is asked for."""

        def __init__(self, size: int) -> None:
            self.size = size

    with pytest.raises(error, match=match):
        write_disk(form, pytest.fail, "d0", Sized(size), [], cid=1, parent=parent)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    ranges=st.lists(st.tuples(st.integers(0, 4 << 20), st.integers(0, 3 << 20)), max_size=6), unit=st.sampled_from([512, GRAIN])
)
def test_pieces_have_each_byte_of_the_ranges_once(ranges: list[tuple[int, int]], unit: int) -> None:
    size = 5 << 20
    held = [(offset, min(length, size - offset)) for offset, length in joined(ranges) if offset < size]
    device = device_of(bytes(GRAIN) + b"\7" * (size - GRAIN))
    end = 0
    seen = bytearray(size)
    for offset, data in read_pieces(device, held, unit, zeros=True):
        assert offset >= end and offset % unit == 0 and 0 < len(data) <= 1 << 20
        end = offset + len(data)
        seen[offset:end] = b"\1" * len(data)
    for offset, length in held:
        assert seen[offset : offset + length] == b"\1" * length
    assert sum(seen) <= sum(length + 2 * unit for _, length in held)


@pytest.mark.parametrize("options", ["monolithicSparse", "monolithicFlat", "streamOptimized", "monolithicSparse,zeroed_grain=on"])
def test_disks_that_qemu_made_are_read(tmp_path: Path, options: str) -> None:
    need("qemu-img", "qemu-io")
    chance = random.Random(7)
    raw = bytearray(SPAN + (3 << 20) + 512)
    for _ in range(10):
        offset = chance.randrange(len(raw) - 200_000)
        raw[offset : offset + 200_000] = chance.randbytes(200_000)
    (tmp_path / "raw").write_bytes(raw)
    run(
        "qemu-img",
        "convert",
        "-q",
        "-f",
        "raw",
        "-O",
        "vmdk",
        "-o",
        f"subformat={options}",
        tmp_path / "raw",
        tmp_path / "disk.vmdk",
    )
    if "zeroed_grain" in options:
        run("qemu-io", "-f", "vmdk", "-c", f"write -q -z {GRAIN} {3 * GRAIN}", tmp_path / "disk.vmdk")
        raw[GRAIN : 4 * GRAIN] = bytes(3 * GRAIN)
    with LocalDatastore(tmp_path) as datastore, open_disks(datastore.open, "disk.vmdk") as disks:
        assert_shows(disks, bytes(raw))


def test_a_disk_that_open_vmdk_made_is_read() -> None:
    expected = bytearray((33 << 20) + 20480)
    for offset, words in (
        (0, b"first grain "),
        ((32 << 20) - 300, b"over two tables "),
        (len(expected) - 1000, b"the last grain is cut "),
    ):
        expected[offset : offset + 600] = (words * 100)[:600]
    with LocalDatastore(TESTDATA) as datastore, open_disks(datastore.open, "open-vmdk.vmdk") as disks:
        assert_shows(disks, bytes(expected))


def test_zeroed_grains_hide_the_parent(tmp_path: Path) -> None:
    need("qemu-img", "qemu-io")
    edits = {
        "base": ((), f"write -q -P 1 0 {8 * GRAIN}"),
        "top": (("-b", "base.vmdk", "-F", "vmdk"), f"write -q -z {GRAIN} {GRAIN}"),
    }
    for name, (options, edit) in edits.items():
        disk = tmp_path / f"{name}.vmdk"
        run("qemu-img", "create", "-q", "-f", "vmdk", "-o", "zeroed_grain=on", *options, disk, str(8 * GRAIN))
        run("qemu-io", "-f", "vmdk", "-c", edit, disk)
    with LocalDatastore(tmp_path) as datastore, open_disks(datastore.open, "top.vmdk") as disks:
        assert_shows(disks, b"\1" * GRAIN + bytes(GRAIN) + b"\1" * (6 * GRAIN))
        assert list(disks.own_ranges()) == [(GRAIN, GRAIN)]


def test_unmapped_grains_are_zeros_as_qemu_has_it(tmp_path: Path) -> None:
    with LocalDatastore(tmp_path) as datastore:
        with datastore.stage("", "disks") as staging:
            write_disk(VMFS, staging.create, "d0", device_of(b"\1" * GRAIN), [(0, GRAIN)], cid=1)
            write_sesparse(staging.create, "d1", GRAIN, {1: UNMAPPED, 2: ZERO, 3: b"\3" * 4096}, cid=2, parent=("d0.vmdk", 1))
            staging.publish()
        expected = b"\1" * 4096 + bytes(8192) + b"\3" * 4096 + b"\1" * (GRAIN - 16384)
        assert read_all(datastore, "d1.vmdk") == expected
    vmdk.convert(tmp_path / "d1.vmdk", tmp_path / "raw")
    assert (tmp_path / "raw").read_bytes() == expected


def test_a_sesparse_disk_with_a_journal_to_replay_is_not_read() -> None:
    datastore = MemoryDatastore()
    with datastore.stage("", "disk") as staging:
        write_sesparse(staging.create, "d0", GRAIN, {}, cid=1, dirty=True)
        staging.publish()
    with pytest.raises(UnsupportedError, match=r"d0-sesparse\.vmdk: the journal has to be replayed"):
        read_all(datastore, "d0.vmdk")


@pytest.mark.parametrize("form", DiskFormat)
@settings(max_examples=60, deadline=None)
@given(chance=st.randoms(use_true_random=False), count=st.integers(1, 4), cut=st.booleans())
def test_any_damage_is_bytes_or_an_error(form: DiskFormat, chance: random.Random, count: int, cut: bool) -> None:
    datastore = MemoryDatastore()
    add_chain(datastore, [form], 1 << 20, seed=5)

    def edit(data: bytearray) -> bytearray:
        for _ in range(count):
            # Half of it where headers and the first tables are.
            data[chance.randrange(min(len(data), chance.choice((600, 4096, len(data)))))] = chance.choice((0, 1, 0x80, 0xFF))
        return data[: chance.randrange(len(data))] if cut else data

    damage(datastore, chance.choice([extent_file(form), "d0.vmdk"]), edit)
    with contextlib.suppress(CorruptError, UnsupportedError, NotFoundError), open_disks(datastore.open, "d0.vmdk") as disks:
        if disks.size <= 4 << 20:
            assert len(disks.read(0, disks.size)) == disks.size
            assert sum(extent.length for extent in disks.extents()) == disks.size


@pytest.mark.parametrize("form", DiskFormat)
def test_a_file_that_was_cut_off_is_an_error(form: DiskFormat) -> None:
    datastore = MemoryDatastore()
    with datastore.stage("", "disk") as staging:
        if form is SESPARSE:
            write_sesparse(staging.create, "d0", 1 << 20, dict.fromkeys(range(256), b"\x01" * 4096), cid=1)
        else:
            write_disk(form, staging.create, "d0", device_of(b"\1" * (1 << 20)), [(0, 1 << 20)], cid=1)
        staging.publish()
    name = extent_file(form)
    with datastore.open(name) as file:
        whole = file.pread(0, file.size)
    end = len(whole) - (4096 if form is COWD else 0)  # nothing is in its last block
    for length in (0, 100, 511, 2048, end // 2, end - 512, end - 1):
        damage(datastore, name, lambda _, length=length: whole[:length])
        with pytest.raises(CorruptError, match=r"d0"):
            read_all(datastore, "d0.vmdk")


def put(offset: int, data: bytes) -> Callable[[bytearray], None]:
    def edit(file: bytearray) -> None:
        at = offset if offset >= 0 else len(file) + offset
        file[at : at + len(data)] = data

    return edit


GRAIN_AT = 128 * 512


@pytest.mark.parametrize(
    ("edit", "error", "match"),
    [
        (put(GRAIN_AT, b"\x80"), CorruptError, "is of sector"),  # in another grain than its marker says
        (put(GRAIN_AT + 8, bytes(4)), CorruptError, "has 0 bytes deflated"),
        (put(GRAIN_AT + 8, b"\xff\xff\xff\x7f"), CorruptError, "has 2147483647 bytes deflated"),
        (put(GRAIN_AT + 12, b"\xff\xff"), CorruptError, "cannot be inflated"),
        (put(GRAIN_AT + 30, b"\xff\xff\xff"), CorruptError, "inflate"),
        (put(-1536 + 12, b"\1"), CorruptError, "footer marker"),
        (put(-512, b"\1"), CorruptError, "end-of-stream marker"),
        (put(-1024, b"XXXX"), CorruptError, "magic"),
        (put(-1024 + 12, b"\0\0\1"), CorruptError, "footer at byte .*: capacity is 65536"),
        (put(-1024 + 56, b"\xff" * 8), CorruptError, "does not say where the directory is"),
        (put(-1024 + 56, b"\xff\xff\xff\xff\0\0\0\0"), CorruptError, "directory ends at byte"),
        (put(56, b"\1\0\0\0\0\0\0\0"), CorruptError, "not behind the descriptor"),
        (put(4, b"\4"), UnsupportedError, "version is 4"),
        (put(8, b"\1\0\5"), UnsupportedError, "flags"),
        (put(8, b"\1\0\1"), UnsupportedError, "only grains deflated"),
        (put(77, b"\2"), UnsupportedError, "compression is 2"),
        (put(20, b"\3"), UnsupportedError, "grain_size is 3"),
        (put(20, b"\0\0\1"), UnsupportedError, "grain_size is 65536"),
        (put(44, b"\0\0\1"), UnsupportedError, "table_entries"),
        (put(28, bytes(8)), UnsupportedError, "descriptor_offset is 0"),
        (put(36, b"\0\0\0\1"), UnsupportedError, "descriptor_size"),
        (lambda file: file + bytes(512), CorruptError, "footer marker"),
    ],
)
def test_hostile_stream_optimized_disks(
    edit: Callable[[bytearray], bytes | bytearray | None], error: type[Exception], match: str
) -> None:
    datastore = MemoryDatastore()
    with datastore.stage("", "disk") as staging:
        data = random.Random(1).randbytes(2 * GRAIN)
        write_disk(STREAM, staging.create, "d0", device_of(data), [(0, 2 * GRAIN)], cid=1)
        staging.publish()
    damage(datastore, "d0.vmdk", edit)
    with pytest.raises(error, match=match) as caught:
        read_all(datastore, "d0.vmdk")
    assert "d0.vmdk" in str(caught.value)


def test_a_grain_that_inflates_to_too_much_is_not_inflated() -> None:
    bomb = zlib.compress(bytes(64 << 20))
    assert len(bomb) < 2 * GRAIN
    datastore = MemoryDatastore()
    with datastore.stage("", "disk") as staging:
        # A grain that takes the same room, so that all behind it stays where it is.
        data = random.Random(1).randbytes(len(bomb)).ljust(GRAIN, b"\0")
        write_disk(STREAM, staging.create, "d0", device_of(data), [(0, GRAIN)], cid=1)
        staging.publish()
    damage(datastore, "d0.vmdk", put(GRAIN_AT + 8, len(bomb).to_bytes(4, "little") + bomb))
    with pytest.raises(CorruptError, match="inflates to 65537 bytes or more, not 65536"):
        read_all(datastore, "d0.vmdk")


COWD_TABLE = 128 * 512
"""Where the first table lies: the first thing behind the directory, at a multiple of 64 KiB."""


@pytest.mark.parametrize(
    ("edit", "error", "match"),
    [
        (put(0, b"KDMX"), CorruptError, "magic"),
        (put(4, b"\2"), UnsupportedError, "version is 2"),
        (put(12, b"\1"), CorruptError, "capacity is"),
        (put(16, bytes(4)), CorruptError, "grain_size is 0"),
        (put(16, b"\0\x10"), CorruptError, "grain_size is 4096"),
        (put(28, b"\xff\xff\xff\0"), CorruptError, "free_sector is 16777215, of a file of"),
        (put(20, bytes(4)), CorruptError, "directory at sector 0 is in the header"),
        (put(20, b"\xff\xff\xff\xff"), CorruptError, "directory ends at byte"),
        (put(24, bytes(4)), CorruptError, "directory has 0 entries"),
        (put(24, b"\xff\xff\xff\xff"), CorruptError, "directory has 4294967295 entries"),
        (put(2048, b"\1\0\0\0"), CorruptError, "table at sector 1 is not between"),
        (put(2048, b"\xff\xff\xff\xff"), CorruptError, "table at sector 4294967295 is not between"),
        (put(2052, b"\x81\0\0\0"), CorruptError, "tables at sectors 128 and 129 overlap"),
        (put(COWD_TABLE, b"\1\0\0\0"), CorruptError, "sector 1, in the header"),
        (put(COWD_TABLE, b"\3\0\0\0"), CorruptError, "grain at sector 3 is not between"),
        (put(COWD_TABLE, b"\xff\xff\xff\x7f"), CorruptError, "grain at sector 2147483647 is not between"),
    ],
)
def test_hostile_cowd_extents(edit: Callable[[bytearray], None], error: type[Exception], match: str) -> None:
    datastore = MemoryDatastore()
    with datastore.stage("", "disk") as staging:
        write_disk(COWD, staging.create, "d0", device_of(b"\1" * (4 << 20)), [(0, GRAIN)], cid=1)
        staging.publish()
    damage(datastore, "d0-delta.vmdk", edit)
    with pytest.raises(error, match=match) as caught:
        read_all(datastore, "d0.vmdk")
    assert "d0-delta.vmdk" in str(caught.value)


@pytest.mark.parametrize(
    ("offset", "data", "error", "match"),
    [
        (0, b"XXXX", CorruptError, "magic"),
        (8, b"\2", UnsupportedError, "version"),
        (16, b"\1", CorruptError, "capacity"),
        (24, b"\x10", UnsupportedError, "grain_size"),
        (80, b"\xff" * 8, CorruptError, "volatile_header"),
        (128, b"\xff" * 7 + b"\0", CorruptError, "directory ends at byte|directory is"),
        (136, b"\xff\xff\xff\xff", CorruptError, "directory has"),
        (144, b"\xff\xff\xff\xff", CorruptError, "the file ends"),
        (512, b"XXXX", CorruptError, "magic"),
        (8 * 512, b"\1\0\0\0\0\0\0\x10", CorruptError, "no table of 1"),
        (8 * 512, b"\0\0\0\0\0\0\0\x20", CorruptError, "no table of 1"),
        (9 * 512, b"\0\0\0\0\0\0\0\x50", CorruptError, "of no known kind"),
        (9 * 512, b"\xff\xff\xff\xff\xff\xff\0\x30", CorruptError, "grain at sector"),
    ],
)
def test_hostile_sesparse_extents(offset: int, data: bytes, error: type[Exception], match: str) -> None:
    datastore = MemoryDatastore()
    with datastore.stage("", "disk") as staging:
        write_sesparse(staging.create, "d0", GRAIN, {0: b"\1" * 4096}, cid=1)
        staging.publish()
    damage(datastore, "d0-sesparse.vmdk", put(offset, data))
    with pytest.raises(error, match=match) as caught:
        read_all(datastore, "d0.vmdk")
    assert "d0-sesparse.vmdk" in str(caught.value)


GOOD = [
    "# Disk DescriptorFile",
    "version=1",
    "CID=00000001",
    "parentCID=ffffffff",
    'createType="vmfs"',
    'RW 128 VMFS "x-flat.vmdk"',
    "# The Disk Data Base",
    "#DDB",
]


@pytest.mark.parametrize(
    ("line", "text", "error", "match"),
    [
        (5, 'RW 128 VMFS "../x-flat.vmdk"', CorruptError, "not a plain base name"),
        (5, 'RW 128 VMFS "/etc/passwd"', CorruptError, "not a plain base name"),
        (5, 'RW 128 VMFS "http://a/x"', CorruptError, "not a plain base name"),
        (5, 'RW 128 VMFS "json:{}"', CorruptError, "not a plain base name"),
        (5, 'RW 128 VMFS ".."', CorruptError, "not a plain base name"),
        (5, 'RW 128 VMFS ""', CorruptError, "not a plain base name"),
        (5, "RW 128 VMFS", CorruptError, "not a plain base name"),
        (5, 'RW 128 VMFS "missing.vmdk"', NotFoundError, "missing"),
        (5, 'RW 128 VMFS "d.vmdk"', CorruptError, "has .* bytes of a disk of 65536"),  # itself
        (5, 'RW 128 VMFS "x-flat.vmdk"\nRW 128 VMFS "x-flat.vmdk"', UnsupportedError, "2 extents"),
        (5, "", UnsupportedError, "0 extents"),
        (5, 'RDONLY 128 VMFS "x-flat.vmdk"', UnsupportedError, "RDONLY VMFS"),
        (5, 'RW 128 FLAT "x-flat.vmdk" 0', UnsupportedError, "RW FLAT"),
        (5, 'RW 64 VMFS "x-flat.vmdk" 64', UnsupportedError, "begins at sector 64"),
        (5, 'RW 129 VMFS "x-flat.vmdk"', CorruptError, "has 65536 bytes of a disk of 66048"),
        (5, 'RW 0 VMFS "x-flat.vmdk"', CorruptError, "a disk of 0 sectors"),
        (5, 'RW 9999999999999999999 VMFS "x-flat.vmdk"', CorruptError, "a disk of 9999999999999999999 sectors"),
        (4, 'createType="vmfsRaw"', UnsupportedError, "'vmfsRaw'"),
        (4, 'createType="monolithicSparse"', UnsupportedError, "'monolithicSparse'"),
        (4, 'createType="twoGbMaxExtentFlat"', UnsupportedError, "'twoGbMaxExtentFlat'"),
        (4, 'createType="vmfsSparse"', UnsupportedError, "RW VMFS, only RW VMFSSPARSE"),
        (4, "", UnsupportedError, "createType is ''"),
        (3, "", CorruptError, "parentCID is missing"),
        (3, 'parentCID=00000002\nparentFileNameHint="/etc/p.vmdk"', UnsupportedError, "flat disk with a parent"),
        (3, "parentCID=00000002", CorruptError, "one of them is missing"),
        (2, "CID=1\nCID=1", CorruptError, "twice"),
        (2, "CID=xyz", CorruptError, "not 8 hexadecimal digits"),
        (1, "nonsense", CorruptError, "neither a key nor an extent"),
        (0, "# Disk DescriptorFil", CorruptError, "as no VMDK does"),
        (0, "COWD", UnsupportedError, "name its descriptor instead"),
        (6, "#" * (1 << 16), CorruptError, "a descriptor of"),
    ],
)
def test_hostile_descriptors(tmp_path: Path, line: int, text: str, error: type[Exception], match: str) -> None:
    (tmp_path / "x-flat.vmdk").write_bytes(bytes(GRAIN))
    (tmp_path / "d.vmdk").write_text("\n".join(GOOD))
    with LocalDatastore(tmp_path) as datastore:
        assert read_all(datastore, "d.vmdk") == bytes(GRAIN)
        lines = list(GOOD)
        lines[line] = text
        (tmp_path / "d.vmdk").write_text("\n".join(lines))
        with pytest.raises(error, match=match):
            read_all(datastore, "d.vmdk")


def test_disks_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    with LocalDatastore(tmp_path) as datastore:
        add_chain(datastore, [VMFS, COWD, COWD], GRAIN)
        descriptor = tmp_path / "d0.vmdk"
        good = descriptor.read_text()
        descriptor.chmod(0o644)
        descriptor.write_text(good.replace(f"CID={cid_of(0):08x}", "CID=00000007"))
        with pytest.raises(CorruptError, match=r"d1\.vmdk: has parent content id .*, but d0\.vmdk has content id 00000007"):
            read_all(datastore, "d2.vmdk")
        descriptor.write_text(good.replace("RW 128 ", "RW 64 "))
        with open_disks(datastore.open, "d2.vmdk") as disks:  # a smaller parent: zeros behind it
            assert disks.size == GRAIN
        descriptor.unlink()
        with pytest.raises(NotFoundError, match=r"d0\.vmdk"):
            read_all(datastore, "d2.vmdk")
        top, middle = tmp_path / "d2.vmdk", tmp_path / "d1.vmdk"
        middle.chmod(0o644)
        middle.write_text(middle.read_text().replace('Hint="d0.vmdk"', 'Hint="d2.vmdk"'))
        with pytest.raises(CorruptError, match=r"d1\.vmdk: its parent d2\.vmdk is in the chain already"):
            read_all(datastore, top.name)


def test_a_read_costs_the_same_at_any_depth(tmp_path: Path) -> None:
    with LocalDatastore(tmp_path) as datastore:
        add_chain(datastore, [VMFS, *[COWD] * 60], 1 << 20, writes=1)
        opened: list[str] = []
        read: list[int] = []

        class Counting:
            """A file of which is counted how often it is read."""

            def __init__(self, path: str) -> None:
                opened.append(path)
                self._file = datastore.open(path)
                self.path = path
                self.close = self._file.close
                self.data_ranges = self._file.data_ranges

            @property
            def size(self) -> int:
                return self._file.size

            def pread(self, offset: int, length: int) -> bytes:
                read.append(offset)
                return self._file.pread(offset, length)

        with open_disks(Counting, "d60.vmdk") as disks:  # type: ignore[arg-type]
            disks.read(0, 4096)
            read.clear()
            for offset in range(0, 1 << 20, 4096):
                disks.read(offset, 4096)
            assert len(read) <= 256
        assert len(opened) == 2 * 61
