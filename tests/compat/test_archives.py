"""Archives go between us and docker, skopeo and umoci, in both directions, and the images stay the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import imgstore
from imgstore.store import ImageStore
from tests.archives import legacy_image, legacy_members, write
from tests.command_line import LAYOUT, REFERENCE, contents
from tests.images.layer import LayerTar
from tests.judges import umoci
from tests.judges.tree import diff, tree_of
from tests.servers.dockerd import DockerDaemon, docker_daemon
from tests.servers.images import make_tar
from tests.tools import need, need_root, run

NAME = "three-layers:latest"
DISK_SIZE = 1 << 30


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerDaemon]:
    root = tmp_path_factory.mktemp("d")
    with docker_daemon(root) as running:
        yield running
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the image of testdata, and another one that shares a layer with it."""
    store = tmp_path_factory.mktemp("original") / "store"
    with ImageStore.create(str(store), disk_size=DISK_SIZE) as opened:
        opened.pull(REFERENCE)
        opened.tag(NAME, "localhost:5000/team/app:1")
        opened.tag(NAME, "three-layers:stable")
    return store


@pytest.fixture(scope="module")
def saved(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What we save of it, under all its names."""
    path = tmp_path_factory.mktemp("saved") / "images.tar"
    with ImageStore.open(str(original)) as store, path.open("wb") as out:
        out.writelines(store.save(["three-layers", "localhost:5000/team/app:1"]))
    return path


def load(store: Path, archive: Path) -> list[imgstore.LoadedImage]:
    with ImageStore.create(str(store), disk_size=DISK_SIZE) as opened:
        loaded = list(opened.load(archive))
        assert list(opened.check(read_data=True)) == []
    return loaded


def image_id(store: Path, name: str = NAME) -> str:
    with ImageStore.open(str(store)) as opened:
        return opened.image(name).id


def docker(daemon: DockerDaemon, *words: str | Path, input: bytes | None = None) -> str:
    done = daemon.run(*words, input=input)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_docker_loads_what_we_save_and_saves_what_we_load(
    daemon: DockerDaemon, original: Path, saved: Path, tmp_path: Path
) -> None:
    said = docker(daemon, "load", "-i", saved)
    names = {"three-layers:latest", "three-layers:stable", "localhost:5000/team/app:1"}
    assert {f"Loaded image: {name}" for name in names} == set(said.splitlines())
    expected = image_id(original)
    assert {expected} == {docker(daemon, "image", "inspect", "-f", "{{.Id}}", name).strip() for name in names}
    with ImageStore.open(str(original)) as store:
        diff_ids = [layer.diff_id for layer in store.image(NAME).layers]
    assert diff_ids == json.loads(docker(daemon, "image", "inspect", "-f", "{{json .RootFS.Layers}}", NAME))
    docker(daemon, "save", "-o", tmp_path / "by-docker.tar", *sorted(names))
    (loaded,) = load(tmp_path / "store", tmp_path / "by-docker.tar")
    assert names == set(loaded.references)
    assert expected == loaded.image.id
    disks = {path: digest for path, digest in contents(original).items() if path.endswith((".vmdk", ".crc32c", ".recipe"))}
    assert disks == {path: contents(tmp_path / "store").get(path) for path in disks}


@pytest.mark.parametrize("version", ["1.6.0", "1.9.1", ""])
def test_docker_gives_an_image_of_an_old_archive_the_same_id(daemon: DockerDaemon, tmp_path: Path, version: str) -> None:
    name = f"old{version}"
    layers = legacy_image([make_tar({"a": b"1"}), make_tar({"b": b"2"})], docker_version=version)
    archive = write(tmp_path / "old.tar", legacy_members(layers, {name: {"1": layers[-1][0], "2": layers[0][0]}}))
    docker(daemon, "load", "-i", archive)
    loaded = load(tmp_path / "store", archive)
    assert [(f"{name}:1",), (f"{name}:2",)] == [image.references for image in loaded]
    for image in loaded:
        assert image.image.id == docker(daemon, "image", "inspect", "-f", "{{.Id}}", image.references[0]).strip()


CHANGES = [
    ["CMD echo $HOME 'a b'", 'ENTRYPOINT ["/bin/init", "-x"]'],
    ["ENTRYPOINT exec /bin/run", "CMD []"],
    ["ENV A=1 B='x y' C=\"$A z\"", "ENV PATH /usr/bin:/bin", "ENV A=2 D=${A}-${NONE:-none}-${A:+set} E=\\$A"],
    ["EXPOSE 80 443/tcp 53/udp", "EXPOSE 8000-8003"],
    ["LABEL a=1 \"b c\"='d e'", "label f g h"],
    ["USER 1000:1000", "WORKDIR /srv", "WORKDIR app/../www"],
    ["VOLUME /data /var/log", 'VOLUME ["/a b", "/c"]'],
    ["HEALTHCHECK --interval=1m30s --timeout=500ms --retries=3 CMD curl -f http://localhost/ || exit 1"],
    ['HEALTHCHECK CMD ["/bin/check", "x"]'],
    ["HEALTHCHECK NONE"],
    ["ONBUILD RUN make", "ONBUILD COPY . /src"],
    ["# a comment\nENV A=1 \\\n  B=2", "CMD a \\\n b"],
]
WRONG = [
    "ENV",
    "ENV A",
    "ENV A=1 B",
    "ENV =1",
    "LABEL a='b",
    "USER",
    "VOLUME []",
    "CMD [1]",
    "HEALTHCHECK",
    "HEALTHCHECK CMD",
    "HEALTHCHECK NONE x",
    "HEALTHCHECK FOO",
    "HEALTHCHECK --interval=1 CMD x",
    "ONBUILD ONBUILD RUN x",
    "ONBUILD FROM x",
]
WRONG_SINCE = {
    "FOO bar": "FOO is not a valid change command",
    "RUN make": "RUN is not a valid change command",
    "ENV A=${B": "failed to process \"${B\": syntax error: missing '}'",
    "EXPOSE a": "invalid containerPort: a",
    "EXPOSE 80/icmp": "invalid proto: icmp",
    "HEALTHCHECK --retries=-1 CMD x": "--retries cannot be negative (-1)",
    "CMD --foo=1 x": "unknown flag: --foo",
}
"""What both refuse, in the words of docker 28; Debian's docker has others."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tree") / "tree.tar"
    with LayerTar(path) as tar:
        tar.directory("etc")
        tar.file("etc/motd", b"hello\n")
        tar.file("etc/.wh.gone")
    return path


def run_config(values: dict[str, Any]) -> dict[str, Any]:
    """What is set in a configuration, of docker's fields and ours alike."""
    return {key: value for key, value in values.items() if value not in (None, "", False)}


def test_import_makes_the_image_that_docker_makes(daemon: DockerDaemon, tree: Path, tmp_path: Path) -> None:
    with ImageStore.create(str(tmp_path / "store"), disk_size=DISK_SIZE) as store:
        for number, changes in enumerate(CHANGES):
            name = f"imported:{number}"
            docker(daemon, "import", *(word for change in changes for word in ("-c", change)), tree, name)
            (theirs,) = json.loads(docker(daemon, "image", "inspect", name))
            ours = store.import_image(tree, reference=name, changes=changes)
            assert run_config(theirs["Config"]) == run_config(ours.config["config"]), changes
            assert theirs["RootFS"]["Layers"] == [layer.diff_id for layer in ours.layers]
            assert (theirs["Comment"], theirs["Os"], theirs["Architecture"]) == (
                ours.config["comment"],
                ours.os,
                ours.architecture,
            )
            assert len(store.history(name)) == 1


@pytest.mark.parametrize("change", [*WRONG, *WRONG_SINCE])
def test_import_refuses_what_docker_refuses(daemon: DockerDaemon, tree: Path, change: str) -> None:
    theirs = daemon.run("import", "-c", change, tree)
    assert theirs.returncode != 0
    words = theirs.stderr.decode().strip().removeprefix("Error response from daemon: ")
    with ImageStore.open("mem://") as store, pytest.raises(imgstore.InvalidError) as ours:
        store.import_image(tree, changes=[change])
    assert WRONG_SINCE.get(change, words) == str(ours.value)


def test_skopeo_and_umoci_read_what_we_save(original: Path, saved: Path, tmp_path: Path) -> None:
    need("skopeo")
    need_root()
    (tmp_path / "layout").mkdir()
    run("tar", "--extract", "--file", saved, "--directory", tmp_path / "layout")
    tag = "latest"
    expected = umoci.unpack(LAYOUT, tag, tmp_path / "expected")
    assert diff(tree_of(expected), tree_of(umoci.unpack(tmp_path / "layout", tag, tmp_path / "actual"))) == []
    diff_ids = json.loads((LAYOUT / "blobs/sha256" / image_id(original)[7:]).read_bytes())["rootfs"]["diff_ids"]
    for source in (f"docker-archive:{saved}:{NAME}", f"oci-archive:{saved}:{tag}", f"oci:{tmp_path}/layout:stable"):
        assert diff_ids == json.loads(run("skopeo", "inspect", source).stdout)["Layers"]
    run("skopeo", "copy", f"oci-archive:{saved}:1", f"oci:{tmp_path}/copied:1")
    assert image_id(original)[7:] in {path.name for path in (tmp_path / "copied/blobs/sha256").iterdir()}


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_we_load_what_skopeo_writes(original: Path, tmp_path: Path, kind: str) -> None:
    need("skopeo")
    name = "judged/skopeo:2"
    run("skopeo", "copy", f"oci:{LAYOUT}:latest", f"{kind}:{tmp_path}/archive.tar:{name}")
    (loaded,) = load(tmp_path / "store", tmp_path / "archive.tar")
    assert (name,) == loaded.references
    assert image_id(original) == loaded.image.id
