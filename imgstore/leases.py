"""Leases: who works on what, between threads and between processes of one machine.

A lease is an advisory ``flock(2)`` on a small file of its own, so the kernel drops it when its owner dies, however it dies.
Each acquisition opens the file anew, and so excludes other threads of this process as it does other processes.
An exclusive holder can leave a note in the file (what it does, how far it is) that waiters read.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from imgstore.errors import (
    AlreadyExistsError,
    DeniedError,
    ImgstoreError,
    InUseError,
    InvalidError,
    NoSpaceError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)

_POLL_SECONDS = 0.1
_NOTE_LIMIT = 4096  # a note is one short JSON object

_NOTHING_CHANGED = (InvalidError, NotFoundError, InUseError, AlreadyExistsError, UnsupportedError)

_KINDS: dict[int, type[ImgstoreError]] = {
    errno.ENOSPC: NoSpaceError,
    errno.EDQUOT: NoSpaceError,
    errno.EACCES: DeniedError,
    errno.EPERM: DeniedError,
    errno.EROFS: DeniedError,
}


class Lease(Protocol):
    """One held lease."""

    def note(self, content: dict[str, Any]) -> None:
        """Leaves word for those who wait; never fails the work it tells of."""
        ...

    def release(self) -> None:
        """Gives the lease back; a second call does nothing."""
        ...

    def abandon(self) -> None:
        """Gives the lease back as the death of its holder would, for `Leases.sweep` to find: what it was held for is half done."""
        ...


class Leases(Protocol):
    """A set of names that can be leased."""

    def acquire(self, name: str, *, shared: bool = False) -> Lease | None:
        """Takes the lease at once, or returns None when someone else's excludes it."""
        ...

    def read_note(self, name: str) -> dict[str, Any]:
        """The latest note of the holder, or an empty dict."""
        ...

    def notes(self, prefix: str) -> list[dict[str, Any]]:
        """The notes of the holders of all leases whose names begin so."""
        ...

    def sweep(self) -> list[str]:
        """Ends the leases whose holders died or gave up, and returns their names: what these were doing may be half done."""
        ...


def wait_for(
    leases: Leases,
    name: str,
    *,
    shared: bool = False,
    waiting: Callable[[dict[str, Any]], None] = lambda note: None,
) -> Lease:
    """Takes the lease as soon as nobody excludes it; ``waiting`` is called with the holder's note about ten times a second."""
    while (lease := leases.acquire(name, shared=shared)) is None:
        waiting(leases.read_note(name))
        time.sleep(_POLL_SECONDS)
    return lease


@contextlib.contextmanager
def held(
    leases: Leases,
    name: str,
    *,
    shared: bool = False,
    waiting: Callable[[dict[str, Any]], None] = lambda note: None,
) -> Iterator[Lease]:
    """Waits for the lease as `wait_for` does, and holds it for the length of a ``with`` block.

    An error that comes out of the block abandons the lease, unless it is of a kind that comes before anything is changed.
    """
    lease = wait_for(leases, name, shared=shared, waiting=waiting)
    try:
        yield lease
    except _NOTHING_CHANGED:
        raise
    except BaseException:
        lease.abandon()
        raise
    finally:
        lease.release()


