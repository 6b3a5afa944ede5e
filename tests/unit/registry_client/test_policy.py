"""Policy: allow and deny lists."""

from __future__ import annotations

import pytest

from registry_client.errors import DeniedError, InvalidError
from registry_client.options import Policy
from registry_client.policy import check_policy, check_policy_entries

MATCHES = [
    ("r.io", "r.io", "a"),
    ("r.io", "r.io:443", "a"),
    ("r.io", "r.io:5000", "a"),
    ("r.io:*", "r.io:5000", "a"),
    ("r.io:443", "r.io", "a"),
    ("r.io:5000", "R.IO:5000", "a"),
    ("*.example.com", "a.b.example.com:5000", "x"),
    ("r?.io:5000", "r1.io:5000", "x"),
    ("r.io/team", "r.io", "team/app"),
    ("r.io/team", "r.io", "team"),
    ("*.io:5000/team", "r.io:5000", "team/app"),
    ("10.0.0.0/8", "10.1.2.3:5000", "a"),
    ("10.0.0.5/8", "10.1", "a"),
    ("10.0.0.1", "10.1", "a"),
    ("fd00::/8", "[fd00::1]:5000", "a"),
    ("[::1]:5000", "[0:0::1]:5000", "a"),
    ("10.0.0.0/8", "[::ffff:10.0.0.1]", "a"),
    ("docker.io", "registry-1.docker.io", "library/busybox"),
    ("registry-1.docker.io", "docker.io", "library/busybox"),
    ("index.docker.io:443/library", "docker.io", "library/busybox"),
]
DIFFERENCES = [
    ("r.io", "x.r.io", "a"),
    ("r.io:443", "r.io:5000", "a"),
    ("*.example.com", "example.com", "a"),
    ("*.example.com", "example.com.evil.io", "a"),
    ("r.io/team", "r.io", "teams"),
    ("r.io/team/app", "r.io", "team"),
    ("10.0.0.0/8", "ten.example.com", "a"),
    ("10.0.0.0/8", "11.0.0.1", "a"),
    ("127.0.0.0/8", "localhost", "a"),
]


@pytest.mark.parametrize(("entry", "registry", "repository"), MATCHES)
def test_what_matches(entry: str, registry: str, repository: str) -> None:
    check_policy(registry, repository, Policy(allow=("other.io", entry)))
    with pytest.raises(DeniedError) as caught:
        check_policy(registry, repository, Policy(allow=(entry,), deny=(entry,)))
    assert repr(entry) in str(caught.value) and f"({registry})" in str(caught.value)


@pytest.mark.parametrize(("entry", "registry", "repository"), DIFFERENCES)
def test_what_does_not_match(entry: str, registry: str, repository: str) -> None:
    check_policy(registry, repository, Policy(deny=(entry,)))
    with pytest.raises(DeniedError) as caught:
        check_policy(registry, repository, Policy(allow=(entry,)))
    assert str(caught.value) == f"Access denied to unauthorized registry ({registry}) while VCH is in whitelist mode"


def test_an_empty_policy_allows_all() -> None:
    check_policy("r.io", "a", Policy())


def test_a_registry_as_a_whole() -> None:
    check_policy("r.io", "", Policy(allow=("r.io/team",), deny=("r.io/team/secret",)))
    with pytest.raises(DeniedError):
        check_policy("r.io", "", Policy(deny=("r.io",)))
    with pytest.raises(DeniedError):
        check_policy("other.io", "", Policy(allow=("r.io/team",)))


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "https://r.io",
        "r.io/",
        "r.io//a",
        "r.io:port",
        "[a-c].io",
        "10.0.0.0/33",
        "r.io/te*m",
        "r.io/a:tag",
        "a b",
        "fd00::/129",
        "[zz]",
    ],
)
def test_malformed_entries_are_named_even_where_another_decides(entry: str) -> None:
    for policy in [Policy(allow=("r.io", entry)), Policy(deny=("r.io", entry))]:
        with pytest.raises(InvalidError) as caught:
            check_policy("r.io", "a", policy)
        assert repr(entry) in str(caught.value)
        with pytest.raises(InvalidError):
            check_policy_entries(policy)
