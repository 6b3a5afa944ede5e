from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import tracemalloc
import zlib
from collections.abc import Callable, Iterator

import pytest
import zstandard

from imgstore.errors import CorruptError, ImgstoreError, NoSpaceError, UnsupportedError
from imgstore.layers import compression
from imgstore.layers.compression import LayerStream, inflate_archive, is_compressed
from tests.raw_tar import END, file

TAR = b"".join(file(b"file-%d" % number, b"content %d\n" % number * number) for number in range(300)) + END
GZIP = gzip.compress(TAR, mtime=0)
ZSTD = zstandard.ZstdCompressor(write_checksum=True).compress(TAR)


def inflate(blob: bytes, chunk: int = 1 << 16, **options: int) -> bytes:
    stream = LayerStream(cut(blob, chunk), max_size=options.pop("max_size", 1 << 30), **options)
    data = b"".join(stream)
    assert stream.size == len(data)
    assert stream.diff_id == "sha256:" + hashlib.sha256(data).hexdigest()
    return data


def cut(data: bytes, size: int) -> Iterator[memoryview]:
    view = memoryview(data)
    return (view[start : start + size] for start in range(0, len(data), size))


def gzip_members(*parts: bytes) -> bytes:
    return b"".join(gzip.compress(part) for part in parts)


def zstd_frames(*parts: bytes) -> bytes:
    return b"".join(zstandard.compress(part) for part in parts)


def skippable(content: bytes, number: int = 0) -> bytes:
    return bytes([0x50 + number]) + b"\x2a\x4d\x18" + len(content).to_bytes(4, "little") + content


FORMS = {
    "plain": TAR,
    "gzip": GZIP,
    "gzip, three members": gzip_members(TAR[:1000], b"", TAR[1000:]),
    "gzip, a member every 500 bytes": gzip_members(*(TAR[start : start + 500] for start in range(0, len(TAR), 500))),
    "gzip, padded with zeros": GZIP + bytes(100_000),
    "gzip, not compressed": gzip.compress(TAR, 0),
    "zstd": ZSTD,
    "zstd, no checksum, no size": zstandard.ZstdCompressor(write_content_size=False).compress(TAR),
    "zstd, frames": zstd_frames(TAR[:1000], b"", TAR[1000:]),
    "zstd, a frame every 500 bytes": zstd_frames(*(TAR[start : start + 500] for start in range(0, len(TAR), 500))),
    "zstd, skippable frames": skippable(b"first") + ZSTD + skippable(b"", 15) + skippable(b"table of contents" * 999, 7),
}


@pytest.mark.parametrize("chunk", [1 << 20, 4096, 61])
@pytest.mark.parametrize("form", FORMS)
def test_inflates(form: str, chunk: int) -> None:
    assert inflate(FORMS[form], chunk) == TAR


@pytest.mark.parametrize("form", FORMS)
def test_inflates_with_zlib_where_there_is_no_isal(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "inflate", zlib)
    assert inflate(FORMS[form]) == TAR
    if form == "gzip":
        with pytest.raises(CorruptError, match="incorrect data check"):
            inflate(GZIP[:-8] + b"\0" * 8)


@pytest.mark.parametrize("form", FORMS)
def test_a_form_that_is_cut_off_is_refused(form: str) -> None:
    blob = FORMS[form]
    if form in ("plain", "gzip, padded with zeros"):
        return
    whole = {len(blob)}
    for cut_at in sorted({*range(1, 40), *range(len(blob) - 40, len(blob)), *range(40, len(blob), 997)}):
        try:
            assert TAR.startswith(inflate(blob[:cut_at]))
            whole.add(cut_at)
        except CorruptError as error:
            assert "middle of" in str(error) or "neither" in str(error)
    # Where a member or frame ends, and only there, a shorter blob is a proper one; the diff id then tells.
    if form in ("gzip", "gzip, not compressed", "zstd", "zstd, no checksum, no size"):
        assert whole == {len(blob)}


@pytest.mark.parametrize("at", range(0, len(GZIP), 97))
def test_gzip_damage_is_seen(at: int) -> None:
    if 4 <= at < 10:
        return  # time, flags and system in the header have no checksum
    damaged = GZIP[:at] + bytes([GZIP[at] ^ 0x40]) + GZIP[at + 1 :]
    with pytest.raises(ImgstoreError):
        inflate(damaged)


