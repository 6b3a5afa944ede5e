"""``GET /events``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from imgstore.docker_api.errors import ApiError
from imgstore.docker_api.event_filters import accepts, parse_time
from imgstore.docker_api.events import Events
from imgstore.docker_api.requests import filters_of
from imgstore.docker_api.service import service_of


async def stream_events(request: Request) -> Response:
    """Events as they happen, an object a line, those of the past first where ``since`` or ``until`` is given; ends at ``until``."""
    query = request.query_params
    since, until = parse_time(query.get("since")), parse_time(query.get("until"))
    if until is not None and since is not None and until < since:
        raise ApiError(400, f"`since` time ({query['since']}) cannot be after `until` time ({query['until']})")
    filters = filters_of(request, None)
    lines = _lines(service_of(request).events, filters, since, until)
    return StreamingResponse(lines, media_type="application/json")


async def _lines(
    events: Events, filters: dict[str, list[str]], since_ns: int | None, until_ns: int | None
) -> AsyncIterator[bytes]:
    with events.subscribed(partial(accepts, filters), since_ns=since_ns, until_ns=until_ns) as subscription:
        while batch := await subscription.read():
            yield b"".join(event.to_json() for event in batch)


routes = [Route("/events", stream_events)]
