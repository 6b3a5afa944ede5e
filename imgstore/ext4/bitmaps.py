"""Bitmaps as ext4 keeps them: bit ``n`` is bit ``n & 7`` of byte ``n >> 3``. Worked on by ranges, never bit by bit."""

from __future__ import annotations

import re
from collections.abc import Iterator

_CLEAR = re.compile("0+")


def set_bits(bitmap: bytearray, start: int, count: int) -> None:
    """Sets ``count`` bits from bit ``start``."""
    _change(bitmap, start, count, True)


def clear_bits(bitmap: bytearray, start: int, count: int) -> None:
    """Clears ``count`` bits from bit ``start``."""
    _change(bitmap, start, count, False)


def _change(bitmap: bytearray, start: int, count: int, value: bool) -> None:
    end = start + count
    while start < end and (start & 7 or end - start < 8):
        stop = min(end, (start | 7) + 1)
        mask = ((1 << (stop - start)) - 1) << (start & 7)
        bitmap[start >> 3] = bitmap[start >> 3] | mask if value else bitmap[start >> 3] & ~mask
        start = stop
    whole = (end - start) >> 3
    if whole > 0:
        bitmap[start >> 3 : (start >> 3) + whole] = (b"\xff" if value else b"\0") * whole
        start += whole * 8
    if start < end:
        mask = (1 << (end - start)) - 1
        bitmap[start >> 3] = bitmap[start >> 3] | mask if value else bitmap[start >> 3] & ~mask


def count_bits(bitmap: bytes | bytearray, start: int, count: int) -> int:
    """How many of ``count`` bits from bit ``start`` are set."""
    first, last = start >> 3, (start + count + 7) >> 3
    value = int.from_bytes(bitmap[first:last], "little") >> (start & 7)
    return (value & ((1 << count) - 1)).bit_count()


def highest_bit(bitmap: bytes | bytearray, count: int) -> int:
    """The last of the first ``count`` bits that is set, or -1."""
    return (int.from_bytes(bitmap, "little") & ((1 << count) - 1)).bit_length() - 1


def clear_runs(bitmap: bytes | bytearray, count: int) -> Iterator[tuple[int, int]]:
    """(first bit, length) of the runs of clear bits among the first ``count``, ascending; as the bitmap is now."""
    bits = f"{int.from_bytes(bitmap, 'little') & ((1 << count) - 1):0{count}b}"[::-1]
    return ((match.start(), match.end() - match.start()) for match in _CLEAR.finditer(bits))
