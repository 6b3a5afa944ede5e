"""Containers whose maker, renamer or remover dies at any step: each is there whole or not at all, and the next start cleans up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imgstore.store import ImageStore
from tests.command_line import REFERENCE, litter
from tests.faults.container_worker import ACTIONS, DONE, IMAGE, KILLED

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with an image and a container."""
    path = tmp_path_factory.mktemp("template") / "store"
    with ImageStore.create(str(path), disk_size=64 << 20) as store:
        store.pull(REFERENCE)
        store.create_container(IMAGE, name="old")
    return path


def work(action: str, template: Path, directory: Path, stride: int) -> list[tuple[Path, int]]:
    """Runs the worker; the stores that it left, and how their processes ended."""
    script = Path(__file__).with_name("container_worker.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(script), action, str(template), str(directory), str(stride)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    return [(directory / number, int(ended)) for number, ended in map(str.split, done.stdout.splitlines())]


@pytest.mark.parametrize(
    ("action", "stride", "before", "after"),
    [
        ("create", 7, {"old"}, {"old", "new"}),
        ("create_many", 2, {"old"}, {"old", "new-1", "new-2", "new-3"}),
        ("create_with_volume", 9, {"old"}, {"old", "new"}),
        ("rename", 1, {"old"}, {"new"}),
        ("remove", 1, {"old"}, set()),
    ],
)
def test_a_container_is_there_whole_or_not(
    template: Path, tmp_path: Path, action: str, stride: int, before: set[str], after: set[str]
) -> None:
    stores = work(action, template, tmp_path, stride)
    assert [ended for _, ended in stores] == [KILLED] * (len(stores) - 1) + [DONE]
    seen, strays = [], 0
    for location, _ in stores:
        strays += any(not disk.with_suffix(".json").exists() for disk in location.glob("containers/*.vmdk"))
        with ImageStore.open(str(location)) as store:
            names = {one.name for one in store.containers()}
            assert before & after <= names <= before | after, location.name
            files = {path.name for path in (location / "containers").iterdir()}
            assert files == {f"{one.id}.{suffix}" for one in store.containers() for suffix in ("json", "vmdk")}, location.name
            assert list(store.check()) == [], location.name
            seen.append(names)
            if names == before:
                ACTIONS[action](store)
                assert {one.name for one in store.containers()} == after, location.name
        assert litter(location) == [], location.name
    assert seen[0] == before and seen[-1] == after
    assert bool(strays) == (action != "rename")  # else there was nothing to clean up
    if action != "create_many":  # of many some may be there
        assert seen == sorted(seen, key=lambda names: names == after)
        assert all(names in (before, after) for names in seen)
