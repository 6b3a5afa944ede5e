"""skopeo copies images through ``docker-daemon:``, out of the endpoint and into it: configurations and layers survive."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from imgstore.store import ImageStore
from tests.images.layout import Image
from tests.servers.docker_registry import DockerRegistry
from tests.servers.endpoint import Endpoint, endpoint
from tests.tools import need, run

DISK_SIZE = 32 << 30


@dataclass(frozen=True)
class Daemon:
    """An endpoint as skopeo sees it, and what is behind it."""

    api: Endpoint
    store: ImageStore

    def identity(self, name: str) -> tuple[str, list[str]]:
        """Image id and diff ids."""
        image = self.store.image(name)
        return image.id, [layer.diff_id for layer in image.layers]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    need("skopeo")
    with ImageStore.create(str(tmp_path / "store"), disk_size=DISK_SIZE) as store, endpoint(store) as api:
        yield Daemon(api, store)


@pytest.fixture
def source(build_image: Callable[[str], Image]) -> Image:
    """An image with every kind of file."""
    return build_image("kinds")


def identity(layout: Path, tag: str) -> tuple[str, list[str]]:
    """Digest of the configuration and diff ids of an image in an OCI layout."""
    index = json.loads((layout / "index.json").read_bytes())
    (digest,) = {
        each["digest"]
        for each in index["manifests"]
        if each.get("annotations", {}).get("org.opencontainers.image.ref.name") == tag
    }
    config = json.loads(blob(layout, digest))["config"]["digest"]
    return config, json.loads(blob(layout, config))["rootfs"]["diff_ids"]


def blob(layout: Path, digest: str) -> bytes:
    return (layout / "blobs" / digest.replace(":", "/")).read_bytes()


def copy(*words: str | Path) -> None:
    run("skopeo", "copy", "--quiet", *words)


def test_into_the_endpoint_and_out_again(daemon: Daemon, source: Image, registry: DockerRegistry, tmp_path: Path) -> None:
    expected = identity(source.layout, source.tag)
    ours = ("--dest-daemon-host", daemon.api.url)
    reference = registry.push(source.source, "through/daemon:1")
    copy(*ours, source.source, "docker-daemon:layout:1")
    copy(*ours, "--src-tls-verify=false", f"docker://{reference}", "docker-daemon:registry:1")
    run("skopeo", "copy", "--quiet", source.source, f"docker-archive:{tmp_path}/a.tar:app:1")
    copy(*ours, f"docker-archive:{tmp_path}/a.tar:app:1", f"docker-daemon:{registry.host}/archive:1")
    names = ["layout:1", "registry:1", f"{registry.host}/archive:1"]
    assert [daemon.identity(name) for name in names] == [expected] * 3

    # Through TCP, by name and by id.
    theirs = ("--src-daemon-host", daemon.api.tcp_url.replace("tcp:", "http:"))
    copy(*theirs, "docker-daemon:layout:1", f"oci:{tmp_path}/oci:2")
    assert (
        identity(tmp_path / "oci", "2")[1] == expected[1]
    )  # skopeo writes the configuration anew for a layout, whatever it reads
    copy(*theirs, f"docker-daemon:{expected[0]}", f"dir:{tmp_path}/dir")
    manifest = json.loads((tmp_path / "dir/manifest.json").read_bytes())
    assert manifest["config"]["digest"] == expected[0]
    layers = [(tmp_path / "dir" / layer["digest"].removeprefix("sha256:")).read_bytes() for layer in manifest["layers"]]
    assert [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers] == expected[1], "skopeo takes them as they are"
    copy(*theirs, "--dest-tls-verify=false", "docker-daemon:registry:1", f"docker://{registry.host}/from/daemon:1")
    assert daemon.store.pull(f"{registry.host}/from/daemon:1").image.id == expected[0]
    copy(*theirs, "docker-daemon:layout:1", f"docker-archive:{tmp_path}/b.tar:again:1")
    with tarfile.open(tmp_path / "b.tar") as tar:
        (entry,) = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
    assert entry["Config"] == f"{expected[0].removeprefix('sha256:')}.json"


def test_from_one_endpoint_to_another(daemon: Daemon, source: Image, tmp_path: Path) -> None:
    copy("--dest-daemon-host", daemon.api.url, source.source, "docker-daemon:app:1")
    with ImageStore.create(str(tmp_path / "second"), disk_size=DISK_SIZE) as second, endpoint(second) as there:
        hosts = ("--src-daemon-host", daemon.api.url, "--dest-daemon-host", there.url)
        copy(*hosts, "docker-daemon:app:1", "docker-daemon:copy:3")
        assert Daemon(there, second).identity("copy:3") == daemon.identity("app:1")
        disks = [
            [hashlib.sha256(Path(path).read_bytes()).digest() for path in store.disk_paths(name)]
            for store, name in (
                (daemon.store, "app:1"),
                (second, "copy:3"),
            )
        ]
        assert disks[0] == disks[1]


def test_inspect(daemon: Daemon, source: Image) -> None:
    copy("--dest-daemon-host", daemon.api.url, source.source, "docker-daemon:app:1")
    shown: Any = json.loads(run("skopeo", "inspect", "--daemon-host", daemon.api.url, "docker-daemon:app:1").stdout)
    assert shown["Layers"] == identity(source.layout, source.tag)[1]
    done = run("skopeo", "inspect", "--daemon-host", daemon.api.url, "docker-daemon:nosuch:1", check=False)
    assert (done.returncode, b"No such image: nosuch:1" in done.stderr) == (1, True), done.stderr
