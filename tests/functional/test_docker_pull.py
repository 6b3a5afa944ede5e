"""``docker pull`` against the endpoint: what Docker's own clients print, and what they are told."""

from __future__ import annotations

import base64
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import docker
import pytest

from imgstore.store import ImageStore
from tests.servers.dockerd import docker_daemon, run_docker
from tests.servers.endpoint import Answer, Endpoint, endpoint
from tests.servers.images import BuiltImage, build_image, make_tar
from tests.servers.registry import Fault, Registry

LAYERS = [make_tar({name: random.Random(name).randbytes(200_000)}) for name in "abcde"]
NO_LOGIN = "repository does not exist or may require 'docker login'"


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with Registry() as served:
        served.add_image("team/app", "1", LAYERS)
        served.add_image("team/app", "2", LAYERS[:2])
        served.add_image("arm", "1", LAYERS[:1], platform="linux/arm64")
        images = [build_image(LAYERS[:number], platform=f"linux/{name}") for number, name in ((2, "amd64"), (1, "arm64"))]
        served.add_index("multi", "1", images)
        served.add_index("foreign", "1", [build_image(LAYERS[:1], platform="linux/s390x")])
        yield served


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """An endpoint for tests that leave nothing in its store, or do not care."""
    with ImageStore.open(str(tmp_path_factory.mktemp("shared") / "store")) as store, endpoint(store) as served:
        yield served


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Endpoint]:
    with ImageStore.open(str(tmp_path / "store")) as store, endpoint(store) as served:
        yield served


def pull(api: Endpoint, name: str, tag: str = "", *, auth: dict[str, str] | str | None = None, query: str = "") -> Answer:
    headers = {}
    if auth is not None:
        text = auth if isinstance(auth, str) else base64.urlsafe_b64encode(json.dumps(auth).encode()).decode()
        headers["X-Registry-Auth"] = text
    return api.post(f"/v1.51/images/create?fromImage={quote(name, safe='')}&tag={quote(tag, safe='')}{query}", headers=headers)


def short(image: BuiltImage) -> list[str]:
    return [digest[7:19] for digest in image.layer_digests]


def states(lines: list[Any], layer: str) -> list[str]:
    """The states of a layer that clients print which cannot draw."""
    return [line["status"] for line in lines if line.get("id") == layer and not line["progressDetail"]]


def events(api: Endpoint) -> list[tuple[str, str, dict[str, str]]]:
    assert api.service is not None
    return [(event.action, event.id, dict(event.attributes)) for event in api.service.events.past()]


