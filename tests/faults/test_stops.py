"""A pull, load or push that is stopped from another thread, wherever it is: soon over, and nothing of it left."""

from __future__ import annotations

import io
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from imgstore.disks import layer_lease
from imgstore.errors import UnavailableError
from imgstore.leases import FileLeases
from imgstore.progress import ProgressEvent, State
from imgstore.stop import Stop, StoppedError
from imgstore.store import ImageStore
from registry_client.digest import chain_ids
from tests.servers.images import BuiltImage, build_image, make_tar, write_docker_archive
from tests.servers.registry import ALWAYS, Fault, Registry

SOON = 5.0
"""Seconds; it is a second on a machine that has nothing else to do."""

LAYERS = [make_tar({name: random.Random(name).randbytes(700_000)}) for name in "abcd"]


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as served:
        yield served


@pytest.fixture
def image(registry: Registry) -> BuiltImage:
    return registry.add_image("app", "1", LAYERS)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ImageStore]:
    with ImageStore.open(str(tmp_path / "store")) as opened:
        yield opened


def leftovers(store: ImageStore) -> list[str]:
    directory = store.info().directory
    assert directory is not None
    return [str(path) for path in directory.rglob("*") if path.suffix == ".part" or path.parent.name == ".leases"]


def stop_when(ready: Callable[[], bool], act: Callable[[Stop], object]) -> None:
    """Starts something, stops it as soon as it is so far, and sees that it ends."""
    stop = Stop()
    with ThreadPoolExecutor(1) as pool:
        running: Future[object] = pool.submit(act, stop)
        deadline = time.monotonic() + 20
        while not ready():
            assert not running.done(), running.exception()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        begin = time.monotonic()
        stop.set()
        with pytest.raises(UnavailableError):
            running.result(SOON)
        assert time.monotonic() - begin < SOON


@pytest.mark.parametrize(
    "fault",
    [
        Fault(hold=threading.Event()),
        Fault(delay=20.0, hang_up=True),
        Fault(cut_at=0.5, stall=20.0),
        Fault(status=503, headers={"Retry-After": "20"}),
    ],
    ids=["half-a-blob", "no-answer", "stall", "retry"],
)
@pytest.mark.parametrize("number", [0, 2], ids=["converting", "ahead"])
def test_a_pull_that_waits_for_a_layer(
    store: ImageStore, registry: Registry, image: BuiltImage, fault: Fault, number: int
) -> None:
    injected = registry.inject(f"/blobs/{image.layer_digests[number]}", fault, times=ALWAYS)
    stop_when(lambda: injected.hits > 0, lambda stop: store.pull(f"{registry.host}/app:1", stop=stop))
    assert store.images() == []
    assert leftovers(store) == []
    registry.clear_faults()
    assert store.pull(f"{registry.host}/app:1").image.id == image.image_id
    assert list(store.check(read_data=True)) == []


def test_a_pull_that_waits_to_ask_for_the_manifest_again(store: ImageStore, registry: Registry, image: BuiltImage) -> None:
    injected = registry.inject("/manifests/", Fault(status=503, headers={"Retry-After": "20"}), times=ALWAYS)
    stop_when(lambda: injected.hits > 0, lambda stop: store.pull(f"{registry.host}/app:1", stop=stop))
    assert leftovers(store) == []


def test_a_pull_that_waits_for_another(store: ImageStore, registry: Registry, image: BuiltImage, tmp_path: Path) -> None:
    lease = FileLeases(tmp_path / "store/.leases").acquire(layer_lease(str(chain_ids(image.diff_ids)[0])))
    assert lease is not None
    seen: list[ProgressEvent] = []
    stop_when(
        lambda: any(event.state is State.WAITING for event in seen[6:]),
        lambda stop: store.pull(f"{registry.host}/app:1", stop=stop, progress=seen.append),
    )
    lease.release()
    assert leftovers(store) == []
    assert store.pull(f"{registry.host}/app:1").image.id == image.image_id


def test_a_pull_in_the_middle_of_a_conversion(store: ImageStore, registry: Registry) -> None:
    registry.add_image("zeros", "1", [make_tar({"zeros": bytes(300 << 20)})])
    seen: list[ProgressEvent] = []
    stop_when(
        lambda: any(event.state is State.CONVERTING for event in list(seen)),
        lambda stop: store.pull(f"{registry.host}/zeros:1", stop=stop, progress=seen.append),
    )
    assert store.images() == []
    assert leftovers(store) == []


def test_a_pull_that_is_stopped_before_it_begins(store: ImageStore, registry: Registry, image: BuiltImage) -> None:
    stop = Stop()
    stop.set()
    with pytest.raises(StoppedError):
        store.pull(f"{registry.host}/app:1", stop=stop)
    assert registry.paths("/blobs/") == []


def test_a_pull_that_is_stopped_when_it_is_over(store: ImageStore, registry: Registry, image: BuiltImage) -> None:
    stop = Stop()
    pulled = store.pull(f"{registry.host}/app:1", stop=stop)
    stop.set()
    assert store.image(pulled.reference).id == image.image_id


def test_a_load(store: ImageStore, image: BuiltImage, tmp_path: Path) -> None:
    archive = write_docker_archive(tmp_path / "a.tar", {"app:1": image, "other:1": build_image(LAYERS[:1])}).read_bytes()
    lease = FileLeases(tmp_path / "store/.leases").acquire(layer_lease(str(chain_ids(image.diff_ids)[1])))
    assert lease is not None
    seen: list[ProgressEvent] = []
    stop_when(
        lambda: any(event.state is State.WAITING for event in seen[5:]),
        lambda stop: list(store.load(io.BytesIO(archive), stop=stop, progress=seen.append)),
    )
    lease.release()
    assert store.images() == []
    assert leftovers(store) == []


@pytest.mark.parametrize(
    "fault", [Fault(status=503, headers={"Retry-After": "20"}), Fault(delay=1.0)], ids=["retry", "no-answer"]
)
def test_a_push(store: ImageStore, registry: Registry, image: BuiltImage, fault: Fault) -> None:
    store.pull(f"{registry.host}/app:1")
    store.tag(f"{registry.host}/app:1", f"{registry.host}/new:1")
    injected = registry.inject("/new/blobs/uploads/", fault, times=ALWAYS)
    stop_when(lambda: injected.hits > 0, lambda stop: store.push(f"{registry.host}/new:1", stop=stop))
    assert leftovers(store) == []
    assert ("new", "1") not in registry.manifests
