"""Places for disks on the SCSI controllers of a virtual machine.

A machine has up to four SCSI controllers, on the buses 0 to 3, whatever their kinds. Disks go to VMware's paravirtual one alone: the other
kinds, and what is on IDE, SATA and NVMe, belong to whoever set the machine up, and are left as they are.

Source: vSphere Virtual Machine Administration, "SCSI and SATA Storage Controller Conditions, Limitations, and Compatibility";
vSphere Web Services API, ``VirtualSCSIController``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from imgstore.errors import InUseError

CONTROLLERS_MAX = 4
UNITS = 16
"""Units of a controller that every version of virtual hardware has, 0 to 15; the controller itself is one of them, so 15 disks.

A paravirtual controller has 65 from hardware version 14 (ESXi 6.7) on. Those are not handed out: a machine that moves to an older host, and
tools that know 16, keep working, and four controllers take 60 disks. Disks that are there already are seen whatever unit they have.
"""
OWN_UNIT = 7
"""Where a controller sits on its own bus, unless it says otherwise (``scsiCtlrUnitNumber``)."""


class NoFreeUnitError(InUseError):
    """All units that disks could get are taken."""


@dataclass(frozen=True, slots=True)
class Controller:
    """A SCSI controller.

    Attributes:
        key: of the device; negative as long as the machine does not have it.
        bus: 0 to 3; the guest numbers its controllers in this order.
        paravirtual: whether it is of VMware's own kind (pvscsi).
        own_unit: the unit that no disk can have.
    """

    key: int
    bus: int
    paravirtual: bool = True
    own_unit: int = OWN_UNIT


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one disk is: a unit of a controller."""

    controller: Controller
    unit: int

    def __str__(self) -> str:
        return f"{self.controller.bus}:{self.unit}"


def choose_slots(
    machine: str, controllers: Collection[Controller], taken: Collection[tuple[int, int]], count: int
) -> tuple[list[Controller], list[Slot]]:
    """Chooses the lowest free units of the paravirtual controllers, on the lowest bus first, and adds controllers when those are full.

    Args:
        machine: its name, for the error.
        controllers: all SCSI controllers that it has.
        taken: key of the controller and unit of everything that sits on one.

    Returns:
        The controllers to add, with negative keys, and as many slots as asked for.

    Raises:
        NoFreeUnitError: they do not fit.
    """
    buses = {controller.bus for controller in controllers}
    addable = [Controller(-1 - bus, bus) for bus in range(CONTROLLERS_MAX) if bus not in buses]
    addable = addable[: max(CONTROLLERS_MAX - len(controllers), 0)]
    there = sorted((controller for controller in controllers if controller.paravirtual), key=lambda controller: controller.bus)
    slots = [slot for controller in (*there, *addable) for slot in _free(controller, taken)]
    if len(slots) < count:
        raise NoFreeUnitError(
            f"VM {machine}: {count} more disks do not fit: its {len(there)} paravirtual SCSI controllers have {_count(there, taken)} free "
            f"units, and {len(addable)} controllers can be added to the {len(controllers)} of {CONTROLLERS_MAX} that it has",
            hint=f"a paravirtual controller takes {UNITS - 1} disks; detach some, or replace controllers of other kinds",
        )
    slots = slots[:count]
    return [controller for controller in addable if any(slot.controller is controller for slot in slots)], slots


def _free(controller: Controller, taken: Collection[tuple[int, int]]) -> Iterable[Slot]:
    for unit in range(UNITS):
        if unit != controller.own_unit and (controller.key, unit) not in taken:
            yield Slot(controller, unit)


def _count(controllers: Iterable[Controller], taken: Collection[tuple[int, int]]) -> int:
    return sum(1 for controller in controllers for _ in _free(controller, taken))
