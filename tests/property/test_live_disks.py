"""Disks that we edit and others write, against the bytes that they must show."""

from __future__ import annotations

import contextlib
import random

from hypothesis import given
from hypothesis import strategies as st

from imgstore.blocks import GRAIN
from imgstore.datastores import MemoryDatastore
from imgstore.live_disks import LiveDisks
from imgstore.vmdk import check_disk, open_disk
from tests.disks import add_disk, apply, random_writes

SIZE = 40 * GRAIN
DISK = "containers/c.vmdk"


class GivenUpError(Exception):
    """The edit is not wanted."""


def write_as_a_guest(datastore: MemoryDatastore, grain: int, data: bytes, *, killed: bool) -> None:
    """What QEMU does to a disk: a grain that has a place is overwritten there, another one goes to the end; the tables come last."""
    with datastore.open_live(DISK, writable=True) as file:
        disk = open_disk(file)
        end = -(-file.size // GRAIN) * GRAIN
        if killed:
            file.pwrite(end, data[:1000])
            return
        entries = [disk.directory(redundant=redundant)[0] * 512 + 4 * grain for redundant in (False, True)]
        sector = int.from_bytes(file.pread(entries[0], 4), "little")
        file.pwrite(sector * 512 or end, data)
        for entry in entries if not sector else ():
            file.pwrite(entry, (end // 512).to_bytes(4, "little"))


@given(st.integers(0, 1 << 32), st.lists(st.sampled_from(["edit", "edit", "give up", "guest", "killed guest"]), max_size=12))
def test_a_disk_shows_what_was_committed_last(seed: int, steps: list[str]) -> None:
    chance = random.Random(seed)
    datastore = MemoryDatastore()
    live = LiveDisks(datastore)
    model = bytearray(SIZE)
    below = random_writes(chance, 3, SIZE - 4 * GRAIN)
    apply(model, below)
    with add_disk(datastore, "base", None, below, size=SIZE - 4 * GRAIN) as base:
        live.create(DISK, SIZE, base)
    for step in steps:
        if step.endswith("guest"):
            grain, data = chance.randrange(SIZE // GRAIN), chance.randbytes(GRAIN)
            write_as_a_guest(datastore, grain, data, killed=step == "killed guest")
            if step == "guest":
                model[grain * GRAIN : (grain + 1) * GRAIN] = data
        else:
            writes = random_writes(chance, 4, SIZE)
            with contextlib.suppress(GivenUpError), live.edit(DISK) as device:
                for offset, data in writes:
                    device.write(offset, data)
                if step == "give up":
                    raise GivenUpError
                apply(model, writes)
        with live.read(DISK) as chain:
            assert chain.read(0, SIZE) == model, step
        with datastore.open(DISK) as file:
            assert check_disk(file, sealed=False) == [], step
            # A grain has two places at most: the old one stays until the new one is committed.
            assert file.size <= GRAIN + 2 * SIZE + len(steps) * GRAIN
