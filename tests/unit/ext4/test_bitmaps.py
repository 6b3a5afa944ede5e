from __future__ import annotations

import random

import pytest

from imgstore.ext4.bitmaps import clear_bits, clear_runs, count_bits, highest_bit, set_bits


@pytest.mark.parametrize("start", [0, 1, 7, 8, 9, 63])
@pytest.mark.parametrize("count", [0, 1, 6, 7, 8, 9, 16, 17, 64])
def test_ranges(start: int, count: int) -> None:
    bits = [start <= bit < start + count for bit in range(128)]
    bitmap = bytearray(16)
    set_bits(bitmap, start, count)
    assert [bool(bitmap[bit >> 3] >> (bit & 7) & 1) for bit in range(128)] == bits
    assert count_bits(bitmap, 0, 128) == count
    assert count_bits(bitmap, start, count) == count
    inverse = bytearray(b"\xff" * 16)
    clear_bits(inverse, start, count)
    assert [not inverse[bit >> 3] >> (bit & 7) & 1 for bit in range(128)] == bits
    assert highest_bit(bitmap, 128) == (start + count - 1 if count else -1)


def test_highest_bit_looks_at_the_first_only() -> None:
    assert highest_bit(b"\x05\xff", 8) == 2


def test_clear_runs_tile_what_is_clear() -> None:
    random_ = random.Random(1)
    bitmap = bytearray(random_.getrandbits(8) & random_.getrandbits(8) for _ in range(512))
    copy = bytearray(bitmap)
    for start, length in clear_runs(bitmap, 4000):
        assert count_bits(copy, start, length) == 0
        set_bits(copy, start, length)
    assert count_bits(copy, 0, 4000) == 4000
    assert copy[500:] == bitmap[500:]


def test_clear_runs_are_maximal() -> None:
    assert list(clear_runs(b"\x0f\xf0", 16)) == [(4, 8)]
    assert list(clear_runs(b"\x00\x00", 16)) == [(0, 16)]
    assert list(clear_runs(b"\xff\xff", 16)) == []
