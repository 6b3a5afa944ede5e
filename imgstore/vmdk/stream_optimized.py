"""streamOptimized disks: grains deflated one by one, in a file that is written from its first byte to its last and can go into a pipe.

As VMware writes them, in sectors of 512 bytes::

    0        header                      its directory is "at the end"
    1        descriptor, 20 sectors
    128      grains                      each a marker of 12 bytes (u64 sector on the disk, u32 length), a zlib stream, zeros to the sector
    ...      table marker, grain table   behind the last grain of each 512 that has one: 512 u32, 4 sectors
    ...      directory marker, grain directory
    ...      footer marker, footer       the header again, which now says where the directory is
    ...      end-of-stream marker

What is no grain has a marker of a whole sector: u64 sectors that follow, u32 0, u32 type. QEMU and open-vmdk put directory and tables in
front of the grains; those are read, too.

Source: VMware "Virtual Disk Format 5.0", "Stream-Optimized Compressed Sparse Extents"; RFC 1950, which is what all writers mean by deflate.
"""

from __future__ import annotations

import collections
import os
import threading
import zlib
from array import array
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import ModuleType

from imgstore.blocks import GRAIN, SECTOR, Bytes, ReadableFile
from imgstore.errors import CorruptError, InvalidError, NoSpaceError, UnsupportedError
from imgstore.ondisk import Record, u32, u64
from imgstore.vmdk.descriptor import Descriptor
from imgstore.vmdk.grains import (
    GRAIN_SECTORS,
    MAX_SECTORS,
    TABLE_ENTRIES,
    TABLE_SECTORS,
    HeaderFlag,
    HostedHeader,
    numbers_to_bytes,
    table_count,
)
from imgstore.vmdk.hosted import read_whole
from imgstore.vmdk.hosted_variants import GrainLink, read_descriptor, read_header

codec: ModuleType
try:
    from isal import isal_zlib
except ImportError:  # no wheels for this machine: a fifth as fast
    codec = zlib
else:
    codec = isal_zlib

AT_END = 0xFFFFFFFFFFFFFFFF
"""What a header says of a directory that lies behind the grains."""

DEFLATE = 1
"""The only value of ``HostedHeader.compression`` that means something."""

_LEVEL = 3
"""As for layers (``layers.gzip_writer``): of programs this leaves 37 %, like zlib's level 1, three times as fast."""

_FLAGS = HeaderFlag.NEWLINE_TEST | HeaderFlag.COMPRESSED | HeaderFlag.MARKERS
_TABLE_MARKER, _DIRECTORY_MARKER, _FOOTER_MARKER = 1, 2, 3
_FOOTER_BYTES = 3 * SECTOR

_WORKERS = min(4, os.cpu_count() or 1)
_INFLATED_GRAINS = 32
"""Grains in memory: readers ask for parts of one after the other."""


class GrainMarker(Record, size=12):
    """What a deflated grain begins with."""

    sector: int = u64(0)
    length: int = u32(8)


class Marker(Record, size=512):
    """What everything else begins with; all zeros at the end of the stream."""

    sectors: int = u64(0)
    length: int = u32(8, default=0)
    type: int = u32(12)


