"""Timestamps as docker's options take them: a time, or how long ago.

Source: moby ``api/types/time/timestamp.go``, and Go's ``time.ParseDuration``.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from imgstore.errors import InvalidError

_LENGTH_MAX = 100

_DURATION = re.compile(r"(?P<sign>[+-]?)(?P<parts>(?:(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+)", re.ASCII)
_DURATION_PART = re.compile(r"(\d*\.?\d*)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}
_UNIX = re.compile(r"(-?\d{1,18})(?:\.(\d{1,18}))?", re.ASCII)
_DATE = re.compile(
    r"(?P<date>\d{4}-\d\d-\d\d)"
    r"(?:T(?P<hour>\d\d)(?::(?P<minute>\d\d)(?::(?P<second>\d\d)(?:\.(?P<fraction>\d{1,9}))?)?)?)?"
    r"(?P<zone>[Zz]|[+-]\d\d:\d\d)?",
    re.ASCII,
)


def format_time(time: datetime) -> str:
    """A time as RFC 3339 has it, in UTC, as Go writes it: without zeros at the end of the fraction."""
    text = time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f").rstrip("0").rstrip(".")
    return f"{text}Z"


def format_timestamp(time_ns: int) -> str:
    """Nanoseconds since the epoch as RFC 3339 has it, in UTC, with all nine digits."""
    seconds, nanoseconds = divmod(time_ns, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def parse_timestamp(text: str, now: datetime | None = None) -> datetime:
    """Reads seconds since the epoch (``1700000000.5``), a date or time of RFC 3339 (``2024-05-01``, ``2024-05-01T12:30Z``), or how long
    ago it was (``10m``, ``1h30m``). What names no zone is in this machine's.

    Args:
        now: that durations count back from.

    Raises:
        InvalidError: none of these.
    """
    if len(text) > _LENGTH_MAX:
        raise InvalidError(f"failed to parse value as time or duration: {len(text)} characters")
    try:
        if found := _DURATION.fullmatch(text):
            seconds = sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(found["parts"]))
            return (now or datetime.now(UTC)) - timedelta(seconds=-seconds if found["sign"] == "-" else seconds)
        if found := _UNIX.fullmatch(text):
            microseconds = int((found[2] or "0")[:6].ljust(6, "0"))
            return datetime.fromtimestamp(int(found[1]), UTC) + timedelta(microseconds=microseconds)
        if found := _DATE.fullmatch(text):
            clock = f"{found['hour'] or '00'}:{found['minute'] or '00'}:{found['second'] or '00'}"
            fraction = (found["fraction"] or "0")[:6].ljust(6, "0")
            time = datetime.fromisoformat(f"{found['date']}T{clock}.{fraction}{(found['zone'] or '').upper()}")
            return time.astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        pass  # a month 13, a year 10000
    raise InvalidError(f'failed to parse value as time or duration: "{text}"')
