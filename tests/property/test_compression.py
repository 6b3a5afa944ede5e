from __future__ import annotations

import gzip
import hashlib
import io
import itertools

import zstandard
from hypothesis import given
from hypothesis import strategies as st

from imgstore.errors import ImgstoreError
from imgstore.layers.compression import LayerStream
from imgstore.layers.read_ahead import read_ahead
from tests.raw_tar import END, file

MAX_SIZE = 1 << 22
TAR = file(b"a", bytes(range(256)) * 40) + END
MAGICS = st.sampled_from([b"", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18", TAR[:512]])


def inflate(chunks: list[bytes]) -> bytes:
    stream = LayerStream(chunks, max_size=MAX_SIZE)
    data = b"".join(read_ahead(stream, 2))
    assert stream.size == len(data) <= MAX_SIZE
    assert stream.diff_id == "sha256:" + hashlib.sha256(data).hexdigest()
    return data


def cut(data: bytes, at: list[int]) -> list[bytes]:
    places = sorted({place % (len(data) + 1) for place in at} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


@given(MAGICS, st.binary(max_size=2000))
def test_any_bytes_are_inflated_or_refused(magic: bytes, data: bytes) -> None:
    try:
        inflate([magic + data])
    except ImgstoreError:
        return


@given(
    st.sampled_from([gzip.compress(TAR), zstandard.compress(TAR)]),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=5),
)
def test_damaged_streams_are_inflated_or_refused(blob: bytes, edits: list[tuple[int, int]]) -> None:
    data = bytearray(blob)
    for at, value in edits:
        data[at % len(data)] = value
    try:
        inflate([bytes(data)])
    except ImgstoreError:
        return


@given(st.lists(st.binary(max_size=3000), max_size=5), st.booleans(), st.lists(st.integers(0, 1 << 16), max_size=20))
def test_members_and_frames_are_joined(parts: list[bytes], zstd: bool, at: list[int]) -> None:
    blob = b"".join(zstandard.compress(part) if zstd else gzip.compress(part) for part in [TAR, *parts])
    assert inflate(cut(blob, at)) == TAR + b"".join(parts)


@given(st.binary(max_size=200_000), st.integers(1, 19), st.booleans())
def test_reads_what_zstandard_writes(data: bytes, level: int, checksum: bool) -> None:
    out = io.BytesIO()
    with zstandard.ZstdCompressor(level=level, write_checksum=checksum).stream_writer(out, closefd=False) as writer:
        for start in range(0, len(data), 1000):
            writer.write(data[start : start + 1000])
            if start % 5000 == 0:
                writer.flush(zstandard.FLUSH_BLOCK)
    assert inflate([out.getvalue()]) == data
