"""Containers that run: a real kernel boots with their disks, runs what the image says, and the store knows afterwards what it did."""

from __future__ import annotations

import hashlib
import io
import shlex
import signal
import tarfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from imgstore.attach.qemu import DeviceModel, qemu_arguments
from imgstore.errors import InUseError
from imgstore.store import ImageStore
from tests.command_line import CommandLine
from tests.images.runnable import build_runnable, build_tools
from tests.servers.guest import BUSYBOX, running_guest


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    """The program, and a store with the images ``runnable`` and ``tools``."""
    place = tmp_path_factory.mktemp("guest")
    cli = CommandLine(place / "a store, with a comma")
    for name in ("runnable", "tools"):
        (place / name).mkdir()
    with ImageStore.open(str(cli.store)) as store:
        for image in (build_runnable(place / "runnable", BUSYBOX), build_tools(place / "tools")):
            store.tag(store.pull(f"oci:{image.layout}").image.id, image.name)
    return cli


def sealed_disks(cli: CommandLine) -> dict[str, str]:
    """Digest of every disk of an image."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (cli.store / "disks").glob("*.vmdk")}


def run_words(cli: CommandLine, container: str) -> str:
    """For a shell of the guest: the container's own command in its environment and directory, with /mnt as its root."""
    (shown,) = cli.json("container", "inspect", container)
    config: dict[str, Any] = shown["config"]
    command = [*(config["Entrypoint"] or ()), *(config["Cmd"] or ())]
    inside = f"cd {shlex.quote(config['WorkingDir'])} && exec {shlex.join(command)}"
    return shlex.join(["env", "-i", *config["Env"], "chroot", "/mnt", "/bin/sh", "-c", inside])


def volume_files(store: ImageStore, volume: str) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(b"".join(store.export_volume(volume)))) as tar:
        return {member.name: content(tar, member) for member in tar if member.isfile()}


def container_file(store: ImageStore, container: str, path: str) -> bytes:
    _, pieces = store.copy_from_container(container, path)
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as tar:
        return content(tar, tar.getmembers()[0])


def content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


@contextmanager
def nbd_server(cli: CommandLine, socket: Path) -> Iterator[str]:
    address = f"unix://{socket}"
    server = cli.start("nbd", "serve", "--host", address)
    try:
        deadline = time.monotonic() + 20
        while not socket.exists():
            assert server.poll() is None and time.monotonic() < deadline, server.communicate()
            time.sleep(0.02)
        yield address
    finally:
        server.send_signal(signal.SIGTERM)
        _, said = server.communicate(timeout=30)
        assert server.returncode in (0, 143), said


@pytest.mark.parametrize("way", ["files", "nbd"])
def test_a_container_runs(cli: CommandLine, tmp_path: Path, way: str) -> None:
    cli.text("container", "create", "--name", f"runs-{way}", "--volume", f"data-{way}:/srv/data", "runnable")
    before = sealed_disks(cli)
    script = f"""
        mount -t ext4 $(disk root) /mnt
        mount -t ext4 $(disk volume-1) /mnt/srv/data
        mount -t ext4 -o ro $(disk image-1) /mnt/opt/tools
        {run_words(cli, f"runs-{way}")}
        umount /mnt/opt/tools /mnt/srv/data /mnt
    """
    with ExitStack() as stack:
        words = ["attach", "--print-qemu", f"runs-{way}", "image/tools"]
        if way == "nbd":
            words += ["--nbd", stack.enter_context(nbd_server(cli, tmp_path / "nbd")), "--device", "nvme"]
        guest = stack.enter_context(running_guest(tmp_path / "machine", script, cli.json(*words)["arguments"]))
        console = guest.finish()
    assert "greet: it's $5, world and two words, from /job\n" in console
    assert set(cli.text("container", "diff", f"runs-{way}").splitlines()) == {
        *("C /etc", "A /etc/greeting", "D /etc/obsolete", "C /job", "A /job/fewer"),
        *("A /job/made", "A /job/made/here", "A /job/made/here/version"),
    }
    assert "it's $5, world\n" in cli.text("container", "cp", f"runs-{way}:/etc/greeting", "-")
    with ImageStore.open(str(cli.store)) as store:
        assert container_file(store, f"runs-{way}", "/job/made/here/version") == b"tools 1.0\n"
        assert volume_files(store, f"data-{way}") == {
            "from-the-image": b"copied into the volume\n",
            "kept": b"kept for two words\n",
        }
    assert cli.text("check") == ""
    assert before == sealed_disks(cli)


