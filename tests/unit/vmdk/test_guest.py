from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgstore.blocks import GRAIN, Extent, ExtentKind, GuestDevice
from imgstore.datastores import LocalDatastore, MemoryDatastore
from imgstore.datastores.local_files import LocalLiveFile
from imgstore.errors import CorruptError, DeniedError, UnsupportedError
from imgstore.live_disks import LiveDisks
from imgstore.vmdk import Chain, check_disk, guest, open_disk
from imgstore.vmdk.private import PrivateOverlay
from imgstore.vmdk.read_only import ReadOnlyDisk
from tests.disks import SIZE, add_chain, add_disk, path_of, read_ready

DISK = "containers/c.vmdk"


@pytest.fixture
def datastore(tmp_path: Path) -> Iterator[LocalDatastore]:
    with LocalDatastore(tmp_path) as datastore:
        yield datastore


@pytest.fixture
def base(datastore: LocalDatastore) -> Iterator[Chain]:
    with add_disk(datastore, "base", None, [(0, b"b" * 2 * GRAIN)]) as made:
        yield made


@pytest.fixture
def live(datastore: LocalDatastore, base: Chain) -> LiveDisks:
    live = LiveDisks(datastore)
    live.create(DISK, SIZE, base)
    return live


def test_threads_write_parts_of_the_same_grains(live: LiveDisks, datastore: LocalDatastore) -> None:
    model = bytearray(SIZE)
    model[: 2 * GRAIN] = b"b" * 2 * GRAIN
    with contextlib.closing(live.attach(DISK)) as device:

        def work(number: int) -> None:
            places = list(range(number * 512, 6 * GRAIN, 4 * 512))
            random.Random(number).shuffle(places)
            for place in places:
                if number:
                    device.write(place, bytes([number]) * 512)
                else:
                    device.zero(place, 512)
                assert device.read(place, 512) == bytes([number]) * 512
                if place % 64 == 0 and number == 0:
                    device.flush()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert device.read(0, 6 * GRAIN) == b"".join(bytes([number]) * 512 for number in range(4)) * (6 * GRAIN // 2048)
    with datastore.open(DISK) as file:
        assert check_disk(file) == []  # each grain has one place, and all places have a grain


def test_storage_is_given_back(live: LiveDisks, datastore: LocalDatastore) -> None:
    with contextlib.closing(live.attach(DISK)) as device:
        device.write(0, b"x" * 64 * GRAIN)
        device.flush()
        full = datastore.usage(DISK)
        assert full >= 64 * GRAIN
        device.zero(0, 16 * GRAIN, keep_space=True)
        assert datastore.usage(DISK) >= 64 * GRAIN
        device.zero(16 * GRAIN, 16 * GRAIN)
        device.trim(32 * GRAIN + 4096, 16 * GRAIN)
        device.trim(60 * GRAIN, SIZE - 60 * GRAIN)
        assert datastore.usage(DISK) <= full - 36 * GRAIN
        assert not any(device.read(0, 32 * GRAIN))
        kinds = list(device.extents(16 * GRAIN, 17 * GRAIN))
        assert kinds == [
            Extent(16 * GRAIN, 16 * GRAIN, ExtentKind.HOLE),
            Extent(32 * GRAIN, 4096, ExtentKind.DATA),
            Extent(32 * GRAIN + 4096, GRAIN - 4096, ExtentKind.HOLE),
        ]


def test_zeros_take_no_storage(live: LiveDisks, datastore: LocalDatastore) -> None:
    before = datastore.usage(DISK)
    with contextlib.closing(live.attach(DISK)) as device:
        device.zero(0, SIZE)
        device.write(40 * GRAIN, b"a sector of a grain that nobody has")
        assert device.read(0, 2 * GRAIN) == bytes(2 * GRAIN)
    assert datastore.usage(DISK) <= before + 5 * 4096  # one block, and one of each kind of table


def test_a_device_flushes_by_itself(live: LiveDisks, datastore: LocalDatastore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "MAX_PENDING", 8)
    device = live.attach(DISK)
    for grain in range(20):
        device.write(grain * GRAIN, b"x")
    with datastore.open(DISK) as file:
        tables = open_disk(file).grain_tables()
        assert sum(1 for sector in tables[0] if sector) == 16
    device.close()


def test_many_that_flush_at_once_share_it(live: LiveDisks, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs, began, goes_on = [], threading.Event(), threading.Event()

    def fdatasync(file: LocalLiveFile) -> None:
        syncs.append(file)
        began.set()
        assert goes_on.wait(20)

    with contextlib.closing(live.attach(DISK)) as device:
        device.write(0, b"x")
        device.flush()
        monkeypatch.setattr(LocalLiveFile, "fdatasync", fdatasync)
        device.write(0, b"y")
        asking = threading.Barrier(21)

        def flush() -> None:
            asking.wait(20)
            device.flush()

        threads = [threading.Thread(target=device.flush), *(threading.Thread(target=flush) for _ in range(20))]
        for thread in threads:
            thread.start()
        assert began.wait(20)
        device.write(512, b"z")  # not of the flush that is under way
        asking.wait(20)
        time.sleep(0.1)
        goes_on.set()
        for thread in threads:
            thread.join()
        assert 2 <= len(syncs) <= 10


def test_what_is_ready_is_what_is_in_memory(datastore: LocalDatastore) -> None:
    chain, model = add_chain(datastore, 3, seed=8)
    chance = random.Random(8)
    with chain:
        for _ in range(200):
            length = chance.choice((1, 4096, GRAIN, 3 * GRAIN))
            offset = chance.randrange(SIZE - length + 1)
            assert read_ready(chain, offset, length) in (None, model[offset : offset + length])
        with pytest.raises(ValueError, match="not inside a device"):
            read_ready(chain, SIZE - 1, 2)
    memory = MemoryDatastore()
    with contextlib.closing(memory), add_disk(memory, "base", None, [(GRAIN - 2, b"here")]) as chain:
        assert read_ready(chain, GRAIN - 3, 6) == b"\0here\0"
        assert read_ready(chain, 5 * GRAIN, 3) == bytes(3)


def test_who_must_not_write_is_told_so(base: Chain) -> None:
    released: list[str] = []
    device = ReadOnlyDisk(base, lambda: released.append("once"))
    assert device.read_only
    assert (device.size, device.read(0, 3)) == (SIZE, b"bbb")
    assert next(iter(device.extents())) == Extent(0, 2 * GRAIN, ExtentKind.DATA)
    for call in (lambda: device.write(0, b"x"), lambda: device.zero(0, 1), lambda: device.trim(0, 1)):
        with pytest.raises(DeniedError, match=f"{path_of('base')}: is read-only"):
            call()
    device.flush()
    device.close()
    device.close()
    assert released == ["once"]


def test_ranges_are_checked(live: LiveDisks, base: Chain, datastore: LocalDatastore) -> None:
    overlay_file = datastore.create_unnamed("overlay")
    for device in (live.attach(DISK), PrivateOverlay(base, overlay_file, overlay_file.close)):
        with contextlib.closing(device):
            assert_refuses_bad_ranges(device)


def assert_refuses_bad_ranges(device: GuestDevice) -> None:
    for call in (
        lambda: device.read(SIZE - 1, 2),
        lambda: read_ready(device, SIZE, 1),
        lambda: device.write(SIZE - 1, b"ab"),
        lambda: device.write(-1, b"a"),
        lambda: device.zero(SIZE, 1),
        lambda: device.trim(0, SIZE + 1),
        lambda: list(device.extents(0, SIZE + 1)),
    ):
        with pytest.raises(ValueError, match="not inside a device"):
            call()
    assert (device.read(SIZE, 0), read_ready(device, SIZE, 0), list(device.extents(SIZE, 0))) == (b"", b"", [])
    device.write(SIZE, b"")


def test_a_disk_whose_tables_lie_elsewhere_is_refused(live: LiveDisks, datastore: LocalDatastore) -> None:
    with datastore.open(DISK) as file:
        header = open_disk(file).header
        first = file.pread(header.directory * 512, 8)
    for broken, kind, problem in (
        (bytes(4), UnsupportedError, "a grain table is missing"),
        ((1 << 30).to_bytes(4, "little"), CorruptError, "is outside the file"),
    ):
        with datastore.open_live(DISK, writable=True) as file:
            file.pwrite(header.directory * 512, broken)
        with pytest.raises(kind, match=f"{DISK}.*{problem}"):
            live.attach(DISK)
    with datastore.open_live(DISK, writable=True) as file:
        end = file.size
        file.pwrite(end, bytes(2048))
        file.pwrite(header.directory * 512, (end // 512).to_bytes(4, "little") + first[4:])
    with pytest.raises(
        UnsupportedError, match=f"{DISK}: the grain table at sector {end // 512} does not lie before the first grain"
    ):
        live.attach(DISK)


def test_a_grain_that_two_entries_name_is_not_written(live: LiveDisks, datastore: LocalDatastore) -> None:
    with contextlib.closing(live.attach(DISK)) as device:
        device.write(0, b"x" * GRAIN)
    with datastore.open_live(DISK, writable=True) as file:
        table = open_disk(file).directory()[0] * 512
        file.pwrite(table + 4, file.pread(table, 4))
        file.fsync()
    with contextlib.closing(live.attach(DISK)) as device, pytest.raises(CorruptError, match="2 grains lie at 1 places"):
        device.write(0, b"y")
