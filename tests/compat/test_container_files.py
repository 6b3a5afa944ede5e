"""What was copied into a container, and what a guest's kernel made of it, seen by that kernel and by e2fsck."""

from __future__ import annotations

import io
import os
import subprocess
from pathlib import Path

from imgstore.answers import Mount
from imgstore.store import ImageStore
from tests.archive_members import directory, entry, file_of, link, make_tar
from tests.judges import e2fsck, tree
from tests.judges.mount import exported, mounted
from tests.judges.tree import Tree, tree_of
from tests.tools import need, run

MIB = 1 << 20


def make_files(root: Path, seed: str) -> bytes:
    """A tree with all that a tar can say, and the tar that GNU tar makes of it."""
    top = root / seed
    (top / "many").mkdir(parents=True)
    for number in range(700):  # more names than a directory's first block holds
        (top / f"many/{seed}-{number:040}").write_bytes(b"x" * number)
    (top / "large").write_bytes(os.urandom(3 * MIB + 17))
    (top / "deep/er/and/deeper").mkdir(parents=True)
    os.link(top / "large", top / "deep/er/hard")
    (top / "long-link").symlink_to("t" * 300)
    (top / "link").symlink_to("large")
    with (top / "sparse").open("wb") as sparse:
        sparse.truncate(9 * MIB)
        sparse.seek(4 * MIB)
        sparse.write(b"island")
    os.mkfifo(top / "pipe")
    os.mknod(top / "node", 0o020640, os.makedev(4, 300))
    os.chown(top / "deep", 70_000, 80_000)
    (top / "large").chmod(0o6755)
    run("setfattr", "-n", "user.big", "-v", "v" * 2000, top / "large")
    return run("tar", "-C", root, "--format=posix", "--sparse", "--xattrs", "--xattrs-include=*", "-c", seed).stdout


def under(nodes: Tree, top: bytes) -> Tree:
    return {path: node for path, node in nodes.items() if path.split(b"/")[0] == top}


def test_the_kernel_sees_what_was_copied(tmp_path: Path) -> None:
    need("tar", "setfattr")
    local, noise = tmp_path / "local", os.urandom(5 * MIB)
    first, second = make_files(local, "first"), make_files(local, "second")
    base = make_tar(directory("data"), (entry("data/file"), b"old"), link("to-data", "/data"))
    with ImageStore.create(str(tmp_path / "store"), disk_size=256 * MIB) as store:
        store.import_image(io.BytesIO(base), reference="base")
        store.create_volume("vv", options={"Capacity": "128"})
        made = store.create_container("base", name="one", mounts=[Mount("vv", "/data/v")], config={"Cmd": ["x"]})
        store.copy_to_container("one", "/", io.BytesIO(first))
        with exported(Path(made.disk)) as raw:
            e2fsck.gate(raw)
            with mounted(raw, writable=True) as root:
                assert tree.diff(under(tree_of(local), b"first"), under(tree_of(root), b"first")) == []
                # What a guest does next: the directory that we wrote shrinks, and there are holes among the free blocks.
                for number in range(0, 700, 2):
                    (root / f"first/many/first-{number:040}").unlink()
                (root / "first/large").unlink()
                (root / "by-guest").write_bytes(noise)
                guest = tree_of(root)
        for place in ("/to-data", "/data/v"):
            store.copy_to_container("one", place, io.BytesIO(second))
        assert list(store.check()) == []
        assert file_of(store.copy_from_container("one", "/by-guest")[1], "by-guest") == noise
        with exported(Path(made.disk)) as raw:
            e2fsck.gate(raw)
            with mounted(raw) as root:
                after = tree_of(root)
                assert tree.diff(under(guest, b"first"), under(after, b"first")) == []
                assert guest[b"by-guest"] == after[b"by-guest"]
                assert tree.diff(under(tree_of(local), b"second"), tree_of_inner(root / "data/second")) == []
        with exported(Path(store.volume("vv").disk)) as raw:
            e2fsck.gate(raw)
            with mounted(raw) as root:
                assert tree.diff(under(tree_of(local), b"second"), under(tree_of(root), b"second")) == []


def tree_of_inner(directory: Path) -> Tree:
    """The tree of a directory, with its name before all paths."""
    return under(tree_of(directory.parent), os.fsencode(directory.name))


def test_copies_out_are_what_tar_reads(tmp_path: Path) -> None:
    need("tar", "setfattr")
    local, out = tmp_path / "local", tmp_path / "out"
    archive = make_files(local, "first")
    out.mkdir()
    with ImageStore.create(str(tmp_path / "store"), disk_size=256 * MIB) as store:
        store.import_image(io.BytesIO(archive), reference="base")
        store.create_container("base", name="one", config={"Cmd": ["x"]})
        command = ["tar", "-C", str(out), "--xattrs", "--xattrs-include=*", "-xp"]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as reader:
            assert reader.stdin is not None
            for piece in store.export_container("one"):
                reader.stdin.write(piece)
        assert reader.returncode == 0
        assert tree.diff(under(tree_of(local), b"first"), under(tree_of(out), b"first")) == []
