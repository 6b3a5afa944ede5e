"""Attachments: the disks of the store, ready for a virtual machine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from imgstore import layout
from imgstore.attach.attachment import AttachedDisk
from imgstore.attach.machine import RELEASE_SECONDS, Machine, PluggedDisk, UnpluggedDisk, plug_id
from imgstore.attach.qemu import DeviceModel, parse_nbd_address
from imgstore.attach.qmp import QmpMonitor
from imgstore.containers import marker_of
from imgstore.datastores.datastore import Datastore
from imgstore.device_names import DeviceName, parse_device_name
from imgstore.errors import InvalidError, UnsupportedError
from imgstore.markers import MountRecord
from imgstore.store.core import StoreCore
from imgstore.vmdk.chain import Chain


class Attachments(StoreCore):
    """The methods of an `ImageStore` that hand out disks."""

    def container_disks(self, reference: str) -> list[AttachedDisk]:
        """The disks that a machine for the container needs, with their files: `ready_disks` of its `machine_disks`."""
        return self.ready_disks(self.machine_disks([f"container/{reference}"]))

    def machine_disks(self, names: Iterable[str]) -> list[AttachedDisk]:
        """The disks that a machine is to have: of a container its own first, then those of its volumes, each once.

        None is opened, and whoever has one is no obstacle: the ``chain`` of each is its own file alone.

        Args:
            names: ``container/NAME``, ``volume/NAME``, ``image/REF``.

        Raises:
            NotFoundError: no such container, volume or image, or a volume of the container is missing.
            InvalidError: a name is none, or a disk is named twice.
            UnsupportedError: the store, or a volume store, is not on a file system of this machine.
        """
        found: list[AttachedDisk] = []
        for text in names:
            for disk in self._find_disks(parse_device_name(text)):
                if any(disk.chain == other.chain for other in found):
                    raise InvalidError(f"{disk.name}: is meant twice, by {text} too, and a machine has each disk once")
                found.append(disk)
        return found

    def ready_disks(self, disks: Iterable[AttachedDisk]) -> list[AttachedDisk]:
        """The disks with all their files, ready to be opened by another program.

        What a crash left half written of them is put right before, and their journals are the guest's to replay. They are not locked:
        whoever opens them first has them.

        Raises:
            NotFoundError: one, or a disk below it, is missing.
            InUseError: a guest has one of them already.
            UnsupportedError: a private copy (``?snapshot``), which only a server can give.
        """
        return [replace(disk, chain=self._open_files(disk.name)) for disk in disks]

    def plug_disks(
        self, names: Iterable[str], monitor: Path, *, model: DeviceModel | None = None, nbd: str | None = None
    ) -> list[PluggedDisk]:
        """Gives disks to a machine that runs under QEMU: all of them, or none. Those that it has are left as they are.

        Args:
            names: as `machine_disks` has them.
            monitor: the Unix socket of its QMP monitor, which nobody else uses meanwhile.
            model: None: virtio-blk-pci where there is room on PCI, else virtio-scsi.
            nbd: the server that the machine reaches them by, as `parse_nbd_address` reads it; None: by their files.

        Raises what `machine_disks`, `ready_disks`, `QmpMonitor` and `Machine.plug` raise.
        """
        disks = self.machine_disks(names)
        server = None if nbd is None else parse_nbd_address(nbd)
        with QmpMonitor(monitor) as connection:
            machine = Machine(connection)
            there = machine.find(disks)
            lacking = [disk for disk in disks if plug_id(disk) not in there]
            machine.forget(lacking)
            plugged = machine.plug(self.ready_disks(lacking) if server is None else lacking, model, server)
        every = there | {disk.id: disk for disk in plugged}
        return [every[plug_id(disk)] for disk in disks]

    def unplug_disks(self, names: Iterable[str], monitor: Path, *, seconds: float = RELEASE_SECONDS) -> list[UnpluggedDisk]:
        """Takes disks out of a machine that runs under QEMU, as `Machine.unplug` does. One that it does not have is fine.

        Args:
            names: as `machine_disks` has them.
            monitor: the Unix socket of its QMP monitor, which nobody else uses meanwhile.
            seconds: how long the guest may take to let one go.

        Raises what `machine_disks`, `QmpMonitor` and `Machine.unplug` raise.
        """
        disks = self.machine_disks(names)
        with QmpMonitor(monitor) as connection:
            return Machine(connection).unplug(disks, seconds)

    def _find_disks(self, name: DeviceName) -> Iterator[AttachedDisk]:
        match name.kind:
            case "container":
                yield from self._find_container_disks(name)
            case "volume":
                yield AttachedDisk(name, (), (self._volume_file(name.reference),), read_only=False)
            case "image":
                with self._chain(name.reference) as chain:
                    yield AttachedDisk(name, (), (_local(self._datastore, chain.path),), read_only=not name.snapshot)

    def _find_container_disks(self, name: DeviceName) -> Iterator[AttachedDisk]:
        container = self._containers.find(name.reference)
        marker = marker_of(container)
        file = _local(self._datastore, layout.container_disk(container.id))
        yield AttachedDisk(name._replace(reference=marker.name), ("/",), (file,), marker.read_only and not name.snapshot)
        for volume, mounts in _by_volume(marker.mounts).items():
            destinations = tuple(mount.destination for mount in mounts)
            read_only = all(mount.read_only for mount in mounts)
            yield AttachedDisk(DeviceName("volume", volume), destinations, (self._volume_file(volume),), read_only)

    def _volume_file(self, name: str) -> Path:
        found = self._volumes.find(name)
        return _local(found.store.datastore, layout.volume_disk(found.marker.disk))

    def _open_files(self, name: DeviceName) -> tuple[Path, ...]:
        if name.snapshot:
            raise UnsupportedError(f"{name}: a private copy is to be had through an NBD server only", hint="imgstore nbd serve")
        match name.kind:
            case "container":
                path = layout.container_disk(self._containers.find(name.reference).id)
                with self._live_disks.read(path) as chain:
                    return _files(self._datastore, chain)
            case "volume":
                datastore = self._volumes.find(name.reference).store.datastore
                with self._volumes.read(name.reference) as chain:
                    return _files(datastore, chain)
            case "image":
                with self._chain(name.reference) as chain:
                    return _files(self._datastore, chain)


def _by_volume(mounts: Iterable[MountRecord]) -> dict[str, list[MountRecord]]:
    grouped: dict[str, list[MountRecord]] = {}
    for mount in mounts:
        grouped.setdefault(mount.volume, []).append(mount)
    return grouped


def _files(datastore: Datastore, chain: Chain) -> tuple[Path, ...]:
    return tuple(_local(datastore, file.path) for file in chain.files)


def _local(datastore: Datastore, path: str) -> Path:
    local = datastore.local_path(path)
    if local is None:
        raise UnsupportedError(f"{path}: is not on a file system of this machine")
    return local
