from __future__ import annotations

import pytest

from imgstore.container_names import check_container_name, generate_container_name
from imgstore.errors import InvalidError


@pytest.mark.parametrize("name", ["web", "/web", "a1", "A.b-c_d", "0x", "a" * 255])
def test_names(name: str) -> None:
    assert name.removeprefix("/") == check_container_name(name)


@pytest.mark.parametrize("name", ["", "/", "a", "_a", "-a", ".a", "a b", "a/b", "//ab", "ä1", "a\n", "ab\n"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(InvalidError) as caught:
        check_container_name(name)
    assert str(caught.value) == f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"


def test_a_name_that_is_too_long() -> None:
    with pytest.raises(InvalidError, match="it has 256 characters, 255 are allowed"):
        check_container_name("a" * 256)


def test_names_are_made_up() -> None:
    made = {generate_container_name() for _ in range(100)}
    assert len(made) > 90
    assert all(name == check_container_name(name) and name.count("_") == 1 for name in made)
