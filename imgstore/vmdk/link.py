"""Link: one disk of a chain, in whatever form, as what it holds itself and where.

A form that has a directory of tables of grains is a `SparseLink`; each says how its tables are read.
"""

from __future__ import annotations

import abc
from array import array
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple, Protocol

from imgstore.blocks import SECTOR, ReadableFile
from imgstore.errors import CorruptError
from imgstore.vmdk.descriptor import Descriptor
from imgstore.vmdk.hosted import read_whole

ZEROS = -1
"""Place of a run that the disk holds as "all zeros", whatever its parent has."""

ABSENT, ZEROED = 0, 1
"""Entries of grain tables that are no sectors: the parent answers, and zeros. No grain can lie in the first two sectors of a file."""

MAX_DIRECTORY = 1 << 20
"""Entries of a grain directory: those of 2 TiB by tables for 2 MiB, the smallest that any form has."""


class Member(Protocol):
    """What a chain has to know of each of its disks."""

    @property
    def path(self) -> str:
        """Where the disk, or its descriptor, lies in its datastore."""
        ...

    @property
    def cid(self) -> int:
        """Content id."""
        ...

    @property
    def parent_cid(self) -> int | None:
        """Content id of the parent, or None."""
        ...

    @property
    def parent_hint(self) -> str | None:
        """Path of the parent relative to the directory of this disk, or None."""
        ...

    @property
    def capacity(self) -> int:
        """Size of the disk in bytes."""
        ...

    def close(self) -> None:
        """Closes the file; allowed more than once."""
        ...


class HeldRun(NamedTuple):
    """Bytes that a disk holds itself."""

    offset: int
    """On the virtual disk."""
    length: int
    place: int
    """For `Link.read_run`; ``ZEROS``."""


class Link(abc.ABC):
    """A disk of one extent, opened for reading. Takes over ``file``: ``close`` closes it. Reads from several threads are safe.

    Args:
        path: of the descriptor, or of the file that has it inside.
        file: the extent.
        descriptor: what it says.
    """

    def __init__(self, path: str, file: ReadableFile, descriptor: Descriptor) -> None:
        self.path = path
        self.file = file
        self.descriptor = descriptor

    @property
    def cid(self) -> int:
        """Content id."""
        return self.descriptor.cid

    @property
    def parent_cid(self) -> int | None:
        """Content id of the parent, or None."""
        return self.descriptor.parent_cid

    @property
    def parent_hint(self) -> str | None:
        """Path of the parent relative to the directory of this disk, or None."""
        return self.descriptor.parent_hint

    @property
    def capacity(self) -> int:
        """Size of the disk in bytes."""
        return self.descriptor.capacity * SECTOR

    @abc.abstractmethod
    def runs(self, offset: int, length: int) -> Iterator[HeldRun]:
        """What the disk holds itself of a range, ascending; the first and the last run may reach over its ends, none over the disk's.

        Raises:
            CorruptError: a table is damaged, or names a place outside the file.
        """

    def read_run(self, origin: int, place: int, start: int, length: int) -> bytes:
        """``length`` bytes from byte ``start`` of the run at ``place`` on, which has what is at ``origin`` of the virtual disk.

        Raises:
            CorruptError: the file ends before, or what is there is damaged.
        """
        return read_whole(self.file, place + start, length)

    def close(self) -> None:
        """Closes the file; allowed more than once."""
        self.file.close()

    def check_capacity(self, sectors: int, offset: int) -> None:
        """Raises CorruptError unless the header at byte ``offset`` and the extent line agree."""
        if sectors != self.descriptor.capacity:
            raise CorruptError(
                f"{self.path}: capacity is {sectors} sectors in the header at byte {offset} of {self.file.path} and "
                f"{self.descriptor.capacity} in the extent line"
            )


