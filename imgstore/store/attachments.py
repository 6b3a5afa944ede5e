"""Attachments: the disks of containers, ready for a virtual machine."""

from __future__ import annotations

from pathlib import Path

from imgstore import layout
from imgstore.attach.attachment import AttachedDisk
from imgstore.containers import marker_of
from imgstore.datastores.datastore import Datastore
from imgstore.errors import UnsupportedError
from imgstore.store.core import StoreCore
from imgstore.vmdk.chain import Chain


class Attachments(StoreCore):
    """The methods of an `ImageStore` that hand out disks."""

    def container_disks(self, reference: str) -> list[AttachedDisk]:
        """The disks that a machine for the container needs: its own first, then those of its volumes.

        What a crash left half written of them is put right before, and their journals are the guest's to replay. They are not locked:
        whoever opens them first has them.

        Raises:
            NotFoundError: no such container, or a volume of it is missing.
            InUseError: a guest has one of them already.
            UnsupportedError: the store, or a volume store, is not on a file system of this machine.
        """
        container = self._containers.find(reference)
        marker = marker_of(container)
        with self._live_disks.read(layout.container_disk(container.id)) as chain:
            found = [AttachedDisk("/", "", _files(self._datastore, chain), marker.read_only)]
        for mount in marker.mounts:
            datastore = self._volumes.find(mount.volume).store.datastore
            with self._volumes.read(mount.volume) as chain:
                found.append(AttachedDisk(mount.destination, mount.volume, _files(datastore, chain), mount.read_only))
        return found


def _files(datastore: Datastore, chain: Chain) -> tuple[Path, ...]:
    paths = []
    for file in chain.files:
        path = datastore.local_path(file.path)
        if path is None:
            raise UnsupportedError(f"{file.path}: is not on a file system of this machine")
        paths.append(path)
    return tuple(paths)
