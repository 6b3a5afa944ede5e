"""Files of a LocalDatastore: opened for reading, being made, or written where they lie."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from imgstore.blocks import Bytes
from imgstore.datastores import image_locks
from imgstore.datastores.datastore import LiveFile, StagedFile, StoredFile, in_use, named_errors
from imgstore.datastores.linux import clone_file, punch_hole, zero_range
from imgstore.datastores.write_behind import ALIGNMENT, WriteBehind
from imgstore.errors import NotFoundError

READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO must not hold us up

_SEALED_MODE = 0o444

_DIRECT_LENGTH = 1 << 17
"""Shorter writes are metadata, which is read again soon."""


_ZEROS = memoryview(bytes(1 << 20))


class LocalFile(StoredFile):
    """A file opened for reading; takes over the descriptor."""

    def __init__(self, path: str, descriptor: int) -> None:
        self._path = path
        self._open_descriptor = descriptor
        self._tells_ready = True

    @property
    def _descriptor(self) -> int:
        if self._open_descriptor < 0:
            raise ValueError(f"{self._path} is closed")
        return self._open_descriptor

    @property
    def path(self) -> str:
        return self._path

    @property
    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def pread(self, offset: int, length: int) -> bytes:
        with named_errors(self._path, f"read {length} bytes at byte {offset}"):
            data = os.pread(self._descriptor, length, offset)
            if len(data) == length or not data:
                return data
            # Linux reads at most 2 GiB at once, and a network file system may give less.
            parts = [data]
            offset += len(data)
            length -= len(data)
            while length and (data := os.pread(self._descriptor, length, offset)):
                parts.append(data)
                offset += len(data)
                length -= len(data)
        return b"".join(parts)

    def read_ready_into(self, offset: int, buffer: memoryview) -> bool:
        if not self._tells_ready:
            return False
        try:
            return os.preadv(self._descriptor, (buffer,), offset, os.RWF_NOWAIT) == len(buffer)
        except BlockingIOError:
            return False
        except OSError as error:
            # EOPNOTSUPP: tmpfs and most of what comes over a network cannot tell. Any other error comes again to who reads and waits.
            if error.errno == errno.EOPNOTSUPP:
                self._tells_ready = False
            return False

    def data_ranges(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        end = min(offset + length, self.size)
        with named_errors(self._path, "look for its holes"):
            while offset < end:
                try:
                    start = os.lseek(self._descriptor, offset, os.SEEK_DATA)
                except OSError as error:
                    if error.errno == errno.ENXIO:  # only hole behind
                        return
                    raise
                if start >= end:
                    return
                offset = os.lseek(self._descriptor, start, os.SEEK_HOLE)
                yield start, min(offset, end) - start

    def close(self) -> None:
        descriptor, self._open_descriptor = self._open_descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class LocalStagedFile(LocalFile, StagedFile):
    """A file that is being made. Takes over both descriptors.

    Long aligned writes go around the page cache, in a thread of their own, where the file system can do direct I/O. An error of theirs
    comes out of a later call, at the latest of ``fsync`` or of ``publish``.

    Args:
        direct: opened with O_DIRECT, or None.
    """

    def __init__(self, path: str, descriptor: int, direct: int | None) -> None:
        super().__init__(path, descriptor)
        self._direct = direct
        self._behind: WriteBehind | None = None
        self._error: OSError | None = None

    def pwrite(self, offset: int, data: Bytes) -> None:
        with named_errors(self._path, f"write {len(data)} bytes at byte {offset}"):
            behind = self._write_behind() if len(data) >= _DIRECT_LENGTH and not (offset | len(data)) % ALIGNMENT else None
            if behind is not None:
                behind.write(offset, data)
            else:
                self._settle()
                pwrite_all(self._descriptor, offset, data)

    def pread(self, offset: int, length: int) -> bytes:
        with named_errors(self._path, f"read {length} bytes at byte {offset}"):
            self._settle()
        return super().pread(offset, length)

    def read_ready_into(self, offset: int, buffer: memoryview) -> bool:
        return False  # what is behind may still be on its way

    def data_ranges(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        with named_errors(self._path, "look for its holes"):
            self._settle()
        return super().data_ranges(offset, length)

    def truncate(self, size: int) -> None:
        with named_errors(self._path, f"set its length to {size} bytes"):
            self._settle()
            os.ftruncate(self._descriptor, size)

    def fsync(self) -> None:
        with named_errors(self._path, "put it on stable storage"):
            self._settle()
            os.fsync(self._descriptor)

    def clone(self, source: StoredFile) -> bool:
        return isinstance(source, LocalFile) and clone_file(source._descriptor, self._descriptor)

    def close(self) -> None:
        self._end_direct()
        super().close()

    def _write_behind(self) -> WriteBehind | None:
        if self._behind is None and self._direct is not None:
            self._behind, self._direct = WriteBehind(self._direct, self._descriptor, self._path), None
        return self._behind

    def _settle(self) -> None:
        """Waits until the file has all that was written."""
        if self._behind is not None:
            self._behind.drain()
        if self._error is not None:
            raise self._error

    def _end_direct(self) -> None:
        """Ends the thread, and direct I/O with it."""
        behind, self._behind = self._behind, None
        if behind is not None:
            behind.close()
            self._error = behind.error  # of a file that was closed before it is published
        direct, self._direct = self._direct, None
        if direct is not None:
            os.close(direct)

    def seal(self, directory: int, name: str) -> None:
        """Read-only and on stable storage, whether the file is still open or not."""
        self._settle()
        self._end_direct()
        descriptor = os.open(name, READ, dir_fd=directory) if self._open_descriptor < 0 else self._open_descriptor
        try:
            os.fchmod(descriptor, _SEALED_MODE)
            os.fsync(descriptor)
        finally:
            if descriptor != self._open_descriptor:
                os.close(descriptor)


class LocalLiveFile(LocalFile, LiveFile):
    """A file at its final place. Takes over the descriptors; the locks of the file go when it is closed.

    Args:
        directory: where the file was just created, for the first ``fsync``; None for one that was there before.
    """

    def __init__(self, path: str, descriptor: int, directory: int | None = None) -> None:
        super().__init__(path, descriptor)
        self._directory = directory

    def lock(self, *, writable: bool) -> None:
        """Takes QEMU's locks, see ``Datastore.open_live``."""
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            raise NotFoundError(f"{self._path}: is not a regular file")
        if not image_locks.take(self._descriptor, writable=writable):
            raise in_use(self._path)
        if os.fstat(self._descriptor).st_nlink == 0:
            raise NotFoundError(f"{self._path}: was removed just now")

    def pwrite(self, offset: int, data: Bytes) -> None:
        with named_errors(self._path, f"write {len(data)} bytes at byte {offset}"):
            pwrite_all(self._descriptor, offset, data)

    def truncate(self, size: int) -> None:
        with named_errors(self._path, f"set its length to {size} bytes"):
            os.ftruncate(self._descriptor, size)

    def fsync(self) -> None:
        with named_errors(self._path, "put it on stable storage"):
            os.fsync(self._descriptor)
            if self._directory is not None:
                os.fsync(self._directory)
                self._close_directory()

    def punch(self, offset: int, length: int) -> None:
        punch_hole(self._descriptor, offset, length)

    def zero(self, offset: int, length: int, *, keep_space: bool = False) -> None:
        with named_errors(self._path, f"zero {length} bytes at byte {offset}"):
            if not zero_range(self._descriptor, offset, length, keep_space=keep_space):
                for start in range(0, length, len(_ZEROS)):
                    pwrite_all(self._descriptor, offset + start, _ZEROS[: length - start])

    def fdatasync(self) -> None:
        with named_errors(self._path, "put it on stable storage"):
            os.fdatasync(self._descriptor)

    def close(self) -> None:
        self._close_directory()
        super().close()

    def _close_directory(self) -> None:
        directory, self._directory = self._directory, None
        if directory is not None:
            os.close(directory)


def pwrite_all(descriptor: int, offset: int, data: Bytes) -> None:
    """Writes all of ``data``, however little the kernel takes at once."""
    done = os.pwrite(descriptor, data, offset)
    if done == len(data):
        return
    view = memoryview(data)
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], offset + done)


def open_direct(name: str, directory: int) -> int | None:
    """A descriptor for direct I/O, or None where the file system has none."""
    try:
        return os.open(name, os.O_WRONLY | os.O_DIRECT | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except OSError:  # EINVAL: tmpfs and others cannot
        return None
