"""MountedTree: the file systems of a container as the one tree that its processes would see.

Paths are in the normal form of ``changes`` and count from the root of the container. Symbolic links are followed as the kernel follows them
with that root, across mounts; nothing leads out, since every name is looked up in the blocks of a file system (CVE-2018-15664 came of
looking up twice, by name, on a machine where the tree changed meanwhile. Here it is locked, and there is no such second look).
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from imgstore.changes import FileType
from imgstore.errors import InvalidError, NotFoundError
from imgstore.ext4.paths import MOST_LINKS
from imgstore.ext4.reader import FileStatus, FileSystem
from imgstore.ext4.writer import LayerWriter

_LONGEST_PATH = 4095


class Files(Protocol):
    """One file system, by paths that count from its root; no link is followed."""

    def type_at(self, path: bytes) -> FileType | None:
        """The type of what is there, or None."""
        ...

    def status_at(self, path: bytes) -> FileStatus:
        """All that is known of what is there; NotFoundError if nothing is."""
        ...


class FilesRead:
    """``Files`` of a file system that is only read.

    Attributes:
        file_system: the same.
    """

    def __init__(self, file_system: FileSystem) -> None:
        self.file_system = file_system

    def type_at(self, path: bytes) -> FileType | None:
        try:
            return self.file_system.lookup(path).type
        except NotFoundError:
            return None

    def status_at(self, path: bytes) -> FileStatus:
        return self.file_system.status(self.file_system.lookup(path))


FilesWritten = LayerWriter | FilesRead
"""``Files`` of a file system that is changed, unless it cannot be."""

F = TypeVar("F", bound=Files)


class Place(NamedTuple):
    """Where a path of the container lies.

    Attributes:
        mount: number of the file system, 0 is the container's own disk.
        path: counts from the root of that one.
    """

    mount: int
    path: bytes


class MountPoint(NamedTuple):
    """A file system in a container.

    Attributes:
        destination: where it is to be seen.
        volume: its name; empty for the container's own disk.
    """

    destination: bytes
    volume: str
    read_only: bool


class MountedTree(Generic[F]):
    """A container's tree. A volume is opened when a path first leads into it.

    Directories on the way to a mount point that are not on the disk are in the tree nevertheless, as docker makes them when it mounts.

    Args:
        root: the container's own file system.
        mounts: the first is that of ``root``.

    Attributes:
        mounts: the file systems, by their numbers: the container's own is 0, and a volume comes after that in which its mount point is.
        points: where each of them is, with no link on the way.
    """

    def __init__(self, root: F, mounts: Sequence[MountPoint], open_volume: Callable[[str], F]) -> None:
        volumes = sorted(mounts[1:], key=lambda mount: (mount.destination.count(b"/"), mount.destination))
        self.mounts = (mounts[0], *volumes)
        self.points = [b""]
        self._files: list[F | None] = [root, *(None for _ in volumes)]
        self._open_volume = open_volume
        self._numbers = {b"": 0}
        self._ways: set[bytes] = set()
        for mount in volumes:
            point = self.follow(mount.destination)
            self._numbers[point] = len(self.points)
            self.points.append(point)
            while point:
                point = point.rpartition(b"/")[0]
                self._ways.add(point)
        self._ways -= self._numbers.keys()

    def files(self, number: int) -> F:
        """A file system by its number."""
        found = self._files[number]
        if found is None:
            found = self._files[number] = self._open_volume(self.mounts[number].volume)
        return found

    def place(self, path: bytes) -> Place:
        """Where a path lies; links are not followed."""
        if len(self.points) == 1:
            return Place(0, path)
        above = path
        while above not in self._numbers:
            above = above.rpartition(b"/")[0]
        return Place(self._numbers[above], path[len(above) + 1 :] if above else path)

    def mounts_below(self, path: bytes) -> list[int]:
        """Numbers of the file systems that are mounted below a path, those nearer to it first."""
        return [number for number, point in enumerate(self.points) if number and is_below(point, path)]

    def covered(self, number: int) -> set[bytes]:
        """Paths of a file system that others are mounted on."""
        found = set()
        for point in self.points[1:]:
            above, _, name = point.rpartition(b"/")
            mount, inner = self.place(above)
            if mount == number:
                found.add(inner + b"/" + name if inner else name)
        return found

    def ways(self, number: int) -> list[bytes]:
        """Directories on the way to mount points that a file system does not have, those nearer to the root first."""
        places = [(way, self.place(way)) for way in sorted(self._ways)]
        return [way for way, (mount, inner) in places if mount == number and self.files(mount).type_at(inner) is None]

    def type_at(self, path: bytes) -> FileType | None:
        """The type of what is at a path, or None; links are not followed."""
        number, inner = self.place(path)
        if not inner:
            return FileType.DIRECTORY
        return self.files(number).type_at(inner) or (FileType.DIRECTORY if path in self._ways else None)

    def follow(self, path: bytes) -> bytes:
        """Where a path leads when all links on it are followed, the last one too.

        Names that do not exist are taken as they stand, as if they were directories: docker's FollowSymlinkInScope.

        Raises:
            NotDirectoryError: the way goes on behind what is no directory.
            InvalidError: more than 40 links, a NUL byte, or too long.
        """
        check_path(path)
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
            here = b"/".join((*done, name))
            found = self.type_at(here)
            if found is FileType.SYMLINK:
                links += 1
                if links > MOST_LINKS:
                    raise InvalidError(f"stat {shown(normal(path))}: too many levels of symbolic links")
                number, inner = self.place(here)
                target = self.files(number).status_at(inner).target
                if target.startswith(b"/"):
                    done = []
                ahead += target.split(b"/")[::-1]
                continue
            if found is not None and found is not FileType.DIRECTORY and any(ahead):
                raise NotDirectoryError(f"lstat {shown(here + b'/' + ahead[-1])}: not a directory")
            done.append(name)
        return b"/".join(done)


class NotDirectoryError(InvalidError):
    """A path goes on behind what is no directory."""


def check_path(path: bytes) -> None:
    """Raises InvalidError if no file can have the path."""
    if b"\0" in path or len(path) > _LONGEST_PATH:
        raise InvalidError(f"{shown(path[:300])}: a path of {len(path)} bytes, allowed are {_LONGEST_PATH} and no NUL byte")


def normal(path: bytes) -> bytes:
    """A path as a user gives it, in normal form; ``..`` is taken back by its text, as docker cleans paths before it looks at them."""
    return posixpath.normpath(b"/" + path).lstrip(b"/")


def is_below(path: bytes, above: bytes) -> bool:
    """Whether ``path`` is really inside of the directory ``above``."""
    return path.startswith(above + b"/") if above else bool(path)


def shown(path: bytes) -> str:
    """A path of a container for messages, absolute."""
    return "/" + os.fsdecode(path).lstrip("/")
