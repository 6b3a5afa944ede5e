"""Which events a client wants: ``filters``, ``since`` and ``until`` of ``/events``.

Source: moby ``daemon/events/filter.go``, ``api/types/filters/parse.go``, ``api/types/time/timestamp.go``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from imgstore.docker_api.errors import ApiError
from imgstore.docker_api.events import Event

NAMED_BY_TYPE = ("daemon", "container", "plugin", "volume", "network", "service", "node", "secret", "config")
"""Filters that name an object of that type, by the start of its id or name."""

_LONG_ACTIONS = frozenset({"health_status", "exec_create", "exec_start"})
"""Actions that go on after a colon, which a filter need not."""

_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_DURATION = re.compile(r"[+-]?(?:\d{1,18}(?:\.\d{0,18})?(?:ns|us|µs|μs|ms|s|m|h))+", re.ASCII)
_DURATION_PART = re.compile(r"(\d+)(?:\.(\d*))?(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_UNIX_TIME = re.compile(r"(-?\d{1,12})(?:\.(\d{1,18}))?", re.ASCII)
_FRACTION = re.compile(r"\.(\d+)")


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
        text: seconds since the epoch with up to nine further digits, RFC 3339 as exact as it likes, with or without a time and a zone,
            or a duration as Go writes it, which lies in the past.

    Raises:
        ApiError: 400; it is none of them.
    """
    if not text:
        return None
    if found := _UNIX_TIME.fullmatch(text):
        return int(found[1]) * 10**9 + int((found[2] or "").ljust(9, "0")[:9])
    if _DURATION.fullmatch(text):
        ago = sum(_nanoseconds(*part) for part in _DURATION_PART.findall(text))
        return time.time_ns() + (ago if text.startswith("-") else -ago)
    try:
        return _parse_date(text)
    except (ValueError, OverflowError):
        raise ApiError(400, f"failed to parse value as time or duration: {text[:100]!r}") from None


def _nanoseconds(whole: str, fraction: str, unit: str) -> int:
    return int(whole) * _UNITS[unit] + int(fraction.ljust(18, "0")) * _UNITS[unit] // 10**18


def _parse_date(text: str) -> int:
    fraction = _FRACTION.search(text)
    whole = datetime.fromisoformat(_FRACTION.sub("", text, count=1))
    if whole.tzinfo is None:
        whole = whole.replace(tzinfo=UTC)
    return int(whole.timestamp()) * 10**9 + (int(fraction[1].ljust(9, "0")[:9]) if fraction else 0)


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
