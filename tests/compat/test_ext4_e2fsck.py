"""e2fsck and debugfs judge what the writer made, after each layer."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from imgstore.changes import Change, Entry, FileType, HardLink, Opaque, Whiteout
from imgstore.ext4.allocation import FileSystemFullError
from imgstore.ext4.check import check_file_system
from imgstore.ext4.directory_hash import hash_name
from imgstore.ext4.reader import FileSystem
from imgstore.ext4.structures import LINK_MAX
from tests.ext4_layers import (
    MIB,
    FileBlockDevice,
    apply_layer,
    content,
    device_node,
    directory,
    formatted_file,
    paths,
    regular,
    sparse,
    symlink,
)
from tests.judges import e2fsck
from tests.property.ext4_model import LAYERS, File, apply_model
from tests.tools import need, run

GIB = 1 << 30


def gate(device: FileBlockDevice) -> None:
    assert list(check_file_system(device)) == []
    e2fsck.gate(device.path)


@pytest.mark.parametrize(
    "size",
    [64 * MIB, 64 * MIB + 65536, 128 * MIB, 128 * MIB + 65536, GIB - 65536, GIB, 8 * GIB + 65536, 32 * GIB, 256 * GIB],
)
def test_formatted(tmp_path: Path, size: int) -> None:
    with formatted_file(tmp_path / "image", size) as device:
        gate(device)


def test_largest_disk(tmp_path: Path) -> None:
    with formatted_file(tmp_path / "image", 2048 * GIB - 65536) as device:
        apply_layer(device, [regular(b"file", b"x" * 10_000)])
        e2fsck.gate(device.path)


def everything() -> Iterator[Change]:
    acl = b"\2\0\0\0" + b"".join(
        tag.to_bytes(2, "little") + (6).to_bytes(2, "little") + identity.to_bytes(4, "little", signed=True)
        for tag, identity in ((1, -1), (2, 1000), (4, -1), (8, 2000), (16, -1), (32, -1))
    )
    yield directory(b"", 0o755)
    yield directory(b"d", 0o2775, uid=100000, gid=4294967294, xattrs={b"system.posix_acl_default": acl})
    yield regular(b"d/empty")
    yield regular(b"d/small", b"small")
    yield regular(b"d/big", random.Random(1).randbytes(3 * MIB + 17), piece=12345)
    attributes = {b"user.big": b"v" * 3000, b"user.small": b"s", b"trusted.none": b"", b"user." + b"n" * 250: b""}
    yield regular(b"d/xattrs", b"x", xattrs=attributes)
    yield regular(b"d/acl", b"x", xattrs={b"system.posix_acl_access": acl})
    yield regular(
        b"d/capability", b"x", xattrs={b"security.capability": bytes.fromhex("0100000200040000000000000000000000000000")}
    )
    yield sparse(b"d/sparse", 5 * GIB, [(0, b"start"), (GIB + 100, b"m" * 10_000), (4 * GIB, b"end")])
    yield sparse(b"d/hole", 10_000_000, [])
    yield sparse(b"d/fragments", 100 * 65536, [(number * 65536, b"f" * 4096) for number in range(100)])
    yield regular(b"d/zeros", bytes(1_000_000))
    yield symlink(b"d/fast", b"t" * 59)
    yield symlink(b"d/slow", b"t" * 60)
    yield symlink(b"d/longest", b"t" * 4095)
    yield device_node(b"d/null", FileType.CHARACTER_DEVICE, 1, 3)
    yield device_node(b"d/far", FileType.BLOCK_DEVICE, 300, 70000)
    yield device_node(b"d/fifo", FileType.FIFO)
    yield HardLink(b"d/link", b"d/small")
    yield HardLink(b"symlink", b"d/slow")
    yield regular(b"/".join([b"deep"] * 100) + b"/file", b"x")
    yield regular("ä".encode() * 127, b"name of 254 bytes")
    for time in (-(1 << 62), -(10**9) * 2**31, -1, 0, 2**32 * 10**9 + 5, 1 << 63):
        yield regular(b"times/%d" % time, mtime_ns=time)


def test_every_kind_of_file(tmp_path: Path) -> None:
    with formatted_file(tmp_path / "image", 256 * MIB) as device:
        apply_layer(device, everything())
        gate(device)


def test_layer_upon_layer(tmp_path: Path) -> None:
    with formatted_file(tmp_path / "image", 256 * MIB) as device:
        apply_layer(device, everything())
        apply_layer(
            device, [Whiteout(b"d/big"), Whiteout(b"symlink"), regular(b"d/xattrs", b"new"), HardLink(b"again", b"d/link")]
        )
        gate(device)
        apply_layer(device, [directory(b"d", 0o700), Opaque(b"d"), regular(b"d/only", b"y"), regular(b"deep", b"no directory")])
        gate(device)
        found = FileSystem(device)
        assert [path for path in paths(found) if path[:5] != b"times"][:4] == [b"again", b"d", b"d/only", b"deep"]
        apply_layer(device, [Whiteout(name) for name in (b"again", b"d", b"deep", b"times", "ä".encode() * 127)])
        gate(device)
        assert paths(FileSystem(device)) == []


@pytest.mark.parametrize(
    ("fragments", "depth", "blocks"),
    [(4, 0, 0), (5, 1, 1), (340, 1, 1), (4 * 340, 1, 4), (4 * 340 + 1, 2, 6)],
)
def test_extent_trees(tmp_path: Path, fragments: int, depth: int, blocks: int) -> None:
    data = [(number * 8192, b"%4d" % number * 1024) for number in range(fragments)]
    with formatted_file(tmp_path / "image", 128 * MIB) as device:
        apply_layer(device, [sparse(b"file", fragments * 8192, data)])
        gate(device)
        file_system = FileSystem(device)
        assert depth == file_system.lookup(b"file").block[6]
        read = content(file_system, b"file")
        assert all(
            read[offset : offset + 4096] == piece and not any(read[offset + 4096 : offset + 8192]) for offset, piece in data
        )
        before = FileSystem(device).super_block.free_blocks_count_lo
        apply_layer(device, [Whiteout(b"file")])
        gate(device)
        assert FileSystem(device).super_block.free_blocks_count_lo == before + fragments + blocks


def test_long_extents(tmp_path: Path) -> None:
    """More than 32768 blocks side by side are more than one extent."""
    piece = memoryview(b"x" * MIB)
    entry = Entry(b"file", FileType.REGULAR, 0o644, size=300 * MIB, data=(piece for _ in range(300)))
    with formatted_file(tmp_path / "image", 512 * MIB) as device:
        apply_layer(device, [entry])
        gate(device)
        assert [run.length for run in FileSystem(device).runs(FileSystem(device).lookup(b"file"))] == [32768, 32768, 11264]


@pytest.mark.parametrize(("count", "length"), [(1, 8), (200, 8), (20_000, 8), (20_000, 200)])
def test_wide_directories(tmp_path: Path, count: int, length: int) -> None:
    """One block, an index of one level, an index of two."""
    names = [b"%d" % number + b"-" * (length - len(b"%d" % number)) for number in range(count)]
    with formatted_file(tmp_path / "image", 2 * GIB) as device:
        apply_layer(device, [regular(b"d/" + name) for name in names])
        gate(device)
        assert len(names) == len(FileSystem(device).list_directory(FileSystem(device).lookup(b"d")))


@pytest.mark.parametrize("count", [LINK_MAX - 2, LINK_MAX - 1, 70_000])
def test_many_subdirectories(tmp_path: Path, count: int) -> None:
    with formatted_file(tmp_path / "image", 2 * GIB) as device:
        apply_layer(device, [directory(b"d/%d" % number) for number in range(count)])
        gate(device)
        links = FileSystem(device).lookup(b"d").links
        assert links == (2 + count if 2 + count <= LINK_MAX else 1)


def test_most_hard_links(tmp_path: Path) -> None:
    with formatted_file(tmp_path / "image", 256 * MIB) as device:
        apply_layer(device, [regular(b"file"), *(HardLink(b"links/%d" % number, b"file") for number in range(LINK_MAX - 1))])
        gate(device)
        apply_layer(device, [Opaque(b"links")])
        gate(device)
        assert FileSystem(device).lookup(b"file").links == 1


def test_freed_space_is_used_again(tmp_path: Path) -> None:
    with formatted_file(tmp_path / "image") as device:
        for _ in range(6):
            apply_layer(device, [regular(b"file-%d" % number, b"x" * (3 * MIB)) for number in range(10)])
            gate(device)
        apply_layer(device, [Whiteout(b"file-%d" % number) for number in range(0, 10, 2)])
        apply_layer(device, [regular(b"spread", random.Random(2).randbytes(20 * MIB))])
        gate(device)
        assert random.Random(2).randbytes(20 * MIB) == content(FileSystem(device), b"spread")


def test_freed_inodes_are_used_again(tmp_path: Path) -> None:
    with formatted_file(tmp_path / "image") as device:
        for round_ in range(4):
            apply_layer(
                device, [directory(b"d"), Opaque(b"d"), *(regular(b"d/%d-%d" % (round_, number)) for number in range(1900))]
            )
            gate(device)


@pytest.mark.parametrize("kind", ["blocks", "inodes"])
def test_filled_up_to_the_last(tmp_path: Path, kind: str) -> None:
    with formatted_file(tmp_path / "image") as device:
        free = FileSystem(device).super_block
        if kind == "blocks":  # the root directory needs one block, and gives back one only after that
            changes = [regular(b"file", b"x" * (free.free_blocks_count_lo * 4096))]
        else:
            changes = [regular(b"%d" % number) for number in range(free.free_inodes_count - 1)]
            changes.append(regular(b"last"))
        summary = apply_layer(device, changes)
        assert (summary.free_inodes if kind == "inodes" else summary.free_blocks) == 0
        gate(device)
        with pytest.raises(FileSystemFullError, match=r"more: no (block|inode) is free"):
            apply_layer(device, [regular(b"more", b"x")])


@given(LAYERS)
@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
def test_any_layers(tmp_path: Path, layers: Sequence[Sequence[Change]]) -> None:
    (tmp_path / "image").unlink(missing_ok=True)
    tree = {b"": File(FileType.DIRECTORY, 0o755)}
    with formatted_file(tmp_path / "image") as device:
        for layer in layers:
            apply_layer(device, apply_model(tree, layer))
        gate(device)


def debugfs(image: Path, request: str) -> str:
    need("debugfs")
    return run("debugfs", "-R", request, image).stdout.decode()


@pytest.mark.parametrize("name", [b"a", b"abc", b"abcd", b"x" * 31, b"x" * 32, b"x" * 33, b"y" * 255])
def test_hash(tmp_path: Path, name: bytes) -> None:
    seed = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")
    with formatted_file(tmp_path / "image") as device:
        said = debugfs(device.path, f"dx_hash -h half_md4 -s {seed} {name.decode()}")
    words = [int.from_bytes(seed.bytes[start : start + 4], "little") for start in (0, 4, 8, 12)]
    value, minor = hash_name(name, words)
    assert f"Hash of {name.decode()} is 0x{value:x} (minor 0x{minor:x})" == said.strip()


def test_debugfs_reads_every_kind(tmp_path: Path) -> None:
    with formatted_file(tmp_path / "image", 256 * MIB) as device:
        apply_layer(device, everything())
        assert 'Fast link dest: "' + "t" * 59 in debugfs(device.path, "stat d/fast")
        assert "(New-style) Device major/minor number: 300:70000" in debugfs(device.path, "stat d/far")
        assert "Links: 2" in debugfs(device.path, "stat d/link")
        assert "ctime: 0x80000000" in debugfs(device.path, f"stat times/{-(1 << 62)}")
        assert run("debugfs", "-R", "cat d/big", device.path).stdout == random.Random(1).randbytes(3 * MIB + 17)


def test_two_writers_make_the_same_bytes(tmp_path: Path) -> None:
    images = []
    for name in ("one", "two"):
        with formatted_file(tmp_path / name, 256 * MIB) as device:
            apply_layer(device, everything())
            apply_layer(device, [Opaque(b"d"), regular(b"d/new", b"x" * 5000)])
            images.append(device.path)
    run("cmp", *images)


def test_image_of_mke2fs_can_be_written(tmp_path: Path) -> None:
    """Not our layout: bitmaps and inode tables among the data, backups of the superblock, a bigger journal."""
    need("mke2fs")
    image = tmp_path / "image"
    run(
        "mke2fs",
        "-q",
        "-t",
        "ext4",
        "-b",
        "4096",
        "-O",
        "^64bit,^resize_inode,^orphan_file,metadata_csum",
        "-d",
        "/etc",
        image,
        "512M",
    )
    with FileBlockDevice(image) as device:
        count = len(paths(FileSystem(device)))
        apply_layer(device, everything())
        assert list(check_file_system(device)) == []
        assert count < len(paths(FileSystem(device)))
        said = e2fsck.findings(image)
        assert said == []
