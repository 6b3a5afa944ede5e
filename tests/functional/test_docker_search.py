"""``docker search`` and what a registry is asked about an image without a pull."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker.errors import APIError, NotFound

from imgstore.errors import InvalidError, UnsupportedError
from imgstore.store import ImageStore
from registry_client.search import split_term
from tests.servers.endpoint import Endpoint, endpoint
from tests.servers.images import build_image, make_tar
from tests.servers.registry import ALWAYS, Fault, Registry

LAYERS = [make_tar({"a": b"a"})]
SEARCHABLE = [
    {"name": "team/app", "description": "An app", "star_count": 12, "is_official": False, "is_automated": True},
    {"name": "apps", "description": "", "star_count": 3000, "is_official": True},
]


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as registry:
        for name in ("team/app", "team/other", "apps"):
            registry.add_image(name, "1", LAYERS)
        yield registry


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Endpoint]:
    with ImageStore.open(str(tmp_path / "store")) as store, endpoint(store) as api:
        yield api


def test_search(api: Endpoint, registry: Registry) -> None:
    registry.searchable = SEARCHABLE
    term = f"{registry.host}/app"
    printed = api.docker_text("search", "--format", "{{.Name}}|{{.Description}}|{{.StarCount}}|{{.IsOfficial}}", term)
    assert printed.splitlines() == ["team/app|An app|12|", "apps||3000|[OK]"]
    for words, expected in (
        ("--limit=1", ["team/app"]),
        ("--filter=is-official=true", ["apps"]),
        ("--filter=is-official=false", ["team/app"]),
        ("--filter=stars=13", ["apps"]),
        ("--filter=is-automated=true", []),
    ):
        assert (words, expected) == (words, api.docker_text("search", "--format", "{{.Name}}", words, term).split())
    with api.client() as client:
        first, _ = client.images.search(term)
    assert first == {"name": "team/app", "description": "An app", "star_count": 12, "is_official": False, "is_automated": False}


@pytest.mark.parametrize("start_page", [False, True])
def test_a_registry_without_a_search_is_looked_through(api: Endpoint, registry: Registry, start_page: bool) -> None:
    if start_page:  # Harbor answers with its user interface
        registry.inject("/v1/search", Fault(status=200, body=b"<!doctype html>"), times=ALWAYS)
    registry.page_size = 1
    assert api.docker_text("search", "--format", "{{.Name}}", f"{registry.host}/app").split() == ["apps", "team/app"]
    assert api.docker_text("search", "--format", "{{.Name}}", "--limit", "1", f"{registry.host}/APP").split() == ["apps"]


def test_a_registry_that_lets_nobody_search(api: Endpoint, registry: Registry) -> None:
    registry.inject("/v2/_catalog", Fault(status=403), times=ALWAYS)
    done = api.docker("search", f"{registry.host}/app")
    assert (done.returncode, b"has no search, and no list of its repositories for us" in done.stderr) == (1, True)


@pytest.mark.parametrize("kind", ["basic", "bearer"])
def test_a_search_with_a_login(api: Endpoint, kind: str) -> None:
    with Registry(auth=kind) as registry:
        registry.add_image("team/app", "1", LAYERS)
        login = {"username": registry.username, "password": registry.password}
        header = {"X-Registry-Auth": base64.urlsafe_b64encode(json.dumps(login).encode()).decode()}
        answer = api.get(f"/images/search?term={registry.host}/app", headers=header)
        assert [each["name"] for each in answer.json] == ["team/app"]
        assert api.get(f"/images/search?term={registry.host}/app").status == 403


@pytest.mark.parametrize(
    "query, message",
    [
        ("term=x&limit=101", "limit 101 is outside the range of"),
        ("term=x&limit=-1", "invalid limit specified"),
        ("term=x&limit=x", "invalid limit specified"),
        ("term=https://x/y", "should not have a scheme"),
        ("term=", "says nothing to look for"),
        ('term=x&filters={"stars":["many"]}', "invalid filter 'stars=many'"),
        ('term=x&filters={"bogus":["1"]}', "invalid filter 'bogus'"),
    ],
)
def test_what_makes_no_sense(api: Endpoint, query: str, message: str) -> None:
    answer = api.get("/images/search?" + query.replace('"', "%22"))
    assert (answer.status, message in answer.message) == (400, True), answer.body


@pytest.mark.parametrize(
    "term, expected",
    [
        ("busybox", ("docker.io", "busybox")),
        ("library/busybox", ("docker.io", "busybox")),
        ("team/app", ("docker.io", "team/app")),
        ("docker.io/team/app", ("docker.io", "team/app")),
        ("localhost/app", ("localhost", "app")),
        ("harbor.example/team/app", ("harbor.example", "team/app")),
        ("host:5000/app", ("host:5000", "app")),
    ],
)
def test_terms(term: str, expected: tuple[str, str]) -> None:
    assert expected == split_term(term)


def test_distribution(api: Endpoint, registry: Registry) -> None:
    digest = registry.add_index("multi", "1", [build_image(LAYERS, platform=name) for name in ("linux/amd64", "linux/arm/v7")])
    with api.client() as client:
        data = client.images.get_registry_data(f"{registry.host}/multi:1")
        assert data.id == digest and data.has_platform("linux/arm/v7") and not data.has_platform("linux/s390x")
        one = client.api.inspect_distribution(f"{registry.host}/apps:1")
        assert one["Platforms"] == [{"architecture": "amd64", "os": "linux"}]
        assert one["Descriptor"]["size"] == len(registry.manifests["apps", "1"][0])
        with pytest.raises(NotFound):
            client.api.inspect_distribution(f"{registry.host}/nosuch:1")
        with pytest.raises(APIError, match="invalid reference format"):
            client.api.inspect_distribution("UPPER")


def test_the_library(registry: Registry) -> None:
    with ImageStore.open("mem://") as store:
        assert [found.name for found in store.search(f"{registry.host}/other")] == ["team/other"]
        registry.inject("/v2/_catalog", Fault(status=404), times=ALWAYS)
        with pytest.raises(UnsupportedError):
            store.search(f"{registry.host}/other")
        with pytest.raises(InvalidError):
            store.describe_remote("UPPER")
