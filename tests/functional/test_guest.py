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
from pathlib import Path
from typing import Any

import pytest

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
    for image in (build_runnable(place / "runnable", BUSYBOX), build_tools(place / "tools")):
        cli.text("tag", cli.text("pull", "--quiet", f"oci:{image.layout}").strip(), image.name)
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


def volume_files(cli: CommandLine, volume: str) -> dict[str, bytes]:
    archive = cli.run("volume", "export", volume)
    assert archive.returncode == 0, archive.stderr
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]


def container_file(cli: CommandLine, path: str) -> bytes:
    done = cli.run("container", "cp", path, "-")
    assert done.returncode == 0, done.stderr
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        return tar.extractfile(tar.next()).read()  # type: ignore[arg-type,union-attr]


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
    assert "greet: it's $5, world and two words, from /work\n" in console
    changes = set(cli.text("container", "diff", f"runs-{way}").splitlines())
    assert changes == {
        *("C /etc", "A /etc/greeting", "D /etc/obsolete", "C /work", "A /work/fewer"),
        *("A /work/made", "A /work/made/here", "A /work/made/here/version"),
    }
    assert container_file(cli, f"runs-{way}:/etc/greeting") == b"it's $5, world\n"
    assert container_file(cli, f"runs-{way}:/work/made/here/version") == b"tools 1.0\n"
    assert volume_files(cli, f"data-{way}") == {"from-the-image": b"copied into the volume\n", "kept": b"kept for two words\n"}
    assert cli.json("check") == []
    assert before == sealed_disks(cli)


def test_a_guest_is_killed_and_starts_again(cli: CommandLine, tmp_path: Path) -> None:
    cli.text("container", "create", "--name", "killed", "runnable")
    before = sealed_disks(cli)
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
    arguments = ["--device", "virtio-scsi"]
    with running_guest(tmp_path / "first", first, cli.json("attach", "--print-qemu", "killed", *arguments)["arguments"]) as guest:
        guest.wait_for("guest: writing")
        time.sleep(0.3)
        guest.kill()
    changes = cli.text("container", "diff", "killed").splitlines()
    assert "A /first" in changes and "A /dir-0" in changes
    assert cli.json("check") == []
    second = """
        mount -t ext4 $(disk root) /mnt
        dmesg | grep -o 'EXT4-fs.*recovery complete'
        cat /mnt/first
        echo again > /mnt/again
        umount /mnt
    """
    with running_guest(tmp_path / "second", second, cli.json("attach", "--print-qemu", "killed")["arguments"]) as guest:
        console = guest.finish()
    assert "recovery complete\nsynced\n" in console
    after = cli.text("container", "diff", "killed").splitlines()
    assert set(changes) | {"A /again"} == set(after)
    assert container_file(cli, "killed:/first") == b"synced\n"
    assert cli.json("check") == []
    assert before == sealed_disks(cli)


def test_a_disk_is_plugged_into_a_guest_and_taken_out(cli: CommandLine, tmp_path: Path) -> None:
    cli.text("container", "create", "--name", "stays", "runnable")
    cli.text("volume", "create", "comes-and-goes", "--opt", "Capacity=64MB")
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
        *cli.json("attach", "--print-qemu", "stays")["arguments"],
        *("-qmp", f"unix:{socket},server=on,wait=off", "-device", "pcie-root-port,id=port1,chassis=1,slot=1"),
    ]
    with running_guest(tmp_path / "machine", script, arguments) as guest:
        guest.wait_for("guest: up")
        (plugged,) = cli.json("attach", "--qmp", str(socket), "volume/comes-and-goes")
        assert (plugged["serial"], plugged["was_there"]) == ("vol-comes-and-goes", False)
        (again,) = cli.json("attach", "--qmp", str(socket), "volume/comes-and-goes")
        assert again == plugged | {"was_there": True}
        for words in (
            *(("container", "diff", "stays"), ("container", "rm", "stays"), ("container", "commit", "stays", "x")),
            *(("attach", "--print-qemu", "stays"), ("attach", "--qmp", str(socket), "stays")),
            *(("volume", "rm", "comes-and-goes"), ("volume", "grow", "comes-and-goes", "1GB")),
        ):
            cli.fails(9, *words)
        guest.wait_for("guest: written")
        assert cli.text("detach", "--qmp", str(socket), "volume/comes-and-goes").split() == [
            *("NAME", "STATUS", "volume/comes-and-goes", "detached")
        ]
        assert volume_files(cli, "comes-and-goes") == {"written": b"of a guest\n"}
        assert cli.json("detach", "--qmp", str(socket), "volume/comes-and-goes")[0]["was_there"] is False
        cli.text("attach", "--qmp", str(socket), "image/tools")
        guest.finish()
    assert container_file(cli, "stays:/after") == b"tools 1.0\n"
    assert cli.json("check") == []
