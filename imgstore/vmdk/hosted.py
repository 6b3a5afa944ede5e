"""A hosted sparse disk ("KDMV", ``monolithicSparse``) as one file: opened for reading, or being written.

``grains`` has the layout, ``descriptor`` the text inside, ``chain`` what disks are together.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from crc32c import crc32c

from imgstore.blocks import GRAIN, SECTOR, BlockMap, Bytes, ReadableFile, Run, WritableFile
from imgstore.errors import CorruptError, ImgstoreError, NoSpaceError, UnsupportedError
from imgstore.vmdk.descriptor import MAX_DESCRIPTOR, SIGNATURE, Descriptor, describe_disk
from imgstore.vmdk.grains import (
    GRAIN_SECTORS,
    MAGIC,
    MAX_SECTORS,
    TABLE_BYTES,
    TABLE_ENTRIES,
    TABLE_SECTORS,
    UNFINISHED_MAGIC,
    HostedHeader,
    Layout,
    numbers_from_bytes,
    numbers_to_bytes,
    table_count,
)

_READ_AHEAD = 512 * TABLE_BYTES
"""Grain tables are read in pieces of at most 1 MiB."""

_NO_GRAINS = bytes(TABLE_BYTES)

_KEEP_GIL = 0
"""The sum of a grain takes 5 µs; to let other threads have the interpreter for that, and to get it back, takes longer."""

_MAX_WRITE = 1 << 30
"""Linux takes at most 2 GiB - 4 KiB in one write; smaller pieces let an error come sooner."""


class HostedDisk:
    """A disk file, opened for reading. Takes over ``file``: ``close`` closes it.

    Opening reads header, descriptor and grain directory; the grain tables are read by ``tables``.

    Raises:
        CorruptError: a structure is damaged or lies outside the file.
        UnsupportedError: a VMDK of another variant.
    """

    def __init__(self, file: ReadableFile) -> None:
        self.file = file
        if file.pread(0, len(SIGNATURE)) == SIGNATURE:
            raise UnsupportedError(
                f"{file.path}: is a descriptor with its data beside it, and no disk can be put on that",
                hint="a store whose disks have the form hosted takes containers and further layers",
            )
        try:
            self.header = HostedHeader.from_bytes(file.pread(0, HostedHeader.SIZE))
        except CorruptError as error:
            raise CorruptError(f"{file.path}: {error}") from None
        self.header.check(file.path, file.size)
        self.descriptor = Descriptor.from_bytes(file.pread(SECTOR, MAX_DESCRIPTOR), file.path)
        if self.descriptor.capacity != self.header.capacity:
            raise CorruptError(
                f"{file.path}: capacity is {self.header.capacity} sectors in the header at byte {HostedHeader.offset_of('capacity')} "
                f"and {self.descriptor.capacity} in the extent line"
            )

    @property
    def path(self) -> str:
        """Where the file lies in its datastore."""
        return self.file.path

    @property
    def capacity(self) -> int:
        """Size of the disk in bytes."""
        return self.header.capacity * SECTOR

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

    def directory(self, *, redundant: bool = False) -> array[int]:
        """The grain directory: the first sector of each grain table, 0 for a table that is not there.

        Raises:
            CorruptError: a table lies outside the file, or two of them overlap.
        """
        start = (self.header.redundant_directory if redundant else self.header.directory) * SECTOR
        length = table_count(self.header.capacity) * 4
        directory = numbers_from_bytes(read_whole(self.file, start, length))
        limit = self.file.size // SECTOR - TABLE_SECTORS
        if _is_packed(directory) and directory[-1] <= limit:
            return directory
        present = sorted(filter(None, directory))
        # Tables that overlap would let a small file ask for memory for many.
        for below, above in pairwise(present):
            if above - below < TABLE_SECTORS:
                raise CorruptError(f"{self.path}, grain directory at byte {start}: tables at sectors {below} and {above} overlap")
        if present and present[-1] > limit:
            raise CorruptError(
                f"{self.path}, grain directory at byte {start}: table at sector {present[-1]} is outside the file of {self.file.size} bytes"
            )
        return directory

    def tables(self, *, redundant: bool = False) -> Iterator[tuple[int, int, array[int]]]:
        """The grain tables that have an entry: (number, byte offset in the file, 512 sector numbers), by number.

        Tables that are holes of the file are not read. Entries are not checked.

        Raises:
            CorruptError: the directory is damaged.
        """
        directory = self.directory(redundant=redundant)
        if _is_packed(directory):
            yield from self._read_tables(0, directory[0] * SECTOR, len(directory))
            return
        for number, sector in enumerate(directory):
            if sector:
                yield from self._read_tables(number, sector * SECTOR, 1)

    def _read_tables(self, first: int, start: int, count: int) -> Iterator[tuple[int, int, array[int]]]:
        done = start
        for offset, length in self.file.data_ranges(start, count * TABLE_BYTES):
            # Whole tables round the data, none of them twice: a table may have several runs of data.
            position = max(done, start + (offset - start) // TABLE_BYTES * TABLE_BYTES)
            end = start + -(-(offset + length - start) // TABLE_BYTES) * TABLE_BYTES
            while position < end:
                data = read_whole(self.file, position, min(_READ_AHEAD, end - position))
                for at in range(0, len(data), TABLE_BYTES):
                    table = data[at : at + TABLE_BYTES]
                    if table != _NO_GRAINS:
                        yield first + (position + at - start) // TABLE_BYTES, position + at, numbers_from_bytes(table)
                position += len(data)
            done = max(done, end)

    def grain_tables(self) -> dict[int, array[int]]:
        """The grain tables that have an entry, by number, for ``BlockMap.child``; without those past the end of the disk.

        Raises:
            CorruptError: an entry points into the metadata or outside the file.
        """
        tables = {}
        limit = self.file.size // SECTOR - GRAIN_SECTORS
        last, cut = divmod(-(-self.header.capacity // GRAIN_SECTORS), TABLE_ENTRIES)
        for number, offset, table in self.tables():
            if number == last and any(table[cut:]):
                # QEMU leaves such; a larger child must not see them.
                table[cut:] = array("I", bytes(4 * (TABLE_ENTRIES - cut)))
                if not any(table):
                    continue
            lowest, highest = min(filter(None, table)), max(table)
            if lowest < self.header.overhead or highest > limit:
                wrong = lowest if lowest < self.header.overhead else highest
                raise CorruptError(
                    f"{self.path}, grain table {number} at byte {offset}: grain at sector {wrong} is not between "
                    f"sector {self.header.overhead} and the end of the file of {self.file.size} bytes"
                )
            tables[number] = table
        return tables

    def close(self) -> None:
        """Closes the file; allowed more than once."""
        self.file.close()


def _is_packed(directory: array[int]) -> bool:
    """Whether all tables are there, one after the other, as imgstore and QEMU put them."""
    first = directory[0]
    last = first + (len(directory) - 1) * TABLE_SECTORS
    return first > 0 and last < MAX_SECTORS and directory == array("I", range(first, last + 1, TABLE_SECTORS))


def open_disk(file: ReadableFile) -> HostedDisk:
    """Opens ``file`` as a disk; if that fails the file is closed.

    Raises:
        CorruptError: a structure is damaged or lies outside the file.
        UnsupportedError: a VMDK of another variant.
    """
    try:
        return HostedDisk(file)
    except ImgstoreError:
        file.close()
        raise


def read_whole(file: ReadableFile, offset: int, length: int) -> bytes:
    """``length`` bytes at ``offset``.

    Raises:
        CorruptError: the file ends before.
    """
    data = file.pread(offset, length)
    if len(data) != length:
        raise CorruptError(f"{file.path} at byte {offset}: {length} bytes are needed, the file ends after {len(data)}")
    return data


@dataclass(frozen=True, slots=True)
class DiskSummary:
    """What became of a disk.

    Attributes:
        cid: content id.
        capacity: size of the disk in bytes.
        file_size: length of the file in bytes, holes included.
        grains: grains of 64 KiB that the disk holds itself; they end the file.
        grain_sums: CRC-32C of each of them in the order of the file, as little-endian u32.
    """

    cid: int
    capacity: int
    file_size: int
    grains: int
    grain_sums: bytes


class HostedDiskWriter:
    """Makes a disk in an open staged file. For one thread.

    Grains go to the end of the file in the order in which they are first written: the same calls make the same bytes. The rest of the
    file is written by ``seal``; until then, and until the body is on stable storage, no reader takes the file for a disk.

    Args:
        file: empty; not closed by the writer.
        capacity: size of the disk in bytes, a multiple of 64 KiB, the same as the parent's.
        cid: content id, see ``derive_cid``.
        parent_cid: content id of the parent, or None for a disk without parent.
        parent_hint: path of the parent relative to the directory where this disk will lie, or None.
        extent_name: base name of the file.
        deletable: see ``describe_disk``.

    Raises:
        InvalidError: an argument cannot be written into a VMDK.
    """

    def __init__(
        self,
        file: WritableFile,
        *,
        capacity: int,
        cid: int,
        extent_name: str,
        parent_cid: int | None = None,
        parent_hint: str | None = None,
        deletable: bool = True,
    ) -> None:
        self.file = file
        self.layout = Layout.plan(capacity)
        self.descriptor = describe_disk(self.layout.capacity, cid, parent_cid, parent_hint, extent_name, deletable=deletable)
        self._descriptor_bytes = self.descriptor.to_bytes()
        self._map = BlockMap()
        self._next_sector = self.layout.overhead
        self._sums = array("I")
        self._sealed = False

    @property
    def capacity(self) -> int:
        """Size of the disk in bytes."""
        return self.layout.capacity * SECTOR

    @property
    def grains(self) -> int:
        """Grains that the disk holds so far."""
        return (self._next_sector - self.layout.overhead) // GRAIN_SECTORS

    def allocate(self, grain: int, count: int) -> list[Run]:
        """Gives each of ``count`` grains from ``grain`` on its place in the file, the old one if it has one already.

        Raises:
            NoSpaceError: the file would grow beyond the 2 TiB that a grain table can name.
        """
        if self._sealed:
            raise ValueError(f"{self.file.path} is sealed")
        if grain < 0 or count < 0 or (grain + count) * GRAIN_SECTORS > self.layout.capacity:
            raise ValueError(f"grains {grain}..{grain + count} are not inside a disk of {self.capacity} bytes")
        placed: list[Run] = []
        for run in list(self._map.runs(grain, count)):
            if run.disk is None:
                end = self._next_sector + run.length * GRAIN_SECTORS
                if end > MAX_SECTORS:
                    raise NoSpaceError(f"{self.file.path}: an extent file holds at most {MAX_SECTORS * SECTOR} bytes")
                run = Run(run.grain, run.length, 0, self._next_sector)
                self._map.assign(run.grain, run.length, 0, run.sector)
                self._sums.frombytes(bytes(run.length * self._sums.itemsize))
                self._next_sector = end
            if placed and placed[-1].sector + placed[-1].length * GRAIN_SECTORS == run.sector:
                run = placed[-1]._replace(length=placed[-1].length + run.length)
                placed.pop()
            placed.append(run)
        return placed

    def put(self, first: int, runs: list[Run], data: Bytes) -> None:
        """Writes the grains that ``allocate`` placed, ``data`` being those from ``first`` on."""
        view = memoryview(data)
        for run in runs:
            index = (run.sector - self.layout.overhead) // GRAIN_SECTORS
            for position in range(run.length):
                at = (run.grain - first + position) * GRAIN
                self._sums[index + position] = crc32c(view[at : at + GRAIN], gil_release_mode=_KEEP_GIL)
            start = (run.grain - first) * GRAIN
            end = start + run.length * GRAIN
            for position in range(start, end, _MAX_WRITE):
                self.file.pwrite(run.sector * SECTOR + position - start, view[position : min(position + _MAX_WRITE, end)])

    def write_grains(self, first_grain: int, data: Bytes) -> None:
        """Writes whole grains from ``first_grain`` on: neighbours that are new by one pwrite, those written before in place.

        Raises:
            ValueError: ``data`` is not a multiple of 64 KiB, or reaches over the end of the disk.
            NoSpaceError: the datastore or the file is full.
        """
        count, rest = divmod(len(data), GRAIN)
        if rest:
            raise ValueError(f"{len(data)} bytes are not whole grains of {GRAIN}")
        self.put(first_grain, self.allocate(first_grain, count), data)

    def seal(self) -> DiskSummary:
        """Writes the rest of the file and makes it a disk. No grain can be written afterwards.

        The header comes last: everything else is on stable storage before the header gets the magic number that readers ask for.
        The header itself is not yet: the datastore's ``publish`` sees to that.

        Raises:
            NoSpaceError: the datastore is full.
        """
        if self._sealed:
            raise ValueError(f"{self.file.path} is sealed already")
        self._sealed = True
        layout = self.layout
        size = self._next_sector * SECTOR
        self.file.truncate(size)
        for directory, tables in (
            (layout.redundant_directory, layout.redundant_tables),
            (layout.directory, layout.first_table),
        ):
            numbers = array("I", range(tables, tables + layout.tables * TABLE_SECTORS, TABLE_SECTORS))
            self.file.pwrite(directory * SECTOR, numbers_to_bytes(numbers))
        for number, table in self._map.tables(0):
            data = numbers_to_bytes(table)
            self.file.pwrite((layout.redundant_tables + number * TABLE_SECTORS) * SECTOR, data)
            self.file.pwrite((layout.first_table + number * TABLE_SECTORS) * SECTOR, data)
        header = layout.header().to_bytes()
        self.file.pwrite(0, UNFINISHED_MAGIC + header[len(MAGIC) :] + self._descriptor_bytes)
        self.file.fsync()
        self.file.pwrite(0, header)
        return DiskSummary(self.descriptor.cid, self.capacity, size, self.grains, numbers_to_bytes(self._sums))