class TestStream:
    def test_every_layer_goes_through_dockers_states(self, api: Endpoint, registry: Registry) -> None:
        image = build_image(LAYERS)
        answer = pull(api, f"{registry.host}/team/app", "1")
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        assert answer.body.endswith(b"}\r\n")
        lines = answer.lines
        assert lines[0] == {"status": "Pulling from team/app", "id": "1"}
        assert lines[-2:] == [
            {"status": f"Digest: {image.digest}"},
            {"status": f"Status: Downloaded newer image for {registry.host}/team/app:1"},
        ]
        for number, layer in enumerate(short(image)):
            waiting = ["Waiting"] if number >= 3 else []
            assert states(lines, layer) == ["Pulling fs layer", *waiting, "Download complete", "Converting", "Pull complete"]
        details = [line["progressDetail"] for line in lines if line.get("progressDetail")]
        assert details
        assert all(0 <= detail["current"] <= detail["total"] for detail in details)

    def test_what_is_there(self, api: Endpoint, registry: Registry) -> None:
        pull(api, f"{registry.host}/team/app", "2")
        lines = pull(api, f"{registry.host}/team/app", "2").lines
        assert lines == [
            {"status": "Pulling from team/app", "id": "2"},
            {"status": f"Digest: {build_image(LAYERS[:2]).digest}"},
            {"status": f"Status: Image is up to date for {registry.host}/team/app:2"},
        ]
        lines = pull(api, f"{registry.host}/team/app", "1").lines
        layers = short(build_image(LAYERS))
        assert [states(lines, layer)[0] for layer in layers] == ["Already exists"] * 2 + ["Pulling fs layer"] * 3
        assert lines[-1]["status"].startswith("Status: Downloaded newer image for")

    def test_by_digest(self, api: Endpoint, registry: Registry) -> None:
        digest = build_image(LAYERS[:2]).digest
        name = f"{registry.host}/team/app@{digest}"
        for answer in (pull(api, f"{registry.host}/team/app", digest), pull(api, name)):
            assert answer.lines[0] == {"status": "Pulling from team/app", "id": name}
            assert answer.lines[-2] == {"status": f"Digest: {digest}"}
            assert answer.lines[-1]["status"].endswith(f" for {name}")

    def test_all_tags(self, api: Endpoint, registry: Registry) -> None:
        lines = pull(api, f"{registry.host}/team/app").lines
        assert [line["id"] for line in lines if line["status"] == "Pulling from team/app"] == ["1", "2"]
        assert sum(line["status"].startswith("Digest: ") for line in lines) == 2
        assert lines[-1] == {"status": f"Status: Downloaded newer image for {registry.host}/team/app"}
        assert pull(api, f"{registry.host}/team/app:").lines[-1]["status"].startswith("Status: Image is up to date")

    def test_a_platform(self, api: Endpoint, registry: Registry) -> None:
        assert pull(api, f"{registry.host}/multi", "1", query="&platform=linux/arm64/v8").status == 200
        assert api.service is not None
        (image,) = api.service.store.images()
        assert image.architecture == "arm64"

    def test_an_error_after_the_first_message_is_the_last_message(self, api: Endpoint, registry: Registry) -> None:
        image = registry.add_image("damaged", "1", [make_tar({"damaged": b"x" * 5000})])
        registry.inject(image.layer_digests[0], Fault(damage_at=30), times=99)
        answer = pull(api, f"{registry.host}/damaged", "1")
        assert answer.status == 200
        last = answer.lines[-1]
        assert last == {"errorDetail": {"message": last["error"]}, "error": last["error"]}
        assert image.layer_digests[0][7:] in last["error"]
        assert events(api) == []

    def test_a_retry_is_told(self, api: Endpoint, registry: Registry) -> None:
        image = registry.add_image("cut", "1", [make_tar({"cut": random.Random("cut").randbytes(90_000)})])
        registry.inject(image.layer_digests[0], Fault(cut_after=50_000))
        lines = pull(api, f"{registry.host}/cut", "1").lines
        assert any("trying again in" in line["status"] and "progressDetail" not in line for line in lines)
        assert lines[-1]["status"].startswith("Status: Downloaded")

    def test_an_event_for_each_pull(self, api: Endpoint, registry: Registry) -> None:
        config = {"config": {"Labels": {"team": "one"}}}
        registry.add_image("labelled", "1", LAYERS[:1], config=config)
        pull(api, f"{registry.host}/labelled", "1")
        pull(api, f"{registry.host}/labelled", "9")
        name = f"{registry.host}/labelled"
        assert events(api) == [("pull", f"{name}:1", {"team": "one", "name": name})]


