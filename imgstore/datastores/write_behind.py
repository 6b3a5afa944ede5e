"""WriteBehind: long runs of a file on their way to the storage, by direct I/O and in a thread of its own.

Data that are written once and must be on stable storage soon gain nothing from the page cache, and copying them there takes more time
than all else that is done to them. Direct I/O waits for the storage instead, so another thread does that.
"""

from __future__ import annotations

import errno
import mmap
import os
import queue
import threading

from imgstore.blocks import Bytes

ALIGNMENT = 4096
"""Of offsets and lengths: no block device asks for more."""

_BUFFER = 1 << 20
_BUFFERS = 3


class WriteBehind:
    """Writes what it is given in that order, a little later. For one thread, except `drain`, which any may call.

    After an error it writes nothing more, and says the error at every call.

    Attributes:
        error: of a write, or None; final after ``close``.

    Args:
        direct: descriptor opened with O_DIRECT; closed by ``close``.
        cached: descriptor of the same file for what direct I/O refuses; stays open.
        name: of the file, for the name of the thread.
    """

    def __init__(self, direct: int, cached: int, name: str) -> None:
        self._direct = direct
        self._cached = cached
        self.error: OSError | None = None
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        for _ in range(_BUFFERS):
            self._free.put(memoryview(mmap.mmap(-1, _BUFFER)))  # begins at a page, as direct I/O wants it
        self._filled: queue.Queue[tuple[int, memoryview, int] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name=f"imgstore-write {name}", daemon=True)
        self._thread.start()

    def write(self, offset: int, data: Bytes) -> None:
        """Copies ``data`` and returns; offset and length are multiples of ``ALIGNMENT``.

        Raises:
            OSError: of this or an earlier write.
        """
        view = memoryview(data)
        while view:
            buffer = self._free.get()
            if self.error is not None:
                self._free.put(buffer)
                raise self.error
            take = min(len(view), _BUFFER)
            buffer[:take] = view[:take]
            self._filled.put((offset, buffer, take))
            offset += take
            view = view[take:]

    def drain(self) -> None:
        """Returns when the file has all that was written.

        Raises:
            OSError: of an earlier write.
        """
        self._filled.join()
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """Ends the thread when all is written, or given up after an error. Once."""
        self._filled.put(None)
        self._thread.join()
        os.close(self._direct)

    def _run(self) -> None:
        while (item := self._filled.get()) is not None:
            offset, buffer, length = item
            try:
                if self.error is None:
                    self._put(offset, buffer[:length])
            except OSError as error:
                self.error = error
            finally:
                self._free.put(buffer)
                self._filled.task_done()
        self._filled.task_done()

    def _put(self, offset: int, data: memoryview) -> None:
        while data:
            try:
                written = os.pwrite(self._direct, data, offset)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                written = 0
            if not written or written % ALIGNMENT:
                # The file system asks for another alignment, or has room for a part only: the cache takes any length.
                written += os.pwrite(self._cached, data[written:], offset + written)
            data = data[written:]
            offset += written
