"""What a guest's kernel leaves: written by a real one, read by us, mended by us, and both judged by the kernel's own recovery."""

from __future__ import annotations

import ctypes
import os
import random
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from imgstore.blocks import BlockDevice
from imgstore.changes import FileType
from imgstore.errors import CorruptError, UnsupportedError
from imgstore.ext4.check import check_file_system
from imgstore.ext4.log import Log
from imgstore.ext4.reader import FileSystem
from imgstore.ext4.recovery import RecoveredDevice, recover, recovered
from imgstore.ext4.writer import LayerWriter
from tests.compat.test_ext4_kernel import tree_of_reader
from tests.ext4_layers import EVERY_STRUCTURE, MIB, FileBlockDevice, apply_layer, formatted_file, regular, sparse
from tests.judges import e2fsck
from tests.judges.mount import mounted
from tests.judges.tree import Tree, diff, tree_of
from tests.tools import need, need_root, run

_KEEP_SIZE, _PUNCH, _COLLAPSE, _ZERO, _INSERT = 0x01, 0x02, 0x08, 0x10, 0x20
_LIBC = ctypes.CDLL(None, use_errno=True)
_ACL = bytes.fromhex("02000000 01000600ffffffff 02000400e8030000 04000400ffffffff 10000600ffffffff 20000400ffffffff")
_DEEP_TREE = re.compile(r"Inode \d+ extent tree \(at level \d\) could be (shorter|narrower)\.  Optimize\? no")
_BIG = random.Random(0).randbytes(3000)


@contextmanager
def guest(image: Path, options: str = "") -> Iterator[Path]:
    """The file system mounted as in a guest; a commit comes only when it is asked for, so that copies of the image are power cuts."""
    need_root()
    directory = image.with_name(image.name + ".mount")
    directory.mkdir()
    run("mount", "-t", "ext4", "-o", ",".join(filter(None, ("loop", "commit=300", options))), image, directory)
    try:
        yield directory
    finally:
        run("umount", directory)
        directory.rmdir()


def sync(root: Path) -> None:
    """A full commit of this one file system."""
    descriptor = os.open(root, os.O_RDONLY)
    assert _LIBC.syncfs(descriptor) == 0
    os.close(descriptor)


