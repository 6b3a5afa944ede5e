"""Whatever is stored is found again as it was, in a file and through a helper; any file gives a value or a typed error."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from registry_client.credentials import ANONYMOUS, Credential, erase_credential, find_credential, store_credential
from registry_client.errors import RegistryError
from tests.credential_helper import install_helper

USERNAME = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters=":"), min_size=1, max_size=40)
PASSWORD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=80)
REGISTRY = st.sampled_from(["r.io", "r.io:443", "r.io:5000", "docker.io", "R.io", "[::1]:5000", "localhost"])
KEYS = st.sampled_from(
    ["auths", "credHelpers", "credsStore", "r.io", "https://r.io/v1/", "r.io:443", "x.io", "auth", "identitytoken"]
)
VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["dTpw", "test", "dXNlcg=="])
JSON = st.recursive(VALUES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12)


def check_round_trip(registry: str, credential: Credential, authfile: Path, environment: dict[str, str]) -> None:
    place = {"authfile": authfile, "environment": environment}
    store_credential(registry, credential, **place)  # type: ignore[arg-type]
    assert find_credential(registry, "team/app", **place) == credential  # type: ignore[arg-type]
    assert find_credential("other.io", "team/app", **place) == ANONYMOUS  # type: ignore[arg-type]
    assert erase_credential(registry, **place)  # type: ignore[arg-type]
    assert find_credential(registry, "team/app", **place) == ANONYMOUS  # type: ignore[arg-type]


@given(REGISTRY, USERNAME, PASSWORD)
@example("r.io", "robot$project+name", "pa$$:word$HOME`id`'\"\\")
@example("gcr.io", "_json_key", '{\n  "type": "service_account"\n}\n')
def test_through_a_file(registry: str, username: str, password: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        check_round_trip(registry, Credential(username, password), Path(directory, "auth.json"), {})


@given(REGISTRY, USERNAME, PASSWORD)
@example("r.io", "robot$project+name", "pa$$:word$HOME`id`'\"\\")
@example("gcr.io", "_json_key", '{\n  "type": "service_account"\n}\n')
def test_through_a_helper(registry: str, username: str, password: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        kept = install_helper(Path(directory))
        authfile = Path(directory, "auth.json")
        authfile.write_text('{"credsStore": "test"}')
        check_round_trip(registry, Credential(username, password), authfile, {"PATH": directory})
        assert set((kept / "arguments").read_text().splitlines()) == {"store", "get", "erase"}


@given(st.binary(max_size=64) | st.dictionaries(KEYS, JSON, max_size=5).map(lambda value: json.dumps(value).encode()))
def test_any_file(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        authfile = Path(directory, "auth.json")
        authfile.write_bytes(data)
        try:
            find_credential("r.io", "team/app", authfile=authfile, environment={"PATH": directory})
            store_credential("r.io", Credential("robot$x", "y"), authfile=authfile, environment={"PATH": directory})
        except RegistryError:
            assert authfile.read_bytes() == data
            return
        assert find_credential("r.io", "team/app", authfile=authfile) == Credential("robot$x", "y")
        kept: dict[str, Any] = json.loads(data) if data.strip() else {}
        now = json.loads(authfile.read_bytes())
        assert {**kept, "auths": None} == {**now, "auths": None}
        assert {**(kept.get("auths") or {}), "r.io": None} == {**now["auths"], "r.io": None}
