"""Commands of Docker's command line, given to dockerd and to the endpoint alike, in the order in which users give them.

Pulls, pushes, lists and removals are compared in the tests of each, containers and volumes in ``tests/compat``.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from imgstore.store import ImageStore
from tests.servers.dockerd import docker_daemon, run_docker
from tests.servers.endpoint import Endpoint, endpoint
from tests.servers.images import build_image, make_tar, write_docker_archive
from tests.servers.registry import Registry

LAYERS = [make_tar({name: name.encode() * 3000}) for name in "abc"]
USERNAME, PASSWORD = "robot$p+r", "pa$$:word"


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with Registry() as served:
        served.add_image("app", "1", LAYERS, config={"config": {"Labels": {"a": "b"}}})
        platforms = ("linux/amd64", "linux/arm64/v8", "linux/arm/v7")
        served.add_index("multi", "1", [build_image([make_tar({"p": name.encode()})], platform=name) for name in platforms])
        served.searchable = [
            {"name": "app", "description": "An app of " + "many words " * 9, "star_count": 3, "is_official": True}
        ]
        yield served


@dataclass(frozen=True)
class Pair:
    """dockerd and the endpoint, which have had the same commands.

    Attributes:
        files: a directory that stands as DIR in a command line.
    """

    hosts: tuple[str, str]
    registry: str
    files: Path

    def run(self, line: str, input: bytes | None = None) -> tuple[tuple[int, str, str], tuple[int, str, str]]:
        """Exit code, standard output and standard error of dockerd's command line, then of ours."""
        words = [word.replace("REG", self.registry).replace("DIR", str(self.files)) for word in line.split()]
        first, second = (run_docker(host, *words, input=input, environment={"HOME": str(self.files)}) for host in self.hosts)
        return (
            (first.returncode, self._normal(first.stdout), self._normal(first.stderr)),
            (second.returncode, self._normal(second.stdout), self._normal(second.stderr)),
        )

    def _normal(self, output: bytes) -> str:
        text = output.decode(errors="replace").replace(self.registry, "REG").replace(str(self.files), "DIR")
        text = re.sub(r"\b[0-9a-f]{64}\b", "ID", text)
        text = re.sub(r"\b[0-9a-f]{12}\b", "ID", text)
        text = re.sub(r"\b\d+(\.\d+)?(B|kB|MB)\b", "SIZE", text)
        text = re.sub(r"(Invalid filter|Limit)", lambda found: found[0].lower(), text)  # as versions since 23 have it
        return re.sub(r" \(there are: .*\)", "", text)  # which only we add


