"""seSparse disks: the redo logs of VMFS6, read only, for nobody outside VMware knows all of the format.

In sectors of 512 bytes: a header that never changes, one that does, a journal, the grain directory, grain tables, a bitmap of free
grains, a back map, and grains of 8 sectors. All numbers are 64 bits wide.

Source: QEMU ``block/vmdk.c`` (``vmdk_open_se_sparse``, ``get_cluster_offset``), which got it by looking at disks of ESXi 6.5.
"""

from __future__ import annotations

import sys
from array import array

from imgstore.blocks import SECTOR, ReadableFile
from imgstore.errors import CorruptError, UnsupportedError
from imgstore.ondisk import Record, u64
from imgstore.vmdk.descriptor import Descriptor
from imgstore.vmdk.hosted import read_whole
from imgstore.vmdk.link import ABSENT, ZEROED, SparseLink, check_directory_length

GRAIN_SECTORS = 8
TABLE_SECTORS = 64
TABLE_ENTRIES = TABLE_SECTORS * SECTOR // 8

_VERSION = 0x0000000200000001
_DIRECTORY_TAG = 0x1000000000000000
"""What an entry of the directory has beside the number of a table."""

_UNALLOCATED, _UNMAPPED, _ZERO, _ALLOCATED = range(4)
"""The highest four bits of an entry of a table. The grain of one that is unmapped was discarded by the guest: zeros, as QEMU has it."""

_MAX_FILE = 1 << 53
"""Sectors: no place is so far that a file cannot be asked for it."""


class ConstantHeader(Record, size=512):
    """First sector. Offsets and lengths count 512-byte sectors."""

    magic: int = u64(0, default=0xCAFEBABE, fixed=True)
    version: int = u64(8, default=_VERSION)
    capacity: int = u64(16)
    grain_size: int = u64(24, default=GRAIN_SECTORS)
    table_size: int = u64(32, default=TABLE_SECTORS)
    flags: int = u64(40)
    volatile_header: int = u64(80)
    volatile_header_size: int = u64(88)
    journal_header: int = u64(96)
    journal_header_size: int = u64(104)
    journal: int = u64(112)
    journal_size: int = u64(120)
    directory: int = u64(128)
    directory_size: int = u64(136)
    tables: int = u64(144)
    tables_size: int = u64(152)
    free_bitmap: int = u64(160)
    free_bitmap_size: int = u64(168)
    back_map: int = u64(176)
    back_map_size: int = u64(184)
    grains: int = u64(192)
    grains_size: int = u64(200)


class VolatileHeader(Record, size=512):
    """The sector that changes with every transaction."""

    magic: int = u64(0, default=0xCAFECAFE, fixed=True)
    free_table: int = u64(8)
    next_transaction: int = u64(16)
    replay_journal: int = u64(24)


class SeSparseLink(SparseLink):
    """A disk of a seSparse extent, opened for reading: headers and directory are read.

    Raises:
        CorruptError: a structure is damaged or lies outside the file.
        UnsupportedError: its journal has to be replayed, or another version of the format.
    """

    def __init__(self, path: str, file: ReadableFile, descriptor: Descriptor) -> None:
        super().__init__(path, file, descriptor, grain_sectors=GRAIN_SECTORS, table_entries=TABLE_ENTRIES)
        try:
            header = ConstantHeader.from_bytes(file.pread(0, SECTOR))
            self._check(header)
            volatile = VolatileHeader.from_bytes(file.pread(header.volatile_header * SECTOR, SECTOR))
        except CorruptError as error:
            raise CorruptError(f"{file.path}: {error}") from None
        if volatile.replay_journal:
            raise UnsupportedError(
                f"{file.path}: the journal has to be replayed, which only ESXi can",
                hint="power the machine off, or consolidate its disks",
            )
        self.check_capacity(header.capacity, ConstantHeader.offset_of("capacity"))
        self._header = header
        start, length = header.directory * SECTOR, header.directory_size * SECTOR
        check_directory_length(file.path, length // 8, self.tables, start + length, file.size)
        self._directory = _numbers(read_whole(file, start, self.tables * 8))

    def read_table(self, number: int) -> array[int] | None:
        entry = self._directory[number]
        if not entry:
            return None
        index = entry & 0xFFFFFFFF
        if entry - index != _DIRECTORY_TAG or (index + 1) * TABLE_SECTORS > self._header.tables_size:
            raise CorruptError(
                f"{self.file.path}, grain directory at byte {self._header.directory * SECTOR + number * 8}: "
                f"entry is {entry:#x}, no table of {self._header.tables_size // TABLE_SECTORS}"
            )
        start = (self._header.tables + index * TABLE_SECTORS) * SECTOR
        table = _numbers(read_whole(self.file, start, TABLE_SECTORS * SECTOR))
        if not any(table):
            return None
        sectors = array("Q", [self._sector(entry, start + position * 8) for position, entry in enumerate(table)])
        self.check_entries(sectors, number, self._header.grains)
        return sectors

    def _sector(self, entry: int, offset: int) -> int:
        kind = entry >> 60
        if kind == _ALLOCATED:
            # The lowest 12 bits of the grain's number are above the others.
            grain = entry >> 48 & 0xFFF | (entry & 0xFFFFFFFFFFFF) << 12
            return self._header.grains + grain * GRAIN_SECTORS
        if kind in (_UNMAPPED, _ZERO):
            return ZEROED
        if entry:
            raise CorruptError(f"{self.file.path}, grain table at byte {offset}: entry is {entry:#x}, of no known kind")
        return ABSENT

    def _check(self, header: ConstantHeader) -> None:
        wanted = {"version": _VERSION, "grain_size": GRAIN_SECTORS, "table_size": TABLE_SECTORS, "flags": 0}
        for name, value in wanted.items():
            if getattr(header, name) != value:
                raise UnsupportedError(
                    f"{self.file.path}, ConstantHeader at byte {header.offset_of(name)}: {name} is {getattr(header, name):#x}, "
                    f"only {value:#x} is read"
                )
        for name in ("volatile_header", "directory", "directory_size", "tables", "tables_size", "grains"):
            if not 0 < getattr(header, name) < _MAX_FILE:
                raise CorruptError(f"ConstantHeader at byte {header.offset_of(name)}: {name} is {getattr(header, name):#x}")


def _numbers(data: bytes) -> array[int]:
    numbers = array("Q", data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
