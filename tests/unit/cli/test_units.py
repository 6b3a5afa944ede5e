"""Sizes and times, read and written."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from imgstore.cli import units
from imgstore.errors import InvalidError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("32GiB", 32 << 30),
        ("32G", 32 << 30),
        ("32g", 32 << 30),
        ("32 GiB", 32 << 30),
        ("512MiB", 512 << 20),
        ("1.5TiB", 3 << 39),
        ("0.5K", 512),
        ("32GB", 32 * 10**9),
        ("100kb", 100_000),
        ("4096", 4096),
        ("4096B", 4096),
        (" 8GiB ", 8 << 30),
    ],
)
def test_parse_size(text: str, expected: int) -> None:
    assert expected == units.parse_size(text)


@pytest.mark.parametrize(
    "text", ["", "G", "GiB", "-1", "+1", "1.G", "1..5G", "1e9", "0x10", "8XiB", "8 G B", "٣G", "1" * 19, "8GiB\n8"]
)
def test_parse_size_refuses_what_is_no_size(text: str) -> None:
    with pytest.raises(InvalidError, match="not a number of bytes") as caught:
        units.parse_size(text)
    assert "32GiB" in caught.value.hint


@pytest.mark.parametrize("text", ["0", "0G", "0.5", "0.3K"])
def test_parse_size_refuses_parts_of_a_byte_and_nothing(text: str) -> None:
    with pytest.raises(InvalidError, match="not a whole number of bytes above 0"):
        units.parse_size(text)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, "0B"),
        (999, "999B"),
        (1000, "1kB"),
        (1234, "1.23kB"),
        (999_499, "999kB"),
        (999_500, "1MB"),
        (5_577_820, "5.58MB"),
        (32 << 30, "34.4GB"),
        (10**21, "1000EB"),
    ],
)
def test_format_size(size: int, expected: str) -> None:
    assert expected == units.format_size(size)


@pytest.mark.parametrize("size", [1, 1023, 1024, 1536, 1 << 20, 3 << 29, 32 << 30, 5 << 40])
def test_binary_size_reads_back(size: int) -> None:
    assert size == units.parse_size(units.format_binary_size(size))


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-5, "Less than a second ago"),
        (0, "Less than a second ago"),
        (1, "1 second ago"),
        (59, "59 seconds ago"),
        (60, "About a minute ago"),
        (120, "2 minutes ago"),
        (59 * 60, "59 minutes ago"),
        (60 * 60, "About an hour ago"),
        (89 * 60, "About an hour ago"),
        (90 * 60, "2 hours ago"),
        (47 * 3600, "47 hours ago"),
        (48 * 3600, "2 days ago"),
        (13 * 86400, "13 days ago"),
        (14 * 86400, "2 weeks ago"),
        (59 * 86400, "8 weeks ago"),
        (60 * 86400, "2 months ago"),
        (729 * 86400, "24 months ago"),
        (730 * 86400, "2 years ago"),
    ],
)
def test_format_age_says_what_docker_says(seconds: int, expected: str) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert expected == units.format_age(now - timedelta(seconds=seconds), now)


def test_format_age_of_an_unknown_time() -> None:
    assert units.format_age(None, datetime(2026, 1, 1, tzinfo=UTC)) == "N/A"


@pytest.mark.parametrize(
    ("mtime_ns", "expected", "exact"),
    [
        (0, "1970-01-01 00:00", "1970-01-01T00:00:00.000000000Z"),
        (-1, "1969-12-31 23:59", "1969-12-31T23:59:59.999999999Z"),
        (1_574_312_400_123_456_789, "2019-11-21 05:00", "2019-11-21T05:00:00.123456789Z"),
        (-(2**31) * 10**9, "1901-12-13 20:45", "1901-12-13T20:45:52.000000000Z"),
        (((1 << 34) - (1 << 31) - 1) * 10**9, "2446-05-10 22:38", "2446-05-10T22:38:55.000000000Z"),
    ],
)
def test_times_that_an_inode_can_hold(mtime_ns: int, expected: str, exact: str) -> None:
    assert expected == units.format_time(mtime_ns)
    assert exact == units.format_exact_time(mtime_ns)
