from __future__ import annotations

import random
from array import array

import pytest

from imgstore.blocks import GRAIN
from imgstore.datastores import Datastore, MemoryDatastore
from imgstore.errors import CorruptError
from imgstore.flattening import merge_chain
from imgstore.stop import Stop, StoppedError
from imgstore.vmdk import Chain, open_chain
from tests.disks import SIZE, add_chain, add_disk, path_of, random_writes

STEM = "ab" * 32


def sums_of(datastore: Datastore, chain: Chain) -> list[array[int]]:
    return [array("I", datastore.read_bytes(file.path.replace(".vmdk", ".crc32c"))) for file in chain.files]


def merge(datastore: Datastore, chain: Chain, target: Datastore) -> bytes:
    """Merges into another datastore, and gives the disk's file."""
    with target.stage("disks", STEM) as staging:
        record = merge_chain(chain, sums_of(datastore, chain), staging, STEM)
        staging.publish()
    data = target.read_bytes(f"disks/{record.file}", 1 << 30)
    assert (record.size, record.merged, record.cid) == (len(data), True, f"{chain.cid:08x}")
    assert len(target.read_bytes(f"disks/{record.grain_sums}")) == 4 * record.grains
    return data


@pytest.mark.parametrize("depth", [1, 2, 9])
def test_it_shows_the_same_alone(depth: int) -> None:
    with MemoryDatastore() as datastore, MemoryDatastore() as target, MemoryDatastore() as other:
        chain, model = add_chain(datastore, depth, seed=depth)
        data = merge(datastore, chain, target)
        assert merge(datastore, chain, other) == data
        with open_chain(target.open, f"disks/{STEM}.vmdk") as merged:
            assert len(merged.files) == 1
            assert merged.read(0, SIZE) == model
            assert list(merged.extents()) == list(chain.extents())


def test_runs_that_take_several_pieces() -> None:
    data = random.Random(1).randbytes(150 * GRAIN)
    with MemoryDatastore() as datastore, MemoryDatastore() as target:
        base = add_disk(datastore, "base", None, [(7 * GRAIN, data)])
        merge(datastore, base, target)
        with open_chain(target.open, f"disks/{STEM}.vmdk") as merged:
            assert merged.read(0, SIZE) == bytes(7 * GRAIN) + data + bytes(SIZE - 157 * GRAIN)


def test_damage_is_found_and_named() -> None:
    with MemoryDatastore() as datastore:
        base = add_disk(datastore, "base", None, [(0, b"a" * 4 * GRAIN)])
        top = add_disk(datastore, "top", base, [(GRAIN, b"b" * GRAIN), (9 * GRAIN, b"c")])
        sums = sums_of(datastore, top)
        wrong = sums[0][3]
        sums[0][3] ^= 1
        at = top.files[0].size - GRAIN
        expected = rf"disks/base\.vmdk at byte {at}: grain has CRC-32C {wrong:08x}, not {wrong ^ 1:08x}"
        with datastore.stage("disks", STEM) as staging, pytest.raises(CorruptError, match=expected):
            merge_chain(top, sums, staging, STEM)
        assert path_of(STEM) not in datastore.list("disks")


@pytest.mark.parametrize("cut", [1, 2])
def test_checksums_that_do_not_fit(cut: int) -> None:
    with MemoryDatastore() as datastore:
        chain = add_disk(datastore, "base", None, [(0, b"a" * 2 * GRAIN)])
        with (
            datastore.stage("disks", STEM) as staging,
            pytest.raises(CorruptError, match=r"base\.vmdk at byte \d+: .* no checksum"),
        ):
            merge_chain(chain, [sums_of(datastore, chain)[0][cut:]], staging, STEM)


def test_it_can_be_stopped() -> None:
    stop = Stop()
    stop.set()
    with MemoryDatastore() as datastore:
        chain = add_disk(datastore, "base", None, random_writes(random.Random(2), 3))
        with datastore.stage("disks", STEM) as staging, pytest.raises(StoppedError):
            merge_chain(chain, sums_of(datastore, chain), staging, STEM, interrupt=stop.check)
