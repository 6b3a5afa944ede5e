"""A diff of two directories as docker makes it without overlayfs: both trees walked, every file asked for its attributes.

A program of its own, with nothing of imgstore in it.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Fails if the two directories that are its arguments differ in nothing."""
    before, after = (_attributes_of(directory) for directory in sys.argv[1:])
    if not [path for path in before.keys() | after.keys() if before.get(path) != after.get(path)]:
        sys.exit("nothing changed")


def _attributes_of(root: str) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for directory, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = f"{directory}/{name}"
            status = os.lstat(path)
            size = 0 if name in directories else status.st_size
            found[path[len(root) :]] = (status.st_mode, status.st_uid, status.st_gid, size, status.st_mtime_ns)
    return found


if __name__ == "__main__":
    main()
