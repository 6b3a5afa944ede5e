"""The disks of a store as devices: which there are, who can have them, and what stays while somebody has them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import imgstore
from imgstore.ext4.reader import FileSystem
from tests.disks import read_ready
from tests.servers.images import build_image, make_tar, write_layout

SIZE = 64 << 20


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    layers = [make_tar({"etc/one": b"first"}), make_tar({"etc/two": b"second"})]
    return write_layout(tmp_path_factory.mktemp("layout"), {"1": build_image(layers)})


@pytest.fixture
def store(tmp_path: Path, source: Path) -> Iterator[imgstore.ImageStore]:
    location = str(tmp_path / "store")
    imgstore.ImageStore.create(location, disk_size=SIZE).close()
    with imgstore.ImageStore.open(location) as store:
        store.tag(store.pull(f"oci:{source}:1").image.id, "app:1")
        store.create_container("app:1", name="web", mounts=[imgstore.Mount("data", "/srv")])
        yield store


def open_files() -> list[Path]:
    return sorted(path.readlink() for path in Path("/proc/self/fd").iterdir() if os.path.lexists(path))


def test_devices_are_listed(store: imgstore.ImageStore) -> None:
    store.tag("app:1", "harbor.example:5000/library/app:2")
    store.create_container("app:1", name="fixed", size=2 * SIZE, read_only=True)
    found = {(each.name, each.size, each.read_only) for each in store.devices()}
    assert found >= {
        ("image/app:1", SIZE, True),
        ("image/harbor.example:5000/library/app:2", SIZE, True),
        ("container/web", SIZE, False),
        ("container/fixed", 2 * SIZE, True),
        ("volume/data", 1 << 30, False),
    }
    for name, size, read_only in found:
        with contextlib.closing(store.open_device(name)) as device:
            assert (device.size, device.read_only) == (size, read_only)
            assert device.read(1080, 2) == b"\x53\xef"  # the magic number of ext4


@pytest.mark.parametrize("name", ["image/app:1", "container/web", "volume/data"])
def test_who_asks_what_there_is_opens_nothing(store: imgstore.ImageStore, name: str) -> None:
    for asked in (name, f"{name}?snapshot"):
        device = store.open_device(asked)
        try:
            info = store.device_info(asked)  # whoever has it
        finally:
            device.close()
        assert (info.name, info.size, info.read_only) == (asked, device.size, device.read_only)


def test_an_image_without_a_name_is_listed_by_its_id(store: imgstore.ImageStore, tmp_path: Path) -> None:
    other = write_layout(tmp_path / "other", {"2": build_image([make_tar({"etc/three": b"third"})])})
    image = store.image("app:1")
    store.tag(store.pull(f"oci:{other}:2").image.id, "app:1")
    for name in store.image(image.id).references:
        store.tag("app:1", name)
    assert f"image/{image.id}" in [each.name for each in store.devices()]
    store.open_device(f"image/{image.id}").close()


def test_devices_of_an_image_have_its_files_open_once(store: imgstore.ImageStore) -> None:
    before = open_files()
    first = store.open_device("image/app:1")
    once = open_files()
    others = [store.open_device(f"image/{name}") for name in ("app:1", store.image("app:1").id)]
    assert open_files() == once
    private = store.open_device("image/app:1?snapshot")
    assert len(open_files()) == len(once) + 1
    private.close()
    for device in others:
        device.close()
    assert FileSystem(first).lookup(b"etc/one")
    first.close()
    assert open_files() == before


@pytest.mark.parametrize("snapshot", [False, True])
def test_layers_stay_as_long_as_a_device_shows_them(store: imgstore.ImageStore, snapshot: bool) -> None:
    store.remove_container("web")
    device = store.open_device("image/app:1", snapshot=snapshot)
    for name in store.image("app:1").references:
        store.remove(name)
    assert store.images() == []
    assert store.prune({"dangling": ["false"]}).removals == ()
    assert FileSystem(device).lookup(b"etc/one")
    with pytest.raises(imgstore.NotFoundError, match="app:1"):
        store.open_device("image/app:1")
    device.close()
    (removal,) = store.prune().removals
    assert len(removal.deleted) == 2
    assert list(store.check()) == []


@pytest.mark.parametrize("name", ["container/web", "volume/data"])
def test_who_writes_has_it_alone(store: imgstore.ImageStore, name: str) -> None:
    what = name.replace("/", " ")
    with contextlib.closing(store.open_device(name)) as device:
        device.write(1 << 20, b"written")
        for attempt in (
            lambda: store.open_device(name),
            lambda: store.open_device(name, snapshot=True),
            lambda: store.container_disks("web"),
        ):
            with pytest.raises(imgstore.InUseError, match="in use by a running guest or another imgstore"):
                attempt()
        with pytest.raises(imgstore.InUseError, match=f"^{what}: .*in use by"):
            store.open_device(name)
    with contextlib.closing(store.open_device(name)) as device:
        assert device.read(1 << 20, 7) == b"written"


def test_what_is_open_is_not_removed(store: imgstore.ImageStore) -> None:
    store.create_volume("alone")
    for suffix in ("", "?snapshot"):
        web, alone = store.open_device(f"container/web{suffix}"), store.open_device(f"volume/alone{suffix}")
        with pytest.raises(imgstore.InUseError, match="container web"):
            store.remove_container("web")
        with pytest.raises(imgstore.InUseError, match="in use by a running guest"):
            store.remove_volume("alone")
        web.close()
        alone.close()
    store.remove_container("web")
    store.remove_volume("alone")


@pytest.mark.parametrize("name", ["image/app:1", "container/web", "volume/data"])
def test_what_is_written_to_a_private_overlay_vanishes(store: imgstore.ImageStore, name: str, tmp_path: Path) -> None:
    with contextlib.closing(store.open_device(name)) as device:
        before = device.read(0, 1 << 20)
    names = sorted((tmp_path / "store").iterdir())
    first, second = store.open_device(f"{name}?snapshot"), store.open_device(name, snapshot=True)
    first.write(5, b"private")
    first.flush()
    assert (first.read(5, 7), second.read(0, 1 << 20)) == (b"private", before)
    assert sorted((tmp_path / "store").iterdir()) == names
    if not name.startswith("image"):
        with pytest.raises(imgstore.InUseError):
            store.open_device(name)
    first.close()
    second.close()
    with contextlib.closing(store.open_device(name)) as device:
        assert device.read(0, 1 << 20) == before


def test_a_read_only_container_is_not_written(store: imgstore.ImageStore) -> None:
    store.create_container("app:1", name="fixed", read_only=True)
    with contextlib.closing(store.open_device("container/fixed")) as device:
        with pytest.raises(imgstore.DeniedError, match="read-only"):
            device.write(0, b"x")
        with contextlib.closing(store.open_device("container/fixed?snapshot")) as private:
            private.write(0, b"x")


@pytest.mark.parametrize("name", ["image/none", "container/none", "volume/none", "container/none\udcff", "volume/none\udcff"])
def test_what_is_not_there(store: imgstore.ImageStore, name: str) -> None:
    before = open_files()
    for look in (store.open_device, store.device_info):
        with pytest.raises(imgstore.NotFoundError, match="none"):
            look(name)
    with pytest.raises(imgstore.InvalidError, match="has no kind"):
        store.open_device("web")
    assert open_files() == before


def test_a_store_in_memory_has_devices_too(source: Path) -> None:
    with imgstore.ImageStore.open("mem://") as store:
        store.pull(f"oci:{source}:1")
        name = store.devices()[0].name
        with contextlib.closing(store.open_device(name, snapshot=True)) as device:
            device.write(0, b"x")
            assert read_ready(device, 0, 2) == b"x\0"
