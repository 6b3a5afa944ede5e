"""Containers whose maker, renamer or remover dies at any step: each is there whole or not at all, and the next start cleans up.

The process that dies is a fork, which ends itself instead of the n-th call that changes files; nothing of its cleaning up runs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imgstore.answers import Mount
from imgstore.store import ImageStore
from tests.command_line import REFERENCE, litter

IMAGE = "three-layers"
CALLS = ("fsync", "ftruncate", "mkdir", "open", "pwrite", "rename", "unlink")
KILLED, DONE, FAILED = 9, 0, 1


def create(store: ImageStore) -> None:
    store.create_container(IMAGE, name="new", size=store.info().capacity * 2, vic_base=True)


def create_many(store: ImageStore) -> None:
    store.create_containers(IMAGE, 3, name_prefix="new")


def create_with_volume(store: ImageStore) -> None:
    store.create_container(IMAGE, name="new", mounts=[Mount("", "/usr/lib")])


def rename(store: ImageStore) -> None:
    store.rename_container("old", "new")


def remove(store: ImageStore) -> None:
    store.remove_container("old")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with an image and a container."""
    path = tmp_path_factory.mktemp("template") / "store"
    with ImageStore.create(str(path), disk_size=64 << 20) as store:
        store.pull(REFERENCE)
        store.create_container(IMAGE, name="old")
    return path


def die_at(number: int, location: Path, act: Callable[[ImageStore], None]) -> int:
    """Acts in a fork that dies instead of its ``number``-th call; how it ended."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        with ImageStore.open(str(location)) as store:
            _arm(number)
            act(store)
            os._exit(DONE)
    finally:
        os._exit(FAILED)


def _arm(number: int) -> None:
    left = number

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def dying(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os._exit(KILLED)
            return call(*arguments, **options)

        return dying

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))


@pytest.mark.parametrize(
    ("act", "stride", "found"),
    [
        (create, 7, ({"old"}, {"old", "new"})),
        (create_many, 2, ({"old"}, {"old", "new-1", "new-2", "new-3"})),
        (create_with_volume, 5, ({"old"}, {"old", "new"})),
        (rename, 1, ({"old"}, {"new"})),
        (remove, 1, ({"old"}, set())),
    ],
)
def test_a_container_is_there_whole_or_not(
    template: Path, tmp_path: Path, act: Callable[[ImageStore], None], stride: int, found: tuple[set[str], set[str]]
) -> None:
    before, after = found
    seen, strays = [], 0
    for number in range(1, 10_000, stride):
        location = tmp_path / str(number)
        shutil.copytree(template, location)
        ended = die_at(number, location, act)
        assert ended in (KILLED, DONE), number
        strays += any(not disk.with_suffix(".json").exists() for disk in location.glob("containers/*.vmdk"))
        with ImageStore.open(str(location)) as store:
            names = {one.name for one in store.containers()}
            assert before & after <= names <= before | after, number
            files = {path.name for path in (location / "containers").iterdir()}
            assert files == {f"{one.id}.{suffix}" for one in store.containers() for suffix in ("json", "vmdk")}, number
            assert list(store.check()) == [], number
            seen.append(names)
            if names == before:
                act(store)
                assert {one.name for one in store.containers()} == after, number
        assert litter(location) == [], number
        shutil.rmtree(location)
        if ended == DONE:
            break
    assert seen[0] == before and seen[-1] == after
    assert bool(strays) == (act is not rename)  # else there was nothing to clean up
    if len(before ^ after) < 3:  # one appears, or goes, and never comes back
        assert all(names in (before, after) for names in seen)
        assert seen == sorted(seen, key=lambda names: names == after)
