from __future__ import annotations

from pathlib import Path

import pytest

from imgstore import layout
from imgstore.datastores.datastore import Datastore
from imgstore.datastores.local import LocalDatastore
from imgstore.datastores.memory import MemoryDatastore
from imgstore.errors import CorruptError
from imgstore.leases import FileLeases, Leases, MemoryLeases
from imgstore.quota import Quota, QuotaExceededError, QuotaReport, measure

MIB = 1 << 20


@pytest.fixture(params=["local", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Datastore, Leases]:
    if request.param == "memory":
        return MemoryDatastore(), MemoryLeases()
    datastore = LocalDatastore(tmp_path)
    request.addfinalizer(datastore.close)
    return datastore, FileLeases(tmp_path / ".leases")


@pytest.fixture
def quota(place: tuple[Datastore, Leases]) -> Quota:
    return Quota(*place, lambda: 3 * MIB)


def test_there_is_no_limit_unless_one_is_set(quota: Quota) -> None:
    with quota.reserved(1 << 60):
        quota.check(1 << 60)
        assert quota.report() == QuotaReport(None, 0, 0, 3 * MIB, 0)
    quota.set_limit(4 * MIB)
    assert quota.limit() == 4 * MIB
    quota.set_limit(None)
    quota.set_limit(None)
    quota.check(1 << 60)


def test_what_counts(place: tuple[Datastore, Leases], quota: Quota) -> None:
    datastore, _ = place
    quota.set_limit(1)  # its own file is no image, no container and no volume
    assert quota.report() == QuotaReport(1, 0, 0, 3 * MIB, 0)
    datastore.write_atomic("disks/a.vmdk", bytes(MIB))
    datastore.write_atomic("images/a/config.json", bytes(MIB))
    datastore.write_atomic("references/a.json", bytes(MIB))
    datastore.write_atomic("containers/a.vmdk", bytes(2 * MIB))
    with datastore.stage(layout.DISKS, "b") as staging:
        file = staging.create("b.vmdk")
        file.pwrite(0, bytes(MIB))
        file.fsync()
        assert quota.report() == QuotaReport(1, 4 * MIB, 2 * MIB, 3 * MIB, 0)
        assert measure(datastore, layout.DISKS) == 2 * MIB
    assert quota.report().used == 8 * MIB


def test_reservations_add_up(quota: Quota) -> None:
    quota.set_limit(10 * MIB)
    with quota.reserved(4 * MIB):
        with quota.reserved(3 * MIB):
            assert quota.report().reserved == 7 * MIB
            with pytest.raises(QuotaExceededError) as raised, quota.reserved(1):
                raise AssertionError("it does not fit")
            assert str(raised.value) == (
                "Storage quota exceeds. Storage quota: 0.009766GB, image storage usage: 0.000GB, container storage usage: 0.000GB, "
                "volume storage usage: 0.003GB, storage reservation: 0.007GB"
            )
            quota.check(7 * MIB)  # what others reserved is theirs to lose
        with quota.reserved(3 * MIB):
            pass
    assert quota.report().reserved == 0


def test_a_reservation_ends_with_its_holder(place: tuple[Datastore, Leases], quota: Quota) -> None:
    quota.set_limit(10 * MIB)
    with pytest.raises(KeyboardInterrupt), quota.reserved(7 * MIB):
        raise KeyboardInterrupt
    lease = place[1].acquire("reserved-1")
    assert lease is not None
    lease.note({"bytes": 7 * MIB})
    with pytest.raises(QuotaExceededError), quota.reserved(1):
        raise AssertionError("it does not fit")
    lease.abandon()
    with quota.reserved(7 * MIB):
        assert quota.report().reserved == 7 * MIB


def test_a_refusal_leaves_no_lease_for_a_sweep(place: tuple[Datastore, Leases], quota: Quota) -> None:
    quota.set_limit(1)
    with pytest.raises(QuotaExceededError), quota.reserved(1):
        raise AssertionError("it does not fit")
    assert place[1].sweep() == []


def test_a_damaged_limit_is_no_limit_that_is_guessed(place: tuple[Datastore, Leases], quota: Quota) -> None:
    place[0].write_atomic(layout.QUOTA, b'{"version": 1}')
    with pytest.raises(CorruptError, match=layout.QUOTA):
        quota.check()
