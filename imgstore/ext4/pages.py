"""PageCache: the metadata of a file system in pages of 64 KiB, written back once.

Metadata is small, scattered and changed many times; the disk below likes whole aligned grains. So what is changed in place
goes through here, and what is only ever written once (file data, new directories) goes past it.
"""

from __future__ import annotations

from collections.abc import Iterator

from imgstore.blocks import BlockDevice, Bytes, Extent, WritableBlockDevice

PAGE_SHIFT = 16
PAGE_SIZE = 1 << PAGE_SHIFT
_MASK = PAGE_SIZE - 1
_LIMIT = 256  # pages: 16 MiB, the inodes of 65,536 files


class PageCache:
    """A BlockDevice whose pages are remembered, the oldest forgotten first. Not safe for several threads.

    Changes stay in memory until ``flush`` or until the page is forgotten; a crash before ``flush`` leaves the device half written.
    """

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self._pages: dict[int, bytearray] = {}
        self._dirty: set[int] = set()

    @property
    def size(self) -> int:
        return self._device.size

    def read(self, offset: int, length: int) -> bytes:
        start = offset & _MASK
        if start + length <= PAGE_SIZE and length:
            page = self._pages.get(offset >> PAGE_SHIFT) or self.page(offset >> PAGE_SHIFT)
            if start + length > len(page):
                raise ValueError(f"bytes {offset}..{offset + length} are not inside a device of {self.size} bytes")
            return bytes(page[start : start + length])
        data = self._device.read(offset, length)
        stale = [number for number in self._dirty if offset >> PAGE_SHIFT <= number <= (offset + length - 1) >> PAGE_SHIFT]
        if not stale:
            return data
        patched = bytearray(data)
        for number in stale:
            first = max(number << PAGE_SHIFT, offset)
            last = min((number + 1) << PAGE_SHIFT, offset + length)
            patched[first - offset : last - offset] = self._pages[number][first & _MASK : ((last - 1) & _MASK) + 1]
        return bytes(patched)

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        """As the device has them: changes not yet flushed are not seen."""
        return self._device.extents(offset, length)

    def page(self, number: int) -> bytearray:
        """The page that starts at byte ``number * PAGE_SIZE``; shorter at the end of the device. Read it only."""
        page = self._pages.get(number)
        if page is None:
            if len(self._pages) >= _LIMIT:
                self._forget(next(iter(self._pages)))
            start = number << PAGE_SHIFT
            page = bytearray(self._device.read(start, min(PAGE_SIZE, self._device.size - start)))
            self._pages[number] = page
        return page

    def _forget(self, number: int) -> None:
        page = self._pages.pop(number)
        if number in self._dirty:
            self._dirty.remove(number)
            self._put(number, page)

    def _put(self, number: int, page: bytearray) -> None:
        raise TypeError("this PageCache is for reading only")


class WritablePageCache(PageCache):
    """A PageCache that takes writes."""

    def __init__(self, device: WritableBlockDevice) -> None:
        super().__init__(device)
        self._writable = device
        self._wrote = False

    def changing_page(self, number: int) -> bytearray:
        """The page, to be changed before the next call of any method."""
        page = self.page(number)
        self._dirty.add(number)
        return page

    def write(self, offset: int, data: Bytes) -> None:
        """Changes bytes that are written back later."""
        view = memoryview(data)
        while view:
            start = offset & _MASK
            take = min(len(view), PAGE_SIZE - start)
            self.changing_page(offset >> PAGE_SHIFT)[start : start + take] = view[:take]
            offset += take
            view = view[take:]

    def write_through(self, offset: int, data: memoryview) -> None:
        """Writes to the device at once."""
        pages = self._pages
        for number in range(offset >> PAGE_SHIFT, ((offset + len(data) - 1) >> PAGE_SHIFT) + 1):
            if number in pages:
                first = max(number << PAGE_SHIFT, offset)
                last = min((number + 1) << PAGE_SHIFT, offset + len(data))
                pages[number][first & _MASK : ((last - 1) & _MASK) + 1] = data[first - offset : last - offset]
        self._wrote = True
        self._writable.write(offset, data)

    def flush(self) -> bool:
        """Writes every page that differs from the device; returns whether this cache ever wrote anything."""
        for number in sorted(self._dirty):
            page = self._pages[number]
            if self._device.read(number << PAGE_SHIFT, len(page)) != page:
                self._put(number, bytearray(page))
        self._dirty.clear()
        return self._wrote

    def _put(self, number: int, page: bytearray) -> None:
        self._wrote = True
        self._writable.write(number << PAGE_SHIFT, memoryview(page))
