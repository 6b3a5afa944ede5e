"""Any tar that becomes a layer is made again to the byte, and any bytes for a recipe are that tar or a typed error."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import zstandard
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from imgstore.blocks import MemoryBlockDevice
from imgstore.changes import Change, FileType, HardLink
from imgstore.errors import CorruptError, ImgstoreError
from imgstore.layers.recipe import RecipeHeader, SectionHeader
from imgstore.layers.tar_writer import write_tar
from tests.ext4_layers import formatted
from tests.property.ext4_model import LAYERS, File, apply_model
from tests.property.test_tar import SEEDS, cut
from tests.raw_tar import END, file, header, pax, sparse_header
from tests.recipes import Recorded, record

CUTS = st.lists(st.integers(0, 1 << 20), max_size=20)


@given(LAYERS, st.integers(0, 3000), CUTS)
def test_layers_on_layers(layers: Sequence[Sequence[Change]], zeros: int, at: list[int]) -> None:
    device = formatted()
    tree = {b"": File(FileType.DIRECTORY, 0o755)}
    for layer in layers:
        out = bytearray()
        # A tar cannot hold a hard link to itself.
        lawful = [change for change in layer if not isinstance(change, HardLink) or change.path != change.target]
        write_tar(apply_model(tree, lawful), out.extend)
        tar = bytes(out) + bytes(zeros)
        made = record(cut(tar, at), device)
        assert b"".join(made.rebuild(device)) == tar


NAMES = st.sampled_from([b"a", b"b", b"a/c", b"d/e", b"d/.wh..wh.plnk/x"])
CONTENTS = st.binary(max_size=5000) | st.sampled_from([bytes(4096), bytes(20_000), b"x" * 4096, b"x" + bytes(8191) + b"y" * 9000])


@st.composite
def entries(draw: st.DrawFn) -> bytes:
    """An entry with its data and with padding of any bytes."""
    data = draw(CONTENTS)
    size = len(data)
    match draw(st.sampled_from(["plain", "old", "0.0", "1.0", "link", "directory", "whiteout"])):
        case "old":
            start = sparse_header([(100, size)], size + 5000, size)
        case "0.0":
            runs = ((b"GNU.sparse.offset", b"4095"), (b"GNU.sparse.numbytes", b"%d" % size))
            start = pax((b"GNU.sparse.size", b"%d" % (size + 4095)), *runs) + header(draw(NAMES), size=size)
        case "1.0":
            said = ((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"%d" % (size + 9)))
            start = pax(*said) + header(draw(NAMES), size=512 + size) + (b"1\n9\n%d\n" % size).ljust(512, b"\0")
        case "link":
            return header(b"l", flag=b"1", link=draw(NAMES))
        case "whiteout":
            return header(draw(st.sampled_from([b".wh.a", b"d/.wh.e", b"d/.wh..wh..opq"])))
        case "directory":
            return header(draw(st.sampled_from([b"a/", b"d/", b"./"])), flag=b"5")
        case _:
            start = header(draw(NAMES), size=size)
    return start + data + draw(st.binary(min_size=1, max_size=1)) * (-size % 512)


@given(st.lists(entries(), max_size=6), st.sampled_from([b"", bytes(512), END, bytes(12_345)]), CUTS)
def test_any_archive(parts: list[bytes], end: bytes, at: list[int]) -> None:
    make_again_or_refuse(b"".join(parts) + end, at)


@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 1 << 14), st.integers(0, 255)), max_size=8), CUTS)
def test_damaged_archives(seed: bytes, edits: list[tuple[int, int]], at: list[int]) -> None:
    data = bytearray(seed)
    for place, value in edits:
        data[place % len(data)] = value
    for start in range(0, len(data) - 511, 512):
        if data[start + 257 : start + 262] == b"ustar":
            data[start + 148 : start + 156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    make_again_or_refuse(bytes(data), at)


def make_again_or_refuse(tar: bytes, at: list[int]) -> None:
    device = formatted()
    try:
        made = record(cut(tar, at), device)
    except ImgstoreError:
        return
    assert b"".join(made.rebuild(device)) == tar


@pytest.fixture(scope="module")
def layer() -> tuple[Recorded, MemoryBlockDevice, bytes]:
    device = formatted()
    tar = file(b"a", b"data" * 5000) + file(b"b", bytes(9000)) + file(b"a", b"more") + END
    return record([tar], device), device, tar


@given(st.binary(max_size=300))
def test_any_bytes(layer: tuple[Recorded, MemoryBlockDevice, bytes], data: bytes) -> None:
    start = RecipeHeader().to_bytes()[:12]
    for content in (data, start + crc32c(start).to_bytes(4, "little") + data):
        rebuild_or_refuse(layer, content)


@given(st.lists(st.tuples(st.integers(0, 1 << 14), st.integers(0, 255)), min_size=1, max_size=8), st.booleans())
def test_damaged_recipes(layer: tuple[Recorded, MemoryBlockDevice, bytes], edits: list[tuple[int, int]], inside: bool) -> None:
    """Edits of the file, or of what the payload inflates to; with right checksums, so that they come through."""
    whole = bytes(layer[0].file.data)
    at = RecipeHeader.SIZE
    section = bytearray(whole[at : at + SectionHeader.SIZE])
    length = SectionHeader.from_bytes(section).payload
    payload = bytearray(whole[at + SectionHeader.SIZE : at + SectionHeader.SIZE + length])
    if inside:
        payload = bytearray(zstandard.decompress(payload))
        columns = SectionHeader.from_bytes(section).literal
        for place, value in edits:
            payload[columns + place % (len(payload) - columns)] = value
        payload = bytearray(zstandard.compress(payload))
        section[4:8] = len(payload).to_bytes(4, "little")
    else:
        for place, value in edits:
            part, place = (section, place) if place % 3 else (payload, place // 3)
            part[4 + place % (len(part) - 4)] = value
    section[16:20] = crc32c(payload, crc32c(section[:16])).to_bytes(4, "little")
    rebuild_or_refuse(layer, whole[:at] + section + payload + whole[at + SectionHeader.SIZE + length :])


def rebuild_or_refuse(layer: tuple[Recorded, MemoryBlockDevice, bytes], content: bytes) -> None:
    made, device, tar = layer
    damaged = Recorded(type(made.file)(content), made.size, made.diff_id)
    try:
        found = b"".join(damaged.rebuild(device))
    except CorruptError as error:
        assert made.file.path in str(error)
    else:
        assert found == tar