class FileLeases:
    """Leases as files of a directory on a local file system.

    Args:
        directory: made when the first lease is taken.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def acquire(self, name: str, *, shared: bool = False) -> Lease | None:
        path = self._directory / name
        while True:
            try:
                with _errors_named(path):
                    lease = _take(path, shared=shared, flags=os.O_CREAT)
            except FileNotFoundError:
                with _errors_named(self._directory):
                    self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            except BlockingIOError:
                return None
            else:
                if lease is not None:
                    return lease

    def read_note(self, name: str) -> dict[str, Any]:
        try:
            with (self._directory / name).open("rb") as file:
                note = json.loads(file.read(_NOTE_LIMIT) or b"{}")
        except (OSError, ValueError):  # released, or caught while it was written
            return {}
        return note if isinstance(note, dict) else {}

    def notes(self, prefix: str) -> list[dict[str, Any]]:
        found = []
        for name in self._names():
            if name.startswith(prefix):
                lease = self.acquire(name, shared=True)
                if lease is None:
                    found.append(self.read_note(name))
                else:
                    lease.release()  # its holder is dead
        return found

    def _names(self) -> list[str]:
        try:
            return sorted(os.listdir(self._directory))  # noqa: PTH208 - names are what leases have
        except FileNotFoundError:
            return []

    def sweep(self) -> list[str]:
        dead = []
        with contextlib.suppress(FileNotFoundError):
            for name in self._names():
                # Who releases a lease removes its file before the lock: a file without a lock is a dead holder's.
                with contextlib.suppress(FileNotFoundError, BlockingIOError), _errors_named(self._directory / name):
                    lease = _take(self._directory / name, shared=False)
                    if lease is not None:
                        lease.release()
                        dead.append(name)
        return dead


@contextlib.contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, BlockingIOError):
        raise
    except OSError as error:
        kind = _KINDS.get(error.errno or 0, UnavailableError)
        raise kind(f"{path}: cannot be locked: {error.strerror}") from error


def _take(path: Path, *, shared: bool, flags: int = 0) -> _FileLease | None:
    """Takes the lease, or returns None when its file was removed between our open and our lock.

    Raises:
        BlockingIOError: someone else's excludes it.
        FileNotFoundError: there is no such file, and O_CREAT is not among the flags; or no such directory.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        if _is_still(path, descriptor):
            return _FileLease(path, descriptor, shared)
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


class _FileLease:
    def __init__(self, path: Path, descriptor: int, shared: bool) -> None:
        self._path = path
        self._descriptor: int | None = descriptor
        self._shared = shared
        self._guard = threading.Lock()

    def note(self, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        with self._guard, contextlib.suppress(OSError):
            if self._descriptor is not None:
                os.pwrite(self._descriptor, data, 0)
                os.ftruncate(self._descriptor, len(data))

    def release(self) -> None:
        with self._guard:
            descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        with contextlib.suppress(OSError):  # another sharer still holds it: the last one removes the file
            if self._shared:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._path.unlink()
        os.close(descriptor)

    def abandon(self) -> None:
        with self._guard:
            descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


class MemoryLeases:
    """Leases of one process, for a store that lives in its memory."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._holders: dict[str, int] = {}  # -1: exclusive, else how many share
        self._notes: dict[str, dict[str, Any]] = {}
        self._abandoned: set[str] = set()

    def acquire(self, name: str, *, shared: bool = False) -> Lease | None:
        with self._guard:
            holders = self._holders.get(name, 0)
            if holders < 0 or (holders > 0 and not shared):
                return None
            self._holders[name] = holders + 1 if shared else -1
        return _MemoryLease(self, name)

    def read_note(self, name: str) -> dict[str, Any]:
        with self._guard:
            return self._notes.get(name, {})

    def notes(self, prefix: str) -> list[dict[str, Any]]:
        with self._guard:
            return [self._notes.get(name, {}) for name in sorted(self._holders) if name.startswith(prefix)]

    def sweep(self) -> list[str]:
        with self._guard:
            dead = sorted(self._abandoned)
            self._abandoned.clear()
        return dead

    def write_note(self, name: str, content: dict[str, Any]) -> None:
        with self._guard:
            self._notes[name] = content

    def give_back(self, name: str, *, abandoned: bool = False) -> None:
        with self._guard:
            if abandoned:
                self._abandoned.add(name)
            holders = max(self._holders.pop(name) - 1, 0)
            if holders:
                self._holders[name] = holders
            else:
                self._notes.pop(name, None)


class _MemoryLease:
    def __init__(self, leases: MemoryLeases, name: str) -> None:
        self._leases: MemoryLeases | None = leases
        self._name = name

    def note(self, content: dict[str, Any]) -> None:
        if self._leases is not None:
            self._leases.write_note(self._name, content)

    def release(self) -> None:
        leases, self._leases = self._leases, None
        if leases is not None:
            leases.give_back(self._name)

    def abandon(self) -> None:
        leases, self._leases = self._leases, None
        if leases is not None:
            leases.give_back(self._name, abandoned=True)