class TestErrors:
    @pytest.mark.parametrize(
        ("name", "tag", "query", "status", "message"),
        [
            ("{host}/team/app", "9", "", 404, "manifest for {host}/team/app:9 not found: manifest unknown"),
            ("{host}/team/none", "1", "", 404, "repository {host}/team/none not found: name unknown"),
            (
                "{host}/team/none",
                "",
                "",
                404,
                "repository {host}/team/none not found: name unknown: repository name not known to registry",
            ),
            ("127.0.0.1:1/app", "1", "", 503, "registry 127.0.0.1:1: connection refused"),
            ("UPPER", "1", "", 400, "invalid reference format: repository name must be lowercase"),
            ("team/UPPER", "", "", 400, "invalid reference format: repository name must be lowercase"),
            ("a//b", "1", "", 400, "invalid reference format"),
            ("..", "1", "", 400, "invalid reference format"),
            ("../../etc/passwd", "1", "", 400, "invalid reference format"),
            ("a b", "1", "", 400, "invalid reference format"),
            ("\N{WHALE}", "1", "", 400, "invalid reference format"),
            ("a'b: c", "1", "", 400, "invalid reference format"),
            ("a\x00b", "1", "", 400, "invalid reference format"),
            ("a" * 300, "1", "", 400, "repository name must not be more than 255 characters"),
            ("a" * 64, "", "", 400, f"invalid repository name ({'a' * 64}), cannot specify 64-byte hexadecimal strings"),
            ("app@sha256:short", "", "", 400, "invalid reference format"),
            ("app", "sha256:short", "", 400, "invalid tag format"),
            ("app", "..", "", 400, "invalid tag format"),
            ("app", "a b", "", 400, "invalid tag format"),
            ("app", "\N{WHALE}", "", 400, "invalid tag format"),
            ("app", "t" * 129, "", 400, "invalid tag format"),
            ("oci:/etc", "", "", 400, "invalid reference format"),
            ("scratch", "1", "", 403, "'scratch' is a reserved name"),
        ],
    )
    def test_before_the_first_message(
        self, shared: Endpoint, registry: Registry, name: str, tag: str, query: str, status: int, message: str
    ) -> None:
        answer = pull(shared, name.format(host=registry.host), tag, query=query)
        assert (answer.status, answer.message) == (status, message.format(host=registry.host))

    def test_bad_platforms(self, shared: Endpoint, registry: Registry) -> None:
        answer = pull(shared, f"{registry.host}/multi", "1", query="&platform=a/b/c/d")
        assert answer.status == 400
        assert answer.message.endswith("invalid argument")

    def test_no_image_for_the_platform(self, shared: Endpoint, registry: Registry) -> None:
        lines = pull(shared, f"{registry.host}/foreign", "1", query="&platform=linux/arm64").lines
        assert lines[0] == {"status": "Pulling from foreign", "id": "1"}
        assert lines[1]["error"].startswith("no matching manifest for linux/arm64 in the manifest list entries")
        (_, line) = pull(shared, f"{registry.host}/arm", "1", query="&platform=linux/amd64").lines
        words = "was found but its platform (linux/arm64) does not match the specified platform (linux/amd64)"
        assert line["error"] == f"image with reference {registry.host}/arm:1 {words}"

    def test_no_source(self, shared: Endpoint) -> None:
        assert shared.post("/images/create").status == 400

    def test_a_file_of_the_service_is_no_image(self, shared: Endpoint, tmp_path: Path) -> None:
        for transport in ("docker-archive", "oci", "oci-archive"):
            assert pull(shared, f"{transport}:{tmp_path}", "").status == 400
            assert pull(shared, transport, str(tmp_path)).status == 400

    def test_a_body_without_end_ends_the_answer(self, shared: Endpoint, registry: Registry) -> None:
        connection = shared.connect()
        head = f"POST /images/create?fromImage={registry.host}/team/app&tag=1 HTTP/1.1\r\nHost: docker\r\nContent-Length: 99999999\r\n\r\n"
        connection.sendall(head.encode())
        with pytest.raises(OSError), connection:
            while True:
                connection.sendall(b"x" * 65536)
        assert shared.get("/_ping").status == 200


@pytest.mark.parametrize("kind", ["basic", "bearer"])
class TestCredentials:
    @pytest.fixture
    def private(self, kind: str) -> Iterator[Registry]:
        with Registry(auth=kind) as served:
            served.add_image("app", "1", LAYERS[:1])
            yield served

    def test_good(self, shared: Endpoint, private: Registry) -> None:
        fields = {"username": private.username, "password": private.password, "serveraddress": private.host}
        assert pull(shared, f"{private.host}/app", "1", auth=fields).lines[-1]["status"].startswith("Status: Downloaded")

    @pytest.mark.parametrize("auth", [None, {}, "", "!!!"])
    def test_none(self, shared: Endpoint, private: Registry, auth: dict[str, str] | str | None) -> None:
        answer = pull(shared, f"{private.host}/app", "1", auth=auth)
        assert answer.status == 404
        assert answer.message.startswith(f"pull access denied for {private.host}/app, {NO_LOGIN}: ")

    def test_bad(self, shared: Endpoint, private: Registry) -> None:
        answer = pull(shared, f"{private.host}/app", "1", auth={"username": "who", "password": "s3cr3t"})
        assert answer.status == 401
        assert answer.message.startswith("unauthorized: ")
        assert "s3cr3t" not in answer.message

    def test_docker_py(self, shared: Endpoint, private: Registry) -> None:
        with shared.client() as client, pytest.raises(docker.errors.ImageNotFound):
            client.api.pull(f"{private.host}/app", "1")


