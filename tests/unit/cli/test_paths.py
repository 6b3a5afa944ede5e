"""Symbolic links inside an image, followed as the kernel would."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from imgstore.changes import FileType
from imgstore.cli.paths import LINKS, resolve
from imgstore.errors import InvalidError, NotFoundError


@dataclass
class Status:
    type: FileType
    target: bytes = b""


def link(target: bytes) -> Status:
    return Status(FileType.SYMLINK, target)


DIRECTORY = Status(FileType.DIRECTORY)
FILE = Status(FileType.REGULAR)
TREE = {
    b"": DIRECTORY,
    b"usr": DIRECTORY,
    b"usr/bin": DIRECTORY,
    b"usr/bin/dash": FILE,
    b"usr/bin/sh": link(b"dash"),
    b"usr/lib": DIRECTORY,
    b"usr/lib/os-release": FILE,
    b"etc": DIRECTORY,
    b"etc/os-release": link(b"../usr/lib/os-release"),
    b"bin": link(b"usr/bin"),
    b"escape": link(b"../../../../usr/bin/dash"),
    b"absolute": link(b"/usr//lib/./os-release"),
    b"root": link(b"/"),
    b"loop": link(b"loop"),
    b"dangling": link(b"nowhere"),
    **{b"link%d" % number: link(b"link%d" % (number + 1)) for number in range(LINKS)},
    b"link%d" % LINKS: FILE,
    b"too-long": link(b"link0"),
}


def status(path: bytes) -> Any:
    if path not in TREE:
        raise NotFoundError(f"{path!r}: no such file")
    return TREE[path]


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
        (b"etc/os-release", b"usr/lib/os-release"),
        (b"escape", b"usr/bin/dash"),
        (b"absolute", b"usr/lib/os-release"),
        (b"root", b""),
        (b"root/root/bin", b"usr/bin"),
        (b"link0", b"link%d" % LINKS),
    ],
)
def test_followed_to_the_end(path: bytes, expected: bytes) -> None:
    assert (expected, TREE[expected]) == resolve(path, status, follow=True)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"bin", b"bin"),
        (b"bin/", b"usr/bin"),
        (b"bin/sh", b"usr/bin/sh"),
        (b"bin/sh/", b"usr/bin/dash"),
        (b"dangling", b"dangling"),
        (b"loop", b"loop"),
    ],
)
def test_the_last_link_itself(path: bytes, expected: bytes) -> None:
    assert (expected, TREE[expected]) == resolve(path, status, follow=False)


@pytest.mark.parametrize("path", [b"nowhere", b"dangling", b"usr/bin/nowhere/x"])
def test_missing(path: bytes) -> None:
    with pytest.raises(NotFoundError, match=f"^{path.decode()}: no such file in the image"):
        resolve(path, status, follow=True)


def test_a_link_to_nowhere_says_where_it_leads() -> None:
    with pytest.raises(NotFoundError, match=r"^dangling: no such file in the image: /nowhere is missing$"):
        resolve(b"dangling", status, follow=True)


@pytest.mark.parametrize("path", [b"usr/bin/dash/x", b"bin/sh/x"])
def test_through_a_file(path: bytes) -> None:
    with pytest.raises(NotFoundError, match="usr/bin/dash is no directory"):
        resolve(path, status, follow=False)


@pytest.mark.parametrize("path", [b"loop", b"loop/x", b"too-long"])
def test_too_many_links(path: bytes) -> None:
    with pytest.raises(InvalidError, match="more than 40 symbolic links"):
        resolve(path, status, follow=True)
