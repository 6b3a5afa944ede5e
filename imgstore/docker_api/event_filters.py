"""Which events a client wants: ``filters``, ``since`` and ``until`` of ``/events``.

Source: moby ``daemon/events/filter.go``, ``api/types/filters/parse.go``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from imgstore.docker_api.events import Event
from imgstore.timestamps import parse_timestamp

NAMED_BY_TYPE = ("daemon", "container", "plugin", "volume", "network", "service", "node", "secret", "config")
"""Filters that name an object of that type, by the start of its id or name."""

_LONG_ACTIONS = frozenset({"health_status", "exec_create", "exec_start"})
"""Actions that go on after a colon, which a filter need not."""

_UNIX_TIME = re.compile(r"(\d{1,12})(?:\.(\d{1,18}))?", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def accepts(filters: Mapping[str, Sequence[str]], event: Event) -> bool:
    """Whether an event passes: of each filter one value must hold, but of ``label`` all. Unknown filters pass all, as with Docker."""
    if not _is_exact(filters.get("type"), event.type) or not _is_exact(filters.get("scope"), "local"):
        return False
    actions = filters.get("event")
    match = _starts if actions and _LONG_ACTIONS & set(actions) else _is_exact
    if not match(actions, event.action):
        return False
    name = event.attributes.get("name", "")
    for type in NAMED_BY_TYPE:
        if not _starts(filters.get(type), event.id) and not _starts(filters.get(type), name):
            return False
    return _is_image(filters.get("image"), event) and _has_labels(filters.get("label"), event.attributes)


def parse_time(text: str | None) -> int | None:
    """A point in time, in nanoseconds since the epoch; None where nothing is said.

    Args:
        text: what `parse_timestamp` reads; of seconds since the epoch, which clients send, nine further digits count.

    Raises:
        InvalidError: it is none of that.
    """
    if not text:
        return None
    if found := _UNIX_TIME.fullmatch(text):
        return int(found[1]) * 10**9 + int((found[2] or "").ljust(9, "0")[:9])
    return (parse_timestamp(text) - _EPOCH) // timedelta(microseconds=1) * 1000


def _is_exact(wanted: Sequence[str] | None, value: str) -> bool:
    return not wanted or value in wanted


def _starts(wanted: Sequence[str] | None, value: str) -> bool:
    return not wanted or value.startswith(tuple(wanted))


def _is_image(wanted: Sequence[str] | None, event: Event) -> bool:
    """By id or name of the image itself, or of what was made from it; with or without its tag."""
    name = event.attributes.get("name" if event.type == "image" else "image", "")
    return not wanted or any(value in wanted for value in (event.id, name, _without_tag(event.id), _without_tag(name)))


def _without_tag(name: str) -> str:
    repository = name.partition("@")[0]
    path, slash, last = repository.rpartition("/")
    familiar = path + slash + last.partition(":")[0]
    return familiar.removeprefix("docker.io/").removeprefix("library/")


def _has_labels(wanted: Sequence[str] | None, attributes: Mapping[str, str]) -> bool:
    for each in wanted or ():
        key, equals, value = each.partition("=")
        if key not in attributes or (equals and attributes[key] != value):
            return False
    return True
