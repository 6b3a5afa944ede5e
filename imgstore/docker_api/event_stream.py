"""``GET /events``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from imgstore.docker_api.errors import ApiError
from imgstore.docker_api.event_filters import accepts, parse_time
from imgstore.docker_api.events import Event, Events
from imgstore.docker_api.requests import filters_of
from imgstore.docker_api.service import service_of


async def stream_events(request: Request) -> Response:
    """Events as they happen, an object a line, those of the past first where ``since`` or ``until`` is given; ends at ``until``."""
    query = request.query_params
    since, until = parse_time(query.get("since")), parse_time(query.get("until"))
    if until is not None and since is not None and until < since:
        raise ApiError(400, f"`since` time ({query['since']}) cannot be after `until` time ({query['until']})")
    wanted = partial(accepts, filters_of(request, None))
    return _EventStream(service_of(request).events, wanted, since, until)


class _EventStream(StreamingResponse):
    """Listens before the headers are sent: whoever has seen them misses nothing."""

    def __init__(self, events: Events, wanted: Callable[[Event], bool], since_ns: int | None, until_ns: int | None) -> None:
        super().__init__(self._lines(), media_type="application/json")
        self._subscribed = partial(events.subscribed, wanted, since_ns=since_ns, until_ns=until_ns)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._subscribed() as self._subscription:
            await super().__call__(scope, receive, send)

    async def _lines(self) -> AsyncIterator[bytes]:
        while batch := await self._subscription.read():
            yield b"".join(event.to_json() for event in batch)


routes = [Route("/events", stream_events)]
