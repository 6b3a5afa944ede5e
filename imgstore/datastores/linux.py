"""System calls of Linux that Python's ``os`` does not have."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable
from typing import cast

_FICLONE = 0x40049409
"""Source: linux/fs.h."""

_KEEP_SIZE = 1
_PUNCH_HOLE = 2
_ZERO_RANGE = 16

_LIBC = ctypes.CDLL(None, use_errno=True)


def _function(*names: str) -> Callable[..., int] | None:
    for name in names:
        try:
            return cast("Callable[..., int]", _LIBC[name])
        except AttributeError:
            continue
    return None


_SYNCFS = _function("syncfs")
_FALLOCATE = _function("fallocate64", "fallocate")


def sync_file_system(descriptor: int) -> None:
    """Returns when all that was written to the file system of an open file is on stable storage (syncfs(2)).

    Raises:
        OSError: the storage failed.
    """
    if _SYNCFS is None:
        os.sync()
    elif _SYNCFS(descriptor) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def punch_hole(descriptor: int, offset: int, length: int) -> None:
    """Gives back the storage of a range of a file (fallocate(2)), as far as the file system can: a failure is none."""
    if _FALLOCATE is not None:
        _FALLOCATE(descriptor, _PUNCH_HOLE | _KEEP_SIZE, ctypes.c_int64(offset), ctypes.c_int64(length))


def zero_range(descriptor: int, offset: int, length: int, *, keep_space: bool) -> bool:
    """Makes a range of a file read as zeros without writing them (fallocate(2)); False if the file system cannot.

    Args:
        keep_space: keep its storage, else give it back.

    Raises:
        OSError: there is no space, or the storage failed.
    """
    if _FALLOCATE is None:
        return False
    mode = _KEEP_SIZE | (_ZERO_RANGE if keep_space else _PUNCH_HOLE)
    if _FALLOCATE(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length)) == 0:
        return True
    error = ctypes.get_errno()
    if error in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EINTR):
        return False
    raise OSError(error, os.strerror(error))


def clone_file(source: int, destination: int) -> bool:
    """Has two open files share all storage of the first one (ioctl_ficlone(2)); False where their file systems do not do that."""
    try:
        fcntl.ioctl(destination, _FICLONE, source)
    except OSError:
        return False
    return True
