"""The sectors of a hosted sparse extent: header, grain directories, grain tables, grains.

The layout that imgstore writes, in sectors of 512 bytes::

    0         header                        written last
    1         descriptor, 20 sectors
    24        redundant grain directory     one u32 a table: the table's first sector
    ...       redundant grain tables        512 u32 each: the grain's first sector, 0 where the parent answers
    ...       grain directory
    ...       grain tables
    overhead  grains of 128 sectors, in the order in which they were first written

All tables have a place from the start and stay holes in the file until they have an entry. Directories and tables start at multiples
of 4 KiB, so that such a hole is one for the file system below.

Source: VMware "Virtual Disk Format 5.0" section 1.3.
"""

from __future__ import annotations

import enum
import sys
from array import array
from dataclasses import dataclass

from imgstore.blocks import GRAIN, SECTOR
from imgstore.errors import CorruptError, InvalidError, UnsupportedError
from imgstore.ondisk import Record, raw, u8, u16, u32, u64

GRAIN_SECTORS = GRAIN // SECTOR
TABLE_ENTRIES = 512
TABLE_SECTORS = TABLE_ENTRIES * 4 // SECTOR
TABLE_BYTES = TABLE_SECTORS * SECTOR
DESCRIPTOR_SECTOR = 1
DESCRIPTOR_SECTORS = 20

MAX_SECTORS = 1 << 32
"""A grain table entry is 32 bits wide: a file holds 2 TiB. Disks of more than that are neither written nor read."""

_BLOCK_SECTORS = 8

MAGIC = b"KDMV"
UNFINISHED_MAGIC = b"vmdk"
"""What a header says until all the rest of its file is on stable storage; no reader takes it for a disk. As open-vmdk does."""


class HeaderFlag(enum.IntFlag):
    """Bits of ``HostedHeader.flags``."""

    NEWLINE_TEST = 1
    REDUNDANT_TABLES = 2
    ZEROED_GRAINS = 4
    COMPRESSED = 1 << 16
    MARKERS = 1 << 17


class HostedHeader(Record, size=512):
    """First sector of a hosted sparse extent. Offsets and lengths count 512-byte sectors."""

    magic: bytes = raw(0, 4, default=MAGIC, fixed=True)
    version: int = u32(4, default=1)  # 2 needs ZEROED_GRAINS, 3 is streamOptimized
    flags: int = u32(8, default=HeaderFlag.NEWLINE_TEST | HeaderFlag.REDUNDANT_TABLES)
    capacity: int = u64(12)
    grain_size: int = u64(20, default=GRAIN_SECTORS)
    descriptor_offset: int = u64(28, default=DESCRIPTOR_SECTOR)
    descriptor_size: int = u64(36, default=DESCRIPTOR_SECTORS)
    table_entries: int = u32(44, default=TABLE_ENTRIES)
    redundant_directory: int = u64(48)
    directory: int = u64(56)
    overhead: int = u64(64)
    unclean_shutdown: int = u8(72, default=0)
    newlines: bytes = raw(73, 4, default=b"\n \r\n", fixed=True)  # a transfer in text mode damages them
    compression: int = u16(77, default=0)

    def check(self, path: str, file_size: int) -> None:
        """Proves that what a reader does with these numbers stays inside a file of ``file_size`` bytes.

        Raises:
            UnsupportedError: another variant of the format than the one that imgstore writes and QEMU makes by default.
            CorruptError: a number makes no sense.
        """
        wanted: dict[str, int] = {
            "version": 1,
            "grain_size": GRAIN_SECTORS,
            "descriptor_offset": DESCRIPTOR_SECTOR,
            "descriptor_size": DESCRIPTOR_SECTORS,
            "table_entries": TABLE_ENTRIES,
            "compression": 0,
        }
        for name, value in wanted.items():
            if getattr(self, name) != value:
                offset = self.offset_of(name)
                raise UnsupportedError(
                    f"{path}, HostedHeader at byte {offset}: {name} is {getattr(self, name)}, only {value} is read"
                )
        if self.flags != HeaderFlag.NEWLINE_TEST | HeaderFlag.REDUNDANT_TABLES:
            raise UnsupportedError(
                f"{path}, HostedHeader at byte {self.offset_of('flags')}: flags are {self.flags:#x}, only 0x3 is read"
            )
        if not 0 < self.capacity <= MAX_SECTORS:
            raise UnsupportedError(
                f"{path}, HostedHeader at byte {self.offset_of('capacity')}: capacity of {self.capacity} sectors is not in 1..{MAX_SECTORS}"
            )
        if not DESCRIPTOR_SECTOR + DESCRIPTOR_SECTORS <= self.overhead <= file_size // SECTOR:
            raise CorruptError(
                f"{path}, HostedHeader at byte {self.offset_of('overhead')}: overhead is {self.overhead} sectors, "
                f"of a file of {file_size} bytes"
            )
        for name in ("directory", "redundant_directory"):
            start = getattr(self, name)
            length = directory_sectors(self.capacity)
            if start < DESCRIPTOR_SECTOR + DESCRIPTOR_SECTORS or start + length > self.overhead:
                raise CorruptError(
                    f"{path}, HostedHeader at byte {self.offset_of(name)}: {name} at sectors {start}..{start + length} "
                    f"is not between the descriptor and sector {self.overhead}"
                )


