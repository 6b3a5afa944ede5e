"""Whatever a disk says: a value or a typed error, in bounded time."""

from __future__ import annotations

import functools

from hypothesis import given
from hypothesis import strategies as st

from imgstore.blocks import MemoryBlockDevice
from imgstore.changes import Entry, Opaque
from imgstore.errors import ImgstoreError
from imgstore.ext4.check import check_file_system
from imgstore.ext4.format import MINIMUM_SIZE
from imgstore.ext4.geometry import SUPER_OFFSET, read_super_block, write_super_block
from imgstore.ext4.grow import grow_file_system
from imgstore.ext4.reader import FileSystem
from imgstore.ext4.structures import RoCompatFeature
from imgstore.ext4.writer import LayerWriter
from tests.ext4_layers import EVERY_STRUCTURE, apply_layer, contents, formatted, regular


@functools.cache
def pages(checksums: bool) -> dict[int, bytes]:
    device = formatted()
    apply_layer(device, EVERY_STRUCTURE)
    if not checksums:
        super_block = read_super_block(device)
        super_block.feature_ro_compat &= ~int(RoCompatFeature.METADATA_CSUM)
        device.write(SUPER_OFFSET, write_super_block(super_block))
    return contents(device)


def damaged(checksums: bool, damages: list[tuple[int, int, bytes]], size: int = MINIMUM_SIZE) -> MemoryBlockDevice:
    device = MemoryBlockDevice(size)
    for offset, page in pages(checksums).items():
        device.write(offset, page)
    blocks = [
        offset + start
        for offset, page in pages(checksums).items()
        for start in range(0, len(page), 4096)
        if any(page[start : start + 4096])
    ]
    for block, position, data in damages:
        device.write(blocks[block % len(blocks)] + min(position, 4096 - len(data)), data)
    return device


_NUMBERS = st.sampled_from([0, 1, 2, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]).map(lambda number: number.to_bytes(4, "little"))
_POSITIONS = st.integers(0, 1300) | st.integers(0, 4095)
DAMAGES = st.lists(
    st.tuples(st.integers(0, 1000), _POSITIONS, st.binary(min_size=1, max_size=8) | _NUMBERS), min_size=1, max_size=6
)


@given(st.booleans(), DAMAGES)
def test_reader(checksums: bool, damages: list[tuple[int, int, bytes]]) -> None:
    try:
        for change in FileSystem(damaged(checksums, damages)).changes():
            if isinstance(change, Entry) and change.size < 1 << 24:
                assert sum(map(len, change.data)) <= change.size
    except ImgstoreError as error:
        assert str(error)


@given(st.booleans(), DAMAGES)
def test_check(checksums: bool, damages: list[tuple[int, int, bytes]]) -> None:
    for finding in check_file_system(damaged(checksums, damages)):
        assert finding.problem


@given(DAMAGES, st.sampled_from([None, 1_790_000_000 * 10**9]))
def test_writer(damages: list[tuple[int, int, bytes]], now_ns: int | None) -> None:
    try:
        writer = LayerWriter(damaged(True, damages), now_ns=now_ns)
        writer.apply(regular(b"d/new", b"x" * 5000))
        writer.apply(Opaque(b""))
        writer.finish()
    except ImgstoreError as error:
        assert str(error)


@given(DAMAGES)
def test_grow(damages: list[tuple[int, int, bytes]]) -> None:
    device = damaged(True, damages, 1000 << 27)
    before = contents(device)
    try:
        grow_file_system(device)
    except ImgstoreError as error:
        assert str(error)
        assert contents(device) == before
