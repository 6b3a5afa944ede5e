from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgstore.datastores import LiveFile, MemoryDatastore
from imgstore.errors import CorruptError
from imgstore.vmdk.intent import Piece, apply_intent, changed_piece, encode_intent, read_piece

BEFORE = b"0123456789" * 10
PIECES = [Piece(3, b"345", b"abc"), Piece(50, b"0", b"z")]
AFTER = b"012abc6789" + BEFORE[10:50] + b"z" + BEFORE[51:]


def made(content: bytes) -> LiveFile:
    file = MemoryDatastore().create("a")
    file.pwrite(0, content)
    return file


def test_an_intent_is_applied_any_number_of_times() -> None:
    file = made(BEFORE)
    for _ in range(2):
        assert apply_intent(file, encode_intent(PIECES))
        assert file.pread(0, 200) == AFTER


@pytest.mark.parametrize("changes", [{3: b"a"}, {3: b"ab"}, {4: b"b"}, {50: b"z"}, {3: b"abc"}, {3: b"a", 5: b"c", 50: b"z"}])
def test_one_that_was_applied_in_part_is_applied(changes: dict[int, bytes]) -> None:
    file = made(BEFORE)
    for offset, data in changes.items():
        file.pwrite(offset, data)
    assert apply_intent(file, encode_intent(PIECES))
    assert file.pread(0, 200) == AFTER


@pytest.mark.parametrize("content", [BEFORE[:3] + b"x" + BEFORE[4:], BEFORE[:50], BEFORE[:50] + b"y", b""])
def test_another_disk_is_left_alone(content: bytes) -> None:
    file = made(content)
    assert not apply_intent(file, encode_intent(PIECES))
    assert file.pread(0, 200) == content


def test_a_damaged_intent_changes_nothing() -> None:
    intent = encode_intent(PIECES)
    file = made(BEFORE)
    for damaged in [*(intent[:length] for length in range(len(intent))), intent + b"\0", b"x" * 200]:
        assert not apply_intent(file, damaged)
    for position in (*range(16), *range(32, len(intent))):
        damaged = intent[:position] + bytes([intent[position] ^ 1]) + intent[position + 1 :]
        assert not apply_intent(file, damaged)
    assert file.pread(0, 200) == BEFORE


@given(
    st.integers(1, 40).flatmap(
        lambda size: st.tuples(st.binary(min_size=size, max_size=size), st.binary(min_size=size, max_size=size))
    )
)
def test_a_piece_is_the_shortest_that_makes_the_change(pair: tuple[bytes, bytes]) -> None:
    before, after = pair
    piece = changed_piece(7, before, after)
    if before == after:
        assert piece is None
        return
    assert piece is not None
    start = piece.offset - 7
    end = start + len(piece.after)
    assert before[:start] + piece.after + before[end:] == after
    assert before[start:end] == piece.before
    assert piece.before[0] != piece.after[0]
    assert piece.before[-1] != piece.after[-1]


def test_a_file_that_ends_before_is_corrupt() -> None:
    with pytest.raises(CorruptError, match="a at byte 98: 5 bytes are needed, the file ends after 2"):
        read_piece(made(BEFORE), 98, b"12345")
