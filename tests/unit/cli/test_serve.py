"""Options of ``imgstore serve`` that need no service."""

from __future__ import annotations

import os

import pytest

from imgstore.cli import serve
from imgstore.docker_api import server
from imgstore.errors import InvalidError


def test_default_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert serve._default_host({"XDG_RUNTIME_DIR": "/run/user/0"}) == "unix:///run/imgstore.sock"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert serve._default_host({"XDG_RUNTIME_DIR": "/run/user/1000"}) == "unix:///run/user/1000/imgstore.sock"
    for environment in ({}, {"XDG_RUNTIME_DIR": ""}, {"XDG_RUNTIME_DIR": "relative"}):
        with pytest.raises(InvalidError, match="XDG_RUNTIME_DIR"):
            serve._default_host(environment)


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
        serve._create_tls(*words)


def test_without_tls() -> None:
    assert serve._create_tls(False, False, None, None, None) is None


def test_the_default_is_that_of_the_server() -> None:
    assert serve.SHUTDOWN_SECONDS == server.SHUTDOWN_SECONDS
