from __future__ import annotations

import hashlib
import io
import random
import re
import tarfile
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace

import pytest
import zstandard
from crc32c import crc32c

from imgstore.blocks import Bytes, MemoryBlockDevice
from imgstore.changes import Entry
from imgstore.errors import CorruptError, ImgstoreError, NoSpaceError, UnsupportedError
from imgstore.ext4.check import check_file_system
from imgstore.ext4.reader import FileSystem
from imgstore.layers import recipe as recipes
from imgstore.layers.recipe import RecipeEnd, RecipeHeader, RecipeWriter, SectionHeader
from imgstore.layers.tar_reader import read_changes
from tests.ext4_layers import formatted
from tests.hostile_tars import TREE_ATTACKS
from tests.raw_tar import END, base256, file, header, long_name, padded, pax, sparse_block, sparse_header
from tests.recipes import ByteFile, Recorded, in_pieces, record

CHANCE = random.Random(4)
MIXED = CHANCE.randbytes(9000) + bytes(3 * 4096 + 17) + CHANCE.randbytes(70_000) + bytes(10_000)
SPARSE_1_0 = padded(b"2\n100\n5000\n40000\n4097\n") + CHANCE.randbytes(9097)

TARS = {
    **TREE_ATTACKS,
    "no end": file(b"a", b"data"),
    "one block of zeros": file(b"a", b"data") + bytes(512),
    "no entries": END,
    "many zeros behind": file(b"a", b"data") + bytes(300_000),
    "odd number of zeros behind": file(b"a", b"data") + bytes(12_345),
    "odd padding": header(b"a", size=3) + b"abc" + b"\xff" * 509 + file(b"b", b"d" * 511)[:-1] + b"x" + END,
    "the same file again and again": b"".join(file(b"a", CHANCE.randbytes(n)) for n in (1, 9000, 4096, 70_000)) + END,
    "file, then a directory in its place": file(b"a", b"data" * 3000) + file(b"a/", flag=b"5") + file(b"a/b", b"more") + END,
    "directory, then a file in its place": file(b"a/b", b"data" * 3000) + file(b"a", b"more" * 3000) + END,
    "hard link with its file replaced": file(b"a", b"data") + file(b"b", flag=b"1", link=b"a") + file(b"a", b"new") + END,
    "zeros": file(b"a", bytes(300_000)) + file(b"b", MIXED) + file(b"c", bytes(5)) + END,
    "old whiteouts": file(b".wh.a", flag=b"1", link=b".wh..wh.aufs") + file(b".wh..wh.aufs", b"unread" * 200) + END,
    "long names": long_name(b"n/" * 150 + b"n") + file(b"n", b"data" * 300) + long_name(b"m" * 200) + file(b"m", MIXED) + END,
    "PAX": pax((b"path", b"p" * 200), (b"mtime", b"-1.5"), (b"SCHILY.xattr.user.a", b"v")) + file(b"a", MIXED) + END,
    "global PAX": pax((b"comment", b"c" * 40), flag=b"g") + file(b"a", b"data") + END,
    "base-256 size": header(b"a", size=base256(5, 12)) + padded(b"12345") + END,
    "sparse, GNU": sparse_header([(10, 10), (8192, 502)], 20_000, 512) + CHANCE.randbytes(512) + file(b"b", b"data") + END,
    "sparse, GNU, of many runs": (
        sparse_header([(n * 5000, 100) for n in range(4)], 200_000, 2500, extended=True)
        + sparse_block([(n * 5000, 100) for n in range(4, 25)])
        + padded(CHANCE.randbytes(2500))
        + END
    ),
    "sparse, PAX 0.1": (
        pax((b"GNU.sparse.size", b"100000"), (b"GNU.sparse.map", b"3,7,4096,4096,50000,1"))
        + file(b"s", CHANCE.randbytes(4104))
        + END
    ),
    "sparse, PAX 1.0": (
        pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"50000"))
        + header(b"s", size=len(SPARSE_1_0))
        + padded(SPARSE_1_0)
        + END
    ),
    "sparse, with zeros stored": sparse_header([(4000, 20_000)], 30_000, 20_000) + padded(bytes(20_000)) + END,
    "sparse, all hole": sparse_header([(9000, 0)], 9000, 0) + END,
}


@pytest.fixture(scope="module")
def recorded() -> tuple[Recorded, MemoryBlockDevice]:
    """A layer with a bit of everything, of several sections."""
    device = formatted()
    return record(
        in_pieces(TARS["zeros"][:-1024] + b"".join(file(b"d%d" % n, b"x" * n) for n in range(4000)), 1 << 20), device
    ), device


