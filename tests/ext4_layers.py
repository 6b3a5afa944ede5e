"""What the tests of ``imgstore.ext4`` share: a device that is a sparse file, and short ways to write Changes and layers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from imgstore.blocks import BlockDevice, Bytes, Extent, ExtentKind, MemoryBlockDevice, WritableBlockDevice
from imgstore.changes import NO_XATTRS, Change, Entry, FileType, HardLink
from imgstore.ext4.format import format_file_system
from imgstore.ext4.reader import FileSystem
from imgstore.ext4.writer import LayerSummary, LayerWriter

MIB = 1 << 20
MTIME = 1_700_000_000_123_456_789


class FileBlockDevice:
    """A sparse file as a device, so that outside programs see what we wrote."""

    def __init__(self, path: Path, size: int | None = None) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        if size is not None:
            os.ftruncate(self._descriptor, size)
        self.path = path
        self.size = os.fstat(self._descriptor).st_size

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or offset + length > self.size:
            raise ValueError(f"bytes {offset}..{offset + length} are not inside {self.size} bytes")
        data = os.pread(self._descriptor, length, offset)
        assert len(data) == length
        return data

    def write(self, offset: int, data: Bytes) -> None:
        assert offset >= 0
        assert offset + len(data) <= self.size
        assert os.pwrite(self._descriptor, data, offset) == len(data)

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        yield Extent(offset, self.size - offset if length is None else length, ExtentKind.DATA)

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def formatted(size: int = 64 * MIB) -> MemoryBlockDevice:
    """An empty file system in memory."""
    device = MemoryBlockDevice(size)
    format_file_system(device)
    return device


def formatted_file(path: Path, size: int = 64 * MIB) -> FileBlockDevice:
    """An empty file system in a sparse file."""
    device = FileBlockDevice(path, size)
    format_file_system(device)
    return device


def regular(
    path: bytes,
    data: bytes = b"",
    mode: int = 0o644,
    *,
    uid: int = 0,
    gid: int = 0,
    mtime_ns: int = MTIME,
    xattrs: Mapping[bytes, bytes] = NO_XATTRS,
    piece: int = MIB,
) -> Entry:
    """A regular file whose data come in pieces of ``piece`` bytes."""
    pieces = [memoryview(data)[start : start + piece] for start in range(0, len(data), piece)]
    return Entry(path, FileType.REGULAR, mode, uid, gid, mtime_ns, len(data), xattrs=xattrs, data=pieces)


def sparse(path: bytes, size: int, segments: Sequence[tuple[int, bytes]]) -> Entry:
    """A regular file of which only ``segments`` (offset, data) are no hole."""
    return Entry(
        path,
        FileType.REGULAR,
        0o644,
        mtime_ns=MTIME,
        size=size,
        segments=[(offset, len(data)) for offset, data in segments],
        data=[memoryview(data) for _, data in segments],
    )


def directory(
    path: bytes,
    mode: int = 0o755,
    *,
    uid: int = 0,
    gid: int = 0,
    mtime_ns: int = MTIME,
    xattrs: Mapping[bytes, bytes] = NO_XATTRS,
) -> Entry:
    return Entry(path, FileType.DIRECTORY, mode, uid, gid, mtime_ns, xattrs=xattrs)


def symlink(path: bytes, target: bytes) -> Entry:
    return Entry(path, FileType.SYMLINK, 0o777, mtime_ns=MTIME, target=target)


def device_node(path: bytes, file_type: FileType, major: int = 0, minor: int = 0) -> Entry:
    return Entry(path, file_type, 0o600, mtime_ns=MTIME, rdev=(major, minor))


def apply_layer(device: WritableBlockDevice, changes: Iterable[Change]) -> LayerSummary:
    """Applies one layer in place."""
    writer = LayerWriter(device)
    for change in changes:
        writer.apply(change)
    return writer.finish()


def paths(file_system: FileSystem) -> list[bytes]:
    """All names but the root's."""
    return [change.path for change in file_system.changes() if change.path]


def content(file_system: FileSystem, path: bytes) -> bytes:
    return b"".join(file_system.read_file(file_system.lookup(path)))


def links_of(file_system: FileSystem) -> dict[bytes, bytes]:
    """Hard links: path to first name."""
    return {change.path: change.target for change in file_system.changes() if isinstance(change, HardLink)}


def contents(device: BlockDevice) -> dict[int, bytes]:
    """All pages of 64 KiB that are not zeros: equal for equal bytes."""
    pages: dict[int, bytes] = {}
    for extent in device.extents():
        if extent.kind is ExtentKind.DATA:
            for offset in range(extent.offset, extent.offset + extent.length, 1 << 16):
                data = device.read(offset, 1 << 16)
                if data.count(0) != len(data):
                    pages[offset] = data
    return pages


EVERY_STRUCTURE: list[Change] = [
    directory(b"d"),
    regular(b"d/file", b"x" * 5000, xattrs={b"user.a": b"v" * 100, b"user.b": b"w" * 100}),
    regular(b"d/other", b"y" * 5000),
    HardLink(b"d/link", b"d/file"),
    symlink(b"fast", b"target"),
    symlink(b"slow", b"t" * 100),
    sparse(b"tree", 10 * 8192, [(number * 8192, b"z" * 4096) for number in range(10)]),
    *(regular(b"wide/" + b"%d" % number * 20) for number in range(200)),
]
"""A layer that makes one of each structure of the disk: xattr block, extent tree, index, long symlink."""