class Work:
    """Random work in one directory; equal seeds do equal work."""

    def __init__(self, root: Path, seed: int) -> None:
        self._root = root
        self._random = random.Random(seed)
        self._serial = 0

    def run(self, count: int) -> None:
        often = [self._write, self._allocate, self._truncate, self._rename, self._link, self._unlink]
        kinds = [*often, *often, self._special, self._directory, self._xattrs, self._package, self._fragment]
        for _ in range(count):
            self._random.choice(kinds)()

    def _path(self) -> Path:
        return self._root / f"file-{self._random.randrange(40)}"

    def _write(self) -> None:
        path = self._path()
        path.touch()
        with path.open("r+b") as file:
            file.seek(self._random.randrange(300_000))
            file.write(self._random.randbytes(self._random.choice([10, 5000, 100_000])))

    def _allocate(self) -> None:
        path = self._path()
        path.touch()
        with path.open("r+b") as file:
            mode = self._random.choice([0, _KEEP_SIZE, _PUNCH | _KEEP_SIZE, _COLLAPSE, _ZERO, _ZERO | _KEEP_SIZE, _INSERT])
            offset, length = self._random.randrange(60), self._random.randrange(1, 30)
            odd = 0 if mode in (_COLLAPSE, _INSERT) else self._random.randrange(4096)
            # Refused where the range does not suit the mode and the size: that is work, too.
            _LIBC.fallocate(file.fileno(), mode, ctypes.c_longlong(offset * 4096 + odd), ctypes.c_longlong(length * 4096))

    def _fragment(self) -> None:
        """More extents than one block of them holds, and holes cut into the tree again."""
        with self._path().open("wb") as file:
            step = self._random.choice([8192, 12288])
            for number in range(self._random.choice([6, 400])):
                os.pwrite(file.fileno(), b"x%d" % number, number * step)
            os.fsync(file.fileno())
            os.ftruncate(file.fileno(), self._random.randrange(300) * step + self._random.randrange(4096))

    def _truncate(self) -> None:
        path = self._path()
        path.touch()
        os.truncate(path, self._random.randrange(400_000))

    def _rename(self) -> None:
        path = self._path()
        path.touch()
        path.rename(self._path())

    def _link(self) -> None:
        path = self._path()
        path.touch()
        self._serial += 1
        os.link(path, self._root / f"link-{self._serial}")

    def _unlink(self) -> None:
        self._path().unlink(missing_ok=True)

    def _special(self) -> None:
        self._serial += 1
        path = self._root / f"special-{self._serial}"
        match self._random.randrange(5):
            case 0:
                os.mkfifo(path)
            case 1:
                os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(300, 70000))
            case 2:
                path.symlink_to("t" * self._random.choice([5, 59, 60, 300]))
            case 3:
                os.mknod(path, stat.S_IFSOCK | 0o755)
            case 4:
                os.mknod(path, stat.S_IFBLK | 0o640, os.makedev(7, 1))

    def _directory(self) -> None:
        path = self._root / f"dir-{self._random.randrange(8)}"
        if path.exists() and self._random.randrange(3) == 0:
            run("rm", "-r", path)
            return
        path = path.joinpath(*("deep" * number for number in range(1, self._random.randrange(2, 12))))
        path.mkdir(parents=True, exist_ok=True)
        for number in range(self._random.choice([3, 300])):
            (path / f"name-{number}").touch()

    def _xattrs(self) -> None:
        path = self._path()
        path.touch()
        name = f"user.name-{self._random.randrange(3)}"
        os.setxattr(path, name, self._random.choice([b"", b"small", _BIG, _BIG]) if name.endswith("0") else b"more")
        os.setxattr(path, "system.posix_acl_access", _ACL)
        os.chown(path, self._random.randrange(100_000), self._random.randrange(100_000))
        if self._random.randrange(3) == 0:
            os.removexattr(path, name)

    def _package(self) -> None:
        """As dpkg does: every file under another name, synchronized, then renamed over the old one."""
        directory = self._root / "usr" / f"package-{self._random.randrange(5)}"
        directory.mkdir(parents=True, exist_ok=True)
        for number in range(5):
            new = directory / f"{number}.dpkg-new"
            with new.open("wb") as file:
                file.write(self._random.randbytes(self._random.choice([0, 700, 30_000])))
                file.flush()
                os.fsync(file.fileno())
            new.chmod(0o4755)
            new.rename(directory / f"{number}")


def copy(image: Path, name: str) -> Path:
    there = image.with_name(name)
    run("cp", "--sparse=always", image, there)
    return there


def tree_as_recovered(image: Path) -> Tree:
    with FileBlockDevice(image) as device:
        view = recovered(device)
        assert isinstance(view, RecoveredDevice)
        assert list(check_file_system(view)) == []
        assert_unchanged_elsewhere(device, view)
        return tree_of_reader(FileSystem(view))


def assert_unchanged_elsewhere(device: BlockDevice, view: RecoveredDevice) -> None:
    """The replay touched what it says it did, and nothing else."""
    changed = {start for offset, length in view.changed for start in range(offset, offset + length, 4096)}
    found = set()
    for offset in range(0, device.size, MIB):
        before, after = device.read(offset, MIB), view.read(offset, MIB)
        if before != after:
            found.update(
                offset + start for start in range(0, MIB, 4096) if before[start : start + 4096] != after[start : start + 4096]
            )
    assert found <= changed


def without_sockets(tree: Tree) -> Tree:
    return {path: node for path, node in tree.items() if node.type >> 12 != FileType.SOCKET}


def tree_after_the_kernel(image: Path) -> Tree:
    """The tree once the kernel has recovered a copy."""
    there = copy(image, "kernel")
    with mounted(there, writable=True) as root:
        tree = tree_of(root)
    there.unlink()
    return without_sockets(tree)


def assert_clean(image: Path) -> None:
    """As ``e2fsck.gate``, but for extent trees that the kernel made deeper than they need be."""
    assert [line for line in e2fsck.findings(image) if not _DEEP_TREE.fullmatch(line)] == []