class StreamOptimizedLink(GrainLink):
    """A streamOptimized disk, opened for reading: header or footer, descriptor and directory are read.

    Raises:
        CorruptError: a structure is damaged or lies outside the file.
        UnsupportedError: a variant that is not known.
    """

    joins = False

    def __init__(self, file: ReadableFile, header: HostedHeader) -> None:
        if header.compression != DEFLATE or not header.flags & HeaderFlag.MARKERS:
            raise UnsupportedError(
                f"{file.path}, HostedHeader: compression is {header.compression}, flags are {header.flags:#x}: "
                f"only grains deflated (1) with markers ({HeaderFlag.MARKERS:#x}) are read"
            )
        descriptor = read_descriptor(file, header)
        super().__init__(file, _read_footer(file, header) if header.directory == AT_END else header, descriptor)
        self._inflated: collections.OrderedDict[int, bytes] = collections.OrderedDict()
        self._lock = threading.Lock()

    def read_run(self, origin: int, place: int, start: int, length: int) -> bytes:
        with self._lock:
            grain = self._inflated.get(origin)
        if grain is None:
            grain = self._inflate(origin, place)
            with self._lock:
                self._inflated[origin] = grain
                while len(self._inflated) > _INFLATED_GRAINS:
                    self._inflated.popitem(last=False)
        return grain if length == len(grain) else grain[start : start + length]

    def _inflate(self, origin: int, place: int) -> bytes:
        data = self.file.pread(place, GrainMarker.SIZE + self.grain)
        where = f"{self.path}, grain at byte {place}"
        if len(data) < GrainMarker.SIZE:
            raise CorruptError(f"{where}: the file ends after {len(data)} bytes of it")
        marker = GrainMarker.from_bytes(data)
        # Twice a grain is what QEMU takes; what cannot be deflated grows by less than a hundredth.
        if not 0 < marker.length <= 2 * self.grain:
            raise CorruptError(f"{where}: has {marker.length} bytes deflated, of a grain of {self.grain}")
        if marker.sector * SECTOR != origin:
            raise CorruptError(f"{where}: is of sector {marker.sector} of the disk, by its table of sector {origin // SECTOR}")
        end = GrainMarker.SIZE + marker.length
        packed = (
            data[GrainMarker.SIZE : end] if len(data) >= end else read_whole(self.file, place + GrainMarker.SIZE, marker.length)
        )
        inflater = codec.decompressobj(zlib.MAX_WBITS)
        try:
            grain: bytes = inflater.decompress(packed, self.grain + 1)
        except codec.error as error:
            raise CorruptError(f"{where}: cannot be inflated: {error}") from None
        # open-vmdk ends the last grain where the disk ends.
        wanted = min(self.grain, self.capacity - origin)
        if not inflater.eof or not wanted <= len(grain) <= self.grain:
            raise CorruptError(f"{where}: inflates to {len(grain)} bytes{'' if inflater.eof else ' or more'}, not {self.grain}")
        return grain


def _read_footer(file: ReadableFile, header: HostedHeader) -> HostedHeader:
    """The header behind the grains, which says where the directory is."""
    start = file.size - _FOOTER_BYTES
    if start < HostedHeader.SIZE:
        raise CorruptError(f"{file.path}: {file.size} bytes have no room for a footer")
    marker, end = (Marker.from_bytes(read_whole(file, start + at, SECTOR)) for at in (0, 2 * SECTOR))
    if (marker.length, marker.type) != (0, _FOOTER_MARKER):
        raise CorruptError(
            f"{file.path}, footer marker at byte {start}: length is {marker.length} and type {marker.type}, not 0 and {_FOOTER_MARKER}: "
            "the file was cut off, or something follows it"
        )
    if (end.sectors, end.length, end.type) != (0, 0, 0):
        raise CorruptError(f"{file.path}, end-of-stream marker at byte {start + 2 * SECTOR}: is not all zeros")
    footer = read_header(file, start + SECTOR)
    for name in ("capacity", "grain_size", "table_entries", "flags", "descriptor_offset", "descriptor_size"):
        if getattr(footer, name) != getattr(header, name):
            raise CorruptError(
                f"{file.path}, footer at byte {start + SECTOR}: {name} is {getattr(footer, name)}, in the header {getattr(header, name)}"
            )
    if footer.directory == AT_END:
        raise CorruptError(f"{file.path}, footer at byte {start + SECTOR}: does not say where the directory is")
    return footer


