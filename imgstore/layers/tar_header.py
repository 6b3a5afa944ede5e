"""The 512-byte tar header: layout, checksum, numbers; the bounds on what a tar may hold.

Sources: POSIX.1-2017 ``pax`` ("ustar Interchange Format"), GNU tar manual "Basic Tar Format", and libarchive's tar(5), which describes
v7 and all extensions in one place.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

from imgstore.blocks import Bytes
from imgstore.errors import CorruptError

BLOCK: Final = 512
"""Headers take one block; data is padded to whole blocks."""

MAGIC_POSIX: Final = b"ustar\0"
MAGIC_GNU: Final = b"ustar  \0"

HEADER: Final = struct.Struct("100s8s8s8s12s12s8s1s100s8s32s32s8s8s155s12s")
"""name mode uid gid size mtime chksum typeflag linkname magic+version uname gname devmajor devminor prefix padding."""

_HALVES = struct.Struct("256s256s")

MAX_OCTAL_8: Final = 0o7777777
"""Largest number of an 8-byte field in octal."""
MAX_OCTAL_12: Final = 0o77777777777
"""Largest number of a 12-byte field in octal."""

# No file system of Linux holds more than the first three; the others are far above what images hold, and small in memory.
MAX_PATH: Final = 4096
MAX_COMPONENT: Final = 255
MAX_LINK: Final = 4095
MAX_ID: Final = 2**32 - 2
MAX_XATTR_VALUE: Final = 1 << 16
MAX_EXTENDED: Final = 1 << 20
"""Bytes of all extended headers of one entry."""
MAX_RECORDS: Final = 1000
MAX_SPARSE: Final = 10_000
MAX_ENTRIES: Final = 10_000_000

_MAX_INT64: Final = 2**63 - 1


class TarError(CorruptError):
    """A tar that is damaged, or that two readers could take for two things. The message names entry and byte offset."""


class MalformedError(Exception):
    """What is wrong with the entry at hand; whoever reads the tar adds which entry that is. Never leaves this package."""


def checksum(block: Bytes, offset: int = 0) -> int:
    """Sum of the header's unsigned bytes, those of the checksum field itself counted as spaces."""
    # Adler-32 holds 1 + the sum of the bytes in its low half, modulo 65521, which 256 bytes cannot reach: 20 times as fast as sum().
    first, second = _HALVES.unpack_from(block, offset)
    adler32 = zlib.adler32
    return (adler32(first) & 0xFFFF) + (adler32(second) & 0xFFFF) - (adler32(first[148:156]) & 0xFFFF) + 255


def signed_checksum(block: Bytes, offset: int = 0) -> int:
    """The same sum of signed bytes, which some old tars wrote (Sun, and GNU before 1.12); both are taken by all readers."""
    field = range(148, 156)
    values = memoryview(block)[offset : offset + BLOCK].cast("b")
    return sum(32 if at in field else value for at, value in enumerate(values))


def is_header(block: Bytes) -> bool:
    """Whether these 512 bytes can begin a tar: a header whose checksum is right, or a block of zeros."""
    if len(block) != BLOCK:
        return False
    if bytes(block) == bytes(BLOCK):
        return True
    try:
        return number(bytes(block[148:156]), "checksum") in (checksum(block), signed_checksum(block))
    except MalformedError:
        return False


def number(field: bytes, name: str) -> int:
    """Number in a header field: octal digits ended by NUL or space, or base-256, big-endian, two's complement; empty is 0.

    Raises:
        MalformedError: neither form, or outside 64 bits.
    """
    if field[0] & 0x80:
        # GNU: the top bit says base-256, the next one is the sign.
        value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
        if field[0] & 0x40:
            value -= 1 << (8 * len(field) - 1)
        if not -_MAX_INT64 - 1 <= value <= _MAX_INT64:
            raise MalformedError(f"{name} field holds a number outside 64 bits: {field.hex()}")
        return value
    digits = field.partition(b"\0")[0].strip(b" ")
    if not digits:
        return 0
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise MalformedError(f"{name} field is {field!r}, no octal number")
    return int(digits, 8)


def text(field: bytes) -> bytes:
    """Text in a header field: up to the first NUL, or all of it."""
    return field.partition(b"\0")[0]


def padded(size: int) -> int:
    """``size`` rounded up to whole blocks."""
    return (size + 511) & ~511


def shown(name: bytes) -> str:
    """``name`` as a message may print it: quoted, control characters and other than ASCII escaped, at most 200 bytes of it."""
    return repr(name[:200])[1:] + ("..." if len(name) > 200 else "")
