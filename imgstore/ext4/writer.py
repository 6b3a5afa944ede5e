"""Applies a layer's Changes to the file system of its parent."""

from __future__ import annotations

from dataclasses import dataclass

from imgstore.blocks import WritableBlockDevice
from imgstore.changes import Change


@dataclass(frozen=True, slots=True)
class LayerSummary:
    """What a layer did. ``changed`` is False if not one byte of the file system had to change; then nothing was written."""

    changed: bool
    free_blocks: int
    free_inodes: int


class LayerWriter:
    """Applies Changes, in order, to the file system on ``device``; ``device`` takes the writes (copy-on-write is below us)."""

    def __init__(self, device: WritableBlockDevice) -> None: ...

    def apply(self, change: Change) -> None:
        raise NotImplementedError

    def finish(self) -> LayerSummary:
        raise NotImplementedError
