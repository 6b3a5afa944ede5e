"""COWD extents (``vmfsSparse``): the redo logs of ESX, where a disk of VMFS5 or NFS keeps what it has over its parent.

In sectors of 512 bytes::

    0    header, 4 sectors
    4    grain directory                one u32 a table: the table's first sector, 0 for a table without an entry
    ...  grain tables, 32 sectors each: 4096 u32, the grain's first sector, 0 where the parent answers; and grains

A grain is one sector, as ESX makes them: then no grain has to be completed from the parent when a part of it is written. There are
tables only where there are grains. A disk that a guest is to write through QEMU would need all of them, 64 MiB for 8 GiB, for QEMU adds
none; but what we write is a layer, which nobody writes any more, and ESXi makes the guest's disk above it itself.

Source: VMware "Virtual Disk Format 5.0", "ESXi Host Sparse Extents".
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

from imgstore.blocks import SECTOR, Bytes, ReadableFile, WritableFile
from imgstore.errors import CorruptError, InvalidError, NoSpaceError, UnsupportedError
from imgstore.ondisk import Record, raw, u32
from imgstore.vmdk.descriptor import Descriptor
from imgstore.vmdk.grains import numbers_from_bytes, numbers_to_bytes
from imgstore.vmdk.hosted import read_whole
from imgstore.vmdk.link import SparseLink, check_directory_length

MAGIC = b"COWD"
TABLE_ENTRIES = 4096
TABLE_SECTORS = TABLE_ENTRIES * 4 // SECTOR
MAX_CAPACITY = (1 << 32) - 1
"""Sectors: the header and the tables count in 32 bits."""

_HEADER_SECTORS = 4
_GRAIN_SIZES = tuple(1 << shift for shift in range(12))
"""Sectors: up to 1 MiB."""

_BLOCK = 8
"""Sectors: blocks of 4 KiB, of the file system below."""

_ALIGNMENT = 128
"""Tables and grains begin at a multiple of 64 KiB, for those below us that like that."""


class CowdHeader(Record, size=_HEADER_SECTORS * SECTOR):
    """First sectors of a COWD extent. Offsets and lengths count 512-byte sectors.

    In an extent of a disk with a parent, old versions have a name where the geometry is; no reader asks for either.
    """

    magic: bytes = raw(0, 4, default=MAGIC, fixed=True)
    version: int = u32(4, default=1)
    flags: int = u32(8, default=3)
    capacity: int = u32(12)
    grain_size: int = u32(16, default=1)
    directory: int = u32(20, default=_HEADER_SECTORS)
    directory_entries: int = u32(24)
    free_sector: int = u32(28)
    cylinders: int = u32(32)
    heads: int = u32(36)
    sectors: int = u32(40)
    generation: int = u32(1060)
    saved_generation: int = u32(1636)
    unclean_shutdown: int = u32(1648)


class CowdLink(SparseLink):
    """A disk of a COWD extent, opened for reading: header and directory are read.

    Raises:
        CorruptError: a structure is damaged or lies outside the file.
        UnsupportedError: another version of the format.
    """

    def __init__(self, path: str, file: ReadableFile, descriptor: Descriptor) -> None:
        try:
            header = CowdHeader.from_bytes(file.pread(0, CowdHeader.SIZE))
        except CorruptError as error:
            raise CorruptError(f"{file.path}: {error}") from None
        if header.version != 1:
            raise UnsupportedError(
                f"{file.path}, CowdHeader at byte {CowdHeader.offset_of('version')}: version is {header.version}, only 1 is read"
            )
        if header.grain_size not in _GRAIN_SIZES:
            raise CorruptError(
                f"{file.path}, CowdHeader at byte {CowdHeader.offset_of('grain_size')}: grain_size is {header.grain_size}, "
                f"not a power of two up to {_GRAIN_SIZES[-1]}"
            )
        if header.free_sector * SECTOR > file.size:
            raise CorruptError(
                f"{file.path}, CowdHeader at byte {CowdHeader.offset_of('free_sector')}: free_sector is {header.free_sector}, "
                f"of a file of {file.size} bytes: it was cut off"
            )
        super().__init__(path, file, descriptor, grain_sectors=header.grain_size, table_entries=TABLE_ENTRIES)
        self.check_capacity(header.capacity, CowdHeader.offset_of("capacity"))
        start, length = header.directory * SECTOR, header.directory_entries * 4
        if header.directory < _HEADER_SECTORS:
            raise CorruptError(
                f"{file.path}, CowdHeader at byte {CowdHeader.offset_of('directory')}: "
                f"directory at sector {header.directory} is in the header"
            )
        check_directory_length(file.path, header.directory_entries, self.tables, start + length, file.size)
        self._lowest = -(-(start + length) // SECTOR)
        self._directory = numbers_from_bytes(read_whole(file, start, self.tables * 4))
        self.check_directory(self._directory, TABLE_SECTORS, self._lowest)

    def read_table(self, number: int) -> array[int] | None:
        sector = self._directory[number]
        if not sector:
            return None
        table = numbers_from_bytes(read_whole(self.file, sector * SECTOR, TABLE_SECTORS * SECTOR))
        self.check_entries(table, number, self._lowest)
        if 1 in table:
            raise CorruptError(f"{self.file.path}, grain table {number}: a grain is at sector 1, in the header")
        return table


def write_cowd(file: WritableFile, capacity: int, pieces: Iterable[tuple[int, Bytes]]) -> None:
    """Makes an empty file a COWD extent, its header last.

    A crash leaves a part of it: the descriptor, which makes it a disk, is to be written afterwards.

    Args:
        file: not closed, and not put on stable storage.
        capacity: bytes of the disk, a multiple of 512, less than 2 TiB.
        pieces: offset and bytes, of whole sectors, ascending.

    Raises:
        InvalidError: there can be no such disk.
        NoSpaceError: the datastore is full, or the file would grow beyond 2 TiB.
    """
    check_cowd_capacity(capacity, file.path)
    writer = _Writer(file, capacity // SECTOR)
    for offset, data in pieces:
        writer.write(offset // SECTOR, memoryview(data))
    writer.finish()


def check_cowd_capacity(capacity: int, path: str) -> None:
    """Raises InvalidError unless a COWD extent can have ``capacity`` bytes."""
    if capacity <= 0 or capacity % SECTOR or capacity // SECTOR > MAX_CAPACITY:
        raise InvalidError(
            f"{path}: disk of {capacity} bytes: must be a multiple of {SECTOR} bytes, at most {MAX_CAPACITY * SECTOR}"
        )


class _Writer:
    """Grains as they come, the table of each 4096 of them before the first of them."""

    def __init__(self, file: WritableFile, capacity: int) -> None:
        self._file = file
        self._capacity = capacity
        self._directory = array("I", bytes(4 * -(-capacity // TABLE_ENTRIES)))
        directory_sectors = -(-len(self._directory) * 4 // SECTOR)
        self._next = _round_up(_HEADER_SECTORS + directory_sectors, _ALIGNMENT)
        self._number = -1
        self._table = array("I")

    def write(self, sector: int, data: memoryview) -> None:
        while data:
            number, position = divmod(sector, TABLE_ENTRIES)
            count = min(len(data) // SECTOR, TABLE_ENTRIES - position)
            if number != self._number:
                self._begin_table(number)
            if self._next + count > MAX_CAPACITY:
                raise NoSpaceError(f"{self._file.path}: an extent file holds at most {MAX_CAPACITY * SECTOR} bytes")
            self._table[position : position + count] = array("I", range(self._next, self._next + count))
            self._file.pwrite(self._next * SECTOR, data[: count * SECTOR])
            self._next += count
            sector += count
            data = data[count * SECTOR :]

    def _begin_table(self, number: int) -> None:
        self._end_table()
        self._number = number
        self._table = array("I", bytes(4 * TABLE_ENTRIES))
        self._next = _round_up(self._next, _BLOCK)
        self._directory[number] = self._next
        self._next += TABLE_SECTORS

    def _end_table(self) -> None:
        if self._number >= 0:
            self._file.pwrite(self._directory[self._number] * SECTOR, numbers_to_bytes(self._table))

    def finish(self) -> None:
        self._end_table()
        self._file.pwrite(_HEADER_SECTORS * SECTOR, numbers_to_bytes(self._directory))
        # The next free sector must be inside the file.
        self._file.truncate(_round_up(self._next + 1, _BLOCK) * SECTOR)
        header = CowdHeader(capacity=self._capacity, directory_entries=len(self._directory), free_sector=self._next)
        self._file.pwrite(0, header.to_bytes())


def _round_up(sectors: int, unit: int) -> int:
    return -(-sectors // unit) * unit
