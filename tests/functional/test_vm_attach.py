"""Disks of a store on a vSphere datastore, on the machines of a vcsim: as we say, and as pyVmomi alone sees them."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from imgstore.attach.vsphere import VsphereMachine, find_vm
from imgstore.errors import DeniedError, InUseError, InvalidError, NotFoundError, UnavailableError, UnsupportedError
from imgstore.store import ImageStore
from imgstore.vsphere.locations import VmLocation
from imgstore.vsphere.session import VsphereSession
from imgstore.vsphere.soap import vim
from tests.command_line import REFERENCE, CommandLine, complaint
from tests.servers.authority import Authority
from tests.servers.vcenter import Vcenter
from tests.servers.vcsim import DATACENTER, DATASTORE, Vcsim, vcsim

VM = "DC0_H0_VM0"
IMAGE = "three-layers"


@dataclass(frozen=True)
class VsphereCommandLine(CommandLine):
    server: Vcsim

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, **self.server.environment, "IMGSTORE_STORE": self.server.url("a%20store")}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vcsim]:
    with vcsim(tmp_path_factory.mktemp("vcsim") / "run") as running:
        yield running


@pytest.fixture(scope="module")
def vcenter(server: Vcsim, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vcenter]:
    with Vcenter(server, Authority(tmp_path_factory.mktemp("vcenter"))) as running:
        yield running


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with an image, and beside each disk what vcsim wants to see: an extent ``-flat.vmdk``."""
    directory = tmp_path_factory.mktemp("seeded") / "store"
    with ImageStore.create(str(directory), disk_size=1 << 26) as store:
        store.pull(REFERENCE)
    for disk in list(directory.glob("disks/*.vmdk")):
        disk.with_name(f"{disk.stem}-flat.vmdk").touch()
    return directory


@pytest.fixture
def directory(server: Vcsim, seeded: Path) -> Iterator[Path]:
    """The store on the datastore; afterwards the machine has no disk of it."""
    directory = server.directory() / "a store"
    shutil.copytree(seeded, directory)
    yield directory
    with server.session() as session:
        vm = find_vm(session, VmLocation(server.host, server.port, DATACENTER, VM))
        ours = [device for device in disks_of(vm) if " a store/" in device.backing.fileName]
        changes = [vim.vm.device.VirtualDeviceSpec(operation="remove", device=device) for device in ours]
        session.wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=changes)), "the test")
    shutil.rmtree(directory)


@pytest.fixture
def store(server: Vcsim, directory: Path) -> Iterator[ImageStore]:
    with ImageStore.open(server.url("a store"), create=False, vsphere=server.login) as store:
        yield store


def disks_of(vm: vim.VirtualMachine) -> list[vim.vm.device.VirtualDisk]:
    return [device for device in vm.config.hardware.device if isinstance(device, vim.vm.device.VirtualDisk)]


def seen(server: Vcsim) -> dict[str, tuple[int, str, str | None]]:
    """By file below the store: unit, mode and parent of each disk of it that the machine has, as a session of the test's has them."""
    with server.session() as session:
        vm = find_vm(session, VmLocation(server.host, server.port, DATACENTER, VM))
        prefix = f"[{DATASTORE}] a store/"
        return {
            device.backing.fileName.removeprefix(prefix): (
                device.unitNumber,
                device.backing.diskMode,
                device.backing.parent and device.backing.parent.fileName.removeprefix(prefix),
            )
            for device in disks_of(vm)
            if device.backing.fileName.startswith(prefix)
        }


def test_a_session_at_the_command_line(server: Vcsim, store: ImageStore, directory: Path) -> None:
    program = VsphereCommandLine(directory, server)
    url = f"vsphere://{server.host}:{server.port}/{DATACENTER}/vm/{VM}"
    container = program.text("container", "create", "--name", "web", IMAGE, "serve").strip()
    top = store.image(IMAGE).disks[-1].removeprefix(f"[{DATASTORE}] a store/")
    own = f"containers/{container}/{container}.vmdk"
    assert not (directory / own).exists()

    done = program.run("attach", "web", f"image/{IMAGE}", "volume/data", "--make-volumes", "--vm", url)
    assert done.returncode == 0, done.stderr
    assert b"imgstore: warning: nothing keeps VM" in done.stderr  # vcsim cannot
    lines = [line.split() for line in done.stdout.decode().splitlines()[1:]]
    assert [(line[0], line[1], line[3], line[-1]) for line in lines] == [
        ("container/web", "0:1", "/dev/disk/by-path/pci-*-scsi-0:0:1:0", "attached"),
        (f"image/{IMAGE}", "0:2", "/dev/disk/by-path/pci-*-scsi-0:0:2:0", "attached"),
        ("volume/data", "0:3", "/dev/disk/by-path/pci-*-scsi-0:0:3:0", "attached"),
    ]
    attached = {
        own: (1, "persistent", top),
        top: (2, "independent_nonpersistent", None),
        "volumes/data/data.vmdk": (3, "independent_persistent", "disks/scratch.vmdk"),
    }
    assert seen(server) == attached

    again = program.json("attach", "web", "volume/data", "--vm", VM, "--no-protect")
    assert [(disk["name"], disk["unit"], disk["was_there"]) for disk in again["disks"]] == [
        ("container/web", 1, True),
        ("volume/data", 3, True),
    ]
    assert again["protection_failure"] == ""
    listed = [line.split()[:2] for line in program.text("attachments", "--vm", VM).splitlines()[1:]]
    assert listed == [["container/web", "0:1"], [f"image/{IMAGE}:latest", "0:2"], ["volume/data", "0:3"]]
    assert seen(server) == attached

    gone = program.text("detach", "web", "volume/data", "volume/never", "--vm", url)
    assert [line.split(maxsplit=1) for line in gone.splitlines()[1:]] == [
        ["container/web", "detached"],
        ["volume/data", "detached"],
        ["volume/never", "was not attached"],
    ]
    assert list(seen(server)) == [top]
    assert (directory / own).exists()


