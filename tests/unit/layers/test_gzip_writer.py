"""Layers compressed for a registry."""

from __future__ import annotations

import gzip
import random
import zlib
from collections.abc import Iterator

import pytest

from imgstore.layers import gzip_writer
from imgstore.layers.gzip_writer import compress

DATA = b"".join(bytes([value]) * (value % 7) for value in random.Random(1).randbytes(1_500_000))


def cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


@pytest.mark.parametrize("data", [b"", b"x", DATA[: 1 << 20], DATA])
def test_others_read_it(data: bytes) -> None:
    pieces = list(compress(cut(data, 1 << 20)))
    assert all(pieces)
    assert gzip.decompress(b"".join(pieces)) == data


@pytest.mark.parametrize("library", ["isal", "zlib"])
def test_the_bytes_do_not_depend_on_how_the_tar_is_cut(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if library == "zlib":
        monkeypatch.setattr(gzip_writer, "deflate", zlib)
    packed = b"".join(compress([DATA]))
    assert len(packed) < len(DATA) * 2 // 3
    for size in (4096, 777_777, (1 << 20) + 1):
        assert b"".join(compress(cut(DATA, size))) == packed


def test_the_header_has_no_time_and_no_name() -> None:
    header = b"".join(compress([b"x"]))[:9]
    assert header == b"\x1f\x8b\x08\x00\0\0\0\0\x00"
