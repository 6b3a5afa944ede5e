"""Disks on machines of a vcsim, looked at by pyVmomi alone."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from imgstore.attach import vsphere
from imgstore.attach.scsi import NoFreeUnitError
from imgstore.attach.vm_devices import DiskMode, WantedDisk
from imgstore.attach.vsphere import VsphereMachine, find_vm
from imgstore.errors import AlreadyExistsError, InUseError, InvalidError, NotFoundError
from imgstore.vsphere.locations import VmLocation
from imgstore.vsphere.session import VsphereSession
from imgstore.vsphere.soap import vim
from tests.servers.authority import Authority
from tests.servers.vcenter import Vcenter
from tests.servers.vcsim import DATACENTER, DATASTORE, Vcsim, vcsim

VM = "DC0_H0_VM0"
IMAGE = WantedDisk("image/app", f"[{DATASTORE}] a store/disks/top.vmdk", DiskMode.INDEPENDENT_NONPERSISTENT)
CONTAINER = WantedDisk("container/web", f"[{DATASTORE}] a store/containers/web/web.vmdk", DiskMode.PERSISTENT, parent=IMAGE.path)
VOLUME = WantedDisk("volume/data", f"[{DATASTORE}] a store/volumes/data/data.vmdk", DiskMode.INDEPENDENT_PERSISTENT)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vcsim]:
    with vcsim(tmp_path_factory.mktemp("vcsim") / "run") as running:
        yield running


@pytest.fixture(scope="module")
def datastore(server: Vcsim) -> Path:
    return server.directory()


@pytest.fixture
def session(server: Vcsim) -> Iterator[VsphereSession]:
    with server.session() as session:
        yield session


@pytest.fixture
def store(datastore: Path) -> Iterator[Path]:
    """Directory of a store with the disks of an image and a volume, and a directory for a container's."""
    directory = datastore / "a store"
    for name in ("disks/top", "disks/other", "volumes/data/data"):
        put_disk(directory / f"{name}.vmdk")
    (directory / "containers/web").mkdir(parents=True)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def machine(session: VsphereSession, store: Path) -> Iterator[Callable[..., VsphereMachine]]:
    """A machine as it was before, afterwards."""
    vm = find_vm(session, location(VM))
    before = {device.key for device in vm.config.hardware.device}

    def get(own_session: VsphereSession = session) -> VsphereMachine:
        return VsphereMachine(own_session, location(VM), "imgstore-test", lambda path: path.startswith(f"[{DATASTORE}] a store/"))

    yield get
    added = [device for device in vm.config.hardware.device if device.key not in before]
    reconfigure(session, vm, [vim.vm.device.VirtualDeviceSpec(operation="remove", device=device) for device in added])


