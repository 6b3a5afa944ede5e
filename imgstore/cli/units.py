"""Sizes and times as people write and read them; the words are docker's."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from imgstore.errors import InvalidError

FACTORS: dict[str, int] = {"": 1, "B": 1} | {
    unit: base**power
    for power, prefix in enumerate("KMGTP", start=1)
    for unit, base in ((prefix, 1024), (f"{prefix}I", 1024), (f"{prefix}IB", 1024), (f"{prefix}B", 1000))
}
"""Upper-case unit to bytes, as GNU coreutils reads them: G and GiB are powers of 1024, GB is one of 1000."""

SIZE = re.compile(r"(\d{1,18})(?:\.(\d{1,9}))?\s?([A-Za-z]*)", re.ASCII)
DECIMAL_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")

HOUR = 3600
DAY = 24 * HOUR


def parse_size(text: str) -> int:
    """Returns bytes: ``32GiB``, ``32G``, ``512MiB``, ``1.5TiB``, ``34359738368``; letters in either case.

    Raises:
        InvalidError: no such size, or not a whole number of bytes above 0.
    """
    match = SIZE.fullmatch(text.strip())
    factor = FACTORS.get(match[3].upper()) if match else None
    if match is None or factor is None:
        raise InvalidError(f"size {text!r}: not a number of bytes", hint="for example 32GiB, 32G, 512MiB or 34359738368")
    fraction = match[2] or ""
    scale: int = 10 ** len(fraction)
    size, rest = divmod(int(match[1] + fraction) * factor, scale)
    if rest or not size:
        raise InvalidError(f"size {text!r}: not a whole number of bytes above 0")
    return size


def format_size(size: int) -> str:
    """Returns bytes in decimal units with three digits, as docker does: ``5.58MB``."""
    number = float(size)
    for unit in DECIMAL_UNITS:
        if number < 999.5 or unit == DECIMAL_UNITS[-1]:
            break
        number /= 1000
    return f"{number:.3g}{unit}" if number < 999.5 else f"{number:.0f}{unit}"


def format_binary_size(size: int) -> str:
    """Returns bytes in the largest binary unit that is exact: ``32GiB``. It reads back as the same number."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size and size % 1024**power == 0:
            return f"{size // 1024**power}{unit}"
    return f"{size}B"


def format_age(then: datetime | None, now: datetime) -> str:
    """Returns how long ago it was, in docker's words: ``3 weeks ago``; ``N/A`` if nobody knows."""
    if then is None:
        return "N/A"
    return f"{_duration(max(0, int((now - then).total_seconds())))} ago"


def _duration(seconds: int) -> str:
    # The steps are those of HumanDuration in docker/go-units.
    days = seconds // DAY
    if seconds < 1:
        return "Less than a second"
    if seconds < 60:
        return _count(seconds, "second")
    if seconds < 120:
        return "About a minute"
    if seconds < HOUR:
        return _count(seconds // 60, "minute")
    if (seconds + HOUR // 2) // HOUR == 1:
        return "About an hour"
    if seconds < 2 * DAY:
        return _count((seconds + HOUR // 2) // HOUR, "hour")
    if days < 14:
        return _count(days, "day")
    if days < 60:
        return _count(days // 7, "week")
    if days < 730:
        return _count(days // 30, "month")
    return _count(days // 365, "year")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def format_time(mtime_ns: int) -> str:
    """Returns nanoseconds since the epoch as ``2026-11-21 03:20``, in UTC."""
    return datetime.fromtimestamp(mtime_ns // 10**9, UTC).strftime("%Y-%m-%d %H:%M")


def format_exact_time(mtime_ns: int) -> str:
    """Returns nanoseconds since the epoch in ISO 8601 with all nine digits, in UTC."""
    seconds, nanoseconds = divmod(mtime_ns, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"
