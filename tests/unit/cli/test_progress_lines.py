"""Lines of a change of state."""

from __future__ import annotations

import io

from imgstore.cli.progress_lines import StateLines
from imgstore.progress import ProgressEvent, State


def told(*events: ProgressEvent) -> list[str]:
    stream = io.StringIO()
    lines = StateLines(stream)
    for event in events:
        lines(event)
    assert "\r" not in stream.getvalue()
    return stream.getvalue().splitlines()


def test_a_state_is_told_once_however_often_it_comes() -> None:
    events = [
        ProgressEvent("a1b2c3d4e5f6", State.PULLING),
        *(ProgressEvent("a1b2c3d4e5f6", State.DOWNLOADING, done, 30) for done in range(0, 31, 10)),
        ProgressEvent("a1b2c3d4e5f6", State.CONVERTING, 0, 30),
        ProgressEvent("a1b2c3d4e5f6", State.DOWNLOADING, 30, 30),
        ProgressEvent("ffffffffffff", State.EXISTS),
        ProgressEvent("a1b2c3d4e5f6", State.COMPLETE),
    ]
    expected = [
        "a1b2c3d4e5f6: Pulling fs layer",
        "a1b2c3d4e5f6: Downloading",
        "a1b2c3d4e5f6: Converting",
        "ffffffffffff: Already exists",
        "a1b2c3d4e5f6: Pull complete",
    ]
    assert expected == told(*events)


def test_every_retry_is_told_with_its_reason() -> None:
    events = [ProgressEvent("a1b2c3d4e5f6", State.RETRYING, message=f"connection cut at byte {byte}") for byte in (7, 9)]
    expected = ["a1b2c3d4e5f6: Retrying: connection cut at byte 7", "a1b2c3d4e5f6: Retrying: connection cut at byte 9"]
    assert expected == told(*events)


def test_a_retry_of_a_manifest_belongs_to_no_layer() -> None:
    assert told(ProgressEvent("", State.RETRYING, message="503; trying again in 2 s")) == ["Retrying: 503; trying again in 2 s"]


def test_a_message_of_a_registry_cannot_steer_the_terminal() -> None:
    assert told(ProgressEvent("", message="\x1b]0;title\x07 pulling")) == ["\\x1b]0;title\\x07 pulling"]


def test_a_push() -> None:
    events = [
        ProgressEvent("", message="The push refers to repository [host/app]"),
        ProgressEvent("a1b2c3d4e5f6", State.PREPARING),
        ProgressEvent("a1b2c3d4e5f6", State.COMPRESSING, 5, 10),
        ProgressEvent("a1b2c3d4e5f6", State.PUSHING, 1, 2),
        ProgressEvent("a1b2c3d4e5f6", State.PUSHED),
        ProgressEvent("b1b2c3d4e5f6", State.MOUNTED, message="library/alpine"),
        ProgressEvent("c1b2c3d4e5f6", State.IN_REGISTRY),
    ]
    expected = [
        "The push refers to repository [host/app]",
        "a1b2c3d4e5f6: Preparing",
        "a1b2c3d4e5f6: Compressing",
        "a1b2c3d4e5f6: Pushing",
        "a1b2c3d4e5f6: Pushed",
        "b1b2c3d4e5f6: Mounted from library/alpine",
        "c1b2c3d4e5f6: Layer already exists",
    ]
    assert expected == told(*events)
