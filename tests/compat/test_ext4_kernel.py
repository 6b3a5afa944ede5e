"""The kernel mounts what the writer made, reads it, writes to it; and the reader and the writer take what the kernel left."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from imgstore.changes import Entry, FileType, HardLink, Opaque, Whiteout
from imgstore.ext4.check import check_file_system
from imgstore.ext4.reader import FileSystem
from tests.compat.test_ext4_e2fsck import everything
from tests.ext4_layers import MIB, FileBlockDevice, apply_layer, content, directory, formatted_file, paths, regular, sparse
from tests.judges import e2fsck
from tests.judges.mount import mounted
from tests.judges.tree import BLOCK, ContentDigest, Node, Tree, diff, tree_of
from tests.tools import need, need_root, run

GIB = 1 << 30


def tree_of_reader(file_system: FileSystem) -> Tree:
    """What ``tree_of`` a mount should give."""
    names: dict[bytes, list[bytes]] = {}
    entries: dict[bytes, Entry] = {}
    for change in file_system.changes():
        if isinstance(change, Entry):
            entries[change.path] = change
            names[change.path] = [change.path]
        else:
            assert isinstance(change, HardLink)
            names[change.target].append(change.path)
    tree: Tree = {}
    for first, entry in entries.items():
        node = Node(
            type=entry.type << 12,
            mode=entry.mode,
            uid=entry.uid,
            gid=entry.gid,
            mtime_ns=entry.mtime_ns,
            size=len(entry.target) or entry.size,
            content=digest_of(file_system, first) if entry.type is FileType.REGULAR else "",
            names=tuple(sorted(names[first])),
            target=entry.target,
            rdev=entry.rdev,
            xattrs={os.fsdecode(name).encode(errors="surrogateescape"): value for name, value in entry.xattrs.items()},
        )
        tree.update(dict.fromkeys(names[first], node))
    return tree


def digest_of(file_system: FileSystem, path: bytes) -> str:
    node = file_system.lookup(path)
    digest = ContentDigest()
    done = 0
    for offset, length in file_system.data_segments(node):
        for start in range(max(offset - offset % BLOCK, done), offset + length, BLOCK):
            digest.update(start, file_system.read(node, start, BLOCK))
            done = start + BLOCK
    return digest.hexdigest()


def assert_kernel_agrees(image: Path) -> None:
    with FileBlockDevice(image) as device:
        expected = tree_of_reader(FileSystem(device))
    with mounted(image) as root:
        assert diff(expected, tree_of(root)) == []


@pytest.mark.parametrize("size", [64 * MIB, GIB, 32 * GIB])
def test_formatted(tmp_path: Path, size: int) -> None:
    with formatted_file(tmp_path / "image", size) as device:
        with mounted(device.path) as root:
            assert list(root.iterdir()) == []
        e2fsck.kernel_gate(device.path)


def test_every_kind_of_file(tmp_path: Path) -> None:
    with formatted_file(tmp_path / "image", 256 * MIB) as device:
        apply_layer(device, everything())
        assert_kernel_agrees(device.path)
        apply_layer(
            device, [Whiteout(b"d/big"), HardLink(b"again", b"d/link"), regular(b"d/xattrs", b"new"), directory(b"deep", 0o700)]
        )
        assert_kernel_agrees(device.path)
        e2fsck.kernel_gate(device.path)


def test_acl_and_capability_are_seen(tmp_path: Path) -> None:
    need("getfacl", "getcap")
    with formatted_file(tmp_path / "image", 256 * MIB) as device:
        apply_layer(device, everything())
        with mounted(device.path) as root:
            said = run("getfacl", "-n", "-c", root / "d/acl").stdout.decode()
            assert "user:1000:rw-\n" in said
            assert "group:2000:rw-\n" in said
            assert "default:user:1000:rw-\n" in run("getfacl", "-n", "-c", root / "d").stdout.decode()
            assert "cap_net_bind_service=ep" in run("getcap", root / "d/capability").stdout.decode()


@pytest.mark.parametrize(("count", "name"), [(20_000, "name-{:08}"), (20_000, "{:05}" + "ß" * 120), (300, "é" * 124 + "{:05}")])
def test_indexed_directory(tmp_path: Path, count: int, name: str) -> None:
    """The kernel finds names by our index, adds to it and removes from it."""
    with formatted_file(tmp_path / "image", GIB) as device:
        apply_layer(device, [regular(b"d/" + name.format(number).encode()) for number in range(count)])
        with mounted(device.path, writable=True) as root:
            for number in range(0, count, 7):
                assert stat.S_ISREG((root / "d" / name.format(number)).lstat().st_mode)
            assert not (root / "d" / name.format(count)).exists()
            for number in range(count, count + 3000):
                (root / "d" / name.format(number)).touch()
            for number in range(0, count, 3):
                (root / "d" / name.format(number)).unlink()
        e2fsck.gate(device.path)
        kept = {name.format(number).encode() for number in range(count + 3000) if number >= count or number % 3}
        file_system = FileSystem(device)
        assert kept == {found for found, _, _ in file_system.list_directory(file_system.lookup(b"d"))}
        assert list(check_file_system(device)) == []
        apply_layer(device, [regular(b"d/ours"), Whiteout(b"d/" + name.format(1).encode())])
        e2fsck.kernel_gate(device.path)


def test_many_subdirectories(tmp_path: Path) -> None:
    with formatted_file(tmp_path / "image", 2 * GIB) as device:
        apply_layer(device, [directory(b"d/%d" % number) for number in range(70_000)])
        with mounted(device.path, writable=True) as root:
            assert (root / "d").stat().st_nlink == 1
            assert len(list((root / "d").iterdir())) == 70_000
            (root / "d" / "one more").mkdir()
            (root / "d" / "5").rmdir()
        e2fsck.gate(device.path)


def test_deep_extent_tree(tmp_path: Path) -> None:
    with formatted_file(tmp_path / "image", 256 * MIB) as device:
        apply_layer(device, [sparse(b"file", 1400 * 8192, [(number * 8192, b"%4d" % number * 1024) for number in range(1400)])])
        assert_kernel_agrees(device.path)
        with mounted(device.path, writable=True) as root, (root / "file").open("r+b") as file:
            for number in range(1400, 2100):
                file.seek(number * 8192)
                file.write(b"k" * 4096)
        e2fsck.gate(device.path)
        assert_kernel_agrees(device.path)


def test_full_file_system(tmp_path: Path) -> None:
    with formatted_file(tmp_path / "image") as device:
        free = FileSystem(device).super_block.free_blocks_count_lo
        assert apply_layer(device, [regular(b"file", b"x" * (free * 4096))]).free_blocks == 0
        with mounted(device.path, writable=True) as root:
            with pytest.raises(OSError, match="No space left"):
                (root / "more").write_bytes(b"y" * 4096)
            (root / "file").unlink()
            (root / "more").write_bytes(b"y" * 4096)
        e2fsck.gate(device.path)


def test_layer_over_what_the_kernel_left(tmp_path: Path) -> None:
    """Shared xattr blocks, preallocated extents, hash trees, sockets: what a container leaves, and a commit finds."""
    need_root()
    need("setfattr")
    with formatted_file(tmp_path / "image", 512 * MIB) as device:
        apply_layer(device, everything())
        with mounted(device.path, writable=True) as root:
            for number in range(5):
                path = root / f"shared-{number}"
                path.write_bytes(b"x")
                os.setxattr(path, "user.shared", b"v" * 2000)
            with (root / "preallocated").open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, 10 * MIB)
                os.pwrite(file.fileno(), b"data", 5 * MIB)
            os.mknod(root / "socket", stat.S_IFSOCK | 0o600)
            os.truncate(root / "d/big", 1234)
            for number in range(2000):
                (root / f"made-{number}").write_bytes(b"%d" % number)
        e2fsck.gate(device.path)
        assert list(check_file_system(device)) == []
        file_system = FileSystem(device)
        assert content(file_system, b"preallocated") == bytes(5 * MIB) + b"data" + bytes(5 * MIB - 4)
        assert b"socket" not in paths(file_system)
        for name in (b"shared-0", b"preallocated", b"socket", b"d/big"):
            apply_layer(device, [Whiteout(name)])
            e2fsck.gate(device.path)
        apply_layer(device, [regular(b"shared-1"), Opaque(b"")])
        e2fsck.kernel_gate(device.path)
        assert paths(FileSystem(device)) == [b"shared-1"]


def test_interrupted_kernel_is_refused(tmp_path: Path) -> None:
    """A copy of a mounted file system has a journal to replay."""
    with formatted_file(tmp_path / "image") as device:
        with mounted(device.path, writable=True) as root:
            (root / "file").write_bytes(b"x")
            os.sync()
            run("cp", device.path, tmp_path / "copy")
        assert list(check_file_system(device)) == []
        with FileBlockDevice(tmp_path / "copy") as copy:
            assert ["the journal must be replayed" in finding.problem for finding in check_file_system(copy)] == [True]


@pytest.mark.parametrize(
    "features",
    [
        "none",
        "^metadata_csum",
        "^metadata_csum,^64bit,^flex_bg,uninit_bg",
        "^metadata_csum,^uninit_bg",
        "orphan_file",
        "^dir_index,^has_journal",
    ],
)
def test_reads_what_mke2fs_makes(tmp_path: Path, features: str) -> None:
    """Descriptors of 64 bytes, no checksums, bitmaps in every group, backups of the superblock."""
    need("mke2fs")
    image = tmp_path / "image"
    options = () if features == "none" else ("-O", features)
    run("mke2fs", "-q", "-t", "ext4", "-b", "4096", *options, "-d", Path(__file__).parents[2] / "docs", image, "700M")
    with mounted(image, writable=True) as root:
        for number in range(1500):
            (root / f"made-by-the-kernel-{number}").write_bytes(b"%d" % number * 2000)
        os.setxattr(root / "made-by-the-kernel-1", "user.big", b"v" * 3000)
    assert_kernel_agrees(image)
    with FileBlockDevice(image) as device:
        assert list(check_file_system(device)) == []
