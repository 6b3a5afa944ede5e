"""Where the store is when nobody says, and what a location becomes."""

from __future__ import annotations

import pytest

from imgstore.config import absolute_location, store_location
from imgstore.errors import InvalidError


@pytest.mark.parametrize(
    ("environment", "is_root", "expected"),
    [
        ({"HOME": "/home/u"}, False, "/home/u/.local/share/imgstore"),
        ({"HOME": "/root"}, True, "/var/lib/imgstore"),
        ({}, True, "/var/lib/imgstore"),
        ({"HOME": "/home/u", "XDG_DATA_HOME": "/data"}, False, "/data/imgstore"),
        ({"HOME": "/root", "XDG_DATA_HOME": "/data"}, True, "/data/imgstore"),
        ({"HOME": "/home/u", "XDG_DATA_HOME": "data"}, False, "/home/u/.local/share/imgstore"),
        ({"HOME": "/home/u", "XDG_DATA_HOME": ""}, False, "/home/u/.local/share/imgstore"),
        ({"HOME": "/home/u", "XDG_DATA_HOME": "/data", "IMGSTORE_STORE": "here"}, False, "here"),
        ({"HOME": "/home/u", "IMGSTORE_STORE": ""}, False, "/home/u/.local/share/imgstore"),
    ],
)
def test_store_location(environment: dict[str, str], is_root: bool, expected: str) -> None:
    assert expected == store_location(environment, is_root=is_root)


@pytest.mark.parametrize("home", [{}, {"HOME": ""}, {"HOME": "relative"}])
def test_no_home_is_told(home: dict[str, str]) -> None:
    with pytest.raises(InvalidError, match="no place for it") as caught:
        store_location(home, is_root=False)
    assert "IMGSTORE_STORE" in caught.value.hint


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/srv/store", "/srv/store"),
        ("store", "/srv/here/store"),
        (".", "/srv/here"),
        ("./a/", "/srv/here/a"),
        ("mem://", "mem://"),
        ("osfs://store", "osfs://store"),
    ],
)
def test_absolute_location(location: str, expected: str) -> None:
    assert expected == absolute_location(location, directory="/srv/here")
