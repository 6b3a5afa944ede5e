"""Docker's messages of the progress of layers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from imgstore.docker_api import streams
from imgstore.docker_api.jobs import Teller
from imgstore.docker_api.streams import LayerMessages
from imgstore.progress import ProgressEvent, State


def told(*events: ProgressEvent) -> list[tuple[str, str]]:
    """What is told of events: state and progress, or ``-`` for a message without one."""
    heard: list[Any] = []
    messages = LayerMessages(Teller(lambda layer, is_progress, message: heard.append(json.loads(message))))
    for event in events:
        messages(event)
    return [(one["status"], str(one.get("progressDetail", {}).get("current", "-"))) for one in heard]


def at(state: State, current: int = 0, total: int | None = 100) -> ProgressEvent:
    return ProgressEvent("a1b2c3d4e5f6", state, current, total)


@pytest.fixture(autouse=True)
def slow_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "PROGRESS_SECONDS", 3600.0)


def test_a_layer_that_downloads_ahead() -> None:
    events = [
        at(State.PULLING),
        at(State.WAITING),
        at(State.WAITING),
        *(at(State.DOWNLOADING, done) for done in range(0, 101, 10)),
        at(State.DOWNLOADED, 100),
        *(at(State.CONVERTING, done) for done in range(0, 101, 10)),
        at(State.COMPLETE),
    ]
    assert told(*events) == [
        ("Pulling fs layer", "-"),
        ("Waiting", "-"),
        ("Downloading", "0"),
        ("Downloading", "100"),
        ("Download complete", "-"),
        ("Converting", "-"),
        ("Converting", "0"),
        ("Converting", "100"),
        ("Pull complete", "-"),
    ]


def test_the_lowest_layer_converts_while_it_downloads() -> None:
    events = [
        at(State.PULLING),
        at(State.CONVERTING, 0),
        at(State.CONVERTING, 50),
        at(State.DOWNLOADED, 100),
        at(State.CONVERTING, 60),
        at(State.CONVERTING, 100),
        at(State.COMPLETE),
    ]
    assert told(*events) == [
        ("Pulling fs layer", "-"),
        ("Converting", "0"),
        ("Download complete", "-"),
        ("Converting", "-"),
        ("Converting", "100"),
        ("Pull complete", "-"),
    ]


def test_progress_is_told_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "PROGRESS_SECONDS", 0.0)
    assert told(*(at(State.PUSHING, done) for done in (1, 2, 3))) == [("Pushing", "1"), ("Pushing", "2"), ("Pushing", "3")]


def test_messages_about_the_whole() -> None:
    events = [
        ProgressEvent("", message="Pulling docker.io/library/a:1"),
        ProgressEvent("", State.RETRYING, message="503; trying again in 2 s"),
        ProgressEvent("a1b2c3d4e5f6", State.MOUNTED, message="library/b"),
        at(State.COMPRESSING, 5, None),
    ]
    assert told(*events) == [("503; trying again in 2 s", "-"), ("Mounted from library/b", "-"), ("Compressing", "5")]
