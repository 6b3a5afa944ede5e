"""Small chains of disks for tests, and the bytes that they must show."""

from __future__ import annotations

import posixpath
import random
from collections.abc import Iterable

from imgstore.blocks import GRAIN, GuestDevice
from imgstore.datastores import Datastore, StoredFile
from imgstore.vmdk import Chain, HostedDiskWriter, SnapshotDevice, derive_cid

SIZE = 64 << 20


def path_of(name: str) -> str:
    """Where ``add_disk`` puts a disk."""
    return f"disks/{name}.vmdk"


def add_disk(
    datastore: Datastore,
    name: str,
    parent: Chain | None,
    writes: Iterable[tuple[int, bytes]],
    *,
    size: int = SIZE,
    cache: int = GRAIN,
) -> Chain:
    """Makes and publishes a disk over ``parent``, with its grains' sums in ``<name>.crc32c`` beside it.

    Gives the chain with it on top, as ``SnapshotDevice.chain`` makes it.
    """
    with datastore.stage("disks", name) as staging:
        writer = HostedDiskWriter(
            staging.create(f"{name}.vmdk"),
            capacity=size,
            cid=derive_cid(name),
            extent_name=f"{name}.vmdk",
            parent_cid=None if parent is None else parent.cid,
            parent_hint=None if parent is None else posixpath.basename(parent.path),
        )
        device = SnapshotDevice(writer, parent, cache_size=cache)
        for offset, data in writes:
            device.write(offset, data)
        chain = device.chain()
        with staging.create(f"{name}.crc32c") as sums:
            sums.pwrite(0, device.seal().grain_sums)
        staging.publish()
    return chain


def random_writes(chance: random.Random, count: int, size: int = SIZE) -> list[tuple[int, bytes]]:
    """Writes of all lengths, many of them near each other, some whole grains, some of zeros."""
    writes = []
    for _ in range(count):
        length = chance.choice((1, 512, 4096, 40_000, GRAIN, 3 * GRAIN, 5 * GRAIN + 4096))
        offset = chance.randrange(size - length + 1)
        offset -= offset % chance.choice((1, 4096, GRAIN))
        writes.append((offset, bytes(length) if chance.random() < 0.1 else chance.randbytes(length)))
    return writes


def apply(model: bytearray, writes: Iterable[tuple[int, bytes]]) -> None:
    """The same writes on the bytes that a disk must show."""
    for offset, data in writes:
        model[offset : offset + len(data)] = data


def read_ready(device: Chain | GuestDevice | StoredFile, offset: int, length: int) -> bytes | None:
    """What is in memory of a range, or None where that is not all of it."""
    buffer = bytearray(length)
    return bytes(buffer) if device.read_ready_into(offset, memoryview(buffer)) else None


def add_chain(datastore: Datastore, depth: int, seed: int, *, size: int = SIZE, writes: int = 8) -> tuple[Chain, bytearray]:
    """A chain of ``depth`` disks ``d0``, ``d1``, … and the bytes that its top must show."""
    chance = random.Random(seed)
    model = bytearray(size)
    chain = None
    for number in range(depth):
        wanted = random_writes(chance, writes, size)
        chain = add_disk(datastore, f"d{number}", chain, wanted, size=size)
        apply(model, wanted)
    assert chain is not None
    return chain, model
