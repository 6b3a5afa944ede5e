"""System commands of Docker's own clients against the endpoint: the command line as users have it, and docker-py 7."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import docker.errors
import pytest

from imgstore.store import ImageStore
from registry_client.options import Options, Places, RegistryOptions
from tests.command_line import REFERENCE
from tests.servers.authority import Authority
from tests.servers.endpoint import Endpoint, endpoint
from tests.servers.registry import Registry
from tests.servers.token_server import Account, TokenServer
from tests.tools import need

USERNAME, PASSWORD = "robot$project+puller", "pa$$:word"


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with Registry(auth="basic", username=USERNAME, password=PASSWORD) as running:
        yield running


@pytest.fixture(scope="module")
def store(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageStore]:
    options = Options(
        insecure_registries=frozenset({"10.0.0.0/8", "plain.example:5000"}),
        registries={"docker.io": RegistryOptions(mirrors=("mirror.example",))},
        places=Places(),
    )
    with ImageStore.open(str(tmp_path_factory.mktemp("api") / "store"), registries=options) as opened:
        opened.pull(REFERENCE)
        yield opened


@pytest.fixture(scope="module")
def api(store: ImageStore) -> Iterator[Endpoint]:
    need("docker")
    with endpoint(store) as served:
        yield served


def refused(api: Endpoint, code: int, *words: str, input: bytes | None = None) -> str:
    """What a docker command says that must fail."""
    done = api.docker(*words, input=input)
    assert code == done.returncode, (done.stdout + done.stderr).decode()
    return done.stderr.decode()


def test_ping(api: Endpoint) -> None:
    for tcp in (False, True):
        answer = api.get("/_ping", tcp=tcp)
        assert (answer.status, answer.body) == (200, b"OK")
        assert answer.headers["api-version"] == "1.51"
        assert answer.headers["builder-version"] == "1"
    assert api.request("HEAD", "/_ping").body == b""
    with api.client() as client:
        assert client.ping()


def test_version(api: Endpoint) -> None:
    shown = json.loads(api.docker_text("version", "--format", "json"))["Server"]
    assert shown["Platform"]["Name"] == "imgstore"
    assert (shown["ApiVersion"], shown["MinAPIVersion"], shown["Os"]) == ("1.51", "1.24", "linux")
    (engine,) = shown["Components"]
    assert engine["Name"] == "Engine" and engine["Details"]["Arch"] == shown["Arch"]
    text = api.docker_text("version")
    assert "Server: imgstore\n" in text and "1.51 (minimum version 1.24)" in text
    with api.client(version="auto") as client:
        assert client.version()["ApiVersion"] == "1.51"


def test_info(api: Endpoint, store: ImageStore) -> None:
    done = api.docker("info")
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode().partition("Server:\n")[2].splitlines()
    assert " Images: 1" in lines
    assert " Storage Driver: vmdk" in lines
    assert "  Disk Capacity: 32GiB" in lines
    assert f"  Datastore: {store.info().directory}" in lines
    assert "  Layers: 3" in lines
    assert f" ID: {store.info().id}" in lines
    insecure = lines[lines.index(" Insecure Registries:") + 1 : lines.index(" Registry Mirrors:")]
    assert sorted(insecure) == ["  10.0.0.0/8", "  127.0.0.0/8", "  ::1/128", "  plain.example:5000"]
    assert lines[lines.index(" Registry Mirrors:") + 1] == "  https://mirror.example/"
    with api.client() as client:
        found = client.info()
    assert (found["Driver"], found["Images"], found["Containers"]) == ("vmdk", 1, 0)
    assert found["MemTotal"] > 0 and found["NCPU"] > 0
    rows = dict(found["DriverStatus"])
    assert rows["Backing Filesystem"] not in ("", "unknown")


def test_info_warns_of_little_space(api: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100 << 30, 96 << 30, 4 << 30))  # type: ignore[attr-defined]
    done = api.docker("info")
    assert done.returncode == 0
    assert "only 4GiB of 100GiB are free" in done.stderr.decode()


def test_login(api: Endpoint, registry: Registry) -> None:
    done = api.docker("login", "--username", USERNAME, "--password-stdin", registry.host, input=PASSWORD.encode())
    assert (done.returncode, done.stdout) == (0, b"Login Succeeded\n"), done.stderr
    # The client keeps it, and the service nothing.
    assert registry.host in json.loads((api.home / ".docker/config.json").read_text())["auths"]
    said = refused(api, 1, "login", "--username", USERNAME, "--password-stdin", registry.host, input=b"wrong")
    assert said.startswith(f"Error response from daemon: login to {registry.host} failed: ")
    api.docker_text("logout", registry.host)


def test_login_with_docker_py(api: Endpoint, registry: Registry) -> None:
    with api.client() as client:
        found = client.login(USERNAME, PASSWORD, registry=f"http://{registry.host}/v1/", dockercfg_path="/nonexistent")
        assert found == {"Status": "Login Succeeded", "IdentityToken": ""}
        with pytest.raises(docker.errors.APIError) as caught:
            client.login(USERNAME, "wrong", registry=registry.host, reauth=True, dockercfg_path="/nonexistent")
        assert caught.value.status_code == 401
        assert "wrong" not in str(caught.value).replace("is wrong", "")


def test_login_gives_identity_tokens(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    options = Options(ca_file=authority.ca_file, places=Places())
    with (
        TokenServer(authority, {"me": Account("s3cret")}) as tokens,
        Registry(auth="bearer", token_server=tokens, tls=authority.server_context()) as registry,
        ImageStore.open("mem://", registries=options) as opened,
        endpoint(opened) as api,
    ):
        login = {"username": "me", "password": "s3cret", "serveraddress": registry.host}
        first = api.post("/auth", login)
        assert (first.status, first.json["Status"]) == (200, "Login Succeeded")
        assert first.json["IdentityToken"] in tokens.refresh_tokens
        again = {"username": "me", "identitytoken": first.json["IdentityToken"], "serveraddress": registry.host}
        assert api.post("/auth", again).status == 200
        assert api.post("/auth", {**again, "identitytoken": "hunter2"}).status == 401
        wrong = api.post("/auth", {**login, "password": "hunter2"})
        assert (wrong.status, "hunter2" in wrong.message) == (401, False)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ([], "is no object"),
        ({"username": 1}, "username is no text"),
        ({"username": "u", "password": "p", "serveraddress": "no such host"}, "is no host"),
        ({"username": "u", "password": "p", "serveraddress": "registry"}, "has no dot and no port"),
    ],
)
def test_logins_that_make_no_sense(api: Endpoint, body: object, words: str) -> None:
    answer = api.post("/auth", body)
    assert (answer.status, words in answer.message) == (400, True)


def test_events(api: Endpoint) -> None:
    assert api.service is not None
    since = time.time()
    with subprocess.Popen(
        ["docker", "events", "--format", "{{.Type}} {{.Action}} {{.Actor.ID}}", "--filter", "type=image"],
        env=api.docker_environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as live:
        assert live.stdout is not None
        deadline = time.monotonic() + 30
        while not api.service.events.listeners:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        api.service.publish("volume", "create", "v", {})
        api.service.publish("image", "tag", "sha256:12", {"name": "alpine:1"})
        assert live.stdout.readline() == "image tag sha256:12\n"
        live.terminate()
    past = api.docker_text("events", "--since", str(since), "--until", str(time.time()), "--format", "{{.Type}} {{.Action}}")
    assert past == "volume create\nimage tag\n"
    named = api.docker_text("events", "--since", "10m", "--until", str(time.time()), "--filter", "image=alpine")
    assert named.endswith(" image tag sha256:12 (name=alpine:1)\n") and named.count("\n") == 1


def test_events_end_at_until(api: Endpoint) -> None:
    begin = time.monotonic()
    answer = api.get(f"/events?until={time.time() + 1:.9f}&since={time.time():.9f}")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["content-type"] == "application/json"
    assert 0.5 < time.monotonic() - begin < 10


def test_events_with_docker_py(api: Endpoint) -> None:
    assert api.service is not None
    with api.client() as client:
        stream = client.events(decode=True, filters={"event": "tag"})
        for start in range(0, 3000, 500):  # no more at once than may wait for a reader
            for number in range(start, start + 500):
                api.service.publish("image", "tag", f"sha256:{number}", {"name": f"n{number}"})
            found = [next(stream) for _ in range(500)]
            assert [event["id"] for event in found] == [f"sha256:{number}" for number in range(start, start + 500)]
            assert {event["status"] for event in found} == {"tag"}
        stream.close()


@pytest.mark.parametrize(
    "query",
    ["since=yesterday", "until=x", "since=10&until=5", "filters=%7B", "filters=%5B%5D"],
)
def test_events_that_make_no_sense(api: Endpoint, query: str) -> None:
    assert api.get(f"/events?{query}").status == 400


@pytest.mark.parametrize("command", ["ps -aq", "network ls -q", "volume ls -q", "plugin ls -q"])
def test_empty_lists(api: Endpoint, command: str) -> None:
    assert api.docker_text(*command.split()) == ""


def test_empty_lists_with_docker_py(api: Endpoint) -> None:
    with api.client() as client:
        assert client.containers.list(all=True) == client.networks.list() == client.volumes.list() == client.plugins.list() == []
        assert client.containers.prune()["SpaceReclaimed"] == 0
        assert client.volumes.prune()["SpaceReclaimed"] == 0
        assert client.networks.prune() == {"NetworksDeleted": []}
        with pytest.raises(docker.errors.NotFound, match="No such container: x"):
            client.containers.get("x")
        with pytest.raises(docker.errors.NotFound, match="network x not found"):
            client.networks.get("x")
        with pytest.raises(docker.errors.NotFound, match="get x: no such volume"):
            client.volumes.get("x")
        with pytest.raises(docker.errors.ImageNotFound, match="No such image: nosuch:latest"):
            client.containers.create("nosuch")


@pytest.mark.parametrize("kind", ["containers", "networks", "volumes"])
def test_prunes(api: Endpoint, kind: str) -> None:
    assert "Total reclaimed space: 0B" in api.docker_text(kind.removesuffix("s"), "prune", "-f") or kind == "networks"
    answer = api.post(f"/{kind}/prune?filters=%7B%22bogus%22%3A%7B%22x%22%3Atrue%7D%7D")
    assert (answer.status, answer.message) == (400, "invalid filter 'bogus'")
    assert api.post("/build/prune").json == {"CachesDeleted": [], "SpaceReclaimed": 0}


@pytest.mark.parametrize("options", ["", "-a --volumes", "-a --filter until=1h"])
def test_system_prune(options: str) -> None:
    with ImageStore.open("mem://") as empty, endpoint(empty) as api:
        assert api.docker_text("system", "prune", "-f", *options.split()) == "Total reclaimed space: 0B\n"


def test_inspect_walks_through_all_that_is_not_there(api: Endpoint) -> None:
    assert refused(api, 1, "inspect", "nope") == "Error: No such object: nope\n"


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("create --pull never nosuch", 1, "No such image: nosuch:latest"),
        ("start x", 1, "No such container: x"),
        ("stop x", 1, "No such container: x"),
        ("logs x", 1, "No such container: x"),
        ("exec x true", 1, "No such container: x"),
        ("rm x", 1, "No such container: x"),
        ("network create x", 1, "imgstore has no networks"),
        ("network rm x", 1, "network x not found"),
        ("network inspect x", 1, "network x not found"),
        ("volume rm x", 1, "get x: no such volume"),
        ("plugin inspect x", 1, 'plugin "x" not found'),
        ("plugin install --grant-all-permissions x", 1, "imgstore has no plugins"),
        ("swarm init", 1, "imgstore is no cluster"),
        ("node ls", 1, "This node is not a swarm manager."),
        ("service ls", 1, "This node is not a swarm manager."),
        ("secret ls", 1, "This node is not a swarm manager."),
        ("config inspect x", 1, "This node is not a swarm manager."),
    ],
)
def test_refusals(api: Endpoint, command: str, code: int, words: str) -> None:
    said = refused(api, code, *command.split())
    assert "Error response from daemon: " in said and words in said


def test_build_is_refused_even_with_a_large_context(api: Endpoint, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    (tmp_path / "large").write_bytes(bytes(20 << 20))
    assert "imgstore does not build images: build and push with another engine, then pull" in refused(
        api, 1, "build", str(tmp_path)
    )


def test_forced_removal_of_what_is_not_there(api: Endpoint) -> None:
    assert api.docker("rm", "-f", "x").returncode == 0
    assert api.docker("volume", "rm", "-f", "x").returncode == 0
