"""Disks of containers and volumes: written by guests and by us, by turns.

Where layers' disks are sealed, these are written where they lie. Each is one file ``<stem>.vmdk``; while an edit of ours is committed, and
after a crash during that, ``<stem>.intent`` lies beside it. Parents are sealed disks of the same datastore, found by the hint.
"""

from __future__ import annotations

import contextlib
import functools
import posixpath
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from imgstore.datastores.datastore import Datastore, LiveFile
from imgstore.errors import InvalidError, NotFoundError
from imgstore.vmdk.chain import Chain, open_chain
from imgstore.vmdk.child import random_cid, write_child
from imgstore.vmdk.editor import EditedDisk
from imgstore.vmdk.guest import GuestDisk
from imgstore.vmdk.intent import apply_intent

_MAX_INTENT = 1 << 30
"""Bytes that are read of an intent: that of rewriting a whole disk of 2 TiB has half of that."""


class Parent(Protocol):
    """What a disk has to know of the disk below: a ``Chain`` tells it."""

    @property
    def path(self) -> str:
        """Where it lies in the datastore."""
        ...

    @property
    def cid(self) -> int:
        """Content id."""
        ...

    @property
    def size(self) -> int:
        """Bytes."""
        ...


class ParentLink(NamedTuple):
    """A parent that is not open."""

    path: str
    cid: int
    size: int


class NewDisk(NamedTuple):
    """A disk to be created; see ``LiveDisks.create``."""

    path: str
    capacity: int
    parent: Parent | None = None


