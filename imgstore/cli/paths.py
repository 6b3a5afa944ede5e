"""Paths inside an image as a user types them, symbolic links followed as the kernel would with the image as root."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from imgstore.changes import FileType
from imgstore.errors import InvalidError, NotFoundError

if TYPE_CHECKING:
    from imgstore.ext4.reader import FileStatus

LINKS = 40
"""As many symbolic links on one way as Linux follows (``MAXSYMLINKS`` in linux/namei.h)."""


def resolve(path: bytes, status: Callable[[bytes], FileStatus], *, follow: bool) -> tuple[bytes, FileStatus]:
    """Returns the file that ``path`` leads to: its path in normal form, with no link on its way (``b""`` is the root), and its status.

    Args:
        path: absolute or not, it counts from the root of the image, and ``..`` does not lead out of it.
        status: of the file at a path in normal form, links not followed; raises NotFoundError.
        follow: follow the last component too, as is always done when ``path`` ends with a slash.

    Raises:
        NotFoundError: a component is missing, or the way leads through what is no directory.
        InvalidError: more links than Linux follows, as in a loop.
    """
    follow = follow or path.endswith(b"/")
    ahead = path.split(b"/")[::-1]
    done: list[bytes] = []
    links = 0
    while ahead:
        name = ahead.pop()
        if name in (b"", b"."):
            continue
        if name == b"..":
            del done[-1:]
            continue
        done.append(name)
        here = _status(path, done, status)
        if here.type == FileType.SYMLINK and (follow or any(ahead)):
            links += 1
            if links > LINKS:
                raise InvalidError(f"{os.fsdecode(path)}: more than {LINKS} symbolic links on the way")
            done = [] if here.target.startswith(b"/") else done[:-1]
            ahead += here.target.split(b"/")[::-1]
        elif here.type != FileType.DIRECTORY and any(ahead):
            raise NotFoundError(
                f"{os.fsdecode(path)}: no such file in the image: /{os.fsdecode(b'/'.join(done))} is no directory"
            )
    return b"/".join(done), _status(path, done, status)


def _status(path: bytes, done: list[bytes], status: Callable[[bytes], FileStatus]) -> FileStatus:
    place = b"/".join(done)
    try:
        return status(place)
    except NotFoundError as error:
        missing = "" if place == path.strip(b"/") else f": /{os.fsdecode(place)} is missing"
        raise NotFoundError(f"{os.fsdecode(path)}: no such file in the image{missing}") from error