def write_stream_optimized(
    append: Callable[[bytes], object], descriptor: Descriptor, pieces: Iterable[tuple[int, Bytes]]
) -> None:
    """Writes a disk, from its first byte to its last; several threads deflate.

    Holds at most some MiB. A crash leaves a file without its end, which no reader takes for a disk. On one machine the same pieces give
    the same bytes.

    Args:
        append: writes all that it is given behind what it was given before.
        descriptor: of the disk; its capacity is a multiple of 64 KiB.
        pieces: offset and bytes, of whole grains of 64 KiB, ascending.

    Raises:
        InvalidError: there can be no such disk.
        NoSpaceError: the datastore is full, or the file would grow beyond 2 TiB.
    """
    check_stream_capacity(descriptor.capacity * SECTOR, descriptor.extent_name)
    writer = _Writer(append, descriptor)
    waiting: collections.deque[tuple[int, Future[list[bytes]]]] = collections.deque()
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="imgstore-deflate") as pool:
        for offset, data in pieces:
            waiting.append((offset // GRAIN, pool.submit(_deflate, offset // SECTOR, data)))
            if len(waiting) > _WORKERS:
                first, future = waiting.popleft()
                writer.write(first, future.result())
        for first, future in waiting:
            writer.write(first, future.result())
    writer.finish()


def check_stream_capacity(capacity: int, path: str) -> None:
    """Raises InvalidError unless a streamOptimized disk of ours can have ``capacity`` bytes."""
    if capacity <= 0 or capacity % GRAIN or capacity > MAX_SECTORS * SECTOR:
        raise InvalidError(
            f"{path}: disk of {capacity} bytes: must be a multiple of {GRAIN} bytes, at most {MAX_SECTORS * SECTOR}"
        )


def _deflate(sector: int, data: Bytes) -> list[bytes]:
    """Grains as they lie in the file: marker, zlib stream, zeros to the end of the sector."""
    view = memoryview(data)
    grains = []
    for start in range(0, len(view), GRAIN):
        packed: bytes = codec.compress(view[start : start + GRAIN], _LEVEL)
        marker = GrainMarker(sector=sector + start // SECTOR, length=len(packed)).to_bytes()
        grains.append(b"".join((marker, packed, bytes(-(len(marker) + len(packed)) % SECTOR))))
    return grains


class _Writer:
    """The file, from its first byte to its last."""

    def __init__(self, append: Callable[[bytes], object], descriptor: Descriptor) -> None:
        self._append = append
        self._name = descriptor.extent_name
        self._sector = 0
        self._directory = array("I", bytes(4 * table_count(descriptor.capacity)))
        self._number = 0
        self._table = array("I", bytes(4 * TABLE_ENTRIES))
        # 3 is what says "compressed" to ESXi; the grains begin where ours do in a plain disk of one table.
        self._header = HostedHeader(
            version=3, flags=_FLAGS, capacity=descriptor.capacity, directory=AT_END, overhead=GRAIN_SECTORS, compression=DEFLATE
        )
        head = self._header.to_bytes() + descriptor.to_bytes()
        self._put(head.ljust(GRAIN_SECTORS * SECTOR, b"\0"))

    def write(self, first: int, grains: list[bytes]) -> None:
        """Writes grains from ``first`` on."""
        sectors = [len(grain) // SECTOR for grain in grains]
        # The grains of a piece lie in one table or two: those of each go out by one write.
        while grains:
            number, position = divmod(first, TABLE_ENTRIES)
            if number != self._number:
                self._end_table()
                self._number = number
            count = min(len(grains), TABLE_ENTRIES - position)
            place = self._sector
            for index in range(count):
                self._table[position + index] = place
                place += sectors[index]
            self._put(b"".join(grains[:count]))
            first += count
            grains, sectors = grains[count:], sectors[count:]

    def _end_table(self) -> None:
        if any(self._table):
            self._put(Marker(sectors=TABLE_SECTORS, type=_TABLE_MARKER).to_bytes())
            self._directory[self._number] = self._sector
            self._put(numbers_to_bytes(self._table))
            self._table = array("I", bytes(4 * TABLE_ENTRIES))

    def finish(self) -> None:
        """Writes what stands behind the grains."""
        self._end_table()
        directory = numbers_to_bytes(self._directory)
        directory += bytes(-len(directory) % SECTOR)
        self._put(Marker(sectors=len(directory) // SECTOR, type=_DIRECTORY_MARKER).to_bytes())
        self._header.directory = self._sector
        self._put(directory)
        footer = Marker(sectors=1, type=_FOOTER_MARKER).to_bytes() + self._header.to_bytes()
        self._put(footer + Marker(type=0).to_bytes())

    def _put(self, data: bytes) -> None:
        if self._sector * SECTOR + len(data) > MAX_SECTORS * SECTOR:
            raise NoSpaceError(f"{self._name}: an extent file holds at most {MAX_SECTORS * SECTOR} bytes")
        self._append(data)
        self._sector += len(data) // SECTOR