@pytest.mark.parametrize("tail", [-8, -1])
def test_gzip_trailer_is_verified(tail: int) -> None:
    damaged = bytearray(GZIP)
    damaged[tail] ^= 1
    with pytest.raises(CorruptError, match=r"^gzip member 1 at byte 0: .*hecksum"):
        inflate(bytes(damaged))


@pytest.mark.parametrize("at", range(4, len(ZSTD), 97))
def test_zstd_damage_is_seen_or_does_not_matter(at: int) -> None:
    damaged = ZSTD[:at] + bytes([ZSTD[at] ^ 0x40]) + ZSTD[at + 1 :]
    try:
        assert inflate(damaged) == TAR  # a table may hold bits that decide nothing
    except (CorruptError, UnsupportedError):
        return


def test_zstd_checksum_is_verified() -> None:
    with pytest.raises(CorruptError, match=r"^zstd frame at byte 0: .*doesn't match checksum"):
        inflate(ZSTD[:-1] + bytes([ZSTD[-1] ^ 1]))


@pytest.mark.parametrize(
    ("blob", "error", "words"),
    [
        (b"", CorruptError, "layer is empty"),
        (b"\x1f\x8b", CorruptError, "neither gzip nor zstd nor tar"),
        (b"<html>504</html>" * 99, CorruptError, "it begins with 3c 68 74 6d 6c 3e 35 30"),
        (TAR[:511], CorruptError, "neither gzip nor zstd nor tar"),
        (lzma.compress(TAR), UnsupportedError, "compressed with xz"),
        (bz2.compress(TAR), UnsupportedError, "compressed with bzip2"),
        (b"\x04\x22\x4d\x18" + TAR, UnsupportedError, "compressed with lz4"),
        (GZIP + b"x", CorruptError, "something else than zeros after gzip member 1"),
        (GZIP + b"\0\0x", CorruptError, "something else than zeros after gzip member 1"),
        (GZIP + bytes(70_000) + GZIP, CorruptError, "something else than zeros after gzip member 1"),
        (GZIP + GZIP[:7], CorruptError, r"gzip member 2 at byte \d+: the layer ends in the middle"),
        (GZIP + ZSTD, CorruptError, "something else than zeros"),
        (ZSTD + b"\0\0\0\0", CorruptError, "no frame's magic"),
        (ZSTD + GZIP, CorruptError, "no frame's magic"),
        (skippable(b"x" * 100)[:-1], CorruptError, "in the middle"),
        (b"\x50\x2a\x4d\x18\xff\xff\xff\xff", CorruptError, "in the middle"),
        (b"\x28\xb5\x2f\xfd\x00\x90" + bytes(99), UnsupportedError, "window of 268435456 bytes, more than 134217728"),
        (b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 8, UnsupportedError, "window of 18446744073709551615 bytes"),
        (b"\x28\xb5\x2f\xfd\x01\x00\x05" + bytes(99), UnsupportedError, "needs a dictionary"),
        (b"\x28\xb5\x2f\xfd\x00\x00\x07\x00\x00", CorruptError, "block of type 3"),
    ],
)
def test_refuses(blob: bytes, error: type[ImgstoreError], words: str) -> None:
    with pytest.raises(error, match=words):
        inflate(blob)


def test_max_size_is_the_last_that_is_taken() -> None:
    for blob in (TAR, GZIP, ZSTD):
        assert inflate(blob, max_size=len(TAR)) == TAR
        with pytest.raises(NoSpaceError, match=f"more than the {len(TAR) - 1} uncompressed bytes"):
            inflate(blob, max_size=len(TAR) - 1)


def gzip_bomb(size: int) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(size >> 20)) + packer.flush()


def zstd_bomb(size: int) -> bytes:
    packer = zstandard.ZstdCompressor(level=1).compressobj()
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(size >> 20)) + packer.flush()


@pytest.mark.parametrize("bomb", [gzip_bomb(128 << 20), zstd_bomb(128 << 20)], ids=["gzip", "zstd"])
def test_bombs_take_no_memory(bomb: bytes) -> None:
    stream = LayerStream([bomb], max_size=100 << 20)
    largest = 0
    tracemalloc.start()
    try:
        with pytest.raises(NoSpaceError):
            for piece in stream:
                largest = max(largest, len(piece))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert largest < 2 << 20
    assert peak < 12 << 20


