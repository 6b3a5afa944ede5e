"""The ``--filter`` option: ``KEY=VALUE``, given as often as wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from imgstore.errors import InvalidError


def filter_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds ``--filter`` to a command, which gets ``filters``: keys to the values that were given, in their order."""
    return click.option(
        "--filter",
        "filters",
        metavar="KEY=VALUE",
        multiple=True,
        callback=_parse,
        help="Only what it holds for; may be repeated.",
    )(command)


def _parse(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, list[str]]:
    filters: dict[str, list[str]] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise InvalidError(f"--filter {text}: is not KEY=VALUE")
        filters.setdefault(key.strip().lower(), []).append(value.strip())
    return filters
