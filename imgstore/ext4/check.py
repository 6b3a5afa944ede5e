"""Proves a file system: what e2fsck proves, and what it passes over in silence."""

from __future__ import annotations

from dataclasses import dataclass

from imgstore.blocks import BlockDevice


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: the object, what is wrong with it, and the byte of the device where it lies."""

    object: str
    problem: str
    offset: int


def check_file_system(device: BlockDevice) -> list[Finding]:
    raise NotImplementedError
