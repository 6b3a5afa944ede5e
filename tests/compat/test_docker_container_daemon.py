"""The same commands about containers and volumes to dockerd and to the endpoint: exit codes, output and errors are the same."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from imgstore.store import ImageStore
from tests.servers.dockerd import docker_daemon, run_docker
from tests.servers.endpoint import endpoint
from tests.servers.images import build_image, write_docker_archive


def make_layer(*entries: tuple[str, bytes | None]) -> bytes:
    """A tar of files, and of directories, which have no content; dockerd gives those that are only implied no permissions."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in entries:
            member = tarfile.TarInfo(name)
            member.size = len(content or b"")
            if content is None:
                member.type, member.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(member, io.BytesIO(content or b""))
    return buffer.getvalue()


LAYERS = [
    make_layer(("etc", None), ("etc/motd", b"hello\n"), ("data", None), ("data/file", b"data"), ("bin", None), ("bin/sh", b"#!")),
    make_layer(("etc", None), ("etc/issue", b"two\n")),
]
CONFIG = {"Cmd": ["sh", "-c", "a b"], "Env": ["A=b"], "Labels": {"tier": "web"}, "ExposedPorts": {"80/tcp": {}}}


@dataclass
class Pair:
    """dockerd and the endpoint, which have had the same commands.

    Attributes:
        files: a directory that stands as DIR in a command line; of each of the two as OWN.
    """

    hosts: tuple[str, str]
    files: Path
    own: tuple[Path, Path]
    ids: tuple[dict[str, str], dict[str, str]] = field(default=({}, {}))

    def run(self, line: str, input: bytes | None = None) -> list[tuple[int, str, str]]:
        """Exit code, standard output and standard error of dockerd's command line, then of ours."""
        return [self._run(position, line, input) for position in (0, 1)]

    def _run(self, position: int, line: str, input: bytes | None) -> tuple[int, str, str]:
        own = str(self.own[position])
        words = [word.replace("DIR", str(self.files)).replace("OWN", own).replace("_", " ") for word in line.split(" ")]
        done = run_docker(
            self.hosts[position], *words, input=input, environment={"HOME": str(self.files), "DOCKER_API_VERSION": "1.41"}
        )
        return done.returncode, self._normal(done.stdout, own), self._normal(done.stderr, own)

    def _normal(self, output: bytes, own: str) -> str:
        text = output.decode(errors="replace").replace(own, "OWN").replace(str(self.files), "DIR")
        text = re.sub(r"\b[0-9a-f]{64}\b", "ID", text)
        text = re.sub(r"\b(?=[0-9a-f]*\d)[0-9a-f]{12,14}(…|\b)", "ID", text)
        text = re.sub(r"\b\d+(\.\d+)?(B|kB|MB)\b", "SIZE", text)
        text = re.sub(r"(Less than a second|\d+ seconds?|About a minute) ago", "AGO", text)
        # As versions since 23 have it.
        text = re.sub(r"Unrecognised filter value for health: (\w+)", r"invalid filter 'health=\1'", text)
        text = re.sub(r"Invalid (?=filter)|Cannot (?=kill)|Container (?=ID is not running)", lambda found: found[0].lower(), text)
        text = re.sub(
            r"no such image: \S+: (?=No such image)|time=.*level=error.*\n", "", text
        )  # the latter as fast as the client is
        text = text.replace("Error when allocating new name: ", "").replace("Error processing tar file(exit status 1): ", "")
        lines = [re.sub(" +", " ", line).strip() for line in text.splitlines()]
        return "\n".join(sorted(lines) if re.match(r"[ACD] /|volume\|", text) else lines)  # dockerd has no order there


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    files = tmp_path_factory.mktemp("f")
    image = build_image(LAYERS, config={"config": CONFIG, "created": "2024-05-01T12:00:00Z"})
    write_docker_archive(files / "a.tar", {"app:1": image, "app:2": image})
    (files / "one").write_text("one\n")
    (files / "tree/deep").mkdir(parents=True)
    (files / "tree/deep/two").write_text("two\n")
    own = (files / "theirs", files / "ours")
    for each in own:
        each.mkdir()
    with (
        docker_daemon(tmp_path_factory.mktemp("d")) as theirs,
        ImageStore.open(str(files / "store")) as store,
        endpoint(store) as ours,
    ):
        pair = Pair((theirs.host, ours.url), files, own)
        for code, _, stderr in pair.run("load -i DIR/a.tar"):
            assert code == 0, stderr
        yield pair


