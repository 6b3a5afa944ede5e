"""``docker push`` against the endpoint, with Docker's own clients."""

from __future__ import annotations

import base64
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imgstore.store import ImageStore
from tests.servers.dockerd import docker_daemon, run_docker
from tests.servers.endpoint import Answer, Endpoint, endpoint
from tests.servers.images import build_image, make_tar, write_docker_archive
from tests.servers.registry import Fault, Registry

LAYERS = [make_tar({name: random.Random(name).randbytes(200_000)}) for name in "abc"]
IMAGE = build_image(LAYERS, config={"config": {"Labels": {"team": "one"}}})


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as served:
        yield served


@pytest.fixture
def api(tmp_path: Path, registry: Registry) -> Iterator[Endpoint]:
    """An endpoint whose store has an image for the registry."""
    with ImageStore.open(str(tmp_path / "store")) as store, endpoint(store) as served:
        list(store.load(write_docker_archive(tmp_path / "a.tar", {f"{registry.host}/app:1": IMAGE})))
        yield served


def push(api: Endpoint, name: str, tag: str = "", *, auth: dict[str, str] | None = None, query: str = "") -> Answer:
    header = base64.urlsafe_b64encode(json.dumps(auth or {}).encode()).decode()
    return api.post(f"/v1.51/images/{name}/push?tag={tag}{query}", {}, headers={"X-Registry-Auth": header})


def digest_of(registry: Registry, tag: str) -> str:
    (digest,) = {
        name
        for (repository, name), value in registry.manifests.items()
        if ":" in name and value == registry.manifests[repository, tag]
    }
    return digest


def statuses(lines: list[Any]) -> list[str]:
    """What clients print that cannot draw."""
    return [line["status"] for line in lines if "status" in line and not line.get("progressDetail")]


def test_the_messages_of_a_push(api: Endpoint, registry: Registry) -> None:
    answer = push(api, f"{registry.host}/app", "1")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    lines = answer.lines
    digest = digest_of(registry, "1")
    size = len(registry.manifests["app", "1"][0])
    assert lines[0] == {"status": f"The push refers to repository [{registry.host}/app]"}
    assert lines[-2:] == [
        {"status": f"1: digest: {digest} size: {size}"},
        {"progressDetail": {}, "aux": {"Tag": "1", "Digest": digest, "Size": size}},
    ]
    for diff_id in IMAGE.diff_ids:
        mine = [line for line in lines if line.get("id") == diff_id[7:19]]
        assert statuses(mine) == ["Preparing", "Pushed"]
        assert {"Compressing", "Pushing"} <= {line["status"] for line in mine}
    again = push(api, f"{registry.host}/app", "1").lines
    assert statuses(again).count("Layer already exists") == 3
    assert api.service is not None
    name = f"{registry.host}/app"
    event = api.service.events.past()[-1]
    assert (event.action, event.id, dict(event.attributes)) == ("push", f"{name}:1", {"team": "one", "name": name})


def test_docker_push_and_pull_again(api: Endpoint, registry: Registry, tmp_path: Path) -> None:
    name = f"{registry.host}/app:1"
    printed = api.docker_text("push", name).splitlines()
    assert printed[0] == f"The push refers to repository [{registry.host}/app]"
    assert printed[-1].startswith(f"1: digest: {digest_of(registry, '1')} size: ")
    assert api.docker_text("push", "-q", name) == f"{name}\n"
    with ImageStore.open(str(tmp_path / "second")) as second:
        assert second.pull(name).image.id == IMAGE.image_id


def test_all_tags(api: Endpoint, registry: Registry) -> None:
    assert api.service is not None
    api.service.store.tag(f"{registry.host}/app:1", f"{registry.host}/app:2")
    lines = push(api, f"{registry.host}/app").lines
    assert [line["aux"]["Tag"] for line in lines if "aux" in line] == ["1", "2"]
    assert api.docker_text("push", "--all-tags", f"{registry.host}/app").count("digest: sha256:") == 2


def test_docker_py(api: Endpoint, registry: Registry) -> None:
    with api.client() as client:
        lines = list(client.api.push(f"{registry.host}/app", "1", stream=True, decode=True))
    assert lines[-1]["aux"]["Digest"] == digest_of(registry, "1")


def test_credentials(api: Endpoint) -> None:
    with Registry(auth="bearer") as private:
        assert api.service is not None
        (image,) = api.service.store.images()
        api.service.store.tag(image.id, f"{private.host}/app:1")
        refused = push(api, f"{private.host}/app", "1").lines
        assert refused[0] == {"status": f"The push refers to repository [{private.host}/app]"}
        assert "denied" in refused[-1]["error"]
        good = {"username": private.username, "password": private.password}
        assert "aux" in push(api, f"{private.host}/app", "1", auth=good).lines[-1]


def test_a_registry_that_fails(api: Endpoint, registry: Registry) -> None:
    registry.inject("/manifests/", Fault(status=403), method="PUT")
    assert "error" in push(api, f"{registry.host}/app", "1").lines[-1]
    assert ("app", "1") not in registry.manifests


def test_names_that_are_none(api: Endpoint) -> None:
    for name, tag in (("UPPER", "1"), ("a//b", "1"), ("app", ".."), ("app@sha256:short", "")):
        answer = push(api, name, tag)
        assert (answer.status, answer.message.startswith("invalid ")) == (400, True)


def test_a_platform(api: Endpoint, registry: Registry) -> None:
    other = "&platform=%7B%22os%22%3A%22linux%22%2C%22architecture%22%3A%22s390x%22%7D"
    assert push(api, f"{registry.host}/app", "1", query=other).status == 404
    assert push(api, f"{registry.host}/app", "1", query=other.replace("s390x", "amd64")).status == 200
    assert push(api, f"{registry.host}/none", "1", query=other).status == 404


def test_what_docker_prints_is_what_it_prints_of_dockerd(
    tmp_path_factory: pytest.TempPathFactory, api: Endpoint, registry: Registry, tmp_path: Path
) -> None:
    commands = [
        ["push", f"{registry.host}/{{own}}:1"],
        ["push", f"{registry.host}/{{own}}:1"],
        ["push", "-q", f"{registry.host}/{{own}}:1"],
        ["push", "-a", f"{registry.host}/{{own}}"],
        ["push", f"{registry.host}/{{own}}:9"],
        ["push", f"{registry.host}/none:1"],
        ["push", "-a", f"{registry.host}/none"],
        ["push", "UPPER"],
    ]
    with docker_daemon(tmp_path_factory.mktemp("d")) as daemon:
        for host, own in ((api.url, "ours"), (daemon.host, "theirs")):
            run_docker(host, "load", "-i", tmp_path / "a.tar")
            run_docker(host, "tag", f"{registry.host}/app:1", f"{registry.host}/{own}:1")
        assert api.service is not None
        api.service.store.tag(f"{registry.host}/app:1", f"{registry.host}/ours:1")
        for words in commands:
            ours, theirs = (
                run_docker(host, *(word.format(own=own) for word in words))
                for host, own in ((api.url, "ours"), (daemon.host, "theirs"))
            )
            assert (ours.returncode, ours.stderr.replace(b"ours", b"theirs")) == (theirs.returncode, theirs.stderr), words
            assert printed(ours.stdout.replace(b"ours", b"theirs")) == printed(theirs.stdout), words


def printed(stdout: bytes) -> list[str]:
    """Sorted, without digests and sizes of manifests: gzip is not the same everywhere, nor the white space of JSON."""
    return sorted(re.sub(r"digest: \S+ size: \d+", "digest", line) for line in stdout.decode().splitlines())
