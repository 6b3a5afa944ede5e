"""Events: filters, points in time, and readers that are too slow."""

from __future__ import annotations

import asyncio
import json
import threading
import time

import pytest

from imgstore.docker_api.event_filters import accepts, parse_time
from imgstore.docker_api.events import KEPT, WAITING_MAX, Event, Events
from imgstore.errors import InvalidError

IMAGE = Event("image", "pull", "alpine:3.10", {"name": "alpine", "maintainer": "me", "empty": ""})
CONTAINER = Event("container", "exec_create: ls -l", "0123abcd", {"name": "web", "image": "registry.example:5000/p/app:1"})


@pytest.mark.parametrize(
    ("filters", "image", "container"),
    [
        ({}, True, True),
        ({"type": ["image"]}, True, False),
        ({"type": ["image", "container"]}, True, True),
        ({"event": ["pull"]}, True, False),
        ({"event": ["pul"]}, False, False),
        ({"event": ["exec_create"]}, False, True),
        ({"image": ["alpine"]}, True, False),
        ({"image": ["alpine:3.10"]}, True, False),
        ({"image": ["alp"]}, False, False),
        ({"image": ["registry.example:5000/p/app"]}, False, True),
        ({"image": ["registry.example:5000/p/app:1"]}, False, True),
        ({"container": ["0123"]}, False, True),
        ({"container": ["web"]}, False, True),
        ({"container": ["b"]}, False, False),
        ({"label": ["maintainer"]}, True, False),
        ({"label": ["maintainer=me"]}, True, False),
        ({"label": ["maintainer=you"]}, False, False),
        ({"label": ["maintainer", "empty="]}, True, False),
        ({"label": ["maintainer", "none"]}, False, False),
        ({"scope": ["local"]}, True, True),
        ({"scope": ["swarm"]}, False, False),
        ({"daemon": ["x"]}, False, False),
        ({"bogus": ["x"]}, True, True),
        ({"type": []}, True, True),
    ],
)
def test_filters(filters: dict[str, list[str]], image: bool, container: bool) -> None:
    assert (image, container) == (accepts(filters, IMAGE), accepts(filters, CONTAINER))


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0", 0),
        ("1136073600", 1136073600 * 10**9),
        ("1136073600.5", 1136073600 * 10**9 + 500_000_000),
        ("1136073600.000000001", 1136073600 * 10**9 + 1),
        ("1136073600.0000000019", 1136073600 * 10**9 + 1),
        ("2006-01-01T00:00:00Z", 1136073600 * 10**9),
        ("2006-01-01T00:00:00.000001Z", 1136073600 * 10**9 + 1000),
        ("2006-01-01T01:00:00+01:00", 1136073600 * 10**9),
    ],
)
def test_points_in_time(text: str, nanoseconds: int) -> None:
    assert nanoseconds == parse_time(text)


@pytest.mark.parametrize(("text", "seconds"), [("10s", 10), ("1h30m", 5400), ("1.5h", 5400), ("250ms", 0.25), ("-2m", -120)])
def test_durations_lie_in_the_past(text: str, seconds: float) -> None:
    begin = time.time_ns()
    found = parse_time(text)
    assert found is not None
    assert begin <= found + int(seconds * 10**9) <= time.time_ns()


@pytest.mark.parametrize("text", ["yesterday", "10x", "2006-13-01", "1e3", "1.", ".5", "9" * 30, "\u0661"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(InvalidError):
        parse_time(text)


def test_nothing_is_no_time() -> None:
    assert parse_time(None) is parse_time("") is None


def test_json_has_the_old_fields() -> None:
    event = Event("container", "create", "0123", {"image": "alpine"}, 1136073600_000000001)
    assert json.loads(event.to_json()) == {
        "status": "create",
        "id": "0123",
        "from": "alpine",
        "Type": "container",
        "Action": "create",
        "Actor": {"ID": "0123", "Attributes": {"image": "alpine"}},
        "scope": "local",
        "time": 1136073600,
        "timeNano": 1136073600000000001,
    }
    assert "id" not in json.loads(Event("volume", "create", "v", {}).to_json())
    assert Event("image", "tag", "\udcff", {}).to_json().endswith(b"\n")


def number(number: int) -> Event:
    return Event("image", "tag", str(number), {})


def test_the_past_is_bounded() -> None:
    events = Events()
    for each in range(KEPT + 10):
        events.publish(number(each))
    assert [event.id for event in events.past()] == [str(each) for each in range(10, KEPT + 10)]


def test_a_slow_reader_misses_the_oldest_and_holds_up_nobody() -> None:
    events = Events()

    async def listen() -> list[Event]:
        with events.subscribed(lambda event: True, since_ns=None, until_ns=None) as subscription:
            publisher = threading.Thread(target=lambda: [events.publish(number(each)) for each in range(WAITING_MAX + 100)])
            publisher.start()
            await asyncio.to_thread(publisher.join)
            return await subscription.read()

    found = asyncio.run(listen())
    assert [event.id for event in found] == [str(each) for each in range(100, WAITING_MAX + 100)]
    assert events.listeners == 0


def test_the_past_comes_first_and_nothing_twice() -> None:
    events = Events()

    def publish() -> None:
        for each in range(200):
            events.publish(number(each))
            time.sleep(0.0005)

    async def listen() -> list[str]:
        found: list[Event] = []
        with events.subscribed(lambda event: True, since_ns=0, until_ns=None) as subscription:
            while not found or found[-1].id != "199":
                found += await subscription.read()
        return [event.id for event in found]

    publisher = threading.Thread(target=publish)
    publisher.start()
    time.sleep(0.02)
    assert asyncio.run(listen()) == [str(each) for each in range(200)]
    publisher.join()


def test_the_end_comes_at_until_or_with_the_service() -> None:
    events = Events()
    events.publish(number(1))

    async def listen(until_ns: int | None) -> list[list[Event]]:
        with events.subscribed(lambda event: True, since_ns=None, until_ns=until_ns) as subscription:
            found = []
            while batch := await subscription.read():
                found.append(batch)
            return found

    assert len(asyncio.run(listen(time.time_ns()))) == 1
    assert len(asyncio.run(listen(time.time_ns() + 50_000_000))) == 1
    events.close()
    assert asyncio.run(listen(None)) == []
