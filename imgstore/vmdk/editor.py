"""EditedDisk: a disk that exists, written so that a crash at any instant leaves it as before or as after.

Nothing that a grain table names is ever overwritten. Grains that are written go to places that no table names: those that earlier edits
left, then the end of the file. ``commit`` then changes the tables and the content id, under the protection of an intent (``intent``).
Other programs know nothing of this: before they open the disk, an intent that a crash left must be applied.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from itertools import pairwise
from typing import Protocol

from imgstore.blocks import GRAIN, SECTOR, BlockMap, Bytes, Run, WritableFile
from imgstore.errors import CorruptError, NoSpaceError, UnsupportedError
from imgstore.vmdk.chain import Chain
from imgstore.vmdk.child import random_cid
from imgstore.vmdk.descriptor import MAX_DESCRIPTOR, replace_cid
from imgstore.vmdk.grains import (
    DESCRIPTOR_SECTOR,
    GRAIN_SECTORS,
    MAX_SECTORS,
    TABLE_BYTES,
    numbers_from_bytes,
    numbers_to_bytes,
)
from imgstore.vmdk.hosted import HostedDisk, read_whole
from imgstore.vmdk.intent import Piece, encode_intent, read_piece, write_pieces
from imgstore.vmdk.overlay import CACHE_SIZE, OverlayDevice

_MAX_WRITE = 1 << 30


class EditableFile(WritableFile, Protocol):
    """A file that is written where it lies; nobody else has it open."""

    def punch(self, offset: int, length: int) -> None:
        """Gives back the storage of bytes that nobody needs any more, where the datastore can."""
        ...


class IntentStore(Protocol):
    """Where the intent of one disk is kept while it is committed."""

    def write(self, intent: bytes) -> None:
        """Keeps an intent in the place of any former one, durably and whole."""
        ...

    def erase(self) -> None:
        """Forgets it, durably; fine if there is none."""
        ...


class EditedDisk(OverlayDevice):
    """A WritableBlockDevice over a chain whose top disk is written. For one thread.

    ``commit`` makes durable what was written, ``discard`` gives it up; a crash before ``commit`` returned leaves all of it or nothing.
    As long as nothing is written, nothing is touched, and ``commit`` does nothing.

    Args:
        chain: the last of its files is ``file``; stays open.
        file: of the top disk; no intent is left of it.
        intents: its intents.
        cache_size: bytes of grains in memory that were written in part.
    """

    def __init__(self, chain: Chain, file: EditableFile, intents: IntentStore, *, cache_size: int = CACHE_SIZE) -> None:
        super().__init__(chain.files, chain.block_map.copy(), chain.size, cache_size)
        self._file = file
        self._intents = intents
        self._places: _Places | None = None
        self._over = False

    def commit(self) -> None:
        """Makes all that was written the contents of the disk, durably, with a new content id. More can be written afterwards.

        An error before the intent is kept leaves the disk as it was: ``discard`` follows. After it, the disk has the new contents as
        soon as the intent is applied, which the next who opens it does.

        Raises:
            NoSpaceError: the datastore or the file is full.
            UnavailableError: the datastore failed to make it durable.
            CorruptError: a structure of the disk is damaged.
        """
        self.flush()
        places = self._places
        if places is None:
            return
        pieces, freed = places.changes()
        self._file.fsync()
        places.intent_began = True
        self._intents.write(encode_intent(pieces))
        self._over = True  # until the tables are whole again
        write_pieces(self._file, pieces)
        self._intents.erase()
        for sector, count in freed:
            self._file.punch(sector * SECTOR, count * GRAIN)
        self._places = None
        self._over = False

    def discard(self) -> None:
        """Gives up what was written since the last ``commit``; the device is of no use afterwards. Allowed more than once.

        Raises:
            UnavailableError: the datastore does not answer. The disk is as before or as after, once an intent that is left is applied.
        """
        self._dirty.clear()
        places, self._places = self._places, None
        if self._over or places is None:
            self._over = True
            return
        self._over = True
        if places.intent_began:
            self._intents.erase()  # the storage may have kept it and said no
        if self._file.size > places.former_size:
            self._file.truncate(places.former_size)
        for sector, count in places.new_runs():
            if (sector + count * GRAIN_SECTORS) * SECTOR <= places.former_size:
                self._file.punch(sector * SECTOR, count * GRAIN)

    def _allocate(self, grain: int, count: int) -> list[Run]:
        if self._over:
            raise ValueError(f"{self._file.path}: its edit is over")
        if self._places is None:
            self._places = _Places(HostedDisk(self._file))
        return self._places.allocate(grain, count)

    def _put(self, first: int, runs: list[Run], data: Bytes) -> None:
        view = memoryview(data)
        for run in runs:
            start, end = (run.grain - first) * GRAIN, (run.grain - first + run.length) * GRAIN
            for position in range(start, end, _MAX_WRITE):
                self._file.pwrite(run.sector * SECTOR + position - start, view[position : min(position + _MAX_WRITE, end)])


class _Places:
    """Where the grains of one edit go, and what that changes in the tables.

    Raises:
        CorruptError: a table entry points where no grain can be, or two to the same place.
        UnsupportedError: grains lie at odd places.
    """

    def __init__(self, disk: HostedDisk) -> None:
        self._disk = disk
        self.former_size = disk.file.size
        self.intent_began = False
        self._new = BlockMap()
        self._free, self._end = free_places(disk)

    def allocate(self, grain: int, count: int) -> list[Run]:
        """A new place for each grain that has none of this edit yet."""
        placed: list[Run] = []
        for run in list(self._new.runs(grain, count)):
            if run.disk is not None:
                placed.append(run)
                continue
            first = run.grain
            for sector, length in self._take(run.length):
                self._new.assign(first, length, 0, sector)
                placed.append(Run(first, length, 0, sector))
                first += length
        return placed

    def changes(self) -> tuple[list[Piece], list[tuple[int, int]]]:
        """What changes in the file, and the runs of grains (sector, grains) that no table names any more then."""
        disk, pieces = self._disk, []
        freed = array("I")
        directories = (disk.directory(), disk.directory(redundant=True))
        for number, new in self._new.tables(0):
            sectors = [directory[number] for directory in directories]
            if not all(sectors):
                raise UnsupportedError(
                    f"{disk.path}: grain table {number} is missing in a grain directory; only disks with all tables are written"
                )
            old = numbers_from_bytes(read_whole(disk.file, sectors[0] * SECTOR, TABLE_BYTES))
            freed.extend(before for before, after in zip(old, new, strict=True) if before and after)
            table = array("I", [after or before for before, after in zip(old, new, strict=True)])
            pieces += [read_piece(disk.file, sector * SECTOR, numbers_to_bytes(table)) for sector in sectors]
        at = DESCRIPTOR_SECTOR * SECTOR
        descriptor = replace_cid(read_whole(disk.file, at, MAX_DESCRIPTOR), random_cid(), disk.path)
        pieces.append(read_piece(disk.file, at, descriptor))
        return [piece for piece in pieces if piece is not None], list(_runs(freed))

    def new_runs(self) -> Iterator[tuple[int, int]]:
        """The runs of grains (sector, grains) that were given out."""
        return _runs(array("I", [sector for _, table in self._new.tables(0) for sector in table if sector]))

    def _take(self, count: int) -> Iterator[tuple[int, int]]:
        while count and self._free:
            sector, length = self._free.pop()
            if length > count:
                self._free.append((sector + count * GRAIN_SECTORS, length - count))
                length = count
            yield sector, length
            count -= length
        if count:
            end = self._end + count * GRAIN_SECTORS
            if end > MAX_SECTORS:
                raise NoSpaceError(f"{self._disk.path}: an extent file holds at most {MAX_SECTORS * SECTOR} bytes")
            yield self._end, count
            self._end = end


def free_places(disk: HostedDisk) -> tuple[list[tuple[int, int]], int]:
    """The runs (sector, grains) between grains that no table names, descending, and the sector after the last grain.

    Raises:
        CorruptError: a table entry points where no grain can be, or two to the same place.
        UnsupportedError: grains lie at odd places.
    """
    named = bytearray(disk.file.size // GRAIN)  # at most 32 MiB, for a file of 2 TiB
    grains = 0
    for table in disk.grain_tables().values():
        for sector in filter(None, table):
            place, rest = divmod(sector, GRAIN_SECTORS)
            if rest:
                raise UnsupportedError(f"{disk.path}: the grain at sector {sector} does not lie at a multiple of {GRAIN_SECTORS}")
            named[place] = 1
            grains += 1
    if (places := named.count(1)) != grains:
        raise CorruptError(f"{disk.path}: {grains} grains lie at {places} places; who writes one of them would change another")
    first = -(-disk.header.overhead // GRAIN_SECTORS)
    end = max(first, named.rfind(1) + 1)
    free = []
    position = first
    while (start := named.find(0, position, end)) >= 0:
        position = named.find(1, start, end)
        free.append((start * GRAIN_SECTORS, position - start))
    return free[::-1], end * GRAIN_SECTORS


def _runs(sectors: array[int]) -> Iterator[tuple[int, int]]:
    """Grains at these sectors as runs (sector, grains), ascending."""
    ordered = sorted(sectors)
    cuts = [
        0,
        *(index + 1 for index, (below, above) in enumerate(pairwise(ordered)) if above - below != GRAIN_SECTORS),
        len(ordered),
    ]
    return ((ordered[start], end - start) for start, end in pairwise(cuts) if end > start)
