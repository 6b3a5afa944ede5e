"""The kernel uses file systems that were grown here, while they were full and after it had used them itself; e2fsck judges."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from imgstore.errors import UnsupportedError
from imgstore.ext4.format import MAXIMUM_SIZE
from imgstore.ext4.grow import grow_file_system
from imgstore.ext4.reader import FileSystem
from tests.compat.test_ext4_e2fsck import everything
from tests.ext4_layers import MIB, FileBlockDevice, apply_layer, formatted_file
from tests.judges import e2fsck
from tests.judges.mount import mounted
from tests.judges.tree import Tree, diff, tree_of
from tests.tools import need, run

GIB = 1 << 30
GROUP = 128 * MIB


def grow(image: Path, size: int) -> None:
    with FileBlockDevice(image, size) as device:
        grow_file_system(device)
        assert FileSystem(device).geometry.blocks * 4096 == size
    e2fsck.gate(image)


def fill(root: Path, name: str) -> int:
    """Writes until nothing more fits; returns how many bytes did."""
    piece = random.Random(name).randbytes(4 * MIB)
    path = root / name
    with path.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(piece)
    return path.stat().st_size


def work(root: Path, seed: int) -> None:
    """What a guest does: many files and directories, of which some go, links, attributes, holes."""
    chance = random.Random(seed)
    for number in range(400):
        place = root / f"work-{seed}" / f"{number % 20}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}").write_bytes(chance.randbytes(chance.choice([0, 10, 5000, 30_000])))
    for number in range(0, 400, 3):
        (root / f"work-{seed}" / f"{number % 20}" / f"{number}").unlink()
    os.link(root / f"work-{seed}/1/1", root / f"work-{seed}/link")
    os.setxattr(root / f"work-{seed}/link", "user.big", b"v" * 3000)
    with (root / f"work-{seed}/sparse").open("wb") as file:
        file.truncate(GIB)
        os.pwrite(file.fileno(), b"end", GIB - 3)


def inode_numbers(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): path.lstat().st_ino for path in root.rglob("*")}


def seen(image: Path) -> tuple[Tree, dict[str, int]]:
    with mounted(image) as root:
        return tree_of(root), inode_numbers(root)


@pytest.mark.parametrize(
    "sizes",
    [
        [64 * MIB, 128 * MIB, GIB],
        [64 * MIB, 384 * GROUP, 385 * GROUP, MAXIMUM_SIZE],
        [GIB + 65536, 20 * GIB],
    ],
)
def test_used_full_and_grown(tmp_path: Path, sizes: list[int]) -> None:
    image = tmp_path / "image"
    with formatted_file(image, sizes[0]) as device:
        if sizes[0] > 64 * MIB:
            apply_layer(device, everything())
    with mounted(image, writable=True) as root:
        work(root, 1)
        if sizes[0] == 64 * MIB:
            fill(root, "full")
    before, numbers = seen(image)
    for size in sizes[1:]:
        grow(image, size)
        after, numbers_after = seen(image)
        assert diff(before, after) == []
        assert numbers == numbers_after
    with mounted(image, writable=True) as root:
        work(root, 2)
    e2fsck.gate(image)
    after, _ = seen(image)
    assert diff(before, {path: node for path, node in after.items() if not path.startswith(b"work-2")}, without_mtime=[b""]) == []


def test_the_kernel_fills_what_was_added(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with formatted_file(image, 64 * MIB):
        pass
    with mounted(image, writable=True) as root:
        first = fill(root, "first")
    grow(image, 300 * MIB + 65536)
    with mounted(image, writable=True) as root:
        usage = shutil.disk_usage(root)
        second = fill(root, "second")
        assert 225 * MIB < second <= usage.free  # the kernel keeps 2 % for itself
        assert (root / "first").read_bytes() == expected_content("first", first)
        assert (root / "second").read_bytes() == expected_content("second", second)
        (root / "first").unlink()
        for number in range(10_000):
            (root / f"{number}").touch()
    e2fsck.gate(image)


def expected_content(name: str, size: int) -> bytes:
    piece = random.Random(name).randbytes(4 * MIB)
    return (piece * (size // len(piece) + 1))[:size]


def test_grown_and_formatted_have_the_same_room(tmp_path: Path) -> None:
    """But for what depends on the size at birth: inodes and journal."""
    with formatted_file(tmp_path / "grown", GIB):
        pass
    grow(tmp_path / "grown", 20 * GIB)
    with formatted_file(tmp_path / "formatted", 20 * GIB):
        pass
    rooms = []
    for name in ("grown", "formatted"):
        with mounted(tmp_path / name) as root:
            status = os.statvfs(root)
            rooms.append((status.f_blocks, status.f_bfree, status.f_files, status.f_ffree))
    assert rooms[0] == rooms[1]


def test_a_mounted_file_system_is_refused(tmp_path: Path) -> None:
    with formatted_file(tmp_path / "image") as device, mounted(device.path, writable=True) as root:
        (root / "file").write_bytes(b"x")
        os.sync()
        run("cp", device.path, tmp_path / "copy")
    with (
        FileBlockDevice(tmp_path / "copy", 128 * MIB) as copy,
        pytest.raises(UnsupportedError, match="the journal must be replayed"),
    ):
        grow_file_system(copy)


def test_what_mke2fs_makes_is_refused(tmp_path: Path) -> None:
    need("mke2fs", "dumpe2fs")
    image = tmp_path / "image"
    run("mke2fs", "-q", "-t", "ext4", "-b", "4096", "-O", "^64bit,^resize_inode,^orphan_file,metadata_csum", image, "128M")
    before = run("dumpe2fs", image).stdout
    with FileBlockDevice(image, 256 * MIB) as device, pytest.raises(UnsupportedError, match="cannot grow") as caught:
        grow_file_system(device)
    assert "resize2fs" in caught.value.hint
    assert run("dumpe2fs", image).stdout == before
