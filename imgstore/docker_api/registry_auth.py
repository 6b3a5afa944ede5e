"""The header X-Registry-Auth: who the client is to the registry of the image.

Source: moby ``api/types/registry/authconfig.go``; docker/cli puts there what its own login keeps, and ``{}`` where it keeps nothing.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from starlette.requests import Request

from imgstore.docker_api.errors import ApiError
from registry_client.credentials import TOKEN_USERNAME, Credential, check_credential
from registry_client.errors import InvalidError

_HEADER = "X-Registry-Auth"


def credential_of(request: Request) -> Credential | None:
    """The credential that came with a request; None where there is none, or none that can be read: then the store's own logins count.

    Raises:
        ApiError: 400; a user name or password that cannot be sent to a registry.
    """
    fields = _decode(request.headers.get(_HEADER, ""))
    username, password = _text(fields, "username"), _text(fields, "password")
    if not username and (pair := _text(fields, "auth")):
        username, _, password = _decode_base64(pair).decode(errors="replace").partition(":")
    token = _text(fields, "identitytoken")
    if username == TOKEN_USERNAME:
        username, password, token = "", "", token or password
    credential = Credential(username, password, token, _text(fields, "registrytoken"), origin=_HEADER)
    if not credential:
        return None
    try:
        check_credential(credential)
    except InvalidError as error:
        raise ApiError(400, f"invalid {_HEADER} header: {error}") from None
    return credential


def _decode(header: str) -> dict[str, Any]:
    try:
        fields = json.loads(_decode_base64(header))
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _decode_base64(text: str) -> bytes:
    """Either alphabet, padded or not; ``b""`` for what is no base64."""
    text = text.strip().rstrip("=").replace("+", "-").replace("/", "_")
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        return b""


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) else ""
