"""Which files virtual machines have as disks, and what these stand on."""

from __future__ import annotations

import re
from collections.abc import Iterator

from imgstore.vsphere.session import VsphereSession
from imgstore.vsphere.soap import vim

_OBJECT = re.compile(
    r"\[(?P<datastore>[^\]]*)\] (?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|rfc4122\.[0-9a-f-]{36}|naa\.[0-9a-f]+)/(?P<rest>.+)",
    re.DOTALL,
)
"""A file in an object of vSAN or a vVol."""

_HARDWARE = "config.hardware.device"


def backing_files(device: vim.vm.device.VirtualDisk) -> list[str]:
    """The file of a disk, as ``[DATASTORE] path``, and those below it, nearest first; none for a raw device."""
    files = []
    backing = device.backing
    while backing is not None and getattr(backing, "fileName", None):
        files.append(str(backing.fileName))
        backing = getattr(backing, "parent", None)
    return files


def files_of_machines(session: VsphereSession, datastore: vim.Datastore) -> dict[str, str]:
    """The files of all disks of the machines that use a datastore, running or not, with those below them; each with a machine's name."""
    what = "the machines on the datastore cannot be read"
    machines = session.properties([datastore], "vm", what=what)[datastore].get("vm", [])
    facts = session.properties(machines, "name", _HARDWARE, what=what)
    return {file: str(each.get("name", "")) for each in facts.values() for file in _files(each.get(_HARDWARE, ()))}


def is_same_file(one: str, other: str) -> bool:
    """Whether two paths ``[DATASTORE] path`` name one file, whatever their top-level directories are called."""
    return one == other or in_directory(one, other) == other or in_directory(other, one) == one


def in_directory(path: str, sample: str) -> str:
    """A path ``[DATASTORE] path`` with its top-level directory called as in ``sample``, if that may be the same one.

    vSAN and vVols have an object for each top-level directory, and answer with its id, whatever name was asked for.
    """
    found = _OBJECT.fullmatch(path)
    top = sample.partition("/")[0]
    return f"{top}/{found['rest']}" if found is not None and top.startswith(f"[{found['datastore']}] ") else path


def _files(devices: list[vim.vm.device.VirtualDevice]) -> Iterator[str]:
    for device in devices:
        if isinstance(device, vim.vm.device.VirtualDisk):
            yield from backing_files(device)
