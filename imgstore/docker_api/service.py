"""Service: what all requests of one endpoint share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.requests import Request

from imgstore.docker_api.events import Event, Events
from imgstore.store import ImageStore


@dataclass(frozen=True, slots=True)
class Service:
    """The store behind the endpoint, and what goes on in it. Handlers find it with `service_of`."""

    store: ImageStore
    events: Events = field(default_factory=Events)

    def publish(self, type: str, action: str, id: str, attributes: Mapping[str, str]) -> None:
        """Adds an event; see `Event`."""
        self.events.publish(Event(type, action, id, attributes))


def service_of(request: Request) -> Service:
    """The service that a request is for."""
    service: Service = request.app.state.service
    return service
