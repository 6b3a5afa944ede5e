"""Images through Docker's own clients: the command line and docker-py, and the answers compared with those of Debian's dockerd."""

from __future__ import annotations

import json
import random
import re
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import APIError, ImageNotFound, NotFound

from imgstore.answers import Image
from imgstore.store import ImageStore
from tests.servers.dockerd import DockerDaemon, docker_daemon, run_docker
from tests.servers.endpoint import Endpoint, endpoint
from tests.servers.images import make_tar
from tests.servers.registry import Registry


def layer(name: str) -> bytes:
    return make_tar({name: random.Random(name).randbytes(5000)})


LAYERS = [layer("first"), layer("second"), layer("third")]


def serve_images(registry: Registry) -> list[str]:
    """Three images that share layers; returns their names."""

    def config(created: str, **run: Any) -> dict[str, Any]:
        history = {"created": created, "created_by": "RUN make", "comment": "made"}
        return {"created": created, "author": "me", "config": {"Cmd": ["sh"], "Env": ["A=b"], **run}, "history": [history] * 2}

    first = config("2024-05-01T12:00:00.123456789Z", Labels={"tier": "web", "v": "1"})
    registry.add_image("app", "1", LAYERS[:2], config=first)
    last = config("2024-06-01T12:00:00Z", Labels={"tier": "db"})
    del last["history"]
    registry.add_image("app", "2", LAYERS, config=last)
    other = config("2023-01-01T00:00:00+02:00", ExposedPorts={"80/tcp": {}}, Volumes={"/v": {}}, WorkingDir="/w", User="u")
    other["history"] = [other["history"][0], {"created": "2023-01-01T00:00:00Z", "empty_layer": True, "created_by": "ENV A=b"}]
    registry.add_image("deep/er/other", "latest", LAYERS[:1], config=other)
    return [f"{registry.host}/{name}" for name in ("app:1", "app:2", "deep/er/other:latest")]


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with Registry() as registry:
        yield registry


@pytest.fixture(scope="module")
def names(registry: Registry) -> list[str]:
    return serve_images(registry)


@pytest.fixture
def store(names: list[str], tmp_path: Path) -> Iterator[ImageStore]:
    with ImageStore.open(str(tmp_path / "store")) as store:
        for name in names:
            store.pull(name)
        yield store


@pytest.fixture
def api(store: ImageStore) -> Iterator[Endpoint]:
    with endpoint(store) as api:
        yield api


def events(api: Endpoint) -> list[tuple[str, str, dict[str, str]]]:
    assert api.service is not None
    return [(event.action, event.id, dict(event.attributes)) for event in api.service.events.past()]


# Side by side with dockerd


@dataclass
class Pair:
    """Two daemons that have the same images, and speak the same version of the API."""

    daemon: DockerDaemon
    ours: Endpoint
    host: str
    images: list[Image]

    def run(self, line: str) -> list[tuple[int, str, str]]:
        """Exit code, standard output and standard error of a command line of docker, of dockerd and of ours."""
        words = [self._filled(word) for word in line.split(" ")]
        environment = {"DOCKER_API_VERSION": "1.41", "HOME": str(self.ours.home)}
        done = [run_docker(host, *words, environment=environment) for host in (self.daemon.host, self.ours.url)]
        return [(each.returncode, self._normal(each.stdout), self._normal(each.stderr)) for each in done]

    def _filled(self, word: str) -> str:
        word = word.replace("REG", self.host).replace("SPACE", " ")
        return re.sub(r"ID(\d)(?:/(\d+))?", lambda found: self.images[int(found[1])].id[7 : 7 + int(found[2] or 64)], word)

    def _normal(self, output: bytes) -> str:
        """Without what may differ: sizes, the name of the registry, the order of images that are of the same time."""
        text = output.decode().replace(self.host, "REG")
        text = re.sub(r"\b\d+(\.\d+)?(B|kB|MB)\b", "SIZE", text)
        text = re.sub(r"Invalid filter", "invalid filter", text)  # as versions since 23 have it
        text = re.sub(r"no such image: \S+: (?=No such image)", "", text)  # which those leave out
        lines = [re.sub(" +", " ", line).strip() for line in text.splitlines()]
        return "\n".join(lines[:1] + sorted(lines[1:]))


