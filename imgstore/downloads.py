"""Downloads: layer blobs that run ahead of their conversion.

Conversion goes layer by layer, since each file system stands on the one below; registries are slow by the connection, not by the sum.
So a few blobs download at once. What comes before its turn waits in a Spool: a few MiB in memory, and, while the converter has nothing
to do, as much as comes in a file without a name, which the kernel forgets with us. While the converter is busy, downloads wait for it:
writing to a file what it cannot take yet would only take time from it.
"""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from imgstore.errors import NoSpaceError

_MEMORY_LIMIT = 4 << 20
"""Bytes that a spool keeps in memory: a stage of the pipeline holds a few MiB, not more."""


class CancelledError(Exception):
    """The reader has gone: the writer of a Spool is to stop."""


class Spools:
    """The spools of one pull. Its one reader reads them one after the other.

    Args:
        directory: where the files without a name lie when they are needed; None: the system's temporary directory.
        spill: put into those files what comes before its turn; else its source waits, which is as well where it can be read at any time.
    """

    def __init__(self, directory: Path | None, *, spill: bool = True) -> None:
        self.directory = directory
        self.spill = spill
        self.changed = threading.Condition()
        self.converter_idle = True
        """Whether the reader waits for bytes, or reads nothing now. Guarded by ``changed``, as is all state of the spools."""

    def open(self, name: str) -> Spool:
        """A new, empty spool; ``name`` is what errors call it."""
        return Spool(self, name)


class Spool:
    """A queue of bytes from one thread to another. Made by `Spools.open`."""

    def __init__(self, spools: Spools, name: str) -> None:
        self._spools = spools
        self._changed = spools.changed
        self._name = name
        self._pieces: deque[bytes | tuple[int, int]] = deque()  # bytes, or (offset, length) in the file
        self._in_memory = 0
        self._file: int | None = None
        self._file_end = 0
        self._finished = False
        self._unread = False
        self._cancelled = False
        self._error: BaseException | None = None

    def write(self, piece: bytes) -> None:
        """Appends a piece, as soon as there is room for it; drops it when nobody will read it.

        Raises:
            CancelledError: the spool was closed.
            NoSpaceError: the file system of the directory is full.
        """
        with self._changed:
            while self._in_memory > _MEMORY_LIMIT and not self._may_spill() and not self._cancelled:
                self._changed.wait()
            if self._cancelled:
                raise CancelledError
            if self._unread:
                return
            if self._in_memory <= _MEMORY_LIMIT:
                self._pieces.append(piece)
                self._in_memory += len(piece)
                self._changed.notify_all()
                return
            offset = self._file_end
            self._file_end += len(piece)
        self._write_file(piece, offset)
        with self._changed:
            self._pieces.append((offset, len(piece)))
            self._changed.notify_all()

    def finish(self, error: BaseException | None = None) -> None:
        """Ends the queue; with ``error``, the reader gets it in the place of the end."""
        with self._changed:
            self._finished = True
            self._error = error
            self._changed.notify_all()
            if self._cancelled:
                self._close_file()

    def __iter__(self) -> Iterator[bytes]:
        """The pieces in order, waiting for the writer; once.

        Raises:
            CancelledError: the spool was closed meanwhile, or is not to be read on.
        """
        while (piece := self._take()) is not None:
            yield piece if isinstance(piece, bytes) else self._read_file(*piece)

    def stop_reading(self) -> None:
        """From now on there is no reader: what is there, and what will still be written, is dropped."""
        with self._changed:
            self._unread = True
            self._drop()

    def outcome(self) -> BaseException | None:
        """Waits until the writer has finished; what it gave for an end.

        Raises:
            CancelledError: the spool was closed meanwhile.
        """
        with self._changed:
            while not self._finished and not self._cancelled:
                self._changed.wait()
            if self._cancelled:
                raise CancelledError
            return self._error

    def close(self) -> None:
        """Frees all it holds; the writer is told at its next piece. A second call does nothing."""
        with self._changed:
            self._cancelled = True
            self._drop()
            if self._finished:
                self._close_file()

    def _drop(self) -> None:
        self._pieces.clear()
        self._in_memory = 0
        self._spools.converter_idle = True
        self._changed.notify_all()

    def _take(self) -> bytes | tuple[int, int] | None:
        """The next piece, or None at the end."""
        with self._changed:
            while not self._pieces and not self._finished and not self._unread and not self._cancelled:
                self._spools.converter_idle = True
                self._changed.notify_all()
                self._changed.wait()
            if self._unread or self._cancelled:
                raise CancelledError
            if not self._pieces:
                self._spools.converter_idle = True
                if self._error is not None:
                    raise self._error
                return None
            self._spools.converter_idle = False
            piece = self._pieces.popleft()
            if isinstance(piece, bytes):
                self._in_memory -= len(piece)
                self._changed.notify_all()
            return piece

    def _may_spill(self) -> bool:
        return self._spools.spill and self._spools.converter_idle

    def _write_file(self, piece: bytes, offset: int) -> None:
        try:
            if self._file is None:
                with tempfile.TemporaryFile(dir=self._spools.directory) as file:
                    self._file = os.dup(file.fileno())
            view = memoryview(piece)
            while view:
                written = os.pwrite(self._file, view, offset)
                offset += written
                view = view[written:]
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise NoSpaceError(f"{self._name}: no space left to download it to {self._spools.directory}") from error
            raise

    def _read_file(self, offset: int, length: int) -> bytes:
        if self._file is None:
            raise CancelledError
        return os.pread(self._file, length, offset)

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
