"""How containers look to Docker's clients, where it is not what the store has."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from imgstore.answers import Container, Mount
from imgstore.changes import FileType
from imgstore.docker_api.container_shapes import command_of, go_mode, inspect, show_time, summarize

NEWEST = (1, 51)


def container(config: dict[str, Any] | None = None, host_config: dict[str, Any] | None = None, *mounts: Mount) -> Container:
    return Container(
        id="c" * 64,
        name="web",
        created=datetime(2026, 1, 2, 3, 4, 5, 600, UTC),
        image="app",
        image_id="sha256:" + "a" * 64,
        platform="linux/arm64/v8",
        capacity=1 << 30,
        read_only=False,
        mounts=mounts,
        config=config or {},
        host_config=host_config or {},
        labels={},
        disk="/store/c.vmdk",
        size_rw=0,
    )


@pytest.mark.parametrize(
    ("type", "mode", "expected"),
    [
        (FileType.REGULAR, 0o644, 0o644),
        (FileType.REGULAR, 0o7777, 1 << 23 | 1 << 22 | 1 << 20 | 0o777),
        (FileType.DIRECTORY, 0o1777, 1 << 31 | 1 << 20 | 0o777),
        (FileType.SYMLINK, 0o777, 1 << 27 | 0o777),
        (FileType.CHARACTER_DEVICE, 0o600, 1 << 26 | 1 << 21 | 0o600),
        (FileType.BLOCK_DEVICE, 0o600, 1 << 26 | 0o600),
        (FileType.FIFO, 0o600, 1 << 25 | 0o600),
        (FileType.SOCKET, 0o600, 1 << 24 | 0o600),
    ],
)
def test_modes_are_those_of_go(type: FileType, mode: int, expected: int) -> None:
    assert go_mode(type, mode) == expected


@pytest.mark.parametrize(
    ("config", "words", "shown"),
    [
        ({"Cmd": ["sh", "-c", "a b"]}, ["sh", "-c", "a b"], "sh -c 'a b'"),
        ({"Entrypoint": ["run"], "Cmd": ["x"]}, ["run", "x"], "run x"),
        ({"Entrypoint": "run", "Cmd": None}, ["run"], "run"),
        ({}, [], ""),
    ],
)
def test_commands(config: dict[str, Any], words: list[str], shown: str) -> None:
    made = container(config)
    assert command_of(config) == words
    assert summarize(made, "app", {}, NEWEST)["Command"] == shown
    assert [inspect(made, ["d"], {}, "", NEWEST)[name] for name in ("Path", "Args")] == [words[0] if words else "", words[1:]]


def test_times_are_as_go_prints_them() -> None:
    assert show_time(datetime(2026, 1, 2, 3, 4, 5, 600, UTC)) == "2026-01-02T03:04:05.0006Z"
    assert show_time(datetime(2026, 1, 2, 3, 4, 5, 0, UTC)) == "2026-01-02T03:04:05Z"


def test_mounts_of_volumes_that_are_gone() -> None:
    asked = {"Binds": ["vol:/v:ro,z"], "Mounts": [{"Type": "volume", "Source": "other", "Target": "/o"}]}
    made = container({}, asked, Mount("vol", "/v", read_only=True), Mount("other", "/o"), Mount("third", "/v2"))
    shown = summarize(made, "app", {}, NEWEST)["Mounts"]
    assert [(each["Name"], each["Source"], each["Mode"], each["RW"]) for each in shown] == [
        ("vol", "", "ro,z", False),
        ("other", "", "z", True),
        ("third", "", "", True),
    ]


def test_what_an_image_says_in_a_form_of_its_own_is_not_shown() -> None:
    """The command line could not read it, nor anything else of the answer."""
    shown = inspect(container({"Env": "A=b", "Cmd": "run", "User": 5, "Shell": ["sh"]}), ["d"], {}, "", NEWEST)["Config"]
    assert (shown["Env"], shown["Cmd"], shown["User"], shown["Shell"]) == (None, ["run"], "", ["sh"])


@pytest.mark.parametrize(
    ("host_config", "names"),
    [
        ({}, ["bridge"]),
        ({"NetworkMode": "default"}, ["bridge"]),
        ({"NetworkMode": "none"}, ["none"]),
        ({"NetworkMode": "default", "NetworkingConfig": {"EndpointsConfig": {"default": {"Aliases": ["a"]}}}}, ["bridge"]),
        ({"NetworkMode": "n1", "NetworkingConfig": {"EndpointsConfig": {"n1": {}, "n2": {}}}}, ["n1", "n2"]),
    ],
)
def test_networks(host_config: dict[str, Any], names: list[str]) -> None:
    made = container({}, host_config)
    assert list(summarize(made, "app", {}, NEWEST)["NetworkSettings"]["Networks"]) == names
    assert list(inspect(made, ["d"], {}, "", NEWEST)["NetworkSettings"]["Networks"]) == names
