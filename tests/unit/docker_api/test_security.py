"""The Host header: what is this machine, and what can be rebound."""

from __future__ import annotations

import pytest

from imgstore.docker_api.security import is_own_host


@pytest.mark.parametrize(
    "header",
    [
        "localhost",
        "localhost:2375",
        "LocalHost",
        "localhost.",
        "127.0.0.1",
        "127.0.0.1:2375",
        "192.0.2.7:1",
        "[::1]",
        "[::1]:2375",
        "build.lan",
    ],
)
def test_own(header: str) -> None:
    assert is_own_host(header, frozenset({"build.lan"}))


@pytest.mark.parametrize(
    "header",
    [
        "",
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "[::1].evil.example",
        "[::1",
        "evil.example:127",
        "[evil]",
        "1",
    ],
)
def test_strangers(header: str) -> None:
    assert not is_own_host(header, frozenset({"build.lan"}))
