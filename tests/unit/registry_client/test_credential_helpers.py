"""The protocol of credential helpers, with programs that keep it and programs that break it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from registry_client import credential_helpers
from registry_client.credential_helpers import HELPER_OUTPUT_MAX, CredentialHelper
from registry_client.errors import DeniedError, MalformedError, RegistryError
from tests.credential_helper import install_helper


def helper(tmp_path: Path, script: str | None = None, name: str = "test") -> CredentialHelper:
    install_helper(tmp_path, name, script)
    return CredentialHelper(name, {"PATH": str(tmp_path)})


def test_store_get_erase(tmp_path: Path) -> None:
    keychain = helper(tmp_path)
    assert keychain.get("r.io") is None
    keychain.store("r.io", "robot$team+x", "s3cret:$HOME\n")
    keychain.store("https://index.docker.io/v1/", "wörd", "x" * 100_000)
    assert keychain.get("r.io") == ("robot$team+x", "s3cret:$HOME\n")
    assert keychain.get("https://index.docker.io/v1/") == ("wörd", "x" * 100_000)
    keychain.erase("r.io")
    keychain.erase("r.io")
    assert keychain.get("r.io") is None
    kept = tmp_path / "kept-by-test"
    assert set((kept / "arguments").read_text().split("\n")) == {"get", "store", "erase", ""}
    assert json.loads((kept / "https___index.docker.io_v1_.json").read_text())["ServerURL"] == "https://index.docker.io/v1/"


@pytest.mark.parametrize(
    ("script", "kind", "words"),
    [
        ("echo 'the keychain is locked'; exit 1", DeniedError, "test: get for r.io ended with 1: 'the keychain is locked'"),
        ("echo 'no D-Bus' >&2; exit 3", DeniedError, "ended with 3: 'no D-Bus'"),
        ("echo '{\"Secret\": \"canary\"}'; exit 1", DeniedError, "ended with 1$"),
        ("kill -9 $$", DeniedError, "ended with -9"),
        ("echo 'canary'", MalformedError, "answer of docker-credential-test for r.io: not valid JSON"),
        ("echo '[\"canary\"]'", MalformedError, "a list, not an object"),
        ('echo \'{"Username": 5, "Secret": "canary"}\'', MalformedError, "Username is a number"),
        ("cat /dev/zero", DeniedError, f"more than {HELPER_OUTPUT_MAX} bytes"),
        ("cat /dev/zero >&2", DeniedError, f"more than {HELPER_OUTPUT_MAX} bytes"),
    ],
)  # fmt: skip
def test_what_goes_wrong(script: str, kind: type[RegistryError], words: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=words) as caught:
        helper(tmp_path, script).get("r.io")
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "script", ["exec sleep 30", "echo '{}'; exec >&- 2>&-; exec sleep 30", "while :; do echo; sleep 0.05; done"]
)
def test_one_that_does_not_end_is_killed(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credential_helpers, "HELPER_TIMEOUT", 0.3)
    started = time.monotonic()
    with pytest.raises(DeniedError, match="in 0 seconds"):
        helper(tmp_path, f"exec 2>&-; {script}").get("r.io")
    assert time.monotonic() - started < 20


def test_one_that_does_not_read(tmp_path: Path) -> None:
    with pytest.raises(DeniedError, match="ended with 1: 'full'"):
        helper(tmp_path, "exec <&-; echo full; exit 1").store("r.io", "user", "canary" * 100_000)


def test_one_that_repeats_what_it_is_told(tmp_path: Path) -> None:
    for script in ("cat; exit 1", "echo 'bad password: canary'; exit 1", "echo 'bad password: canary' >&2; exit 1"):
        with pytest.raises(DeniedError, match=r"ended with 1$") as caught:
            helper(tmp_path, script).store("r.io", "user", "canary")
        assert "canary" not in repr(caught.value)


def test_one_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DeniedError, match="docker-credential-nope: No such file"):
        CredentialHelper("nope", {"PATH": str(tmp_path)}).get("r.io")
    for name in ("../x", "", "a b", "a/b", "a\n"):
        with pytest.raises(MalformedError, match="not a valid name"):
            CredentialHelper(name, {})
