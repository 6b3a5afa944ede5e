"""Names of images, taken apart for a table."""

from __future__ import annotations

import pytest

from imgstore.cli.images import NONE, short_id, split_reference

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("alpine:3.10", ("alpine", "3.10")),
        ("alpine", ("alpine", NONE)),
        ("localhost:5000/a/b:latest", ("localhost:5000/a/b", "latest")),
        ("localhost:5000/a/b", ("localhost:5000/a/b", NONE)),
        (f"localhost:5000/a@{DIGEST}", ("localhost:5000/a", DIGEST)),
    ],
)
def test_split_reference(reference: str, expected: tuple[str, str]) -> None:
    assert expected == split_reference(reference)


def test_short_id() -> None:
    assert short_id(DIGEST) == "0123456789ab"
