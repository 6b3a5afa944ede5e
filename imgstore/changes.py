"""Change: one edit of a file tree. A layer is a sequence of Changes.

This is the whole vocabulary between ``layers`` (which reads them out of a tar) and ``ext4`` (which applies them to a file system).

Paths are bytes, relative to the root of the image, in normal form: components joined by ``/``, none of them empty, ``.`` or ``..``;
the root itself is ``b""``. Each component is at most 255 bytes, the whole at most 4096.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

NO_XATTRS: Mapping[bytes, bytes] = MappingProxyType({})


class FileType(enum.IntEnum):
    """Type of a file; the values are those of ``st_mode >> 12`` (POSIX ``S_IFMT``)."""

    FIFO = 0o01
    CHARACTER_DEVICE = 0o02
    DIRECTORY = 0o04
    BLOCK_DEVICE = 0o06
    REGULAR = 0o10
    SYMLINK = 0o12
    SOCKET = 0o14


@dataclass(slots=True)
class Entry:
    """A file that the layer adds, or puts in the place of what has this path.

    A directory over a directory keeps the children and takes the new attributes; anything else replaces what was there,
    with its whole subtree. Missing parents are made as directories 0755 root:root with mtime 0; a parent that is
    no directory is replaced by one.

    Attributes:
        path: normal form, see the module.
        type: never SOCKET (a tar cannot hold one).
        mode: permission bits, ``0`` to ``0o7777``.
        uid: ``0`` to ``2**32 - 2``; gid likewise.
        mtime_ns: nanoseconds since the epoch, may be negative.
        size: apparent size in bytes of a REGULAR file, holes included; 0 for all other types.
        target: of a SYMLINK.
        rdev: (major, minor) of a device.
        xattrs: full name (``security.capability``) to value, as ``getxattr(2)`` gives it: a POSIX ACL is in the
            version-2 form of ``linux/posix_acl_xattr.h``, little-endian.
        segments: where the data lies, as (offset, length), ascending and disjoint; None means one run of ``size`` bytes.
            What is outside is hole.
        data: the bytes of all segments one after the other, in pieces of any length. A piece is valid until the next
            is asked for. Must be read to its end, or dropped, before the next Change is asked for; dropping is allowed.
    """

    path: bytes
    type: FileType
    mode: int
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    target: bytes = b""
    rdev: tuple[int, int] = (0, 0)
    xattrs: Mapping[bytes, bytes] = field(default_factory=lambda: NO_XATTRS)
    segments: Sequence[tuple[int, int]] | None = None
    data: Iterable[memoryview] = ()


@dataclass(slots=True)
class HardLink:
    """Another name for the file that has path ``target`` when this Change is applied; never a directory."""

    path: bytes
    target: bytes


@dataclass(slots=True)
class Whiteout:
    """Removes what the layers below have at ``path``, with its subtree; never what this layer itself put there."""

    path: bytes


@dataclass(slots=True)
class Opaque:
    """Removes all that the layers below have inside directory ``path``; never what this layer itself put there."""

    path: bytes


Change = Entry | HardLink | Whiteout | Opaque