class LiveDisks:
    """The disks of a store that are written. Calls from several threads are safe; two that want one disk exclude each other.

    A guest that QEMU runs, and we, keep each other out by QEMU's own image locks (``Datastore.open_live``).
    """

    def __init__(self, datastore: Datastore) -> None:
        self._datastore = datastore

    def create(self, path: str, capacity: int, parent: Parent | None = None) -> None:
        """Makes an empty disk, durably.

        A crash before it returned leaves nothing, or a file that may be torn: a record that it was made comes afterwards.

        Args:
            path: in the datastore; ends in ``.vmdk``.
            capacity: bytes, a multiple of 64 KiB, not less than the parent's.
            parent: shows through where the disk has nothing.

        Raises:
            AlreadyExistsError: there is something of that name.
            InvalidError: a size or a name that no disk can have.
            NoSpaceError: the datastore is full; nothing is left.
        """
        self._create(NewDisk(path, capacity, parent), durable=True)

    def create_many(self, disks: Iterable[NewDisk]) -> None:
        """Makes empty disks as ``create`` does; they are durable, all of them, when it returns. If one fails, none is left.

        Takes as long as the file system needs for creating the files, and then for one ``Datastore.sync``.
        """
        made: list[str] = []
        try:
            for disk in disks:
                self._create(disk, durable=False)
                made.append(disk.path)
            self._datastore.sync()
        except BaseException:
            for path in made:
                self._datastore.remove_file(path)
            raise

    @contextlib.contextmanager
    def read(self, path: str) -> Iterator[Chain]:
        """The disk with its parents, open for reading. Nobody writes it meanwhile; others may read it.

        Raises:
            InUseError: a guest or another thread or process is writing it.
            NotFoundError: it, or a parent, is missing.
            CorruptError: a disk is damaged, or does not fit its parent.
        """
        with self._open_settled(path) as file, self._open_chain(file) as chain:
            yield chain

    @contextlib.contextmanager
    def edit(self, path: str) -> Iterator[EditedDisk]:
        """The disk with its parents as a device to be written. Nobody else has it open meanwhile.

        When the block ends well, all that was written becomes the disk's contents, durably; after an error nothing does. After a crash
        at any instant it has all or nothing.

        Raises:
            InUseError: a guest or another thread or process has it open.
            NotFoundError: it, or a parent, is missing.
            CorruptError: a disk is damaged, or does not fit its parent.
            NoSpaceError: the datastore is full; the disk is as before.
        """
        with self._datastore.open_live(path, writable=True) as file:
            self._finish(file)
            with self._open_chain(file) as chain:
                device = EditedDisk(chain, file, _Intent(self._datastore, path))
                try:
                    yield device
                    device.commit()
                except BaseException:
                    device.discard()
                    raise

    def attach(self, path: str) -> GuestDisk:
        """The disk with its parents as a guest has it: what is written is in it at once, and durable with a flush.

        Nobody else has it open until it is closed.

        Raises:
            InUseError: a guest or another thread or process has it open.
            NotFoundError: it, or a parent, is missing.
            CorruptError: a disk is damaged, or does not fit its parent.
            UnsupportedError: another program made it, and not all of its tables are where they can be written.
        """
        stack = contextlib.ExitStack()
        try:
            file = stack.enter_context(self._datastore.open_live(path, writable=True))
            self._finish(file)
            chain = stack.enter_context(self._open_chain(file))
            return GuestDisk(chain, file, stack.close)
        except BaseException:
            stack.close()
            raise

    def recover(self, path: str) -> None:
        """Ends an edit that a crash cut off while it was committed; to be called before any other program opens the disk.

        Raises:
            InUseError: there is such an edit, and somebody has the disk open.
            NotFoundError: the disk is missing, and there is such an edit.
        """
        if self._datastore.exists(_intent_path(path)):
            with self._datastore.open_live(path, writable=True) as file:
                self._finish(file)

    @contextlib.contextmanager
    def removing(self, path: str) -> Iterator[None]:
        """Has the disk alone inside the block; when that ends well, removes it, durably.

        Raises:
            InUseError: a guest or another thread or process has it open.
            NotFoundError: it is missing.
        """
        with self._datastore.open_live(path, writable=True):
            yield
            _Intent(self._datastore, path).erase()  # first: without a disk nobody would find it
            with contextlib.suppress(NotFoundError):
                self._datastore.remove_file(path)

    def remove(self, path: str) -> None:
        """Removes the disk, durably. Raises what `removing` raises."""
        with self.removing(path):
            pass

    def _create(self, disk: NewDisk, *, durable: bool) -> None:
        path, capacity, parent = disk
        if parent is not None and capacity < parent.size:
            raise InvalidError(f"{path}: a disk of {capacity} bytes cannot show its parent {parent.path} of {parent.size}")
        with self._datastore.create(path) as file:
            try:
                write_child(
                    file,
                    capacity=capacity,
                    cid=random_cid(),
                    extent_name=posixpath.basename(path),
                    parent_cid=None if parent is None else parent.cid,
                    parent_hint=None if parent is None else _relative(parent.path, posixpath.dirname(path)),
                )
                if durable:
                    file.fsync()
            except BaseException:
                self._datastore.remove_file(path)
                raise

    def _open_settled(self, path: str) -> LiveFile:
        while True:
            self.recover(path)
            file = self._datastore.open_live(path, writable=False)
            if not self._datastore.exists(_intent_path(path)):
                return file
            file.close()  # someone's commit was cut off between the two

    def _open_chain(self, top: LiveFile) -> Chain:
        return open_chain(lambda path: top if path == top.path else self._datastore.open(path), top.path)

    def _finish(self, file: LiveFile) -> None:
        intent = _Intent(self._datastore, file.path)
        data = intent.read()
        if data is not None:
            apply_intent(file, data)
            intent.erase()


class _Intent:
    """The intent of one disk, beside it."""

    def __init__(self, datastore: Datastore, path: str) -> None:
        self._datastore = datastore
        self._path = _intent_path(path)

    def read(self) -> bytes | None:
        if not self._datastore.exists(self._path):
            return None
        with self._datastore.open(self._path) as file:
            return file.pread(0, min(file.size, _MAX_INTENT))

    def write(self, intent: bytes) -> None:
        self._datastore.write_atomic(self._path, intent)

    def erase(self) -> None:
        with contextlib.suppress(NotFoundError):
            self._datastore.remove_file(self._path)


def _intent_path(path: str) -> str:
    return posixpath.splitext(path)[0] + ".intent"


@functools.lru_cache(maxsize=64)
def _relative(path: str, directory: str) -> str:
    # The root of the datastore as the root of all: else the working directory would be asked for.
    return posixpath.relpath(f"/{path}", f"/{directory}")
