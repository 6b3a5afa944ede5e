"""Whatever a log says: the file system after some of its transactions, or a typed error, in bounded time."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgstore.blocks import MemoryBlockDevice
from imgstore.errors import ImgstoreError
from imgstore.ext4.reader import FileSystem
from imgstore.ext4.recovery import recover, recovered
from tests.ext4_journals import ASYNC, BIT64, BLOCK, CSUM_V2, CSUM_V3, MAGIC, JournalMaker
from tests.ext4_layers import contents, formatted

FIRST, COUNT = 12_000, 6
FORMS = [0, BIT64, CSUM_V2, CSUM_V3, CSUM_V3 | BIT64 | ASYNC]


def target(device: MemoryBlockDevice, *, after: bool) -> bytes:
    return (recovered(device) if after else device).read(FIRST * BLOCK, COUNT * BLOCK)


TRANSACTIONS = [({0, 1, 2}, set()), ({1, 2, 3}, {0}), ({2, 3, 4}, {1, 5}), ({3, 4, 5}, {2})]
"""Blocks that are written, and blocks that are revoked."""


def content(number: int, place: int) -> bytes:
    return (MAGIC + b"%d at %d" % (number, place)).ljust(BLOCK, b".")


def state(count: int) -> bytes:
    """The target after the first ``count`` transactions."""
    blocks = [bytes(BLOCK)] * COUNT
    for number, (written, _) in enumerate(TRANSACTIONS[:count]):
        for place in written:
            if not any(place in revoked for _, revoked in TRANSACTIONS[number:count]):
                blocks[place] = content(number, place)
    return b"".join(blocks)


STATES = [state(count) for count in range(len(TRANSACTIONS) + 1)]


@functools.cache
def made(features: int) -> tuple[dict[int, bytes], int]:
    """Pages of a device whose log goes round, and the byte where its journal lies."""
    maker = JournalMaker(formatted(), features, length=30, start=20)
    for number, (written, revoked) in enumerate(TRANSACTIONS):
        maker.transaction(
            {FIRST + place: content(number, place) for place in sorted(written)}, [FIRST + place for place in sorted(revoked)]
        )
    return contents(maker.finish()), maker.base


def device_of(pages: dict[int, bytes]) -> MemoryBlockDevice:
    device = formatted()
    for offset, page in pages.items():
        device.write(offset, page)
    return device


_POSITIONS = st.integers(0, 90) | st.integers(0, 4088)
DAMAGES = st.lists(st.tuples(st.integers(0, 29), _POSITIONS, st.binary(min_size=1, max_size=8)), min_size=1, max_size=4)


@given(st.sampled_from(FORMS), DAMAGES)
def test_damage(features: int, damages: list[tuple[int, int, bytes]]) -> None:
    pages, base = made(features)
    device = device_of(pages)
    for block, position, data in damages:
        device.write(base + block * BLOCK + position, data)
    before = contents(device)
    try:
        found = target(device, after=True)
        FileSystem(recovered(device))
    except ImgstoreError as error:
        assert str(error)
        return
    assert contents(device) == before
    if features & (CSUM_V2 | CSUM_V3):
        assert found in STATES
    if FileSystem(recovered(device)).super_block.state == 3:  # the journal says that the kernel met damage
        return
    assert recover(device)
    assert target(device, after=False) == found
    assert not recover(device)


@pytest.mark.parametrize("features", FORMS)
def test_power_cut_after_any_block(features: int) -> None:
    pages, base = made(features)
    seen = []
    for length in range(30):
        device = device_of(pages)
        for block in range(length, 29):
            device.write(base + (1 + (19 + block) % 29) * BLOCK, bytes(BLOCK))
        seen.append(STATES.index(target(device, after=True)))
    assert seen == sorted(seen)
    assert set(seen) == set(range(len(STATES)))
