"""Devices that guests write piece by piece, against the bytes that they must show; and who else writes the same disk by turns."""

from __future__ import annotations

import contextlib
import random

from hypothesis import given
from hypothesis import strategies as st

from imgstore.blocks import GRAIN, ExtentKind, GuestDevice
from imgstore.datastores import MemoryDatastore
from imgstore.live_disks import LiveDisks
from imgstore.vmdk import check_disk
from imgstore.vmdk.private import PrivateOverlay
from tests.disks import add_disk, apply, random_writes, read_ready

SIZE = 40 * GRAIN
DISK = "containers/c.vmdk"

STEPS = ["write", "write", "zero", "zero", "trim", "flush", "reopen", "edit"]


def use(device: GuestDevice, step: str, chance: random.Random, model: bytearray) -> None:
    """One call of a guest, on the device and on the model."""
    length = chance.choice((0, 1, 512, 4096, GRAIN, 3 * GRAIN + 512, 20 * GRAIN))
    offset = chance.randrange(SIZE - length + 1)
    offset -= offset % chance.choice((1, 512, GRAIN))
    end = offset + length
    match step:
        case "write":
            for offset, data in random_writes(chance, 3, SIZE):
                device.write(offset, data)
                apply(model, [(offset, data)])
        case "zero":
            device.zero(offset, length, keep_space=chance.random() < 0.5)
            model[offset:end] = bytes(length)
        case "trim":
            device.trim(offset, length)
            found = device.read(offset, length)
            assert all(now in (0, before) for now, before in zip(found, model[offset:end], strict=True))
            model[offset:end] = found
        case "flush":
            device.flush()


def assert_shows(device: GuestDevice, model: bytearray, chance: random.Random) -> None:
    assert device.read(0, SIZE) == model
    start = chance.randrange(SIZE)
    length = chance.randrange(SIZE - start + 1)
    assert read_ready(device, start, length) == device.read(start, length) == model[start : start + length]
    position = start
    for extent in device.extents(start, length):
        assert extent.offset == position
        assert extent.length > 0
        position += extent.length
        assert extent.kind is ExtentKind.DATA or not any(model[extent.offset : position])
    assert position == start + length


@given(st.integers(0, 1 << 32), st.lists(st.sampled_from(STEPS), max_size=15))
def test_a_disk_shows_what_its_guest_wrote(seed: int, steps: list[str]) -> None:
    chance = random.Random(seed)
    datastore = MemoryDatastore()
    live = LiveDisks(datastore)
    model = bytearray(SIZE)
    below = random_writes(chance, 3, SIZE - 4 * GRAIN)
    apply(model, below)
    with add_disk(datastore, "base", None, below, size=SIZE - 4 * GRAIN) as base:
        live.create(DISK, SIZE, base)
    with datastore.open(DISK) as file:
        untouched = file.pread(0, file.size)
    device = live.attach(DISK)
    for step in steps:
        if step in ("reopen", "edit"):
            device.close()
            with datastore.open(DISK) as file:
                assert check_disk(file, sealed=False) == []
            with live.read(DISK) as chain:
                assert chain.read(0, SIZE) == model
            if step == "edit":
                writes = random_writes(chance, 3, SIZE)
                with live.edit(DISK) as edited:
                    for offset, data in writes:
                        edited.write(offset, data)
                apply(model, writes)
            device = live.attach(DISK)
        else:
            use(device, step, chance, model)
        assert_shows(device, model, chance)
    device.close()
    with datastore.open(DISK) as file:
        assert check_disk(file, sealed=False) == []
        if set(steps) <= {"flush", "reopen"}:
            assert file.pread(0, file.size) == untouched
        assert file.size <= GRAIN + SIZE + steps.count("edit") * 20 * GRAIN  # a grain has one place


@given(st.integers(0, 1 << 32), st.lists(st.sampled_from(STEPS[:6]), max_size=10))
def test_a_private_overlay_shows_what_its_guest_wrote(seed: int, steps: list[str]) -> None:
    chance = random.Random(seed)
    datastore = MemoryDatastore()
    model = bytearray(SIZE)
    below = random_writes(chance, 4, SIZE)
    apply(model, below)
    with add_disk(datastore, "base", None, below, size=SIZE) as base:
        before = base.read(0, SIZE)
        with contextlib.closing(PrivateOverlay(base, datastore.create_unnamed("overlay"), lambda: None)) as device:
            for step in steps:
                use(device, step, chance, model)
                assert_shows(device, model, chance)
        assert base.read(0, SIZE) == before
    assert datastore.list() == ["disks"]