IN_ORDER = [
    # made
    "create --name k1 -l a=b -e X=y --read-only app:1",
    "create --name k2 --entrypoint run -w /etc -u me app:2 one two_three",
    "create --name k3 --network none -p 8080:80 --restart always app:1",
    "! create --name k1 app:1",
    "! create --name /k1 app:1",
    "! create --name .c app:1",
    "! create --name c app:1",
    "! create --name k4 --pull never nosuch",
    "! create --name k4 --pull never nosuch@sha256:0000000000000000000000000000000000000000000000000000000000000000",
    "! create --name k4 -w etc app:1",
    "! create --name k4 -e =x app:1",
    "! create --name k4 --platform linux/arm64 --pull never app:1",
    "! create --name k4 --mount type=volume,dst=relative app:1",
    "! create --name k4 --mount type=volume,src=vol app:1",
    "! create --name k4 -v vol:/x:zz app:1",
    "! create --name k4 -v vol:relative app:1",
    "! create --name k4 --health-interval 1us --health-cmd x app:1",
    # listed
    "ps",
    "ps -a",
    "ps -aq --no-trunc",
    "ps -n 2",
    "ps -l --format {{.Names}}|{{.Command}}|{{.Status}}|{{.State}}|{{.Ports}}|{{.LocalVolumes}}|{{.Networks}}|{{.Labels}}",
    "ps -a --no-trunc --format {{.Names}}|{{.Command}}|{{.Image}}|{{.Mounts}}",
    *(
        f"ps -a --format {{{{.Names}}}} --filter {each}"
        for each in (
            *("name=k", "name=^k1$", "name=/k2", "name=nosuch", "id=0000000", "label=a", "label=a=b", "label=a=c"),
            *("status=created", "status=running", "exited=0", "health=none", "health=healthy", "is-task=false", "is-task=true"),
            *("ancestor=app:2", "ancestor=nosuch", "before=k2", "since=k1", "volume=nosuch", "network=none", "network=bridge"),
            *("publish=8080", "expose=81"),
        )
    ),
    *(f"! ps -a --filter {each}" for each in ("status=gone", "health=bad", "is-task=perhaps", "bogus=1", "publish=80:80")),
    "ps --filter status=created --format {{.Names}}",
    # shown
    "inspect -f {{.Name}}|{{.Path}}|{{json_.Args}}|{{.Platform}}|{{.RestartCount}}|{{json_.State}} k1",
    "inspect -f {{.Config.User}}|{{json_.Config.Cmd}}|{{json_.Config.Env}}|{{json_.Config.Labels}}|{{.Config.Image}} k1",
    "inspect -f {{json_.Config.Entrypoint}}|{{json_.Config.Cmd}}|{{.Config.WorkingDir}}|{{.Path}}|{{json_.Args}} k2",
    "inspect -f {{.HostConfig.NetworkMode}}|{{json_.HostConfig.PortBindings}}|{{json_.HostConfig.RestartPolicy}} k3",
    "inspect -f {{json_.NetworkSettings.Ports}}|{{.HostConfig.ReadonlyRootfs}}|{{json_.ExecIDs}}|{{.HostConfig.ShmSize}} k1",
    "inspect --type container -f {{.Image}} k1",
    "! inspect --type container nosuch",
    "! inspect --type image k1",
    "port k3",
    # named
    "rename k2 second",
    "! rename second k1",
    "! rename second second",
    "! rename second .x",
    "! rename nosuch x1",
    # files
    "diff k3",
    "! diff nosuch",
    "cp k3:/etc/motd OWN/motd",
    "cp k3:/etc OWN/etc",
    "! cp k3:/nosuch OWN/x",
    "! cp nosuch:/etc OWN/x",
    "cp -q DIR/one k3:/etc/one",
    "cp -q DIR/tree k3:/new",
    "cp -qa DIR/tree/. k3:/etc",
    "! cp DIR/one k3:/nosuch/x",
    "! cp DIR/tree k3:/etc/motd",
    "! cp DIR/one k1:/etc",
    "diff k3",
    "cp k3:/new OWN/new",
    # not run
    "stop k1",
    "! kill k1",
    "! pause k1",
    "! top k1",
    "! start nosuch",
    "! stop nosuch",
    "! logs nosuch",
    "! exec nosuch x",
    "! wait nosuch",
    "! stats --no-stream nosuch",
    # kept and removed
    "rmi app:1",
    "! rmi app:2",
    'commit -m note -a me -c CMD_["x"] k3 made:1',
    "! commit nosuch made:2",
    "! commit -c from_x k3",
    "image inspect -f {{json_.Config.Cmd}}|{{json_.Config.Env}}|{{.Author}}|{{.Comment}}|{{len_.RootFS.Layers}} made:1",
    "create --name from-made made:1",
    "cp from-made:/new/deep/two OWN/two",
    "ps -a --filter ancestor=app:2 --format {{.Names}}",
    "export -o OWN/tree.tar k3",
    "! export -o OWN/x.tar nosuch",
    "rm k1",
    "! rm k1",
    "rm -f k1",
    "rm -v second",
    "! rm nosuch from-made",
    "container prune -f --filter label=none",
    "container prune -f",
    "ps -a",
    # volumes
    "volume create vol --label a=b",
    "volume create vol",
    "volume ls",
    "volume ls -q --filter label=a",
    "volume ls -q --filter name=vo",
    "volume ls -q --filter dangling=true",
    "volume ls -q --filter dangling=false",
    "volume ls -q --filter driver=local",
    "! volume ls --filter dangling=maybe",
    "! volume ls --filter bogus=1",
    "volume inspect -f {{.Name}}|{{.Driver}}|{{.Scope}}|{{json_.Labels}}|{{json_.Options}} vol",
    "! volume inspect nosuch",
    "! volume rm nosuch",
    "volume rm -f nosuch",
    "create --name cv -v vol:/v:ro -v /anonymous --mount type=volume,src=other,dst=/o app:2",
    "inspect -f {{range_.Mounts}}{{.Type}}|{{.Destination}}|{{.Mode}}|{{.RW}}{{println}}{{end}} cv",
    "volume ls -q --filter dangling=true",
    "ps -a --filter volume=vol --format {{.Names}}",
    "ps -a --filter volume=/o --format {{.Names}}",
    "system df --format {{.Type}}|{{.TotalCount}}|{{.Active}}",
    "rm -v cv",
    "volume ls -q",
    "volume rm vol other",
    "volume prune -f",
    "system prune -f --volumes",
]
"""Those that fail are marked with ``!``; ``_`` stands for a blank in a word."""


