"""What machines have, and what is asked to be changed, in pyVmomi's own objects."""

from __future__ import annotations

import pytest

from imgstore.attach.scsi import Controller, Slot
from imgstore.attach.vm_devices import (
    DiskMode,
    WantedDisk,
    added_controller,
    added_disk,
    read_devices,
    removed_disk,
)
from imgstore.vsphere.machine_disks import is_same_file
from imgstore.vsphere.soap import vim

device = vim.vm.device
Flat = device.VirtualDisk.FlatVer2BackingInfo

TOP = "[DS] store/disks/top.vmdk"
WEB = "[DS] store/containers/web/web.vmdk"


def disk(key: int, controller: int, unit: int | None, backing: object) -> vim.vm.device.VirtualDisk:
    return device.VirtualDisk(key=key, controllerKey=controller, unitNumber=unit, backing=backing)


def flat(path: str, mode: str = "persistent", parent: vim.vm.device.VirtualDisk.FlatVer2BackingInfo | None = None) -> object:
    return Flat(fileName=path, diskMode=mode, parent=parent, uuid="6000C29a-0000-0000-0000-000000000001")


def test_every_kind_of_device_is_read() -> None:
    found = read_devices(
        [
            device.VirtualIDEController(key=200, busNumber=0),
            device.VirtualLsiLogicController(key=1000, busNumber=0, scsiCtlrUnitNumber=7),
            device.ParaVirtualSCSIController(key=1001, busNumber=1),
            device.ParaVirtualSCSIController(key=1002, busNumber=2, scsiCtlrUnitNumber=4),
            device.VirtualNVMEController(key=31000, busNumber=0),
            device.VirtualCdrom(key=3000, controllerKey=1001, unitNumber=3),
            device.VirtualKeyboard(key=600),
            disk(2000, 1001, 0, flat(WEB, parent=Flat(fileName=TOP, parent=Flat(fileName="[DS] store/disks/scratch.vmdk")))),
            disk(2001, 31000, 0, device.VirtualDisk.SeSparseBackingInfo(fileName="[DS] a.vmdk", diskMode="append")),
            disk(2002, 200, None, device.VirtualDisk.PartitionedRawDiskVer2BackingInfo(deviceName="vmhba0")),
        ]
    )
    pvscsi = Controller(1001, 1)
    assert found.controllers == (Controller(1000, 0, paravirtual=False), pvscsi, Controller(1002, 2, own_unit=4))
    assert found.taken == {(1001, 3), (1001, 0), (31000, 0)}
    web, nvme, raw = found.disks
    assert (web.key, web.slot, web.path, web.mode) == (2000, Slot(pvscsi, 0), WEB, "persistent")
    assert web.parents == (TOP, "[DS] store/disks/scratch.vmdk")
    assert web.uuid == "6000C29a-0000-0000-0000-000000000001"
    assert (nvme.slot, nvme.path, nvme.parents, nvme.uuid) == (None, "[DS] a.vmdk", (), "")
    assert (raw.slot, raw.path, raw.mode) == (None, "", "")


def test_an_image_below_a_container_is_not_attached() -> None:
    found = read_devices([disk(2000, 1000, 0, flat(WEB, parent=Flat(fileName=TOP)))])
    assert found.find(WantedDisk("image/app", TOP, DiskMode.INDEPENDENT_NONPERSISTENT)) is None
    assert found.find(WantedDisk("container/web", WEB, DiskMode.PERSISTENT)) == found.disks[0]


def test_what_a_snapshot_put_over_a_container_is_the_container() -> None:
    found = read_devices([disk(2000, 1000, 0, flat(WEB.replace("web.", "web-000001."), parent=Flat(fileName=WEB)))])
    assert found.find(WantedDisk("container/web", WEB, DiskMode.PERSISTENT)) == found.disks[0]


@pytest.mark.parametrize(
    ("other", "is_same"),
    [
        (WEB, True),
        ("[DS] store/containers/web/web2.vmdk", False),
        ("[DS2] store/containers/web/web.vmdk", False),
        ("[DS] other/containers/web/web.vmdk", False),
        ("[DS] 8a7ddd53-0a5a-b5b3-4d6b-001b21168828/containers/web/web.vmdk", True),
        ("[DS] 8a7ddd53-0a5a-b5b3-4d6b-001b21168828/web.vmdk", False),
        ("[DS2] 8a7ddd53-0a5a-b5b3-4d6b-001b21168828/containers/web/web.vmdk", False),
        ("", False),
        ("/vmfs/volumes/DS/store/containers/web/web.vmdk", False),
    ],
)
def test_names_of_one_file(other: str, is_same: bool) -> None:
    assert is_same_file(WEB, other) is is_same
    assert is_same_file(other, WEB) is is_same


def test_a_new_disk_on_a_new_controller() -> None:
    controller = Controller(-2, 1)
    change = added_controller(controller)
    assert (change.operation, change.fileOperation) == ("add", None)
    assert (change.device.key, change.device.busNumber, change.device.sharedBus) == (-2, 1, "noSharing")

    wanted = WantedDisk("container/web", WEB, DiskMode.PERSISTENT, parent=TOP)
    change = added_disk(wanted, Slot(controller, 8), 3)
    assert (change.operation, change.fileOperation) == ("add", "create")
    assert (change.device.controllerKey, change.device.unitNumber) == (-2, 8)
    assert change.device.key < 0
    backing = change.device.backing
    assert (backing.fileName, backing.diskMode, backing.parent.fileName) == (WEB, "persistent", TOP)


def test_no_change_makes_or_removes_files_of_a_disk_that_is_there() -> None:
    change = added_disk(WantedDisk("image/app", TOP, DiskMode.INDEPENDENT_NONPERSISTENT), Slot(Controller(1000, 0), 0), 0)
    assert (change.fileOperation, change.device.backing.parent) == (None, None)
    assert removed_disk(change.device).fileOperation is None
