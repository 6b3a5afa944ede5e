"""Disks that guests write through our devices, judged by QEMU, libvmdk and dissect; QEMU writes them by turns; and who keeps whom out."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest

from imgstore.blocks import GRAIN, GuestDevice
from imgstore.datastores import LocalDatastore
from imgstore.errors import InUseError
from imgstore.ext4.format import format_file_system
from imgstore.live_disks import LiveDisks
from imgstore.vmdk import check_disk
from tests.compat.test_live_disks import DISK, opens, qemu, write_by_qemu
from tests.disks import SIZE, add_chain, apply, random_writes
from tests.judges import e2fsck, mount, vmdk
from tests.tools import need, run


def write_as_a_guest(device: GuestDevice, chance: random.Random, model: bytearray) -> None:
    writes = random_writes(chance, 10, len(model))
    for offset, data in writes:
        device.write(offset, data)
    apply(model, writes)
    for keep_space in (False, True):
        length = 512 * chance.randrange(400)
        offset = 512 * chance.randrange((len(model) - length) // 512)
        device.zero(offset, length, keep_space=keep_space)
        model[offset : offset + length] = bytes(length)


@pytest.mark.parametrize("size", [SIZE, SIZE + 40 * GRAIN])
def test_guests_of_ours_and_of_qemu_write_by_turns(tmp_path: Path, size: int) -> None:
    need("qemu-img", "qemu-io")
    chance = random.Random(size)
    with LocalDatastore(tmp_path) as datastore:
        base, below = add_chain(datastore, 2, seed=3)
        live = LiveDisks(datastore)
        live.create(DISK, size, base)
        base.close()
        disk = datastore.local_path(DISK)
        model = below + bytes(size - SIZE)
        cids = set()
        for turn in range(3):
            if turn % 2:
                write_by_qemu(disk, chance, model, 15)
            else:
                with contextlib.closing(live.attach(DISK)) as device:
                    assert device.read(0, size) == model
                    write_as_a_guest(device, chance, model)
            vmdk.check(disk)
            vmdk.convert(disk, tmp_path / "raw")
            assert (tmp_path / "raw").read_bytes() == model
            with live.read(DISK) as chain:
                cids.add(chain.cid)
            with datastore.open(DISK) as file:
                assert check_disk(file, sealed=False) == []
        assert len(cids) == 3
        if size == SIZE:  # neither reads past the end of a smaller parent
            chain_files = [datastore.local_path(path) for path in ("disks/d0.vmdk", "disks/d1.vmdk", DISK)]
            with vmdk.libvmdk(chain_files) as read:
                assert read(0, size) == model
            with vmdk.dissect(disk) as read:
                assert read(0, size) == model


def test_a_disk_that_qemu_made_is_written_by_a_guest(tmp_path: Path) -> None:
    need("qemu-img", "qemu-io")
    chance = random.Random(5)
    size = SIZE + 1024  # its last grain and its last table are cut
    model = bytearray(size)
    run("qemu-img", "create", "-q", "-f", "vmdk", tmp_path / "disk.vmdk", str(size))
    write_by_qemu(tmp_path / "disk.vmdk", chance, model, 10)
    with LocalDatastore(tmp_path) as datastore:
        with contextlib.closing(LiveDisks(datastore).attach("disk.vmdk")) as device:
            write_as_a_guest(device, chance, model)
            device.write(size - 700, b"x" * 700)
            model[-700:] = b"x" * 700
        vmdk.check(tmp_path / "disk.vmdk")
        vmdk.convert(tmp_path / "disk.vmdk", tmp_path / "raw")
        assert (tmp_path / "raw").read_bytes() == model


def test_what_a_killed_qemu_left_is_written_by_a_guest(tmp_path: Path) -> None:
    with LocalDatastore(tmp_path) as datastore:
        live = LiveDisks(datastore)
        live.create(DISK, SIZE)
        for number in range(4):
            with qemu(datastore.local_path(DISK), writable=True) as guest:
                for grain in range(number, number + 20, 4):
                    guest.do(f"aio_write -q -P {number + 1} {grain * GRAIN} 256k")
            with contextlib.closing(live.attach(DISK)) as device:
                before = device.read(0, SIZE)
                device.write(40 * GRAIN, bytes([number + 1]) * 5)
            with datastore.open(DISK) as file:
                assert check_disk(file, sealed=True) == []  # what was left half done is gone
            with live.read(DISK) as chain:
                assert chain.read(0, 40 * GRAIN) == before[: 40 * GRAIN]
                assert chain.read(40 * GRAIN, 5) == bytes([number + 1]) * 5
            vmdk.check(datastore.local_path(DISK))


def test_the_kernel_reads_what_came_through_a_device(tmp_path: Path) -> None:
    """A file system that a guest's writes made is whole, and is written by the kernel."""
    with LocalDatastore(tmp_path) as datastore:
        live = LiveDisks(datastore)
        live.create(DISK, 256 << 20)
        with contextlib.closing(live.attach(DISK)) as device:
            format_file_system(device)
        disk = datastore.local_path(DISK)
        with mount.exported(disk) as raw, mount.mounted(raw, writable=True) as directory:
            (directory / "hello").write_bytes(b"from the kernel" * 10_000)
            with pytest.raises(InUseError, match=DISK):
                live.attach(DISK)
        vmdk.convert(disk, tmp_path / "raw")
        e2fsck.gate(tmp_path / "raw")


def test_who_has_a_disk_keeps_others_out(tmp_path: Path) -> None:
    with LocalDatastore(tmp_path) as datastore:
        live = LiveDisks(datastore)
        live.create(DISK, SIZE)
        disk = datastore.local_path(DISK)
        for writable in (True, False):
            with qemu(disk, writable=writable), pytest.raises(InUseError, match=rf"^{DISK}: is in use by a running guest"):
                live.attach(DISK)
        with contextlib.closing(live.attach(DISK)):
            assert (opens(disk, writable=True), opens(disk, writable=False)) == (False, False)
            for attempt in (live.edit, live.read):
                with pytest.raises(InUseError, match=DISK), attempt(DISK):
                    pass
        assert opens(disk, writable=True)
