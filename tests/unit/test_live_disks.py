from __future__ import annotations

from collections.abc import Iterator

import pytest

from imgstore.blocks import GRAIN
from imgstore.datastores import MemoryDatastore
from imgstore.errors import AlreadyExistsError, InUseError, InvalidError, NotFoundError
from imgstore.live_disks import LiveDisks, NewDisk, ParentLink
from imgstore.vmdk import Chain, derive_cid
from tests.disks import SIZE, add_disk, path_of

DISK = "containers/c.vmdk"


@pytest.fixture
def datastore() -> MemoryDatastore:
    return MemoryDatastore()


@pytest.fixture
def base(datastore: MemoryDatastore) -> Iterator[Chain]:
    with add_disk(datastore, "base", None, [(0, b"below")]) as chain:
        yield chain


@pytest.fixture
def live(datastore: MemoryDatastore, base: Chain) -> LiveDisks:
    live = LiveDisks(datastore)
    live.create(DISK, SIZE, base)
    return live


def read(live: LiveDisks, offset: int, length: int, path: str = DISK) -> bytes:
    with live.read(path) as chain:
        return chain.read(offset, length)


def test_a_new_disk_shows_its_parent(live: LiveDisks, datastore: MemoryDatastore) -> None:
    assert read(live, 0, 6) == b"below\0"
    live.create("containers/d.vmdk", 2 * SIZE, ParentLink(path_of("base"), derive_cid("base"), SIZE))
    assert read(live, 0, 6, "containers/d.vmdk") == b"below\0"
    live.create("volumes/v.vmdk", 3 * GRAIN)
    assert read(live, 0, 6, "volumes/v.vmdk") == bytes(6)
    assert datastore.list("containers") == ["c.vmdk", "d.vmdk"]


def test_what_cannot_be_made_leaves_nothing(live: LiveDisks, datastore: MemoryDatastore, base: Chain) -> None:
    with pytest.raises(AlreadyExistsError, match=DISK):
        live.create(DISK, SIZE, base)
    assert read(live, 0, 5) == b"below"
    with pytest.raises(InvalidError, match=rf"{SIZE - GRAIN} bytes cannot show its parent disks/base.vmdk of {SIZE}"):
        live.create("containers/d.vmdk", SIZE - GRAIN, base)
    with pytest.raises(InvalidError, match="multiple of 65536"):
        live.create("containers/d.vmdk", SIZE + 1, base)
    with pytest.raises(AlreadyExistsError, match=DISK):
        live.create_many(NewDisk(path, SIZE, base) for path in ("containers/a.vmdk", "containers/b.vmdk", DISK))
    assert datastore.list("containers") == ["c.vmdk"]


def test_many_are_made_at_once(live: LiveDisks, base: Chain) -> None:
    paths = [f"containers/{number}.vmdk" for number in range(50)]
    live.create_many(NewDisk(path, SIZE, base) for path in paths)
    cids = set()
    for path in paths:
        with live.read(path) as chain:
            assert chain.read(0, 5) == b"below"
            cids.add(chain.cid)
    assert len(cids) == 50


def test_an_edit_that_ends_well_is_what_is_read(live: LiveDisks, datastore: MemoryDatastore) -> None:
    with live.edit(DISK) as device:
        device.write(2, b"LOW")
        assert device.read(0, 6) == b"beLOW\0"
    with live.read(DISK) as chain:
        assert chain.read(0, 6) == b"beLOW\0"
        assert list(chain.own_ranges()) == [(0, GRAIN)]
    assert datastore.list("containers") == ["c.vmdk"]


def test_an_edit_that_fails_leaves_nothing(live: LiveDisks, datastore: MemoryDatastore) -> None:
    before = datastore.read_bytes(DISK)
    with pytest.raises(KeyboardInterrupt), live.edit(DISK) as device:
        device.write(0, b"x" * 3 * GRAIN)
        raise KeyboardInterrupt
    assert datastore.read_bytes(DISK) == before
    assert datastore.list("containers") == ["c.vmdk"]
    live.remove(DISK)


