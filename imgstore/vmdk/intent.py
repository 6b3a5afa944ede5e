"""Intents: what a commit is about to change in a disk, on stable storage before the first byte of it changes.

An intent is the list of those bytes, as they are and as they will be. Whoever finds one after a crash writes the latter; for that it does
not matter how many of them were written already, in which order. ::

    0    header, 64 bytes
    64   pieces: u64 offset in the disk's file, u32 length each
    ...  the bytes of all pieces before, then after
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from typing import NamedTuple

from imgstore.blocks import Bytes, ReadableFile, WritableFile
from imgstore.errors import CorruptError
from imgstore.ondisk import Record, raw, u32

_PIECE = struct.Struct("<QI")


class IntentHeader(Record, size=64):
    """First bytes of an intent."""

    magic: bytes = raw(0, 8, default=b"vmdkredo", fixed=True)
    version: int = u32(8, default=1, fixed=True)
    pieces: int = u32(12)
    sha256: bytes = raw(32, 32)  # of all the intent, this field being zeros

    def digest(self, body: Bytes) -> bytes:
        """What ``sha256`` must be before these bytes."""
        return hashlib.sha256(IntentHeader(pieces=self.pieces).to_bytes() + body).digest()


class Piece(NamedTuple):
    """Bytes of a file that change."""

    offset: int
    before: bytes
    after: bytes


def changed_piece(offset: int, before: bytes, after: bytes) -> Piece | None:
    """The shortest piece that makes ``before`` ``after``, which are of one length; None if they are equal."""
    difference = int.from_bytes(before, "little") ^ int.from_bytes(after, "little")
    if not difference:
        return None
    start = ((difference & -difference).bit_length() - 1) // 8
    end = -(-difference.bit_length() // 8)
    return Piece(offset + start, before[start:end], after[start:end])


def encode_intent(pieces: list[Piece]) -> bytes:
    """The intent of changing ``pieces``, which do not overlap."""
    body = b"".join(
        [
            *(_PIECE.pack(piece.offset, len(piece.after)) for piece in pieces),
            *(piece.before for piece in pieces),
            *(piece.after for piece in pieces),
        ]
    )
    header = IntentHeader(pieces=len(pieces))
    header.sha256 = header.digest(body)
    return header.to_bytes() + body


def apply_intent(file: WritableFile, intent: bytes) -> bool:
    """Brings a commit that was cut off to its end, durably; any number of times.

    Nothing is changed unless the intent is whole and each byte that it names is as it was before or as it will be: one that is torn was
    cut off before the disk was touched, and one that fits no more is another disk's, or of a time before another program wrote this one.

    Returns:
        Whether the disk is now as the intent wants it.

    Raises:
        NoSpaceError: the datastore is full; the disk has to be brought to its end later.
        UnavailableError: the same of a datastore that does not answer.
    """
    try:
        pieces = _decode(intent)
    except CorruptError:
        return False
    current = [file.pread(piece.offset, len(piece.after)) for piece in pieces]
    if not all(_is_between(data, piece) for data, piece in zip(current, pieces, strict=True)):
        return False
    write_pieces(file, [piece for data, piece in zip(current, pieces, strict=True) if data != piece.after])
    return True


def write_pieces(file: WritableFile, pieces: list[Piece]) -> None:
    """Changes a file as an intent that is on stable storage says, durably."""
    for piece in pieces:
        file.pwrite(piece.offset, piece.after)
    file.fsync()


def read_piece(file: ReadableFile, offset: int, after: bytes) -> Piece | None:
    """What has to change in a file so that it has ``after`` at ``offset``; None if it has it.

    Raises:
        CorruptError: the file ends before.
    """
    before = file.pread(offset, len(after))
    if len(before) != len(after):
        raise CorruptError(f"{file.path} at byte {offset}: {len(after)} bytes are needed, the file ends after {len(before)}")
    return changed_piece(offset, before, after)


def _decode(intent: bytes) -> list[Piece]:
    header = IntentHeader.from_bytes(intent)
    body = intent[IntentHeader.SIZE :]
    if header.digest(body) != header.sha256:
        raise CorruptError("intent: checksum does not fit")
    return list(_pieces(body, header.pieces))


def _pieces(body: bytes, count: int) -> Iterator[Piece]:
    places = [_PIECE.unpack_from(body, number * _PIECE.size) for number in range(count)]
    total = sum(length for _, length in places)
    position = count * _PIECE.size
    for offset, length in places:
        yield Piece(offset, body[position : position + length], body[position + total : position + total + length])
        position += length


def _is_between(data: bytes, piece: Piece) -> bool:
    if data in (piece.before, piece.after):
        return True
    if len(data) != len(piece.after):
        return False
    return all(byte in choice for byte, choice in zip(data, zip(piece.before, piece.after, strict=True), strict=True))
