from __future__ import annotations

import pytest

from imgstore.blocks import GRAIN, Bytes, Extent, ExtentKind
from imgstore.datastores import MemoryDatastore, StagedFile
from imgstore.errors import NoSpaceError
from imgstore.vmdk import Chain, HostedDiskWriter, SnapshotDevice
from tests.disks import SIZE, add_disk


class RecordedFile:
    """Notes the writes that reach a file, as (offset, length), and has room for so many bytes."""

    def __init__(self, file: StagedFile, room: int = 1 << 40) -> None:
        self._file = file
        self._room = room
        self.writes: list[tuple[int, int]] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)

    def pwrite(self, offset: int, data: Bytes) -> None:
        if offset + len(data) > self._room:
            raise NoSpaceError(f"{self._file.path}: full")
        self.writes.append((offset, len(data)))
        self._file.pwrite(offset, data)


def device(parent: Chain | None = None, *, cache: int = 4 * GRAIN, room: int = 1 << 40) -> tuple[SnapshotDevice, RecordedFile]:
    file = RecordedFile(MemoryDatastore().stage("disks", "a").create("a.vmdk"), room)
    hint = None if parent is None else "base.vmdk"
    writer = HostedDiskWriter(
        file,  # type: ignore[arg-type]
        capacity=SIZE,
        cid=7,
        extent_name="a.vmdk",
        parent_cid=None if parent is None else parent.cid,
        parent_hint=hint,
    )
    return SnapshotDevice(writer, parent, cache_size=cache), file


def test_a_run_of_whole_grains_is_one_write() -> None:
    disk, file = device()
    disk.write(3 * GRAIN, b"a" * 20 * GRAIN)
    assert file.writes == [(GRAIN, 20 * GRAIN)]


def test_a_run_over_the_end_of_a_grain_table_is_one_write() -> None:
    disk, file = device()
    disk.write(500 * GRAIN, b"a" * 20 * GRAIN)
    assert file.writes == [(GRAIN, 20 * GRAIN)]


def test_a_stream_that_is_not_aligned_lies_in_order_in_the_file() -> None:
    disk, file = device()
    for number in range(6):
        disk.write(4096 + number * 4 * GRAIN, bytes([number]) * 4 * GRAIN)
    disk.flush()
    offset = GRAIN
    for start, length in file.writes:
        assert start == offset
        offset += length
    assert disk.read(4096, 24 * GRAIN) == b"".join(bytes([number]) * 4 * GRAIN for number in range(6))


def test_small_writes_wait_in_memory_and_leave_as_one() -> None:
    disk, file = device()
    for number in range(32):
        disk.write(number * 4096, bytes([number]) * 4096)
    assert file.writes == []
    disk.flush()
    assert file.writes == [(GRAIN, 2 * GRAIN)]
    disk.flush()
    assert len(file.writes) == 1


def test_what_waits_in_memory_is_bounded() -> None:
    disk, file = device(cache=8 * GRAIN)
    for grain in range(1000):
        disk.write(grain * GRAIN + 1, b"a")
    assert len(file.writes) * 2 >= 1000 - 8  # a quarter of the cache leaves at once: two neighbours a write
    assert disk.read(0, SIZE) == (b"\0a" + bytes(GRAIN - 2)) * 1000 + bytes(SIZE - 1000 * GRAIN)


def test_a_part_of_a_grain_is_completed_from_the_parent() -> None:
    parent = add_disk(MemoryDatastore(), "base", None, [(0, b"p" * 3 * GRAIN)])
    disk, file = device(parent)
    disk.write(GRAIN + 10, b"c")
    disk.flush()
    assert file.pread(GRAIN, GRAIN) == b"p" * 10 + b"c" + b"p" * (GRAIN - 11)  # type: ignore[operator]
    assert disk.read(0, 3 * GRAIN) == b"p" * (GRAIN + 10) + b"c" + b"p" * (2 * GRAIN - 11)


def test_a_whole_grain_takes_the_place_of_what_waits() -> None:
    disk, file = device()
    disk.write(10, b"a")
    disk.write(0, b"b" * GRAIN)
    disk.flush()
    assert file.writes == [(GRAIN, GRAIN)]
    assert disk.read(0, GRAIN) == b"b" * GRAIN


def test_written_tells_whether_anything_was() -> None:
    disk, _ = device()
    assert disk.read(0, 100) == bytes(100)
    disk.write(50, b"")
    assert not disk.written
    disk.write(50, b"a")
    assert disk.written


def test_extents_count_what_waits() -> None:
    disk, _ = device()
    disk.write(GRAIN, b"a")
    assert list(disk.extents(0, 3 * GRAIN)) == [
        Extent(0, GRAIN, ExtentKind.HOLE),
        Extent(GRAIN, GRAIN, ExtentKind.DATA),
        Extent(2 * GRAIN, GRAIN, ExtentKind.HOLE),
    ]


def test_a_chain_can_be_read_and_built_on_before_its_disk_is_sealed() -> None:
    disk, _ = device()
    disk.write(5, b"a")
    chain = disk.chain()
    child, _ = device(chain)
    child.write(6, b"b")
    disk.seal()
    assert child.read(4, 4) == b"\0ab\0"
    assert child.chain().read(4, 4) == b"\0ab\0"
    assert chain.read(4, 4) == b"\0a\0\0"


def test_a_full_datastore_is_told_at_the_write_or_the_flush() -> None:
    disk, _ = device(room=4 * GRAIN)
    disk.write(0, b"a" * 2 * GRAIN)
    disk.write(9 * GRAIN, b"a")
    with pytest.raises(NoSpaceError):
        disk.write(20 * GRAIN, b"a" * 2 * GRAIN)
    disk, _ = device(room=GRAIN)
    disk.write(0, b"a")
    with pytest.raises(NoSpaceError):
        disk.flush()


def test_a_file_that_would_pass_two_tebibytes_is_refused() -> None:
    writer = HostedDiskWriter(
        MemoryDatastore().stage("disks", "a").create("a.vmdk"), capacity=2 << 40, cid=7, extent_name="a.vmdk"
    )
    with pytest.raises(NoSpaceError, match=f"disks/a.vmdk: an extent file holds at most {2 << 40} bytes"):
        writer.allocate(0, (2 << 40) // GRAIN)


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (SIZE, 1), (SIZE - 1, 2)])
def test_a_range_outside_is_the_callers_error(offset: int, length: int) -> None:
    disk, _ = device()
    with pytest.raises(ValueError, match="not inside"):
        disk.write(offset, bytes(length))
    with pytest.raises(ValueError, match="not inside"):
        disk.read(offset, length)
    assert not disk.written
