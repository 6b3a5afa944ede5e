"""GuestDisk: a disk that exists, written where it lies, so that a crash at any instant leaves a disk that has all that was flushed.

The order makes it so. Contents of grains that are new come before the entries of grain tables that name them, with `fdatasync` in between;
entries of the grain tables come before those of the redundant ones, with another in between, for nobody reads the latter unless the former
are damaged. The content id changes before the first other byte does: a child of the disk as it was must not fit it any more.

Source: QEMU ``block/vmdk.c`` writes so too, in less strict an order (``vmdk_L2update``, ``vmdk_write_cid``).
"""

from __future__ import annotations

import contextlib
import threading
from array import array
from collections.abc import Callable, Mapping
from itertools import pairwise

from imgstore.blocks import SECTOR
from imgstore.errors import ImgstoreError, NoSpaceError, UnavailableError, UnsupportedError
from imgstore.vmdk.chain import Chain
from imgstore.vmdk.child import random_cid
from imgstore.vmdk.descriptor import MAX_DESCRIPTOR, replace_cid
from imgstore.vmdk.editor import free_places
from imgstore.vmdk.grains import (
    DESCRIPTOR_SECTOR,
    GRAIN_SECTORS,
    TABLE_BYTES,
    TABLE_ENTRIES,
    TABLE_SECTORS,
    numbers_to_bytes,
)
from imgstore.vmdk.hosted import HostedDisk, read_whole
from imgstore.vmdk.in_place import GuestFile, InPlaceDevice
from imgstore.vmdk.intent import read_piece

MAX_PENDING = 1 << 16
"""Grains, 4 GiB, whose table entries wait for a flush: with more, the device flushes by itself."""


class GuestDisk(InPlaceDevice):
    """A GuestDevice over a chain whose top disk is written. As long as nothing is written, nothing is touched.

    After a crash what was flushed is there, and each sector that was not has what it had or what was written. When a `flush` failed for
    another reason than lack of space, nobody knows what the storage has: all later changes and flushes fail.

    Memory goes by the grain tables in use.

    Args:
        chain: the last of its files is ``file``.
        file: of the top disk; nobody else has it open, and no intent is left of it.
        release: called once, by the first ``close``.

    Raises:
        UnsupportedError: not all grain tables are there, or one lies behind the first grain.
        CorruptError: a grain directory is damaged.
    """

    def __init__(self, chain: Chain, file: GuestFile, release: Callable[[], None]) -> None:
        self._top = HostedDisk(file)
        self._directories = (self._top.directory(), self._top.directory(redundant=True))
        for directory in self._directories:
            if not all(directory):
                raise UnsupportedError(
                    f"{file.path}: a grain table is missing in a grain directory; only disks with all tables are written"
                )
            if max(directory) + TABLE_SECTORS > self._top.header.overhead:
                raise UnsupportedError(
                    f"{file.path}: the grain table at sector {max(directory)} does not lie before the first grain, "
                    f"at sector {self._top.header.overhead}"
                )
        super().__init__(chain.files, chain.block_map.copy(), chain.size, file, 0, release)
        self._began = False
        self._failure: str | None = None
        self._flushing = threading.Lock()
        self._last_flush = self._done_flush = 0
        """Numbers of the flush that began last, and of the last one that went well; changed by who holds ``_flushing``."""
        self._pending: dict[int, int] = {}
        """Grains that no table names yet, and their sectors; changed by who holds ``_placing``."""
        self._unrepeated: dict[int, int] = {}
        """Grains that the redundant table does not name yet."""
        self._unsettled = False
        """Whether entries of redundant tables were written that are not on stable storage."""

    def flush(self) -> None:
        """Returns when all that was written before would survive a power cut.

        Raises:
            NoSpaceError: the datastore has no room for grain tables; nothing is lost, and a later flush may do it.
            UnavailableError: the storage failed, now or before: what was written since the last flush may be lost.
        """
        last = self._last_flush
        with self._flushing:
            self._check_alive()
            if not self._began or self._done_flush > last:  # of many that ask at once, one that began since did it for all
                return
            self._last_flush = number = self._last_flush + 1
            entries: dict[int, int] = {}
            try:
                with self._placing:
                    entries, self._pending = self._pending, entries
                self._sync()
                if entries:
                    self._set_entries(self._directories[0], entries)
                    self._sync()
            except BaseException:
                with self._placing:
                    self._pending = {**entries, **self._pending}
                raise
            self._done_flush = number
            self._unsettled = False
            self._unrepeated.update(entries)
            if self._unrepeated:
                with contextlib.suppress(NoSpaceError):  # they are not needed, and the next flush tries again
                    self._set_entries(self._directories[1], self._unrepeated)
                    self._unrepeated.clear()
                    self._unsettled = True

    def _finish(self) -> None:
        self.flush()
        if self._unsettled:
            self._sync()

    def _begin_change(self) -> None:
        self._check_alive()
        if not self._began:
            with self._placing:
                if not self._began:
                    self._begin()
                    self._began = True

    def _make_room(self) -> None:
        if len(self._pending) >= MAX_PENDING:
            self.flush()

    def _note_placed(self, grain: int, count: int, sector: int) -> None:
        for index in range(count):
            self._pending[grain + index] = sector + index * GRAIN_SECTORS

    def _begin(self) -> None:
        """Makes the disk ready for the first change: no leftover at its end, redundant tables as the others, a new content id."""
        file = self._file
        _, end = free_places(self._top)
        self._repeat_tables()
        if file.size != end * SECTOR:
            file.truncate(end * SECTOR)
        at = DESCRIPTOR_SECTOR * SECTOR
        piece = read_piece(file, at, replace_cid(read_whole(file, at, MAX_DESCRIPTOR), random_cid(), file.path))
        if piece is not None:
            file.pwrite(piece.offset, piece.after)
        self._sync()
        self._end = end

    def _repeat_tables(self) -> None:
        """Makes the redundant tables say what the others do: a guest that was killed may have left them behind."""
        behind = {number: table for number, _, table in self._top.tables()}
        for number, offset, table in self._top.tables(redundant=True):
            wanted = behind.pop(number, None)
            if wanted != table:
                self._file.pwrite(offset, bytes(TABLE_BYTES) if wanted is None else numbers_to_bytes(wanted))
        for number, wanted in behind.items():
            self._file.pwrite(self._directories[1][number] * SECTOR, numbers_to_bytes(wanted))

    def _set_entries(self, directory: array[int], entries: Mapping[int, int]) -> None:
        """Writes entries of grain tables, neighbours at once."""
        grains = sorted(entries)
        cuts = [
            index for index, (left, right) in enumerate(pairwise(grains), 1) if right != left + 1 or not right % TABLE_ENTRIES
        ]
        for start, stop in pairwise((0, *cuts, len(grains))):
            number, position = divmod(grains[start], TABLE_ENTRIES)
            sectors = array("I", [entries[grain] for grain in grains[start:stop]])
            self._file.pwrite(directory[number] * SECTOR + 4 * position, numbers_to_bytes(sectors))

    def _sync(self) -> None:
        try:
            self._file.fdatasync()
        except ImgstoreError as error:
            # The kernel tells of a write that failed once only, and may have dropped it: a second try would say that all is well.
            self._failure = (
                f"{error}; what was written since the last flush may be lost, and nothing is written until it is opened again"
            )
            raise UnavailableError(self._failure) from error

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise UnavailableError(self._failure)
