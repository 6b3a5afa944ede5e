"""X-Registry-Auth, as Docker's clients send it and as others do."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from starlette.requests import Request

from imgstore.docker_api.errors import ApiError
from imgstore.docker_api.registry_auth import credential_of
from registry_client.credentials import Credential


def request(header: str | None) -> Request:
    headers = [] if header is None else [(b"x-registry-auth", header.encode("latin-1"))]
    return Request({"type": "http", "headers": headers})


def encode(fields: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(fields).encode()).decode()


ROBOT = Credential("robot$team+ci", "pä$$:word?>")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"username": ROBOT.username, "password": ROBOT.password, "serveraddress": "https://r.example/v1/"}, ROBOT),
        ({"auth": base64.b64encode(f"{ROBOT.username}:{ROBOT.password}".encode()).decode()}, ROBOT),
        ({"username": "u", "password": "p", "auth": base64.b64encode(b"other:secret").decode()}, Credential("u", "p")),
        ({"username": "u", "identitytoken": "refresh"}, Credential("u", identity_token="refresh")),
        ({"username": "<token>", "password": "refresh"}, Credential(identity_token="refresh")),
        ({"registrytoken": "bearer"}, Credential(registry_token="bearer")),
        ({}, None),
        ({"username": "", "password": ""}, None),
        ({"username": 7, "password": ["x"]}, None),
        ([], None),
        ("text", None),
        (None, None),
    ],
)
def test_credentials(fields: Any, expected: Credential | None) -> None:
    padded = encode(fields)
    assert credential_of(request(padded)) == expected
    assert credential_of(request(padded.rstrip("="))) == expected
    assert credential_of(request(padded.replace("-", "+").replace("_", "/"))) == expected


@pytest.mark.parametrize("header", [None, "", "!!!", "e30", "\xff\xfe", "AAAA", encode({})[:-1] + "x", "[" * 5000])
def test_what_cannot_be_read_is_as_if_it_were_not_there(header: str | None) -> None:
    assert credential_of(request(header)) is None


def test_deep_json_is_as_if_it_were_not_there() -> None:
    assert credential_of(request(base64.b64encode(b"[" * 100_000).decode())) is None


@pytest.mark.parametrize(
    "fields", [{"username": "a:b", "password": "p"}, {"username": "a\nb", "password": "p"}, {"password": "p"}]
)
def test_what_cannot_be_sent_to_a_registry_is_refused(fields: Any) -> None:
    with pytest.raises(ApiError) as caught:
        credential_of(request(encode(fields)))
    assert caught.value.status == 400
    assert "X-Registry-Auth" in str(caught.value)
