"""BlockDevice: numbered bytes with extents.

This is the whole vocabulary between ``ext4`` and ``vmdk``. Offsets and lengths are bytes.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import NamedTuple, Protocol, TypeAlias

Bytes: TypeAlias = bytes | bytearray | memoryview
"""What may be written. The callee does not keep it after it returned."""


class ExtentKind(enum.Enum):
    """What is known of a run of bytes without reading it."""

    DATA = "data"
    HOLE = "hole"
    """Never written: reads as zeros."""


class Extent(NamedTuple):
    """A run of bytes of one kind."""

    offset: int
    length: int
    kind: ExtentKind


class BlockDevice(Protocol):
    """Numbered bytes that can be read. Reads from several threads are safe unless the implementation says otherwise."""

    @property
    def size(self) -> int:
        """Length in bytes; a multiple of 4096."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes at ``offset``; holes read as zeros.

        Raises:
            ValueError: the range is not inside the device.
        """
        ...

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        """The runs that tile the range, ascending; neighbours may be of one kind."""
        ...


class WritableBlockDevice(BlockDevice, Protocol):
    """A BlockDevice that can be written; a read sees every write that returned before it."""

    def write(self, offset: int, data: Bytes) -> None:
        """Puts ``data`` at ``offset``. Long writes aligned to 64 KiB are the fast ones.

        Raises:
            ValueError: the range is not inside the device.
        """
        ...


class MemoryBlockDevice:
    """A sparse device in memory: 64 KiB pages in a dict. For scratch disks, which are small, and for tests."""

    PAGE = 1 << 16

    def __init__(self, size: int) -> None:
        self._size = size
        self._pages: dict[int, bytearray] = {}

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        self._check(offset, length)
        parts: list[Bytes] = []
        while length:
            page, start = divmod(offset, self.PAGE)
            take = min(length, self.PAGE - start)
            stored = self._pages.get(page)
            parts.append(bytes(take) if stored is None else memoryview(stored)[start : start + take])
            offset += take
            length -= take
        return b"".join(parts)

    def write(self, offset: int, data: Bytes) -> None:
        view = memoryview(data)
        self._check(offset, len(view))
        while view:
            page, start = divmod(offset, self.PAGE)
            take = min(len(view), self.PAGE - start)
            self._pages.setdefault(page, bytearray(self.PAGE))[start : start + take] = view[:take]
            offset += take
            view = view[take:]

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        end = self._size if length is None else offset + length
        self._check(offset, end - offset)
        position = offset
        for page in sorted(self._pages):
            start, stop = max(page * self.PAGE, position), min((page + 1) * self.PAGE, end)
            if start >= stop:
                continue
            if start > position:
                yield Extent(position, start - position, ExtentKind.HOLE)
            yield Extent(start, stop - start, ExtentKind.DATA)
            position = stop
        if position < end:
            yield Extent(position, end - position, ExtentKind.HOLE)

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self._size:
            raise ValueError(f"bytes {offset}..{offset + length} are not inside a device of {self._size} bytes")