def assert_recovers(image: Path) -> None:
    """We see what the kernel sees after its recovery, and leave what e2fsck, the kernel and our writer take."""
    expected = tree_after_the_kernel(image)
    assert diff(expected, tree_as_recovered(image)) == []
    with FileBlockDevice(image) as device:
        assert recover(device)
        assert not recover(device)
        assert recovered(device) is device
        assert list(check_file_system(device)) == []
    assert_clean(image)
    with mounted(image) as root:
        assert diff(expected, without_sockets(tree_of(root))) == []
    with FileBlockDevice(image) as device:
        apply_layer(device, [regular(b"after/the/recovery", b"x" * 10_000)])
    assert_clean(image)


@pytest.mark.parametrize("options", ["", "data=journal", "data=writeback,journal_async_commit,nobarrier"])
def test_power_cuts(tmp_path: Path, options: str) -> None:
    with formatted_file(tmp_path / "image", 128 * MIB) as device:
        apply_layer(device, EVERY_STRUCTURE)
    cuts = []
    with guest(tmp_path / "image", options) as root, ExitStack() as open_files:
        work = Work(root, 1)
        for number in range(2):
            work.run(120)
            removed = open_files.enter_context((root / "open").open("wb"))
            removed.write(b"x" * 300_000)
            removed.flush()
            os.setxattr(removed.fileno(), "user.name-0", _BIG)  # shared with others
            (root / "open").unlink()
            (root / "gone").mkdir()
            descriptor = os.open(root / "gone", os.O_RDONLY)
            open_files.callback(os.close, descriptor)
            (root / "gone").rmdir()
            sync(root)
            work.run(30)
            cuts.append(copy(tmp_path / "image", f"cut-{number}"))
    for cut in cuts:
        with FileBlockDevice(cut) as device:
            assert FileSystem(recovered(device)).super_block.last_orphan
        assert_recovers(cut)


def test_unmounted(tmp_path: Path) -> None:
    """Big directories that grow to an index of two levels and shrink again; nothing waits for replay."""
    with formatted_file(tmp_path / "image", 128 * MIB) as device:
        apply_layer(device, EVERY_STRUCTURE)
    with guest(tmp_path / "image") as root:
        Work(root, 7).run(200)
        wide = root / "wider"
        wide.mkdir()
        for number in range(9000):
            name = wide / f"{number:0200}"
            if number % 50 == 0:
                name.touch()
                first = name
            else:
                os.link(first, name)
        for number in range(0, 9000, 3):
            (wide / f"{number:0200}").unlink()
    with FileBlockDevice(tmp_path / "image") as device:
        assert recovered(device) is device
        assert not recover(device)
        assert list(check_file_system(device)) == []
        file_system = FileSystem(device)
        _, index, _ = next(file_system.directory_blocks(file_system.lookup(b"wider")))
        assert index[30] == 1  # levels below the root of the index
        found = tree_of_reader(file_system)
    with mounted(tmp_path / "image") as root:
        assert diff(without_sockets(tree_of(root)), found) == []


@pytest.mark.parametrize("fast", [False, True], ids=["", "fast_commit"])
def test_log_that_went_round(tmp_path: Path, fast: bool) -> None:
    """Many more commits than the journal holds; the last transactions lie across its end, where fast commits have their own blocks."""
    image = tmp_path / "image"
    if fast:
        run("mke2fs", "-q", "-t", "ext4", "-b", "4096", "-O", "^orphan_file,fast_commit", "-J", "size=5", image, "64M")
    else:
        formatted_file(image).close()
    with guest(image) as root:
        for number in range(4000):
            for inner in range(5):
                (root / f"directory-{number % 30}" / f"{inner}").mkdir(parents=True, exist_ok=True)
                (root / f"directory-{(number + 15) % 30}" / f"{inner}").joinpath("file").unlink(missing_ok=True)
                (root / f"directory-{number % 30}" / f"{inner}" / "file").write_bytes(b"%d" % number)
            sync(root)
            if number > 50 and log_lies_across_the_end(image):
                break
        else:
            pytest.fail("the log never lay across the end of the journal")
        cut = copy(image, "cut")
    expected = tree_after_the_kernel(cut)
    assert diff(expected, tree_as_recovered(cut)) == []
    with FileBlockDevice(cut) as device:
        assert recover(device)
    assert_clean(cut)


