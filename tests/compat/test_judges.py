"""The judges judged: each says yes to what other programs made, and no to every damage that it is there to see."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.images.kinds import INVALID_UTF8, acl
from tests.images.layer import LayerTar
from tests.images.layout import Image, write_layout
from tests.judges import e2fsck, umoci, vmdk
from tests.judges.model import Model, model_of
from tests.judges.mount import exported, mounted
from tests.judges.tree import content_digest, diff, tree_of
from tests.servers.docker_registry import DockerRegistry
from tests.tools import need, need_root, run

MIB = 1 << 20


def make_ext4(image: Path, source: Path | None = None, size: str = "64M") -> Path:
    need("mke2fs")
    run("mke2fs", "-q", "-t", "ext4", "-b", "4096", *(("-d", source) if source else ()), image, size)
    return image


def debugfs(image: Path, request: str) -> None:
    need("debugfs")
    run("debugfs", "-w", "-R", request, image)


class TestE2fsck:
    def test_clean(self, tmp_path: Path) -> None:
        assert e2fsck.findings(make_ext4(tmp_path / "image")) == []

    @pytest.mark.parametrize(
        ("request_", "words"),
        [
            ("ssv free_blocks_count 5", "Free blocks count wrong"),
            ("ssv free_inodes_count 5", "Free inodes count wrong"),
            ("ssv state 0", "s_state is 'not clean'"),
            ("ssv last_orphan 12", "s_last_orphan is 12"),
            ("feature needs_recovery", "needs_recovery"),
            ("clri <12>", "e2fsck -fn ended with 4"),
            ("sif <12> links_count 7", "e2fsck -fn ended with 4"),
            ("freeb 2000 1", "e2fsck -fn ended with 4"),
        ],
    )
    def test_damaged(self, tmp_path: Path, request_: str, words: str) -> None:
        source = tmp_path / "source"
        source.mkdir()
        (source / "file").write_bytes(b"x" * 10_000)
        image = make_ext4(tmp_path / "image", source)
        debugfs(image, request_)
        found = e2fsck.findings(image)
        assert any(words in line for line in found), found
        with pytest.raises(AssertionError, match="is not clean"):
            e2fsck.gate(image)

    def test_no_file_system_and_no_file(self, tmp_path: Path) -> None:
        with (tmp_path / "image").open("wb") as file:
            file.truncate(64 * MIB)
        assert e2fsck.findings(tmp_path / "image")
        assert e2fsck.findings(tmp_path / "nothing")

    def test_journal_to_replay(self, tmp_path: Path) -> None:
        image = make_ext4(tmp_path / "image")
        with mounted(image, writable=True) as directory:
            (directory / "file").write_bytes(b"x")
            os.sync()
            shutil.copy(image, tmp_path / "torn")
        assert any("needs_recovery" in line for line in e2fsck.findings(tmp_path / "torn"))
        e2fsck.gate(image)

    def test_kernel(self, tmp_path: Path) -> None:
        image = make_ext4(tmp_path / "image")
        before = hashlib.sha256(image.read_bytes()).digest()
        e2fsck.kernel_gate(image)
        assert before == hashlib.sha256(image.read_bytes()).digest()
        assert list(tmp_path.iterdir()) == [image]


def _set_xattr(path: Path) -> None:
    os.setxattr(path, "user.key", b"other")


def _replace_hard_link(path: Path) -> None:
    path.unlink()
    path.write_bytes(b"linked")
    os.utime(path, ns=(0, 0))


class TestTree:
    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        need_root()
        root = tmp_path / "root"
        (root / "directory").mkdir(parents=True)
        (root / "file").write_bytes(b"content")
        os.setxattr(root / "file", "user.key", b"value")
        os.setxattr(
            root / "directory", "system.posix_acl_default", acl((1, 7, 0xFFFFFFFF), (4, 5, 0xFFFFFFFF), (32, 5, 0xFFFFFFFF))
        )
        (root / "linked").write_bytes(b"linked")
        (root / "other").hardlink_to(root / "linked")
        (root / "symlink").symlink_to("file")
        os.mknod(root / "device", stat.S_IFCHR | 0o600, os.makedev(300, 70000))
        os.mkfifo(root / "fifo")
        with (root / "large").open("wb") as file:
            file.seek(10 * MIB)
            file.write(b"end")
        for path in (*root.rglob("*"), root):
            os.utime(path, ns=(0, 0), follow_symlinks=False)
        return root

    def test_equal_to_a_copy_on_another_file_system(self, tmp_path: Path, directory: Path) -> None:
        image = make_ext4(tmp_path / "image", directory)
        with mounted(image) as copy:
            actual = tree_of(copy)
        del actual[b"lost+found"]
        # mke2fs -d copies hole for hole, whole xattrs and nanoseconds since 1.46, but reads the ACL of no directory.
        expected = tree_of(directory)
        assert [line for line in diff(expected, actual) if "posix_acl" not in line and not line.startswith("/: ")] == []
        assert expected[b"large"] == actual[b"large"]
        assert expected[b"other"].names == (b"linked", b"other")
        assert expected[b"device"].rdev == (300, 70000)

    @pytest.mark.parametrize(
        ("name", "edit", "words"),
        [
            ("file", lambda path: path.write_bytes(b"Content"), "content is"),
            ("file", lambda path: path.write_bytes(b"content\0"), "size is 8, expected 7"),
            ("file", lambda path: path.chmod(0o4755), "mode is 0o4755"),
            ("file", lambda path: os.chown(path, 5, -1), "uid is 5"),
            ("file", lambda path: os.chown(path, -1, 5), "gid is 5"),
            ("file", lambda path: os.utime(path, ns=(0, 1)), "mtime_ns is 1, expected 0"),
            ("file", _set_xattr, "xattrs is {b'user.key': \"b'other'\"}"),
            ("file", lambda path: os.removexattr(path, "user.key"), "xattrs is {b'user.key': 'absent'}"),
            ("file", lambda path: path.unlink(), "file: missing"),
            ("directory", lambda path: (path / "new").touch(), "directory/new: not expected"),
            ("directory", lambda path: os.removexattr(path, "system.posix_acl_default"), "system.posix_acl_default"),
            ("other", _replace_hard_link, "other: names is (b'other',), expected (b'linked', b'other')"),
            ("symlink", lambda path: (path.unlink(), path.symlink_to("File")), "target is b'File'"),
            ("device", lambda path: (path.unlink(), os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(300, 1))), "rdev is (300, 1)"),
            ("fifo", lambda path: (path.unlink(), path.touch()), "type is 0o100000, expected 0o10000"),
            ("large", lambda path: os.truncate(path, 10 * MIB), "large: size"),
        ],
    )  # fmt: skip
    def test_every_difference_is_seen(self, directory: Path, name: str, edit: Callable[[Path], object], words: str) -> None:
        before = tree_of(directory)
        assert diff(before, tree_of(directory)) == []
        edit(directory / name)
        found = diff(before, tree_of(directory))
        assert any(words in line for line in found), found

    def test_zeros_and_holes_are_the_same_content(self, tmp_path: Path) -> None:
        stored, hole, other = tmp_path / "stored", tmp_path / "hole", tmp_path / "other"
        stored.write_bytes(b"a" + bytes(9 * MIB) + b"b")
        other.write_bytes(b"a" + bytes(9 * MIB + 1) + b"b")
        with hole.open("wb") as file:
            file.write(b"a")
            file.seek(9 * MIB, os.SEEK_CUR)
            file.write(b"b")
        assert hole.stat().st_blocks < stored.stat().st_blocks
        tree = tree_of(tmp_path)
        assert tree[b"stored"].content == tree[b"hole"].content == content_digest(stored.read_bytes())
        assert tree[b"stored"].content != tree[b"other"].content

    def test_socket_and_path_beyond_the_limit(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(tmp_path / "socket"))
        here = os.open(tmp_path, os.O_RDONLY)
        for _ in range(30):
            os.mkdir("d" * 200, dir_fd=here)
            below = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        os.close(here)
        tree = tree_of(tmp_path)
        assert max(map(len, tree)) == 30 * 201 - 1
        assert tree[b"socket"].type == stat.S_IFSOCK


class TestVmdk:
    """Chains that qemu-img made and qemu-io wrote."""

    @pytest.fixture
    def chain(self, tmp_path: Path) -> list[Path]:
        need("qemu-img", "qemu-io")
        disks = [tmp_path / f"disk-{number}.vmdk" for number in range(4)]
        for number, disk in enumerate(disks):
            # The first write changes a disk's CID, so a child is made after it.
            parent = ("-b", disks[number - 1].name, "-F", "vmdk", disk) if number else (disk, "256M")
            run("qemu-img", "create", "-q", "-f", "vmdk", *parent)
            places = (number * MIB, 40 * MIB + number * 65536, 256 * MIB - 65536)
            run("qemu-io", "-f", "vmdk", *(word for at in places for word in ("-c", f"write -P {number + 1} {at} 64k")), disk)
        return disks

    @pytest.fixture
    def raw(self, chain: list[Path], tmp_path: Path) -> Path:
        vmdk.convert(chain[-1], tmp_path / "raw")
        return tmp_path / "raw"

    def judge(self, raw: Path, chain: list[Path], **readers: vmdk.Read) -> None:
        with vmdk.libvmdk(chain) as libvmdk, vmdk.dissect(chain[-1]) as dissect:
            vmdk.assert_reads_equal(raw, chain, {"libvmdk": libvmdk, "dissect": dissect, **readers})

    def test_all_agree(self, chain: list[Path], raw: Path, tmp_path: Path) -> None:
        for disk in chain:
            vmdk.check(disk)
        self.judge(raw, chain)
        for disk in chain:
            vmdk.apply(disk, tmp_path / "applied")
        assert (tmp_path / "applied").read_bytes() == raw.read_bytes()
        assert (tmp_path / "applied").stat().st_blocks * 512 < 4 * MIB

    @pytest.mark.parametrize("offset", [3 * MIB + 1, 41 * MIB, 256 * MIB - 1])
    def test_another_byte_in_a_grain(self, chain: list[Path], raw: Path, offset: int) -> None:
        with raw.open("r+b") as file:
            os.pwrite(file.fileno(), b"\xff", offset)
        with pytest.raises(AssertionError, match=f"differs from .* at byte {offset}" if offset != 41 * MIB else "where no disk"):
            self.judge(raw, chain)

    def test_a_reader_that_sees_data_in_a_hole(self, chain: list[Path], raw: Path) -> None:
        with raw.open("rb") as file, pytest.raises(AssertionError, match=r"mine differs from .* at byte 671"):
            self.judge(
                raw, chain, mine=lambda at, size: os.pread(file.fileno(), size, at) if not 64 <= at // MIB < 128 else b"\1" * size
            )

    def test_parent_of_another_content(self, chain: list[Path]) -> None:
        data = chain[1].read_bytes()
        cid = re.search(rb"^CID=([0-9a-f]+)$", data, re.MULTILINE)  # QEMU writes no leading zeros
        assert cid is not None
        other = bytes(cid[1][:-1]) + (b"1" if cid[1][-1:] != b"1" else b"2")
        chain[1].write_bytes(data[: cid.start(1)] + other + data[cid.end(1) :])
        with pytest.raises(OSError, match="mismatch"), vmdk.libvmdk(chain):
            pass

    def test_grain_past_the_end(self, chain: list[Path]) -> None:
        os.truncate(chain[3], chain[3].stat().st_size - 128 * 1024)
        with pytest.raises(AssertionError, match="qemu-img check"):
            vmdk.check(chain[3])

    def test_the_kernel_writes_through_a_child(self, tmp_path: Path) -> None:
        base, child = tmp_path / "base.vmdk", tmp_path / "child.vmdk"
        make_ext4(tmp_path / "image")
        run("qemu-img", "convert", "-f", "raw", "-O", "vmdk", tmp_path / "image", base)
        run("qemu-img", "create", "-q", "-f", "vmdk", "-b", base.name, "-F", "vmdk", child)
        before = hashlib.sha256(base.read_bytes()).digest()
        with exported(child) as disk, mounted(disk, writable=True) as directory:
            (directory / "file").write_bytes(b"written by the kernel" * 10_000)
        assert before == hashlib.sha256(base.read_bytes()).digest()
        vmdk.convert(child, tmp_path / "raw")
        e2fsck.gate(tmp_path / "raw")
        with mounted(tmp_path / "raw") as directory:
            assert (directory / "file").read_bytes() == b"written by the kernel" * 10_000


@pytest.fixture
def kinds(build_image: Callable[[str], Image]) -> Image:
    return build_image("kinds")


class TestModel:
    """The model against umoci, and by hand where umoci goes its own way."""

    def test_equals_umoci(self, kinds: Image, tmp_path: Path) -> None:
        model = model_of(kinds.layers)
        actual = tree_of(umoci.unpack(kinds.layout, kinds.tag, tmp_path / "rootfs"))
        assert diff(model.tree(), actual, without_mtime=model.unsaid()) == []
        assert len(actual) > 2000

    def test_each_layer_by_hand(self, kinds: Image) -> None:
        model = Model()
        trees = []
        for layer in kinds.layers:
            model.apply(layer)
            trees.append(model.tree())
        base, white, opaque, refilled, again, replaced, across, twice, nothing, deleted, _ = trees
        assert INVALID_UTF8 in base and INVALID_UTF8 not in white
        assert base[b"white/linked-2"].names == (b"white/linked-1", b"white/linked-2", b"white/linked-3")
        assert white[b"white/linked-2"].names == (b"white/linked-2", b"white/linked-3")
        assert [path for path in opaque if path.startswith(b"opaque")] == [b"opaque"]
        assert sorted(path for path in opaque if path.startswith(b"later/tree")) == [
            *(b"later/tree", b"later/tree/new-after", b"later/tree/new-before", b"later/tree/sub", b"later/tree/sub/new")
        ]  # fmt: skip
        assert sorted(path for path in refilled if path.startswith(b"opaque/")) == [
            b"opaque/file",
            b"opaque/tree",
            b"opaque/tree/link",
        ]
        assert sorted(path for path in again if path.startswith(b"again/tree/")) == [b"again/tree/other"]
        assert replaced[b"replaced/file"].type == stat.S_IFDIR and replaced[b"replaced/tree"].type == stat.S_IFREG
        assert across[b"links/fourth"].names == (b"etc/third", b"links/first", b"links/fourth", b"links/of-a-link")
        assert twice[b"etc/twice"].size == len(b"second, the last wins")
        assert nothing == twice
        assert not any(path.startswith(b"bulk/") for path in deleted)

    def test_beyond_umoci(self, build_image: Callable[[str], Image]) -> None:
        tree = model_of(build_image("beyond-umoci").layers).tree()
        assert tree[b"bin"].type == tree[b"etc"].type == stat.S_IFDIR
        assert b"usr/tool" not in tree
        assert b"both/upper" in tree and b"both/lower" not in tree
        assert sorted(path for path in tree if path.startswith(b"a/")) == [b"a/b", b"a/b/new"]
        assert max(map(len, tree)) == 4095

    def test_a_wrong_tree_is_seen(self, kinds: Image) -> None:
        tree = model_of(kinds.layers).tree()
        wrong = {**tree, b"etc/twice": replace(tree[b"etc/twice"], mode=0o644)}
        assert diff(tree, wrong) == ["etc/twice: mode is 0o644, expected 0o600"]


class TestRegistry:
    def test_push_and_read_back(self, registry: DockerRegistry, tmp_path: Path) -> None:
        layer = tmp_path / "layer.tar"
        with LayerTar(layer) as tar:
            tar.file("file", b"content")
        write_layout(tmp_path / "layout", [layer])
        image = Image("small", tmp_path / "layout", (layer,))
        reference = registry.push(image.source, image.repository)
        run("skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{reference}", f"oci:{tmp_path / 'copy'}:latest")
        assert tree_of(umoci.unpack(tmp_path / "copy", "latest", tmp_path / "rootfs"))[b"file"].content == content_digest(
            b"content"
        )