@pytest.mark.parametrize("piece_size", [509, 4096, 1 << 20])
@pytest.mark.parametrize("name", TARS)
def test_makes_the_same_bytes(name: str, piece_size: int) -> None:
    device = formatted()
    try:
        made = record(in_pieces(TARS[name], piece_size), device)
    except ImgstoreError:
        assert name in TREE_ATTACKS
        return
    assert b"".join(made.rebuild(device)) == TARS[name]


def test_every_cut() -> None:
    """Headers, maps, contents and padding that lie across the end of a piece."""
    tar = TARS["sparse, PAX 1.0"][:-1024] + TARS["odd padding"]
    for at in range(0, len(tar), 97):
        device = formatted()
        assert b"".join(record([tar[:at], b"", tar[at:]], device).rebuild(device)) == tar


def test_layers_of_a_chain_each_keep_their_own() -> None:
    """What a layer takes away again, and what a later one puts in its place."""
    device = formatted()
    first = file(b"a", CHANCE.randbytes(50_000)) + END
    assert b"".join(record([first], device).rebuild(device)) == first
    second = file(b".wh.a") + file(b"b", CHANCE.randbytes(50_000)) + file(b"b", CHANCE.randbytes(10_000)) + END
    assert b"".join(record([second], device).rebuild(device)) == second


def test_disk_nearly_full() -> None:
    """A layer takes again the blocks that it frees of others, but not those that it wrote itself."""
    device = formatted()
    record([file(b"old", CHANCE.randbytes(20 << 20)) + file(b"rest", CHANCE.randbytes(4 << 20)) + END], device)
    free = FileSystem(device).super_block.free_blocks_count_lo * 4096
    tar = file(b"new", CHANCE.randbytes(free - (2 << 20))) + file(b".wh.old")
    tar += b"".join(file(b"new", CHANCE.randbytes(4 << 20)) for _ in range(4)) + file(b"new", b"x") + END
    made = record(in_pieces(tar, 1 << 20), device)
    assert b"".join(made.rebuild(device)) == tar
    assert list(check_file_system(device)) == []
    assert FileSystem(device).super_block.free_blocks_count_lo * 4096 > free + (19 << 20)
    tar = b"".join(file(b"newest", CHANCE.randbytes(16 << 20)) for _ in range(8)) + END
    with pytest.raises(NoSpaceError, match="newest: no block is free"):
        record(in_pieces(tar, 1 << 20), device)


def test_the_same_recipe_however_the_tar_came() -> None:
    tar = b"".join(file(b"%d" % n, CHANCE.randbytes(n)) for n in range(4000)) + bytes(5 << 20)
    first, *others = (bytes(record(in_pieces(tar, size), formatted()).file.data) for size in (1 << 20, 100_003, len(tar)))
    assert first.count(b"part") == -(-(len(tar) - sum(range(4000))) >> 20)
    assert others == [first, first]


