"""A process whose children die: each does one thing to a store of its own, and ends itself instead of its n-th call that changes files.

Arguments: the name of the action; the store that each gets a copy of; the directory for these; n counts up by how many. It ends with the
first child that got to its end. Prints the name of each copy, and how its child ended. The children are forks of this process, which
has one thread.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imgstore.answers import Mount
from imgstore.store import ImageStore
from tests.command_line import REFERENCE

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


def flatten(store: ImageStore) -> None:
    store.flatten(IMAGE, 2)


def pull(store: ImageStore) -> None:
    store.pull(REFERENCE)


ACTIONS = {action.__name__: action for action in (create, create_many, create_with_volume, rename, remove, flatten, pull)}


def die_at(number: int, location: Path, action: Callable[[ImageStore], None]) -> int:
    """Acts in a child that dies instead of its ``number``-th call; how it ended."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        with ImageStore.open(str(location)) as store:
            _arm(number)
            action(store)
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


def main() -> None:
    action, template, directory, stride = sys.argv[1:]
    for number in range(1, 10_000, int(stride)):
        location = Path(directory, str(number))
        shutil.copytree(template, location)
        ended = die_at(number, location, ACTIONS[action])
        print(number, ended, flush=True)
        if ended != KILLED:
            break


if __name__ == "__main__":
    main()
