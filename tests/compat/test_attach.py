"""Disks handed to QEMU: its own block layer opens what ``imgstore attach`` prints, and the kernel works on it as a guest's would."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from imgstore.answers import Mount
from imgstore.errors import InUseError, NotFoundError, UnsupportedError
from imgstore.store import ImageStore
from tests.command_line import REFERENCE, CommandLine
from tests.judges.mount import mounted
from tests.tools import need, need_root


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ImageStore]:
    with ImageStore.open(str(tmp_path / "a store")) as opened:
        opened.pull(REFERENCE)
        opened.create_container("three-layers", name="web", mounts=[Mount("data", "/srv", False), Mount("shared", "/ro", True)])
        yield opened


@contextmanager
def machine(store: ImageStore, directory: Path) -> Iterator[dict[str, Path]]:
    """QEMU's block layer with the disks of the container, each of them as a file."""
    need("qemu-storage-daemon")
    need_root()
    words = CommandLine(Path(store.location)).json("attach", "--print-qemu", "web")["arguments"]
    nodes = [json.loads(after) for word, after in pairwise(words) if word == "-blockdev"]
    names = [after.split("drive=")[1].split(",")[0] for word, after in pairwise(words) if word == "-device"]
    disks = {node["node-name"]: node for node in nodes if node["node-name"] in names}
    assert list(disks) == ["root", "volume-1", "volume-2"] == names
    command = ["qemu-storage-daemon"]
    for node in nodes:
        command += ["--blockdev", json.dumps(node)]
    files = {}
    for name, node in disks.items():
        files[name] = directory / f"{name}.raw"
        files[name].touch()
        writable = "off" if node["read-only"] else "on"
        command += ["--export", f"type=fuse,id={name},node-name={name},mountpoint={files[name]},writable={writable}"]
    daemon = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 20
        while not all(file.stat().st_size for file in files.values()):
            assert daemon.poll() is None and time.monotonic() < deadline, daemon.communicate()
            time.sleep(0.02)
        yield files
    finally:
        daemon.terminate()
        _, said = daemon.communicate(timeout=60)
        assert daemon.returncode == 0, said


def tar_of(name: str, data: bytes) -> io.BytesIO:
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    body.seek(0)
    return body


def test_a_machine_has_the_disks(store: ImageStore, tmp_path: Path) -> None:
    store.copy_to_container("web", "/srv", tar_of("before", b"of us"))
    before = [Path(path).read_bytes() for path in store.disk_paths("three-layers")]
    with machine(store, tmp_path) as files:
        with mounted(files["root"], writable=True) as root, mounted(files["volume-1"], writable=True) as data:
            assert (data / "before").read_bytes() == b"of us"
            (root / "etc/motd").write_text("of a guest\n")
            (data / "after").write_text("of a guest, too\n")
        with mounted(files["volume-2"]) as shared:
            assert list(shared.iterdir()) == []
        with pytest.raises(InUseError, match="web"):
            store.copy_to_container("web", "/etc", tar_of("x", b""))
        with pytest.raises(InUseError, match="web"):
            store.diff_container("web")
        with pytest.raises(InUseError, match="is in use"):
            store.container_disks("web")
    assert [difference.path for difference in store.diff_container("web")] == [b"etc", b"etc/motd"]
    _, pieces = store.copy_from_container("web", "/srv/after")
    assert b"of a guest, too\n" in b"".join(pieces)
    assert before == [Path(path).read_bytes() for path in store.disk_paths("three-layers")]
    assert list(store.check()) == []


def test_words_for_a_shell(store: ImageStore) -> None:
    cli = CommandLine(Path(store.location))
    words = shlex.split(cli.text("attach", "--print-qemu", "web"))
    assert words == cli.json("attach", "--print-qemu", "web")["arguments"]
    top = next(json.loads(word) for word in words if '"node-name":"root"' in word)
    assert top["file"]["filename"] == store.container("web").disk and top["backing"] == "root-3"
    assert "No such container: nobody" in cli.fails(4, "attach", "--print-qemu", "nobody")
    assert "--print-qemu" in cli.fails(2, "attach", "web")


def test_a_volume_that_is_gone(store: ImageStore) -> None:
    store.create_container("three-layers", name="other", mounts=[Mount("data", "/srv", False)])
    (marker,) = (path for path in Path(store.location, "volumes").glob("*.json") if '"data"' in path.read_text())
    marker.unlink()
    with pytest.raises(NotFoundError, match="data"):
        store.container_disks("other")


def test_a_store_in_memory() -> None:
    with ImageStore.open("mem://") as store:
        store.pull(REFERENCE)
        store.create_container("three-layers", name="web")
        with pytest.raises(UnsupportedError, match="is not on a file system of this machine"):
            store.container_disks("web")
