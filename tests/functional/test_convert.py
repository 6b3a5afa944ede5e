"""``imgstore convert`` and ``export-disk``, as processes; QEMU judges what they make."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgstore.blocks import GRAIN
from imgstore.cli.main import main
from imgstore.datastores import LocalDatastore
from imgstore.errors import AlreadyExistsError, InvalidError, NotFoundError, UnsupportedError
from imgstore.store import ImageStore
from imgstore.vmdk.formats import FORMATS, DiskFormat
from tests.command_line import REFERENCE, CommandLine, complaint
from tests.disk_forms import WRITTEN, add_chain, cid_of
from tests.judges import vmdk
from tests.tools import need, need_root, run

HOSTED, COWD, STREAM, VMFS = DiskFormat.HOSTED, DiskFormat.VMFS_SPARSE, DiskFormat.STREAM_OPTIMIZED, DiskFormat.VMFS
SIZE = 2 << 20


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path / "store")


@pytest.fixture
def disks(tmp_path: Path) -> Path:
    """A directory with d0.vmdk, vmfs, and d1.vmdk and d2.vmdk, vmfsSparse, on it."""
    with LocalDatastore(tmp_path / "disks", create=True) as datastore:
        add_chain(datastore, [VMFS, COWD, COWD], SIZE, writes=5)
    return tmp_path / "disks"


def shown(disk: Path) -> bytes:
    """What QEMU reads of a disk and its parents."""
    raw = disk.with_name(f"{disk.name}.raw")
    vmdk.convert(disk, raw)
    data = raw.read_bytes()
    raw.unlink()
    return data


def names(directory: Path) -> set[str]:
    """What is in a directory, without what datastores of ours have for themselves."""
    return {path.name for path in directory.iterdir() if not path.name.endswith(".lock")}


@pytest.mark.parametrize("form", WRITTEN)
def test_a_chain_becomes_one_disk(cli: CommandLine, disks: Path, form: DiskFormat) -> None:
    target = disks / "New Disk_1.vmdk"
    printed = cli.text("convert", disks / "d2.vmdk", target, "--disk-format", form)
    files = [disks / name for name in FORMATS[form].files("New Disk_1")]
    assert printed.splitlines() == [str(path) for path in files]
    assert all(path.stat().st_mode & 0o777 == 0o666 & ~_umask() for path in files)
    for path in [*disks.glob("d*.vmdk")]:
        path.unlink()  # nothing of them is needed
    before = shown(target)
    assert len(before) == SIZE and before.count(0) < SIZE
    cli.text("convert", target, disks / "back.vmdk", "--disk-format", "hosted")
    assert shown(disks / "back.vmdk") == before
    assert b"CID=%08x" % cid_of(2) in (disks / "back.vmdk").read_bytes()[:1024]


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("form", [HOSTED, COWD, STREAM])
def test_a_chain_stays_a_chain_of_disks(cli: CommandLine, disks: Path, form: DiskFormat) -> None:
    (disks / "new").mkdir()
    expected = [shown(disks / f"d{number}.vmdk") for number in range(3)]
    base = VMFS if form is COWD else form
    cli.text("convert", disks / "d0.vmdk", disks / "new/d0.vmdk", "--disk-format", base)
    for number in (1, 2):
        cli.text(
            "convert", disks / f"d{number}.vmdk", disks / f"new/d{number}.vmdk", "--disk-format", form,
            "--child-of", disks / f"new/d{number - 1}.vmdk",
        )  # fmt: skip
    assert [shown(disks / f"new/d{number}.vmdk") for number in range(3)] == expected
    sizes = [sum((disks / "new" / name).stat().st_blocks for name in FORMATS[form].files(f"d{number}")) for number in (1, 2)]
    assert max(sizes) * 512 < 12 * GRAIN + (300 << 10)


def test_a_child_holds_only_where_it_differs_from_a_stranger(cli: CommandLine, disks: Path) -> None:
    data = bytearray(shown(disks / "d2.vmdk"))
    data[5 * GRAIN] ^= 1
    (disks / "raw").write_bytes(data)
    need("qemu-img")
    run("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=monolithicFlat", disks / "raw", disks / "other.vmdk")
    cli.text("convert", disks / "other.vmdk", disks / "child.vmdk", "--disk-format", "hosted", "--child-of", disks / "d2.vmdk")
    assert shown(disks / "child.vmdk") == data
    assert [length for _, _, length in vmdk.own_grains(disks / "child.vmdk")] == [GRAIN]


def test_a_stream_goes_into_a_pipe(cli: CommandLine, disks: Path) -> None:
    done = cli.run("convert", disks / "d2.vmdk", "-", "--disk-format", "stream-optimized")
    assert done.returncode == 0, done.stderr
    (disks / "piped.vmdk").write_bytes(done.stdout)
    assert shown(disks / "piped.vmdk") == shown(disks / "d2.vmdk")
    vmdk.check(disks / "piped.vmdk")


def test_bad_input(capfd: pytest.CaptureFixture[str], disks: Path) -> None:
    (disks / "text.vmdk").write_text("hello")
    (disks / "sub").mkdir()
    source, new = disks / "d2.vmdk", disks / "new.vmdk"
    before = names(disks)

    def fails(code: int, *words: str | Path, match: str) -> None:
        assert main(["convert", *map(str, words)]) == code
        out, err = capfd.readouterr()
        assert out == ""
        assert match in complaint(err.encode())

    fails(2, source, new, match="--disk-format")
    fails(2, source, new, "--disk-format", "qcow2", match="'qcow2' is not one of")
    fails(2, source, new, "--disk-format", "sesparse", match="'sesparse' is not one of")
    fails(4, disks / "none.vmdk", new, "--disk-format", "flat", match="none.vmdk: cannot open it: No such file")
    fails(4, disks / "sub", new, "--disk-format", "flat", match="sub: is not a regular file")
    fails(7, disks / "text.vmdk", new, "--disk-format", "flat", match="text.vmdk: starts with b'hello', as no VMDK does")
    fails(11, disks / "d2-delta.vmdk", new, "--disk-format", "flat", match="name its descriptor")
    fails(10, source, disks / "d1.vmdk", "--disk-format", "flat", match="d1.vmdk: exists already")
    fails(10, source, source, "--disk-format", "flat", match="d2.vmdk: exists already")
    fails(2, source, disks / "new.img", "--disk-format", "flat", match="ends in .vmdk")
    fails(2, source, disks / ".vmdk", "--disk-format", "flat", match="ends in .vmdk")
    fails(2, source, disks / "näme.vmdk", "--disk-format", "flat", match="may only have")
    fails(2, source, disks / "n\udcffme.vmdk", "--disk-format", "hosted", match="may only have")
    fails(4, source, disks / "none/new.vmdk", "--disk-format", "flat", match="cannot make it: No such file")
    fails(11, source, "-", "--disk-format", "flat", match="can take no disk of the form flat, only stream-optimized")
    fails(11, source, new, "--disk-format", "vmfs", "--child-of", disks / "d1.vmdk", match="have no parents")
    fails(4, source, new, "--disk-format", "hosted", "--child-of", disks / "none.vmdk", match="none.vmdk: cannot open it")
    assert names(disks) == before
    assert main(["convert", str(disks / "text.vmdk"), str(new), "--disk-format", "flat", "--format", "json"]) == 7
    assert json.loads(capfd.readouterr().err)["error"]["code"] == "corrupt"


def test_a_terminal_is_not_filled_with_a_disk(cli: CommandLine, disks: Path) -> None:
    controller, terminal = pty.openpty()
    words = cli.words("convert", disks / "d2.vmdk", "-", "--disk-format", "stream-optimized")
    done = subprocess.run(words, stdout=terminal, stderr=subprocess.PIPE, env=cli.environment, timeout=60)
    os.close(terminal)
    os.close(controller)
    assert done.returncode == 2
    assert "a terminal cannot take a disk" in complaint(done.stderr)


def test_a_name_that_leads_elsewhere_is_not_followed(cli: CommandLine, disks: Path) -> None:
    (disks / "d0-flat.vmdk").rename(disks / "away")
    (disks / "d0-flat.vmdk").symlink_to("away")
    assert "d0-flat.vmdk" in cli.fails(4, "convert", disks / "d2.vmdk", disks / "new.vmdk", "--disk-format", "flat")
    (disks / "d0-flat.vmdk").unlink()
    (disks / "away").rename(disks / "d0-flat.vmdk")
    (disks / "elsewhere").mkdir()
    (disks / "elsewhere/link.vmdk").symlink_to("../d2.vmdk")
    cli.text("convert", disks / "elsewhere/link.vmdk", disks / "new.vmdk", "--disk-format", "hosted")
    assert shown(disks / "new.vmdk") == shown(disks / "d2.vmdk")


def test_a_disk_that_a_guest_writes_is_not_read(cli: CommandLine, disks: Path) -> None:
    cli.text("convert", disks / "d2.vmdk", disks / "live.vmdk", "--disk-format", "hosted")
    need("qemu-io")
    guest = subprocess.Popen(
        ["qemu-io", "-f", "vmdk", disks / "live.vmdk"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    with guest:
        assert guest.stdin and guest.stdout
        guest.stdin.write("length\n")
        guest.stdin.flush()
        guest.stdout.readline()
        assert "in use" in cli.fails(9, "convert", disks / "live.vmdk", disks / "new.vmdk", "--disk-format", "flat")
        guest.stdin.write("quit\n")
    assert not (disks / "new.vmdk").exists()


@pytest.mark.parametrize("form", WRITTEN)
def test_a_full_disk_leaves_nothing(cli: CommandLine, disks: Path, form: DiskFormat) -> None:
    need("mount", "umount")
    need_root()
    small = disks / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", small)
    try:
        complained = cli.fails(8, "convert", disks / "d2.vmdk", small / "new.vmdk", "--disk-format", form)
        assert "No space left" in complained
        assert names(small) == set()
    finally:
        run("umount", small)


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Path]:
    """A disk that takes a while."""
    run("truncate", "-s", "192M", tmp_path / "large-flat.vmdk")
    with (tmp_path / "large-flat.vmdk").open("r+b") as file:
        file.write(os.urandom(1 << 20) * 192)
    lines = ["# Disk DescriptorFile", "version=1", "CID=00000001", "parentCID=ffffffff", 'createType="vmfs"']
    (tmp_path / "large.vmdk").write_text("\n".join([*lines, f'RW {192 << 11} VMFS "large-flat.vmdk"', ""]))
    yield tmp_path / "large.vmdk"
    (tmp_path / "large-flat.vmdk").unlink()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_nothing(cli: CommandLine, large: Path, number: signal.Signals) -> None:
    target = large.parent / "out"
    target.mkdir()
    process = cli.start("convert", large, target / "new.vmdk", "--disk-format", "stream-optimized")
    while not any(path.stat().st_size > 1 << 20 for path in target.iterdir()):
        assert process.poll() is None
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"no {target / 'new.vmdk'} was made" in complaint(stderr)
    assert names(target) == set()


def test_a_kill_leaves_no_disk(cli: CommandLine, large: Path) -> None:
    target = large.parent / "out"
    target.mkdir()
    process = cli.start("convert", large, target / "new.vmdk", "--disk-format", "vmfs")
    while not any(path.stat().st_blocks > 100 for path in target.iterdir()):
        assert process.poll() is None
    process.kill()
    process.communicate(timeout=60)
    assert [name for name in names(target) if not (name.startswith(".new") and name.endswith(".part"))] == []
    cli.text("convert", large, target / "new.vmdk", "--disk-format", "stream-optimized")
    vmdk.check(target / "new.vmdk")


def test_who_stops_reading_a_stream_is_not_complained_to(cli: CommandLine, large: Path) -> None:
    process = cli.start("convert", large, "-", "--disk-format", "stream-optimized")
    assert process.stdout and process.stderr
    assert process.stdout.read(4) == b"KDMV"
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == 128 + signal.SIGPIPE


def test_disks_of_a_store(cli: CommandLine, tmp_path: Path) -> None:
    need("qemu-img", "e2fsck")
    with ImageStore.create(str(cli.store), disk_size=256 << 20) as store:
        store.pull(REFERENCE)
        store.create_container("three-layers", name="web")
        store.create_volume("data", options={"Capacity": "128M"})
        top, live = Path(store.disk_paths("three-layers")[-1]), Path(store.container_disk_paths("web")[-1])
        store.export_disk("container/web", tmp_path / "web.vmdk", "hosted")
    target = tmp_path / "image.vmdk"
    shown = cli.json("export-disk", "three-layers", "--disk-format", "stream-optimized", "-o", target)
    assert shown == {"disk": str(target), "files": [str(target)]}
    cli.text("export-disk", "volume/data", "--disk-format", "vmfs", "-o", tmp_path / "data.vmdk")
    run("e2fsck", "-fn", tmp_path / "data-flat.vmdk")
    piped = cli.run("export-disk", "image/three-layers:latest", "--disk-format", "stream-optimized")
    (tmp_path / "piped.vmdk").write_bytes(piped.stdout)
    for name, disk in (("image", top), ("piped", top), ("web", live)):
        run("qemu-img", "compare", "-f", "vmdk", "-F", "vmdk", tmp_path / f"{name}.vmdk", disk)
    new = tmp_path / "new.vmdk"
    with LocalDatastore(live.parent) as datastore, datastore.open_live(live.name, writable=True):
        assert "in use" in cli.fails(9, "export-disk", "container/web", "--disk-format", "hosted", "-o", new)
    assert "can take no disk" in cli.fails(11, "export-disk", "three-layers", "--disk-format", "hosted")
    wrong: list[tuple[str, Path, str, type[Exception], str]] = [
        ("three-layers", new, "flat", InvalidError, "has no kind"),
        ("image/three-layers?x", new, "flat", InvalidError, "is no option"),
        ("container/web?snapshot", new, "flat", InvalidError, "a copy needs no"),
        ("image/three-layers", new, "qcow2", InvalidError, "is none of hosted, flat"),
        ("image/three-layers", new, "sesparse", UnsupportedError, "only read"),
        ("image/nothing", new, "flat", NotFoundError, "nothing"),
        ("container/nothing", new, "flat", NotFoundError, "nothing"),
        ("volume/nothing", new, "flat", NotFoundError, "nothing"),
        ("image/three-layers", target, "flat", AlreadyExistsError, "image.vmdk: exists already"),
    ]
    with ImageStore.open(str(cli.store)) as store:
        for name, path, form, error, match in wrong:
            with pytest.raises(error, match=match):
                store.export_disk(name, path, form)
    assert not new.exists()
