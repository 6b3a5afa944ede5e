"""QEMU's image locks: who has a disk open, and for what, told to every process of every program that keeps to them.

Each of four permissions has two bytes: one that is locked by whoever uses the permission, and one by whoever bears nobody else that
uses it. All locks are shared ones, of the open file and not of the process ("open file description locks", fcntl_locking(2)), so that
threads are told apart too; that another one has a byte is seen by asking whether it could be locked alone.

Source: QEMU ``block/file-posix.c``, ``raw_apply_lock_bytes`` and ``raw_check_lock_bytes``; ``qapi/block-core.json``, BlockPermission.
"""

from __future__ import annotations

import fcntl
import os
import random
import struct
import time

_USED = 100
_BARRED = 200

_CONSISTENT_READ, _WRITE, _WRITE_UNCHANGED, _RESIZE = range(4)
_ALL = (_CONSISTENT_READ, _WRITE, _WRITE_UNCHANGED, _RESIZE)

_FLOCK = struct.Struct("hhqqi0q")

_ATTEMPTS = 3
"""Two that come at once see each other's locks, and both let go."""

_LONGEST_WAIT = 0.004


def take(descriptor: int, *, writable: bool) -> bool:
    """Locks an open file as QEMU would, until it is closed; False if somebody has it open in a way that forbids that.

    A writer bears nobody else; a reader other readers.

    Raises:
        OSError: the file system has no such locks.
    """
    used = _ALL if writable else (_CONSISTENT_READ,)
    barred = _ALL if writable else (_WRITE, _RESIZE)
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(random.uniform(0.001, _LONGEST_WAIT))  # noqa: S311  # not for a secret
        if _try(descriptor, used, barred):
            return True
    return False


def _try(descriptor: int, used: tuple[int, ...], barred: tuple[int, ...]) -> bool:
    for permission in used:
        _set(descriptor, fcntl.F_RDLCK, _USED + permission)
    for permission in barred:
        _set(descriptor, fcntl.F_RDLCK, _BARRED + permission)
    if not any(
        [
            *(_is_locked(descriptor, _BARRED + permission) for permission in used),
            *(_is_locked(descriptor, _USED + permission) for permission in barred),
        ]
    ):
        return True
    _set(descriptor, fcntl.F_UNLCK, _USED, len(_ALL))
    _set(descriptor, fcntl.F_UNLCK, _BARRED, len(_ALL))
    return False


def _set(descriptor: int, kind: int, start: int, length: int = 1) -> None:
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))


def _is_locked(descriptor: int, byte: int) -> bool:
    found = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
    return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)
