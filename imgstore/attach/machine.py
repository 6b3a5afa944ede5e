"""Disks plugged into a machine that runs, and taken out of it, by QEMU's monitor.

A disk is a device and a node of the block layer, both called ``imgstore-<12 hex digits>`` after its own file: who comes again finds them.

Source: QEMU's ``docs/pcie.txt`` (what can be plugged where), ``qapi/qdev.json`` (device_add, device_del, DEVICE_DELETED).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from imgstore.attach.attachment import AttachedDisk
from imgstore.attach.qemu import DeviceModel, SocketAddress, block_nodes, name_serial, nest
from imgstore.attach.qmp import QmpError, QmpInvalidError, QmpMonitor
from imgstore.errors import ImgstoreError, InUseError, UnavailableError, UnsupportedError

RELEASE_SECONDS = 30.0
"""How long a guest may take to let a disk go: by PCI Express it waits 5 seconds, in case somebody presses the button again."""

_STOPPED_SECONDS = 1.0
_UNDO_SECONDS = 5.0
_PERIPHERAL = "/machine/peripheral"
_HINT = (
    "start it with -device pcie-root-port,id=port1,chassis=1,slot=1 and so on, one for each disk, "
    "or with -device virtio-scsi-pci,id=scsi: q35 has no other place for hot-plug"
)


class Place(NamedTuple):
    """Where a disk can be plugged in."""

    driver: str
    bus: str


@dataclass(frozen=True, slots=True)
class PluggedDisk:
    """A disk in a machine that runs.

    Attributes:
        id: of its device and its node in QEMU.
        serial: by which the guest finds it.
        was_there: the machine had it before.
    """

    disk: AttachedDisk
    id: str
    serial: str
    was_there: bool


@dataclass(frozen=True, slots=True)
class UnpluggedDisk:
    """A disk that a machine does not have (any more).

    Attributes:
        was_there: the machine had it before.
    """

    disk: AttachedDisk
    was_there: bool


def plug_id(disk: AttachedDisk) -> str:
    """What the disk's device and node are called in every machine."""
    private = b"?snapshot" if disk.name.snapshot else b""
    return f"imgstore-{hashlib.sha256(os.fsencode(disk.chain[-1]) + private).hexdigest()[:12]}"


