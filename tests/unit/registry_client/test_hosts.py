"""Hosts: what a text means, and which texts mean the same."""

from __future__ import annotations

import pytest

from registry_client.hosts import (
    Host,
    is_internal,
    is_link_local,
    is_loopback,
    list_spellings,
    locate_registry,
    name_registry,
    parse_host,
    same_host,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("R.io", Host("r.io", 443, False)),
        ("r.io:5000", Host("r.io", 5000, True)),
        ("r.io.:5000", Host("r.io", 5000, True)),
        ("r.io:0443", Host("r.io", 443, True)),
        ("[0:0:0:0:0:0:0:1]:80", Host("[::1]", 80, True)),
        ("[::1]", Host("[::1]", 443, False)),
        ("a_b", Host("a_b", 443, False)),
    ],
)
def test_parse(text: str, expected: Host) -> None:
    assert parse_host(text) == expected


@pytest.mark.parametrize(
    "text", ["", ".", "..", "a/b", "::1", "[1.2.3.4]", "[zz]", "r.io:", "r.io:x", "-a", "a b", "u@r.io", "a" * 256]
)
def test_no_hosts(text: str) -> None:
    assert parse_host(text) is None


def test_same_host() -> None:
    for one, other in [
        ("r.io", "R.io:443"),
        ("docker.io", "registry-1.docker.io:443"),
        ("index.docker.io", "docker.io"),
        ("[::1]:5", "[0::1]:5"),
    ]:
        assert same_host(one, other) and same_host(other, one)
    for one, other in [("r.io", "r.io:80"), ("docker.io:5000", "index.docker.io:5000"), ("a.io", "b.io"), ("", "")]:
        assert not same_host(one, other)


def test_spellings() -> None:
    assert list_spellings("R.io") == ("R.io", "r.io", "r.io:443")
    assert list_spellings("r.io:443") == ("r.io:443", "r.io")
    assert list_spellings("r.io:5000") == ("r.io:5000",)
    assert list_spellings("registry-1.docker.io")[:2] == ("registry-1.docker.io", "registry-1.docker.io:443")
    assert {"docker.io", "index.docker.io"} < set(list_spellings("registry-1.docker.io"))
    assert list_spellings("../x") == ()


def test_docker_hub_has_two_names() -> None:
    for text in ["docker.io", "index.docker.io:443", "registry-1.docker.io"]:
        assert (name_registry(text), locate_registry(text)) == ("docker.io", "registry-1.docker.io")
    assert (name_registry("r.io"), locate_registry("docker.io:5000")) == ("r.io", "docker.io:5000")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.1", "10.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("[::ffff:10.0.0.1]", "10.0.0.1"),
        ("r.io", None),
    ],
)
def test_addresses_are_what_the_system_takes_for_one(text: str, address: str | None) -> None:
    host = parse_host(text)
    assert host is not None
    assert (None if host.address is None else str(host.address)) == address


def test_loopback_is_what_was_typed() -> None:
    assert all(
        is_loopback(name) for name in ["localhost", "LOCALHOST", "127.0.0.1", "127.8.9.10", "127.1", "0x7f000001", "::1", "[::1]"]
    )
    assert not any(is_loopback(name) for name in ["localhost.example.com", "127.0.0.1.nip.io", "10.0.0.1", "[::2]", ""])


@pytest.mark.parametrize(
    "name", ["169.254.169.254", "2852039166", "0xa9fea9fe", "169.254.43518", "[::ffff:169.254.169.254]", "0", "[::]"]
)
def test_no_spelling_hides_an_address(name: str) -> None:
    assert is_link_local(name) and is_internal(name)


def test_internal() -> None:
    assert all(is_internal(name) for name in ["localhost", "10.0.0.1", "192.168.1", "127.1", "[fd00::1]", "017700000001"])
    assert not any(is_internal(name) for name in ["r.io", "8.8.8.8", "10.example.com", "", "1.2.3.4.5"])