def test_as_dockerd_does(pair: Pair) -> None:
    answers = {f"{number}: {line}": pair.run(line.removeprefix("! ")) for number, line in enumerate(IN_ORDER)}
    assert {line: answer for line, answer in answers.items() if answer[0] != answer[1]} == {}, "dockerd's, ours"
    assert [line for line, (_, ours) in answers.items() if (ours[0] != 0) is not (": ! " in line)] == []
    theirs, ours = (_files(own) for own in pair.own)
    assert ours == theirs
    theirs_tree, ours_tree = (_entries(own / "tree.tar") for own in pair.own)
    assert ours_tree == {name: entry for name, entry in theirs_tree.items() if not _IN_EVERY_CONTAINER.match(name)}


_IN_EVERY_CONTAINER = re.compile(r"(dev|proc|sys)(/|$)|etc/(\./)?(hosts|hostname|mtab|resolv\.conf)$|\.dockerenv$")
"""What dockerd puts into a container of its own."""


def _files(directory: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(directory)): path for path in directory.rglob("*") if path.suffix != ".tar"}
    return {name: path.read_bytes() for name, path in found.items() if path.is_file() and not _IN_EVERY_CONTAINER.match(name)}


def test_piped(pair: Pair) -> None:
    """Through standard input and output: the same files on both sides, and what one exports the other imports."""
    tar = make_layer(("piped", None), ("piped/file", b"piped\n"))
    for line, input in (
        ("create --name piped app:2", None),
        ("cp - piped:/etc", tar),
        ("cp - piped:/etc/motd", tar),
        ("cp - piped:/nosuch", tar),
        ("cp - piped:/etc", gzip.compress(tar)),
        ("diff piped", None),
    ):
        theirs, ours = pair.run(line, input)
        assert ours == theirs, line
    for line in ("cp piped:/etc/piped -", "cp piped:/etc/. -", "cp piped:/etc/motd -"):
        tars = [run_docker(host, *line.split()).stdout for host in pair.hosts]
        assert _read(tars[1]) == {
            name: entry for name, entry in _read(tars[0]).items() if not _IN_EVERY_CONTAINER.match(f"etc/{name}")
        }
    for source, destination in (pair.hosts, pair.hosts[::-1]):
        exported = run_docker(source, "export", "piped").stdout
        assert run_docker(destination, "import", "-", "crossed:1", input=exported).returncode == 0
        assert run_docker(destination, "create", "--name", "crossed", "crossed:1", "sh").returncode == 0
        assert b"piped\n" in run_docker(destination, "cp", "crossed:/etc/piped/file", "-").stdout