class TestClients:
    def test_docker(self, api: Endpoint, registry: Registry) -> None:
        name = f"{registry.host}/team/app:2"
        printed = api.docker_text("pull", name).splitlines()
        one, two = short(build_image(LAYERS[:2]))
        assert printed[0] == "2: Pulling from team/app"
        assert printed[1:3] == [f"{one}: Pulling fs layer", f"{two}: Pulling fs layer"]
        assert printed[-3:] == [
            f"Digest: {build_image(LAYERS[:2]).digest}",
            f"Status: Downloaded newer image for {name}",
            name,
        ]
        assert api.docker_text("pull", "-q", name) == f"{name}\n"
        assert "Image is up to date for" in api.docker_text("pull", name)
        assert api.docker_text("pull", "-a", f"{registry.host}/team/app").endswith(f"\n{registry.host}/team/app\n")

    def test_docker_shows_errors(self, api: Endpoint, registry: Registry) -> None:
        done = api.docker("pull", f"{registry.host}/team/app:9")
        words = f"Error response from daemon: manifest for {registry.host}/team/app:9 not found: manifest unknown\n"
        assert (done.returncode, done.stdout, done.stderr.decode()) == (1, b"", words)
        done = api.docker("pull", f"{registry.host}/foreign:1")
        assert (done.returncode, done.stdout) == (1, b"1: Pulling from foreign\n")
        assert done.stderr.startswith(b"no matching manifest for linux/")

    def test_docker_py(self, api: Endpoint, registry: Registry) -> None:
        with api.client() as client:
            lines = list(client.api.pull(f"{registry.host}/team/app", "2", stream=True, decode=True))
            assert lines[-1]["status"].startswith("Status: Downloaded newer image")
            with pytest.raises(docker.errors.NotFound, match="manifest unknown"):
                client.images.pull(f"{registry.host}/team/app", "9")


def test_what_docker_prints_is_what_it_prints_of_dockerd(
    tmp_path_factory: pytest.TempPathFactory, api: Endpoint, registry: Registry
) -> None:
    app = f"{registry.host}/team/app"
    digest = build_image(LAYERS[:2]).digest
    commands = [
        ["pull", f"{app}:2"],
        ["pull", f"{app}:2"],
        ["pull", f"{app}:1"],
        ["pull", f"{app}@{digest}"],
        ["pull", "-q", f"{app}:2"],
        ["pull", "-a", app],
        ["pull", f"{registry.host}/team/none:1"],
        ["pull", "UPPER"],
        ["pull", f"{app}:"],
        ["pull", f"{registry.host}/foreign:1"],
    ]
    with docker_daemon(tmp_path_factory.mktemp("d")) as daemon:
        for words in commands:
            ours, theirs = run_docker(api.url, *words), run_docker(daemon.host, *words)
            assert (ours.returncode, normal(ours.stderr)) == (theirs.returncode, normal(theirs.stderr)), words
            assert printed(ours.stdout) == printed(theirs.stdout), words


def normal(stderr: bytes) -> str:
    """Without what only dockerd repeats, and what only we add."""
    text = stderr.decode().replace("name unknown: name unknown", "name unknown")
    return re.sub(r" \(there are: .*\)", "", text)


def printed(stdout: bytes) -> tuple[list[str], list[str]]:
    """The lines about the whole, in order, and those about layers but for our own state and theirs."""
    lines = [
        line for line in stdout.decode().splitlines() if not line.endswith((": Converting", ": Verifying Checksum", ": Waiting"))
    ]
    layers = [line for line in lines if re.match(r"[0-9a-f]{12}: ", line)]
    return [line for line in lines if line not in layers], sorted(layers)
