"""Options that say who may connect, and how."""

from __future__ import annotations

import pytest

from imgstore.cli.listening import Protection
from imgstore.errors import InvalidError


def protection(tls: bool, tlsverify: bool, authority: str | None, certificate: str | None, key: str | None) -> Protection:
    return Protection(None, tls, tlsverify, authority, certificate, key, insecure_no_auth=False)


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
        protection(*words).access()


def test_without_tls() -> None:
    assert protection(False, False, None, None, None).access().tls is None
