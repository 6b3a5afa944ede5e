"""Disks plugged into a real QEMU and taken out again. No guest runs in it: ``tests/functional/test_guest.py`` has those."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgstore.answers import Mount
from imgstore.attach.machine import Machine, plug_id
from imgstore.attach.qemu import DeviceModel, qemu_arguments
from imgstore.attach.qmp import QmpMonitor
from imgstore.errors import InUseError, InvalidError, NotFoundError, UnavailableError, UnsupportedError
from imgstore.store import ImageStore
from tests.command_line import REFERENCE, CommandLine
from tests.tools import need

SCSI = ("-device", "virtio-scsi-pci,id=scsi")
PORTS = ("-device", "pcie-root-port,id=port1,chassis=1,slot=1", "-device", "pcie-root-port,id=port2,chassis=2,slot=2")
NAMES = ("container/web", "image/three-layers")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageStore]:
    with ImageStore.open(str(tmp_path_factory.mktemp("machine") / "a store, with: commas")) as opened:
        opened.pull(REFERENCE)
        opened.create_container("three-layers", name="web", mounts=[Mount("data", "/a", False), Mount("data", "/b", True)])
        yield opened


@contextmanager
def machine(place: Path, *words: str, paused: bool = True) -> Iterator[Path]:
    """QEMU with nothing in it, and the socket of its monitor."""
    need("qemu-system-x86_64")
    command = ["qemu-system-x86_64", *("-accel", "tcg", "-machine", "q35", "-m", "64", "-nodefaults", "-display", "none")]
    command += ["-qmp", f"unix:{place / 'qmp'},server=on,wait=off", *(["-S"] if paused else []), *words]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 30
        while not listens(place / "qmp"):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.02)
        yield place / "qmp"
    finally:
        process.kill()
        _, said = process.communicate()
    assert said == b""


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def inside(monitor: QmpMonitor) -> tuple[list[str], list[str]]:
    """The named nodes and the devices with ids of a machine, but for its ports and controllers."""
    nodes = [node["node-name"] for node in monitor.execute("query-named-block-nodes", flat=True)]
    devices = [device["name"] for device in monitor.execute("qom-list", path="/machine/peripheral")]
    built_in = ("type", "scsi", "port1", "port2")
    return sorted(node for node in nodes if node[0] != "#"), sorted(name for name in devices if name not in built_in)


def test_in_and_out(store: ImageStore, tmp_path: Path) -> None:
    cli = CommandLine(Path(store.location))
    with machine(tmp_path, *PORTS, *SCSI) as address:
        disks = cli.json("attach", "--qmp", address, "web", "image/three-layers")
        assert [(disk["name"], disk["serial"], disk["destinations"], disk["read_only"]) for disk in disks] == [
            ("container/web", "ctr-web", ["/"], False),
            ("volume/data", "vol-data", ["/a", "/b"], False),
            ("image/three-layers", "img-three-layers", [], True),
        ]
        ids = [disk["device"] for disk in disks]
        with QmpMonitor(address) as monitor:
            nodes, devices = inside(monitor)
            depths = {ids[0]: 4, ids[1]: 0, ids[2]: 3}
            assert nodes == sorted([*ids, *(f"{name}-{depth}" for name in ids for depth in range(depths[name]))])
            assert devices == sorted(ids)
            buses = [monitor.execute("qom-get", path=f"/machine/peripheral/{name}", property="parent_bus") for name in ids]
            assert buses == [*(f"/machine/peripheral/{port}/{port}" for port in ("port1", "port2")), buses[2]]
            assert buses[2].endswith("/scsi.0")
            shown = monitor.execute("query-block")
            assert [each["inserted"]["ro"] for each in shown] == [False, False, True]
        lines = cli.text("attach", "--qmp", address, *NAMES, "--device", "nvme").splitlines()
        assert [line.split("   ")[-1].strip() for line in lines] == ["STATUS", *["was attached"] * 3]
        assert "is in use by a running guest" in cli.fails(9, "attach", "--print-qemu", "web")
        assert cli.json("detach", "--qmp", address, "image/three-layers") == [{"name": "image/three-layers", "was_there": True}]
        with QmpMonitor(address) as monitor:
            assert ids[2] not in inside(monitor)[1]
        assert "the guest did not let it go within 1 s; the machine is prelaunch" in cli.fails(
            6, "detach", "--qmp", address, "web"
        )


def test_a_failure_leaves_nothing(store: ImageStore, tmp_path: Path) -> None:
    disks = store.ready_disks(store.machine_disks(NAMES))
    with machine(tmp_path, *PORTS, *SCSI) as address, QmpMonitor(address) as monitor:
        there = Machine(monitor)
        empty = inside(monitor)
        with (
            store._live_disks.edit(f"containers/{store.container('web').id}.vmdk"),
            pytest.raises(InUseError, match=r"Failed to get .* lock"),
        ):
            there.plug(disks[::-1])
        assert inside(monitor) == empty
        with pytest.raises(InUseError, match="3 disks, and 2 of the machine's 2 PCI Express root ports are free"):
            there.plug(disks, DeviceModel.NVME)
        monitor.execute("device_add", driver="virtio-rng-pci", bus="port2", id=plug_id(disks[-1]))
        with pytest.raises(InvalidError, match="device_add: Duplicate device ID"):
            there.plug(disks, DeviceModel.VIRTIO_SCSI)
        assert inside(monitor) == ([], [plug_id(disks[-1])])


def test_what_was_left_half_done_is_done_again(store: ImageStore, tmp_path: Path) -> None:
    with machine(tmp_path, *SCSI) as address:
        first = store.plug_disks(["volume/data"], address)
        with QmpMonitor(address) as monitor:
            monitor.execute("device_del", id=first[0].id)
            assert monitor.wait_for(lambda name, data: name == "DEVICE_DELETED" and data.get("device") == first[0].id, 10)
            assert inside(monitor) == ([first[0].id], [])
        with pytest.raises(InUseError):
            store.container_disks("web")
        assert [disk.was_there for disk in store.plug_disks(["volume/data"], address)] == [False]
        assert [disk.was_there for disk in store.unplug_disks(["volume/data"], address)] == [True]
        assert [disk.was_there for disk in store.unplug_disks(["volume/data"], address)] == [False]


def test_a_machine_without_places(store: ImageStore, tmp_path: Path) -> None:
    words = qemu_arguments(store.container_disks("web"))
    with machine(tmp_path, *words) as address:
        with pytest.raises(UnsupportedError, match="no place where a disk could be plugged in as virtio-blk-pci") as raised:
            store.plug_disks(["image/three-layers"], address)
        assert "-device pcie-root-port,id=port1" in raised.value.hint
        with pytest.raises(InUseError, match="container/web: the machine was started with it"):
            store.plug_disks(["container/web"], address)
        with pytest.raises(UnsupportedError, match="the machine was started with it"):
            store.unplug_disks(["container/web"], address)
        with QmpMonitor(address), pytest.raises(UnavailableError, match="no greeting in time"):
            QmpMonitor(address, seconds=0.2)


def test_a_guest_that_does_not_answer(store: ImageStore, tmp_path: Path) -> None:
    with machine(tmp_path, "-machine", "pc", paused=False) as address:
        assert not store.plug_disks(["volume/data"], address)[0].was_there
        for _ in range(2):
            with pytest.raises(UnavailableError, match=r"did not let it go within 0\.3 s; the machine is running"):
                store.unplug_disks(["volume/data"], address, seconds=0.3)
    assert len(store.container_disks("web")) == 2


def test_a_server_has_the_disk(store: ImageStore, tmp_path: Path) -> None:
    need("qemu-nbd")
    (tmp_path / "raw").write_bytes(bytes(1 << 20))
    server_address = tmp_path / "nbd, and more"
    command = ["qemu-nbd", "--format", "raw", "--export-name", "volume/data", "--socket", str(server_address)]
    server = subprocess.Popen([*command, "--persistent", "--shared", "4", str(tmp_path / "raw")])
    try:
        with machine(tmp_path, *SCSI) as address:
            with pytest.raises(InvalidError, match=r"is neither unix:///PATH nor tcp://HOST:PORT"):
                store.plug_disks(["volume/data"], address, nbd=str(server_address))
            while not listens(server_address):
                assert server.poll() is None
            with pytest.raises(NotFoundError, match=r"^image/three-layers\?snapshot: .*Requested export not available"):
                store.plug_disks(["volume/data", "image/three-layers?snapshot"], address, nbd=f"unix://{server_address}")
            with pytest.raises(UnavailableError, match=r"^volume/data: .*Failed to connect"):
                store.plug_disks(["volume/data"], address, nbd=f"unix://{tmp_path}/nobody")
            (plugged,) = store.plug_disks(["volume/data"], address, nbd=f"unix://{server_address}")
            with QmpMonitor(address) as monitor:
                assert inside(monitor) == ([plugged.id], [plugged.id])
                (block,) = monitor.execute("query-block")
                assert (block["inserted"]["drv"], block["inserted"]["image"]["virtual-size"]) == ("nbd", 1 << 20)
            assert store.unplug_disks(["volume/data"], address)[0].was_there
            with QmpMonitor(address) as monitor:
                assert inside(monitor) == ([], [])
    finally:
        server.terminate()
        server.wait()
