from __future__ import annotations

import re
import struct
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
from crc32c import crc32c

from imgstore.blocks import GRAIN
from imgstore.datastores import LocalDatastore, MemoryDatastore, StagedFile, StoredFile
from imgstore.errors import CorruptError, InvalidError, UnsupportedError
from imgstore.vmdk import HostedDiskWriter, open_disk
from imgstore.vmdk.grains import HostedHeader, Layout
from tests.disks import SIZE, add_disk, path_of


@pytest.fixture
def datastore() -> MemoryDatastore:
    return MemoryDatastore()


def staged(datastore: MemoryDatastore) -> StagedFile:
    return datastore.stage("disks", "a").create("a.vmdk")


def writer(file: StagedFile, **changes: object) -> HostedDiskWriter:
    arguments: dict[str, object] = {"capacity": SIZE, "cid": 7, "extent_name": "a.vmdk", **changes}
    return HostedDiskWriter(file, **arguments)  # type: ignore[arg-type]


def patched(datastore: MemoryDatastore, offset: int, data: bytes) -> MemoryDatastore:
    """The datastore with a small disk ``a`` of which some bytes are others."""
    if not datastore.exists(path_of("a")):
        add_disk(datastore, "a", None, [(0, b"a" * GRAIN), (5 * GRAIN, b"b")])
    with datastore.fs.openbin(path_of("a"), "r+") as file:
        file.seek(offset)
        file.write(data)
    return datastore


def test_the_sectors_are_where_the_specification_says(datastore: MemoryDatastore) -> None:
    add_disk(datastore, "a", None, [(5 * GRAIN, b"x" * GRAIN), (600 * GRAIN, b"y" * GRAIN)])
    data = datastore.fs.readbytes(path_of("a"))
    header = struct.unpack_from("<4sIIQQQQIQQQB4sH", data)
    # magic, version, flags, capacity, grain, descriptor at and size, entries, directories, overhead, clean, newlines, compression
    assert header == (b"KDMV", 1, 3, SIZE // 512, 128, 1, 20, 512, 24, 40, 128, 0, b"\n \r\n", 0)
    assert data[512:533] == b"# Disk DescriptorFile"
    assert struct.unpack_from("<3I", data, 24 * 512) == (32, 36, 0)
    assert struct.unpack_from("<3I", data, 40 * 512) == (48, 52, 0)
    for table in (32, 48):
        assert array("I", data[table * 512 : (table + 4) * 512]).tolist() == [0] * 5 + [128] + [0] * 506
        assert struct.unpack_from("<I", data, (table + 4) * 512 + 88 * 4) == (256,)
    assert data[128 * 512 :] == b"x" * GRAIN + b"y" * GRAIN


def test_a_disk_without_a_grain_has_all_tables_and_no_data(datastore: MemoryDatastore) -> None:
    add_disk(datastore, "a", None, [])
    with datastore.open(path_of("a")) as file:
        disk = open_disk(file)
        assert (file.size, disk.capacity, disk.cid, disk.parent_cid) == (GRAIN, SIZE, disk.descriptor.cid, None)
        assert len(disk.directory()) == 2 and all(disk.directory())
        assert disk.grain_tables() == {}


def test_new_grains_go_to_the_end_and_old_ones_keep_their_place(datastore: MemoryDatastore) -> None:
    file = staged(datastore)
    disk = writer(file)
    disk.write_grains(10, b"a" * 2 * GRAIN)
    disk.write_grains(8, b"b" * 4 * GRAIN)
    summary = disk.seal()
    assert (summary.grains, summary.file_size) == (4, 5 * GRAIN)
    assert file.pread(GRAIN, 4 * GRAIN) == b"b" * 4 * GRAIN
    assert open_disk(file).grain_tables()[0][8:12].tolist() == [384, 512, 128, 256]


def test_the_sums_are_those_of_the_grains_in_the_order_of_the_file(datastore: MemoryDatastore) -> None:
    disk = writer(staged(datastore))
    disk.write_grains(600, b"a" * GRAIN + b"b" * GRAIN)
    disk.write_grains(3, b"c" * GRAIN)
    disk.write_grains(601, b"d" * GRAIN)
    assert array("I", disk.seal().grain_sums).tolist() == [crc32c(letter * GRAIN) for letter in (b"a", b"d", b"c")]


def test_no_reader_takes_a_disk_that_was_not_sealed(datastore: MemoryDatastore) -> None:
    class PowerCutError(Exception):
        pass

    def cut() -> None:
        raise PowerCutError

    file = staged(datastore)
    disk = writer(file)
    disk.write_grains(0, b"a" * GRAIN)
    with pytest.raises(CorruptError, match="magic"):
        open_disk(datastore.open(datastore.fs.listdir("disks")[0].join(("disks/", "/a.vmdk"))))
    file.fsync = cut  # type: ignore[method-assign]
    with pytest.raises(PowerCutError):
        disk.seal()
    with pytest.raises(CorruptError, match="magic is b'vmdk', not b'KDMV'"):
        open_disk(file)


def test_a_sealed_disk_takes_no_grain(datastore: MemoryDatastore) -> None:
    disk = writer(staged(datastore))
    disk.seal()
    with pytest.raises(ValueError, match="is sealed"):
        disk.write_grains(0, bytes(GRAIN))
    with pytest.raises(ValueError, match="is sealed already"):
        disk.seal()


@pytest.mark.parametrize(("grain", "length"), [(-1, GRAIN), (1024, GRAIN), (1023, 2 * GRAIN), (0, 100)])
def test_only_whole_grains_inside_the_disk_are_taken(datastore: MemoryDatastore, grain: int, length: int) -> None:
    with pytest.raises(ValueError, match="grains"):
        writer(staged(datastore)).write_grains(grain, bytes(length))


@pytest.mark.parametrize("capacity", [0, -GRAIN, 4096, GRAIN + 4096, (2 << 40) + GRAIN])
def test_a_capacity_that_readers_disagree_about_is_refused(capacity: int) -> None:
    with pytest.raises(InvalidError, match=f"disk of {capacity} bytes"):
        Layout.plan(capacity)


def test_a_disk_of_two_tebibytes_has_room_for_its_tables() -> None:
    layout = Layout.plan(2 << 40)
    assert (layout.tables, layout.overhead % 128) == (65536, 0)
    assert layout.first_table + 4 * layout.tables <= layout.overhead < 2 * (65536 * 4 + 512) + 200


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("version", 3, UnsupportedError),
        ("flags", 0x10003, UnsupportedError),
        ("grain_size", 16, UnsupportedError),
        ("grain_size", 1 << 63, UnsupportedError),
        ("descriptor_offset", 3, UnsupportedError),
        ("descriptor_size", 1 << 40, UnsupportedError),
        ("table_entries", 0, UnsupportedError),
        ("compression", 1, UnsupportedError),
        ("capacity", 0, UnsupportedError),
        ("capacity", 1 << 33, UnsupportedError),
        ("capacity", SIZE // 512 + 128, CorruptError),
        ("directory", 2, CorruptError),
        ("directory", 1 << 50, CorruptError),
        ("directory", (1 << 64) - 1, CorruptError),
        ("redundant_directory", 128, CorruptError),
        ("overhead", 1 << 40, CorruptError),
        ("overhead", 0, CorruptError),
    ],
)
def test_a_header_that_leads_outside_is_refused(
    datastore: MemoryDatastore, field: str, value: int, kind: type[Exception]
) -> None:
    offset = HostedHeader.offset_of(field)
    length = {"version": 4, "flags": 4, "table_entries": 4, "compression": 2}.get(field, 8)
    patched(datastore, offset, value.to_bytes(length, "little"))
    with pytest.raises(kind, match=path_of("a")):
        open_disk(datastore.open(path_of("a")))


