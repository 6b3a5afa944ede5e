"""``serveraddress`` of a login: which registry is meant."""

from __future__ import annotations

import pytest

from imgstore.docker_api.errors import ApiError
from imgstore.docker_api.login import parse_server_address


@pytest.mark.parametrize(
    ("address", "registry"),
    [
        ("", "docker.io"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("docker.io", "docker.io"),
        ("harbor.example.com", "harbor.example.com"),
        ("https://harbor.example.com/v2/", "harbor.example.com"),
        ("http://127.0.0.1:5000", "127.0.0.1:5000"),
        ("localhost:5000/", "localhost:5000"),
    ],
)
def test_registries(address: str, registry: str) -> None:
    assert registry == parse_server_address(address)


@pytest.mark.parametrize("address", ["ftp://x", "registry", "https://user:hunter2@host.example", "a b", "x" * 300])
def test_no_registries(address: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_server_address(address)
    assert caught.value.status == 400
    assert "hunter2" not in str(caught.value)
