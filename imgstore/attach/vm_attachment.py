"""Disks on virtual machines of vSphere, as users see them."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Change(enum.StrEnum):
    """What became of a disk that was to be attached or detached."""

    ATTACHED = "attached"
    ALREADY_ATTACHED = "already attached"
    DETACHED = "detached"
    NOT_ATTACHED = "not attached"


@dataclass(frozen=True, slots=True)
class VmAttachment:
    """A disk on a virtual machine of vSphere.

    Attributes:
        name: of the device, ``image/REF``, ``container/NAME`` or ``volume/NAME``; empty where none of them has the file.
        path: its file, as ``[DATASTORE] path``.
        mode: ``persistent``, ``independent_persistent`` or ``independent_nonpersistent``.
        bus: number of its SCSI controller; None if the machine does not have the disk, or on another kind of controller.
        unit: its number there; None likewise.
        key: of the device on the machine; None if it is not there.
        uuid: 32 hex digits in groups; with ``disk.EnableUUID`` set on the machine, a Linux guest finds the disk by them without the
            hyphens: ``/dev/disk/by-id/wwn-0x<digits>``.
        change: what was done to it; None where it was only looked at.
    """

    name: str
    path: str
    mode: str
    bus: int | None
    unit: int | None
    key: int | None
    uuid: str
    change: Change | None = None

    @property
    def guest_path(self) -> str:
        """Where a Linux guest has it: one file for each controller; empty where that cannot be told.

        The pvscsi driver counts hosts in the order in which it finds controllers, and has the unit as the SCSI target.
        """
        return "" if self.unit is None else f"/dev/disk/by-path/pci-*-scsi-0:0:{self.unit}:0"


@dataclass(frozen=True, slots=True)
class VmReport:
    """What became of the disks of a machine.

    Attributes:
        attachments: in the order in which they were asked for.
        unprotected: why the machine can be destroyed with the disks that it has, which would delete those of images too; empty if it
            cannot be, or has none.
    """

    attachments: tuple[VmAttachment, ...]
    unprotected: str
