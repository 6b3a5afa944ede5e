"""AttachedDisk: a disk as a virtual machine is to have it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from imgstore.device_names import DeviceName


@dataclass(frozen=True, slots=True)
class AttachedDisk:
    """One disk of a machine.

    Attributes:
        name: what it is of the store.
        destinations: where its file system belongs in the container that it came with, ``/`` for the container's own; empty for a disk
            that was named by itself.
        chain: paths of its files on this machine, the one without parent first; only the last is ever written.
        read_only: the machine must not write it.
    """

    name: DeviceName
    destinations: tuple[str, ...]
    chain: tuple[Path, ...]
    read_only: bool