def table_count(capacity: int) -> int:
    """Grain tables of a disk of ``capacity`` sectors."""
    return -(-capacity // (GRAIN_SECTORS * TABLE_ENTRIES))


def directory_sectors(capacity: int) -> int:
    """Sectors that the grain directory of a disk of ``capacity`` sectors takes."""
    return -(-table_count(capacity) * 4 // SECTOR)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything lies in a disk that imgstore writes; all numbers are sectors.

    Attributes:
        capacity: size of the disk.
        tables: number of grain tables.
        redundant_directory: first sector of the redundant grain directory; its tables follow.
        redundant_tables: first sector of the first redundant grain table.
        directory: first sector of the grain directory; its tables follow.
        first_table: first sector of the first grain table.
        overhead: first sector of the first grain.
    """

    capacity: int
    tables: int
    redundant_directory: int
    redundant_tables: int
    directory: int
    first_table: int
    overhead: int

    @classmethod
    def plan(cls, capacity: int) -> Layout:
        """The layout of a disk of ``capacity`` bytes.

        Raises:
            InvalidError: not a positive multiple of 64 KiB (readers disagree about a last grain that is cut), or more than 2 TiB.
        """
        if capacity <= 0 or capacity % GRAIN or capacity > MAX_SECTORS * SECTOR:
            raise InvalidError(f"disk of {capacity} bytes: must be a multiple of {GRAIN} bytes, at most {MAX_SECTORS * SECTOR}")
        sectors = capacity // SECTOR
        tables = table_count(sectors)
        directory_length = _round_up(directory_sectors(sectors), _BLOCK_SECTORS)
        tables_length = _round_up(tables * TABLE_SECTORS, _BLOCK_SECTORS)
        redundant_directory = _round_up(DESCRIPTOR_SECTOR + DESCRIPTOR_SECTORS, _BLOCK_SECTORS)
        redundant_tables = redundant_directory + directory_length
        directory = redundant_tables + tables_length
        first_table = directory + directory_length
        overhead = _round_up(first_table + tables_length, GRAIN_SECTORS)
        return cls(sectors, tables, redundant_directory, redundant_tables, directory, first_table, overhead)

    def header(self) -> HostedHeader:
        """The header of such a disk."""
        return HostedHeader(
            capacity=self.capacity,
            redundant_directory=self.redundant_directory,
            directory=self.directory,
            overhead=self.overhead,
        )


def numbers_to_bytes(numbers: array[int]) -> bytes:
    """32-bit numbers as they lie in the file: little-endian."""
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers.tobytes()


def numbers_from_bytes(data: bytes) -> array[int]:
    """32-bit little-endian numbers; the length of ``data`` is a multiple of 4."""
    numbers = array("I", data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _round_up(sectors: int, unit: int) -> int:
    return -(-sectors // unit) * unit