@pytest.fixture(scope="module")
def pair(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    files = tmp_path_factory.mktemp("f")
    image = build_image(LAYERS[:2], config={"config": {"Cmd": ["sh"]}, "author": "me"})
    archive = write_docker_archive(files / "a.tar", {"loaded:1": image, "other.example/loaded:2": image})
    (files / "a.tar.gz").write_bytes(gzip.compress(archive.read_bytes()))
    (files / "half.tar").write_bytes(archive.read_bytes()[:20_000])
    (files / "tree.tar").write_bytes(LAYERS[0])
    with (
        docker_daemon(tmp_path_factory.mktemp("d")) as theirs,
        ImageStore.open(str(files / "store")) as store,
        endpoint(store) as ours,
    ):
        yield Pair((theirs.host, ours.url), registry.host, files)


IN_ORDER = [
    "pull -q REG/app:1",
    "pull -q --platform linux/arm64 REG/multi:1",
    "image inspect -f {{.Os}}/{{.Architecture}} REG/multi:1",
    "! pull --platform linux/s390x REG/multi:1",
    "image load -q -i DIR/a.tar",
    "load -i DIR/a.tar.gz",
    "! load -i DIR/nosuch.tar",
    "inspect -f {{.Id}}{{.RepoTags}}{{.Author}} loaded:1",
    "inspect --type image -f {{.Config.Cmd}} loaded:1",
    "! inspect -f {{.Id}} loaded:1 nosuch",
    "image history --format {{.Size}} loaded:1",
    "image tag loaded:1 REG/p/renamed:2",
    "image ls --format {{.Repository}}:{{.Tag}} --filter reference=*loaded*",
    "import DIR/tree.tar imported:1",
    "import DIR/tree.tar imported:1",
    "images --filter dangling=true --format {{.Tag}}",
    "! import -c cmd=x DIR/tree.tar imported:2",
    "image inspect -f {{.Config.Cmd}}{{.Comment}}{{.Architecture}} imported:1",
    "! import DIR/nosuch.tar imported:3",
    "! import DIR/tree.tar UPPER",
    "! save -o DIR/saved.tar nosuch",
    "! save -o DIR/saved.tar UPPER",
    "save -o DIR/saved.tar loaded:1",
    "! save -o DIR/nosuch/saved.tar loaded:1",
    "search --no-trunc --format {{.Name}}|{{.Description}}|{{.StarCount}} REG/app",
    "! search --limit 200 REG/app",
    "! search --filter bogus=1 REG/app",
    "system df --format {{.Type}}|{{.TotalCount}}|{{.Active}}",
    "image rm --no-prune imported:1",
    "! image rm loaded:1 other.example/loaded:2 nosuch",
    "events --since 1 --until 2",
    "container ls -a",
    "volume ls",
    "plugin ls",
    "image prune -f --filter label=none",
    "image prune -a -f --filter until=2000-01-01",
    "system prune -f",
    "system prune -f --volumes --filter label=none",
    "logout REG",
]
"""Those that fail are marked with ``!``."""


def test_as_dockerd_does(pair: Pair) -> None:
    answers = {line: pair.run(line.removeprefix("! ")) for line in IN_ORDER}
    assert {line: ours for line, (_, ours) in answers.items()} == {line: theirs for line, (theirs, _) in answers.items()}
    assert [line for line, (_, ours) in answers.items() if (ours[0] != 0) is not line.startswith("! ")] == []


def test_piped(pair: Pair) -> None:
    """Through standard input and output: what is saved is not the same to the byte, but loads on either side."""
    archive = (pair.files / "a.tar").read_bytes()
    for line, input in (
        ("load", archive),
        ("load -q", archive),
        ("import - piped:1", LAYERS[0]),
        ("import -", gzip.compress(LAYERS[0])),
    ):
        theirs, ours = pair.run(line, input)
        assert ours == theirs, line
    for source, destination in (pair.hosts, pair.hosts[::-1]):
        saved = run_docker(source, "save", "loaded:1", "piped:1").stdout
        with tarfile.open(fileobj=io.BytesIO(saved)) as tar:
            entries = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
        assert sorted(entry["RepoTags"] for entry in entries) == [["loaded:1"], ["piped:1"]]  # dockerd's are in any order
        printed = run_docker(destination, "load", input=saved).stdout.decode()
        assert {"Loaded image: loaded:1", "Loaded image: piped:1"} <= set(printed.splitlines())


@pytest.mark.parametrize("body", [b"", b"garbage", bytes(10240)], ids=["empty", "garbage", "zeros"])
def test_what_is_no_archive(pair: Pair, body: bytes) -> None:
    """The words differ, as the programs that read archives do. dockerd imports an empty body as an image of nothing; we refuse it."""
    for line in ("load", "import - x") if body else ("load",):
        theirs, ours = pair.run(line, body)
        assert (ours[0], ours[1]) == (theirs[0], theirs[1])


@pytest.mark.parametrize(
    ("line", "theirs", "ours"),
    [
        ("network ls -q --no-trunc", (0, "ID\nID\n"), (0, "")),
        ("import http://127.0.0.1:1/x", (1, "connection refused"), (1, "imgstore does not download tar files")),
        (
            "pull 127.0.0.1:1/x",
            (1, "dial tcp 127.0.0.1:1: connect: connection refused"),
            (1, "registry 127.0.0.1:1: connection refused"),
        ),
        ("save -o DIR/x nosuch:1", (1, "reference does not exist"), (1, "No such image: nosuch:1")),
        ("import -", (0, "sha256:ID"), (1, "is empty")),
    ],
)
def test_what_differs(pair: Pair, line: str, theirs: tuple[int, str], ours: tuple[int, str]) -> None:
    """As the reference says."""
    for (code, words), (found, stdout, stderr) in zip((theirs, ours), pair.run(line), strict=True):
        assert found == code, stderr
        assert words in stdout + stderr if words else stdout == ""


def test_a_digest_of_an_index(pair: Pair, registry: Registry) -> None:
    """Stays with the image of the platform that was pulled first, or goes to that of the last."""
    platforms = ("linux/arm64", "linux/amd64")
    digest = registry.add_index(
        "index", "1", [build_image([make_tar({"p": name.encode()})], platform=name) for name in platforms]
    )
    for host, expected in zip(pair.hosts, ("arm64", "amd64"), strict=True):
        for platform in platforms:
            run_docker(host, "pull", "--platform", platform, f"{registry.host}/index:1")
        shown = run_docker(host, "image", "inspect", "-f", "{{.Architecture}}", f"{registry.host}/index@{digest}")
        assert shown.stdout.decode() == f"{expected}\n"


def test_login(pair: Pair) -> None:
    with Registry(auth="basic", username=USERNAME, password=PASSWORD) as private:
        for password, code in ((PASSWORD, 0), ("wrong", 1)):
            line = f"login --username {USERNAME} --password-stdin {private.host}"
            theirs, ours = pair.run(line, password.encode())
            assert (ours[0], ours[1]) == (theirs[0], theirs[1])
            assert ours[0] == code


def test_a_context(registry: Registry, tmp_path: Path) -> None:
    with ImageStore.open("mem://") as store, endpoint(store) as api:
        api.environment["DOCKER_HOST"] = ""  # it would win
        api.docker_text("context", "create", "images", "--docker", f"host={api.url}")
        api.docker_text("context", "use", "images")
        assert api.docker_text("version", "--format", "{{.Server.Platform.Name}}") == "imgstore\n"
        assert api.docker_text("pull", "-q", f"{registry.host}/app:1") == f"{registry.host}/app:1\n"
        assert api.docker_text("--context", "images", "images", "-q")


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Endpoint]:
    with ImageStore.open(str(tmp_path / "store")) as store, endpoint(store) as served:
        yield served


