"""LayerStream: a layer blob as it comes from a registry, inflated, counted and hashed on the way.

gzip (RFC 1952, several members), Zstandard (RFC 8878, several frames, skippable frames) and plain tar; of whole archives that people hand
in, xz and bzip2 besides (`inflate_archive`). The first bytes say which it is, not the media type. Everything is verified that the format
has a checksum for. Inflating and hashing are calls of C on large buffers that release the GIL: inflating has a thread of its own, and
hashing should have one (``read_ahead``), while the tar is read in a third.
"""

from __future__ import annotations

import bz2
import contextlib
import hashlib
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Final, Protocol

import zstandard

from imgstore.blocks import Bytes
from imgstore.errors import CorruptError, NoSpaceError, UnsupportedError
from imgstore.layers.pieces import PieceCursor
from imgstore.layers.read_ahead import read_ahead
from imgstore.layers.tar_header import BLOCK, is_header

inflate: ModuleType
try:
    from isal import isal_zlib
except ImportError:  # no wheels for this machine: half as fast
    inflate = zlib
else:
    inflate = isal_zlib

_GZIP_MAGIC: Final = b"\x1f\x8b\x08"
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_XZ_MAGIC: Final = b"\xfd7zXZ\0"
_BZIP2_MAGIC: Final = b"BZh"
_OTHERS: Final = ((_XZ_MAGIC, "xz"), (_BZIP2_MAGIC, "bzip2"), (b"\x04\x22\x4d\x18", "lz4"), (b"PK\x03\x04", "zip"))

PIECE_SIZE: Final = 1 << 20
_AHEAD: Final = 2
"""Pieces that inflating may be ahead of hashing."""

_FIRST_FEED, _LARGEST_FEED = 1 << 14, 1 << 18
"""Compressed bytes given to the decoder at once. A member that ends gives back a copy of what it did not use, and eStargz has a member a
file: so each begins with little."""

_MAX_WINDOW: Final = 128 << 20
"""What a decoder of Zstandard may be asked to remember; the most that ``zstd --long`` writes, and that containerd reads."""
_MAX_ZSTD_BLOCK: Final = 128 << 10

_XZ_MEMORY: Final = 128 << 20
"""What a decoder of xz may take; ``xz -9`` needs 65 MiB."""


class LayerStream:
    """A layer's uncompressed bytes; can be iterated once.

    Holds a few pieces, and what the decoder needs: 64 KiB for gzip, the frame's window (128 MiB at most) for Zstandard. What a small
    input inflates to does not change that.

    Attributes:
        size: uncompressed bytes that went by.
    """

    def __init__(self, chunks: Iterable[Bytes], *, max_size: int, piece_size: int = PIECE_SIZE) -> None:
        """Does not read yet.

        Args:
            chunks: the compressed bytes, in chunks of any length.
            max_size: uncompressed bytes that are too many when there is one more.
            piece_size: uncompressed bytes in a piece, about; never twice as many.
        """
        self._cursor = PieceCursor(chunks)
        self._max_size = max_size
        self._piece_size = piece_size
        self._hash = hashlib.sha256()
        self._started = False
        self._finished = False
        self.size = 0

    @property
    def diff_id(self) -> str:
        """``sha256:`` and the digest of all uncompressed bytes.

        Raises:
            RuntimeError: the stream was not read to its end.
        """
        if not self._finished:
            raise RuntimeError("LayerStream: the diff id is known only at the end")
        return "sha256:" + self._hash.hexdigest()

    def __iter__(self) -> Iterator[bytes]:
        """The uncompressed bytes, in pieces.

        Raises:
            CorruptError: damaged or cut off, no layer at all, or something other than zeros comes after the end of a gzip layer.
            UnsupportedError: another compression, or a Zstandard frame that needs too large a window.
            NoSpaceError: more than ``max_size`` bytes.
            RuntimeError: iterated for the second time.
        """
        if self._started:
            raise RuntimeError("LayerStream: a stream can be read once")
        self._started = True
        return self._pieces()

    def _pieces(self) -> Iterator[bytes]:
        inflated = _gathered(self._inflated(), self._piece_size)
        # Inflating and hashing take about as long as each other, and both let other threads run: two cores do both at once.
        with contextlib.closing(read_ahead(inflated, _AHEAD, name="imgstore-inflate")) as pieces:
            for piece in pieces:
                self.size += len(piece)
                if self.size > self._max_size:
                    raise NoSpaceError(f"layer has more than the {self._max_size} uncompressed bytes that it may have")
                self._hash.update(piece)
                yield piece
        self._finished = True

    def _inflated(self) -> Iterator[bytes]:
        cursor = self._cursor
        head = bytes(cursor.peek(BLOCK))
        if not head:
            raise CorruptError("layer is empty: it has 0 bytes")
        if head.startswith(_GZIP_MAGIC):
            return _gzip_pieces(cursor, self._piece_size, "layer")
        if head.startswith(_ZSTD_MAGIC) or _is_skippable(head[:4]):
            return _zstd_pieces(cursor, self._piece_size, "layer")
        if is_header(head):
            return _plain_pieces(cursor, self._piece_size)
        for magic, name in _OTHERS:
            if head.startswith(magic):
                raise UnsupportedError(f"layer is compressed with {name}; gzip, zstd and plain tar are read")
        raise CorruptError(f"layer is neither gzip nor zstd nor tar: it begins with {head[:8].hex(' ')}")


