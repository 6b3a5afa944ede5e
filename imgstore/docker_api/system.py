"""The endpoint itself: is it there, and what is it."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route


async def ping(request: Request) -> Response:
    """``GET|HEAD /_ping``; version 1 of the builder, so that clients do not look for BuildKit."""
    return PlainTextResponse("OK", headers={"Builder-Version": "1", "Cache-Control": "no-cache", "Pragma": "no-cache"})


routes = [Route("/_ping", ping, methods=["GET", "HEAD"])]
