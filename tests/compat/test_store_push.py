"""Images of a store pushed to Debian's docker-registry: skopeo, umoci, dockerd and a second store read what we pushed."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from imgstore.answers import PullStatus
from imgstore.progress import ProgressEvent, State
from imgstore.store import ImageStore
from registry_client.push import push_image
from registry_client.reference import Reference
from registry_client.source import open_source
from tests import tools
from tests.judges import umoci
from tests.judges.tree import diff, tree_of
from tests.servers.docker_registry import DockerRegistry, docker_registry
from tests.servers.dockerd import docker_daemon
from tests.servers.images import build_image, digest_of, make_tar, write_archive, write_docker_archive, write_layout

LAYERS = [
    make_tar({"etc/hostname": b"one\n", "data": bytes(range(256)) * 8000}),
    make_tar({"etc/hostname": b"two\n", "etc/.wh.motd": b""}),
    make_tar({}),
    make_tar({"last": b"x" * 100_000}),
]
DISK_SIZE = 64 << 20


@dataclass(frozen=True)
class Image:
    """An image in a store, and the name that it was pulled under."""

    store: ImageStore
    reference: str

    def push(self, destination: str) -> tuple[str, list[ProgressEvent]]:
        """Pushes it under another name: the digest there, and what was told."""
        events: list[ProgressEvent] = []
        self.store.tag(self.reference, destination)
        return self.store.push(destination, progress=events.append).digest, events


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def other(tmp_path: Path) -> Iterator[DockerRegistry]:
    """A registry that has nothing."""
    with docker_registry(tmp_path / "other") as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ImageStore]:
    with ImageStore.create(str(tmp_path / "store"), disk_size=DISK_SIZE) as store:
        yield store


@pytest.fixture
def image(registry: DockerRegistry, store: ImageStore, tmp_path: Path) -> Image:
    layout = write_layout(tmp_path / "layout", {"1": build_image(LAYERS)})
    return Image(store, store.pull(registry.push(f"oci:{layout}:1", "team/app:1")).reference)


def raw(reference: str) -> bytes:
    return tools.run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{reference}").stdout


def config(reference: str) -> bytes:
    return tools.run("skopeo", "inspect", "--raw", "--config", "--tls-verify=false", f"docker://{reference}").stdout


def states(events: list[ProgressEvent]) -> Counter[State]:
    """How many layers came to each state."""
    return Counter(state for _, state in {(event.layer, event.state) for event in events} if state is not None)


def final(events: list[ProgressEvent]) -> set[State]:
    """What became of the layers, and whether some were compressed."""
    return states(events).keys() - {State.PREPARING, State.PUSHING}


def serve(layout: Path, name: str) -> str:
    """Copies an image of a layout into a registry, byte for byte: skopeo would compress."""
    with contextlib.closing(open_source(f"oci:{layout}:1")) as source:
        push_image(source, Reference.parse(name))
    return name


def disks_of(store: ImageStore, reference: str) -> list[tuple[str, str]]:
    return [(Path(path).name, hashlib.sha256(Path(path).read_bytes()).hexdigest()) for path in store.disk_paths(reference)]


def assert_same_in_a_second_store(image: Image, reference: str, directory: Path) -> None:
    with ImageStore.create(str(directory), disk_size=DISK_SIZE) as second:
        pulled = second.pull(reference)
        original = image.store.image(image.reference)
        assert pulled.image.id == original.id
        assert [layer.diff_id for layer in pulled.image.layers] == [layer.diff_id for layer in original.layers]
        assert disks_of(second, reference) == disks_of(image.store, image.reference)
        assert list(second.check(read_data=True)) == []


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_to_another_registry(
    compression: str, registry: DockerRegistry, other: DockerRegistry, store: ImageStore, tmp_path: Path
) -> None:
    built = build_image(LAYERS, compression=compression, manifest={"annotations": {"org.opencontainers.image.title": "it"}})
    layout = write_layout(tmp_path / "layout", {"1": built})
    image = Image(store, store.pull(serve(layout, f"{registry.host}/kinds/{compression}:1")).reference)
    original = json.loads(raw(image.reference))
    name = f"{other.host}/team/app:1"
    digest, events = image.push(name)
    manifest = json.loads(raw(name))
    assert (
        digest
        == digest_of(raw(name))
        == json.loads(tools.run("skopeo", "inspect", "--tls-verify=false", f"docker://{name}").stdout)["Digest"]
    )
    assert digest_of(config(name)) == built.image_id == store.image(image.reference).id
    assert (manifest["mediaType"], manifest["config"]) == (original["mediaType"], original["config"])
    assert manifest["annotations"] == original["annotations"]
    if compression == "none":
        assert raw(name) == raw(image.reference)
        assert final(events) == {State.PUSHED}
    else:
        assert {layer["mediaType"] for layer in manifest["layers"]} == {"application/vnd.oci.image.layer.v1.tar+gzip"}
        assert final(events) == {State.COMPRESSING, State.PUSHED}
    files, copied, gzipped = (tmp_path / each for each in ("files", "copied", "gzipped"))
    for destination in (f"dir:{files}", f"oci:{copied}:1"):
        tools.run("skopeo", "copy", "--src-tls-verify=false", f"docker://{name}", destination)
    for layer, diff_id in zip(manifest["layers"], built.diff_ids, strict=True):
        blob = (files / layer["digest"].removeprefix("sha256:")).read_bytes()
        assert len(blob) == layer["size"]
        assert digest_of(blob if compression == "none" else gzip.decompress(blob)) == diff_id
    write_layout(gzipped, {"1": build_image(LAYERS)})
    before, after = (tree_of(umoci.unpack(each, "1", tmp_path / f"{each.name}-tree")) for each in (gzipped, copied))
    assert diff(before, after, without_mtime=[b"", b"etc"]) == []
    assert_same_in_a_second_store(image, name, tmp_path / "second")


def test_to_where_it_came_from(image: Image, registry: DockerRegistry) -> None:
    before, requests = raw(image.reference), len(registry.requests)
    digest, events = image.push(image.reference)
    made = [(method, status) for method, path, status in registry.requests[requests:] if path.startswith("/v2/team/app/")]
    assert Counter(made) == {("HEAD", 200): len(LAYERS) + 1, ("PUT", 201): 1}
    assert raw(image.reference) == before
    assert digest_of(before) == digest
    assert final(events) == {State.IN_REGISTRY}


def test_to_another_repository_of_its_registry(image: Image, registry: DockerRegistry) -> None:
    requests = len(registry.requests)
    digest, events = image.push(f"{registry.host}/mounts/copy:1")
    assert raw(f"{registry.host}/mounts/copy:1") == raw(image.reference)
    assert final(events) == {State.MOUNTED}
    assert {event.message for event in events if event.state is State.MOUNTED} == {"team/app"}
    sent = [
        path
        for method, path, _ in registry.requests[requests:]
        if method == "PATCH" or (method, "digest" in path) == ("PUT", True)
    ]
    assert len(sent) == 1, "the configuration"
    assert image.store.pull(f"{registry.host}/mounts/copy:1").status is PullStatus.UP_TO_DATE
    assert f"{registry.host}/mounts/copy@{digest}" in image.store.image(image.reference).digests


def test_what_was_compressed_is_neither_compressed_nor_sent_again(image: Image, other: DockerRegistry, tmp_path: Path) -> None:
    digest, _ = image.push(f"{other.host}/a:1")
    for destination, wanted, mounts in (("a:1", State.IN_REGISTRY, 0), ("a:2", State.IN_REGISTRY, 0), ("b:1", State.MOUNTED, 4)):
        requests = len(other.requests)
        again, events = image.push(f"{other.host}/{destination}")
        assert again == digest
        assert final(events) == {wanted}
        posts = [(path, status) for method, path, status in other.requests[requests:] if method == "POST" and "mount=" in path]
        assert [status for _, status in posts] == [201] * mounts
        assert not [path for method, path, _ in other.requests[requests:] if method == "PATCH"]
    assert image.store.image(image.reference).layers[0].digest != json.loads(raw(f"{other.host}/b:1"))["layers"][0]["digest"]
    assert raw(image.reference) != raw(f"{other.host}/a:1"), "what it was pulled with stays its manifest"
    digest_at_origin, _ = image.push(image.reference)
    assert digest_at_origin == digest_of(raw(image.reference)) != digest
    assert list(image.store.check()) == []
    assert_same_in_a_second_store(image, f"{other.host}/b:1", tmp_path / "second")


def test_the_digest_is_the_same_in_every_process_and_store(image: Image, tmp_path: Path) -> None:
    code = "import sys, imgstore; store = imgstore.ImageStore.open(sys.argv[1]); print(store.push(sys.argv[2]).digest)"
    digests = set()
    for number in range(2):
        with docker_registry(tmp_path / f"registry-{number}") as other:
            path = tmp_path / f"store-{number}"
            name = f"{other.host}/app:1"
            with ImageStore.create(str(path), disk_size=DISK_SIZE) as store:
                store.tag(store.pull(image.reference).reference, name)
            done = subprocess.run([sys.executable, "-c", code, str(path), name], capture_output=True)
            assert done.returncode == 0, done.stderr.decode()
            digests.add(done.stdout.decode().strip())
            assert digests == {digest_of(raw(name))}


@pytest.mark.parametrize("kind", ["docker-archive", "oci", "oci-archive"])
def test_from_archives_and_layouts(kind: str, other: DockerRegistry, store: ImageStore, tmp_path: Path) -> None:
    built = build_image(LAYERS)
    if kind == "docker-archive":
        path = write_docker_archive(tmp_path / "app.tar", {"app:1": built})
    else:
        path = write_layout(tmp_path / "app", {"1": built})
        path = path if kind == "oci" else write_archive(tmp_path / "app.tar", path)
    image = Image(store, store.pull(f"{kind}:{path}").image.id)
    name = f"{other.host}/team/app:1"
    digest, events = image.push(name)
    assert digest_of(config(name)) == built.image_id
    assert final(events) == {State.COMPRESSING, State.PUSHED}
    manifest = json.loads(raw(name))
    if kind == "docker-archive":
        assert manifest["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"
        assert {layer["mediaType"] for layer in manifest["layers"]} == {"application/vnd.docker.image.rootfs.diff.tar.gzip"}
        pushed = [layer["digest"] for layer in manifest["layers"]]
        assert [layer.digest for layer in store.image(name).layers] == pushed, "it had no manifest"
    else:
        assert [layer.digest for layer in store.image(name).layers] == built.layer_digests
    assert f"{other.host}/team/app@{digest}" in store.image(name).digests
    assert store.pull(name).status is PullStatus.UP_TO_DATE
    assert list(store.check()) == []
    store.rebuild()
    again, events = image.push(name)
    assert (again, final(events)) == (digest, {State.IN_REGISTRY})
    assert_same_in_a_second_store(image, name, tmp_path / "second")


def test_an_import(other: DockerRegistry, store: ImageStore, tmp_path: Path) -> None:
    name = f"{other.host}/imported:1"
    (tmp_path / "rootfs.tar").write_bytes(LAYERS[0])
    image = store.import_image(tmp_path / "rootfs.tar", reference=name)
    pushed = store.push(name)
    assert digest_of(config(name)) == image.id
    assert pushed.digest == digest_of(raw(name))
    assert store.pull(name).status is PullStatus.UP_TO_DATE
    assert_same_in_a_second_store(Image(store, name), name, tmp_path / "second")


def test_schema_2_and_a_layer_that_comes_twice(
    registry: DockerRegistry, other: DockerRegistry, store: ImageStore, tmp_path: Path
) -> None:
    layout = write_layout(tmp_path / "layout", {"1": build_image([LAYERS[0], LAYERS[1], LAYERS[0], LAYERS[1]])})
    image = Image(store, store.pull(registry.push(f"oci:{layout}:1", "twice:1", "--format=v2s2")).reference)
    name = f"{other.host}/twice:1"
    _, events = image.push(name)
    manifest = json.loads(raw(name))
    assert (
        manifest["mediaType"]
        == json.loads(raw(image.reference))["mediaType"]
        == "application/vnd.docker.distribution.manifest.v2+json"
    )
    digests = [layer["digest"] for layer in manifest["layers"]]
    assert digests == digests[:2] * 2
    assert states(events) == {State.PREPARING: 2, State.COMPRESSING: 2, State.PUSHING: 2, State.PUSHED: 2}
    assert len([path for method, path, _ in other.requests if method == "POST"]) == 3
    assert_same_in_a_second_store(image, name, tmp_path / "second")


def test_of_an_index_the_platform_that_was_pulled(
    registry: DockerRegistry, other: DockerRegistry, store: ImageStore, tmp_path: Path
) -> None:
    images = [build_image([make_tar({"name": name.encode()})], platform=name) for name in ("linux/amd64", "linux/arm64")]
    layout = write_layout(tmp_path / "layout", {"1": images})
    origin = registry.push(f"oci:{layout}:1", "index:1", "--all")
    image = Image(store, store.pull(origin, platform="linux/arm64").reference)
    digest, _ = image.push(f"{registry.host}/index:arm64")
    assert (digest, raw(f"{registry.host}/index:arm64")) == (images[1].digest, images[1].manifest)
    image.push(f"{other.host}/index:1")
    assert digest_of(config(f"{other.host}/index:1")) == images[1].image_id


def test_all_tags(image: Image, other: DockerRegistry) -> None:
    for tag in ("b", "a"):
        image.store.tag(image.reference, f"{other.host}/many:{tag}")
    results = list(image.store.push_all_tags(f"{other.host}/many"))
    assert [result.reference for result in results] == [f"{other.host}/many:{tag}" for tag in "ab"]
    tags: Any = json.loads(tools.run("skopeo", "list-tags", "--tls-verify=false", f"docker://{other.host}/many").stdout)
    assert sorted(tags["Tags"]) == ["a", "b"]


def test_ten_at_once(image: Image, other: DockerRegistry) -> None:
    """Of one image, to five repositories; they may compress a layer more than once, and all come to the same."""
    names = [f"{other.host}/at/once-{number % 5}:{number}" for number in range(10)]
    for name in names:
        image.store.tag(image.reference, name)
    with ThreadPoolExecutor(10) as pool:
        digests = {result.digest for result in pool.map(image.store.push, names)}
    assert digests == {digest_of(raw(names[7]))}
    assert list(image.store.check(read_data=True)) == []
    assert list(Path(image.store.disk_paths(image.reference)[0]).parents[1].glob(".leases/*")) == []


def test_dockerd_pulls_it(
    store: ImageStore, other: DockerRegistry, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    archive = write_docker_archive(tmp_path / "app.tar", {"app:1": build_image(LAYERS)})
    image = Image(store, store.pull(f"docker-archive:{archive}").reference)
    name = f"{other.host}/team/app:1"
    digest, _ = image.push(name)
    directory = tmp_path_factory.mktemp("d")
    with docker_daemon(directory) as daemon:
        pulled = daemon.run("pull", name)
        assert pulled.returncode == 0, pulled.stderr.decode()
        assert f"Digest: {digest}" in pulled.stdout.decode()
        [inspected] = json.loads(daemon.run("image", "inspect", name).stdout)
        ours = image.store.image(name)
        assert inspected["Id"] == ours.id
        assert inspected["RepoDigests"] == [f"{other.host}/team/app@{digest}"]
        assert inspected["RootFS"]["Layers"] == [layer.diff_id for layer in ours.layers]
        pushed = daemon.run("push", name)
        assert pushed.stdout.decode().count("Layer already exists") == len(ours.layers)
        assert f"1: digest: {digest}" in pushed.stdout.decode(), "dockerd makes the same manifest of the same blobs"
        for words in (["push", "nosuch/app"], ["push", f"{name}2"]):
            said = daemon.run(*words).stderr.decode()
            with pytest.raises(Exception) as ours_said:
                image.store.push(words[1])
            assert said.strip().endswith(str(ours_said.value))
    shutil.rmtree(directory, ignore_errors=True)