@contextmanager
def daemons(registry: Registry, names: list[str]) -> Iterator[Pair]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="imgstore-pair-")))
        daemon = stack.enter_context(docker_daemon(directory / "docker"))
        store = stack.enter_context(ImageStore.open(str(directory / "store")))
        for name in names:
            assert daemon.run("pull", name).returncode == 0
        images = [store.pull(name).image for name in names]
        yield Pair(daemon, stack.enter_context(endpoint(store)), registry.host, images)


@pytest.fixture(scope="module")
def pair(registry: Registry, names: list[str]) -> Iterator[Pair]:
    with daemons(registry, names) as pair:
        yield pair


@pytest.mark.parametrize(
    "line",
    [
        "images",
        "images -a -q",
        "images --digests --no-trunc",
        "images REG/app",
        "images REG/app:1",
        "images REG/*",
        "images app",
        "images --filter dangling=true",
        "images --filter dangling=false",
        "images --filter dangling=maybe",
        "images --filter bogus=1",
        "images --filter label=tier",
        "images --filter label=tier=db",
        "images --filter label=tier --filter label=v=1",
        "images --filter before=REG/app:2",
        "images --filter since=ID0/12",
        "images --filter before=nosuch",
        "images --filter reference=*/app:*",
        "images --filter reference=*/*/*/other",
        "images --filter reference=[",
        "images --format {{.Repository}}|{{.Tag}}|{{.ID}}|{{.CreatedAt}}",
        "history REG/app:1",
        "history --no-trunc REG/deep/er/other",
        "history -q ID1/12",
        "history nosuch",
        "image inspect nosuch",
        "image inspect ID0/12 -f {{.Id}}{{.Created}}{{.Os}}/{{.Architecture}}{{json.RootFS}}",
        "image inspect REG/app@sha256:0000000000000000000000000000000000000000000000000000000000000000",
        "image inspect sha256:0000000000000000000000000000000000000000000000000000000000000000",
        "image inspect a//b",
        "inspect nosuch",
        "tag nosuch x",
        "tag ID0/12 sha256:x",
        "rmi nosuch",
        "rmi -f nosuch",
        "rmi SPACE",
        "rmi UPPER",
        "image prune -f --filter bogus=1",
        "image prune -f --filter until=1h --filter until=2h",
    ],
)
def test_as_dockerd_does(pair: Pair, line: str) -> None:
    theirs, ours = pair.run(line)
    assert ours == theirs


@pytest.mark.parametrize("number", [0, 1, 2])
def test_inspect_as_dockerd_does(pair: Pair, number: int) -> None:
    name = pair.images[number].references[0]
    shown = [
        json.loads(run_docker(host, "image", "inspect", name, environment={"DOCKER_API_VERSION": "1.41"}).stdout)[0]
        for host in (pair.daemon.host, pair.ours.url)
    ]
    theirs, ours = shown
    assert (theirs.pop("GraphDriver")["Name"], ours.pop("GraphDriver")["Name"]) == ("vfs", "vmdk")
    for image in shown:
        assert image.pop("VirtualSize") == image.pop("Size") > 0
    assert theirs.pop("Container") == ""  # versions since 26 leave it out if it is empty
    assert ours == theirs


