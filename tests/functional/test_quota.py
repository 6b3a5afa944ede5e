"""The quota of a store: ``imgstore quota``, and what pulls, loads and removals make of it."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgstore.quota import QuotaExceededError
from imgstore.store import ImageStore
from tests.command_line import CommandLine
from tests.servers.images import BuiltImage, make_tar
from tests.servers.registry import ALWAYS, Fault, Registry

MIB = 1 << 20
LAYERS = [make_tar({name: random.Random(name).randbytes(3 * MIB)}) for name in "abc"]


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as served:
        for name, layers in {
            "all": LAYERS,
            "low": LAYERS[:1],
            "other": [make_tar({"x": random.Random("x").randbytes(2 * MIB)})],
        }.items():
            served.add_image(name, "1", layers)
        yield served


@pytest.fixture(autouse=True)
def image(registry: Registry) -> BuiltImage:
    return registry.add_image("all", "1", LAYERS)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ImageStore]:
    with ImageStore.open(str(tmp_path / "store")) as opened:
        yield opened


@pytest.fixture
def cli(store: ImageStore) -> CommandLine:
    return CommandLine(Path(store.location))


def test_a_pull_that_cannot_fit_does_not_begin(store: ImageStore, registry: Registry, cli: CommandLine) -> None:
    store.pull(f"{registry.host}/low:1")
    before = store.quota()
    store.set_quota(before.used + 5 * MIB)
    told = cli.fails(8, "pull", f"{registry.host}/all:1")
    assert "Storage quota exceeds. Storage quota: " in told
    assert len(registry.paths("/all/blobs/sha256:")) == 1, "the configuration, and no layer"
    assert store.quota().used == before.used
    assert cli.text("quota", "none").splitlines()[1].split() == ["Limit", "none"]
    store.pull(f"{registry.host}/all:1")


def test_layers_that_grow_when_they_are_inflated(store: ImageStore, registry: Registry) -> None:
    registry.add_image("bomb", "1", [LAYERS[0], make_tar({"zeros": b"\1" * 20 * MIB})])
    store.pull(f"{registry.host}/other:1")
    before = store.quota()
    store.set_quota(before.used + 10 * MIB)
    with pytest.raises(QuotaExceededError):
        store.pull(f"{registry.host}/bomb:1")
    assert store.quota() == before.__class__(before.used + 10 * MIB, before.images, 0, 0, 0), "its lower layer is gone, too"
    assert list(store.check()) == []


def test_usage_returns_with_what_is_removed(store: ImageStore, registry: Registry, cli: CommandLine) -> None:
    store.pull(f"{registry.host}/other:1")
    before = cli.json("quota", "1GiB")
    store.pull(f"{registry.host}/all:1")
    assert cli.json("quota")["used"] > before["used"] + 9 * MIB
    store.remove(f"{registry.host}/all:1")
    assert cli.json("quota") == before


def test_a_pull_that_runs_has_its_room(store: ImageStore, registry: Registry, image: BuiltImage) -> None:
    store.pull(f"{registry.host}/low:1")
    store.set_quota(store.quota().used + 8 * MIB)
    event = threading.Event()
    registry.inject(f"/all/blobs/{image.layer_digests[1]}", Fault(hold=event), times=ALWAYS)
    pull = threading.Thread(target=store.pull, args=(f"{registry.host}/all:1",))
    pull.start()
    try:
        while not store.quota().reserved:
            assert pull.is_alive()
            pull.join(0.01)
        assert 6 * MIB <= store.quota().reserved < 7 * MIB, "the layer that is there is not to come"
        with pytest.raises(QuotaExceededError, match=r"storage reservation: 0\.008GB"):
            store.pull(f"{registry.host}/other:1")
    finally:
        event.set()
        pull.join()
    assert store.quota().reserved == 0 and len(store.images()) == 2


def test_a_limit_below_what_is_there(store: ImageStore, registry: Registry, cli: CommandLine) -> None:
    store.pull(f"{registry.host}/low:1")
    assert cli.json("quota", "1MiB")["limit"] == MIB
    store.pull(f"{registry.host}/low:1")  # brings nothing
    store.tag(f"{registry.host}/low:1", "new:1")
    for words in (["quota", "0"], ["quota", "-1"], ["quota", "much"]):
        assert cli.fails(2, *words)


def test_copies_into_containers_must_fit(store: ImageStore, registry: Registry, cli: CommandLine, tmp_path: Path) -> None:
    store.pull(f"{registry.host}/low:1")
    store.create_container(f"{registry.host}/low:1", name="c1", config={"Cmd": ["true"]})
    store.set_quota(store.quota().used + 5 * MIB)
    (tmp_path / "large").write_bytes(bytes(range(256)) * (20 * MIB // 256))
    assert "Storage quota exceeds" in cli.fails(8, "container", "cp", tmp_path / "large", "c1:/")
    assert store.diff_container("c1") == [] and store.quota().used < store.info().quota
    (tmp_path / "large").write_bytes(b"small")
    cli.text("container", "cp", tmp_path / "large", "c1:/")
    assert [difference.path for difference in store.diff_container("c1")] == [b"large"]
    assert list(store.check()) == []
    store.set_quota(1)
    for words in (["container", "create", f"{registry.host}/low:1", "true"], ["volume", "create", "data"]):
        assert "Storage quota exceeds" in cli.fails(8, *words)