def log_lies_across_the_end(image: Path) -> bool:
    """Whether the first block of the log is younger than the transaction that the journal's superblock names, and lies before it."""
    with FileBlockDevice(image) as device:
        file_system = FileSystem(recovered(device))
        log = Log(device, list(file_system.runs(file_system.node(file_system.super_block.journal_inum))))
        head = log.read(log.super_block.first)
        magic, sequence = head[:4], int.from_bytes(head[8:12], "big")
        return log.super_block.start > 1 and magic == b"\xc0\x3b\x39\x98" and sequence > log.super_block.sequence


@pytest.mark.parametrize("options", ["", "data=writeback,journal_async_commit"])
def test_damaged_logs(tmp_path: Path, options: str) -> None:
    """What the kernel mounts we show, and as it does; what it refuses to mount we refuse."""
    with formatted_file(tmp_path / "image") as device:
        image = device.path
    with guest(image, options) as root:
        work = Work(root, 11)
        for _ in range(6):
            work.run(8)
            sync(root)
        cut = copy(image, "cut")
    with FileBlockDevice(cut) as device:
        file_system = FileSystem(recovered(device))
        log = Log(device, list(file_system.runs(file_system.node(file_system.super_block.journal_inum))))
        places = [log.place(position) for position in range(log.super_block.start, log.end)]
    last = max(number for number, place in enumerate(places) if reads_as_log(cut, place))
    chance = random.Random(12)
    outcomes = set()
    for number in range(6):
        damaged = copy(cut, f"damaged-{number}")
        at = chance.randrange(last + 1)
        with FileBlockDevice(damaged) as device:
            if number % 2:
                for place in places[at:]:
                    device.write(place, bytes(4096))
            else:
                device.write(places[at] + 2000, bytes([device.read(places[at] + 2000, 1)[0] ^ 4]))
        outcomes.add(shown := is_mounted_by_the_kernel(damaged))
        if shown:
            assert diff(tree_after_the_kernel(damaged), tree_as_recovered(damaged)) == []
        else:
            with FileBlockDevice(damaged) as device, pytest.raises(CorruptError, match="journal: transaction"):
                recovered(device)
    assert outcomes == {True, False}


def reads_as_log(image: Path, place: int) -> bool:
    with FileBlockDevice(image) as device:
        return device.read(place, 4) == b"\xc0\x3b\x39\x98"


def is_mounted_by_the_kernel(image: Path) -> bool:
    there = copy(image, "mounted")
    with tempfile.TemporaryDirectory() as directory:
        done = run("mount", "-t", "ext4", "-o", "loop", there, directory, check=False)
        if done.returncode == 0:
            run("umount", directory)
    there.unlink()
    return done.returncode == 0


@pytest.mark.parametrize("size", [0, 1000, 4096 * 3, 8192 * 341 + 7, 8192 * 700, 8192 * 1400 + 100])
def test_cut_in_flight(tmp_path: Path, size: int) -> None:
    """A truncation that had only got as far as the list of orphans: depth of the extent tree 2, 1, 0 afterwards."""
    need("debugfs")
    with formatted_file(tmp_path / "image") as device:
        apply_layer(device, [sparse(b"file", 8192 * 1500, [(number * 8192, b"z" * 4096) for number in range(1500)])])
        number = FileSystem(device).lookup(b"file").number
    run("debugfs", "-w", "-R", f"sif file size {size}", tmp_path / "image")
    run("debugfs", "-w", "-R", f"ssv last_orphan {number}", tmp_path / "image")
    kernel = copy(tmp_path / "image", "kernel")
    with mounted(kernel, writable=True) as root:
        expected, blocks, free = tree_of(root), (root / "file").stat().st_blocks, os.statvfs(root).f_bfree
    with FileBlockDevice(tmp_path / "image") as device:
        assert recover(device)
        LayerWriter(device)
    e2fsck.gate(tmp_path / "image")
    with mounted(tmp_path / "image") as root:
        # The kernel takes the time of its recovery for that of the truncation; the tree may be deeper than ours, by blocks of its own.
        assert diff(expected, tree_of(root), without_mtime=[b"file"]) == []
        assert blocks - 16 <= (root / "file").stat().st_blocks <= blocks
        assert free <= os.statvfs(root).f_bfree <= free + 2