def test_one_writes_or_several_read(live: LiveDisks) -> None:
    with live.edit(DISK):
        for attempt in (live.edit, live.read):
            with pytest.raises(InUseError, match=DISK), attempt(DISK):
                pass
        with pytest.raises(InUseError, match=DISK):
            live.remove(DISK)
    with live.read(DISK), live.read(DISK):
        with pytest.raises(InUseError, match=DISK), live.edit(DISK):
            pass
        with pytest.raises(InUseError, match=DISK):
            live.remove(DISK)
    live.remove(DISK)
    for attempt in (live.edit, live.read):
        with pytest.raises(NotFoundError, match=DISK), attempt(DISK):
            pass
    with pytest.raises(NotFoundError, match=DISK):
        live.remove(DISK)


class StuckDatastore(MemoryDatastore):
    """Forgets to remove intents, as a crash would."""

    def remove_file(self, path: str) -> None:
        if not path.endswith(".intent"):
            super().remove_file(path)


def crashed_commit(base_of: MemoryDatastore) -> tuple[bytes, bytes, bytes]:
    """The disk's file before and after an edit, and the intent between."""
    datastore = StuckDatastore()
    for path in (path_of("base"), DISK):
        datastore.write_atomic(path, base_of.read_bytes(path))
    with LiveDisks(datastore).edit(DISK) as device:
        device.write(0, b"after")
    return base_of.read_bytes(DISK), datastore.read_bytes(DISK), datastore.read_bytes("containers/c.intent")


def test_an_edit_that_was_cut_off_is_ended_by_the_next_who_comes(live: LiveDisks, datastore: MemoryDatastore) -> None:
    before, after, intent = crashed_commit(datastore)
    cut_off = before + after[len(before) :]  # the grains are there, the tables are as they were

    def edit(path: str) -> None:
        with live.edit(path) as device:
            assert device.read(0, 5) == b"after"

    for way in (live.recover, lambda path: read(live, 0, 1, path), edit):
        datastore.fs.writebytes(DISK, cut_off)
        datastore.write_atomic("containers/c.intent", intent)
        way(DISK)
        assert datastore.list("containers") == ["c.vmdk"]
        assert datastore.read_bytes(DISK) == after
        assert read(live, 0, 5) == b"after"


def test_an_edit_that_was_cut_off_is_not_ended_under_someone(live: LiveDisks, datastore: MemoryDatastore) -> None:
    _, _, intent = crashed_commit(datastore)
    with live.read(DISK):
        datastore.write_atomic("containers/c.intent", intent)
        with pytest.raises(InUseError, match=DISK), live.read(DISK):
            pass
        with pytest.raises(InUseError, match=DISK):
            live.recover(DISK)


@pytest.mark.parametrize("stale", [b"", b"torn", None])
def test_an_intent_that_does_not_fit_is_forgotten(live: LiveDisks, datastore: MemoryDatastore, stale: bytes | None) -> None:
    if stale is None:
        _, _, stale = crashed_commit(datastore)
    with live.edit(DISK) as device:
        device.write(GRAIN, b"later")
    datastore.write_atomic("containers/c.intent", stale)
    assert read(live, GRAIN, 5) == b"later"
    assert read(live, 0, 5) == b"below"
    assert datastore.list("containers") == ["c.vmdk"]


def test_an_intent_goes_with_its_disk(live: LiveDisks, datastore: MemoryDatastore) -> None:
    datastore.write_atomic("containers/c.intent", b"x")
    live.remove(DISK)
    assert datastore.list("containers") == []
    live.recover(DISK)


def test_without_its_parent_a_disk_cannot_be_read(live: LiveDisks, datastore: MemoryDatastore) -> None:
    datastore.remove_file(path_of("base"))
    for attempt in (live.edit, live.read):
        with pytest.raises(NotFoundError, match=path_of("base")), attempt(DISK):
            pass
    live.remove(DISK)  # it was closed
