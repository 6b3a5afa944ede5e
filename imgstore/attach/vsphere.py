"""Disks on a virtual machine of vSphere, by ReconfigVM: several in one call, all of them or none.

Nothing here deletes a file: not detaching, and not a failure. What a machine has already is left as it is, so that everything can be done
again after a crash or a lost connection.

Source: vSphere Web Services API, ``VirtualMachine.ReconfigVM_Task``; vmware/vic ``lib/portlayer/storage`` and ``pkg/vsphere/disk``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias
from urllib.parse import unquote

from imgstore.attach.protection import allow_destroy, forbid_destroy
from imgstore.attach.scsi import choose_slots
from imgstore.attach.vm_devices import (
    VmDevices,
    VmDisk,
    WantedDisk,
    added_controller,
    added_disk,
    read_devices,
    removed_disk,
)
from imgstore.errors import ImgstoreError, InUseError, InvalidError, NotFoundError, UnavailableError
from imgstore.vsphere.locations import VmLocation
from imgstore.vsphere.session import VsphereSession
from imgstore.vsphere.soap import vim, vmodl

PATIENCE = 60.0
"""Seconds for which other tasks on the machine are waited for: a snapshot with memory, a migration that ends."""

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0

_PASSING = (vim.fault.TaskInProgress, vim.fault.ConcurrentAccess)
_LOCKED = "msg.fileio.lock"
"""Key of the message by which a host says that another has the file, whatever the fault around it is."""

_Change: TypeAlias = vim.vm.device.VirtualDeviceSpec


class VsphereMachine:
    """A virtual machine, and the disks of one store on it.

    Args:
        source: who forbids to destroy it, one for each store.
        is_ours: whether a path is of the store.
    """

    def __init__(self, session: VsphereSession, location: VmLocation, source: str, is_ours: Callable[[str], bool]) -> None:
        self._session = session
        self._vm = find_vm(session, location)
        self._name = location.path
        self._source = source
        self._is_ours = is_ours

    def disks(self) -> list[VmDisk]:
        """The disks of the store that it has, by controller and unit."""
        found = (disk for disk in self._read().disks if self._is_ours(disk.path) or any(map(self._is_ours, disk.parents)))
        return sorted(found, key=lambda disk: (-1, 0) if disk.slot is None else (disk.slot.controller.bus, disk.slot.unit))

    def attach(self, wanted: Sequence[WantedDisk]) -> list[tuple[VmDisk, bool]]:
        """Adds the disks that it lacks, in one reconfiguration, and says of each what it is now, and whether it was there before.

        Raises:
            NoFreeUnitError: they do not fit.
            InUseError: it has one of them in another mode; another machine has one open for writing; or another task ran on the machine
                for longer than `PATIENCE`.
            NotFoundError: a file is not there.
            NoSpaceError, AlreadyExistsError: the file of a new disk cannot be made.
        """
        looks: list[dict[WantedDisk, VmDisk]] = []

        def plan() -> tuple[list[_Change], str]:
            devices = self._read()
            looks.append({disk: there for disk in wanted if (there := devices.find(disk)) is not None})
            for disk, there in looks[-1].items():
                self._check_mode(disk, there)
            missing = [disk for disk in wanted if disk not in looks[-1]]
            added, slots = choose_slots(self._name, devices.controllers, devices.taken, len(missing))
            changes = [added_controller(controller) for controller in added]
            changes += [added_disk(disk, slot, number) for number, (disk, slot) in enumerate(zip(missing, slots, strict=True))]
            return changes, f"cannot attach {_names(missing)}"

        self._reconfigure_until_done(plan)
        return [(looks[-1][disk], disk in looks[0]) for disk in wanted]

    def detach(self, wanted: Sequence[WantedDisk]) -> list[VmDisk | None]:
        """Takes the disks from it, in one reconfiguration, and says of each what it was; None where it did not have it.

        Raises:
            InUseError: another task ran on the machine for longer than `PATIENCE`.
        """
        gone: dict[WantedDisk, VmDisk] = {}

        def plan() -> tuple[list[_Change], str]:
            hardware = self._hardware()
            devices = read_devices(hardware)
            found = {disk: there for disk in wanted if (there := devices.find(disk)) is not None}
            gone.update(found)
            keys = {disk.key for disk in found.values()}
            return [removed_disk(device) for device in hardware if device.key in keys], f"cannot detach {_names(found)}"

        self._reconfigure_until_done(plan)
        return [gone.get(disk) for disk in wanted]

    def forbid_destroy(self) -> str:
        """Keeps the vCenter from destroying it; returns why it could not, or an empty string."""
        return forbid_destroy(self._session, self._vm, self._source)

    def allow_destroy(self) -> str:
        """Takes that back, unless it has disks of the store; returns why it could not, or an empty string."""
        return "" if self.disks() else allow_destroy(self._session, self._vm, self._source)

    def _read(self) -> VmDevices:
        return read_devices(self._hardware())

    def _hardware(self) -> list[vim.vm.device.VirtualDevice]:
        path = "config.hardware.device"
        facts = self._session.properties([self._vm], path, what=f"VM {self._name}: its devices cannot be read")[self._vm]
        if path not in facts:
            raise UnavailableError(f"VM {self._name}: has no configuration", hint="its host may be disconnected")
        return list(facts[path])

    def _check_mode(self, wanted: WantedDisk, there: VmDisk) -> None:
        if there.mode != wanted.mode:
            raise InUseError(
                f"VM {self._name}: has {wanted.name} at {there.slot} in mode {there.mode}, not {wanted.mode}",
                hint="detach it first",
            )

    def _reconfigure_until_done(self, plan: Callable[[], tuple[list[_Change], str]]) -> None:
        """Does what ``plan`` says until that is nothing, and has it look again when others changed the machine meanwhile.

        Args:
            plan: the changes that are missing, and what it means that they fail.
        """
        deadline = time.monotonic() + PATIENCE
        pause = _FIRST_PAUSE
        failure: ImgstoreError | None = None
        tried: list[tuple[int, int | None, int | None]] = []
        done = False
        while True:
            changes, what = plan()
            if not changes:
                return
            what = f"VM {self._name}: {what}"
            if done:
                raise UnavailableError(f"{what}: {self._session.server} says that it was done, and it was not")
            places = [(change.device.key, change.device.controllerKey, change.device.unitNumber) for change in changes]
            # A unit that another took meanwhile makes an invalid device, and so does much else: then nothing has changed.
            if failure is not None and places == tried and not isinstance(failure.__cause__, _PASSING):
                raise failure
            tried = places
            try:
                self._reconfigure(changes, what)
            except ImgstoreError as error:
                failure = _explained(error)
                passes = isinstance(error.__cause__, (*_PASSING, vim.fault.InvalidDeviceSpec))
                if not passes or time.monotonic() + pause > deadline:
                    raise failure from error.__cause__
                failure.__cause__ = error.__cause__
                time.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
            else:
                done = True

    def _reconfigure(self, changes: list[_Change], what: str) -> None:
        spec = vim.vm.ConfigSpec(deviceChange=changes)
        task = self._session.run(lambda: self._vm.ReconfigVM_Task(spec), what)
        self._session.wait(task, what)


def find_vm(session: VsphereSession, location: VmLocation) -> vim.VirtualMachine:
    """A virtual machine, by its path below the datacenter's folder ``vm``, or by its name in whatever folder it is.

    Raises:
        NotFoundError: there is none.
        InvalidError: several have the name.
    """
    datacenter = session.datacenter(location.datacenter)
    above = session.datacenter_path(datacenter)
    what = f"VM {location.path}: cannot look for it"
    content = session.content
    path = f"{above}/vm/{location.path.replace('%', '%25')}"
    found = session.run(lambda: content.searchIndex.FindByInventoryPath(path), what)
    if isinstance(found, vim.VirtualMachine):
        return found
    named = [] if "/" in location.path else _named(session, datacenter, location.path, what)
    if not named:
        raise NotFoundError(f"{session.server}: datacenter {above} has no VM {location.path}")
    if len(named) > 1:
        paths = ", ".join(sorted(map(session.datacenter_path, named)))
        raise InvalidError(
            f"VM {location.path}: {len(named)} have this name: {paths}", hint="say the folder too: .../vm/FOLDER/NAME"
        )
    return named[0]


def _named(session: VsphereSession, datacenter: vim.Datacenter, name: str, what: str) -> list[vim.VirtualMachine]:
    folder = session.properties([datacenter], "vmFolder", what=what)[datacenter]["vmFolder"]
    content = session.content

    def list_machines() -> list[vim.VirtualMachine]:
        view = content.viewManager.CreateContainerView(folder, [vim.VirtualMachine], True)
        try:
            return list(view.view)
        finally:
            view.Destroy()

    names = session.properties(session.run(list_machines, what), "name", what=what)
    return [vm for vm, facts in names.items() if unquote(str(facts.get("name", ""))) == name]


def _names(wanted: Iterable[WantedDisk]) -> str:
    return ", ".join(disk.name for disk in wanted)


def _explained(error: ImgstoreError) -> ImgstoreError:
    """The error with the file that its fault is about; an InUseError where a host says, in whatever fault, that another has the file."""
    fault = error.__cause__
    if not isinstance(fault, vmodl.MethodFault):
        return error
    if isinstance(fault, _PASSING):
        return InUseError(f"{error}: another task is running on it", hint="try again when it has ended")
    messages = fault.faultMessage or ()
    said = [" ".join((message.message or "").split()) for message in messages]
    details = "; ".join(filter(None, [getattr(fault, "file", ""), *said]))
    message = f"{error}: {details}" if details else str(error)
    if isinstance(fault, vim.fault.FileLocked) or any((message.key or "").startswith(_LOCKED) for message in messages):
        return InUseError(message, hint="another virtual machine has the disk open for writing; detach it there")
    return type(error)(message, hint=error.hint)
