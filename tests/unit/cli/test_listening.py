"""What commands that listen have in common."""

from __future__ import annotations

import pytest

from imgstore.cli.listening import Protection
from imgstore.errors import InvalidError
from imgstore.listeners import Access


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ((True, True, None, "cert", "key"), "--tlsverify: needs --tlscacert"),
        ((True, False, None, None, "key"), "need --tlscert and --tlskey"),
        ((True, False, None, "cert", None), "need --tlscert and --tlskey"),
        ((False, False, "ca", None, None), "need --tlsverify or --tls"),
        ((True, False, None, "", "key"), "--tlscert: the name is empty"),
        ((True, False, None, "/nope", "/nope"), "certificate /nope"),
    ],
)
def test_options_of_tls(words: tuple[bool, bool, str | None, str | None, str | None], complaint: str) -> None:
    with pytest.raises(InvalidError, match=complaint):
        Protection(None, *words, insecure_no_auth=False).access()


def test_without_tls() -> None:
    protection = Protection("root", False, False, None, None, None, insecure_no_auth=True)
    assert protection.access(port=1) == Access(group=0, tls=None, allow_anyone=True, port=1)