def test_many_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a section holds, of one file."""
    monkeypatch.setattr(recipes, "MAX_RUNS", 100)
    device = formatted()
    tar = file(b"a", (CHANCE.randbytes(4096) + bytes(4096)) * 500) + file(b"b", b"x") + END
    made = record(in_pieces(tar, 1 << 20), device)
    assert made.file.data.count(b"part") > 9
    assert b"".join(made.rebuild(device)) == tar


def test_reads_long_runs_of_the_device(recorded: tuple[Recorded, MemoryBlockDevice]) -> None:
    made, device = recorded
    reads = []

    class Counted(MemoryBlockDevice):
        def read(self, offset: int, length: int) -> bytes:
            reads.append(length)
            return device.read(offset, length)

    pieces = list(made.rebuild(Counted(device.size)))
    assert sum(map(len, pieces)) == made.size
    assert max(map(len, pieces)) <= 4 << 20
    assert len(reads) < 60
    assert max(reads) <= 1 << 20


def test_memory_is_bounded() -> None:
    """Of writing and of reading: entries of nothing, much of nothing behind, and a file of zeros."""

    def tar() -> Iterator[bytes]:
        for number in range(8):
            yield b"".join(file(b"d/%d/%d" % (number, entry)) for entry in range(1000)) + header(b"z", size=8 << 20)
            yield bytes(8 << 20)
        for _ in range(20):
            yield bytes(1 << 20)

    device = formatted(256 << 20)
    tracemalloc.start()
    try:
        recipe_file = ByteFile()
        writer = RecipeWriter(recipe_file)
        for change in read_changes(writer.follow(tar()), capacity=1 << 40, announce=writer.announce):
            if isinstance(change, Entry) and change.size:
                writer.place(None, sum(map(len, change.data)))
        size = sum(map(len, tar()))
        made = Recorded(recipe_file, size, "sha256:" + sha256_of(tar()))
        writer.finish(size, made.diff_id)
        for _ in made.rebuild(device):
            pass
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()
    assert recipe_file.size < size // 500


def sha256_of(pieces: Iterator[bytes]) -> str:
    total = hashlib.sha256()
    for piece in pieces:
        total.update(piece)
    return total.hexdigest()


def test_a_tar_that_was_not_placed_is_refused() -> None:
    writer = RecipeWriter(ByteFile())
    for _ in read_changes(writer.follow([TARS["PAX"]]), capacity=1 << 30, announce=writer.announce):
        pass
    with pytest.raises(ValueError, match=f"{len(TARS['PAX'])} went by, and {len(MIXED)} of them have no place"):
        writer.finish(len(TARS["PAX"]), "sha256:" + "0" * 64)


# Damage


def test_every_damaged_byte_is_found() -> None:
    device = formatted()
    made = record([TARS["zeros"]], device)
    for at in range(made.file.size):
        made.file.data[at] ^= 0x41
        with pytest.raises(CorruptError, match=r"disks/layer\.recipe"):
            drain(made.rebuild(device))
        made.file.data[at] ^= 0x41
    drain(made.rebuild(device))


def test_every_length_is_found() -> None:
    device = formatted()
    made = record([TARS["zeros"]], device)
    whole = bytes(made.file.data)
    for length in range(len(whole)):
        made.file.data[:] = whole[:length]
        with pytest.raises(CorruptError, match=r"disks/layer\.recipe"):
            drain(made.rebuild(device))
    made.file.data[:] = whole + b"\0"
    with pytest.raises(CorruptError, match=f"is the end, and the file has {len(whole) + 1} bytes"):
        drain(made.rebuild(device))


def test_another_device_or_another_layer() -> None:
    device = formatted()
    made = record([TARS["zeros"]], device)
    with pytest.raises(
        CorruptError, match=rf"layer {made.diff_id}: the tar made again by disks/layer\.recipe has digest sha256:"
    ):
        drain(made.rebuild(formatted()))
    with pytest.raises(CorruptError, match=f"layer sha256:{'0' * 64}: the tar made again .* has digest {made.diff_id}"):
        drain(replace(made, diff_id="sha256:" + "0" * 64).rebuild(device))
    for size in (made.size - 1, made.size + 1, 0):
        with pytest.raises(CorruptError, match="bytes of the tar"):
            drain(replace(made, size=size).rebuild(device))


def drain(pieces: Iterator[Bytes]) -> int:
    return sum(map(len, pieces))


def section(kept: bytes, numbers: list[tuple[int, int, int]], frame: bytes | None = None, **fields: int) -> bytes:
    """A section with a right checksum, whatever it says; numbers are (literal bytes, place, length) of each run."""
    columns = b"".join(
        bytes(number >> shift & 0xFF for number in column) for column in zip(*numbers, strict=True) for shift in range(0, 64, 8)
    )
    payload = zstandard.compress(kept + columns) if frame is None else frame
    said = {"payload": len(payload), "literal": len(kept), "runs": len(numbers), **fields}
    start = SectionHeader(**said).to_bytes()[:16]
    return start + crc32c(start + payload).to_bytes(4, "little") + payload


def hostile(sections: bytes, size: int, *, version: int = recipes.VERSION, named: int | None = None) -> Recorded:
    start = RecipeHeader(version=version).to_bytes()[:12]
    end = RecipeEnd(size=size if named is None else named).to_bytes()[:44]
    data = start + crc32c(start).to_bytes(4, "little") + sections + end + crc32c(end).to_bytes(4, "little")
    return Recorded(ByteFile(data), size, "sha256:" + hashlib.sha256(bytes(size)).hexdigest())


ZEROS_RUN = -(1 << 63)
FRAME_OF_4_GIB = b"\x28\xb5\x2f\xfd\xa0" + (0xFFFFFFFF).to_bytes(4, "little") + b"\x01\0\0"
HOSTILE = {
    "no magic": (b"x" * 100, "at byte 16: b'xxxx' is there, the magic of neither a section nor the end"),
    "payload too long": (section(b"a", [(1, 0, 0)], payload=1 << 31), "payload is 2147483648, more than"),
    "too many literal bytes": (section(b"a", [(1, 0, 0)], literal=1 << 30), "literal is 1073741824, more than"),
    "too many runs": (section(b"a", [(1, 0, 0)], runs=1 << 30), "runs is 1073741824, more than"),
    "runs that are not there": (section(b"a", [(1, 0, 0)], runs=2), "does not inflate to the 49 bytes"),
    "frame of 4 GiB": (section(b"a", [(1, 0, 0)], frame=FRAME_OF_4_GIB), "does not inflate to the 25 bytes"),
    "no frame": (section(b"a", [(1, 0, 0)], frame=b"abcd"), "its payload"),
    "two frames": (section(b"a", [(1, 0, 0)], frame=zstandard.compress(bytes(25)) * 2), "its payload"),
    "frame of no known length": (
        section(b"a", [(1, 0, 0)], frame=zstandard.ZstdCompressor(write_content_size=False).compress(bytes(25))),
        "does not inflate to the 25 bytes",
    ),
    "literal bytes of no run": (section(b"abc", [(1, 0, 0)]), "its runs do not fit its 3 literal bytes"),
    "runs of more literal bytes": (section(b"abc", [(1 << 62, 0, 0)]), "its runs do not fit"),
    "negative literal bytes": (section(b"abc", [(-1, 0, 0), (4, 0, 0)]), "its runs do not fit"),
    "negative length": (section(b"abc", [(3, 0, -1)]), "its runs do not fit"),
    "behind the device": (section(b"", [(0, 64 << 20, 1)]), "a run has 1 bytes at byte 67108864 of a device of 67108864"),
    "over the end of the device": (section(b"", [(0, (64 << 20) - 1, 2)]), "a run has 2 bytes at byte 67108863"),
    "before the device": (section(b"", [(0, 4096, 1), (0, -12288, 1)]), "a run has 1 bytes at byte -4096"),
    "zeros without end": (section(b"", [(0, ZEROS_RUN, 1 << 62)]), f"makes {1 << 62} bytes of the tar, not 1 to 4096"),
    "numbers that overflow": (section(b"", [(0, ZEROS_RUN, (1 << 63) - 1)] * 4), "bytes of the tar, not 1 to 4096"),
    "section of nothing": (section(b"", [(0, 0, 0)]) * 100, "makes 0 bytes of the tar"),
    "section without runs": (section(b"", [], frame=zstandard.compress(b"")), "makes 0 bytes of the tar"),
    "too short": (section(b"a", [(1, 0, 0)]), "it ends after 1 bytes of the tar and names 4096, its marker says 4096"),
    "too long": (section(b"a", [(1, ZEROS_RUN, 4096)]), "makes 4097 bytes of the tar, not 1 to 4096"),
    "other bytes": (section(b"a", [(1, ZEROS_RUN, 4095)]), "has digest sha256:"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_refuses(name: str) -> None:
    sections, words = HOSTILE[name]
    made, device = hostile(sections, 4096), formatted()
    tracemalloc.start()
    try:
        with pytest.raises(CorruptError, match=re.escape(words)) as caught:
            drain(made.rebuild(device))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert "disks/layer.recipe" in str(caught.value)
    assert str(caught.value).isprintable()


def test_what_is_lawful_though_we_would_not_write_it() -> None:
    sections = section(b"\0", [(0, ZEROS_RUN, 0), (1, ZEROS_RUN, 95), (0, ZEROS_RUN, 4000)])
    assert b"".join(hostile(sections, 4096).rebuild(formatted())) == bytes(4096)
    assert list(hostile(b"", 0).rebuild(formatted())) == []


def test_another_version() -> None:
    with pytest.raises(UnsupportedError, match="recipe of version 2, this imgstore knows 1"):
        drain(hostile(b"", 0, version=2).rebuild(formatted()))


def test_names_another_size() -> None:
    with pytest.raises(CorruptError, match="it ends after 0 bytes of the tar and names 5, its marker says 0"):
        drain(hostile(b"", 0, named=5).rebuild(formatted()))


def test_python_writes_small_recipes() -> None:
    """At most 1 % of a tar of files of 2 KB, names and sizes by chance."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for number in range(3000):
            member = tarfile.TarInfo(f"usr/lib/package-{number // 100}/module_{CHANCE.randrange(10**6):06}.py")
            member.size, member.mtime = CHANCE.randrange(1500, 2600), 1_700_000_000 + CHANCE.randrange(600)
            tar.addfile(member, io.BytesIO(CHANCE.randbytes(member.size)))
    made = record(in_pieces(out.getvalue(), 1 << 20), formatted())
    assert made.file.size <= 0.01 * made.size