def test_a_guest_is_killed_and_starts_again(cli: CommandLine, tmp_path: Path) -> None:
    before = sealed_disks(cli)
    with ImageStore.open(str(cli.store)) as store:
        store.create_container("runnable", name="killed")
        arguments = qemu_arguments(store.container_disks("killed"), model=DeviceModel.VIRTIO_SCSI)
    first = """
        mount -t ext4 $(disk root) /mnt
        echo synced > /mnt/first
        number=0
        while true; do
            mkdir /mnt/dir-$number
            dd if=/dev/urandom of=/mnt/dir-$number/second bs=64k count=4 2>/dev/null
            number=$((number + 1))
            if [ $number = 3 ]; then sync; echo "guest: writing"; fi
        done
    """
    with running_guest(tmp_path / "first", first, arguments) as guest:
        guest.wait_for("guest: writing")
        time.sleep(0.3)
        guest.kill()
    with ImageStore.open(str(cli.store)) as store:
        changes = {difference.path for difference in store.diff_container("killed")}
        assert {b"first", b"dir-0", b"dir-2"} < changes
        assert list(store.check()) == []
    second = """
        mount -t ext4 $(disk root) /mnt
        dmesg | grep -o 'EXT4-fs.*recovery complete'
        cat /mnt/first
        echo again > /mnt/again
        umount /mnt
    """
    with running_guest(tmp_path / "second", second, arguments) as guest:
        console = guest.finish()
    assert "recovery complete\nsynced\n" in console
    with ImageStore.open(str(cli.store)) as store:
        assert changes | {b"again"} == {difference.path for difference in store.diff_container("killed")}
        assert container_file(store, "killed", "/first") == b"synced\n"
        assert list(store.check()) == []
    assert before == sealed_disks(cli)


def test_a_disk_is_plugged_into_a_guest_and_taken_out(cli: CommandLine, tmp_path: Path) -> None:
    with ImageStore.open(str(cli.store)) as store:
        store.create_container("runnable", name="stays")
        store.create_volume("comes-and-goes", options={"Capacity": "64MB"})
        disks = store.container_disks("stays")
    script = """
        mount -t ext4 $(disk root) /mnt
        echo "guest: up"
        mount -t ext4 $(disk vol-comes-and-goes) /mnt/srv/data
        echo "of a guest" > /mnt/srv/data/written
        umount /mnt/srv/data
        echo "guest: written"
        gone vol-comes-and-goes
        mount -t ext4 -o ro $(disk img-tools) /mnt/opt/tools
        cp /mnt/opt/tools/version /mnt/after
        umount /mnt/opt/tools /mnt
    """
    socket = tmp_path / "qmp"
    arguments = [
        *qemu_arguments(disks),
        *("-qmp", f"unix:{socket},server=on,wait=off", "-device", "pcie-root-port,id=port1,chassis=1,slot=1"),
    ]
    with running_guest(tmp_path / "machine", script, arguments) as guest:
        guest.wait_for("guest: up")
        (plugged,) = cli.json("attach", "--qmp", socket, "volume/comes-and-goes")
        assert (plugged["serial"], plugged["was_there"]) == ("vol-comes-and-goes", False)
        with ImageStore.open(str(cli.store)) as store:
            (again,) = store.plug_disks(["volume/comes-and-goes"], socket)
            assert again.was_there and again.serial == plugged["serial"]
            for ask in (
                *(partial(store.diff_container, "stays"), partial(store.remove_container, "stays")),
                *(partial(store.commit_container, "stays"), partial(store.container_disks, "stays")),
                *(partial(store.plug_disks, ["container/stays"], socket), partial(store.remove_volume, "comes-and-goes")),
                partial(store.grow_volume, "comes-and-goes", 1 << 30),
            ):
                with pytest.raises(InUseError):
                    ask()
            guest.wait_for("guest: written")
            assert cli.text("detach", "--qmp", socket, "volume/comes-and-goes").split()[-1] == "detached"
            assert volume_files(store, "comes-and-goes") == {"written": b"of a guest\n"}
            assert [each.was_there for each in store.unplug_disks(["volume/comes-and-goes"], socket)] == [False]
            store.plug_disks(["image/tools"], socket)
            guest.finish()
            assert container_file(store, "stays", "/after") == b"tools 1.0\n"
            assert list(store.check()) == []
