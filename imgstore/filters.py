"""Filters as docker's lists and prunes take them: the name of a filter to its values.

Source: moby ``api/types/filters/parse.go``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from imgstore.errors import InvalidError

Filters = Mapping[str, Sequence[str]]
"""Name of a filter to its values."""

Labels = tuple[tuple[str, str | None], ...]
"""Labels to look for: (name, value), or (name, None) for any value."""


def check_filters(given: Filters, known: frozenset[str]) -> None:
    """Raises InvalidError for a filter that is not ``known``."""
    for name in given:
        if name not in known:
            raise InvalidError(f"invalid filter '{name}'")


def parse_boolean(given: Filters, name: str) -> bool | None:
    """The value of a filter that is true or false; None where it is not given.

    Raises:
        InvalidError: neither, or both.
    """
    if name not in given:
        return None
    values = list(given[name])
    is_true, is_false = not {"1", "true"}.isdisjoint(values), not {"0", "false"}.isdisjoint(values)
    if is_true == is_false:
        shown = "" if not values else "=[" + " ".join(values)[:200] + "]"
        raise InvalidError(f"invalid filter '{name}{shown}'")
    return is_true


def parse_labels(given: Filters, name: str) -> Labels:
    """The labels that a filter names, ``key`` or ``key=value`` each."""
    found = []
    for text in given.get(name, ()):
        key, equals, value = text.partition("=")
        found.append((key, value if equals else None))
    return tuple(found)


def has_labels(labels: Mapping[str, str], wanted: Labels) -> bool:
    """Whether all of the labels that are ``wanted`` are there."""
    return all(key in labels and value in (None, labels[key]) for key, value in wanted)
