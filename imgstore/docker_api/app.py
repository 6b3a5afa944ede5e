"""The ASGI application: security, versions, headers and errors around the routes of the other modules."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imgstore.docker_api import (
    archives,
    commits,
    container_files,
    containers,
    event_stream,
    images,
    inquiries,
    login,
    pushes,
    system,
    unsupported,
    usage,
    volumes,
)
from imgstore.docker_api.errors import ApiError, answer_error, answer_unknown, error_response
from imgstore.docker_api.security import Guard
from imgstore.docker_api.service import Service
from imgstore.docker_api.versions import NEWEST, OLDEST, OLDEST_ANSWERED, show_version
from imgstore.errors import ImgstoreError

_VERSIONED = re.compile(r"/v(\d{1,3})\.(\d{1,3})(/.*)", re.DOTALL | re.ASCII)

_log = logging.getLogger(__name__)


def create_app(service: Service, *, allowed_hosts: frozenset[str] = frozenset()) -> Starlette:
    """The application that answers for ``service``.

    Args:
        allowed_hosts: names that the Host header may have on TCP, beside addresses and ``localhost``.
    """
    app = Starlette(
        routes=[
            *system.routes,
            *login.routes,
            *event_stream.routes,
            *archives.routes,
            *pushes.routes,
            *inquiries.routes,
            *images.routes,
            *commits.routes,
            *container_files.routes,
            *containers.routes,
            *volumes.routes,
            *usage.routes,
            *unsupported.routes,
        ],
        middleware=[Middleware(_Headers), Middleware(_Unforeseen), Middleware(Guard, allowed_hosts), Middleware(_Versions)],
        exception_handlers={HTTPException: answer_unknown, ApiError: answer_error, ImgstoreError: answer_error},
    )
    app.router.redirect_slashes = False
    app.state.service = service
    return app


class _Headers:
    """Puts Docker's headers on every answer, and a line for each request into the log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = 0
        path = scope["path"]  # a version is taken off it below

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _set_headers(message)
            await send(message)

        begin = time.monotonic()
        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            # Without the query and the headers: there can be secrets in them.
            _log.debug("%s %s: %d in %.0f ms", scope["method"], quote(path), status, (time.monotonic() - begin) * 1000)


class _Unforeseen:
    """Answers 500 where a handler failed in a way that nobody thought of; cuts the connection if an answer has begun."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except ClientDisconnect:
            _log.debug("%s: the client hung up", quote(scope["path"]))
        except Exception as error:
            response = await answer_error(Request(scope), error)
            if started:
                return  # the server sees that the answer lacks its end, and closes the connection
            await response(scope, receive, send)


class _Versions:
    """Takes the version off the path, and refuses one that we do not speak."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        version = NEWEST
        if match := _VERSIONED.fullmatch(scope["path"]):
            version = int(match[1]), int(match[2])
            scope["path"] = match[3]
            scope.pop("raw_path", None)
        scope["imgstore.api_version"] = version
        refusal = _refusal(version)
        app = self._app if refusal is None else error_response(400, refusal)
        await app(scope, receive, send)


def _refusal(version: tuple[int, int]) -> str | None:
    shown = f"client version {show_version(version)} is too"
    if version > NEWEST:
        return f"{shown} new. Maximum supported API version is {show_version(NEWEST)}"
    if version < OLDEST_ANSWERED:
        oldest = show_version(OLDEST)
        return f"{shown} old. Minimum supported API version is {oldest}, please upgrade your client to a newer version"
    return None


def _set_headers(message: MutableMapping[str, Any]) -> None:
    headers = MutableHeaders(scope=message)
    headers["Server"] = "imgstore (linux)"
    headers["Api-Version"] = show_version(NEWEST)
    headers["Docker-Experimental"] = "false"
    headers["Ostype"] = "linux"
