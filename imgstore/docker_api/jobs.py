"""Jobs: long work in threads, each for all clients that want the same.

A job tells its messages from its threads; each goes to all who listen, and who comes late gets the present state first. A client that
reads slowly gets every change of state, but only the newest progress of each layer; nothing that it does holds the work up. When the
last client has left, the work is stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import logging
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import anyio
import anyio.to_thread

from imgstore.docker_api.errors import ApiError
from imgstore.errors import ImgstoreError
from imgstore.stop import Stop

JOBS_MAX = 16
"""Jobs that run at once; others wait. Each has a dozen threads while it converts a layer."""

LAG_MAX = 10_000
"""Messages that may wait for one client. Who leaves more of them has stopped to read, and is cut off."""

PRESENT_MAX = 1000
"""Messages that a client gets who comes when the work is under way."""

_END_SECONDS_MAX = 5.0

_log = logging.getLogger(__name__)


class Teller:
    """Where work tells its messages, from any of its threads.

    Args:
        post: takes the layer that a message is about (None: of none), whether it only tells progress, and its bytes.
    """

    def __init__(self, post: Callable[[str | None, bool, bytes], None]) -> None:
        self._post = post

    def send(self, message: Mapping[str, Any]) -> None:
        """Any message."""
        self._post(None, False, encode(message))

    def status(self, status: str, *, id: str = "") -> None:
        """A line, ``id: status`` or the status alone."""
        self.send({"status": status} | ({"id": id} if id else {}))

    def layer(self, layer: str, status: str) -> None:
        """A layer enters a state."""
        self._post(layer, False, encode({"status": status, "progressDetail": {}, "id": layer}))

    def layer_progress(self, layer: str, status: str, current: int, total: int | None) -> None:
        """How far a layer is in its state, in bytes."""
        detail = {"current": current} | ({} if total is None else {"total": total})
        self._post(layer, True, encode({"status": status, "progressDetail": detail, "id": layer}))


def encode(message: Mapping[str, Any]) -> bytes:
    """A message as it goes out: JSON, with the line end that Docker puts behind it."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\r\n"


Act = Callable[[Teller, Stop], None]
"""Work for a thread: tells its messages, and ends soon when it is stopped."""


class Listener:
    """What waits to be sent to one client. Used in the event loop only.

    Attributes:
        overrun: the client left too much.
    """

    def __init__(self) -> None:
        self.overrun = False
        self._waiting: dict[Hashable, bytes] = {}
        self._numbers = itertools.count()
        self._changed = asyncio.Event()
        self._ended = False

    def put(self, layer: str | None, is_progress: bool, message: bytes) -> None:
        """Takes a message; it supersedes what still waits of its layer's progress."""
        if layer is not None:
            self._waiting.pop(layer, None)
        self._waiting[layer if is_progress else next(self._numbers)] = message
        if len(self._waiting) > LAG_MAX:
            self.overrun = True
            self._waiting.clear()
            self._ended = True
        self._changed.set()

    def end(self) -> None:
        """There will be no more."""
        self._ended = True
        self._changed.set()

    async def take(self) -> bytes:
        """All that waits, as soon as there is something; nothing at the end."""
        while not self._waiting and not self._ended:
            self._changed.clear()
            await self._changed.wait()
        messages, self._waiting = b"".join(self._waiting.values()), {}
        return messages


class Job:
    """Work that runs for some clients. Made by `Jobs.join`; used in the event loop only.

    Attributes:
        error: with which it ended, or None.
    """

    def __init__(self, act: Act, unused: Callable[[], None], room: asyncio.Semaphore, threads: anyio.CapacityLimiter) -> None:
        self.error: Exception | None = None
        self._stop = Stop()
        self._loop = asyncio.get_running_loop()
        self._listeners: set[Listener] = set()
        self._present: dict[Hashable, bytes] = {}
        self._numbers = itertools.count()
        self._started = False
        self.task = self._loop.create_task(self._run(act, room, threads))
        self.task.add_done_callback(lambda task: None if self._started else unused())

    def add(self) -> Listener:
        """One more client, which gets the present state first."""
        listener = Listener()
        for message in self._present.values():
            listener.put(None, False, message)
        self._listeners.add(listener)
        return listener

    def remove(self, listener: Listener) -> bool:
        """A client less. True when it was the last one, for which the work was stopped."""
        self._listeners.discard(listener)
        if self._listeners or self.task.done():
            return False
        self._stop.set()
        if not self._started:
            self.task.cancel()
        return True

    async def _run(self, act: Act, room: asyncio.Semaphore, threads: anyio.CapacityLimiter) -> None:
        def start() -> None:
            self._started = True
            act(Teller(self._post_from_thread), self._stop)

        try:
            if room.locked():
                self._post(None, False, encode({"status": "Waiting"}))
            async with room:
                await anyio.to_thread.run_sync(start, limiter=threads, abandon_on_cancel=True)
        except Exception as error:
            self.error = error
            if not isinstance(error, (ApiError, ImgstoreError)):
                _log.error("work failed", exc_info=error)
        finally:
            for listener in self._listeners:
                listener.end()

    def _post_from_thread(self, layer: str | None, is_progress: bool, message: bytes) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody listens
            self._loop.call_soon_threadsafe(self._post, layer, is_progress, message)

    def _post(self, layer: str | None, is_progress: bool, message: bytes) -> None:
        self._present[next(self._numbers) if layer is None else layer] = message
        if len(self._present) > PRESENT_MAX:
            del self._present[next(iter(self._present))]
        for listener in self._listeners:
            listener.put(layer, is_progress, message)


class Jobs:
    """The jobs of one endpoint. Used in the event loop only."""

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(JOBS_MAX)
        self._threads = anyio.CapacityLimiter(JOBS_MAX)
        self._wanted: dict[Hashable, Job] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """How many jobs somebody waits for."""
        return len(self._wanted)

    def join(self, key: Hashable, act: Act, unused: Callable[[], None] = lambda: None) -> tuple[Job, Listener]:
        """Listens to the job of this key, or starts it with ``act`` if none runs. Every call is followed by a `leave`.

        Args:
            unused: called if the job ends before ``act`` could begin.
        """
        job = self._wanted.get(key)
        if job is None or job.task.done():
            job = self._wanted[key] = Job(act, unused, self._room, self._threads)
            self._tasks.add(job.task)
            job.task.add_done_callback(functools.partial(self._forget, key, job))
        return job, job.add()

    def leave(self, key: Hashable, job: Job, listener: Listener) -> None:
        """Listens no more. When nobody does, the job is stopped, and who wants the same from now on starts anew."""
        if job.remove(listener):
            self._forget(key, job)

    async def end(self) -> None:
        """Waits for jobs that were stopped: what they have of the store is given back then."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_END_SECONDS_MAX)

    def _forget(self, key: Hashable, job: Job, task: asyncio.Task[None] | None = None) -> None:
        if self._wanted.get(key) is job:
            del self._wanted[key]
        if task is not None:
            self._tasks.discard(task)