def test_platforms(api: Endpoint, registry: Registry, tmp_path: Path) -> None:
    """Which dockerd 20.10 cannot do."""
    name = f"{registry.host}/multi:1"
    assert api.docker_text("pull", "-q", "--platform", "linux/arm/v7", name) == f"{name}\n"
    assert api.docker_text("image", "ls", "--tree").count("linux/arm/v7") == 1
    assert api.docker("save", "--platform", "linux/arm/v7", "-o", tmp_path / "saved.tar", name).returncode == 0
    done = api.docker("save", "--platform", "linux/amd64", "-o", tmp_path / "other.tar", name)
    assert (done.returncode, b"no suitable export target found for platform linux/amd64" in done.stderr) == (1, True), done.stderr
    api.docker_text("rmi", name)
    done = api.docker("load", "--platform", "linux/amd64", "-i", tmp_path / "saved.tar")
    assert (done.returncode, b"linux/amd64" in done.stderr) == (1, True), done.stderr
    assert api.docker_text("load", "--platform", "linux/arm/v7", "-i", tmp_path / "saved.tar") == f"Loaded image: {name}\n"
    done = api.docker("push", "--platform", "linux/amd64", name)
    assert (done.returncode, b"linux/amd64" in done.stderr) == (1, True), done.stderr


def test_what_is_asked_of_the_registry_alone(api: Endpoint, registry: Registry) -> None:
    shown = json.loads(api.docker_text("manifest", "inspect", "--insecure", f"{registry.host}/multi:1"))
    assert len(shown["manifests"]) == 3


def test_an_image_is_found_among_all_kinds(api: Endpoint, registry: Registry) -> None:
    api.docker_text("pull", "-q", f"{registry.host}/app:1")
    (shown,) = json.loads(api.docker_text("inspect", f"{registry.host}/app:1"))
    assert shown["GraphDriver"]["Name"] == "vmdk"
