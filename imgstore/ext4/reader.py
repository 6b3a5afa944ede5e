"""Reads an ext4 file system from a BlockDevice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from imgstore.blocks import BlockDevice
from imgstore.changes import Change, FileType


@dataclass(frozen=True, slots=True)
class Node:
    """An inode as it was when it was looked up."""

    number: int


@dataclass(frozen=True, slots=True)
class FileStatus:
    """What stat(2), readlink(2) and listxattr(2) tell of a file."""

    inode: int
    type: FileType
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    links: int
    rdev: tuple[int, int]
    target: bytes
    xattrs: Mapping[bytes, bytes]
    blocks: int


class FileSystem:
    """A read-only view of a BlockDevice."""

    def __init__(self, device: BlockDevice) -> None: ...

    def lookup(self, path: bytes) -> Node:
        raise NotImplementedError

    def list_directory(self, node: Node) -> list[tuple[bytes, int, FileType]]:
        raise NotImplementedError

    def read_file(self, node: Node) -> Iterator[memoryview]:
        raise NotImplementedError

    def read(self, node: Node, offset: int, length: int) -> bytes:
        raise NotImplementedError

    def status(self, node: Node) -> FileStatus:
        raise NotImplementedError

    def changes(self, path: bytes = b"") -> Iterator[Change]:
        raise NotImplementedError
