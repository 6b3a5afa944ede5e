"""Versions of the Docker Engine API that are spoken here."""

from __future__ import annotations

NEWEST = (1, 51)
OLDEST = (1, 24)
OLDEST_ANSWERED = (1, 22)
"""skopeo asks in this version for what has not changed since; Docker itself answers up from `OLDEST`."""


def show_version(version: tuple[int, int]) -> str:
    """As it is written: ``1.51``."""
    return f"{version[0]}.{version[1]}"
