"""Disks of containers as QEMU, e2fsck and the kernel see them, before and after a guest wrote them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgstore.errors import InUseError
from imgstore.store import ImageStore
from tests.command_line import REFERENCE
from tests.judges import e2fsck, vmdk
from tests.judges.mount import exported, mounted
from tests.judges.tree import diff, tree_of
from tests.tools import need, run

IMAGE = "three-layers"
SIZE = 64 << 20


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageStore]:
    with ImageStore.create(str(tmp_path_factory.mktemp("containers") / "store"), disk_size=SIZE) as store:
        store.pull(REFERENCE)
        yield store


def test_qemu_finds_the_whole_chain(store: ImageStore) -> None:
    need("qemu-img")
    made = store.create_container(IMAGE, size=2 * SIZE)
    shown = json.loads(run("qemu-img", "info", "--backing-chain", "--output=json", made.disk).stdout)
    assert [os.path.realpath(disk["filename"]) for disk in shown[::-1]] == store.container_disk_paths(made.id)
    assert shown[0]["virtual-size"] == 2 * SIZE and {disk["format"] for disk in shown} == {"vmdk"}
    vmdk.check(Path(made.disk))


def test_a_new_container_shows_its_image(store: ImageStore, tmp_path: Path) -> None:
    made = store.create_container(IMAGE)
    raw = []
    for name, disk in (("image", store.disk_paths(IMAGE)[-1]), ("container", made.disk)):
        vmdk.convert(Path(disk), tmp_path / name)
        raw.append((tmp_path / name).read_bytes())
    assert raw[0] == raw[1]


def test_a_larger_disk_with_the_base_structure(store: ImageStore, tmp_path: Path) -> None:
    made = store.create_container(IMAGE, size=3 * SIZE, vic_base=True)
    for name, disk in (("image", store.disk_paths(IMAGE)[-1]), ("container", made.disk)):
        vmdk.convert(Path(disk), tmp_path / name)
    e2fsck.gate(tmp_path / "container")
    with mounted(tmp_path / "image") as before, mounted(tmp_path / "container") as after:
        assert (after / "etc/hostname").read_text() == "imgstore example\n"  # the image's own
        assert "127.0.0.1\tlocalhost" in (after / "etc/hosts").read_text()
        assert (after / "etc/resolv.conf").read_bytes() == b""
        assert (after / "etc/mtab").readlink() == Path("/proc/mounts")
        modes = {name: (after / name).stat().st_mode & 0o7777 for name in ("lib/modules", "proc", "sys", "run", ".tether")}
        assert modes == {"lib/modules": 0o755, "proc": 0o555, "sys": 0o555, "run": 0o755, ".tether": 0o777}
        assert os.statvfs(after).f_blocks > os.statvfs(before).f_blocks * 2.5
        old, new = tree_of(before), tree_of(after)
        assert diff(old, {path: new[path] for path in old}, without_mtime={b"", b"etc", b"lib"}) == []
    e2fsck.kernel_gate(tmp_path / "container")


def test_a_guest_s_work_is_checked_and_kept(store: ImageStore) -> None:
    made = store.create_container(IMAGE, name="guest")
    top = Path(store.disk_paths(IMAGE)[-1]).read_bytes()
    with exported(Path(made.disk)) as raw:
        with mounted(raw, writable=True) as root:
            (root / "new").write_bytes(b"by a guest" * 10_000)
            with pytest.raises(InUseError, match=r"^container guest: .* is in use"):
                store.remove_container("guest")
        assert list(store.check()) == []  # what a guest has open is left alone
    assert list(store.check()) == []
    assert Path(store.disk_paths(IMAGE)[-1]).read_bytes() == top
    assert store.container("guest").size_rw > made.size_rw
    damaged = bytearray(Path(made.disk).read_bytes())
    damaged[damaged.index(b"by a guest") - 1] ^= 1  # the end of a directory's block
    Path(made.disk).write_bytes(damaged)
    (finding,) = store.check()
    assert finding.object == f"file system of containers/{made.id}.vmdk" and "checksum is" in finding.problem
    assert store.remove_container("guest").name == "guest"
