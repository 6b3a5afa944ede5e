"""Credentials in the files of docker, podman and skopeo."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path
from typing import Any

import pytest

from registry_client.credentials import ANONYMOUS, Credential, find_credential
from registry_client.errors import DeniedError, MalformedError

ROBOT = Credential("robot$team+puller", "pa$$:wörd")


def auth(credential: Credential) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{credential.username}:{credential.password}".encode()).decode()}


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        "HOME": str(tmp_path / "home"),
        "REGISTRY_AUTH_FILE": str(tmp_path / "explicit.json"),
        "XDG_RUNTIME_DIR": str(tmp_path / "run"),
        "PATH": str(tmp_path / "bin"),
    }


def test_the_first_file_that_knows_wins(tmp_path: Path, environment: dict[str, str]) -> None:
    assert find_credential("r.io", "a", environment) == ANONYMOUS
    places = [".dockercfg", ".docker/config.json", ".config/containers/auth.json"]
    paths = [tmp_path / "home" / place for place in places] + [tmp_path / "run/containers/auth.json", tmp_path / "explicit.json"]
    for number, path in enumerate(paths):
        entry = {"r.io": auth(Credential(f"user{number}", "x"))}
        write(path, entry if path.name == ".dockercfg" else {"auths": entry})
        assert find_credential("r.io", "a", environment) == Credential(f"user{number}", "x")
        assert find_credential("other.io", "a", environment) == ANONYMOUS


@pytest.mark.parametrize(
    ("registry", "key"),
    [
        ("docker.io", "https://index.docker.io/v1/"),
        ("docker.io", "docker.io"),
        ("docker.io", "registry-1.docker.io"),
        ("r.io:5000", "https://r.io:5000/v2/"),
        ("r.io:5000", "http://r.io:5000"),
        ("r.io", "r.io/team/app"),
        ("r.io", "r.io/team"),
    ],
)
def test_keys(registry: str, key: str, tmp_path: Path, environment: dict[str, str]) -> None:
    write(tmp_path / "explicit.json", {"auths": {key: auth(ROBOT), "other.io": auth(Credential("x", "y"))}})
    assert find_credential(registry, "team/app", environment) == ROBOT


def test_the_longest_key_wins(tmp_path: Path, environment: dict[str, str]) -> None:
    keys = ["r.io", "r.io/team", "r.io/team/app"]
    write(tmp_path / "explicit.json", {"auths": {key: auth(Credential(key, "x")) for key in keys}})
    assert find_credential("r.io", "team/app", environment).username == "r.io/team/app"
    assert find_credential("r.io", "team/app2", environment).username == "r.io/team"
    assert find_credential("r.io", "teams", environment).username == "r.io"
    assert find_credential("r.io:443", "team", environment) == ANONYMOUS


def test_identity_token_and_plain_fields(tmp_path: Path, environment: dict[str, str]) -> None:
    write(
        tmp_path / "explicit.json",
        {"auths": {"a.io": {"identitytoken": "t"}, "b.io": {"username": "u", "password": "p"}, "c.io": {}}},
    )
    assert find_credential("a.io", "x", environment) == Credential(identity_token="t")
    assert find_credential("b.io", "x", environment) == Credential("u", "p")
    assert find_credential("c.io", "x", environment) == ANONYMOUS


@pytest.mark.parametrize(
    "content", ["{", '{"auths": []}', '{"auths": {"r.io": {"auth": "%%%"}}}', '{"auths": {"r.io": {"auth": "YWJj"}}}']
)
def test_broken_files(content: str, tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "explicit.json").write_text(content)
    with pytest.raises(MalformedError, match=r"explicit\.json"):
        find_credential("r.io", "a", environment)


def helper(tmp_path: Path, name: str, script: str) -> None:
    path = tmp_path / "bin" / f"docker-credential-{name}"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\nread -r server\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_helpers(tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", environment["PATH"])
    helper(tmp_path, "one", """printf '{"ServerURL": "%s", "Username": "from one", "Secret": "%s"}' "$server" "$server" """)
    helper(tmp_path, "two", """printf '{"Username": "<token>", "Secret": "refresh"}'""")
    helper(tmp_path, "none", "printf 'credentials not found in native keychain'; exit 1")
    helper(tmp_path, "bad", "printf 'the keychain is locked'; exit 1")
    write(
        tmp_path / "explicit.json",
        {
            "auths": {"a.io": auth(ROBOT), "b.io": auth(ROBOT)},
            "credHelpers": {"a.io": "one", "docker.io": "one", "c.io": "none", "d.io": "bad", "e.io": "missing", "f.io": "../x"},
            "credsStore": "two",
        },
    )
    assert find_credential("a.io", "x", environment) == Credential("from one", "a.io")
    assert find_credential("docker.io", "x", environment).password == "https://index.docker.io/v1/"
    assert find_credential("b.io", "x", environment) == Credential(identity_token="refresh")
    assert find_credential("c.io", "x", environment) == ANONYMOUS
    for host, words in [("d.io", "keychain is locked"), ("e.io", "No such file")]:
        with pytest.raises(DeniedError, match=words):
            find_credential(host, "x", environment)
    with pytest.raises(MalformedError, match="not a valid name"):
        find_credential("f.io", "x", environment)


def test_secrets_are_not_printed() -> None:
    assert "pa$$" not in repr(ROBOT)
    assert "canary" not in repr(Credential(identity_token="canary"))
