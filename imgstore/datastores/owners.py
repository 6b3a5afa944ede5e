"""Who makes things in a datastore's directory, and what those left who are no more.

An owner is a lock (``flock``) on a file ``.owner-<nonce>.lock`` in the root, which the kernel lets go of when its process ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import socket
from pathlib import Path

from imgstore.datastores.datastore import owner_of
from imgstore.errors import UnavailableError

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def lock_name(owner: str) -> str:
    """The lock file of an owner."""
    return f".owner-{owner}.lock"


def take_owner(root: int) -> tuple[str, int]:
    """A new owner: its nonce, and the descriptor that holds its lock."""
    for _ in range(100):
        owner = secrets.token_hex(6)
        descriptor = os.open(lock_name(owner), _CREATE, 0o600, dir_fd=root)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink == 0:  # a sweep took it for a dead owner's, and was faster
                os.close(descriptor)
                continue
            with contextlib.suppress(OSError):  # for people only, and things are also removed when the file system is full
                who = {"host": socket.gethostname(), "boot": _boot_id(), "pid": os.getpid()}
                os.write(descriptor, json.dumps(who).encode())
            os.fsync(root)  # after a power cut the name alone tells that there is something to sweep
        except OSError as error:
            os.close(descriptor)
            if error.errno == errno.EWOULDBLOCK:  # a sweep is about to remove it
                continue
            with contextlib.suppress(OSError):
                os.unlink(lock_name(owner), dir_fd=root)
            raise
        return owner, descriptor
    raise UnavailableError("the root of the datastore: every new owner's lock was swept away")


class Sweep:
    """One search for leftovers of owners that are no more. The locks of the dead are held until all of theirs is gone.

    Without a lock file of a dead owner there is no search. A search also takes leftovers whose lock file is missing.

    Args:
        root: descriptor of the root of the datastore.
        own: the owner that the caller is, if it is one.
    """

    def __init__(self, root: int, own: str | None) -> None:
        self._root = root
        self._alive: dict[str, bool] = {} if own is None else {own: True}
        self._locks: dict[str, int] = {}
        self._removed: list[str] = []

    def run(self) -> list[str]:
        """The paths of what it removed.

        Raises:
            OSError: a lock cannot be tried, or a leftover not be removed.
        """
        try:
            for name, _ in _entries(self._root):
                if name.startswith(".owner-") and name.endswith(".lock"):
                    self._is_alive(name[len(".owner-") : -len(".lock")])
            if self._locks:
                self._search(self._root, "")
            for owner in self._locks:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(lock_name(owner), dir_fd=self._root)
        finally:
            for descriptor in self._locks.values():
                os.close(descriptor)
        return self._removed

    def _search(self, directory: int, path: str) -> None:
        found = len(self._removed)
        below = []
        for name, is_directory in _entries(directory):
            owner = owner_of(name)
            if owner is not None:
                if not self._is_alive(owner):
                    self._remove(directory, name, is_directory)
                    self._removed.append(path + name)
            elif is_directory:
                below.append(name)
        if len(self._removed) > found:
            os.fsync(directory)  # before the lock files go, without which nobody would look for what a power cut brings back
        for name in below:
            try:
                descriptor = os.open(name, _DIRECTORY, dir_fd=directory)
            except FileNotFoundError:
                continue  # removed by another process meanwhile
            try:
                self._search(descriptor, f"{path}{name}/")
            finally:
                os.close(descriptor)

    @staticmethod
    def _remove(directory: int, name: str, is_directory: bool) -> None:
        with contextlib.suppress(FileNotFoundError):
            if is_directory:
                shutil.rmtree(name, dir_fd=directory)
            else:
                os.unlink(name, dir_fd=directory)

    def _is_alive(self, owner: str) -> bool:
        if owner not in self._alive:
            self._alive[owner] = self._find_alive(owner)
        return self._alive[owner]

    def _find_alive(self, owner: str) -> bool:
        try:
            descriptor = os.open(lock_name(owner), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._root)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno == errno.EWOULDBLOCK:
                return True
            raise
        self._locks[owner] = descriptor
        return False


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _entries(directory: int) -> list[tuple[str, bool]]:
    """Each name in a directory and whether it is a directory itself."""
    with os.scandir(directory) as entries:
        return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
