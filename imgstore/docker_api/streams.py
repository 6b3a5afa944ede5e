"""Streams: answers that tell how long work goes on, as JSON objects, one a line.

Source: moby ``pkg/streamformatter``, ``pkg/jsonmessage``, ``distribution/xfer``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable

import anyio
from starlette.types import Message, Receive, Scope, Send

from imgstore.docker_api.errors import error_response, message_of, status_of
from imgstore.docker_api.jobs import Act, Job, Jobs, Listener, Teller, encode
from imgstore.progress import ProgressEvent, State

PROGRESS_SECONDS = 0.1
"""How often a client is told how far a layer is, at most: as often as by Docker."""

_BODY_MAX = 1 << 20
"""Bytes of a body that nobody asked for; docker-py sends ``{}``."""

_MEASURED = frozenset({State.DOWNLOADING, State.CONVERTING, State.COMPRESSING, State.PUSHING})


class Pace:
    """Lets through how far a layer is ten times a second, and always where a state begins or ends."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._told: dict[str, tuple[State | None, float]] = {}

    def allows(self, event: ProgressEvent) -> bool:
        """Whether to tell this one."""
        now = time.monotonic()
        with self._guard:
            state, when = self._told.get(event.layer, (None, 0.0))
            if state is event.state and event.current != event.total and now - when < PROGRESS_SECONDS:
                return False
            self._told[event.layer] = event.state, now
            return True


class LayerMessages:
    """Tells the progress of layers in Docker's messages: one for each new state, and ten a second that say how far a layer is.

    The lowest layer is converted while it downloads. Clients that print only what has no progress are told of that after the download.
    """

    def __init__(self, teller: Teller) -> None:
        self._teller = teller
        self._guard = threading.Lock()
        self._states: dict[str, State] = {}
        self._pace = Pace()
        self._downloaded: set[str] = set()

    def __call__(self, event: ProgressEvent) -> None:
        """The ProgressSink. What is about the whole is told only where something went wrong and is tried again."""
        if event.layer and event.state is not None:
            with self._guard:
                if event.state in _MEASURED:
                    self._tell_progress(event, event.state)
                elif self._states.get(event.layer) is not event.state:
                    self._tell_state(event, event.state)
        elif event.state is State.RETRYING:
            self._teller.status(event.message)

    def _tell_state(self, event: ProgressEvent, state: State) -> None:
        before = self._states.get(event.layer)
        self._teller.layer(event.layer, f"{state} {event.message}".rstrip())
        if state is State.DOWNLOADED:
            self._downloaded.add(event.layer)
            if before is State.CONVERTING:
                self._teller.layer(event.layer, State.CONVERTING)
                return
        self._states[event.layer] = state

    def _tell_progress(self, event: ProgressEvent, state: State) -> None:
        is_new = self._states.get(event.layer) is not state
        if is_new and state is State.CONVERTING and event.layer in self._downloaded:
            self._teller.layer(event.layer, state)
        self._states[event.layer] = state
        if self._pace.allows(event):
            self._teller.layer_progress(event.layer, state, event.current, event.total)


class StreamResponse:
    """The answer of a handler: what a job tells. An ASGI application, for one request.

    It begins with the first message; a job that fails before it gives an error with its status. Later, the error is the last message.
    A client that hangs up leaves the job at once.

    Args:
        key: clients with the same key share one job; None: this one has its own.
        unused: called if the job ends before ``act`` could begin.
        always_ok: the status is 200 even if the error is all there is.
    """

    def __init__(
        self, jobs: Jobs, act: Act, *, key: Hashable = None, unused: Callable[[], None] = lambda: None, always_ok: bool = False
    ) -> None:
        self._jobs = jobs
        self._act = act
        self._unused = unused
        self._key = self if key is None else key
        self._always_ok = always_ok

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        job, listener = self._jobs.join(self._key, self._act, self._unused)
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(watch_client, receive, group.cancel_scope)
                await self._send(job, listener, scope, receive, send)
                group.cancel_scope.cancel()
        finally:
            self._jobs.leave(self._key, job, listener)

    async def _send(self, job: Job, listener: Listener, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        while messages := await listener.take():
            if not started:
                await send(_START)
                started = True
            await send({"type": "http.response.body", "body": messages, "more_body": True})
        if listener.overrun:
            return  # the server closes the connection of an answer that lacks its end
        last = b""
        if job.error is not None:
            if not started and not self._always_ok:
                await error_response(status_of(job.error), message_of(job.error))(scope, receive, send)
                return
            last = encode({"errorDetail": {"message": message_of(job.error)}, "error": message_of(job.error)})
        if not started:
            await send(_START)
        await send({"type": "http.response.body", "body": last})


_START: Message = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}


async def watch_client(receive: Receive, scope: anyio.CancelScope) -> None:
    """Ends the answer when the client hangs up, or sends a body without end."""
    received = 0
    while received <= _BODY_MAX:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        received += len(message.get("body", b""))
    scope.cancel()
