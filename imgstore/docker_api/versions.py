"""Versions: of the Docker Engine API that is spoken here, and of the program."""

from __future__ import annotations

from importlib import metadata

NEWEST = (1, 51)
OLDEST = (1, 24)
OLDEST_ANSWERED = (1, 22)
"""skopeo asks in this version for what has not changed since; Docker itself answers up from `OLDEST`."""


def show_version(version: tuple[int, int]) -> str:
    """As it is written: ``1.51``."""
    return f"{version[0]}.{version[1]}"


def program_version() -> str:
    """Of imgstore, as it is installed."""
    try:
        return metadata.version("imgstore")
    except metadata.PackageNotFoundError:  # run from a source tree
        return "unknown"
