"""Requests: the version, the query and the body of one, as Docker's clients send them.

Source: moby ``api/server/httputils`` (form.go, httputils.go) and ``api/types/filters``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Set
from typing import Any

from starlette.requests import Request

from imgstore.docker_api.errors import ApiError

_BODY_SECONDS_MAX = 30.0  # for what fits into one packet

_FALSE = frozenset({"", "0", "no", "false", "none"})


def version_of(request: Request) -> tuple[int, int]:
    """The API version that the client speaks: that of the path, or our newest."""
    version: tuple[int, int] = request.scope["imgstore.api_version"]
    return version


def flag(request: Request, name: str, *, default: bool = False) -> bool:
    """A query parameter as moby's ``BoolValue`` reads it: empty, 0, no, false and none are false, all else is true."""
    value = request.query_params.get(name)
    return default if value is None else value.strip().lower() not in _FALSE


def filters_of(request: Request, known: Set[str] | None) -> dict[str, list[str]]:
    """The ``filters`` of the query: name to values, of which at least one is to hold.

    Both forms are read: ``{"dangling": {"true": true}}`` and the older ``{"dangling": ["true"]}``.

    Args:
        known: names that there are; None: of any other name nothing is said, as Docker does for events.

    Raises:
        ApiError: 400; no such JSON, or a filter that is not in ``known``.
    """
    text = request.query_params.get("filters")
    if not text:
        return {}
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        raise ApiError(400, f"invalid filter: {text[:200]}") from None
    found: dict[str, list[str]] = {}
    for name, values in given.items() if isinstance(given, dict) else [("", None)]:
        if isinstance(values, dict):
            values = [value for value, on in values.items() if on is not False]
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise ApiError(400, f"invalid filter: {text[:200]}")
        if known is not None and name not in known:
            raise ApiError(400, f"invalid filter '{name}'")
        found[name] = values
    return found


async def json_body(request: Request, *, limit: int = 1 << 20) -> Any:
    """The body as JSON; None where it is empty.

    Raises:
        ApiError: 400; no JSON, or not declared as such. 408, 413: it takes too long, or more than ``limit`` bytes.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS_MAX):
            async for piece in request.stream():
                body += piece
                if len(body) > limit:
                    raise ApiError(413, f"request body is longer than {limit} bytes")
    except TimeoutError:
        raise ApiError(408, f"request body took longer than {_BODY_SECONDS_MAX:.0f} seconds") from None
    if not body:
        return None
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(400, f"unsupported Content-Type header ({kind}): must be 'application/json'")
    try:
        return json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"invalid JSON: {error}") from None
