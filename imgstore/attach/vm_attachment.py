"""Disks on virtual machines of vSphere, as users see them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class VmAttachment:
    """A disk on a virtual machine, or one that it was not found to have.

    Attributes:
        name: of the device, ``image/REF``, ``container/NAME`` or ``volume/NAME``; empty where none of the store has the file.
        path: its file, as ``[DATASTORE] path``.
        mode: ``persistent``, ``independent_persistent`` or ``independent_nonpersistent``.
        bus: number of its SCSI controller; None without a disk, or on another kind of controller.
        unit: its number there; None likewise.
        key: of the device on the machine; None without a disk.
        uuid: hex digits in groups, or empty. With ``disk.EnableUUID`` set on the machine, a Linux guest finds the disk by the digits:
            ``/dev/disk/by-id/wwn-0x<digits>``.
        was_there: the machine had it before.
    """

    name: str
    path: str
    mode: str
    bus: int | None
    unit: int | None
    key: int | None
    uuid: str
    was_there: bool

    @property
    def guest_path(self) -> str:
        """Where a Linux guest has it, one file for each controller that has the unit; empty where that cannot be told.

        The controller's place on the PCI bus, for which the ``*`` stands, is known when the machine runs; the unit is the SCSI target.
        """
        return "" if self.unit is None else f"/dev/disk/by-path/pci-*-scsi-0:0:{self.unit}:0"


@dataclass(frozen=True, slots=True)
class VmReport:
    """What became of the disks of a machine.

    Attributes:
        attachments: in the order in which they were asked for.
        protection_failure: why the vCenter could not be told to refuse to destroy the machine as long as it has disks of the store, or
            to permit it when it has none any more; else empty. To destroy a machine deletes the disks that it has, those of images too.
    """

    attachments: tuple[VmAttachment, ...]
    protection_failure: str
