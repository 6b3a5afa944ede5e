"""``docker commit`` against the endpoint: containers become images again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from imgstore.stop import Stop, StoppedError
from imgstore.store import ImageStore
from tests.servers.endpoint import Endpoint, endpoint
from tests.servers.images import build_image, make_tar, write_docker_archive
from tests.servers.registry import Registry

CONFIG = {"Cmd": ["run"], "Env": ["A=b"], "Labels": {"of": "image"}}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ImageStore]:
    image = build_image([make_tar({"etc/motd": b"hello\n"})], config={"config": CONFIG})
    with ImageStore.open(str(tmp_path / "store")) as opened:
        with write_docker_archive(tmp_path / "a.tar", {"app:1": image}).open("rb") as body:
            list(opened.load(body))
        opened.create_container("app:1", name="web", config={"Env": ["X=y"]})
        yield opened


@pytest.fixture
def api(store: ImageStore) -> Iterator[Endpoint]:
    with endpoint(store) as served:
        yield served


def commit(api: Endpoint, body: object = None, **query: str) -> tuple[int, str]:
    answer = api.post(f"/commit?{urlencode({'container': 'web', **query})}", body)
    return answer.status, answer.json.get("message") or answer.json["Id"]


def test_what_was_copied_in_comes_out_of_a_registry(api: Endpoint, store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "new").write_text("new\n")
    api.docker("cp", tmp_path / "new", "web:/etc/new")
    with Registry() as registry:
        name = f"{registry.host}/team/made:2"
        id = api.docker_text("commit", "-a", "me", "-m", "note", "-c", 'CMD ["other"]', "-c", "ENV Z=1", "web", name).strip()
        image = store.image(name)
        assert (image.id, image.config["author"], image.config["history"][-1]["comment"]) == (id, "me", "note")
        assert image.config["config"]["Cmd"] == ["other"] and set(image.config["config"]["Env"]) == {"A=b", "X=y", "Z=1"}
        assert len(image.layers) == 2
        assert api.docker("push", "-q", name).returncode == 0
        api.docker_text("rmi", name)
        api.docker_text("create", "--name", "again", name)
    assert api.docker_text("cp", "again:/etc/new", "-").rstrip("\0").endswith("new\n")
    assert api.service is not None
    told = [event for event in api.service.events.past() if event.action == "commit"]
    assert [(event.attributes["comment"], event.attributes["imageID"], event.attributes["imageRef"]) for event in told] == [
        ("note", id, name)
    ]


def test_the_body_is_a_configuration(api: Endpoint, store: ImageStore) -> None:
    status, id = commit(api, {"Env": ["ONLY=1"], "Labels": {"new": "label"}, "Cmd": None}, repo="made", changes="WORKDIR /w")
    assert (status, id) == (201, store.image("made:latest").id)
    config = store.image(id).config["config"]
    assert (config["Cmd"], config["WorkingDir"]) == (["run"], "/w") and "ONLY=1" in config["Env"]


@pytest.mark.parametrize(
    ("query", "body", "status", "words"),
    [
        ({"container": "nosuch"}, None, 404, "No such container: nosuch"),
        ({"container": ""}, None, 400, 'invalid name or ID supplied: ""'),
        ({"repo": "UPPER"}, None, 400, "invalid reference format: repository name must be lowercase"),
        ({"repo": "a", "tag": "!"}, None, 400, "invalid tag format"),
        ({"changes": "FROM x"}, None, 400, "is not a valid change command"),
        ({}, {"Env": 5}, 400, "invalid JSON: Config.Env"),
        ({}, b"{", 400, "must be 'application/json'"),
    ],
)
def test_what_makes_no_sense(
    api: Endpoint, store: ImageStore, query: dict[str, str], body: object, status: int, words: str
) -> None:
    found, message = commit(api, body, **query)
    assert (found, words in message) == (status, True), message
    assert len(store.images()) == 1


def test_a_client_that_hangs_up_leaves_no_image(api: Endpoint, store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ended = threading.Event(), threading.Event()
    commit_container = store.commit_container

    def commit_late(*words: Any, stop: Stop, **options: Any) -> Any:
        begun.set()
        try:
            with contextlib.suppress(StoppedError):
                stop.wait(30)
            return commit_container(*words, stop=stop, **options)
        finally:
            ended.set()

    monkeypatch.setattr(store, "commit_container", commit_late)
    with contextlib.closing(api.connect()) as client:
        client.sendall(b"POST /commit?container=web HTTP/1.1\r\nHost: docker\r\nContent-Length: 0\r\n\r\n")
        assert begun.wait(10)
    assert ended.wait(20)
    assert len(store.images()) == 1
    assert api.get("/_ping").status == 200


def test_with_docker_py(api: Endpoint) -> None:
    with api.client() as client:
        image = client.containers.get("web").commit("made", "2", message="note", conf={"Env": ["Q=1"]})
        assert image.tags == ["made:2"] and "Q=1" in image.attrs["Config"]["Env"]
