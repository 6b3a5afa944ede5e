"""The many spellings of one registry."""

from __future__ import annotations

import pytest

from registry_client.credential_keys import DOCKER_HUB_KEY, canonical_key, matching_keys, written_key
from registry_client.errors import InvalidError


@pytest.mark.parametrize(
    ("key", "canonical"),
    [
        ("r.io", "r.io"),
        ("R.io", "r.io"),
        ("r.io:443", "r.io"),
        ("r.io:4430", "r.io:4430"),
        ("https://r.io", "r.io"),
        ("HTTP://r.io:443/", "r.io"),
        ("https://r.io:5000/v1/", "r.io:5000"),
        ("https://r.io/v2", "r.io"),
        ("https://r.io/any/path", "r.io"),
        ("r.io/v1/", "r.io"),
        ("r.io/v2", "r.io/v2"),
        ("r.io/Team/app/", "r.io/Team/app"),
        ("[::1]:443", "[::1]"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("index.docker.io/v1/", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
        ("docker.io:443", "docker.io"),
        ("index.docker.io/team", "docker.io/team"),
        ("evil-docker.io", "evil-docker.io"),
    ],
)
def test_canonical(key: str, canonical: str) -> None:
    assert canonical_key(key) == canonical
    assert canonical_key(canonical) == canonical


@pytest.mark.parametrize(
    ("registry", "key"),
    [
        ("r.io", "r.io"),
        ("R.io:443", "R.io:443"),
        ("https://r.io/v2/", "r.io"),
        ("harbor", "harbor"),
        ("[fd00::1]:5000", "[fd00::1]:5000"),
        ("r.io/team/a__b.c-d", "r.io/team/a__b.c-d"),
        ("docker.io", DOCKER_HUB_KEY),
        ("index.docker.io", DOCKER_HUB_KEY),
        ("registry-1.docker.io:443", DOCKER_HUB_KEY),
        ("docker.io/team", "docker.io/team"),
    ],
)
def test_written_as_docker_does(registry: str, key: str) -> None:
    assert written_key(registry) == key


@pytest.mark.parametrize(
    "registry", ["", "/", "https://", "r.io/Team", "r.io//a", "r io", "r.io\n", "-r.io", "r.io:port", "a" * 513]
)
def test_no_registry(registry: str) -> None:
    with pytest.raises(InvalidError, match="not a host"):
        written_key(registry)


def test_a_password_in_a_url_is_not_repeated() -> None:
    with pytest.raises(InvalidError) as caught:
        written_key("https://user:canary@r.io")
    assert "canary" not in str(caught.value)


def test_what_covers_a_repository() -> None:
    assert list(matching_keys("r.io:443", "team/app")) == ["r.io:443/team/app", "r.io:443/team", "r.io:443"]
    assert list(matching_keys("docker.io", "")) == ["docker.io"]