def test_removals_as_dockerd_does(registry: Registry, names: list[str]) -> None:
    lines = [
        "tag REG/app:1 new",
        "tag REG/app:1 new:2",
        "tag ID0/20 REG/app:1",
        "images --digests",
        "rmi ID0/12",
        "rmi new",
        "rmi new:2 nosuch",
        "rmi sha256:ID0/13",
        "tag REG/app:2 REG/app:3",
        "rmi ID1",
        "rmi REG/app:3",
        "rmi ID1/8",
        "images -a",
        "tag REG/deep/er/other keep:1",
        "rmi REG/deep/er/other",
        "images --digests",
        "rmi -f ID2",
        "pull -q REG/app:1",
        "tag REG/app:1 app:1",
        "pull -q REG/app:2",
        "tag REG/app:2 app:1",
        "rmi REG/app:1",
        "image prune -f",
        "image prune -a -f --filter label=none",
        "image prune -a -f --filter label!=tier=db",
        "image prune -a -f",
        "images -a",
    ]
    with daemons(registry, names) as pair:
        for line in lines:
            if line.startswith("pull"):
                for daemon in (pair.daemon.host, pair.ours.url):
                    _bring(daemon, pair, line.rpartition("REG/")[2])
                continue
            theirs, ours = pair.run(line)
            assert (line, ours) == (line, theirs)


def _bring(host: str, pair: Pair, name: str) -> None:
    if host == pair.daemon.host:
        assert pair.daemon.run("pull", f"{pair.host}/{name}").returncode == 0
    else:
        assert pair.ours.service is not None
        pair.ours.service.store.pull(f"{pair.host}/{name}")


# What only ours has


def test_the_chain_of_an_image(api: Endpoint, store: ImageStore, names: list[str]) -> None:
    data = json.loads(api.docker_text("image", "inspect", "-f", "{{json .GraphDriver}}", names[1]))
    assert data["Name"] == "vmdk"
    assert data["Data"]["Chain"].split(":") == store.disk_paths(names[1])
    assert data["Data"]["TopVMDK"] == store.disk_paths(names[1])[-1]
    assert data["Data"]["Datastore"] == store.location


def test_until(api: Endpoint, names: list[str]) -> None:
    assert len(api.docker_text("images", "-q", "--filter", "until=2024-05-15").splitlines()) == 2
    assert len(api.docker_text("images", "-q", "--filter", "until=24h").splitlines()) == 3
    done = api.docker("images", "--filter", "until=soon")
    assert (done.returncode, b"failed to parse value as time or duration" in done.stderr) == (1, True)


def test_manifests_of_a_tree(api: Endpoint, names: list[str]) -> None:
    printed = api.docker_text("images", "--tree")
    assert printed.count("linux/amd64") == 3 and names[0] in printed


@pytest.mark.parametrize("verb", [("image", "inspect"), ("history",), ("rmi",)])
def test_another_platform(api: Endpoint, names: list[str], verb: tuple[str, ...]) -> None:
    done = api.docker(*verb, "--platform", "linux/s390x", names[0])
    words = f"image with reference {names[0]} was found but does not provide the specified platform (linux/s390x)"
    assert (done.returncode, words in done.stderr.decode()) == (1, True)
    assert api.docker(*verb, "--platform", "linux/amd64", names[0]).returncode == 0


@pytest.mark.parametrize(
    "method, path, status, message",
    [
        (
            "GET",
            '/images/NAME/json?manifests=1&platform={"os":"linux","architecture":"amd64"}',
            400,
            "conflicting options: manifests",
        ),
        ("GET", '/images/NAME/json?platform={"os":"linux"}', 400, "both OS and Architecture must be provided"),
        ("GET", '/v1.48/images/NAME/json?platform={"os":"linux"}', 200, ""),
        ("GET", "/images/UPPER/json", 400, "invalid reference format"),
        ("GET", "/images/nosuch/json", 404, "No such image: nosuch:latest"),
        ("POST", "/images/NAME/tag?repo=", 400, "invalid reference format"),
        ("POST", "/images/NAME/tag?repo=app&tag=a%20b", 400, "invalid tag format"),
        ("POST", "/images/NAME/tag?repo=app@sha256:" + "0" * 64, 400, "cannot import digest reference"),
        (
            "DELETE",
            '/images/NAME?platforms={"os":"linux","architecture":"arm"}&platforms={"os":"linux","architecture":"arm64"}',
            400,
            "multi",
        ),
        ("DELETE", "/images/", 400, "image name cannot be blank"),
        ("GET", "/system/df?type=bogus", 400, "unknown object type: bogus"),
        ("GET", "/images/json?filters=[", 400, "invalid filter"),
        ("GET", "/v1.41/images/json?filter=nosuch", 200, ""),
        ("PUT", "/images/json", 404, "page not found"),
    ],
)
def test_answers(api: Endpoint, names: list[str], method: str, path: str, status: int, message: str) -> None:
    answer = api.request(method, path.replace("NAME", names[0]).replace('"', "%22").replace("[", "%5B"))
    assert answer.status == status, answer.body
    assert message == "" or message in answer.message


