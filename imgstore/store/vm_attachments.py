"""VmAttachments: disks of a store on a vSphere datastore, on the virtual machines there."""

from __future__ import annotations

import contextlib
import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from imgstore import layout
from imgstore.attach.vm_attachment import VmAttachment, VmReport
from imgstore.containers import marker_of
from imgstore.datastores.datastore import PART_SUFFIX
from imgstore.device_names import DeviceName, parse_device_name
from imgstore.errors import ImgstoreError, InvalidError, NotFoundError, UnavailableError, UnsupportedError
from imgstore.gc import kept
from imgstore.images import familiar
from imgstore.store.core import StoreCore
from imgstore.vmdk.formats import DiskFormat
from imgstore.volume_options import check_name

if TYPE_CHECKING:
    from imgstore.attach.vm_devices import VmDisk, WantedDisk
    from imgstore.attach.vsphere import VsphereMachine
    from imgstore.datastores.vsphere_files import DatastoreFiles


class VmAttachments(StoreCore):
    """The methods of an `ImageStore` on a vSphere datastore that give its disks to virtual machines."""

    def attach_to_vm(self, names: Iterable[str], vm: str, *, make_volumes: bool = False, protect: bool = True) -> VmReport:
        """Adds disks to a virtual machine, running or not: all that it lacks in one reconfiguration, or none of them.

        An image's disk is added nonpersistent: what the guest writes is gone when the machine is powered off, and any number of machines
        can have it. A container's is made by the platform over its image's when a machine gets it first, and is persistent; a volume's
        is persistent and no part of the machine's snapshots. After a crash it can be done again.

        Args:
            names: ``image/REF``, ``container/NAME``, ``volume/NAME``; with ``?snapshot`` what is written to it is gone at power off.
            vm: ``vsphere://HOST/DATACENTER/vm/NAME``, or a name or an inventory path on the server of the datastore.
            make_volumes: have the platform make volumes that are not there, over the store's empty file system and as large as that.
            protect: have the vCenter refuse to destroy the machine as long as it has disks of this store.

        Raises:
            NotFoundError: no such machine, image, container or volume, or its disk is not on the datastore.
            InvalidError: a name makes no sense, or is there twice; or the machine is on another server.
            InUseError: the machine has a disk in another mode, or no free unit for one (`NoFreeUnitError`); another machine has one open
                for writing; or another task runs on the machine.
            UnsupportedError: the store is not on a vSphere datastore, or its disks are streamOptimized.
            UnavailableError: the server did not answer to the end: the machine has the disks or gets them still, or not. As long as
                that is not known it stays protected.
        """
        files = self._files()
        devices = _parse(names)
        with contextlib.ExitStack() as stack:
            stack.enter_context(kept(self._leases, {top for device in devices if (top := self._top_layer(device)) is not None}))
            wanted = [self._wanted(files, device, make_volumes=make_volumes) for device in devices]
            _check_each_is_one(wanted)
            machine = self._machine(files, vm)
            for disk, device in zip(wanted, devices, strict=True):
                if disk.parent:
                    files.make_directories(posixpath.dirname(self._path(device)))
            failure = machine.forbid_destroy() if protect else ""
            try:
                found = machine.attach(wanted)
            except UnavailableError:  # nobody knows: the machine may get them still
                raise
            except ImgstoreError:
                if protect:
                    with contextlib.suppress(ImgstoreError):
                        machine.allow_destroy()
                raise
        shown = [_shown(disk.name, there, was_there=was_there) for disk, (there, was_there) in zip(wanted, found, strict=True)]
        return VmReport(tuple(shown), failure)

    def detach_from_vm(self, names: Iterable[str], vm: str) -> VmReport:
        """Takes disks from a virtual machine, running or not; their files stay. What it does not have is fine.

        When it has none of the store's any more, it can be destroyed again.

        Args:
            names: as for `attach_to_vm`, or a disk's file, ``[DATASTORE] path``, as `vm_attachments` has it.
            vm: likewise.

        Raises:
            NotFoundError: no such machine, image or container.
            InvalidError, InUseError, UnsupportedError: as `attach_to_vm` has them.
        """
        files = self._files()
        wanted = [
            _at_path(files, name) if name.startswith("[") else self._named(files, parse_device_name(name)) for name in names
        ]
        _check_each_is_one(wanted)
        machine = self._machine(files, vm)
        gone = machine.detach(wanted)
        failure = machine.allow_destroy()
        shown = [
            _missing(disk) if was is None else _shown(disk.name, was, was_there=True)
            for disk, was in zip(wanted, gone, strict=True)
        ]
        return VmReport(tuple(shown), failure)

    def vm_attachments(self, vm: str) -> list[VmAttachment]:
        """The disks of this store that a virtual machine has, by controller and unit.

        Raises:
            NotFoundError: no such machine.
            UnsupportedError: the store is not on a vSphere datastore.
        """
        files = self._files()
        disks = self._machine(files, vm).disks()
        known = self._all_named(files) if disks else []
        return [_shown(_name_of(disk, known), disk, was_there=True) for disk in disks]

    def _files(self) -> DatastoreFiles:
        if not self._datastore.platform_disks:
            raise UnsupportedError(
                f"{self.location}: vSphere takes disks from its own datastores only",
                hint="open the store that is there: --store vsphere://HOST/DATACENTER/DATASTORE/PATH",
            )
        from imgstore.datastores.vsphere import VsphereDatastore

        assert isinstance(self._datastore, VsphereDatastore)  # noqa: S101 - the only one of that kind
        return self._datastore.files

    def _machine(self, files: DatastoreFiles, vm: str) -> VsphereMachine:
        from imgstore.attach.vsphere import VsphereMachine
        from imgstore.vsphere.locations import parse_vm

        place, login = files.location, files.session.login
        location = parse_vm(vm, replace(login, datacenter=place.datacenter))
        if (location.host.casefold(), location.port) != (login.host.casefold(), login.port):
            raise InvalidError(f"{vm}: is not on the server of the store's datastore, {login.address}")

        def is_ours(path: str) -> bool:
            return (files.relative(path) or "").startswith(_DIRECTORIES)

        return VsphereMachine(files.session, location, f"imgstore {self._id}", is_ours)

    def _wanted(self, files: DatastoreFiles, device: DeviceName, *, make_volumes: bool) -> WantedDisk:
        """The disk of the device, made over its parent if it is not there."""
        named = self._named(files, device)
        self._check_form(self._top_layer(device))
        if self._datastore.exists(self._path(device)):
            return named
        if device.kind == "container":
            parent = self._disk_of(self._top_layer(device))
        elif device.kind == "volume" and make_volumes:
            parent = self._disk_of(None)
        elif device.kind == "volume":
            raise NotFoundError(
                f"{named.path}: there is no such disk of volume {device.reference}", hint="--make-volumes makes one"
            )
        else:
            raise NotFoundError(
                f"{named.path}: the disk of image {device.reference} is not there", hint="imgstore copy brings it there"
            )
        if not self._datastore.exists(parent):
            problem = f"{files.shown(parent)}: is not there, and {device} is to stand on it"
            raise NotFoundError(problem, hint="imgstore copy brings it there, unless each image is to have one disk")
        return replace(named, parent=files.shown(parent))

    def _check_form(self, chain_id: str | None) -> None:
        """Raises UnsupportedError where the disk that shows a layer is for platforms to import only."""
        while chain_id is not None:
            marker = self._disks.read_marker(chain_id)
            if marker.disk is None:
                chain_id = marker.parent
            elif marker.disk.format == DiskFormat.STREAM_OPTIMIZED:
                raise UnsupportedError(
                    f"{marker.disk.file}: machines cannot have the disk of the image: it is {marker.disk.format}, to be imported",
                    hint="import it by the platform's own means, or copy the image with --disk-format vmfs to another directory",
                )
            else:
                return

    def _named(self, files: DatastoreFiles, device: DeviceName) -> WantedDisk:
        from imgstore.attach.vm_devices import DiskMode, WantedDisk

        mode = {
            "image": DiskMode.INDEPENDENT_NONPERSISTENT,
            "container": DiskMode.PERSISTENT,
            "volume": DiskMode.INDEPENDENT_PERSISTENT,
        }[device.kind]
        is_read_only = device.kind == "container" and marker_of(self._containers.find(device.reference)).read_only
        if device.snapshot or is_read_only:
            mode = DiskMode.INDEPENDENT_NONPERSISTENT
        return WantedDisk(str(device), files.shown(self._path(device)), mode)

    def _path(self, device: DeviceName) -> str:
        """Path of the disk on the datastore."""
        match device.kind:
            case "image":
                return self._disk_of(self._top_layer(device))
            case "container":
                return self._containers.disk(self._containers.find(device.reference).id)
            case "volume":
                return layout.platform_disk(layout.VOLUMES, _check_volume_name(device.reference))

    def _top_layer(self, device: DeviceName) -> str | None:
        """Chain id of the layer that the device shows, or stands on; None where that is the empty file system."""
        match device.kind:
            case "image":
                layers = self._images.find(device.reference).layers
                return layers[-1].chain_id if layers else None
            case "container":
                return self._containers.find(device.reference).chain_id
            case "volume":
                return None

    def _disk_of(self, chain_id: str | None) -> str:
        """Path of the disk that shows a layer with all below it."""
        while chain_id is not None:
            row = self._catalog.layer(chain_id)
            if row is None:
                raise NotFoundError(f"layer {chain_id}: is missing", hint="imgstore check says more")
            if row.disk is not None:
                return row.disk
            chain_id = row.parent
        return f"{layout.DISKS}/{layout.disk_file(layout.SCRATCH)}"

    def _all_named(self, files: DatastoreFiles) -> list[WantedDisk]:
        """The disks of all images, by one of their names or by id, and of all containers."""
        contents = self._catalog.contents()
        tags = {reference.image_id: familiar(reference.name) for reference in contents.references if "@" not in reference.name}
        devices = [DeviceName("image", tags.get(image.id, image.id)) for image in contents.images]
        devices += [DeviceName("container", container.name) for container in self._catalog.containers()]
        return [self._named(files, device) for device in devices]


