"""The filters of ``docker ps`` and ``docker container prune``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from imgstore.answers import Container, Mount
from imgstore.container_filters import parse_list_filters, parse_prune_filters
from imgstore.containers import NoSuchContainerError
from imgstore.errors import InvalidError

START = datetime(2026, 1, 1, tzinfo=UTC)
DESCENDANTS = {"base": ["sha256:base", "sha256:app"], "app": ["sha256:app"]}


def container(number: int, name: str, **given: object) -> Container:
    fields: dict[str, object] = {
        "id": f"{number:x}" * 64,
        "name": name,
        "created": START + timedelta(hours=number),
        "image": "base",
        "image_id": "sha256:base",
        "platform": "linux/amd64",
        "capacity": 1 << 30,
        "read_only": False,
        "mounts": (),
        "config": {},
        "host_config": {},
        "labels": {},
        "disk": "",
        "size_rw": 0,
    }
    return Container(**(fields | given))  # type: ignore[arg-type]


CONTAINERS = [
    container(3, "web-2", image_id="sha256:app", labels={"tier": "web"}, config={"ExposedPorts": {"80/tcp": {}}}),
    container(2, "web-1", labels={"tier": "web", "x": ""}, mounts=(Mount("data", "/srv"),), host_config={"NetworkMode": "none"}),
    container(1, "db", host_config={"PortBindings": {"53/udp": [{}]}, "NetworkMode": "default"}),
]


def find(reference: str) -> Container:
    for one in CONTAINERS:
        if one.name == reference:
            return one
    raise NoSuchContainerError(f"No such container: {reference}")


def names(**given: Sequence[str]) -> list[str]:
    filters = {key.replace("_", "-"): values for key, values in given.items()}
    wanted = parse_list_filters(filters, find, lambda reference: DESCENDANTS.get(reference, ()))
    return [one.name for one in wanted.select(CONTAINERS)]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, "web-2 web-1 db"),
        ({"name": ["web"]}, "web-2 web-1"),
        ({"name": ["^/web-1$", "^db$"]}, "web-1 db"),
        ({"name": ["w.b-[13]"]}, "web-1"),
        ({"name": ["(web"]}, ""),
        ({"id": ["^2"]}, "web-1"),
        ({"id": ["2222", "3333"]}, "web-2 web-1"),
        ({"label": ["tier"]}, "web-2 web-1"),
        ({"label": ["tier=web", "x="]}, "web-1"),
        ({"ancestor": ["base"]}, "web-2 web-1 db"),
        ({"ancestor": ["app"]}, "web-2"),
        ({"ancestor": ["nosuch"]}, ""),
        ({"before": ["web-1"]}, "db"),
        ({"since": ["web-1"]}, "web-2"),
        ({"volume": ["data"]}, "web-1"),
        ({"volume": ["/srv", "other"]}, "web-1"),
        ({"network": ["none"]}, "web-1"),
        ({"network": ["bridge"]}, "web-2 db"),
        ({"publish": ["53/udp"]}, "db"),
        ({"publish": ["53"]}, ""),
        ({"expose": ["79-81"]}, "web-2"),
        ({"status": ["created", "running"]}, "web-2 web-1 db"),
        ({"status": ["running"]}, ""),
        ({"health": ["none"]}, "web-2 web-1 db"),
        ({"health": ["healthy"]}, ""),
        ({"exited": ["0"]}, ""),
        ({"is_task": ["true"]}, ""),
        ({"is_task": ["0"]}, "web-2 web-1 db"),
        ({"isolation": ["hyperv"]}, "web-2 web-1 db"),
    ],
)
def test_lists(given: dict[str, list[str]], found: str) -> None:
    assert names(**given) == found.split()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"bogus": ["1"]}, "invalid filter 'bogus'"),
        ({"status": ["up"]}, "invalid filter 'status=up'"),
        ({"health": ["sick"]}, "invalid filter 'health=sick'"),
        ({"exited": ["x"]}, "invalid filter 'exited=x'"),
        ({"is_task": ["x"]}, "invalid filter 'is-task=[x]'"),
        ({"publish": ["80:80"]}, "filter for 'publish' should not contain ':': 80:80"),
        ({"expose": ["65536"]}, "error while looking up for expose 65536: invalid port range"),
        ({"name": ["(a+)+$"]}, "invalid filter 'name=(a+)+$'"),
        ({"name": [".*.*.*.*x"]}, "invalid filter 'name=.*.*.*.*x'"),
    ],
)
def test_what_makes_no_sense(given: dict[str, list[str]], words: str) -> None:
    with pytest.raises(InvalidError) as caught:
        names(**given)
    assert words == str(caught.value)


def test_a_container_that_is_not_there() -> None:
    with pytest.raises(NoSuchContainerError, match=r"^No such container: nosuch$"):
        names(before=["nosuch"])


def test_prunes() -> None:
    def pruned(**given: Sequence[str]) -> list[str]:
        filters = {key.replace("label_not", "label!"): values for key, values in given.items()}
        return [one.name for one in parse_prune_filters(filters).select(CONTAINERS)]

    assert pruned() == ["web-2", "web-1", "db"]
    assert pruned(label=["tier=web"], label_not=["x"]) == ["web-2"]
    assert pruned(until=["2026-01-01T02:30:00Z"]) == ["web-1", "db"]
    for given, words in (
        ({"until": ["1h", "2h"]}, "more than one until filter specified"),
        ({"name": ["web"]}, "invalid filter 'name'"),
    ):
        with pytest.raises(InvalidError, match=words):
            pruned(**given)
