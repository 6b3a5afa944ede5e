from __future__ import annotations

import pytest

from imgstore.changes import Entry
from imgstore.layers.tar_reader import read_changes
from tests.hostile_tars import CAPACITY, HOSTILE, TREE_ATTACKS


def read_all(data: bytes, piece_size: int = 1 << 20) -> int:
    pieces = (data[start : start + piece_size] for start in range(0, len(data), piece_size))
    count = 0
    for change in read_changes(pieces, capacity=CAPACITY):
        count += 1
        if isinstance(change, Entry):
            for _ in change.data:
                pass
    return count


@pytest.mark.parametrize("name", HOSTILE)
def test_refuses(name: str) -> None:
    attack = HOSTILE[name]
    with pytest.raises(attack.error) as caught:
        read_all(attack.data)
    assert type(caught.value) is attack.error
    assert attack.words in str(caught.value)
    assert "at byte" in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", HOSTILE)
def test_refuses_in_pieces_with_the_same_words(name: str) -> None:
    attack = HOSTILE[name]
    with pytest.raises(attack.error) as whole:
        read_all(attack.data)
    with pytest.raises(attack.error) as pieces:
        read_all(attack.data, 509)
    assert str(pieces.value) == str(whole.value)


@pytest.mark.parametrize("name", TREE_ATTACKS)
def test_attacks_on_the_tree_are_proper_tars(name: str) -> None:
    assert read_all(TREE_ATTACKS[name]) > 0


def test_message_names_entry_and_offset() -> None:
    data = HOSTILE["wrong checksum"].data
    with pytest.raises(HOSTILE["wrong checksum"].error, match=r"^tar entry 'b' at byte 512: checksum is"):
        read_all(data)