class Machine:
    """A machine that runs, by its monitor."""

    def __init__(self, monitor: QmpMonitor) -> None:
        self._monitor = monitor

    def find(self, disks: Sequence[AttachedDisk]) -> dict[str, PluggedDisk]:
        """Those of the disks that were plugged in, by their ids.

        Raises:
            InUseError: the machine has a disk that is to be written under another name, since its start.
        """
        devices = self._children(_PERIPHERAL)
        found = {}
        for disk in disks:
            if plug_id(disk) in devices:
                serial = str(self._property(plug_id(disk), "serial"))
                found[plug_id(disk)] = PluggedDisk(disk, plug_id(disk), serial, was_there=True)
        nodes = self._nodes()
        for disk in disks:
            if not disk.read_only and plug_id(disk) not in nodes and str(disk.chain[-1]) in nodes.values():
                raise InUseError(f"{disk.name}: the machine was started with it")
        return found

    def plug(
        self, disks: Sequence[AttachedDisk], model: DeviceModel | None = None, nbd: SocketAddress | None = None
    ) -> list[PluggedDisk]:
        """Gives the machine disks that it does not have: all of them, or none.

        A crash of ours leaves what was done until then: `find` knows the devices, and `forget` closes the rest.

        Args:
            disks: with their whole chains, unless ``nbd``.
            model: None: virtio-blk-pci where there is room on PCI, else virtio-scsi.
            nbd: the server that has them.

        Raises:
            UnsupportedError: the machine has no place for hot-plug.
            InUseError: the places are all taken; somebody else has a disk open.
            DeniedError: QEMU may not open a file.
            QmpError: QEMU refuses for another reason.
            UnavailableError: it does not answer.
        """
        places = self._choose(len(disks), model)
        plugged: list[PluggedDisk] = []
        with contextlib.ExitStack() as undo:
            for disk in disks:
                name = plug_id(disk)
                with _about(disk):
                    self._monitor.send("blockdev-add", nest(block_nodes(disk, name, nbd)))
                undo.callback(self._undo, "blockdev-del", {"node-name": name})
            undo.callback(self._release_again, plugged)
            for disk, place in zip(disks, places, strict=True):
                name, serial = plug_id(disk), name_serial(disk)
                with _about(disk):
                    self._monitor.execute("device_add", driver=place.driver, bus=place.bus, id=name, drive=name, serial=serial)
                plugged.append(PluggedDisk(disk, name, serial, was_there=False))
            undo.pop_all()
        return plugged

    def unplug(self, disks: Sequence[AttachedDisk], seconds: float = RELEASE_SECONDS) -> list[UnpluggedDisk]:
        """Takes disks out of the machine, once its guest lets them go; what it wrote is in the files then. Unmount them first.

        After an error, and after a crash of ours, calling it again goes on.

        Args:
            seconds: how long the guest may take.

        Raises:
            UnavailableError: the guest does not let one go, or the machine does not answer.
            UnsupportedError: the machine was started with one of them.
        """
        try:
            present = self.find(disks)
        except InUseError as error:
            raise UnsupportedError(str(error), hint="only what was plugged in can be taken out") from None
        self._release(set(present), seconds)
        left = self.forget(disks)
        return [UnpluggedDisk(disk, plug_id(disk) in present or plug_id(disk) in left) for disk in disks]

    def forget(self, disks: Sequence[AttachedDisk]) -> set[str]:
        """Closes disks that no device shows: whose guest let them go after nobody waited any more. Returns their ids."""
        left = {plug_id(disk) for disk in disks} & set(self._nodes())
        for name in left:
            self._monitor.execute("blockdev-del", node_name=name)
        return left

    def _release(self, pending: set[str], seconds: float) -> None:
        if not pending:
            return
        for name in sorted(pending):
            try:
                self._monitor.execute("device_del", id=name)
            except QmpInvalidError as error:
                if "in the process of unplug" not in str(error):
                    raise
        status = self._monitor.execute("query-status")
        if not status.get("running"):  # SCSI needs no guest; on PCI none would answer
            seconds = min(seconds, _STOPPED_SECONDS)
        while pending:
            told = self._monitor.wait_for(lambda event, data: event in _RELEASES and data.get("device") in pending, seconds)
            if told is None or told[0] != "DEVICE_DELETED":
                how = f"did not let it go within {seconds:g} s" if told is None else "refused to let it go"
                raise UnavailableError(
                    f"{', '.join(sorted(pending))}: the guest {how}; the machine is {status.get('status')}",
                    hint="its kernel must run, and know hot-plug (ACPI or PCI Express); the same command waits again",
                )
            pending.remove(told[1]["device"])

    def _release_again(self, plugged: Sequence[PluggedDisk]) -> None:
        with contextlib.suppress(ImgstoreError):
            self._release({disk.id for disk in plugged}, _UNDO_SECONDS)

    def _undo(self, command: str, arguments: dict[str, Any]) -> None:
        with contextlib.suppress(ImgstoreError):
            self._monitor.send(command, arguments)

    def _choose(self, count: int, model: DeviceModel | None) -> list[Place]:
        if not count:
            return []
        devices = self._children(_PERIPHERAL)
        ports = [name for name, kind in devices.items() if kind == "pcie-root-port" and self._property(name, "hotplug")]
        ports.sort(key=lambda name: (len(name), name))
        controllers = [name for name, kind in devices.items() if kind == "virtio-scsi-pci"]
        on_scsi = [Place("scsi-hd", f"{name}.0") for name in controllers[:1]] * count
        on_pci: list[Place] = []
        if model is not DeviceModel.VIRTIO_SCSI:
            driver = (model or DeviceModel.VIRTIO_BLK).value
            on_pci = [Place(driver, port) for port in ports if not self._is_taken(port)]
            if str(self._monitor.execute("qom-get", path="/machine", property="type")).startswith("pc-i440fx"):
                on_pci = [Place(driver, "pci.0")] * count
        places = {None: on_pci + on_scsi, DeviceModel.VIRTIO_SCSI: on_scsi}.get(model, on_pci)
        if len(places) >= count:
            return places[:count]
        if ports and model is not DeviceModel.VIRTIO_SCSI:
            raise InUseError(f"{count} disks, and {len(places)} of the machine's {len(ports)} PCI Express root ports are free")
        raise UnsupportedError(
            f"the machine has no place where a disk could be plugged in as {model or 'virtio-blk-pci'}", hint=_HINT
        )

    def _property(self, device: str, name: str) -> Any:
        return self._monitor.execute("qom-get", path=f"{_PERIPHERAL}/{device}", property=name)

    def _is_taken(self, port: str) -> bool:
        return any(name.startswith("child[") for name in self._properties(f"{_PERIPHERAL}/{port}/{port}"))

    def _children(self, path: str) -> dict[str, str]:
        """Names and types of the objects below."""
        return {
            name: kind.removeprefix("child<").removesuffix(">")
            for name, kind in self._properties(path).items()
            if kind.startswith("child<")
        }

    def _properties(self, path: str) -> dict[str, str]:
        return dict(_texts(self._monitor.execute("qom-list", path=path), "name", "type"))

    def _nodes(self) -> dict[str, str]:
        """Names of the nodes of the block layer, and which file each is."""
        return dict(_texts(self._monitor.execute("query-named-block-nodes", flat=True), "node-name", "file"))


_RELEASES = frozenset({"DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR"})


@contextlib.contextmanager
def _about(disk: AttachedDisk) -> Iterator[None]:
    """QEMU does not say which disk it refuses."""
    try:
        yield
    except QmpError as error:
        raise type(error)(f"{disk.name}: {error}") from None


def _texts(listed: object, first: str, second: str) -> Iterator[tuple[str, str]]:
    for each in listed if isinstance(listed, list) else ():
        if isinstance(each, dict):
            yield str(each.get(first, "")), str(each.get(second, ""))