@pytest.mark.parametrize(
    ("offset", "value", "words"),
    [
        (40 * 512, 36, "overlap"),  # the table before is at 48, the next at 52
        (40 * 512, 51, "overlap"),
        (40 * 512, 1 << 31, "outside the file"),
        (48 * 512, 1, "not between"),
        (48 * 512, 127, "not between"),
        (48 * 512, 385, "not between"),
        (48 * 512, 0xFFFFFFFF, "not between"),
    ],
)
def test_tables_that_lead_outside_are_refused(datastore: MemoryDatastore, offset: int, value: int, words: str) -> None:
    patched(datastore, offset, struct.pack("<I", value))
    if value == 36:
        patched(datastore, offset + 4, struct.pack("<I", 38))
    disk = open_disk(datastore.open(path_of("a")))
    with pytest.raises(CorruptError, match=f"{path_of('a')}.*{words}"):
        disk.grain_tables()


TABLES = (0, 1, 2, 7, 100, 101, 200, 255)


class SparseFile:
    """A file that calls everything hole that is zero, as the finest of file systems might."""

    def __init__(self, file: StoredFile) -> None:
        self._file = file
        self.bytes_read = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)

    def pread(self, offset: int, length: int) -> bytes:
        self.bytes_read += length
        return self._file.pread(offset, length)

    def data_ranges(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        for run in re.finditer(rb"[^\0]+", self._file.pread(offset, length)):
            yield offset + run.start(), run.end() - run.start()


@pytest.mark.parametrize("kind", ["local", "memory", "sparse"])
def test_tables_are_found_between_holes(tmp_path: Path, kind: str) -> None:
    datastore = LocalDatastore(tmp_path) if kind == "local" else MemoryDatastore()
    with datastore:
        grains = [number * 512 + number for number in TABLES] + [7 * 512 + 300, 101 * 512 + 500]
        chain = add_disk(datastore, "a", None, [(grain * GRAIN, b"x") for grain in grains], size=256 * 512 * GRAIN)
        with datastore.open(path_of("a")) as stored:
            file = SparseFile(stored) if kind == "sparse" else stored
            for redundant in (False, True):
                found = open_disk(file).tables(redundant=redundant)  # type: ignore[arg-type]
                assert [(number, table) for number, _, table in found] == list(chain.block_map.tables(0))
            if isinstance(file, SparseFile):
                assert file.bytes_read < 4 * GRAIN  # of two times 512 KiB of tables
        assert [number for number, _ in chain.block_map.tables(0)] == list(TABLES)
        chain.close()


@pytest.mark.parametrize("length", [0, 100, 511, 600, 10_000, GRAIN - 1])
def test_a_file_cut_short_is_refused(datastore: MemoryDatastore, length: int) -> None:
    add_disk(datastore, "a", None, [(0, b"a")])
    with datastore.fs.openbin(path_of("a"), "r+") as file:
        file.truncate(length)
    with pytest.raises(CorruptError, match=path_of("a")):
        open_disk(datastore.open(path_of("a")))
