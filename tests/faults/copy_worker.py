"""A process whose children die while they copy into a container and its volume, each one call later than the one before.

Arguments: the store that each gets a copy of; the directory for these. Prints what ``container_worker`` prints.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from imgstore.store import ImageStore
from tests.archive_members import entry, make_tar
from tests.faults.container_worker import KILLED, die_at

STEPS_MAX = 100


def copy(store: ImageStore) -> None:
    """One copy, to the container's own disk and to its volume."""
    tar = make_tar((entry("data/new"), b"n" * 100_000), (entry("data/v/new"), b"v" * 100_000))
    store.copy_to_container("one", "/", io.BytesIO(tar))


def main() -> None:
    template, directory = sys.argv[1:]
    for number in range(1, STEPS_MAX):
        location = Path(directory, str(number))
        shutil.copytree(template, location)
        ended = die_at(number, location, copy)
        print(number, ended, flush=True)
        if ended != KILLED:
            break


if __name__ == "__main__":
    main()