FOREIGN = {
    "64bit": ("64bit,metadata_csum,resize_inode", "", "journal_64bit journal_checksum_v3"),
    "no checksums": ("^64bit,^metadata_csum", "", "(none)"),
    "checksums of version 1": ("64bit,^metadata_csum", "journal_checksum", "journal_checksum journal_64bit"),
    "asynchronous, version 1": (
        "^64bit,^metadata_csum",
        "journal_async_commit,data=writeback",
        "journal_checksum journal_async_commit",
    ),
}
"""Features of mke2fs, options of mount, and what the journal then has."""


@pytest.mark.parametrize("kind", FOREIGN)
def test_file_systems_of_mke2fs(tmp_path: Path, kind: str) -> None:
    features, options, journal = FOREIGN[kind]
    need("mke2fs")
    image = tmp_path / "image"
    run("mke2fs", "-q", "-t", "ext4", "-b", "4096", "-O", f"^orphan_file,{features}", image, "128M")
    with guest(image, options) as root:
        work = Work(root, 3)
        work.run(150)
        sync(root)
        work.run(10)
        cut = copy(image, "cut")
    (said,) = re.findall(r"Journal features: *(.*)", run("dumpe2fs", "-h", cut).stdout.decode())
    assert set(journal.split()) == set(said.split()) - {"journal_incompat_revoke"}
    expected = tree_after_the_kernel(cut)
    assert diff(expected, tree_as_recovered(cut)) == []
    with FileBlockDevice(cut) as device:
        assert recover(device)
        assert list(check_file_system(device)) == []
    assert_clean(cut)
    with mounted(cut) as root:
        assert diff(expected, without_sockets(tree_of(root))) == []


def test_fast_commits_are_refused(tmp_path: Path) -> None:
    image = tmp_path / "image"
    run("mke2fs", "-q", "-t", "ext4", "-b", "4096", "-O", "^orphan_file,fast_commit", image, "128M")
    with guest(image) as root:
        (root / "slow").touch()
        sync(root)
        with (root / "fast").open("wb") as file:
            file.write(b"x" * 5000)
            os.fsync(file.fileno())
        cut = copy(image, "cut")
    with FileBlockDevice(cut) as device, pytest.raises(UnsupportedError, match="fast commits of transaction"):
        recovered(device)


@pytest.mark.parametrize("form", ["jo", "jo -c -v 2", "jo -c -v 3"])
def test_journals_of_debugfs(tmp_path: Path, form: str) -> None:
    """e2fsck replays what debugfs wrote, in a copy: its blocks, revocations and transactions without a commit block."""
    need("debugfs", "e2fsck")
    image, first, count = tmp_path / "image", 12_000, 60
    formatted_file(image).close()
    chance = random.Random(form)
    script = [form]
    for number in range(30):
        source = tmp_path / f"blocks-{number}"
        blocks = [b"%s block %d of %d" % (b"\xc0\x3b\x39\x98" * chance.randrange(2), block, number) for block in range(10)]
        source.write_bytes(b"".join(block.ljust(4096, b".") for block in blocks))
        targets = ",".join(map(str, chance.sample(range(first, first + count), 10)))
        revoked = ",".join(map(str, chance.sample(range(first, first + count), 5)))
        script += [f"jw -b {targets} {source}", f"jw -r {revoked}"]
    script += [f"jw -c -b {first} {source}", "jc"]
    (tmp_path / "script").write_text("\n".join(script) + "\n")
    run("debugfs", "-w", "-f", tmp_path / "script", image)
    theirs = copy(image, "theirs")
    run("e2fsck", "-fy", theirs, check=False)
    e2fsck.gate(theirs)
    with FileBlockDevice(image) as ours, FileBlockDevice(theirs) as judge:
        expected = judge.read(first * 4096, count * 4096)
        assert expected.count(b" block ") > count // 2
        assert recovered(ours).read(first * 4096, count * 4096) == expected
        assert recover(ours)
        assert ours.read(first * 4096, count * 4096) == expected
    e2fsck.gate(image)