def test_summaries_by_version(api: Endpoint, store: ImageStore, names: list[str]) -> None:
    old = api.get("/v1.24/images/json?shared-size=1").json
    assert [image["SharedSize"] for image in old] == [-1, -1, -1] and old[0]["VirtualSize"] == old[0]["Size"]
    new = api.get("/v1.51/images/json?shared-size=1&manifests=1").json
    usages = {usage.id: usage for usage in store.usage().images}
    assert [image["SharedSize"] for image in new] == [usages[image["Id"]].shared for image in new]
    assert [image["Size"] for image in new] == [usages[image["Id"]].size for image in new]
    assert all(image["Containers"] == 0 and len(image["Manifests"]) == 1 for image in new)
    assert len(api.get(f"/v1.40/images/json?filter={names[0]}").json) == 1


def test_docker_py(api: Endpoint, names: list[str]) -> None:
    with api.client() as client:
        assert [image.tags for image in client.images.list()] == [[names[1]], [names[0]], [names[2]]]
        image = client.images.get(names[0])
        assert image.labels == {"tier": "web", "v": "1"} and len(image.history()) == 2
        assert image.tag("new", "2") and client.images.get("new:2").id == image.id
        assert [each.id for each in client.images.list(name="new", filters={"label": "v"})] == [image.id]
        with pytest.raises(ImageNotFound):
            client.images.get("nosuch")
        with pytest.raises(APIError, match="referenced in multiple repositories") as caught:
            client.images.remove(image.id)
        assert caught.value.status_code == 409
        client.images.remove("new:2", noprune=True)
        assert client.df()["LayersSize"] == sum(each["Size"] - each["SharedSize"] for each in client.df()["Images"]) + _shared(
            client
        )
        pruned = client.images.prune(filters={"dangling": False, "label": ["tier=web"]})
        assert {"Deleted": image.id} in pruned["ImagesDeleted"] and pruned["SpaceReclaimed"] == 0  # app:2 has all of its layers
        assert client.images.prune() == {"ImagesDeleted": None, "SpaceReclaimed": 0}
        with pytest.raises(NotFound):
            client.api.remove_image(names[0])


def _shared(client: docker.DockerClient) -> int:
    """Bytes of the layers that more than one image has: here all of the smaller ones."""
    largest = max(client.df()["Images"], key=lambda image: image["Size"])
    return int(largest["SharedSize"])


def test_system_df_is_what_the_datastore_holds(api: Endpoint, store: ImageStore, names: list[str]) -> None:
    root = Path(store.location)
    disks = root / "disks"
    scratch = _blocks([*disks.glob("scratch.*")])
    assert api.get("/system/df").json["LayersSize"] == _blocks([*disks.iterdir()]) - scratch
    usage = store.usage()
    parts = usage.disk_bytes + usage.scratch_bytes + usage.metadata_bytes + usage.catalog_bytes + usage.staged_bytes
    counted = re.compile(r"images|references|catalog\..*")
    rest = _blocks([root, *(path for path in root.iterdir() if not counted.fullmatch(path.name))])  # the directories, locks
    assert parts + rest == int(_du(store.location))
    reclaimed = api.post("/images/prune?filters=" + '{"dangling":{"false":true}}'.replace('"', "%22")).json["SpaceReclaimed"]
    assert reclaimed == usage.disk_bytes and api.get("/system/df").json["LayersSize"] == 0
    assert _blocks([*disks.iterdir()]) == scratch


