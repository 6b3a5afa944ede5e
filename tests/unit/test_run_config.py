"""How dockerd merges what ``docker create`` says with what the image says."""

from __future__ import annotations

from typing import Any

import pytest

from imgstore.errors import InvalidError
from imgstore.run_config import merge_run_config

IMAGE: dict[str, Any] = {
    "User": "app",
    "Env": ["PATH=/bin", "HOME=/", "EMPTY="],
    "Cmd": ["serve"],
    "Entrypoint": ["/entry"],
    "WorkingDir": "/srv",
    "Labels": {"a": "1", "b": "2"},
    "ExposedPorts": {"80/tcp": {}},
    "Volumes": {"/data": {}},
    "StopSignal": "SIGQUIT",
    "Healthcheck": {"Test": ["CMD", "true"], "Interval": 5_000_000_000, "Retries": 3},
    "OnBuild": ["RUN x"],
}


def test_what_nobody_says_is_the_image_s() -> None:
    merged = merge_run_config(IMAGE, {})
    assert {key: value for key, value in IMAGE.items() if key != "OnBuild"} == merged


@pytest.mark.parametrize(
    ("given", "command", "entrypoint"),
    [
        ({"Cmd": ["x"]}, ["x"], ["/entry"]),
        ({"Cmd": "x"}, ["x"], ["/entry"]),
        ({"Entrypoint": ["/other"]}, None, ["/other"]),
        ({"Entrypoint": ["/other"], "Cmd": ["x"]}, ["x"], ["/other"]),
        ({"Entrypoint": []}, ["serve"], []),
        ({"Entrypoint": [""]}, None, None),
    ],
)
def test_an_entrypoint_takes_the_image_s_command_away(given: dict[str, Any], command: Any, entrypoint: Any) -> None:
    if given == {"Entrypoint": [""]}:
        with pytest.raises(InvalidError, match=r"^No command specified$"):
            merge_run_config(IMAGE, given)
        given = {"Entrypoint": [""], "Cmd": ["x"]}
        command = ["x"]
    merged = merge_run_config(IMAGE, given)
    assert (merged.get("Cmd"), merged["Entrypoint"]) == (command, entrypoint)


def test_variables_labels_and_ports_add_up() -> None:
    given = {"Env": ["HOME=/root", "NEW"], "Labels": {"b": "3"}, "ExposedPorts": {"53/udp": {}}, "Volumes": {"/more": {}}}
    merged = merge_run_config(IMAGE, given)
    assert merged["Env"] == ["HOME=/root", "NEW", "PATH=/bin", "EMPTY="]
    assert merged["Labels"] == {"a": "1", "b": "3"}
    assert set(merged["ExposedPorts"]) == {"80/tcp", "53/udp"} and set(merged["Volumes"]) == {"/data", "/more"}
    assert given["Labels"] == {"b": "3"}


def test_a_healthcheck_is_completed() -> None:
    merged = merge_run_config(IMAGE, {"Healthcheck": {"Test": [], "Interval": 0, "Retries": 7}})
    assert merged["Healthcheck"] == {"Test": ["CMD", "true"], "Interval": 5_000_000_000, "Retries": 7}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"WorkingDir": "srv"}, "the working directory 'srv' is invalid, it needs to be an absolute path"),
        ({"Env": ["=x"]}, "invalid environment variable: =x"),
        ({"Healthcheck": {"Interval": 999_999}}, "Interval in Healthcheck cannot be less than 1ms"),
        ({"Healthcheck": {"StartPeriod": 1}}, "StartPeriod in Healthcheck cannot be less than 1ms"),
        ({"Healthcheck": {"Retries": -1}}, "Retries in Healthcheck cannot be negative"),
        ({"Env": "A=b"}, "config: Expected `array | null`, got `str` - at `$.Env`"),
        ({"Labels": {"a": 1}}, "config: Expected `str`, got `int` - at `$.Labels[...]`"),
    ],
)
def test_refusals(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidError) as caught:
        merge_run_config(IMAGE, given)
    assert words == str(caught.value)


def test_an_image_that_says_nothing_needs_a_command() -> None:
    with pytest.raises(InvalidError, match="No command specified"):
        merge_run_config({}, {})
    assert merge_run_config({}, {"Cmd": ["/x"], "WorkingDir": "/a/../b/"})["WorkingDir"] == "/b"
