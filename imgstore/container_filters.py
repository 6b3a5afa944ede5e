"""Container filters: which containers a list shows and a prune removes, in docker's words.

Ours were never started, and that is what the filters on states see: they are ``created``, have no exit code, no health, and are no tasks.

Source: moby ``daemon/list.go``, ``daemon/prune.go``, ``container/state.go``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import datetime

from imgstore.answers import Container
from imgstore.errors import InvalidError
from imgstore.filters import Filters, Labels, check_filters, has_labels, parse_boolean, parse_labels
from imgstore.timestamps import parse_timestamp

LIST_FILTERS = frozenset(
    (
        *("ancestor", "before", "exited", "expose", "health", "id", "is-task", "isolation"),
        *("label", "name", "network", "publish", "since", "status", "volume"),
    )
)
PRUNE_FILTERS = frozenset({"label", "label!", "until"})

_STATES = frozenset({"created", "dead", "exited", "paused", "removing", "restarting", "running"})
_HEALTH = frozenset({"healthy", "none", "starting", "unhealthy"})
_DEFAULT_NETWORK = "bridge"

_PATTERN_LENGTH_MAX = 256
_REPEATS_MAX = 3
_REPEATED_GROUP = re.compile(r"\)[*+?{]")
_REPEAT = re.compile(r"(?<!\\)[*+{]")


@dataclass(frozen=True, slots=True)
class ContainerFilter:
    """What a container must be; every attribute that is set narrows it down.

    Attributes:
        images: ids, of which one is its image's.
        ids, names: patterns, of which one matches in its id, or in its name with or without the slash.
        labels: all of these.
        without_labels: not all of these.
        before: created earlier than that; ``since``: later.
        networks: one of these is its network's name.
        volumes: one of these is a volume of its, or where it has one.
        published, exposed: ports (``80/tcp``), of which it has one.
        nothing: no container of ours is what is looked for.
    """

    images: Collection[str] | None = None
    ids: tuple[re.Pattern[str], ...] = ()
    names: tuple[re.Pattern[str], ...] = ()
    labels: Labels = ()
    without_labels: Labels = ()
    before: datetime | None = None
    since: datetime | None = None
    networks: frozenset[str] = frozenset()
    volumes: frozenset[str] = frozenset()
    published: frozenset[str] = frozenset()
    exposed: frozenset[str] = frozenset()
    nothing: bool = False

    def select(self, containers: Iterable[Container]) -> list[Container]:
        """Those of the containers that are meant."""
        return [] if self.nothing else [container for container in containers if self._is_meant(container)]

    def _is_meant(self, container: Container) -> bool:
        return (
            (self.images is None or container.image_id in self.images)
            and (self.before is None or container.created < self.before)
            and (self.since is None or container.created > self.since)
            and (not self.ids or any(pattern.search(container.id) for pattern in self.ids))
            and (not self.names or any(_matches(pattern, container.name) for pattern in self.names))
            and has_labels(container.labels, self.labels)
            and not (self.without_labels and has_labels(container.labels, self.without_labels))
            and (not self.networks or _network(container) in self.networks)
            and (not self.volumes or any(_is_at(container, volume) for volume in self.volumes))
            and (not self.published or not self.published.isdisjoint(container.host_config.get("PortBindings") or ()))
            and (not self.exposed or not self.exposed.isdisjoint(container.config.get("ExposedPorts") or ()))
        )


def parse_list_filters(
    given: Filters, find: Callable[[str], Container], descendants: Callable[[str], Collection[str]]
) -> ContainerFilter:
    """The filters of a list.

    Args:
        find: gives the container that ``before`` or ``since`` names.
        descendants: gives the ids of the image that ``ancestor`` names and of those that were made from it; none if there is none.

    Raises:
        InvalidError: an unknown filter, or a value that makes no sense.
        Whatever ``find`` raises.
    """
    check_filters(given, LIST_FILTERS)
    for code in given.get("exited", ()):
        if re.fullmatch(r"[+-]?\d{1,18}", code, re.ASCII) is None:
            raise InvalidError(f"invalid filter 'exited={code[:100]}'")
    images: set[str] | None = None
    if "ancestor" in given:
        images = set()
        for reference in given["ancestor"]:
            images.update(descendants(reference))
    states, health = _words(given, "status", _STATES), _words(given, "health", _HEALTH)
    return ContainerFilter(
        images=images,
        ids=tuple(_compile(value, "id") for value in given.get("id", ())),
        names=tuple(_compile(value, "name") for value in given.get("name", ())),
        labels=parse_labels(given, "label"),
        before=min((find(value).created for value in given.get("before", ())), default=None),
        since=max((find(value).created for value in given.get("since", ())), default=None),
        networks=frozenset(given.get("network", ())),
        volumes=frozenset(given.get("volume", ())),
        published=_ports(given, "publish"),
        exposed=_ports(given, "expose"),
        nothing=bool(
            given.get("exited")
            or parse_boolean(given, "is-task")
            or (states and "created" not in states)
            or (health and "none" not in health)
        ),
    )


def parse_prune_filters(given: Filters) -> ContainerFilter:
    """The filters of a prune.

    Raises:
        InvalidError: an unknown filter, or a value that makes no sense.
    """
    check_filters(given, PRUNE_FILTERS)
    until = given.get("until", ())
    if len(until) > 1:
        raise InvalidError("more than one until filter specified")
    return ContainerFilter(
        labels=parse_labels(given, "label"),
        without_labels=parse_labels(given, "label!"),
        before=parse_timestamp(until[0]) if until else None,
    )


def _words(given: Filters, name: str, known: Collection[str]) -> frozenset[str]:
    words = frozenset(given.get(name, ()))
    for word in words:
        if word not in known:
            raise InvalidError(f"invalid filter '{name}={word[:100]}'")
    return words


def _ports(given: Filters, name: str) -> frozenset[str]:
    """Of ``80``, ``80/udp``, ``8000-8010``."""
    ports: set[str] = set()
    for text in given.get(name, ()):
        if ":" in text:
            raise InvalidError(f"filter for '{name}' should not contain ':': {text[:100]}")
        port, _, protocol = text.partition("/")
        first, dash, last = port.partition("-")
        bounds = (first, last if dash else first)
        if not all(bound.isascii() and bound.isdigit() and len(bound) <= 5 and int(bound) < 1 << 16 for bound in bounds):
            raise InvalidError(f"error while looking up for {name} {text[:100]}: invalid port range")
        ports.update(f"{number}/{protocol.lower() or 'tcp'}" for number in range(int(bounds[0]), int(bounds[1]) + 1))
    return frozenset(ports)


def _compile(text: str, name: str) -> re.Pattern[str]:
    """A pattern; what is none is looked for as it stands.

    Python tries again what Go's expressions do not: a pattern that could take long is refused.
    """
    if len(text) > _PATTERN_LENGTH_MAX or _REPEATED_GROUP.search(text) or len(_REPEAT.findall(text)) > _REPEATS_MAX:
        raise InvalidError(
            f"invalid filter '{name}={text[:100]}'",
            hint=f"a pattern has at most {_PATTERN_LENGTH_MAX} characters and {_REPEATS_MAX} repetitions, and none of a group",
        )
    try:
        return re.compile(text)
    except (re.error, OverflowError):
        return re.compile(re.escape(text))


def _matches(pattern: re.Pattern[str], name: str) -> bool:
    return pattern.search(f"/{name}") is not None or pattern.search(name) is not None


def _network(container: Container) -> str:
    mode = container.host_config.get("NetworkMode")
    return mode if isinstance(mode, str) and mode not in ("", "default") else _DEFAULT_NETWORK


def _is_at(container: Container, volume: str) -> bool:
    return any(volume in (mount.volume, mount.destination) for mount in container.mounts)