def put_disk(path: Path) -> None:
    """What vcsim takes for a disk: a descriptor, and an extent ``-flat`` whatever the form."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"# Disk DescriptorFile")
    path.with_name(f"{path.stem}-flat.vmdk").write_bytes(b"")


def location(path: str, datacenter: str = DATACENTER) -> VmLocation:
    return VmLocation("127.0.0.1", 443, datacenter, path)


def reconfigure(session: VsphereSession, vm: vim.VirtualMachine, changes: list[Any]) -> None:
    session.wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=changes)), "the test")


def seen(session: VsphereSession) -> dict[str, tuple[int, int, str, str | None]]:
    """By file: bus, unit, mode and parent of each disk, as another session has them."""
    hardware = find_vm(session, location(VM)).config.hardware.device
    buses = {device.key: device.busNumber for device in hardware if isinstance(device, vim.vm.device.ParaVirtualSCSIController)}
    return {
        device.backing.fileName: (
            buses[device.controllerKey],
            device.unitNumber,
            device.backing.diskMode,
            device.backing.parent and device.backing.parent.fileName,
        )
        for device in hardware
        if isinstance(device, vim.vm.device.VirtualDisk)
    }


def test_disks_come_and_go(server: Vcsim, session: VsphereSession, store: Path, machine: Callable[..., VsphereMachine]) -> None:
    with server.session() as other:
        own = seen(other)
        wanted = [IMAGE, CONTAINER, VOLUME]
        first = machine().attach(wanted)
        assert [(disk.path, was_there) for disk, was_there in first] == [(disk.path, False) for disk in wanted]
        assert seen(other) == own | {
            IMAGE.path: (0, 1, "independent_nonpersistent", None),
            CONTAINER.path: (0, 2, "persistent", IMAGE.path),
            VOLUME.path: (0, 3, "independent_persistent", None),
        }
        assert (store / "containers/web/web.vmdk").exists()

        again = machine().attach([IMAGE, CONTAINER, VOLUME])
        assert [disk for disk, _ in again] == [disk for disk, _ in first]
        assert all(was_there for _, was_there in again)
        assert machine().disks() == [disk for disk, _ in first]

        gone = machine().detach([VOLUME, IMAGE])
        assert [disk.key if disk else None for disk in gone] == [first[2][0].key, first[0][0].key]
        assert machine().detach([VOLUME, CONTAINER])[0] is None
        assert seen(other) == own
        assert machine().disks() == []
    kept = sorted(path.name for path in store.rglob("*.vmdk") if "-flat" not in path.name)
    assert kept == ["data.vmdk", "other.vmdk", "top.vmdk", "web.vmdk"]


def test_a_disk_that_is_there_is_not_made_again(store: Path, machine: Callable[..., VsphereMachine]) -> None:
    put_disk(store / "containers/web/web.vmdk")
    with pytest.raises(AlreadyExistsError, match=r"VM DC0_H0_VM0: cannot attach container/web: .*web-flat\.vmdk"):
        machine().attach([CONTAINER])
    [(disk, _)] = machine().attach([WantedDisk(CONTAINER.name, CONTAINER.path, CONTAINER.mode)])
    assert disk.path == CONTAINER.path


def test_more_disks_than_a_controller_takes(session: VsphereSession, store: Path, machine: Callable[..., VsphereMachine]) -> None:
    disks = []
    for number in range(60):
        put_disk(store / f"volumes/v{number}/v{number}.vmdk")
        path = f"[{DATASTORE}] a store/volumes/v{number}/v{number}.vmdk"
        disks.append(WantedDisk(f"volume/v{number}", path, DiskMode.INDEPENDENT_PERSISTENT))
    machine().attach(disks[:20])
    places = [seen(session)[disk.path][:2] for disk in disks[:20]]
    assert places == [*((0, unit) for unit in range(1, 16) if unit != 7), *((1, unit) for unit in range(6))]
    with pytest.raises(NoFreeUnitError, match="40 more disks do not fit: its 2 paravirtual SCSI controllers have 9 free units"):
        machine().attach(disks)
    assert len(machine().disks()) == 20
    machine().attach(disks[:59])
    assert {bus for bus, *_ in seen(session).values()} == {0, 1, 2, 3}


def test_a_missing_file_attaches_none(session: VsphereSession, machine: Callable[..., VsphereMachine]) -> None:
    before = seen(session)
    missing = WantedDisk("volume/none", f"[{DATASTORE}] a store/volumes/none/none.vmdk", DiskMode.INDEPENDENT_PERSISTENT)
    with pytest.raises(NotFoundError, match=r"^VM DC0_H0_VM0: cannot attach volume/none: .*volumes/none/none"):
        machine().attach([missing])
    assert seen(session) == before


def test_another_mode_is_not_changed_under_a_guest(machine: Callable[..., VsphereMachine]) -> None:
    machine().attach([VOLUME])
    with pytest.raises(InUseError, match=r"has volume/data at 0:1 in mode independent_persistent, not independent_nonpersistent"):
        machine().attach([WantedDisk(VOLUME.name, VOLUME.path, DiskMode.INDEPENDENT_NONPERSISTENT)])


def test_a_snapshot_of_the_machine_hides_no_container(session: VsphereSession, machine: Callable[..., VsphereMachine]) -> None:
    """After it the machine writes another file, and ours is the parent of that."""
    [(disk, _)] = machine().attach([CONTAINER])
    vm = find_vm(session, location(VM))
    [device] = [device for device in vm.config.hardware.device if device.key == disk.key]
    put_disk(Path(session.datastore(session.datacenter(), DATASTORE).info.url) / "a store/containers/web/web-000001.vmdk")
    device.backing.parent = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName=CONTAINER.path, diskMode="persistent")
    device.backing.fileName = CONTAINER.path.replace("web.vmdk", "web-000001.vmdk")
    reconfigure(session, vm, [vim.vm.device.VirtualDeviceSpec(operation="edit", device=device)])
    [(now, was_there)] = machine().attach([CONTAINER])
    assert was_there
    assert now.path.endswith("web-000001.vmdk")


def test_many_attach_to_one_machine(server: Vcsim, store: Path, machine: Callable[..., VsphereMachine]) -> None:
    failures: list[BaseException] = []

    def attach(number: int) -> None:
        path = f"[{DATASTORE}] a store/volumes/v{number}/v{number}.vmdk"
        try:
            with server.session() as own:
                machine(own).attach([WantedDisk(f"volume/v{number}", path, DiskMode.INDEPENDENT_PERSISTENT)])
        except BaseException as error:
            failures.append(error)

    for number in range(6):
        put_disk(store / f"volumes/v{number}/v{number}.vmdk")
    threads = [threading.Thread(target=attach, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    units = [disk.slot.unit for disk in machine().disks() if disk.slot is not None]
    assert units == [1, 2, 3, 4, 5, 6]


def test_a_lost_session_is_taken_up_again(server: Vcsim, machine: Callable[..., VsphereMachine]) -> None:
    it = machine()
    it.attach([IMAGE])
    assert server.end_sessions() >= 1
    [(_, was_there)] = it.attach([IMAGE])
    assert was_there


def test_machines_are_found_by_name_and_by_path(session: VsphereSession) -> None:
    folder = session.datacenter(DATACENTER).vmFolder
    vm = find_vm(session, location("DC0_C0_RP0_VM1"))
    nested = folder.CreateFolder("a folder")
    session.wait(nested.MoveIntoFolder_Task([vm]), "the test")
    assert find_vm(session, location("DC0_C0_RP0_VM1")) == vm
    assert find_vm(session, location("a folder/DC0_C0_RP0_VM1", "")) == vm
    for path in ("no-such", "a folder/no-such", "no folder/DC0_C0_RP0_VM1", "a folder"):
        with pytest.raises(NotFoundError, match=f"datacenter DC0 has no VM {path}$"):
            find_vm(session, location(path))
    with pytest.raises(NotFoundError, match="no datacenter 'DC9'; it has DC0"):
        find_vm(session, location(VM, "DC9"))

    second = folder.CreateFolder("second")
    config = vim.vm.ConfigSpec(name="DC0_C0_RP0_VM1", guestId="otherGuest", files=vim.vm.FileInfo(vmPathName=f"[{DATASTORE}]"))
    session.wait(second.CreateVM_Task(config, vm.resourcePool), "the test")
    with pytest.raises(InvalidError, match="2 have this name: DC0/vm/a folder/DC0_C0_RP0_VM1, DC0/vm/second/DC0_C0_RP0_VM1"):
        find_vm(session, location("DC0_C0_RP0_VM1"))


@pytest.fixture(scope="module")
def vcenter(server: Vcsim, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vcenter]:
    with Vcenter(server, Authority(tmp_path_factory.mktemp("vcenter"))) as running:
        yield running


def test_a_machine_with_disks_is_not_destroyed(vcenter: Vcenter, store: Path, machine: Callable[..., VsphereMachine]) -> None:
    with VsphereSession(vcenter.login) as session:
        it = machine(session)
        assert it.forbid_destroy() == ""
        it.attach([IMAGE, VOLUME])
        vm = find_vm(session, location(VM))
        with pytest.raises(vim.fault.MethodDisabled, match="The method is disabled by 'imgstore-test'"):
            vm.Destroy_Task()
        it.detach([VOLUME])
        assert it.allow_destroy() == ""
        assert vcenter.disabled == {(vm._GetMoId(), "Destroy_Task"): {"imgstore-test"}}
        it.detach([IMAGE])
        assert it.allow_destroy() == ""
        assert vcenter.disabled == {(vm._GetMoId(), "Destroy_Task"): set()}


def test_another_task_is_waited_for(
    vcenter: Vcenter, store: Path, machine: Callable[..., VsphereMachine], monkeypatch: pytest.MonkeyPatch
) -> None:
    with VsphereSession(vcenter.login) as session:
        it = machine(session)
        vcenter.busy = 2
        [(_, was_there)] = it.attach([IMAGE])
        assert not was_there
        vcenter.busy = 1
        assert it.detach([IMAGE]) != [None]
        assert vcenter.busy == 0

        monkeypatch.setattr(vsphere, "PATIENCE", 0.05)
        vcenter.busy = 1
        with pytest.raises(
            InUseError, match=r"^VM DC0_H0_VM0: cannot attach image/app: TaskInProgress: another task is running on it$"
        ):
            it.attach([IMAGE])
        assert it.disks() == []


def test_who_cannot_protect_says_why(
    server: Vcsim, vcenter: Vcenter, store: Path, machine: Callable[..., VsphereMachine]
) -> None:
    assert "no vmomi type defined for 'DisableMethods'" in machine().forbid_destroy()  # vcsim
    assert machine().allow_destroy() == ""
    vcenter.forbids = True
    with VsphereSession(vcenter.login) as session:
        assert machine(session).forbid_destroy() == "Permission to perform this operation was denied."
    vcenter.forbids = False


def test_a_host_cannot_protect(tmp_path: Path) -> None:
    with vcsim(tmp_path / "esx", "-esx") as host, host.session() as session:
        it = VsphereMachine(session, location("ha-host_VM0", "ha-datacenter"), "imgstore-test", lambda path: False)
        assert it.forbid_destroy() == f"vSphere 127.0.0.1:{host.port} is no vCenter, and hosts cannot forbid it"
        assert it.allow_destroy() == ""
