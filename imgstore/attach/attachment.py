"""AttachedDisk: a disk as a virtual machine is to have it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class AttachedDisk:
    """One disk of a machine.

    Attributes:
        destination: where its file system belongs in the container; ``/`` for the container's own.
        volume: name of the volume, or empty for the container's own disk.
        chain: paths of its files on this machine, the one without parent first; only the last is ever written.
        read_only: the machine must not write it.
    """

    destination: str
    volume: str
    chain: tuple[Path, ...]
    read_only: bool
