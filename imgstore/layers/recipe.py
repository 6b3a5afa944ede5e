"""Recipe: what a layer's tar has beside the contents of its files, and where on the layer's device those lie.

From a recipe and the device that shows the layer the exact bytes of the tar are made again: headers, padding, order, entries that the
file system has no place for. Its form is described for users in ``docs/reference/disk-format.md``:

::

    RecipeHeader
    SectionHeader, payload      any number of times
    RecipeEnd

A payload is one Zstandard frame (RFC 8878) of the section's literal bytes and of its runs. A run is some literal bytes and then some bytes
of the device; the runs in their order, section after section, are the tar. They lie in three columns of 64-bit numbers: how many literal
bytes, where on the device, how many bytes of it. A column is written as eight planes, all lowest bytes first: small numbers then are long
runs of zeros. Nearly every file lies where the one before ended, at the next whole block: so a place counts from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import zstandard
from crc32c import crc32c

from imgstore.blocks import BlockDevice, Bytes, ReadableFile, WritableFile
from imgstore.errors import CorruptError, UnsupportedError
from imgstore.layers.read_ahead import read_ahead
from imgstore.ondisk import Record, raw, u32, u64

VERSION: Final = 1
_ALIGNMENT: Final = 4096  # of file contents on a device: the block of ext4
_LEVEL: Final = 1

# With either a section is full. Where one ends follows from the tar alone, not from the pieces in which it came.
MAX_LITERAL: Final = 1 << 20
MAX_RUNS: Final = 1 << 15
_NUMBER: Final = 8
_COLUMNS: Final = 3
_MAX_PAYLOAD: Final = 2 * (MAX_LITERAL + MAX_RUNS * _NUMBER * _COLUMNS)
"""Above what any encoder makes of the largest section."""

_ZEROS_RUN: Final = -(1 << 63)
"""In the column of places: the bytes are zeros, and lie nowhere."""

_READ: Final = 1 << 20
"""Bytes of the device that are read at once, and of the tar that are handed out."""
_NEAR: Final = 1 << 16
"""Bytes between two runs that are read and dropped rather than read round."""
_ZEROS: Final = bytes(_READ)
_AHEAD: Final = 2
"""Pieces that reading may be ahead of hashing."""


class RecipeHeader(Record, size=16):
    """First bytes of a recipe."""

    magic: bytes = raw(0, 8, default=b"imgrecip", fixed=True)
    version: int = u32(8, default=VERSION)
    checksum: int = u32(12)  # CRC-32C of the fields above


class SectionHeader(Record, size=20):
    """A part of the tar; its payload follows."""

    magic: bytes = raw(0, 4, default=b"part", fixed=True)
    payload: int = u32(4)  # bytes
    literal: int = u32(8)  # bytes, inflated
    runs: int = u32(12)
    checksum: int = u32(16)  # CRC-32C of the fields above and the payload


class RecipeEnd(Record, size=48):
    """Last bytes of a recipe: what its tar is."""

    magic: bytes = raw(0, 4, default=b"done", fixed=True)
    size: int = u64(4)  # bytes of the tar
    digest: bytes = raw(12, 32)  # SHA-256 of the tar
    checksum: int = u32(44)  # CRC-32C of the fields above


@dataclass(frozen=True, slots=True)
class RecipeSummary:
    """A recipe that was written: bytes of its file, and ``sha256:`` and their digest."""

    size: int
    digest: str


class RecipeWriter:
    """Writes the recipe of a tar that is read by ``read_changes`` and applied to a file system at the same time. For one thread.

    Who reads the tar gets its pieces through ``follow`` and calls ``announce`` for the contents of each file, before it takes the
    first piece behind the one that the contents begin in; who writes the file system calls ``place`` for each of their parts, in order.
    What is not announced is kept. Holds a few MiB at most.

    Args:
        file: empty; takes the recipe from its start to its end.
    """

    def __init__(self, file: WritableFile) -> None:
        self._file = file
        self._offset = 0
        self._hash = hashlib.sha256()
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False)
        self._piece = memoryview(b"")
        self._base = 0  # offset of the piece in the tar
        self._seen = 0  # offset in the tar of the first byte that is neither kept nor announced
        self._announced = 0  # bytes that have no place yet
        self._pending = 0  # literal bytes that no run has yet
        self._literal = bytearray()
        self._literals = array("q")
        self._places = array("q")
        self._lengths = array("q")
        self._expected = 0
        header = RecipeHeader()
        header.checksum = _record_checksum(header)
        self._put(header.to_bytes())

    def follow(self, pieces: Iterable[Bytes]) -> Iterator[memoryview]:
        """Hands on the tar, whose pieces must not change while the next has not been asked for."""
        for piece in pieces:
            self._piece = memoryview(piece)
            yield self._piece
            end = self._base + len(piece)
            if self._seen < end:
                self._keep(end)
            self._base = end
        self._piece = memoryview(b"")

    def announce(self, offset: int, length: int) -> None:
        """Says that ``length`` bytes of the tar at ``offset`` go to the file system."""
        if self._seen < offset:
            self._keep(offset)
        self._seen = offset + length
        self._announced += length

    def place(self, offset: int | None, length: int) -> None:
        """Says that the next ``length`` bytes that were announced lie at byte ``offset`` of the device; None: nowhere, they are zeros."""
        self._literals.append(self._pending)
        self._pending = 0
        self._lengths.append(length)
        self._announced -= length
        if offset is None:
            self._places.append(_ZEROS_RUN)
        else:
            self._places.append(offset - self._expected)
            self._expected = (offset + length + _ALIGNMENT - 1) & -_ALIGNMENT
        if len(self._lengths) == MAX_RUNS - 1:
            self._close_section()

    def finish(self, size: int, diff_id: str) -> RecipeSummary:
        """Writes what is left, after the last piece.

        Args:
            size: bytes of the tar.
            diff_id: ``sha256:`` and its digest.

        Raises:
            ValueError: the tar that went by is another, or not all of its contents have a place.
        """
        if size != self._base or self._announced:
            raise ValueError(
                f"{self._file.path}: a tar of {size} bytes, {self._base} went by, and {self._announced} of them have no place"
            )
        if self._pending or self._lengths:
            self._close_section()
        end = RecipeEnd(size=size, digest=bytes.fromhex(diff_id.partition(":")[2]))
        end.checksum = _record_checksum(end)
        self._put(end.to_bytes())
        return RecipeSummary(self._offset, "sha256:" + self._hash.hexdigest())

    def _keep(self, end: int) -> None:
        """Keeps the bytes of the piece up to ``end``, an offset in the tar."""
        while (room := MAX_LITERAL - len(self._literal)) <= end - self._seen:
            self._add_literal(self._seen + room)
            self._close_section()
        self._add_literal(end)

    def _add_literal(self, end: int) -> None:
        self._literal += self._piece[self._seen - self._base : end - self._base]
        self._pending += end - self._seen
        self._seen = end

    def _close_section(self) -> None:
        if self._pending:
            self._literals.append(self._pending)
            self._places.append(0)
            self._lengths.append(0)
            self._pending = 0
        columns = (self._literals, self._places, self._lengths)
        payload = self._compressor.compress(b"".join((self._literal, *map(_planes_of, columns))))
        header = SectionHeader(payload=len(payload), literal=len(self._literal), runs=len(self._lengths))
        header.checksum = _record_checksum(header, payload)
        self._put(header.to_bytes() + payload)
        self._literal.clear()
        for column in columns:
            del column[:]
        self._expected = 0

    def _put(self, data: bytes) -> None:
        self._file.pwrite(self._offset, data)
        self._hash.update(data)
        self._offset += len(data)


def rebuild_tar(file: ReadableFile, device: BlockDevice, *, size: int, diff_id: str) -> Iterator[Bytes]:
    """The tar that ``file`` is the recipe of, in pieces of about a MiB.

    What was handed out is known to be right only when the iteration ends without an error. Holds a few MiB, whatever is in the file.

    Args:
        device: shows the layer; need not show those above it.
        size: bytes of the tar; who gives it has bounded it.
        diff_id: ``sha256:`` and the digest of the tar.

    Raises:
        CorruptError: the recipe is damaged, or another layer's, or the device does not hold the contents.
        UnsupportedError: a newer program wrote it.
    """
    _check_version(file)
    tar_hash = hashlib.sha256()
    # Hashing takes as long as all the rest together, so it has a thread of its own: this one.
    with contextlib.closing(read_ahead(_join_sections(file, device, size), _AHEAD, name="imgstore-rebuild")) as pieces:
        for piece in pieces:
            tar_hash.update(piece)
            yield piece
    found = "sha256:" + tar_hash.hexdigest()
    if found != diff_id:
        raise CorruptError(f"layer {diff_id}: the tar made again by {file.path} has digest {found}")


def _join_sections(file: ReadableFile, device: BlockDevice, size: int) -> Iterator[Bytes]:
    """The tar, and then everything but its digest checked."""
    offset = RecipeHeader.SIZE
    left = size
    while (kind := _read(file, offset, 4)) == SectionHeader().magic:
        section = _Section(file, offset, device)
        if not 0 < section.total <= left:
            raise _corrupt(file, offset, f"section makes {section.total} bytes of the tar, not 1 to {left}, which are missing")
        yield from section.pieces()
        left -= section.total
        offset = section.end
    if kind != RecipeEnd().magic:
        raise _corrupt(file, offset, f"{kind!r} is there, the magic of neither a section nor the end")
    end = RecipeEnd.from_bytes(_read(file, offset, RecipeEnd.SIZE))
    _check_sum(file, offset, end.checksum, _record_checksum(end))
    if left or end.size != size:
        raise _corrupt(file, offset, f"it ends after {size - left} bytes of the tar and names {end.size}, its marker says {size}")
    if file.size != offset + RecipeEnd.SIZE:
        raise _corrupt(file, offset, f"is the end, and the file has {file.size} bytes")


class _Section:
    """A part of the tar, as the recipe has it.

    Attributes:
        total: bytes of the tar that it makes.
        end: where it ends in the file.
    """

    def __init__(self, file: ReadableFile, offset: int, device: BlockDevice) -> None:
        header = SectionHeader.from_bytes(_read(file, offset, SectionHeader.SIZE))
        for name, limit in (("payload", _MAX_PAYLOAD), ("literal", MAX_LITERAL), ("runs", MAX_RUNS)):
            if getattr(header, name) > limit:
                raise _corrupt(file, offset, f"{name} is {getattr(header, name)}, more than {limit}")
        payload = _read(file, offset + SectionHeader.SIZE, header.payload)
        _check_sum(file, offset, header.checksum, _record_checksum(header, payload))
        inflated = memoryview(_inflate(file, offset, payload, header.literal + header.runs * _COLUMNS * _NUMBER))
        self._device = device
        self._literal = inflated[: header.literal]
        column = header.runs * _NUMBER
        self._literals, places, self._lengths = (
            _numbers_of(inflated[start : start + column])
            for start in (header.literal, header.literal + column, header.literal + 2 * column)
        )
        if min(self._literals, default=0) < 0 or min(self._lengths, default=0) < 0 or sum(self._literals) != header.literal:
            raise _corrupt(file, offset, f"its runs do not fit its {header.literal} literal bytes")
        self.total = header.literal + sum(self._lengths)
        self.end = offset + SectionHeader.SIZE + header.payload
        self._places: list[int] = []
        expected = 0
        for place, length in zip(places, self._lengths, strict=True):
            if place == _ZEROS_RUN:
                self._places.append(-1)
                continue
            place += expected
            if not 0 <= place <= device.size - length:
                raise _corrupt(file, offset, f"a run has {length} bytes at byte {place} of a device of {device.size}")
            self._places.append(place)
            expected = (place + length + _ALIGNMENT - 1) & -_ALIGNMENT

    def pieces(self) -> Iterator[Bytes]:
        """The part of the tar."""
        parts: list[Bytes] = []
        held = 0
        position = 0  # in the literal bytes
        window = memoryview(b"")
        window_start = window_end = 0
        for number, (literal, place, length) in enumerate(zip(self._literals, self._places, self._lengths, strict=True)):
            if literal:
                parts.append(self._literal[position : position + literal])
                position += literal
                held += literal
            if place >= window_start and place + length <= window_end:
                parts.append(window[place - window_start : place - window_start + length])
                held += length
            elif length <= _READ and place >= 0:
                window_start, window_end = place, self._window_end(number)
                window = memoryview(self._device.read(place, window_end - place))
                parts.append(window[:length])
                held += length
            else:
                if held:
                    yield b"".join(parts)
                    parts.clear()
                    held = 0
                yield from self._long_run(place, length)
            if held >= _READ:
                yield b"".join(parts)
                parts.clear()
                held = 0
        if held:
            yield b"".join(parts)

    def _window_end(self, number: int) -> int:
        """Where a read that begins with a run of this number is to end: behind the last of the next ones that lie close by."""
        places, lengths = self._places, self._lengths
        end = places[number] + lengths[number]
        limit = places[number] + _READ
        for following in range(number + 1, len(places)):
            place = places[following]
            if not end <= place <= end + _NEAR or place + lengths[following] > limit:
                break
            end = place + lengths[following]
        return end

    def _long_run(self, place: int, length: int) -> Iterator[Bytes]:
        for start in range(0, length, _READ):
            take = min(_READ, length - start)
            yield self._device.read(place + start, take) if place >= 0 else memoryview(_ZEROS)[:take]


def _inflate(file: ReadableFile, offset: int, payload: bytes, size: int) -> bytes:
    try:
        # The decoder allocates what the frame says that it needs.
        if zstandard.get_frame_parameters(payload).content_size != size:
            raise _corrupt(file, offset, f"its payload does not inflate to the {size} bytes that it should")
        return zstandard.ZstdDecompressor().decompress(payload, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise _corrupt(file, offset, f"its payload: {error}") from None


def _planes_of(numbers: array[int]) -> bytes:
    """The numbers as planes, lowest bytes first."""
    data = _little_endian(numbers).tobytes()
    return b"".join(data[plane::_NUMBER] for plane in range(_NUMBER))


def _numbers_of(planes: memoryview) -> array[int]:
    data = bytearray(len(planes))
    count = len(planes) // _NUMBER
    for plane in range(_NUMBER):
        data[plane::_NUMBER] = planes[plane * count : (plane + 1) * count]
    return _little_endian(array("q", bytes(data)))


def _little_endian(numbers: array[int]) -> array[int]:
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers


def _record_checksum(record: SectionHeader | RecipeHeader | RecipeEnd, payload: bytes = b"") -> int:
    """Of a record's bytes before its checksum, which is its last field, and the payload."""
    return crc32c(payload, crc32c(record.to_bytes()[: record.offset_of("checksum")]))


def _check_version(file: ReadableFile) -> None:
    try:
        header = RecipeHeader.from_bytes(_read(file, 0, RecipeHeader.SIZE))
    except CorruptError as error:
        raise CorruptError(f"{file.path}: {error}") from None
    _check_sum(file, 0, header.checksum, _record_checksum(header))
    if header.version != VERSION:
        raise UnsupportedError(
            f"{file.path}: recipe of version {header.version}, this imgstore knows {VERSION}", hint="upgrade imgstore"
        )


def _check_sum(file: ReadableFile, offset: int, said: int, found: int) -> None:
    if said != found:
        raise _corrupt(file, offset, f"checksum is {found:08x}, not {said:08x}")


def _read(file: ReadableFile, offset: int, length: int) -> bytes:
    data = file.pread(offset, length)
    if len(data) != length:
        raise _corrupt(file, offset, f"{length} bytes are needed, the file ends after {len(data)}")
    return data


def _corrupt(file: ReadableFile, offset: int, problem: str) -> CorruptError:
    return CorruptError(f"{file.path} at byte {offset}: {problem}")