def is_compressed(head: bytes) -> bool:
    """Whether these, at least the first 8 bytes of an archive, begin something that `inflate_archive` inflates or refuses."""
    magics = (_GZIP_MAGIC, _ZSTD_MAGIC, *(magic for magic, _ in _OTHERS))
    return head.startswith(magics) or _is_skippable(head[:4])


def inflate_archive(chunks: Iterable[Bytes], *, piece_size: int = PIECE_SIZE) -> Iterator[bytes]:
    """The bytes of an archive that may be compressed with gzip, Zstandard, xz or bzip2; of any other, as they are.

    Holds a few pieces, and what the decoder needs: at most 128 MiB. How much comes out is for the caller to limit.

    Raises:
        CorruptError: damaged or cut off.
        UnsupportedError: another compression, or one that needs more memory.
    """
    cursor = PieceCursor(chunks)
    head = bytes(cursor.peek(8))
    if head.startswith(_GZIP_MAGIC):
        inflated = _gzip_pieces(cursor, piece_size, "archive")
    elif head.startswith(_ZSTD_MAGIC) or _is_skippable(head[:4]):
        inflated = _zstd_pieces(cursor, piece_size, "archive")
    elif head.startswith(_XZ_MAGIC):
        inflated = _stream_pieces(cursor, piece_size, "archive", "xz", _XZ_MAGIC, _make_xz_decoder)
    elif head.startswith(_BZIP2_MAGIC):
        inflated = _stream_pieces(cursor, piece_size, "archive", "bzip2", _BZIP2_MAGIC, bz2.BZ2Decompressor)
    else:
        for magic, name in _OTHERS:
            if head.startswith(magic):
                raise UnsupportedError(f"archive is compressed with {name}; gzip, zstd, xz, bzip2 and plain tar are read")
        inflated = _plain_pieces(cursor, piece_size)
    return _gathered(inflated, piece_size)


