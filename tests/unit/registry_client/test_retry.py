"""When to try again."""

from __future__ import annotations

import email.utils
import time

import pytest

from registry_client.errors import DeniedError, UnavailableError
from registry_client.options import Options
from registry_client.retry import RetryPolicy, parse_retry_after


def test_waits_double_up_to_the_cap() -> None:
    policy = RetryPolicy(tries=9, base=1.0, cap=4.0)
    for failures, most in [(1, 1.0), (2, 2.0), (3, 4.0), (4, 4.0)]:
        delay = policy.delay(failures, UnavailableError(""))
        assert delay is not None
        assert most / 2 <= delay <= most


def test_gives_up() -> None:
    policy = RetryPolicy(tries=3)
    assert policy.delay(2, UnavailableError("")) is not None
    assert policy.delay(3, UnavailableError("")) is None
    assert policy.delay(1, DeniedError("")) is None


def test_the_servers_wish_has_a_limit() -> None:
    assert RetryPolicy().delay(1, UnavailableError("", retry_after=7)) == 7
    assert RetryPolicy().delay(1, UnavailableError("", retry_after=61)) is None, "more than our patience: the user decides"
    assert RetryPolicy(patience=100).delay(1, UnavailableError("", retry_after=61)) == 61
    assert RetryPolicy().delay(1, UnavailableError("", retry_after=7), elapsed=26) == 7
    assert RetryPolicy().delay(1, UnavailableError("", retry_after=7), elapsed=27) is None, "the next try may take as long"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), ("3", 3.0), (" 10 ", 10.0), ("-1", None), ("soon", None), ("²", None), ("9" * 99, 999999999.0)],
)
def test_parse_retry_after(value: str | None, seconds: float | None) -> None:
    assert seconds == parse_retry_after(value)


def test_parse_retry_after_dates() -> None:
    assert parse_retry_after(email.utils.formatdate(time.time() + 100, usegmt=True)) == pytest.approx(100, abs=3)
    assert parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0


@pytest.mark.parametrize(("silence", "tries"), [(0.0, 5), (5.0, 5), (10.0, 5), (20.0, 2), (25.0, 2), (50.0, 1)])
def test_the_defaults_are_bounded(silence: float, tries: int) -> None:
    """How long a request takes to fail for good, if each try fails after so many seconds."""
    options = Options()
    assert silence <= max(options.connect_timeout, 2 * options.read_timeout)
    clock, failures = silence, 1
    while (delay := options.retry.delay(failures, UnavailableError(""), clock)) is not None:
        clock += delay + silence
        failures += 1
    assert clock <= options.retry.patience
    assert failures in (tries, tries - 1), "by chance, waits are between half and all of the backoff"


@pytest.mark.parametrize("wish", [0.0, 1.0, 59.0, 61.0, 1e9])
def test_wishes_of_servers_are_bounded(wish: float) -> None:
    policy, clock, failures = Options().retry, 0.0, 1
    while (delay := policy.delay(failures, UnavailableError("", retry_after=wish), clock)) is not None:
        clock += delay
        failures += 1
    assert clock <= policy.patience
    assert failures <= policy.tries