def _blocks(paths: list[Path]) -> int:
    return sum(path.stat().st_blocks * 512 for path in paths)


def _du(directory: str) -> str:
    words = ["du", "--block-size=1", "--summarize", directory]
    return subprocess.run(words, capture_output=True, check=True, text=True).stdout.split()[0]


def test_system_df_of_the_command_line(api: Endpoint, names: list[str]) -> None:
    assert re.search(r"^Images +3 +0 +\S+ +\S+ \(100%\)$", api.docker_text("system", "df"), re.MULTILINE)
    assert api.docker_text("system", "df", "-v").count("/app ") == 2
    parts = api.get("/v1.44/system/df?type=container").json
    assert (parts["Images"], parts["Containers"], parts["LayersSize"]) == (None, [], 0)


def test_a_name_that_moves_leaves_the_image(api: Endpoint, store: ImageStore, registry: Registry, names: list[str]) -> None:
    name = f"{registry.host}/moving:1"
    first = registry.add_image("moving", "1", LAYERS[:1], config={"created": "2020-01-01T00:00:00Z"})
    store.pull(name)
    registry.add_image("moving", "1", LAYERS[:2], config={"created": "2020-01-02T00:00:00Z"})
    store.pull(name)
    (dangling,) = store.images({"dangling": ["true"]})
    assert (dangling.id, dangling.references, len(dangling.digests)) == (first.image_id, (), 1)
    printed = api.docker_text("images", "--filter", "dangling=true", "--no-trunc")
    assert f"<none>    {first.image_id}" in printed
    assert f"deleted: {first.image_id}" in api.docker_text("image", "prune", "-f")
    assert store.image(name).id != first.image_id


def test_events(api: Endpoint, store: ImageStore, names: list[str]) -> None:
    image = store.image(names[0])
    labels = {"tier": "web", "v": "1"}
    api.docker_text("tag", names[0], "new")
    api.docker_text("rmi", "new")
    api.docker_text("rmi", names[0])
    api.docker_text("image", "prune", "-f")
    assert events(api) == [
        ("tag", image.id, labels | {"name": "new:latest"}),
        ("untag", image.id, labels | {"name": image.id}),
        ("untag", image.id, labels | {"name": image.id}),
        ("delete", image.id, {"name": image.id}),
        ("prune", "", {"reclaimed": "0"}),
    ]


def test_one_prune_at_a_time(api: Endpoint, store: ImageStore) -> None:
    with ImageStore.open(store.location) as other:
        lease = other._leases.acquire("prune")
        assert lease is not None
        answer = api.post("/images/prune")
        assert (answer.status, answer.message) == (409, "a prune operation is already running")
        lease.release()
    assert api.post("/images/prune").status == 200


def test_two_removals_at_once(api: Endpoint, store: ImageStore, names: list[str]) -> None:
    for _ in range(5):
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda _: api.delete(f"/images/{names[0]}"), range(2)))
        assert sorted(answer.status for answer in answers) == [200, 404]
        store.pull(names[0])


def test_lists_while_images_come_and_go(api: Endpoint, store: ImageStore, names: list[str]) -> None:
    done = threading.Event()
    id = store.image(names[1]).id

    def look() -> set[int]:
        paths = ["/images/json", "/images/json?shared-size=1", f"/images/{id}/json", f"/images/{id}/history", "/system/df"]
        statuses = set()
        while not done.is_set():
            statuses |= {api.get(path).status for path in paths}
        return statuses

    with ThreadPoolExecutor(3) as pool:
        lookers = [pool.submit(look) for _ in range(2)]
        try:
            for round in range(8):
                store.tag(names[1], f"round:{round}")
                assert api.delete(f"/images/{names[1]}").status == 200
                assert api.delete(f"/images/round:{round}").status == 200
                store.pull(names[1])
        finally:
            done.set()
        statuses = lookers[0].result() | lookers[1].result()
    assert statuses <= {200, 404} and 200 in statuses
    assert list(store.check()) == []