@pytest.mark.parametrize(
    ("line", "theirs", "ours"),
    [
        ("create -v /tmp:/x app:2", (0, "ID"), (1, "mounting directories as a data volume is not supported.")),
        (
            "create --mount type=bind,src=/,dst=/x app:2",
            (0, "ID"),
            (1, "mounting directories as a data volume is not supported."),
        ),
        ("create --storage-opt size=1G app:2", (1, "has not enabled quotas"), (1, "a container's cannot be smaller")),
        (
            "volume create --driver nfs bad",
            (1, 'plugin "nfs" not found'),
            (1, "error looking up volume plugin nfs: plugin not found"),
        ),
        ("volume create .v", (1, "for a local volume name, only"), (1, 'volume name ".v" includes invalid characters, only')),
        ("volume create --opt x=y bad", (1, 'invalid option: "x"'), (1, "bad driver value - x is not a supported option")),
        ("volume create --opt Capacity=1GB va", (1, 'invalid option: "Capacity"'), (0, "va")),
        ("create --name user -v vu:/x app:2", (0, "ID"), (0, "ID")),
        ("volume rm vu", (1, "remove vu: volume is in use - [ID]"), (1, "volume vu in use by ID")),
        ("ps -a --filter expose=80 --format {{.Names}}", (0, ""), (0, "user")),
        ("update --restart always user", (0, "user"), (1, "imgstore runs no containers")),
        ("logs user", (0, ""), (1, "imgstore runs no containers")),
        ("exec user true", (1, "ID is not running"), (1, "imgstore runs no containers")),
    ],
)
def test_what_differs(pair: Pair, line: str, theirs: tuple[int, str], ours: tuple[int, str]) -> None:
    """As the reference says."""
    for (code, words), (found, stdout, stderr) in zip((theirs, ours), pair.run(line), strict=True):
        assert found == code, stderr
        assert words in stdout + stderr if words else stdout == ""


def _entries(path: Path) -> dict[str, tuple[bytes, int, int, bytes]]:
    return _read(path.read_bytes())


def _read(data: bytes) -> dict[str, tuple[bytes, int, int, bytes]]:
    """Files and directories of a tar: type, mode, size and content by name."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isreg() else io.BytesIO()
            assert content is not None
            found[member.name] = (member.type, member.mode & 0o7777, member.size, content.read())
    return found