@pytest.mark.parametrize("form", FORMS)
def test_pieces_are_of_the_size_asked_for(form: str) -> None:
    pieces = list(LayerStream(cut(FORMS[form], 1000), max_size=1 << 30, piece_size=1 << 17))
    assert max(len(piece) for piece in pieces) < 2 << 17
    assert all(len(piece) >= 1 << 16 for piece in pieces[:-1]) or form == "plain"


def test_can_be_read_once() -> None:
    stream = LayerStream([GZIP], max_size=1 << 30)
    pieces = iter(stream)
    with pytest.raises(RuntimeError, match="can be read once"):
        iter(stream)
    with pytest.raises(RuntimeError, match="known only at the end"):
        _ = stream.diff_id
    list(pieces)
    assert stream.diff_id.startswith("sha256:")


def test_does_not_read_before_it_is_iterated() -> None:
    asked = []

    def chunks() -> Iterator[bytes]:
        asked.append(1)
        yield GZIP

    stream = LayerStream(chunks(), max_size=1 << 30)
    assert asked == []
    list(stream)
    assert asked == [1]


ARCHIVES = FORMS | {
    "no tar at all": b"not a tar, and not compressed",
    "xz": lzma.compress(TAR),
    "xz, three streams": lzma.compress(TAR[:1000]) + lzma.compress(b"") + lzma.compress(TAR[1000:]),
    "xz, padded with zeros": lzma.compress(TAR, check=lzma.CHECK_CRC32) + bytes(100_000),
    "bzip2": bz2.compress(TAR),
    "bzip2, a stream every 500 bytes": b"".join(bz2.compress(TAR[start : start + 500]) for start in range(0, len(TAR), 500)),
    "bzip2, padded with zeros": bz2.compress(TAR) + bytes(100_000),
}


@pytest.mark.parametrize("chunk", [1, 1000, 1 << 20])
@pytest.mark.parametrize("form", ARCHIVES)
def test_archives_of_all_forms(form: str, chunk: int) -> None:
    data = ARCHIVES[form]
    plain = form in ("plain", "no tar at all")
    assert (data if plain else TAR) == b"".join(inflate_archive(cut(data, chunk)))
    assert is_compressed(data[:8]) is not plain


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (lzma.compress(TAR)[:-1], CorruptError, "xz stream 1 at byte 0: the archive ends in the middle of it"),
        (bz2.compress(TAR)[:-1], CorruptError, "bzip2 stream 1 at byte 0: the archive ends in the middle of it"),
        (bz2.compress(TAR) * 2 + b"BZh", CorruptError, r"bzip2 stream 3 at byte \d+: the archive ends in the middle"),
        (GZIP[:-1], CorruptError, "gzip member 1 at byte 0: the archive ends in the middle"),
        (ZSTD[:-1], CorruptError, "zstd frame at byte 0: the archive ends in the middle"),
        (lzma.compress(TAR) + b"x", CorruptError, "archive has something else than zeros after xz stream 1"),
        (bz2.compress(TAR) + b"\0x", CorruptError, "archive has something else than zeros after bzip2 stream 1"),
        (b"\xfd7zXZ\0" + bytes(100), CorruptError, "xz stream 1 at byte 0: "),
        (b"BZh9" + bytes(100), CorruptError, "bzip2 stream 1 at byte 0: "),
        (lzma.compress(TAR)[:200] + b"x" + lzma.compress(TAR)[201:], CorruptError, "xz stream 1"),
        (b"PK\x03\x04" + bytes(100), UnsupportedError, "archive is compressed with zip"),
        (b"\x04\x22\x4d\x18" + bytes(100), UnsupportedError, "compressed with lz4"),
    ],
)
def test_archives_that_are_damaged(data: bytes, error: type[ImgstoreError], words: str) -> None:
    with pytest.raises(error, match=words):
        list(inflate_archive(cut(data, 1000)))


def test_xz_that_needs_much_memory() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 256 << 20}]
    data = lzma.compress(TAR, filters=filters)
    with pytest.raises(UnsupportedError, match="needs more than 134217728 bytes of memory"):
        list(inflate_archive([data]))


@pytest.mark.parametrize("compress", [lzma.compress, bz2.compress])
def test_a_bomb_comes_out_in_pieces(compress: Callable[[bytes], bytes]) -> None:
    assert max(map(len, inflate_archive([compress(bytes(64 << 20))]))) < 2 << 20