class SparseLink(Link):
    """A disk of grains that are found by a directory of tables.

    Args:
        path: of the descriptor, or of the file that has it inside.
        file: the extent.
        descriptor: what it says.
        grain_sectors: sectors of a grain.
        table_entries: grains of a table.
    """

    joins = True
    """Whether grains that lie one after the other in the file can be read as one."""

    def __init__(self, path: str, file: ReadableFile, descriptor: Descriptor, *, grain_sectors: int, table_entries: int) -> None:
        super().__init__(path, file, descriptor)
        self.grain_sectors = grain_sectors
        self.grain = grain_sectors * SECTOR
        self.table_entries = table_entries

    @property
    def tables(self) -> int:
        """Tables that the disk needs."""
        return -(-self.descriptor.capacity // (self.grain_sectors * self.table_entries))

    @abc.abstractmethod
    def read_table(self, number: int) -> array[int] | None:
        """The sectors of a table's grains, or ``ABSENT`` or ``ZEROED``; None for a table that is not there.

        Raises:
            CorruptError: an entry is no such thing.
        """

    def runs(self, offset: int, length: int) -> Iterator[HeldRun]:
        end = min(offset + length, self.capacity)
        span = self.grain * self.table_entries
        for number in range(offset // span, -(-end // span)):
            table = self.read_table(number)
            if table is not None:
                start = number * span
                first, stop = max(0, offset - start) // self.grain, min(self.table_entries, -(-(end - start) // self.grain))
                yield from self._runs_of(table, start, first, stop)

    def _runs_of(self, table: array[int], start: int, position: int, stop: int) -> Iterator[HeldRun]:
        while position < stop:
            first = position
            entry = expected = table[first]
            step = self.grain_sectors if entry > ZEROED else 0
            if step and not self.joins:
                position += 1
            else:
                while position < stop and table[position] == expected:
                    expected += step
                    position += 1
            if entry != ABSENT:
                offset = start + first * self.grain
                length = min((position - first) * self.grain, self.capacity - offset)
                yield HeldRun(offset, length, entry * SECTOR if step else ZEROS)

    def check_directory(self, directory: array[int], sectors: int, lowest: int) -> None:
        """Proves that the tables which a directory names lie apart from each other, inside the file, from sector ``lowest`` on.

        Else a small file could ask for the work of a large one.

        Args:
            directory: first sector of each table, 0 for one that is not there.
            sectors: length of a table.
            lowest: end of what lies before all tables.

        Raises:
            CorruptError: they do not.
        """
        present = sorted(filter(None, directory))
        for below, above in pairwise(present):
            if above - below < sectors:
                raise CorruptError(f"{self.file.path}, grain directory: tables at sectors {below} and {above} overlap")
        if present and (present[0] < lowest or (present[-1] + sectors) * SECTOR > self.file.size):
            wrong = present[0] if present[0] < lowest else present[-1]
            raise CorruptError(
                f"{self.file.path}, grain directory: table at sector {wrong} is not between sector {lowest} and the end of the file of "
                f"{self.file.size} bytes"
            )

    def check_entries(self, table: array[int], number: int, lowest: int) -> None:
        """Proves that the grains of a table begin inside the file, from sector ``lowest`` on; ``ABSENT`` and ``ZEROED`` are passed over.

        Args:
            table: its entries.
            number: which table it is, for the error.
            lowest: the first sector where a grain can be.

        Raises:
            CorruptError: they do not.
        """
        present = [entry for entry in table if entry > ZEROED]
        if not present:
            return
        limit = (self.file.size - 1) // SECTOR
        if min(present) < lowest or max(present) > limit:
            wrong = min(present) if min(present) < lowest else max(present)
            raise CorruptError(
                f"{self.file.path}, grain table {number}: grain at sector {wrong} is not between sector {lowest} and the end of the file "
                f"of {self.file.size} bytes"
            )


def check_directory_length(path: str, entries: int, wanted: int, end: int, file_size: int) -> None:
    """Bounds a grain directory before it is read.

    Args:
        path: names the file in errors.
        entries: that it has.
        wanted: that the disk needs.
        end: byte where it ends.
        file_size: bytes.

    Raises:
        CorruptError: it has too few or absurdly many entries, or ends behind the file.
    """
    if not wanted <= entries <= MAX_DIRECTORY:
        raise CorruptError(f"{path}: the grain directory has {entries} entries, not between {wanted} and {MAX_DIRECTORY}")
    if end > file_size:
        raise CorruptError(f"{path}: the grain directory ends at byte {end}, the file at {file_size}")