def _gathered(pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
    """Joins short pieces; none that comes out has ``2 * size`` bytes, if none of more than ``size`` comes in."""
    held: list[bytes] = []
    total = 0
    for piece in pieces:
        if not held and len(piece) >= size // 2:
            yield piece
            continue
        held.append(piece)
        total += len(piece)
        if total >= size:
            yield b"".join(held)
            held, total = [], 0
    if held:
        yield b"".join(held)


def _plain_pieces(cursor: PieceCursor, piece_size: int) -> Iterator[bytes]:
    while run := cursor.run(piece_size):
        yield bytes(run)


def _gzip_pieces(cursor: PieceCursor, piece_size: int, what: str) -> Iterator[bytes]:
    data = memoryview(b"")
    member = 0
    while True:
        start = cursor.offset - len(data)
        member += 1
        decoder = inflate.decompressobj(wbits=31)
        feed = _FIRST_FEED
        while not decoder.eof:
            if not data:
                data = memoryview(cursor.take(_LARGEST_FEED))
                if not data:
                    raise CorruptError(f"gzip member {member} at byte {start}: the {what} ends in the middle of it")
            fed = data[:feed]
            try:
                piece = decoder.decompress(fed, piece_size)
            except (inflate.error, zlib.error) as error:
                raise CorruptError(f"gzip member {member} at byte {start}: {error}") from None
            data = data[len(fed) - len(decoder.unconsumed_tail or decoder.unused_data) :]
            feed = min(2 * feed, _LARGEST_FEED)
            if piece:
                yield piece
        if len(data) < len(_GZIP_MAGIC):
            data = memoryview(bytes(data) + bytes(cursor.take(_LARGEST_FEED)))
        if 0 < len(data) < len(_GZIP_MAGIC) and _GZIP_MAGIC.startswith(data):
            raise CorruptError(
                f"gzip member {member + 1} at byte {cursor.offset - len(data)}: the {what} ends in the middle of it"
            )
        if bytes(data[:3]) != _GZIP_MAGIC:
            _expect_zeros(cursor, data, f"gzip member {member}", what)
            return


def _expect_zeros(cursor: PieceCursor, data: memoryview, last: str, what: str) -> None:
    """What is after the last member: nothing, or zeros, as tapes are padded and gzip(1) allows."""
    while data:
        if bytes(data).strip(b"\0"):
            raise CorruptError(f"{what} has something else than zeros after {last}, before byte {cursor.offset}")
        data = cursor.run(_LARGEST_FEED)


def _is_skippable(magic: bytes) -> bool:
    return len(magic) == 4 and magic[1:] == b"\x2a\x4d\x18" and magic[0] & 0xF0 == 0x50


def _zstd_pieces(cursor: PieceCursor, piece_size: int, what: str) -> Iterator[bytes]:
    """Decodes frame by frame.

    The decoder is given whole blocks, a few at a time: a block never makes more than 128 KiB, so a small input cannot make it allocate
    much, and the end of a frame is seen here, where python-zstandard's own readers take a frame that is cut off for a whole one.
    """
    context = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    while True:
        start = cursor.offset
        where = f"zstd frame at byte {start}"
        cut = f"{where}: the {what} ends in the middle of it"
        magic = bytes(cursor.take(4))
        if not magic:
            return
        if len(magic) < 4:
            raise CorruptError(cut)
        if _is_skippable(magic):
            length = int.from_bytes(_exactly(cursor, 4, cut), "little")
            if cursor.skip(length) < length:
                raise CorruptError(cut)
        elif magic == _ZSTD_MAGIC:
            yield from _zstd_frame(cursor, context, piece_size, where, cut)
        else:
            raise CorruptError(f"{where}: begins with {magic.hex(' ')}, which is no frame's magic")


def _zstd_frame(
    cursor: PieceCursor, context: zstandard.ZstdDecompressor, piece_size: int, where: str, cut: str
) -> Iterator[bytes]:
    header, has_checksum = _zstd_frame_header(cursor, where, cut)
    decoder = context.decompressobj(write_size=piece_size)
    blocks_at_once = max(1, piece_size // _MAX_ZSTD_BLOCK)
    fed = bytearray(_ZSTD_MAGIC + header)
    blocks = 0
    last = False
    while not last:
        block_header = _exactly(cursor, 3, cut)
        value = int.from_bytes(block_header, "little")
        last, kind, length = bool(value & 1), value >> 1 & 3, value >> 3
        if kind == 3 or length > _MAX_ZSTD_BLOCK:
            raise CorruptError(f"{where}: has a block of type {kind} and {length} bytes")
        fed += block_header
        fed += _exactly(cursor, 1 if kind == 1 else length, cut)
        blocks += 1
        if last and has_checksum:
            fed += _exactly(cursor, 4, cut)
        if last or blocks % blocks_at_once == 0:
            try:
                yield decoder.decompress(fed)
            except zstandard.ZstdError as error:
                raise CorruptError(f"{where}: {error}") from None
            fed = bytearray()
    if not decoder.eof:
        raise CorruptError(f"{where}: its last block does not end it")


def _zstd_frame_header(cursor: PieceCursor, where: str, cut: str) -> tuple[bytes, bool]:
    """Bytes of the header after the magic, and whether a checksum ends the frame (RFC 8878, 3.1.1.1)."""
    descriptor = _exactly(cursor, 1, cut)
    flags = descriptor[0]
    single_segment = bool(flags & 0x20)
    window_length = 0 if single_segment else 1
    dictionary_length = (0, 1, 2, 4)[flags & 3]
    content_length = (1 if single_segment else 0, 2, 4, 8)[flags >> 6]
    rest = _exactly(cursor, window_length + dictionary_length + content_length, cut)
    if single_segment:
        window = int.from_bytes(rest[dictionary_length:], "little")
    else:
        base = 1 << (10 + (rest[0] >> 3))
        window = base + base // 8 * (rest[0] & 7)
    if window > _MAX_WINDOW:
        raise UnsupportedError(f"{where}: needs a window of {window} bytes, more than {_MAX_WINDOW}")
    if any(rest[window_length : window_length + dictionary_length]):
        raise UnsupportedError(f"{where}: needs a dictionary")
    return descriptor + rest, bool(flags & 4)


def _exactly(cursor: PieceCursor, count: int, cut: str) -> bytes:
    data = cursor.take(count)
    if len(data) < count:
        raise CorruptError(cut)
    return bytes(data)


class _Decoder(Protocol):
    """A decoder of the standard library."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: Bytes, max_length: int = -1) -> bytes: ...


def _make_xz_decoder() -> _Decoder:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)


def _stream_pieces(
    cursor: PieceCursor, piece_size: int, what: str, name: str, magic: bytes, make_decoder: Callable[[], _Decoder]
) -> Iterator[bytes]:
    """Decodes streams, one after the other, with zeros after the last one."""
    data = memoryview(b"")
    position = 0
    number = 0
    while True:
        number += 1
        where = f"{name} stream {number} at byte {cursor.offset - len(data) + position}"
        decoder = make_decoder()
        feed = _FIRST_FEED
        while not decoder.eof:
            fed = data[:0]
            if decoder.needs_input:
                if position == len(data):
                    data, position = memoryview(cursor.take(_LARGEST_FEED)), 0
                if not data:
                    raise CorruptError(f"{where}: the {what} ends in the middle of it")
                fed = data[position : position + feed]
                position += len(fed)
                feed = min(2 * feed, _LARGEST_FEED)
            try:
                piece = decoder.decompress(fed, piece_size)
            except lzma.LZMAError as error:
                if "limit" in str(error):
                    raise UnsupportedError(f"{where}: needs more than {_XZ_MEMORY} bytes of memory to be read") from None
                raise CorruptError(f"{where}: {error}") from None
            except (OSError, EOFError) as error:
                raise CorruptError(f"{where}: {error}") from None
            if piece:
                yield piece
        position -= len(decoder.unused_data)
        if len(data) - position < len(magic):
            data, position = memoryview(bytes(data[position:]) + bytes(cursor.take(_LARGEST_FEED))), 0
        if bytes(data[position : position + len(magic)]) != magic:
            _expect_zeros(cursor, data[position:], f"{name} stream {number}", what)
            return
