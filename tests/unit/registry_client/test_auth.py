"""Challenges."""

from __future__ import annotations

import pytest

from registry_client.auth import parse_challenges


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
