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


def test_the_default_is_that_of_the_server() -> None:
    assert serve.SHUTDOWN_SECONDS == server.SHUTDOWN_SECONDS
