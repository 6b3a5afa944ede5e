"""Hosted sparse extents ("KDMV") as other programs make them: other grain sizes, and grains that are said to be zeros.

``hosted`` reads those that imgstore writes; this reads what the specification allows.

Source: VMware "Virtual Disk Format 5.0", "Hosted Sparse Extents"; open-vmdk ``sparse.c`` for the bounds; QEMU ``block/vmdk.c`` for zeroed
grains.
"""

from __future__ import annotations

from array import array

from imgstore.blocks import SECTOR, ReadableFile
from imgstore.errors import CorruptError, UnsupportedError
from imgstore.vmdk.descriptor import EMBEDDED, Descriptor
from imgstore.vmdk.grains import MAX_SECTORS, HeaderFlag, HostedHeader, numbers_from_bytes
from imgstore.vmdk.hosted import read_whole
from imgstore.vmdk.link import ZEROED, SparseLink, check_directory_length

_GRAIN_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_TABLE_SIZES = (128, 256, 512, 1024, 2048, 4096)
"""QEMU reads up to 512, open-vmdk takes any; COWD has 4096."""

_MAX_DESCRIPTOR_SECTORS = 128


def read_header(file: ReadableFile, offset: int = 0) -> HostedHeader:
    """The header at byte ``offset``, its numbers proved as far as they go by themselves.

    Raises:
        CorruptError: it is damaged.
        UnsupportedError: a newer version of the format, or something that is not known.
    """
    try:
        header = HostedHeader.from_bytes(file.pread(offset, HostedHeader.SIZE))
    except CorruptError as error:
        raise CorruptError(f"{file.path}, header at byte {offset}: {error}") from None
    known = HeaderFlag.NEWLINE_TEST | HeaderFlag.REDUNDANT_TABLES | HeaderFlag.ZEROED_GRAINS
    if header.flags & HeaderFlag.COMPRESSED:
        known |= HeaderFlag.COMPRESSED | HeaderFlag.MARKERS
    checks: list[tuple[str, bool, str]] = [
        ("version", 1 <= header.version <= 3, "only 1 to 3 are read"),
        ("flags", not header.flags & ~known, f"only those in {known:#x} are known"),
        ("capacity", 0 < header.capacity <= MAX_SECTORS, f"only 1 to {MAX_SECTORS} sectors are read"),
        ("grain_size", header.grain_size in _GRAIN_SIZES, "not a power of two up to 128"),
        ("table_entries", header.table_entries in _TABLE_SIZES, "not a power of two from 128 to 4096"),
        ("descriptor_offset", header.descriptor_offset > 0, "an extent of a disk of several files is not read"),
        ("descriptor_offset", header.descriptor_offset < MAX_SECTORS, f"no file has more than {MAX_SECTORS} sectors"),
        (
            "descriptor_size",
            0 < header.descriptor_size <= _MAX_DESCRIPTOR_SECTORS,
            f"only 1 to {_MAX_DESCRIPTOR_SECTORS} are read",
        ),
    ]
    for name, fine, wanted in checks:
        if not fine:
            at = offset + HostedHeader.offset_of(name)
            raise UnsupportedError(f"{file.path}, HostedHeader at byte {at}: {name} is {getattr(header, name)}: {wanted}")
    return header


def read_descriptor(file: ReadableFile, header: HostedHeader) -> Descriptor:
    """The descriptor inside a file.

    Raises:
        CorruptError: it is damaged, or lies outside the file.
        UnsupportedError: the disk has several extents.
    """
    offset = header.descriptor_offset * SECTOR
    data = read_whole(file, offset, header.descriptor_size * SECTOR)
    return Descriptor.from_bytes(data, file.path, EMBEDDED, offset=offset)


class GrainLink(SparseLink):
    """What plain and compressed extents of hosted products have in common: directory and tables.

    Args:
        file: of the disk.
        header: says where the directory is.

    Raises:
        CorruptError: a structure is damaged or lies outside the file.
    """

    def __init__(self, file: ReadableFile, header: HostedHeader, descriptor: Descriptor) -> None:
        super().__init__(file.path, file, descriptor, grain_sectors=header.grain_size, table_entries=header.table_entries)
        self.check_capacity(header.capacity, HostedHeader.offset_of("capacity"))
        self.header = header
        self._lowest = header.descriptor_offset + header.descriptor_size
        if header.directory < self._lowest:
            raise CorruptError(
                f"{file.path}, HostedHeader: directory at sector {header.directory} is not behind the descriptor, "
                f"which ends at {self._lowest}"
            )
        start, length = header.directory * SECTOR, self.tables * 4
        check_directory_length(file.path, self.tables, self.tables, start + length, file.size)
        self._directory = numbers_from_bytes(read_whole(file, start, length))
        self._table_bytes = header.table_entries * 4
        self.check_directory(self._directory, self._table_bytes // SECTOR, self._lowest)

    def read_table(self, number: int) -> array[int] | None:
        sector = self._directory[number]
        if not sector:
            return None
        table = numbers_from_bytes(read_whole(self.file, sector * SECTOR, self._table_bytes))
        self.check_entries(table, number, self._lowest)
        if not self.header.flags & HeaderFlag.ZEROED_GRAINS and ZEROED in table:
            raise CorruptError(f"{self.path}, grain table {number}: a grain is at sector 1, in the descriptor")
        return table


class HostedLink(GrainLink):
    """A disk of a plain hosted sparse extent, opened for reading.

    Raises:
        CorruptError: a structure is damaged or lies outside the file.
        UnsupportedError: a variant that is not known.
    """

    def __init__(self, file: ReadableFile, header: HostedHeader) -> None:
        super().__init__(file, header, read_descriptor(file, header))
