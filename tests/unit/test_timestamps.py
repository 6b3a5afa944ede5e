from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from imgstore.errors import InvalidError
from imgstore.timestamps import parse_timestamp

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "EST+5")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    "text, expected",
    [
        ("0", "1970-01-01T00:00:00"),
        ("1714564800", "2024-05-01T12:00:00"),
        ("1714564800.5", "2024-05-01T12:00:00.500000"),
        ("1714564800.000000001", "2024-05-01T12:00:00"),
        ("10m", "2024-05-01T11:50:00"),
        ("1h30m", "2024-05-01T10:30:00"),
        ("1.5h", "2024-05-01T10:30:00"),
        ("-1h", "2024-05-01T13:00:00"),
        ("300ms", "2024-05-01T11:59:59.700000"),
        ("2024-05-01T12:00:00Z", "2024-05-01T12:00:00"),
        ("2024-05-01T12:00:00.25z", "2024-05-01T12:00:00.250000"),
        ("2024-05-01T12:00:00.123456789+02:00", "2024-05-01T10:00:00.123456"),
        ("2024-05-01T12:30-02:00", "2024-05-01T14:30:00"),
        ("2024-05-01T12", "2024-05-01T17:00:00"),
        ("2024-05-01", "2024-05-01T05:00:00"),
        ("2024-05-01Z", "2024-05-01T00:00:00"),
    ],
)
def test_what_is_a_time(text: str, expected: str) -> None:
    assert datetime.fromisoformat(expected).replace(tzinfo=UTC) == parse_timestamp(text, NOW)


@pytest.mark.parametrize(
    "text", ["", "now", "1 h", "h", "2024-13-01", "2024-05-01T25", "12:00", "1e9", "9" * 30, "9" * 18, "١٢", "1h" * 90, "1\n"]
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(InvalidError, match=r"^failed to parse value as time or duration"):
        parse_timestamp(text)
