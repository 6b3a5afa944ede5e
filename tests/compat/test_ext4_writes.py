"""The writer on file systems that a kernel has used: fragmented, full, with what only the kernel makes; e2fsck and the kernel judge."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import struct
import uuid
from collections.abc import Iterable
from pathlib import Path

import pytest

from imgstore.changes import Change, HardLink
from imgstore.errors import InvalidError, NotFoundError
from imgstore.ext4.allocation import FileSystemFullError
from imgstore.ext4.check import check_file_system
from imgstore.ext4.directory_hash import hash_name
from imgstore.ext4.paths import NotDirectoryError, resolve_path
from imgstore.ext4.reader import FileSystem
from imgstore.ext4.writer import LayerWriter
from tests.compat.test_ext4_e2fsck import debugfs, everything
from tests.compat.test_ext4_grow import fill, work
from tests.compat.test_ext4_kernel import assert_kernel_agrees
from tests.ext4_layers import MIB, MTIME, FileBlockDevice, apply_layer, directory, formatted_file, regular, sparse, symlink
from tests.judges import e2fsck
from tests.judges.mount import mounted
from tests.judges.tree import diff, tree_of
from tests.tools import missing, need, run

NOW = 1_790_000_000_987_654_321
GIB = 1 << 30


def change_live(image: Path, changes: Iterable[Change]) -> None:
    with FileBlockDevice(image) as device:
        writer = LayerWriter(device, now_ns=NOW)
        for change in changes:
            writer.apply(change)
        writer.finish()
        assert list(check_file_system(device)) == []
    e2fsck.gate(image)


def scatter(root: Path, seed: int) -> None:
    """Nearly fills the file system with small files in many directories, and removes every other one."""
    chance = random.Random(seed)
    made: list[Path] = []
    try:
        while True:
            place = root / f"{len(made) % 30}"
            place.mkdir(exist_ok=True)
            made.append(place / f"file-{len(made)}")
            made[-1].write_bytes(chance.randbytes(chance.randrange(40_000)))
    except OSError as error:
        assert error.errno == errno.ENOSPC
    os.sync()
    for path in made[::2]:
        path.unlink()


def changes_over(count: int) -> Iterable[Change]:
    """New files in old directories and new ones, and over what ``scatter`` made."""
    chance = random.Random(count)
    for number in range(count):
        yield regular(b"%d/new-%d" % (number % 30, number), chance.randbytes(chance.randrange(20_000)))
    yield regular(b"big", chance.randbytes(9 * MIB))
    yield regular(b"1/file-1", b"replaced")
    yield directory(b"2", 0o700, xattrs={b"user.new": b"n" * 500})
    yield HardLink(b"3/link", b"big")
    yield regular(b"5", b"a file where a directory was")
    yield sparse(b"sparse", GIB, [(GIB - 4096, b"end of it")])
    yield symlink(b"link", b"t" * 200)


def test_fragmented(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with formatted_file(image, 64 * MIB):
        pass
    with mounted(image, writable=True) as root:
        scatter(root, 1)
        before = tree_of(root)
    change_live(image, changes_over(300))
    assert_kernel_agrees(image)
    with mounted(image) as root:
        after = tree_of(root)
        assert (root / "big").read_bytes() == (root / "3/link").read_bytes()
        assert (root / "5").read_bytes() == b"a file where a directory was"
    touched = {b"", b"1/file-1", b"2", *(b"%d" % number for number in range(30))}
    kept = {path: node for path, node in before.items() if path not in touched and not path.startswith(b"5/")}
    assert diff(kept, {path: node for path, node in after.items() if path in kept}) == []
    with FileBlockDevice(image) as device:
        file_system = FileSystem(device)
        # What scatter left is holes of 5 blocks in the mean: no run of 16 in most of the disk.
        assert len(list(file_system.runs(file_system.lookup(b"big")))) > 4
    with mounted(image, writable=True) as root:
        work(root, 3)
    e2fsck.gate(image)


def test_filled_by_the_kernel(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with formatted_file(image, 64 * MIB) as device:
        apply_layer(device, [regular(b"d/%d" % number, b"x" * 4096) for number in range(5)])
    with mounted(image, writable=True) as root:
        fill(root, "full")
        os.sync()
        while True:  # the kernel kept some blocks back, which it gives to small files
            try:
                (root / "d" / os.urandom(4).hex()).write_bytes(b"y" * 4096)
            except OSError:
                break
    with FileBlockDevice(image) as device:
        free = FileSystem(device).super_block.free_blocks_count_lo
        before = device.read(0, 1 << 20)
        writer = LayerWriter(device, now_ns=NOW)
        with pytest.raises(FileSystemFullError, match=r"^d/new: no block is free: \d+ of 16384 blocks are used$"):
            writer.apply(regular(b"d/new", b"n" * (4096 * (free + 1))))
        assert device.read(0, 1 << 20) == before
    change_live(image, [regular(b"d/1", b"z" * 4096), symlink(b"d/short", b"target"), regular(b"empty")])
    change_live(image, [regular(b"full", b"z" * (8 * MIB))])
    with mounted(image) as root:
        assert (root / "d/1").read_bytes() == b"z" * 4096
        assert (root / "full").read_bytes() == b"z" * (8 * MIB)
        assert (root / "d/short").readlink() == Path("target")


def test_times_are_those_of_the_kernel(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with formatted_file(image, 64 * MIB) as device:
        apply_layer(device, [regular(b"d/file"), regular(b"other/file"), HardLink(b"link", b"d/file")])
    change_live(
        image, [regular(b"d/file", b"new"), regular(b"made/file"), directory(b"stated", mtime_ns=5), regular(b"stated/file")]
    )
    with mounted(image) as root:
        found = {
            name: (status.st_mtime_ns, status.st_ctime_ns, status.st_atime_ns)
            for name in ("d", "d/file", "link", "made", "made/file", "stated", "other", "other/file", ".")
            if (status := (root / name).lstat())
        }
    assert found == {
        "d": (NOW, NOW, 0),
        "d/file": (MTIME, NOW, NOW),
        "link": (MTIME, NOW, MTIME),
        "made": (NOW, NOW, NOW),
        "made/file": (MTIME, NOW, NOW),
        "stated": (5, NOW, NOW),
        "other": (0, 0, 0),
        "other/file": (MTIME, MTIME, MTIME),
        ".": (NOW, NOW, 0),
    }
    assert f"crtime: 0x{NOW // 10**9:08x}" in debugfs(image, "stat d/file")


def test_what_only_the_kernel_makes(tmp_path: Path) -> None:
    """xattr blocks that files and directories share, preallocated extents, sockets, a directory whose index has two levels."""
    image = tmp_path / "image"
    names = [f"{number:05}" + "ß" * 120 for number in range(20_000)]
    with formatted_file(image, 512 * MIB) as device:
        apply_layer(device, everything())
    with mounted(image, writable=True) as root:
        (root / "wide").mkdir()
        for name in names:
            (root / "wide" / name).touch()
        for number in range(6):
            (root / f"shared-{number}").mkdir()
            (root / f"file-{number}").touch()
            for kind in ("shared", "file"):
                os.setxattr(root / f"{kind}-{number}", "user.shared", b"v" * 2000)
        with (root / "preallocated").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 10 * MIB)
        os.mknod(root / "socket", 0o140600)
    with FileBlockDevice(image) as device:
        file_system = FileSystem(device)
        blocks = {
            file_system.lookup(b"%s-%d" % (kind, number)).xattr_block for kind in (b"shared", b"file") for number in range(6)
        }
        assert len(blocks) == 1
        assert not blocks & {0}
    change_live(
        image,
        [
            regular(b"wide/one more"),
            regular(b"wide/" + names[5].encode(), b"replaced"),
            directory(b"shared-1", xattrs={b"user.shared": b"w" * 2000}),
            directory(b"shared-2"),
            regular(b"file-3", xattrs={b"user.shared": b"v" * 2000}),
            regular(b"shared-4"),
            regular(b"preallocated", b"p"),
            regular(b"socket", b"s"),
            regular(b"d/big", b"b"),
        ],
    )
    with mounted(image, writable=True) as root:
        for name in [*names, "one more"]:
            assert (root / "wide" / name).lstat().st_nlink == 1
        values = {path.name: os.getxattr(path, "user.shared")[:1] for path in root.glob("*-*") if os.listxattr(path)}
        assert values == {
            **dict.fromkeys(("shared-0", "shared-3", "shared-5", *(f"file-{number}" for number in range(6))), b"v"),
            "shared-1": b"w",
        }
        for name in names[::2]:
            (root / "wide" / name).unlink()
        (root / "file-0").unlink()
    e2fsck.gate(image)


@pytest.mark.parametrize("sign", ["signed_directory_hash", "unsigned_directory_hash"])
def test_names_beyond_ascii_in_an_index(tmp_path: Path, sign: str) -> None:
    """The kernel finds them by the hash that the superblock states; mke2fs states the signed one."""
    need("mke2fs")
    image = tmp_path / "image"
    run("mke2fs", "-q", "-t", "ext4", "-b", "4096", "-O", "^64bit,^resize_inode,^orphan_file,metadata_csum", image, "128M")
    if sign.startswith("unsigned"):
        run("debugfs", "-w", "-R", "set_super_value flags 2", image)
    assert sign in run("dumpe2fs", "-h", image).stdout.decode()
    names = ["ä" * (number % 50) + f"ß{number}" + "é" * (number % 7) for number in range(1000)]
    change_live(image, [regular(b"d/" + name.encode()) for name in names])
    with mounted(image, writable=True) as root:
        for name in names:
            (root / "d" / name).lstat()
        for number in range(1000):
            (root / "d" / f"ö{number}").touch()
    e2fsck.gate(image)
    change_live(image, [regular(b"d/last")])


@pytest.mark.parametrize("name", ["ä", "aä", "äa", "ßßß", "x" * 31 + "é", "é" * 16, "é" * 17, "aé" * 40, "ab\xffc"])
def test_signed_hash(tmp_path: Path, name: str) -> None:
    seed = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")
    with formatted_file(tmp_path / "image") as device:
        said = debugfs(device.path, f"dx_hash -h half_md4 -s {seed} {name}")
    words = [int.from_bytes(seed.bytes[start : start + 4], "little") for start in (0, 4, 8, 12)]
    value, minor = hash_name(name.encode(), words, signed=True)
    assert f"0x{value:x} (minor 0x{minor:x})" in said


_OPENAT2 = 437
_RESOLVE_IN_ROOT = 0x10


def open_in_root(root: int, path: bytes, *, follow_last: bool) -> int:
    """The inode that ``openat2(2)`` finds, as if ``root`` were the root directory; or the negated errno."""
    flags = os.O_PATH | os.O_CLOEXEC | (0 if follow_last else os.O_NOFOLLOW)
    how = struct.pack("<QQQ", flags, 0, _RESOLVE_IN_ROOT)
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(_OPENAT2, root, path, how, len(how))
    if descriptor < 0:
        if ctypes.get_errno() == errno.ENOSYS:
            missing("openat2 of Linux 5.6")
        return -ctypes.get_errno()
    try:
        return os.fstat(descriptor).st_ino
    finally:
        os.close(descriptor)


def resolve(file_system: FileSystem, path: bytes, *, follow_last: bool) -> int:
    """The same of ours."""
    try:
        node = resolve_path(file_system, path, follow_last=follow_last).node
    except NotDirectoryError:
        return -errno.ENOTDIR
    except NotFoundError:
        return -errno.ENOENT
    except InvalidError:
        return -errno.ELOOP
    return -errno.ENOENT if node is None else node.number


def test_paths_lead_where_the_kernel_goes(tmp_path: Path) -> None:
    """Random trees of links, and random ways through them."""
    chance = random.Random(5)
    words = [b"a", b"b", b"c", b"d", b"..", b".", b"", b"nowhere"]

    def any_path(most: int) -> bytes:
        return b"/".join(chance.choices(words, weights=[4, 4, 4, 4, 3, 1, 1, 1], k=chance.randint(1, most)))

    names = {b"/".join(chance.choices(words[:4], k=chance.randint(1, 3))) for _ in range(60)}
    changes: list[Change] = []
    for name in sorted(names):
        if not any(other.startswith(name + b"/") for other in names):
            target = any_path(4) or b"."
            changes.append(symlink(name, target) if chance.random() < 0.7 else regular(name))
    with formatted_file(tmp_path / "image") as device:
        apply_layer(device, changes)
        file_system = FileSystem(device)
        seen = set()
        with mounted(device.path) as mountpoint:
            root = os.open(mountpoint, os.O_PATH)
            try:
                for _ in range(4000):
                    path, follow_last = any_path(6) or b"/", chance.random() < 0.5
                    expected = open_in_root(root, path, follow_last=follow_last)
                    assert (path, expected) == (path, resolve(file_system, path, follow_last=follow_last))
                    seen.add(expected)
            finally:
                os.close(root)
        assert {-errno.ENOENT, -errno.ENOTDIR, -errno.ELOOP} < seen
        assert len(seen) > 20
