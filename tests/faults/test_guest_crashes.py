"""The machine stops, or the process is killed, or the datastore is full, while a guest writes a disk of ours.

What was written since the last fsync is lost in every combination. What the guest flushed is there then, each sector that it did not flush
is as it was or as it was written, and the disk is sound.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgstore.blocks import GRAIN, SECTOR, Bytes, ReadableFile
from imgstore.datastores import LocalDatastore, MemoryDatastore
from imgstore.errors import InUseError, NoSpaceError, UnavailableError
from imgstore.live_disks import LiveDisks
from imgstore.vmdk import Chain, EditedDisk, check_disk, open_chain, open_disk, write_child
from imgstore.vmdk.guest import GuestDisk
from tests.crashes import CrashIntents, GuestCrashFile, Machine, StoppedError
from tests.disks import add_disk, path_of
from tests.judges import vmdk
from tests.tools import need, need_root, run

SIZE = 34 << 20  # two grain tables
LAST = SIZE - GRAIN
GRAINS = (0, 1, 2, 3, 4, 8, 9, 511, 512, LAST // GRAIN)
"""What the steps below touch."""

Step = tuple[str, int, int]

STEPS: list[Step] = [
    ("write", 700, 4096),
    ("write", 2 * GRAIN - 512, GRAIN + 1024),
    ("write", 511 * GRAIN + 512, 2 * GRAIN - 1024),
    ("flush", 0, 0),
    ("write", 0, 8192),
    ("zero", GRAIN, GRAIN),
    ("zero", 8 * GRAIN, 2 * GRAIN),
    ("write", 9 * GRAIN + 4096, 512),
    ("flush", 0, 0),
    ("write", LAST, GRAIN),
    ("trim", 2 * GRAIN, GRAIN),
    ("zero", 4 * GRAIN + 512, 512),
]

Shown = tuple[bytes, ...]
"""The grains ``GRAINS``."""


@pytest.fixture(scope="module")
def parents() -> Iterator[MemoryDatastore]:
    datastore = MemoryDatastore()
    add_disk(datastore, "base", None, [(GRAIN, b"b" * GRAIN), (4 * GRAIN, b"c" * 5 * GRAIN)], size=SIZE).close()
    with contextlib.closing(datastore):
        yield datastore


def open_on(parents: MemoryDatastore, file: GuestCrashFile) -> Chain:
    def find(path: str) -> ReadableFile:
        return file if path == file.path else parents.open(path)

    return open_chain(find, file.path)


def attach(parents: MemoryDatastore, machine: Machine) -> GuestDisk:
    file = GuestCrashFile(machine)
    chain = open_on(parents, file)
    return GuestDisk(chain, file, chain.close)


def new_disk(parents: MemoryDatastore) -> bytearray:
    machine = Machine(bytearray())
    with open_chain(parents.open, path_of("base")) as base:
        write_child(
            GuestCrashFile(machine), capacity=SIZE, cid=7, extent_name="live.vmdk", parent_cid=base.cid, parent_hint="base.vmdk"
        )
    return machine.contents()


def shown(device: Chain | GuestDisk) -> Shown:
    return tuple(device.read(grain * GRAIN, GRAIN) for grain in GRAINS)


def play(device: GuestDisk, seen: list[Shown]) -> None:
    """The steps, to the end. ``seen`` gets what the disk shows at the last flush, and after each step since."""
    for number, (step, offset, length) in enumerate(STEPS):
        match step:
            case "write":
                data = bytes([number + 1]) * length
                seen.append(_changed(seen[-1], offset, data))
                device.write(offset, data)
            case "zero" | "trim":
                seen.append(_changed(seen[-1], offset, bytes(length)))
                getattr(device, step)(offset, length)
            case "flush":
                device.flush()
                del seen[:-1]
    device.close()
    del seen[:-1]


def _changed(before: Shown, offset: int, data: bytes) -> Shown:
    image = {grain: bytearray(each) for grain, each in zip(GRAINS, before, strict=True)}
    end = offset + len(data)
    for grain in range(offset // GRAIN, -(-end // GRAIN)):
        start, stop = max(offset, grain * GRAIN), min(end, (grain + 1) * GRAIN)
        image[grain][start - grain * GRAIN : stop - grain * GRAIN] = data[start - offset : stop - offset]
    return tuple(bytes(image[grain]) for grain in GRAINS)


def assert_allowed(found: Shown, seen: list[Shown], after: str) -> None:
    for index, grain in enumerate(found):
        versions = [each[index] for each in seen]
        if grain in versions:
            continue
        for at in range(0, GRAIN, SECTOR):
            sector = grain[at : at + SECTOR]
            assert sector in [each[at : at + SECTOR] for each in versions], f"{after}: grain {GRAINS[index]} at byte {at}"


def test_a_machine_that_stops_at_any_step_keeps_what_was_flushed(parents: MemoryDatastore) -> None:
    chance = random.Random(1)
    empty = new_disk(parents)
    whole = Machine(bytearray(empty))
    with open_on(parents, GuestCrashFile(whole)) as chain:
        start = shown(chain)
    play(attach(parents, whole), [start])
    states = 0
    for stop_at in range(whole.steps):
        machine = Machine(bytearray(empty), stop_at=stop_at)
        seen = [start]
        with pytest.raises(StoppedError), contextlib.ExitStack() as stack:
            device = attach(parents, machine)
            stack.callback(device._release)  # as a process ends
            play(device, seen)
        after = f"stopped before step {stop_at}"
        every = list(machine.after_stop(chance))
        for stable in every if len(every) < 8 else [*every[:2], *chance.sample(every[2:], 6)]:
            states += 1
            again = Machine(stable)
            file = GuestCrashFile(again)
            assert check_disk(file, sealed=False) == [], after
            with open_on(parents, file) as chain:
                found = shown(chain)
            assert_allowed(found, seen, after)
            if states % 4 == 0:
                assert_can_be_used(parents, again, found, after)
    assert states > 200


def assert_can_be_used(parents: MemoryDatastore, machine: Machine, found: Shown, after: str) -> None:
    """What a crash left is written by a guest, and edited, as any disk."""
    with contextlib.closing(attach(parents, machine)) as device:
        device.zero(8 * GRAIN, GRAIN)
        device.write(3 * GRAIN + 5, b"guest")
    expected = _changed(_changed(found, 8 * GRAIN, bytes(GRAIN)), 3 * GRAIN + 5, b"guest")
    file = GuestCrashFile(machine)
    assert check_disk(file, sealed=False) == [], after
    tables, redundant = ([table for _, _, table in open_disk(file).tables(redundant=which)] for which in (False, True))
    assert tables == redundant, after
    assert file.size == (max(map(max, tables)) + GRAIN // SECTOR) * SECTOR, after
    with open_on(parents, file) as chain:
        assert shown(chain) == expected, after
        edited = EditedDisk(chain, file, CrashIntents(machine))
        edited.write(4 * GRAIN, b"edit")
        edited.commit()
    with open_on(parents, GuestCrashFile(machine)) as chain:
        assert shown(chain) == _changed(expected, 4 * GRAIN, b"edit"), after


def test_a_child_of_the_disk_as_it_was_fits_no_more(parents: MemoryDatastore) -> None:
    """The content id is another one before the first byte can be."""
    machine = Machine(new_disk(parents))
    with contextlib.closing(attach(parents, machine)) as device:
        device.write(0, b"x" * GRAIN)
    used = machine.contents()
    with open_on(parents, GuestCrashFile(machine)) as chain:
        before = chain.cid, shown(chain)
    chance = random.Random(2)
    changed = []
    for stop_at in range(7):
        machine = Machine(bytearray(used), stop_at=stop_at)
        with contextlib.suppress(StoppedError):
            attach(parents, machine).write(0, b"y" * GRAIN)
        for stable in machine.after_stop(chance):
            with open_on(parents, GuestCrashFile(Machine(stable))) as chain:
                changed.append(shown(chain) != before[1])
                assert chain.cid != before[0] or not changed[-1]
    assert set(changed) == {False, True}


class FailingFile(GuestCrashFile):
    """Its storage fails, or is full, when told so."""

    fails = False
    writes_left = 1 << 30
    """Then it is full."""

    def pwrite(self, offset: int, data: Bytes) -> None:
        self.writes_left -= 1
        if self.writes_left < 0:
            raise NoSpaceError("full")
        super().pwrite(offset, data)

    def fdatasync(self) -> None:
        if self.fails:
            raise UnavailableError("storage failed")
        super().fdatasync()


@pytest.fixture
def failing(parents: MemoryDatastore) -> FailingFile:
    return FailingFile(Machine(new_disk(parents)))


def test_after_a_flush_that_failed_nothing_is_written_any_more(parents: MemoryDatastore, failing: FailingFile) -> None:
    chain = open_on(parents, failing)
    device = GuestDisk(chain, failing, chain.close)
    device.write(0, b"flushed")
    device.flush()
    device.write(100, b"lost")
    failing.fails = True
    with pytest.raises(UnavailableError, match="storage failed; what was written since the last flush may be lost"):
        device.flush()
    failing.fails = False
    for call in (device.flush, lambda: device.write(0, b"x"), lambda: device.zero(0, 1), lambda: device.trim(0, GRAIN)):
        with pytest.raises(UnavailableError, match="until it is opened again"):
            call()
    assert device.read(0, 7) == b"flushed"
    with pytest.raises(UnavailableError):
        device.close()
    device.close()


def test_a_flush_that_finds_no_room_for_tables_is_done_later(parents: MemoryDatastore, failing: FailingFile) -> None:
    chain = open_on(parents, failing)
    device = GuestDisk(chain, failing, chain.close)
    device.write(GRAIN + 5, b"one")
    failing.writes_left = 0
    with pytest.raises(NoSpaceError, match="full"):
        device.flush()
    failing.writes_left = 1
    with pytest.raises(NoSpaceError, match="full"):
        device.write(5 * GRAIN + 5, b"no room for more than what comes before it")
    assert device.read(5 * GRAIN, 10) == b"c" * 10
    failing.writes_left = 1 << 30
    device.zero(6 * GRAIN, GRAIN)  # gets the place of what found no room
    device.write(3 * GRAIN, b"two")
    device.close()
    with open_on(parents, failing) as chain:
        assert [chain.read(at, 4) for at in (GRAIN + 4, 3 * GRAIN, 5 * GRAIN)] == [b"bone", b"two\0", b"cccc"]
        assert not any(chain.read(6 * GRAIN, GRAIN))
    assert check_disk(failing) == []


# The same with a process, a kill, a real file system, and a real lack of space.

ROOT = Path(__file__).parents[2]
DISK = "containers/c.vmdk"


@pytest.mark.parametrize("name", ["pwrite64", "fdatasync"])
def test_a_killed_process_leaves_what_it_wrote_and_no_lock(tmp_path: Path, name: str) -> None:
    need("strace", "qemu-img")
    for number in (2, 3, 5):
        store = tmp_path / f"{number}"
        with LocalDatastore(store, create=True) as datastore:
            LiveDisks(datastore).create(DISK, SIZE)
        command = [sys.executable, str(Path(__file__).with_name("guest_worker.py")), str(store)]
        trace = ["strace", "-f", "-qq", "-e", f"trace={name}", "-e", f"inject={name}:signal=KILL:when={number}"]
        done = subprocess.run([*trace, *command], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        flushed = [int(word) for word in done.stdout.split()]
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode != 0
        vmdk.check(store / DISK)
        with LocalDatastore(store) as datastore:
            with datastore.open(DISK) as file:
                assert check_disk(file, sealed=False) == []
            with contextlib.closing(LiveDisks(datastore).attach(DISK)) as device:
                for grain in flushed:
                    assert device.read(grain * GRAIN, 5000) == b"%04d-" % grain * 1000
                device.write(0, b"again")


def test_a_full_datastore_tears_nothing(tmp_path: Path) -> None:
    need_root()
    need("mount", "mkfs.ext4")
    image, mounted = tmp_path / "small", tmp_path / "mounted"
    with image.open("wb") as file:
        file.truncate(12 << 20)
    mounted.mkdir()
    run("mkfs.ext4", "-q", "-F", "-O", "^has_journal", image)
    run("mount", "-o", "loop", image, mounted)
    try:
        with LocalDatastore(mounted / "store", create=True) as datastore:
            live = LiveDisks(datastore)
            live.create(DISK, SIZE)
            model = bytearray(SIZE)
            with contextlib.closing(live.attach(DISK)) as device:
                device.write(0, b"x" * GRAIN)
                device.flush()
                model[:GRAIN] = b"x" * GRAIN
                with pytest.raises(NoSpaceError, match=rf"{DISK}: cannot write .* No space left on device"):
                    for grain in range(2, SIZE // GRAIN, 2):
                        device.write(grain * GRAIN, bytes([grain % 255 + 1]) * GRAIN)
                        model[grain * GRAIN : (grain + 1) * GRAIN] = bytes([grain % 255 + 1]) * GRAIN
                assert grain > 40
                found = device.read(grain * GRAIN, GRAIN)
                assert found.strip(bytes([0, grain % 255 + 1])) == b""
                model[grain * GRAIN : (grain + 1) * GRAIN] = found
                device.zero(4 * GRAIN, 8 * GRAIN)
                model[4 * GRAIN : 12 * GRAIN] = bytes(8 * GRAIN)
                device.write(101 * GRAIN, b"there is room again")
                model[101 * GRAIN : 101 * GRAIN + 19] = b"there is room again"
                device.flush()
            with datastore.open(DISK) as file:
                assert check_disk(file, sealed=False) == []
            with live.read(DISK) as chain:
                assert chain.read(0, SIZE) == model
            vmdk.check(mounted / "store" / DISK)
    finally:
        run("umount", mounted)


def test_locks_end_with_the_device(tmp_path: Path) -> None:
    with LocalDatastore(tmp_path) as datastore:
        live = LiveDisks(datastore)
        live.create(DISK, SIZE)
        device = live.attach(DISK)
        for other in (lambda: live.attach(DISK), lambda: live.remove(DISK)):
            with pytest.raises(InUseError, match=DISK):
                other()
        device.close()
        live.attach(DISK).close()
        live.remove(DISK)
