"""The ASGI application: versions and headers around the routes of the other modules."""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imgstore.docker_api import images, system
from imgstore.docker_api.errors import answer_error, answer_unknown, error_response
from imgstore.docker_api.service import Service

NEWEST = (1, 51)
OLDEST = (1, 24)
OLDEST_ANSWERED = (1, 22)
"""skopeo asks in this version for what has not changed since; Docker itself answers up from `OLDEST`."""

_VERSIONED = re.compile(r"/v(\d{1,3})\.(\d{1,3})(/.*)")


def create_app(service: Service) -> Starlette:
    """The application that answers for ``service``."""
    app = Starlette(
        routes=[*system.routes, *images.routes],
        exception_handlers={HTTPException: answer_unknown, Exception: answer_error},
    )
    app.state.service = service
    app.add_middleware(_Versions)
    return app


class _Versions:
    """Takes the version off the path, refuses one that we do not speak, and puts Docker's headers on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                _set_headers(message)
            await send(message)

        version = NEWEST
        if match := _VERSIONED.fullmatch(scope["path"]):
            version = int(match[1]), int(match[2])
            scope["path"] = match[3]
            scope.pop("raw_path", None)
        scope["imgstore.api_version"] = version
        refusal = _refusal(version)
        app = self._app if refusal is None else error_response(400, refusal)
        await app(scope, receive, send_with_headers)


def _refusal(version: tuple[int, int]) -> str | None:
    shown = f"client version {version[0]}.{version[1]} is too"
    if version > NEWEST:
        return f"{shown} new. Maximum supported API version is {NEWEST[0]}.{NEWEST[1]}"
    if version < OLDEST_ANSWERED:
        return f"{shown} old. Minimum supported API version is {OLDEST[0]}.{OLDEST[1]}, please upgrade your client to a newer version"
    return None


def _set_headers(message: MutableMapping[str, Any]) -> None:
    headers = MutableHeaders(scope=message)
    headers["Server"] = "imgstore (linux)"
    headers["Api-Version"] = f"{NEWEST[0]}.{NEWEST[1]}"
    headers["Docker-Experimental"] = "false"
    headers["Ostype"] = "linux"
