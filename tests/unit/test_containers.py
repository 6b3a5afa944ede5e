"""What goes on between makers of containers, and those who clean up or make the catalog again meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from imgstore import layout
from imgstore.answers import Mount
from imgstore.catalog.catalog import ContainerRow
from imgstore.containers import CREATING, Containers, parse_created
from imgstore.datastores.memory import MemoryDatastore
from imgstore.errors import CorruptError, InUseError, UnsupportedError
from imgstore.leases import held
from imgstore.store import ImageStore
from imgstore.timestamps import format_timestamp
from tests.command_line import REFERENCE


@pytest.fixture
def store() -> Iterator[ImageStore]:
    with ImageStore.open("mem://") as store:
        store.pull(REFERENCE)
        yield store
        assert list(store.check()) == []


def add_stray(store: ImageStore) -> str:
    path = layout.container_disk("f" * 64)
    store._live_disks.create(path, 1 << 26)
    return path


def test_disks_without_a_marker_go_when_nobody_makes_containers(store: ImageStore) -> None:
    path = add_stray(store)
    assert [finding.object for finding in store.check()] == [path]
    with held(store._leases, CREATING, shared=True):
        assert list(store.check()) == []  # it may be a maker's
        store.rebuild()
        assert store._datastore.exists(path)
    assert store._leases.sweep() != []  # so that the next start looks again
    store.rebuild()
    assert not store._datastore.exists(path)


def test_a_stray_disk_that_a_guest_has_open_waits(store: ImageStore) -> None:
    path = add_stray(store)
    with store._datastore.open_live(path, writable=True):
        store.rebuild()
        assert store._datastore.exists(path)
    store.rebuild()
    assert not store._datastore.exists(path)


def test_a_rebuild_sees_containers_that_come_and_go_meanwhile(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    going = store.create_container("three-layers", name="going")
    staying = store.create_container("three-layers", name="staying")
    coming = []
    replace_all = store._catalog.replace_all

    def act_first(*rows: list[ContainerRow]) -> None:
        store.remove_container(going.id)
        coming.append(store.create_container("three-layers", name="coming"))
        replace_all(*rows)  # type: ignore[arg-type]

    monkeypatch.setattr(store._catalog, "replace_all", act_first)
    store.rebuild()
    assert store.containers() == [*coming, staying]


def test_a_container_without_its_disk_can_be_removed(store: ImageStore) -> None:
    made = store.create_container("three-layers")
    store._datastore.remove_file(layout.container_disk(made.id))
    assert [finding.object for finding in store.check()] == [layout.container_marker(made.id)]
    assert store.container(made.id).size_rw == 0
    store.remove_container(made.id)
    assert store.containers() == []


def test_a_file_of_another_container_is_not_taken(store: ImageStore) -> None:
    made = store.create_container("three-layers")
    data = store._datastore.read_bytes(layout.container_marker(made.id))
    containers: Containers = store._containers
    store._datastore.write_atomic(layout.container_marker("0" * 64), data)
    with pytest.raises(CorruptError, match=rf"^containers/0{{64}}\.json: is the marker of container {made.id}$"):
        containers.read("0" * 64)
    store._datastore.remove_file(layout.container_marker("0" * 64))


def test_times() -> None:
    shown = format_timestamp(1_700_000_000_123_456_789)
    assert shown == "2023-11-14T22:13:20.123456789Z"
    assert parse_created(shown) == datetime(2023, 11, 14, 22, 13, 20, 123456, UTC)
    with pytest.raises(CorruptError, match="created is 'yesterday'"):
        parse_created("yesterday")


def test_a_change_that_was_cut_off_is_ended_before_a_guest_sees_the_disk(store: ImageStore) -> None:
    first, second = store.create_containers("three-layers", 2)
    for made in (first, second):
        disk = layout.container_disk(made.id)
        before = store._datastore.read_bytes(disk, 1 << 30)
        with store._live_disks.edit(disk) as device:
            device.write(0, b"written" * 1000)
        after = store._datastore.read_bytes(disk, 1 << 30)
        assert before != after
    intent = layout.container_disk(first.id).replace(".vmdk", ".intent")
    store._datastore.write_atomic(intent, b"torn")  # what is left of one that was never there as a whole
    store.rebuild()
    assert not store._datastore.exists(intent)
    store._datastore.write_atomic(intent, b"torn")
    store.container_disk_paths(first.id)
    assert not store._datastore.exists(intent)
    store._datastore.write_atomic(intent, b"torn")
    for made in (first, second):
        store.remove_container(made.id)
    assert not store._datastore.exists(intent)


class _PlatformDatastore(MemoryDatastore):
    """One where a platform makes the disks of containers; this one makes them when the test says so."""

    platform_disks = True

    def __init__(self) -> None:
        super().__init__()
        self.locked: set[str] = set()

    def remove_platform_disk(self, path: str) -> None:
        if path in self.locked:
            raise InUseError(f"{path}: a machine has it open")
        self.remove_file(path)


def test_where_a_platform_makes_the_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    datastore = _PlatformDatastore()
    monkeypatch.setattr("imgstore.store.core.MemoryDatastore", lambda: datastore)
    with ImageStore.open("mem://") as store:
        image = store.pull(REFERENCE).image
        web = store.create_container("three-layers", name="web", config={"Cmd": ["serve"]})
        disk = f"containers/{web.id}/{web.id}.vmdk"
        assert (web.disk, web.capacity, web.mounts, web.config["Cmd"]) == (disk, store.info().capacity, (), ["serve"])
        assert not datastore.exists(disk)
        assert [row.name for row in store.create_containers("three-layers", 2, name_prefix="many")] == ["many-1", "many-2"]
        store.rebuild()
        assert list(store.check()) == []
        assert store.container("web") == web
        assert store.container_disk_paths("web") == [*image.disks, disk]

        with contextlib.closing(datastore.create(disk)) as file:
            file.pwrite(0, b"# Disk DescriptorFile")
        assert list(store.check()) == []
        with pytest.raises(InUseError, match="container"):
            store.remove("three-layers")
        datastore.locked.add(disk)
        with pytest.raises(InUseError, match=f"^container web: {disk}: a machine has it open$"):
            store.remove_container("web")
        assert store.container("web").name == "web"
        datastore.locked.clear()
        store.remove_container("web")
        assert not datastore.exists(disk)
        store.remove_container("many-1")

        for options in ({"size": 1 << 40}, {"vic_base": True}, {"mounts": [Mount("data", "/data", False)]}):
            with pytest.raises(UnsupportedError, match="on this datastore"):
                store.create_container("three-layers", **options)
