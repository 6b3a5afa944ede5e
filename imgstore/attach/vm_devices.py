"""Disks of a virtual machine in the words of the vSphere API: what a machine has, and the changes that ReconfigVM takes.

Source: vSphere Web Services API, ``VirtualDeviceConfigSpec``, ``VirtualDiskFlatVer2BackingInfo``, ``VirtualDiskMode``.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from imgstore.attach.scsi import Controller, Slot
from imgstore.vsphere.machine_disks import backing_files, is_same_file
from imgstore.vsphere.soap import vim


class DiskMode(enum.StrEnum):
    """What becomes of writes, and whether snapshots of the machine take the disk with them (``VirtualDiskMode``)."""

    PERSISTENT = "persistent"
    """Written; a snapshot of the machine holds it."""
    INDEPENDENT_PERSISTENT = "independent_persistent"
    """Written; snapshots leave it as it is."""
    INDEPENDENT_NONPERSISTENT = "independent_nonpersistent"
    """Writes go beside the disk and are gone when the machine is powered off, so any number of machines can have it at once."""


@dataclass(frozen=True, slots=True)
class WantedDisk:
    """A disk that a machine is to have.

    Attributes:
        name: of the device, as `DeviceName` writes it.
        path: its file, as ``[DATASTORE] path``.
        parent: file of the disk that it is made over, by the platform; empty if it is there.
    """

    name: str
    path: str
    mode: DiskMode
    parent: str = ""


@dataclass(frozen=True, slots=True)
class VmDisk:
    """A disk that a machine has.

    Attributes:
        key: of the device.
        slot: where on a SCSI controller; None on another kind of controller.
        path: the file that it writes, as ``[DATASTORE] path``; empty where it has none (a raw device).
        parents: the files below that, nearest first.
        mode: as the API has it; see `DiskMode`.
        uuid: what the guest may see of it; see `VmAttachment.uuid`.
    """

    key: int
    slot: Slot | None
    path: str
    parents: tuple[str, ...]
    mode: str
    uuid: str

    def shows(self, wanted: WantedDisk) -> bool:
        """Whether it is the wanted disk: the same file, or what a snapshot of the machine put over it.

        An image's disk is below many disks that are not it; but nothing is put over one, as snapshots leave its mode alone.
        """
        over = self.parents if wanted.mode is DiskMode.PERSISTENT else ()
        return any(is_same_file(path, wanted.path) for path in (self.path, *over))


@dataclass(frozen=True, slots=True)
class VmDevices:
    """What a machine has.

    Attributes:
        controllers: its SCSI controllers.
        taken: key of the controller and unit of everything that sits on one, disk or not.
    """

    controllers: tuple[Controller, ...]
    taken: frozenset[tuple[int, int]]
    disks: tuple[VmDisk, ...]

    def find(self, wanted: WantedDisk) -> VmDisk | None:
        """The disk, if the machine has it."""
        return next((disk for disk in self.disks if disk.shows(wanted)), None)


def read_devices(devices: Iterable[vim.vm.device.VirtualDevice]) -> VmDevices:
    """Reads ``config.hardware.device``."""
    devices = list(devices)
    controllers = {
        device.key: _controller(device) for device in devices if isinstance(device, vim.vm.device.VirtualSCSIController)
    }
    placed = [device for device in devices if device.controllerKey is not None and device.unitNumber is not None]
    return VmDevices(
        tuple(controllers.values()),
        frozenset((device.controllerKey, device.unitNumber) for device in placed),
        tuple(_disk(device, controllers) for device in devices if isinstance(device, vim.vm.device.VirtualDisk)),
    )


def added_controller(controller: Controller) -> vim.vm.device.VirtualDeviceSpec:
    """The change that adds a paravirtual controller."""
    device = vim.vm.device.ParaVirtualSCSIController(
        key=controller.key,
        busNumber=controller.bus,
        sharedBus=vim.vm.device.VirtualSCSIController.Sharing.noSharing,
    )
    return vim.vm.device.VirtualDeviceSpec(operation=_ADD, device=device)


def added_disk(wanted: WantedDisk, slot: Slot, number: int) -> vim.vm.device.VirtualDeviceSpec:
    """The change that adds a disk, and has the platform make its file if it is to stand on a parent.

    Args:
        number: of the disk among those of one reconfiguration.
    """
    backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName=wanted.path, diskMode=wanted.mode.value)
    # Of a key below zero nothing is kept but that the changes of one call can refer to each other by it.
    device = vim.vm.device.VirtualDisk(
        key=_FIRST_KEY - number, controllerKey=slot.controller.key, unitNumber=slot.unit, backing=backing, capacityInKB=0
    )
    change = vim.vm.device.VirtualDeviceSpec(operation=_ADD, device=device)
    if wanted.parent:
        # Only the parent's file name counts; capacity and form come from there.
        backing.parent = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName=wanted.parent, diskMode=wanted.mode.value)
        change.fileOperation = vim.vm.device.VirtualDeviceSpec.FileOperation.create
    return change


def removed_disk(device: vim.vm.device.VirtualDevice) -> vim.vm.device.VirtualDeviceSpec:
    """The change that takes a disk from the machine and leaves its files: with a file operation the platform would delete them."""
    return vim.vm.device.VirtualDeviceSpec(operation=vim.vm.device.VirtualDeviceSpec.Operation.remove, device=device)


_ADD = vim.vm.device.VirtualDeviceSpec.Operation.add
_FIRST_KEY = -101
"""Behind the keys of new controllers."""


def _controller(device: vim.vm.device.VirtualSCSIController) -> Controller:
    is_paravirtual = isinstance(device, vim.vm.device.ParaVirtualSCSIController)
    if device.scsiCtlrUnitNumber is None or device.scsiCtlrUnitNumber < 0:
        return Controller(device.key, device.busNumber, is_paravirtual)
    return Controller(device.key, device.busNumber, is_paravirtual, device.scsiCtlrUnitNumber)


def _disk(device: vim.vm.device.VirtualDisk, controllers: dict[int, Controller]) -> VmDisk:
    controller = controllers.get(device.controllerKey)
    slot = None if controller is None or device.unitNumber is None else Slot(controller, device.unitNumber)
    path, *parents = backing_files(device) or [""]
    return VmDisk(
        key=device.key,
        slot=slot,
        path=path,
        parents=tuple(parents),
        mode=getattr(device.backing, "diskMode", None) or "",
        uuid=getattr(device.backing, "uuid", None) or "",
    )
