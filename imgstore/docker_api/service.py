"""Service: what all requests of one endpoint share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request

from imgstore.docker_api.events import Event, Events
from imgstore.docker_api.jobs import Jobs
from imgstore.store import ImageStore

Words = ParamSpec("Words")
Answer = TypeVar("Answer")

WORKS_MAX = 128
"""Pulls, pushes, loads and saves at once, each in a thread; further ones wait. Most of 100 pulls of one image only wait for the first."""


@dataclass(frozen=True, slots=True)
class Service:
    """The store behind the endpoint, and what goes on in it. Handlers find it with `service_of`.

    Attributes:
        warnings: about how the service was started, a line each, for ``docker info``.
    """

    store: ImageStore
    warnings: tuple[str, ...] = ()
    events: Events = field(default_factory=Events)
    jobs: Jobs = field(default_factory=Jobs)
    works: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(WORKS_MAX))

    def publish(self, type: str, action: str, id: str, attributes: Mapping[str, str]) -> None:
        """Adds an event; see `Event`."""
        self.events.publish(Event(type, action, id, attributes))

    async def work(self, function: Callable[Words, Answer], *args: Words.args, **kwargs: Words.kwargs) -> Answer:
        """Runs what may take long in a thread.

        Of other threads than those of `starlette.concurrency.run_in_threadpool`, so that lists and ``/_ping`` are answered while all
        these are busy. A request that is cut goes on without the thread, which runs to its end.
        """
        return await to_thread.run_sync(partial(function, *args, **kwargs), limiter=self.works, abandon_on_cancel=True)

    def close(self) -> None:
        """Ends what would not end by itself: who listens to events hears no more."""
        self.events.close()


def service_of(request: Request) -> Service:
    """The service that a request is for."""
    service: Service = request.app.state.service
    return service
