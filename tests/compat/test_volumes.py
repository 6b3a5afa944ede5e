"""The kernel, QEMU and e2fsck on volumes, their snapshots and their clones."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgstore.errors import InUseError
from imgstore.store import ImageStore
from tests.judges import e2fsck, vmdk
from tests.judges.mount import exported, mounted
from tests.tools import need, run

MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ImageStore]:
    with ImageStore.open(str(tmp_path / "store")) as opened:
        opened.create_volume("a", options={"Capacity": "64"})
        yield opened


def disk_of(store: ImageStore, name: str) -> Path:
    return Path(store.volume(name).disk)


def raw_of(store: ImageStore, name: str, raw: Path) -> Path:
    """The volume as a raw image, by QEMU; proved to be clean by e2fsck."""
    vmdk.check(disk_of(store, name))
    vmdk.convert(disk_of(store, name), raw)
    e2fsck.gate(raw)
    return raw


def digests(store: ImageStore) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(store.location, "volumes").glob("*.vmdk")}


def files_of(store: ImageStore, source: str) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(b"".join(map(bytes, store.export_volume(source))))) as body:
        return {member.name: found.read() for member in body if (found := body.extractfile(member)) is not None}


def write(directory: Path, prefix: str, count: int = 50) -> dict[str, bytes]:
    """Files that the kernel writes."""
    written = {f"{prefix}{number}": b"%d" % number * 3000 for number in range(count)}
    for name, content in written.items():
        (directory / name).write_bytes(content)
    return written


def test_a_guest_uses_a_volume_and_its_clone(store: ImageStore, tmp_path: Path) -> None:
    with exported(disk_of(store, "a")) as disk:
        with mounted(disk, writable=True) as directory:
            assert os.listdir(directory) == [], "no lost+found"  # noqa: PTH208
            first = write(directory, "first")
        for act in (lambda: store.snapshot_volume("a", "s"), lambda: store.remove_volume("a"), lambda: store.export_volume("a")):
            with pytest.raises(InUseError):
                act()
    assert first == files_of(store, "a")
    store.snapshot_volume("a", "s")
    clone = store.clone_volume("a", "clone")
    before = digests(store)
    with exported(disk_of(store, "clone")) as disk, mounted(disk, writable=True) as directory:
        second = write(directory, "second")
        (directory / "first7").unlink()
    after = digests(store)
    assert {name for name in before if before[name] != after[name]} == {Path(clone.disk).name}, (
        "all others are bit for bit as before"
    )
    expected = {name: content for name, content in {**first, **second}.items() if name != "first7"}
    assert files_of(store, "clone") == expected and files_of(store, "a") == files_of(store, "a@s") == first
    with mounted(raw_of(store, "clone", tmp_path / "raw")) as directory:
        assert {path.name: path.read_bytes() for path in directory.iterdir()} == expected
    need("qemu-img")
    chain = json.loads(run("qemu-img", "info", "--backing-chain", "--output=json", clone.disk).stdout)
    assert [Path(disk["filename"]).name for disk in chain] == [
        Path(clone.disk).name,
        Path(store.volume("a").snapshots[0].disk).name,
    ]
    store.remove_volume("a")
    raw_of(store, "clone", tmp_path / "raw")
    assert list(store.check()) == []


def test_a_grown_volume_is_filled(store: ImageStore, tmp_path: Path) -> None:
    with exported(disk_of(store, "a")) as disk, mounted(disk, writable=True) as directory:
        first = write(directory, "first")
    store.snapshot_volume("a", "s")
    store.grow_volume("a", 200 * MIB)
    e2fsck.kernel_gate(raw_of(store, "a", tmp_path / "raw"))
    with exported(disk_of(store, "a")) as disk, mounted(disk, writable=True) as directory:
        (directory / "large").write_bytes(b"l" * 150 * MIB)
        os.sync()  # the kernel counts blocks as used that it has only promised to a file
        free = os.statvfs(directory)
    (usage,) = store.volume_usage()
    assert usage.free == free.f_bfree * 4096 and usage.used == (free.f_blocks - free.f_bfree) * 4096
    found = files_of(store, "a")
    assert found.pop("large") == b"l" * 150 * MIB and found == first
    with mounted(raw_of(store, "a", tmp_path / "raw")) as directory:
        assert {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "large"} == first


def test_a_guest_that_was_powered_off_hard(store: ImageStore, tmp_path: Path) -> None:
    raw, cut = tmp_path / "raw", tmp_path / "cut"
    vmdk.convert(disk_of(store, "a"), raw)
    with mounted(raw, writable=True) as directory:
        first = write(directory, "first")
        run("sync", "-f", directory)
        (directory / "first1").unlink()
        run("cp", "--sparse=always", raw, cut)
    assert b"needs_recovery" in run("dumpe2fs", "-h", cut).stdout
    with cut.open("rb") as image, store._volumes.edit("a") as device:
        for offset in range(0, 64 * MIB, MIB):
            if any(piece := image.read(MIB)):
                device.write(offset, piece)
    store.snapshot_volume("a", "s")
    store.clone_volume("a", "clone")
    store.clone_volume("a", "larger", options={"Capacity": "100"})
    assert list(store.check()) == []
    found = [files_of(store, source) for source in ("a", "a@s", "clone", "larger")]
    with mounted(cut, writable=True) as directory:
        assert {path.name: path.read_bytes() for path in directory.iterdir()} == found[0]
    assert found == [found[0]] * 4 and first.items() >= found[0].items()
    vmdk.convert(disk_of(store, "clone"), raw)
    assert b"needs_recovery" in run("dumpe2fs", "-h", raw).stdout, "a clone is the same blocks"
    raw_of(store, "larger", raw)
    store.grow_volume("a", 128 * MIB)
    raw_of(store, "a", raw)
    assert files_of(store, "a") == found[0]
