"""What programs do to files, one function an edit; each is given the root of a tree that ``make_tree`` made."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

from tests.images.layer import LayerTar

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
"""cap_net_bind_service=ep."""

WIDE = 600
"""Names in the directory ``wide``: more than fit into one block."""


def make_tree(tar: Path) -> None:
    """Writes the tree as a layer."""
    with LayerTar(tar) as layer:
        for name in ("bin", "etc", "usr", "usr/lib", "usr/lib/a", "usr/lib/b", "var", "var/log", "empty", "links", "wide"):
            layer.directory(name)
        for name in ("bin/sh", "etc/passwd", "etc/shadow", "usr/lib/a/one", "usr/lib/a/two", "usr/lib/b/one", "var/log/messages"):
            layer.file(name, name.encode() * 1000)
        for depth in range(1, 31):
            layer.directory("/".join(["deep"] * depth))
        layer.file("/".join(["deep"] * 30) + "/file", b"deep")
        layer.file("links/first", b"linked")
        for name in ("links/second", "links/third", "usr/lib/b/fourth"):
            layer.hard_link(name, "links/first")
        layer.file("links/pair", b"paired")
        layer.hard_link("links/pair-too", "links/pair")
        layer.symlink("links/symbolic", "first")
        layer.file("bin/ping", b"ping", xattrs={"security.capability": CAPABILITY})
        layer.file("etc/labelled", b"x", xattrs={"user.label": b"old"})
        layer.file("var/big", b"0123456789abcdef" * 20_000)
        for number in range(WIDE):
            layer.file(f"wide/name-{number:05}")


def _create(root: Path) -> None:
    (root / "etc/new").write_bytes(b"new")
    (root / "top").write_bytes(b"in the root")
    (root / "usr/lib/new").mkdir()
    (root / "usr/lib/new/file").write_bytes(b"new")
    (root / "usr/lib/new/link").symlink_to("file")


def _modify_in_place(root: Path) -> None:
    with (root / "var/big").open("r+b") as file:
        file.seek(200_000)
        file.write(b"changed")


def _modify_deep(root: Path) -> None:
    (root / "/".join(["deep"] * 30) / "file").write_bytes(b"DEEP")


def _append(root: Path) -> None:
    with (root / "var/log/messages").open("ab") as file:
        file.write(b"more")


def _truncate(root: Path) -> None:
    os.truncate(root / "var/big", 10)
    os.truncate(root / "bin/sh", 1 << 20)


def _change_attributes(root: Path) -> None:
    (root / "etc/shadow").chmod(0o600)
    os.chown(root / "etc/passwd", 1000, 70000)
    (root / "usr/lib/a").chmod(0o2750)
    os.chown(root / "links/symbolic", 5, 5, follow_symlinks=False)
    (root / "wide/name-00123").chmod(0o4755)


def _touch(root: Path) -> None:
    os.utime(root / "bin/sh")
    os.utime(root / "usr/lib/b")
    os.utime(root / "etc/passwd", ns=(0, 1_700_000_000_000_000_000))


def _hide(root: Path) -> None:
    """What docker does not see: new content of the same length under the old time, an xattr, a time of a directory."""
    status = (root / "etc/shadow").stat()
    with (root / "etc/shadow").open("r+b") as file:
        file.write(b"ETC")
    os.utime(root / "etc/shadow", ns=(status.st_atime_ns, status.st_mtime_ns))
    os.setxattr(root / "etc/labelled", "user.label", b"new")
    os.setxattr(root / "var", "user.label", b"directory")


def _set_capability(root: Path) -> None:
    os.setxattr(root / "bin/sh", "security.capability", CAPABILITY)
    os.removexattr(root / "bin/ping", "security.capability")


def _rename(root: Path) -> None:
    (root / "etc/passwd").rename(root / "etc/passwd-")
    (root / "etc/shadow").rename(root / "var/shadow")
    (root / "usr/lib/a").rename(root / "var/a")
    (root / "bin/sh").rename(root / "bin/ping")


def _exchange_directories(root: Path) -> None:
    (root / "usr/lib/a").rename(root / "usr/lib/c")
    (root / "usr/lib/b").rename(root / "usr/lib/a")
    (root / "usr/lib/c").rename(root / "usr/lib/b")


def _nest(root: Path) -> None:
    """A directory that goes into a new one of its own name: its ``..`` changes, its path begins as before."""
    (root / "usr/lib").rename(root / "usr/old")
    (root / "usr/lib").mkdir()
    (root / "usr/old").rename(root / "usr/lib/lib")


def _replace_types(root: Path) -> None:
    (root / "etc/passwd").unlink()
    (root / "etc/passwd").mkdir()
    (root / "etc/passwd/file").write_bytes(b"x")
    shutil.rmtree(root / "usr/lib")
    (root / "usr/lib").write_bytes(b"no directory")
    (root / "links/symbolic").unlink()
    (root / "links/symbolic").write_bytes(b"no link")
    shutil.rmtree(root / "empty")
    (root / "empty").symlink_to("etc")


def _link(root: Path) -> None:
    os.link(root / "bin/sh", root / "bin/bash")
    os.link(root / "links/pair", root / "etc/pair")
    (root / "links/pair").chmod(0o600)
    (root / "etc/new").write_bytes(b"new")
    os.link(root / "etc/new", root / "var/new")


def _modify_linked(root: Path) -> None:
    (root / "links/second").write_bytes(b"all names see it")


def _unlink(root: Path) -> None:
    (root / "links/second").unlink()
    (root / "links/pair").unlink()
    (root / "links/pair-too").unlink()
    (root / "etc/passwd").unlink()
    shutil.rmtree(root / "deep/deep")


def _remake(root: Path) -> None:
    """Trees that were removed and made again, as they were and otherwise."""
    shutil.copytree(root / "usr/lib/b", root / "copy")
    shutil.copystat(root / "usr/lib/b", root / "copy")
    shutil.rmtree(root / "usr/lib/b")
    (root / "copy").rename(root / "usr/lib/b")
    shutil.rmtree(root / "usr/lib/a")
    (root / "usr/lib/a").mkdir()
    (root / "usr/lib/a/two").write_bytes(b"other")
    (root / "usr/lib/a/three").write_bytes(b"more")


def _make_nodes(root: Path) -> None:
    os.mknod(root / "etc/null", 0o20666, os.makedev(1, 3))
    os.mkfifo(root / "etc/fifo")
    os.mknod(root / "var/disk", 0o60600, os.makedev(259, 70000))
    for name in ("var/socket", "empty/socket"):
        here = os.open(root, os.O_RDONLY)
        try:
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(f"/proc/self/fd/{here}/{name}")
        finally:
            os.close(here)


def _fill_directory(root: Path) -> None:
    (root / "empty/many").mkdir()
    for number in range(1000):
        (root / f"empty/many/{number:06}").touch()
        (root / f"wide/more-{number:06}").touch()
    for number in range(0, WIDE, 2):
        (root / f"wide/name-{number:05}").unlink()


def _nothing(root: Path) -> None:
    """Files that come and go, or are only read."""
    (root / "var/log/temporary").write_bytes(b"x")
    (root / "var/log/temporary").unlink()
    for path in root.glob("usr/lib/*/*"):
        path.read_bytes()
    (root / "etc/shadow").chmod(0o600)
    (root / "etc/shadow").chmod(0o644)


def _touch_many(root: Path) -> None:
    """More files of unchanged directories than are looked for one by one."""
    for number in range(0, WIDE, 50):
        os.utime(root / f"wide/name-{number:05}")
    for name in ("bin/sh", "usr/lib/a/one", "links/first"):
        os.utime(root / name)


EDITS: dict[str, Callable[[Path], None]] = {
    edit.__name__.strip("_"): edit
    for edit in (
        _nothing,
        _create,
        _modify_in_place,
        _modify_deep,
        _append,
        _truncate,
        _change_attributes,
        _touch,
        _touch_many,
        _hide,
        _set_capability,
        _rename,
        _exchange_directories,
        _nest,
        _replace_types,
        _link,
        _modify_linked,
        _unlink,
        _remake,
        _make_nodes,
        _fill_directory,
    )
}


def edit_at_random(root: Path, choice: random.Random, count: int) -> None:
    """Does ``count`` things, each to files that are there by then; what the kernel refuses is left out."""
    for number in range(count):
        files = sorted(path for path in root.rglob("*") if path.parent.name != "wide" or path.name.endswith("0"))
        directories = [path for path in files if path.is_dir() and not path.is_symlink()]
        with contextlib.suppress(OSError):
            _do_one(choice, number, choice.choice(files), choice.choice(files), choice.choice(directories) / f"random-{number}")


def _do_one(choice: random.Random, number: int, one: Path, other: Path, new: Path) -> None:
    acts: list[Callable[[], object]] = [
        lambda: new.write_bytes(choice.randbytes(choice.choice([0, 10, 5000, 100_000]))),
        lambda: new.mkdir(),
        lambda: new.symlink_to("t" * choice.choice([5, 100])),
        lambda: one.rename(new),
        lambda: one.rename(other),
        lambda: os.link(one, new, follow_symlinks=False),
        lambda: one.unlink(),
        lambda: shutil.rmtree(one),
        lambda: one.write_bytes(choice.randbytes(100)),
        lambda: os.chown(one, number, number, follow_symlinks=False),
        lambda: os.setxattr(one, "user.number", b"%d" % number * choice.choice([1, 500]), follow_symlinks=False),
        lambda: os.utime(one, ns=(number, number), follow_symlinks=False),
    ]
    choice.choice(acts)()