_DIRECTORIES = tuple(f"{directory}/" for directory in (layout.DISKS, layout.CONTAINERS, layout.VOLUMES))
"""Where disks of a store lie: all else on the datastore is others', whatever vSAN calls its directory."""
_VOLUME = re.compile(rf".*[ /]{layout.VOLUMES}/([^/]+)/\1\.vmdk", re.DOTALL)


def _parse(names: Iterable[str]) -> list[DeviceName]:
    devices = [parse_device_name(name) for name in names]
    if not devices:
        raise InvalidError("no disk is named")
    return devices


def _at_path(files: DatastoreFiles, path: str) -> WantedDisk:
    from imgstore.attach.vm_devices import DiskMode, WantedDisk

    if not (files.relative(path) or "").startswith(_DIRECTORIES):
        raise InvalidError(f"{path}: is no disk of the store at {files.shown('')}")
    return WantedDisk(path, path, DiskMode.INDEPENDENT_PERSISTENT)


def _check_each_is_one(wanted: Sequence[WantedDisk]) -> None:
    """Raises InvalidError if two names mean one disk."""
    names: dict[str, str] = {}
    for disk in wanted:
        if (other := names.setdefault(disk.path, disk.name)) is not disk.name:
            raise InvalidError(f"{disk.name}: is the disk of {other} too, and a machine has each disk once")


def _check_volume_name(name: str) -> str:
    """The name itself; raises InvalidError if no volume can be called that, or its directory would pass for a file of a store."""
    check_name(name)
    if name.endswith((".json", ".vmdk", PART_SUFFIX)):
        raise InvalidError(f"volume {name}: cannot be called that on a vSphere datastore, where it is the name of a directory")
    return name


def _name_of(disk: VmDisk, known: Iterable[WantedDisk]) -> str:
    named = next((wanted.name for wanted in known if disk.shows(wanted)), "")
    if not named and (volume := _VOLUME.fullmatch(disk.path)):
        return str(DeviceName("volume", volume[1]))
    return named


def _shown(name: str, disk: VmDisk, *, was_there: bool) -> VmAttachment:
    slot = disk.slot
    bus, unit = (None, None) if slot is None else (slot.controller.bus, slot.unit)
    return VmAttachment(name, disk.path, disk.mode, bus, unit, disk.key, disk.uuid, was_there)


def _missing(wanted: WantedDisk) -> VmAttachment:
    return VmAttachment(wanted.name, wanted.path, wanted.mode.value, None, None, None, "", was_there=False)
