"""BlockStream: what is written once and in order - file data, new directories, extent blocks - gathered into long aligned runs."""

from __future__ import annotations

from imgstore.blocks import Bytes
from imgstore.ext4.allocation import BlockAllocator
from imgstore.ext4.extents import Run
from imgstore.ext4.pages import WritablePageCache
from imgstore.ext4.structures import BLOCK_SHIFT, BLOCK_SIZE

_BUFFER = 1 << 20
_ZERO_BLOCK = bytes(BLOCK_SIZE)


class BlockStream:
    """Takes bytes, gives them blocks, and writes them when 1 MiB is together.

    There is one buffer for all: memory that is new costs more than what is done to it.
    """

    def __init__(self, pages: WritablePageCache, allocator: BlockAllocator) -> None:
        self._pages = pages
        self._allocator = allocator
        self._buffer = memoryview(bytearray(_BUFFER))
        self._base = 0  # byte of the device where the buffer begins
        self._fill = 0
        self._room = 0  # up to a multiple of 1 MiB of the device, so that all writes but the first are aligned

    def append(self, data: Bytes, logical: int = 0) -> list[Run]:
        """Puts ``data``, filled up with zeros to whole blocks, on the disk, as blocks of a file from ``logical`` on. Returns where.

        Raises:
            FileSystemFullError: the blocks do not suffice.
        """
        size = len(data)
        count = (size + BLOCK_SIZE - 1) >> BLOCK_SHIFT
        start, got = self._allocator.take(count)
        if got == count:
            fill = self._fill
            end = fill + (count << BLOCK_SHIFT)
            if start << BLOCK_SHIFT == self._base + fill and end <= self._room:
                self._buffer[fill : fill + size] = data
                if fill + size < end:
                    self._buffer[fill + size : end] = _ZERO_BLOCK[: end - fill - size]
                self._fill = end
            else:
                self.put(start, data)
            return [Run(logical, start, count)]
        view = memoryview(data)
        runs = []
        while True:
            runs.append(Run(logical, start, got))
            self.put(start, view[: got << BLOCK_SHIFT])
            view = view[got << BLOCK_SHIFT :]
            logical += got
            count -= got
            if not count:
                return runs
            start, got = self._allocator.take(count)

    def append_blocks(self, blocks: list[bytes]) -> list[int]:
        """Puts whole blocks on the disk; returns the number of each."""
        runs = self.append(b"".join(blocks))
        return [block for run in runs for block in range(run.physical, run.physical + run.length)]

    def put(self, start: int, data: Bytes) -> None:
        """Writes ``data`` to blocks from ``start`` on, which the allocator gave before."""
        offset = start << BLOCK_SHIFT
        if offset != self._base + self._fill:
            self.flush()
            self._open(offset)
        view = memoryview(data)
        while view:
            if self._fill >= self._room:
                self.flush()
            take = min(self._room - self._fill, len(view))
            end = self._fill + take
            self._buffer[self._fill : end] = view[:take]
            rest = -end % BLOCK_SIZE
            self._buffer[end : end + rest] = _ZERO_BLOCK[:rest]
            self._fill = end + rest
            view = view[take:]

    def _open(self, offset: int) -> None:
        self._base = offset
        self._fill = 0
        self._room = _BUFFER - offset % _BUFFER

    def flush(self) -> None:
        """Writes what is gathered."""
        if self._fill:
            base, fill = self._base, self._fill
            self._open(base + fill)
            self._pages.write_through(base, self._buffer[:fill])


class FileContent:
    """The data of one file on their way to the stream: blocks of zeros become holes.

    Attributes:
        runs: where the blocks lie, ascending, as long as possible.
        position: bytes of the file so far, holes included.
    """

    def __init__(self, stream: BlockStream) -> None:
        self._stream = stream
        self._partial = bytearray()
        self.runs: list[Run] = []
        self.position = 0

    def skip_to(self, offset: int) -> None:
        """Leaves a hole up to ``offset``."""
        rest = -self.position % BLOCK_SIZE
        if rest and offset - self.position < rest:
            self.write(memoryview(_ZERO_BLOCK)[: offset - self.position])
            return
        if rest:
            self.write(memoryview(_ZERO_BLOCK)[:rest])
        self.position = offset & -BLOCK_SIZE
        if offset > self.position:
            self.write(memoryview(_ZERO_BLOCK)[: offset - self.position])

    def write(self, data: memoryview) -> None:
        """Adds ``data`` at the position."""
        if self.position % BLOCK_SIZE:
            take = min(-self.position % BLOCK_SIZE, len(data))
            self._partial += data[:take]
            self.position += take
            data = data[take:]
            if not self.position % BLOCK_SIZE:
                self._put_blocks(memoryview(self._partial), (self.position - 1) >> BLOCK_SHIFT)
                self._partial = bytearray()
        whole = len(data) & -BLOCK_SIZE
        if whole:
            self._put_blocks(data[:whole], self.position >> BLOCK_SHIFT)
            self.position += whole
        if whole < len(data):
            self._partial += data[whole:]
            self.position += len(data) - whole

    def finish(self) -> None:
        """Writes the last, partly filled block."""
        if self._partial:
            self._append(self._partial, self.position >> BLOCK_SHIFT)

    def _put_blocks(self, data: memoryview, logical: int) -> None:
        firsts = bytes(data[::BLOCK_SIZE])
        begin = 0
        block = firsts.find(0)
        while block >= 0:
            if bytes(data[block << BLOCK_SHIFT : (block + 1) << BLOCK_SHIFT]) == _ZERO_BLOCK:
                if block > begin:
                    self._append(data[begin << BLOCK_SHIFT : block << BLOCK_SHIFT], logical + begin)
                begin = block + 1
            block = firsts.find(0, block + 1)
        if begin < len(firsts):
            self._append(data[begin << BLOCK_SHIFT :], logical + begin)

    def _append(self, data: Bytes, logical: int) -> None:
        for run in self._stream.append(data, logical):
            last = self.runs[-1] if self.runs else None
            if last and last.logical + last.length == run.logical and last.physical + last.length == run.physical:
                self.runs[-1] = Run(last.logical, last.physical, last.length + run.length)
            else:
                self.runs.append(run)
