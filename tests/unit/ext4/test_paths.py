"""Paths followed as the kernel would with the file system as root; tests/compat/test_ext4_writes.py asks the kernel itself."""

from __future__ import annotations

import pytest

from imgstore.changes import Change
from imgstore.errors import CorruptError, InvalidError, NotFoundError
from imgstore.ext4.paths import MOST_LINKS, NotDirectoryError, resolve_path
from imgstore.ext4.reader import FileSystem
from tests.ext4_layers import apply_layer, formatted, regular, symlink

TREE: list[Change] = [
    regular(b"usr/bin/dash"),
    symlink(b"usr/bin/sh", b"dash"),
    regular(b"usr/lib/os-release"),
    symlink(b"etc/os-release", b"../usr/lib/os-release"),
    symlink(b"bin", b"usr/bin"),
    symlink(b"slash", b"usr/bin/"),
    symlink(b"escape", b"../../../../usr/bin/dash"),
    symlink(b"absolute", b"/usr//lib/./os-release"),
    symlink(b"root", b"/"),
    symlink(b"loop", b"loop"),
    symlink(b"dangling", b"usr/nowhere"),
    symlink(b"far", b"nowhere/x"),
    *(symlink(b"link%d" % number, b"link%d" % (number + 1)) for number in range(MOST_LINKS)),
    regular(b"link%d" % MOST_LINKS),
    symlink(b"too-long", b"link0"),
]


@pytest.fixture(scope="module")
def file_system() -> FileSystem:
    device = formatted()
    apply_layer(device, TREE)
    return FileSystem(device)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"", b""),
        (b"/", b""),
        (b"/..", b""),
        (b"usr/bin/", b"usr/bin"),
        (b"//usr/./bin/../lib", b"usr/lib"),
        (b"/bin/sh", b"usr/bin/dash"),
        (b"/bin/../lib", b"usr/lib"),
        (b"slash/sh", b"usr/bin/dash"),
        (b"etc/os-release", b"usr/lib/os-release"),
        (b"escape", b"usr/bin/dash"),
        (b"absolute", b"usr/lib/os-release"),
        (b"root", b""),
        (b"root/root/bin", b"usr/bin"),
        (b"link0", b"link%d" % MOST_LINKS),
    ],
)
def test_followed_to_the_end(file_system: FileSystem, path: bytes, expected: bytes) -> None:
    assert resolve_path(file_system, path) == (expected, file_system.lookup(expected))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"bin", b"bin"),
        (b"bin/", b"usr/bin"),
        (b"bin/.", b"usr/bin"),
        (b"bin/sh", b"usr/bin/sh"),
        (b"dangling", b"dangling"),
        (b"loop", b"loop"),
    ],
)
def test_the_last_link_itself(file_system: FileSystem, path: bytes, expected: bytes) -> None:
    assert resolve_path(file_system, path, follow_last=False) == (expected, file_system.lookup(expected))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"new", b"new"),
        (b"new/", b"new"),
        (b"/bin/new", b"usr/bin/new"),
        (b"root/../../new", b"new"),
        (b"dangling", b"usr/nowhere"),
        (b"dangling/", b"usr/nowhere"),
    ],
)
def test_only_the_last_name_is_missing(file_system: FileSystem, path: bytes, expected: bytes) -> None:
    assert resolve_path(file_system, path) == (expected, None)


@pytest.mark.parametrize(
    ("path", "missing"),
    [
        (b"nowhere/x", "/nowhere"),
        (b"nowhere/..", "/nowhere"),
        (b"nowhere/.", "/nowhere"),
        (b"dangling/x", "/usr/nowhere"),
        (b"far", "/nowhere"),
    ],
)
def test_a_name_on_the_way_is_missing(file_system: FileSystem, path: bytes, missing: str) -> None:
    with pytest.raises(NotFoundError, match=f"^{path.decode()}: {missing} does not exist$"):
        resolve_path(file_system, path)


@pytest.mark.parametrize("path", [b"usr/bin/dash/x", b"bin/sh/x", b"bin/sh/", b"bin/dash/.", b"bin/dash/.."])
def test_through_a_file(file_system: FileSystem, path: bytes) -> None:
    with pytest.raises(NotDirectoryError, match=r"/usr/bin/dash is not a directory$"):
        resolve_path(file_system, path)


@pytest.mark.parametrize("path", [b"loop", b"loop/x", b"too-long"])
def test_too_many_links(file_system: FileSystem, path: bytes) -> None:
    with pytest.raises(InvalidError, match="too many levels of symbolic links, more than 40"):
        resolve_path(file_system, path)


@pytest.mark.parametrize("path", [b"n" * 256, b"usr/" + b"n" * 256 + b"/x", b"a/" * 2048, b"usr\0bin"])
def test_what_the_kernel_would_not_even_look_up(file_system: FileSystem, path: bytes) -> None:
    with pytest.raises(InvalidError, match=r"a (name|path) of"):
        resolve_path(file_system, path)


def test_longest_path(file_system: FileSystem) -> None:
    assert resolve_path(file_system, b"/" * 4092 + b"usr").path == b"usr"


def test_damage_on_the_way_is_damage() -> None:
    device = formatted()
    apply_layer(device, [regular(b"d/file")])
    file_system = FileSystem(device)
    block = next(file_system.runs(file_system.lookup(b"d"))).physical
    device.write(block * 4096 + 20, b"?")
    with pytest.raises(CorruptError, match="directory inode"):
        resolve_path(FileSystem(device), b"d/file")