def test_a_container_is_removed_with_its_disk_when_no_machine_has_it(store: ImageStore, directory: Path) -> None:
    web = store.create_container(IMAGE, name="web")
    store.attach_to_vm(["container/web"], VM)
    with pytest.raises(InUseError, match=f"^container web: .*{web.id}.vmdk: VM {VM} has it$"):
        store.remove_container("web")
    store.detach_from_vm(["container/web"], VM)
    assert list(store.check()) == []
    store.remove_container("web")
    assert list((directory / "containers").iterdir()) == []
    assert list(store.check()) == []


def test_bad_words(server: Vcsim, directory: Path) -> None:
    program = VsphereCommandLine(directory, server)
    image = f"image/{IMAGE}"
    assert "--nbd does not go with --vm" in program.fails(2, "attach", image, "--vm", VM, "--nbd", "unix:///x")
    assert "--make-volumes does not go with" in program.fails(2, "attach", image, "--qmp", "/x", "--make-volumes")
    assert "--qmp and --vm exclude each other" in program.fails(2, "detach", image, "--qmp", "/x", "--vm", VM)


def test_wrong_credentials(server: Vcsim) -> None:
    login = replace(server.login, password="wrong")
    with pytest.raises(DeniedError, match="wrong user name or password"):
        ImageStore.open(server.url("a store"), vsphere=login)


def test_bad_names(store: ImageStore, server: Vcsim, directory: Path) -> None:
    web = store.create_container(IMAGE, name="web")
    for names, error, words in (
        ([], InvalidError, "no disk is named"),
        (["container/nobody"], NotFoundError, "No such container: nobody"),
        (["volume/data"], NotFoundError, "there is no such disk of volume data"),
        (["container/web", f"container/{web.id}"], InvalidError, "is the disk of container/web too"),
        (["volume/data.json"], InvalidError, "cannot be called that on a vSphere datastore"),
        (["volume/a/b"], InvalidError, "includes invalid characters"),
        (["web"], InvalidError, "has no kind that is known"),
    ):
        with pytest.raises(error, match=words):
            store.attach_to_vm(names, VM)
    with pytest.raises(InvalidError, match="is not on the server"):
        store.attach_to_vm(["container/web"], f"vsphere://elsewhere/{DATACENTER}/vm/{VM}")
    with pytest.raises(NotFoundError, match="datacenter DC0 has no VM none"):
        store.attach_to_vm(["container/web"], "none")
    (directory / "disks/scratch.vmdk").unlink()
    with pytest.raises(NotFoundError, match=r"disks/scratch\.vmdk: is not there, and volume/data is to stand on it"):
        store.attach_to_vm(["volume/data"], VM, make_volumes=True)
    assert seen(server) == {}


def test_a_store_elsewhere_has_no_machines() -> None:
    with ImageStore.open("mem://") as store, pytest.raises(UnsupportedError, match="mem://: vSphere takes disks from its own"):
        store.vm_attachments(VM)


def test_more_disks_than_one_controller_takes(store: ImageStore) -> None:
    report = store.attach_to_vm([f"volume/v{number}" for number in range(17)], VM, make_volumes=True)
    assert [(disk.bus, disk.unit) for disk in report.attachments[-4:]] == [(0, 15), (1, 0), (1, 1), (1, 2)]


def test_modes(store: ImageStore, server: Vcsim) -> None:
    names = ["container/web", "container/fixed", "container/web2?snapshot", "volume/data?snapshot", f"image/{IMAGE}?snapshot"]
    store.create_container(IMAGE, name="web")
    store.create_container(IMAGE, name="web2")
    store.create_container(IMAGE, name="fixed", read_only=True)
    report = store.attach_to_vm(names, VM, make_volumes=True)
    assert [disk.mode for disk in report.attachments] == ["persistent", *["independent_nonpersistent"] * 4]
    with pytest.raises(InUseError, match="has volume/data at 0:4 in mode independent_nonpersistent, not independent_persistent"):
        store.attach_to_vm(["volume/data"], VM)


