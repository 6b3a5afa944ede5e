"""The hash by which big directories are indexed: half of MD4 (``fs/ext4/hash.c``), over unsigned or signed bytes."""

from __future__ import annotations

import struct
from collections.abc import Sequence

HALF_MD4 = 1
"""Version of the hash, as the superblock and the root of an index state it; whether bytes are signed is the superblock's."""

_WORDS = struct.Struct(">8I")
_INITIAL = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)
_MASK = 0xFFFFFFFF
_END = 0xFFFFFFFE  # stands for the end of a directory in readdir cookies
_K2 = 0x5A827999
_K3 = 0x6ED9EBA1


def hash_name(name: bytes, seed: Sequence[int], *, signed: bool = False) -> tuple[int, int]:
    """(hash, minor hash) of a name; the hash is even, for its lowest bit marks a collision in the index.

    Args:
        seed: four 32-bit numbers of the superblock; all zero stands for those of MD4.
        signed: count bytes beyond ASCII as negative (``str2hashbuf_signed``).
    """
    a, b, c, d = seed if any(seed) else _INITIAL
    left = len(name)
    position = 0
    while left > 0:
        chunk = name[position : position + 32]
        if left < 32:
            # The rest of the last word is filled from the left, all words after it whole, with the length.
            fill = bytes((left & 0xFF,))
            whole = left & ~3
            chunk = (chunk[:whole] + fill * (4 - (left & 3)) + chunk[whole:]).ljust(32, fill)
        words = _WORDS.unpack(chunk)
        if signed and not chunk.isascii():
            words = _signed_words(words, name[position : position + 32])
        a, b, c, d = _transform(a, b, c, d, *words)
        position += 32
        left -= 32
    value = b & ~1
    return (_END - 2 if value == _END else value), c


def _signed_words(words: Sequence[int], name: bytes) -> tuple[int, ...]:
    """``words`` as they are when bytes of ``name`` from 0x80 on count 256 less, each before it is shifted to its place."""
    out = list(words)
    for position, byte in enumerate(name):
        if byte & 0x80:
            last = min(position | 3, len(name) - 1)  # of the word
            out[position >> 2] -= 256 << 8 * (last - position)
    return tuple(word & _MASK for word in out)


def _transform(
    a0: int, b0: int, c0: int, d0: int, w0: int, w1: int, w2: int, w3: int, w4: int, w5: int, w6: int, w7: int
) -> tuple[int, int, int, int]:
    """``half_md4_transform``, unrolled: one call instead of 24 is the difference between 20 and 7 microseconds a name."""
    a, b, c, d = a0, b0, c0, d0
    a = (a + (d ^ (b & (c ^ d))) + w0) & _MASK
    a = (a << 3 | a >> 29) & _MASK
    d = (d + (c ^ (a & (b ^ c))) + w1) & _MASK
    d = (d << 7 | d >> 25) & _MASK
    c = (c + (b ^ (d & (a ^ b))) + w2) & _MASK
    c = (c << 11 | c >> 21) & _MASK
    b = (b + (a ^ (c & (d ^ a))) + w3) & _MASK
    b = (b << 19 | b >> 13) & _MASK
    a = (a + (d ^ (b & (c ^ d))) + w4) & _MASK
    a = (a << 3 | a >> 29) & _MASK
    d = (d + (c ^ (a & (b ^ c))) + w5) & _MASK
    d = (d << 7 | d >> 25) & _MASK
    c = (c + (b ^ (d & (a ^ b))) + w6) & _MASK
    c = (c << 11 | c >> 21) & _MASK
    b = (b + (a ^ (c & (d ^ a))) + w7) & _MASK
    b = (b << 19 | b >> 13) & _MASK
    a = (a + ((b & c) + ((b ^ c) & d)) + w1 + _K2) & _MASK
    a = (a << 3 | a >> 29) & _MASK
    d = (d + ((a & b) + ((a ^ b) & c)) + w3 + _K2) & _MASK
    d = (d << 5 | d >> 27) & _MASK
    c = (c + ((d & a) + ((d ^ a) & b)) + w5 + _K2) & _MASK
    c = (c << 9 | c >> 23) & _MASK
    b = (b + ((c & d) + ((c ^ d) & a)) + w7 + _K2) & _MASK
    b = (b << 13 | b >> 19) & _MASK
    a = (a + ((b & c) + ((b ^ c) & d)) + w0 + _K2) & _MASK
    a = (a << 3 | a >> 29) & _MASK
    d = (d + ((a & b) + ((a ^ b) & c)) + w2 + _K2) & _MASK
    d = (d << 5 | d >> 27) & _MASK
    c = (c + ((d & a) + ((d ^ a) & b)) + w4 + _K2) & _MASK
    c = (c << 9 | c >> 23) & _MASK
    b = (b + ((c & d) + ((c ^ d) & a)) + w6 + _K2) & _MASK
    b = (b << 13 | b >> 19) & _MASK
    a = (a + (b ^ c ^ d) + w3 + _K3) & _MASK
    a = (a << 3 | a >> 29) & _MASK
    d = (d + (a ^ b ^ c) + w7 + _K3) & _MASK
    d = (d << 9 | d >> 23) & _MASK
    c = (c + (d ^ a ^ b) + w2 + _K3) & _MASK
    c = (c << 11 | c >> 21) & _MASK
    b = (b + (c ^ d ^ a) + w6 + _K3) & _MASK
    b = (b << 15 | b >> 17) & _MASK
    a = (a + (b ^ c ^ d) + w1 + _K3) & _MASK
    a = (a << 3 | a >> 29) & _MASK
    d = (d + (a ^ b ^ c) + w5 + _K3) & _MASK
    d = (d << 9 | d >> 23) & _MASK
    c = (c + (d ^ a ^ b) + w0 + _K3) & _MASK
    c = (c << 11 | c >> 21) & _MASK
    b = (b + (c ^ d ^ a) + w4 + _K3) & _MASK
    b = (b << 15 | b >> 17) & _MASK
    return (a0 + a) & _MASK, (b0 + b) & _MASK, (c0 + c) & _MASK, (d0 + d) & _MASK
