"""Events: what happened through this endpoint, for ``docker events``. Kept in memory; what other processes do to the store is not seen.

Source: moby ``daemon/events/events.go``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field

KEPT = 256
"""Events that a client who asks for the past can get: as many as with Docker."""

WAITING_MAX = 1024
"""Events that a client may be behind, as with Docker; one that reads more slowly misses the oldest of them."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    Attributes:
        type: ``image``, ``container``, ``volume``, ...
        action: ``pull``, ``tag``, ``delete``, ...
        id: of the object: the image id, or the name that was pulled or pushed, as Docker has it.
        attributes: further words about it.
        time_ns: nanoseconds since the epoch.
    """

    type: str
    action: str
    id: str
    attributes: Mapping[str, str]
    time_ns: int = field(default_factory=time.time_ns)

    def to_json(self) -> bytes:
        """As clients read it, one line; with the fields that Docker had first, and leaves out from version 1.52 on."""
        old: dict[str, object] = {}
        if self.type in ("image", "container"):
            old = {"status": self.action, "id": self.id}
            if self.type == "container" and "image" in self.attributes:
                old["from"] = self.attributes["image"]
        value = old | {
            "Type": self.type,
            "Action": self.action,
            "Actor": {"ID": self.id, "Attributes": dict(self.attributes)},
            "scope": "local",
            "time": self.time_ns // 10**9,
            "timeNano": self.time_ns,
        }
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="replace") + b"\n"


class Subscription:
    """The events that one client is to get. Read by one task; the events come from any thread.

    Args:
        accepts: whether the client wants an event.
        past: events that it gets first.
        until_ns: no event after this point in time; None: all that come.
    """

    def __init__(self, accepts: Callable[[Event], bool], past: Iterable[Event], until_ns: int | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._accepts = accepts
        self._until_ns = until_ns
        self._waiting = deque(filter(accepts, past), WAITING_MAX)
        self._changed = asyncio.Event()
        self._closed = False

    def put(self, event: Event) -> None:
        """Adds an event unless the client does not want it."""
        if self._accepts(event) and (self._until_ns is None or event.time_ns <= self._until_ns):
            self._waiting.append(event)
            self._wake()

    def close(self) -> None:
        """Nothing comes any more; what waits can still be read."""
        self._closed = True
        self._wake()

    async def read(self) -> list[Event]:
        """All that waits, as soon as that is something; nothing when the end has come."""
        while True:
            self._changed.clear()
            closed, found = self._closed, []
            with contextlib.suppress(IndexError):
                while True:  # popleft is atomic; to look at the length first is not
                    found.append(self._waiting.popleft())
            rest = None if self._until_ns is None else (self._until_ns - time.time_ns()) / 10**9
            if found or closed or (rest is not None and rest <= 0):
                return found
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(rest):
                    await self._changed.wait()

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
            self._loop.call_soon_threadsafe(self._changed.set)


class Events:
    """The events of one endpoint. Published from any thread; who listens never holds up who publishes."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._past: deque[Event] = deque(maxlen=KEPT)
        self._subscriptions: set[Subscription] = set()
        self._closed = False

    def publish(self, event: Event) -> None:
        """Tells all who listen."""
        with self._guard:
            self._past.append(event)
            for subscription in self._subscriptions:
                subscription.put(event)

    def past(self) -> list[Event]:
        """The latest events, oldest first."""
        with self._guard:
            return list(self._past)

    @property
    def listeners(self) -> int:
        """How many listen now."""
        return len(self._subscriptions)

    @contextlib.contextmanager
    def subscribed(
        self, accepts: Callable[[Event], bool], *, since_ns: int | None, until_ns: int | None
    ) -> Generator[Subscription, None, None]:
        """Events that ``accepts`` says yes to, until the end of the block.

        Args:
            since_ns, until_ns: with either, what is kept of the past between the two comes first, and nothing lies between past and
                present. With neither, only what comes.
        """
        with self._guard:
            wanted = since_ns is not None or until_ns is not None
            first, last = since_ns or 0, time.time_ns() if until_ns is None else until_ns
            past = [event for event in self._past if first <= event.time_ns <= last] if wanted else []
            subscription = Subscription(accepts, past, until_ns)
            self._subscriptions.add(subscription)
            if self._closed:
                subscription.close()
        try:
            yield subscription
        finally:
            with self._guard:
                self._subscriptions.discard(subscription)

    def close(self) -> None:
        """Lets all who listen come to their end, now and in future."""
        with self._guard:
            self._closed = True
            for subscription in self._subscriptions:
                subscription.close()
