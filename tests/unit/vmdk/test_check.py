from __future__ import annotations

import struct

import pytest

from imgstore.blocks import GRAIN
from imgstore.datastores import MemoryDatastore
from imgstore.vmdk import check_disk
from imgstore.vmdk.check import MAX_FINDINGS
from tests.disks import add_disk, path_of

# Where things lie in a disk of 64 MiB, in bytes; grains 0, 1, 5 and 600 are in it, in this order.
REDUNDANT_DIRECTORY, REDUNDANT_TABLE = 24 * 512, 32 * 512
DIRECTORY, TABLE = 40 * 512, 48 * 512
OVERHEAD = 128


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


@pytest.fixture
def datastore() -> MemoryDatastore:
    datastore = MemoryDatastore()
    add_disk(datastore, "a", None, [(0, b"a" * 2 * GRAIN), (5 * GRAIN, b"b" * GRAIN), (600 * GRAIN, b"c" * GRAIN)])
    return datastore


def problems(datastore: MemoryDatastore) -> list[tuple[int | None, str]]:
    with datastore.open(path_of("a")) as file:
        findings = check_disk(file)
    assert all(finding.path == path_of("a") for finding in findings)
    return [(finding.offset, finding.problem) for finding in findings]


def test_a_sound_disk_has_no_findings(datastore: MemoryDatastore) -> None:
    assert problems(datastore) == []


@pytest.mark.parametrize(
    ("patches", "expected"),
    [
        ([(0, b"COWD")], [(None, f"{path_of('a')}: HostedHeader at byte 0: magic is b'COWD', not b'KDMV'")]),
        ([(72, b"\1")], [(72, "unclean_shutdown is 1, not 0")]),
        (
            [(TABLE, u32(0))],
            [
                (REDUNDANT_TABLE, "redundant grain table 0: entry 0 is 128, in the grain table 0"),
                (None, f"the file has {5 * GRAIN} bytes, header, tables and 3 grains make {4 * GRAIN}"),
            ],
        ),
        (
            [(REDUNDANT_TABLE + 5 * 4, u32(129))],
            [(REDUNDANT_TABLE + 5 * 4, "redundant grain table 0: entry 5 is 129, in the grain table 384")],
        ),
        (
            [(at + 4 * 3, u32(128)) for at in (TABLE, REDUNDANT_TABLE)],
            [(TABLE + 4 * 3, "grain 3 is at sector 128 like grain 0")],
        ),
        (
            [(at, u32(130)) for at in (TABLE, REDUNDANT_TABLE)],
            [(TABLE, f"grain 0 at sector 130 is not at a multiple of 128 from sector {OVERHEAD}")],
        ),
        (
            [(at, u32(16)) for at in (TABLE, REDUNDANT_TABLE)],
            [(TABLE, "grain 0 at sector 16 lies in the metadata, which ends at sector 128")],
        ),
        (
            [(at, u32(640)) for at in (TABLE, REDUNDANT_TABLE)],
            [(TABLE, f"grain 0 at sector 640 goes over the end of the file of {5 * GRAIN} bytes")],
        ),
        ([(DIRECTORY, u32(0))], [(DIRECTORY, "grain directory: table 0 is missing")]),
        ([(REDUNDANT_DIRECTORY + 4, u32(0))], [(REDUNDANT_DIRECTORY + 4, "grain redundant directory: table 1 is missing")]),
        (
            [(DIRECTORY, u32(32))],
            [(32 * 512, "table 0 of the redundant directory overlaps table 0 of the directory")],
        ),
        ([(DIRECTORY, u32(10))], [(512 * 10, "table 0 of the directory overlaps header and descriptor")]),
        ([(DIRECTORY, u32(256))], [(DIRECTORY, "grain directory: table 0 at sector 256 is not before the first grain")]),
    ],
)
def test_each_kind_of_damage_is_found_where_it_is(
    datastore: MemoryDatastore, patches: list[tuple[int, bytes]], expected: list[tuple[int | None, str]]
) -> None:
    with datastore.fs.openbin(path_of("a"), "r+") as file:
        for offset, data in patches:
            file.seek(offset)
            file.write(data)
    found = problems(datastore)
    assert [finding for finding in expected if finding not in found] == []


def test_a_lost_last_grain_is_found(datastore: MemoryDatastore) -> None:
    with datastore.fs.openbin(path_of("a"), "r+") as file:
        file.truncate(5 * GRAIN - 1)
    entry = TABLE + 4 * 512 + 88 * 4
    assert problems(datastore) == [
        (entry, f"grain 600 at sector 512 goes over the end of the file of {5 * GRAIN - 1} bytes"),
        (None, f"the file has {5 * GRAIN - 1} bytes, header, tables and 4 grains make {5 * GRAIN}"),
    ]


def test_a_grain_past_the_end_of_the_disk_is_found() -> None:
    datastore = MemoryDatastore()
    size = 10 * GRAIN
    add_disk(datastore, "a", None, [(0, b"a")], size=size)
    with datastore.fs.openbin(path_of("a"), "r+") as file:
        file.seek(TABLE + 10 * 4)
        file.write(u32(128))
    assert (TABLE + 40, "grain 10 lies past the end of the disk of 10 grains") in problems(datastore)


def test_a_file_full_of_damage_has_a_bounded_list(datastore: MemoryDatastore) -> None:
    with datastore.fs.openbin(path_of("a"), "r+") as file:
        file.seek(TABLE)
        file.write(u32(131) * 512)
    assert len(problems(datastore)) == MAX_FINDINGS
