"""Whatever the bytes, a seed file is a list of images, or one typed error that says where."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from imgstore.errors import InvalidError
from imgstore.seed_files import parse_seed_file

WORDS = st.sampled_from(
    [
        *("images", "name", "tags", "platform", "harbor.example", "alpine:3", "&a", "*a", "!!int", "%YAML 9.9", '"\\U00110000"'),
        *(":", ": ", "- ", "\n", "\n  ", "[", "]", "{", "}", ",", "'", '"', "---", "?", "#", "|", ">", "\t", "\x00", "é"),
    ]
)


@given(st.one_of(st.binary(max_size=200), st.lists(WORDS, max_size=40).map(lambda words: "".join(words).encode())))
def test_any_bytes(data: bytes) -> None:
    with contextlib.suppress(InvalidError):
        assert all(image.reference for image in parse_seed_file(data, "images.yaml"))