def test_a_lost_session(store: ImageStore, server: Vcsim) -> None:
    assert store.vm_attachments(VM) == []
    assert server.end_sessions() >= 1
    store.attach_to_vm([f"image/{IMAGE}"], VM)
    assert server.end_sessions() >= 1
    assert [disk.name for disk in store.vm_attachments(VM)] == [f"image/{IMAGE}:latest"]


def test_a_disk_that_a_machine_has_is_not_removed(store: ImageStore, directory: Path) -> None:
    disks = sorted(directory.glob("disks/*.vmdk"))
    store.attach_to_vm([f"image/{IMAGE}"], VM)
    store.remove(IMAGE)
    store.prune()
    assert sorted(directory.glob("disks/*.vmdk")) == disks
    [disk] = store.vm_attachments(VM)
    assert disk.name == ""
    with pytest.raises(InvalidError, match="is no disk of the store at"):
        store.detach_from_vm([f"[{DATASTORE}] {VM}/disk1.vmdk"], VM)
    [gone] = store.detach_from_vm([disk.path], VM).attachments
    assert gone.was_there
    store.prune()
    assert [path.name for path in directory.glob("disks/*.vmdk") if "-flat" not in path.name] == ["scratch.vmdk"]


def test_destroy_is_refused_as_long_as_disks_are_there(vcenter: Vcenter, directory: Path) -> None:
    login = vcenter.login
    location = f"vsphere://{login.address}/{DATACENTER}/{DATASTORE}/a%20store"
    with ImageStore.open(location, create=False, vsphere=login) as store, VsphereSession(login) as other:
        vm = find_vm(other, VmLocation(login.host, login.port, DATACENTER, VM))
        with pytest.raises(NotFoundError):
            store.attach_to_vm(["volume/data"], VM)
        assert not any(vcenter.disabled.values())
        store.attach_to_vm([f"image/{IMAGE}", "volume/data"], VM, make_volumes=True)
        store.detach_from_vm(["volume/data"], VM)
        with pytest.raises(vim.fault.MethodDisabled, match="The method is disabled by 'imgstore "):
            vm.Destroy_Task()
        assert store.detach_from_vm([f"image/{IMAGE}"], VM).protection_failure == ""
        assert not any(vcenter.disabled.values())
        store.attach_to_vm([f"image/{IMAGE}"], VM, protect=False)
        assert not any(vcenter.disabled.values())


def test_it_stays_protected_where_nobody_knows_whether_it_has_them(
    vcenter: Vcenter, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks before the task has begun, which goes on all the same."""

    def lose(*args: object) -> None:
        raise UnavailableError("the connection was cut")

    location = f"vsphere://{vcenter.login.address}/{DATACENTER}/{DATASTORE}/a%20store"
    with ImageStore.open(location, create=False, vsphere=vcenter.login) as store:
        with monkeypatch.context() as patch:
            patch.setattr(VsphereMachine, "_reconfigure", lose)
            with pytest.raises(UnavailableError):
                store.attach_to_vm([f"image/{IMAGE}"], VM)
        assert any(vcenter.disabled.values())
        store.detach_from_vm([f"image/{IMAGE}"], VM)
        assert not any(vcenter.disabled.values())


def test_an_interruption_says_that_it_may_be_done(vcenter: Vcenter, directory: Path) -> None:
    program = VsphereCommandLine(directory, vcenter.vcsim)
    location = f"vsphere://{vcenter.login.address}/{DATACENTER}/{DATASTORE}/a%20store"
    vcenter.busy = 1000
    environment = {**program.environment, "GOVC_TLS_CA_CERTS": vcenter.login.ca_file, "IMGSTORE_STORE": location}
    words = program.words("attach", f"image/{IMAGE}", "--vm", VM)
    running = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while vcenter.busy == 1000 and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=30)
    vcenter.busy = 0
    assert (running.returncode, out) == (130, b"")
    assert f"VM {VM} may have the disks, or get them still" in complaint(err)
    vcenter.disabled.clear()


def test_disks_that_are_to_be_imported_are_not_attached(server: Vcsim, seeded: Path, tmp_path: Path) -> None:
    with (
        ImageStore.open(str(seeded)) as source,
        source.open_target(str(tmp_path / "to"), disk_format="stream-optimized") as target,
    ):
        source.copy_image(IMAGE, target)
    shutil.copytree(tmp_path / "to", server.directory() / "streamed")
    with (
        ImageStore.open(server.url("streamed"), vsphere=server.login) as store,
        pytest.raises(UnsupportedError, match=r"machines cannot have the disk of the image: it is stream-optimized"),
    ):
        store.attach_to_vm([f"image/{IMAGE}"], VM)
