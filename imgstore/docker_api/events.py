"""Events: what happened through this endpoint, for ``docker events``. Kept in memory; what other processes do to the store is not seen."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

KEPT = 256
"""Events that a client who asks for the past can get: as many as with Docker."""


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


class Events:
    """The events of one endpoint. Published from any thread."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._past: deque[Event] = deque(maxlen=KEPT)

    def publish(self, event: Event) -> None:
        """Tells all who listen."""
        with self._guard:
            self._past.append(event)

    def close(self) -> None:
        """Nothing will be published any more."""

    def past(self) -> list[Event]:
        """The latest events, oldest first."""
        with self._guard:
            return list(self._past)
