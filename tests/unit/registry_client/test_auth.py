"""Challenges."""

from __future__ import annotations

import pytest

from registry_client.auth import check_realm, parse_challenges
from registry_client.errors import DeniedError


@pytest.mark.parametrize(
    ("headers", "challenges"),
    [
        (['Basic realm="a, b"'], [("basic", {"realm": "a, b"})]),
        (
            ['Bearer realm="https://auth.io/token",service="r.io",scope="repository:a:pull,push"'],
            [("bearer", {"realm": "https://auth.io/token", "service": "r.io", "scope": "repository:a:pull,push"})],
        ),
        (
            ['Negotiate, Basic realm="x", Bearer realm = "y" , service=z'],
            [("negotiate", {}), ("basic", {"realm": "x"}), ("bearer", {"realm": "y", "service": "z"})],
        ),
        (["Basic realm=a", "Bearer realm=b"], [("basic", {"realm": "a"}), ("bearer", {"realm": "b"})]),
        ([r'BASIC Realm="quoted \" mark"'], [("basic", {"realm": 'quoted " mark'})]),
        (["Basic"], [("basic", {})]),
        (['Basic realm="open'], [("basic", {})]),
        ([""], []),
        ([], []),
        (['"'], []),
    ],
)
def test_parse_challenges(headers: list[str], challenges: list[tuple[str, dict[str, str]]]) -> None:
    assert challenges == [(challenge.scheme, dict(challenge.parameters)) for challenge in parse_challenges(headers)]


@pytest.mark.parametrize(
    ("realm", "registry"),
    [
        ("https://auth.example.com/token", "https://r.io"),
        ("https://auth.example.com/token", "http://127.0.0.1:5000"),
        ("http://localhost:5001/token", "http://127.0.0.1:5000"),
        ("https://10.0.0.2/service/token", "https://10.0.0.1"),
        ("https://203.0.113.9.example.com/token", "https://r.io"),
    ],
)
def test_realms_that_may_be_asked(realm: str, registry: str) -> None:
    check_realm(realm, registry)


@pytest.mark.parametrize(
    ("realm", "registry"),
    [
        ("http://r.io/token", "https://r.io"),
        ("http://127.0.0.1/token", "https://127.0.0.1:5000"),
        ("http://auth.example.com/token", "http://127.0.0.1:5000"),
        ("https://169.254.169.254/latest", "https://r.io"),
        ("https://10.0.0.1/token", "https://r.io"),
        ("https://[fe80::1]/token", "https://r.io"),
        ("https://[::1]/token", "https://r.io"),
        ("https://localhost/token", "https://r.io"),
        ("https://0.0.0.0/token", "https://r.io"),
        ("file:///etc/passwd", "https://r.io"),
        ("", "https://r.io"),
    ],
)
def test_realms_that_are_refused(realm: str, registry: str) -> None:
    with pytest.raises(DeniedError, match="no credentials are sent there"):
        check_realm(realm, registry)
