"""Disks of containers and volumes, written by QEMU and by us, by turns; and who keeps whom out meanwhile."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgstore.blocks import GRAIN
from imgstore.datastores import LocalDatastore
from imgstore.errors import InUseError
from imgstore.ext4.format import format_file_system
from imgstore.ext4.reader import FileSystem
from imgstore.live_disks import LiveDisks
from imgstore.vmdk import check_disk
from tests.disks import SIZE, add_chain, apply, random_writes
from tests.judges import e2fsck, mount, vmdk
from tests.tools import need, run

DISK = "containers/c.vmdk"


def write_by_qemu(disk: Path, chance: random.Random, model: bytearray, count: int) -> None:
    commands: list[str] = []
    for _ in range(count):
        length = 512 * chance.randrange(1, 400)
        offset = 512 * chance.randrange((len(model) - length) // 512)
        value = chance.randrange(256)
        commands += ["-c", f"write -q -P {value} {offset} {length}"]
        model[offset : offset + length] = bytes([value]) * length
    run("qemu-io", "-f", "vmdk", *commands, disk)


@pytest.mark.parametrize("size", [SIZE, SIZE + 40 * GRAIN])
def test_qemu_and_we_write_by_turns(tmp_path: Path, size: int) -> None:
    need("qemu-img", "qemu-io")
    chance = random.Random(size)
    with LocalDatastore(tmp_path) as datastore:
        base, below = add_chain(datastore, 2, seed=3)
        parents = [path.read_bytes() for path in sorted((tmp_path / "disks").glob("*.vmdk"))]
        live = LiveDisks(datastore)
        live.create(DISK, size, base)
        base.close()
        disk = datastore.local_path(DISK)
        model = below + bytes(size - SIZE)
        vmdk.check(disk)
        for turn in range(6):
            if turn % 2:
                write_by_qemu(disk, chance, model, 15)
            else:
                writes = random_writes(chance, 10, size)
                with live.edit(DISK) as device:
                    assert device.read(0, size) == model
                    for offset, data in writes:
                        device.write(offset, data)
                apply(model, writes)
            vmdk.check(disk)
            vmdk.convert(disk, tmp_path / "raw")
            assert (tmp_path / "raw").read_bytes() == model
            with live.read(DISK) as chain:
                assert chain.read(0, size) == model
            with datastore.open(DISK) as file:
                assert check_disk(file, sealed=False) == []
        if size == SIZE:  # neither reads past the end of a smaller parent
            chain_files = [datastore.local_path(path) for path in ("disks/d0.vmdk", "disks/d1.vmdk", DISK)]
            with vmdk.libvmdk(chain_files) as read:
                assert read(0, size) == model
            with vmdk.dissect(disk) as read:
                assert read(0, size) == model
        information = run("qemu-img", "info", "--backing-chain", "-f", "vmdk", disk).stdout
        assert information.count(b"image: ") == 3
        assert parents == [path.read_bytes() for path in sorted((tmp_path / "disks").glob("*.vmdk"))]


def test_a_disk_that_qemu_made_is_written(tmp_path: Path) -> None:
    need("qemu-img", "qemu-io")
    chance = random.Random(5)
    model = bytearray(SIZE)
    run("qemu-img", "create", "-q", "-f", "vmdk", tmp_path / "disk.vmdk", str(SIZE))
    write_by_qemu(tmp_path / "disk.vmdk", chance, model, 10)
    with LocalDatastore(tmp_path) as datastore:
        writes = random_writes(chance, 10)
        with LiveDisks(datastore).edit("disk.vmdk") as device:
            for offset, data in writes:
                device.write(offset, data)
        apply(model, writes)
        write_by_qemu(tmp_path / "disk.vmdk", chance, model, 10)
        vmdk.check(tmp_path / "disk.vmdk")
        with LiveDisks(datastore).read("disk.vmdk") as chain:
            assert chain.read(0, SIZE) == model


def test_a_guest_that_is_killed_leaves_a_disk_that_we_write(tmp_path: Path) -> None:
    need("qemu-io")
    with LocalDatastore(tmp_path) as datastore:
        live = LiveDisks(datastore)
        live.create(DISK, SIZE)
        disk = datastore.local_path(DISK)
        for number in range(8):
            with qemu(disk, writable=True) as guest:
                for grain in range(number, number + 20, 4):
                    guest.do(f"aio_write -q -P {number + 1} {grain * GRAIN} 256k")
            with datastore.open(DISK) as file:
                assert check_disk(file, sealed=False) == []
            with live.edit(DISK) as device:
                before = device.read(0, SIZE)
                device.write(40 * GRAIN, bytes([number]) * 5)
            with live.read(DISK) as chain:
                assert chain.read(0, 40 * GRAIN) == before[: 40 * GRAIN]
                assert chain.read(40 * GRAIN, 5) == bytes([number]) * 5
            vmdk.check(disk)


def test_the_kernel_writes_into_a_volume_that_we_formatted(tmp_path: Path) -> None:
    with LocalDatastore(tmp_path) as datastore:
        live = LiveDisks(datastore)
        live.create(DISK, 256 << 20)
        with live.edit(DISK) as device:
            format_file_system(device)
        disk = datastore.local_path(DISK)
        with mount.exported(disk) as raw, mount.mounted(raw, writable=True) as directory:
            with pytest.raises(InUseError, match=DISK), live.edit(DISK):
                pass
            (directory / "hello").write_bytes(b"from the kernel" * 10_000)
        with live.read(DISK) as chain:
            file_system = FileSystem(chain)
            assert b"".join(file_system.read_file(file_system.lookup(b"hello"))) == b"from the kernel" * 10_000
        vmdk.convert(disk, tmp_path / "raw")
        e2fsck.gate(tmp_path / "raw")


class Guest:
    """A ``qemu-io`` that has a disk open and takes commands; it has begun what it was told when a call returns."""

    PROMPT = b"qemu-io> "

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._wait()

    def do(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n".encode())
        self.process.stdin.flush()
        self._wait()

    def _wait(self) -> None:
        assert self.process.stdout is not None
        words = b""
        while not words.endswith(self.PROMPT):
            said = os.read(self.process.stdout.fileno(), 4096)
            assert said, words
            words += said


@contextlib.contextmanager
def qemu(disk: Path, *, writable: bool) -> Iterator[Guest]:
    """Has a disk open until the end of the block; it is open when the block begins."""
    need("qemu-io")
    mode = () if writable else ("-r",)
    with subprocess.Popen(
        ["qemu-io", *mode, "-f", "vmdk", disk], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            yield Guest(process)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalDatastore]:
    with LocalDatastore(tmp_path_factory.mktemp("store")) as datastore:
        base, _ = add_chain(datastore, 1, seed=3)
        live = LiveDisks(datastore)
        for name in ("c", "d"):
            live.create(f"containers/{name}.vmdk", SIZE, base)
        base.close()
        yield datastore


def opens(disk: Path, *, writable: bool) -> bool:
    """Whether QEMU opens a disk; that it does not is due to a lock."""
    done = run("qemu-io", *(() if writable else ("-r",)), "-f", "vmdk", "-c", "read -q 0 512", disk, check=False)
    if done.returncode != 0:
        assert b"lock" in done.stdout + done.stderr
    return done.returncode == 0


def test_a_running_guest_keeps_us_out(store: LocalDatastore) -> None:
    live = LiveDisks(store)
    with qemu(store.local_path(DISK), writable=True):
        for attempt in (live.edit, live.read):
            with pytest.raises(InUseError, match=rf"^{DISK}: is in use by a running guest"), attempt(DISK):
                pass
        with pytest.raises(InUseError, match=DISK):
            live.remove(DISK)
        with live.edit("containers/d.vmdk"):  # the same parent
            pass
    with live.edit(DISK):
        pass


def test_one_who_reads_keeps_us_from_writing_only(store: LocalDatastore) -> None:
    live = LiveDisks(store)
    with qemu(store.local_path(DISK), writable=False):
        with pytest.raises(InUseError, match=DISK), live.edit(DISK):
            pass
        with live.read(DISK) as chain:
            assert chain.read(0, 512)


def test_we_keep_guests_out(store: LocalDatastore) -> None:
    live = LiveDisks(store)
    disk = store.local_path(DISK)
    with live.edit(DISK):
        assert (opens(disk, writable=True), opens(disk, writable=False)) == (False, False)
        assert opens(store.local_path("containers/d.vmdk"), writable=True)
    with live.read(DISK):
        assert (opens(disk, writable=True), opens(disk, writable=False)) == (False, True)
    assert opens(disk, writable=True)
