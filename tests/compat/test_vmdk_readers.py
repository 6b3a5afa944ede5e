"""Chains of our disks as other programs see them, byte for byte; and what becomes of ours when QEMU writes on top."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from imgstore.blocks import GRAIN
from imgstore.datastores import LocalDatastore
from imgstore.vmdk import check_disk, open_chain, open_disk
from tests.disks import SIZE, add_chain, add_disk, path_of
from tests.judges import vmdk
from tests.tools import need, run


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("depth", [1, 2, 3, 7, 40])
def test_all_readers_see_the_bytes_that_were_written(tmp_path: Path, depth: int) -> None:
    with LocalDatastore(tmp_path) as datastore:
        _, model = add_chain(datastore, depth, seed=depth)
        disks = [datastore.local_path(path_of(f"d{number}")) for number in range(depth)]
        for disk in disks:
            vmdk.check(disk)
        vmdk.convert(disks[-1], tmp_path / "raw")
        assert (tmp_path / "raw").read_bytes() == model
        with vmdk.libvmdk(disks) as read:
            assert read(0, SIZE) == model
        with vmdk.dissect(disks[-1]) as read:
            assert read(0, SIZE) == model
        with open_chain(datastore.open, path_of(f"d{depth - 1}")) as chain:
            assert chain.read(0, SIZE) == model


@pytest.mark.parametrize("size", [GRAIN, 3 * GRAIN, 512 * GRAIN, 513 * GRAIN, 2 << 40])
def test_disks_of_odd_sizes_are_read_to_their_end(tmp_path: Path, size: int) -> None:
    need("qemu-io")
    with LocalDatastore(tmp_path) as datastore:
        base = add_disk(datastore, "base", None, [(0, b"first"), (size - 5, b"final")], size=size)
        add_disk(datastore, "top", base, [(size - 3, b"NAL")], size=size)
        disks = [datastore.local_path(path_of(name)) for name in ("base", "top")]
        for disk in disks:
            vmdk.check(disk)
            assert check_disk(datastore.open(path_of(disk.stem))) == []
        expected = b"first" + bytes(GRAIN - 10) + b"fiNAL" if size == GRAIN else bytes(GRAIN - 5) + b"fiNAL"
        seen = []
        with vmdk.libvmdk(disks) as read:
            seen.append(read(size - GRAIN, GRAIN))
        with vmdk.dissect(disks[1]) as read:
            seen.append(read(size - GRAIN, GRAIN))
        with open_chain(datastore.open, path_of("top")) as chain:
            seen.append(chain.read(size - GRAIN, GRAIN))
        assert seen == [expected] * 3
        pattern = run("qemu-io", "-r", "-f", "vmdk", "-c", f"read -v {size - 512} 512", disks[1]).stdout
        assert b"fiNAL" in pattern
        assert datastore.usage(path_of("top")) < 2 * GRAIN + (1 << 20)  # the tables of 2 TiB have a directory of 512 KiB


def test_the_first_sector_of_the_descriptor_holds_the_extent_line(tmp_path: Path) -> None:
    # govmomi looks for it in the first sector of the embedded descriptor and nowhere else.
    with LocalDatastore(tmp_path) as datastore:
        chain = add_disk(datastore, "a" * 64, None, [])
        add_disk(datastore, "b" * 64, chain, [])
        with datastore.open(path_of("b" * 64)) as file:
            assert f'RW {SIZE // 512} SPARSE "{"b" * 64}.vmdk"\n'.encode() in file.pread(512, 512)


def test_what_qemu_writes_on_top_leaves_ours_alone_and_is_read_by_us(tmp_path: Path) -> None:
    need("qemu-img", "qemu-io")
    with LocalDatastore(tmp_path) as datastore:
        _, model = add_chain(datastore, 3, seed=9)
        disks = [datastore.local_path(path_of(f"d{number}")) for number in range(3)]
        before = [digest(disk) for disk in disks]
        (tmp_path / "disks/vm").mkdir()
        child = tmp_path / "disks/vm/vm.vmdk"
        run("qemu-img", "create", "-q", "-f", "vmdk", "-b", "../d2.vmdk", "-F", "vmdk", child)
        chance = random.Random(4)
        commands: list[str] = []
        for _ in range(30):
            length = 512 * chance.randrange(1, 400)
            offset = 512 * chance.randrange((SIZE - length) // 512)
            value = chance.randrange(256)
            commands += ["-c", f"write -q -P {value} {offset} {length}"]
            model[offset : offset + length] = bytes([value]) * length
        run("qemu-io", "-f", "vmdk", *commands, child)
        assert [digest(disk) for disk in disks] == before
        vmdk.check(child)
        with open_chain(datastore.open, "disks/vm/vm.vmdk") as chain:
            assert chain.read(0, SIZE) == model


def test_a_disk_that_qemu_made_is_read(tmp_path: Path) -> None:
    need("qemu-img", "qemu-io")
    run("qemu-img", "create", "-q", "-f", "vmdk", tmp_path / "disk.vmdk", str(SIZE))
    run("qemu-io", "-f", "vmdk", "-c", f"write -q -P 7 {SIZE - GRAIN - 512} 1024", tmp_path / "disk.vmdk")
    with LocalDatastore(tmp_path) as datastore, open_chain(datastore.open, "disk.vmdk") as chain:
        assert chain.read(0, SIZE) == bytes(SIZE - GRAIN - 512) + b"\7" * 1024 + bytes(GRAIN - 512)


def test_the_same_calls_make_the_same_files(tmp_path: Path) -> None:
    digests = []
    for store in ("one", "two"):
        with LocalDatastore(tmp_path / store, create=True) as datastore:
            add_chain(datastore, 4, seed=5)
            digests.append([digest(datastore.local_path(path_of(f"d{number}"))) for number in range(4)])
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == 4


def test_the_redundant_directory_leads_to_the_same_bytes(tmp_path: Path) -> None:
    with LocalDatastore(tmp_path) as datastore:
        _, model = add_chain(datastore, 1, seed=2)
        disk = datastore.local_path(path_of("d0"))
        with datastore.open(path_of("d0")) as file:
            header = open_disk(file).header
        header.directory, header.redundant_directory = header.redundant_directory, header.directory
        disk.chmod(0o644)
        with disk.open("r+b") as out:
            out.write(header.to_bytes())
        vmdk.check(disk)
        vmdk.convert(disk, tmp_path / "raw")
        assert (tmp_path / "raw").read_bytes() == model
        with vmdk.libvmdk([disk]) as read:
            assert read(0, SIZE) == model
