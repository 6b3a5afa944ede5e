"""``docker save``, ``load`` and ``import`` against the endpoint, with Docker's own clients and skopeo."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import io
import json
import random
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from imgstore.docker_api import spools, tar_response
from imgstore.store import ImageStore
from tests.servers.endpoint import Endpoint, endpoint
from tests.servers.images import BuiltImage, build_image, make_tar, write_docker_archive, write_layout
from tests.tools import need, run

LAYERS = [make_tar({name: random.Random(name).randbytes(400_000)}) for name in "abc"]


@pytest.fixture(scope="module")
def image() -> BuiltImage:
    return build_image(LAYERS, config={"config": {"Labels": {"team": "one"}}})


@pytest.fixture(scope="module")
def archive(image: BuiltImage, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_docker_archive(tmp_path_factory.mktemp("archive") / "a.tar", {"app:1": image}).read_bytes()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ImageStore]:
    with ImageStore.open(str(tmp_path / "store")) as opened:
        yield opened


@pytest.fixture
def api(store: ImageStore) -> Iterator[Endpoint]:
    with endpoint(store) as served:
        yield served


def events(api: Endpoint) -> list[tuple[str, str, dict[str, str]]]:
    assert api.service is not None
    return [(event.action, event.id, dict(event.attributes)) for event in api.service.events.past()]


def names(store: ImageStore) -> list[tuple[str, tuple[str, ...]]]:
    return sorted((image.id, image.references) for image in store.images())


def wait_until_clean(store: ImageStore) -> None:
    """Waits until nothing is left of work that was cut: no stagings, leases, open files without a name."""
    deadline = time.monotonic() + 10
    while found := leftovers(store):
        assert time.monotonic() < deadline, found
        time.sleep(0.02)


def leftovers(store: ImageStore) -> list[str]:
    directory = store.info().directory
    assert directory is not None
    found = [str(path) for path in directory.rglob("*") if path.suffix == ".part" or path.parent.name == ".leases"]
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            target = str(entry.readlink())
            if target.startswith(str(directory)) and target.endswith("(deleted)"):
                found.append(target)
    return found


class TestLoad:
    @pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
    def test_docker_load(self, api: Endpoint, store: ImageStore, image: BuiltImage, archive: bytes, pack: type[bytes]) -> None:
        assert api.docker_text("load", input=pack(archive)) == "Loaded image: app:1\n"
        assert names(store) == [(image.image_id, ("app:1",))]
        assert events(api) == [("load", image.image_id, {"team": "one", "name": image.image_id})]
        wait_until_clean(store)

    def test_without_a_name_and_with_progress(self, api: Endpoint, tmp_path: Path, image: BuiltImage) -> None:
        layout = write_layout(tmp_path / "layout", {"other.example/app:2": image})
        index = json.loads((layout / "index.json").read_bytes())
        del index["manifests"][0]["annotations"]
        (layout / "index.json").write_text(json.dumps(index))
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            tar.add(layout, arcname=".")
        answer = api.post("/images/load?quiet=0", buffer.getvalue())
        assert answer.headers["content-type"] == "application/json"
        assert answer.lines[-1] == {"stream": f"Loaded image ID: {image.image_id}\n"}
        progress = [line for line in answer.lines if line.get("status") == "Loading layer"]
        assert len({line["id"] for line in progress}) == 3
        assert all(line["progressDetail"]["current"] <= line["progressDetail"]["total"] for line in progress)
        assert [*api.post("/images/load", buffer.getvalue()).lines[0]] == ["stream"]

    def test_a_name_that_moves(self, api: Endpoint, store: ImageStore, image: BuiltImage, archive: bytes, tmp_path: Path) -> None:
        api.docker_text("load", input=archive)
        other = build_image(LAYERS[:1])
        text = api.docker_text("load", input=write_docker_archive(tmp_path / "b.tar", {"app:1": other}).read_bytes())
        moved = f"The image app:1 already exists, renaming the old one with ID {image.image_id} to empty string"
        assert text.splitlines() == [moved, "Loaded image: app:1"]
        assert names(store) == sorted([(image.image_id, ()), (other.image_id, ("app:1",))])

    def test_the_digest_of_a_registry_survives_a_load_of_the_same_image(
        self, api: Endpoint, store: ImageStore, tmp_path: Path
    ) -> None:
        pulled = store.pull(f"oci:{write_layout(tmp_path / 'layout', {'x': build_image(LAYERS[:1])})}").image
        store.tag(pulled.id, "app:1")
        archive = api.docker("save", "app:1").stdout
        manifest = tmp_path / "store/images" / pulled.id[7:] / "manifest.json"
        before = manifest.read_bytes()
        assert before
        api.docker_text("load", input=archive)
        assert manifest.read_bytes() == before

    @pytest.mark.parametrize("body", [b"", b"garbage", bytes(10240), gzip.compress(b"garbage", mtime=0), b"\x1f\x8b\x08"])
    def test_what_is_no_archive(self, api: Endpoint, store: ImageStore, body: bytes) -> None:
        answer = api.post("/images/load?quiet=1", body)
        assert answer.status == 200  # as from Docker: its clients look into the stream
        (line,) = answer.lines
        assert line["errorDetail"] == {"message": line["error"]}
        done = api.docker("load", input=body)
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.decode() == f"{line['error']}\n"
        assert store.images() == []
        wait_until_clean(store)

    def test_half_an_archive(self, api: Endpoint, store: ImageStore, archive: bytes) -> None:
        with api.client() as client, pytest.raises(docker.errors.ImageLoadError):
            client.images.load(archive[: len(archive) // 2])
        assert store.images() == []
        wait_until_clean(store)

    def test_a_body_that_is_cut(self, api: Endpoint, store: ImageStore, archive: bytes) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", api.port)
        connection.putrequest("POST", "/images/load")
        connection.putheader("Content-Length", str(len(archive)))
        connection.endheaders(archive[:-1000])
        time.sleep(0.2)
        connection.close()
        wait_until_clean(store)
        assert store.images() == []

    def test_a_body_that_never_ends(self, api: Endpoint, store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(spools, "RESERVE", shutil.disk_usage(api.home).free - (4 << 20))
        connection = http.client.HTTPConnection("127.0.0.1", api.port)
        connection.putrequest("POST", "/images/load")
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        chunk = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
        with contextlib.suppress(OSError):
            for _ in range(64):
                connection.send(chunk)
        response = connection.getresponse()
        assert response.status == 507
        assert "bytes more do not fit" in json.loads(response.read())["message"]
        connection.close()
        wait_until_clean(store)

    def test_a_body_that_is_too_long_is_refused_at_once(self, api: Endpoint) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", api.port)
        connection.putrequest("POST", "/images/load")
        connection.putheader("Content-Length", str(1 << 60))
        connection.endheaders()
        assert connection.getresponse().status == 507
        connection.close()

    def test_a_platform(self, api: Endpoint, archive: bytes) -> None:
        query = "platform=%7B%22os%22%3A%22linux%22%2C%22architecture%22%3A%22s390x%22%7D"
        assert "linux/s390x" in api.post(f"/images/load?{query}", archive).lines[0]["error"]
        assert api.post("/images/load?platform=nonsense", b"").status == 400
        assert api.post("/v1.40/images/load?platform=nonsense", archive).lines[-1] == {"stream": "Loaded image: app:1\n"}


class TestSave:
    @pytest.fixture(autouse=True)
    def loaded(self, store: ImageStore, archive: bytes) -> None:
        list(store.load(io.BytesIO(archive)))
        store.tag("app:1", "other.example:5000/team/app:2")

    def test_docker_save(self, api: Endpoint, store: ImageStore, image: BuiltImage) -> None:
        saved = api.docker("save", "app:1", "other.example:5000/team/app:2").stdout
        assert saved == b"".join(map(bytes, store.save(["app:1", "other.example:5000/team/app:2"])))
        with tarfile.open(fileobj=io.BytesIO(saved)) as tar:
            (entry,) = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
            assert sorted(entry["RepoTags"]) == ["app:1", "other.example:5000/team/app:2"]
            assert [tar.extractfile(name).read() for name in entry["Layers"]] == LAYERS  # type: ignore[union-attr]
        assert events(api) == [("save", image.image_id, {"team": "one", "name": image.image_id})]

    def test_one_name_in_the_path(self, api: Endpoint, store: ImageStore, image: BuiltImage) -> None:
        for name in ("app:1", "app%3A1", "other.example:5000/team/app:2", "other.example%3A5000%2Fteam%2Fapp:2", image.image_id):
            answer = api.get(f"/v1.22/images/{name}/get")
            assert (answer.status, answer.headers["content-type"]) == (200, "application/x-tar")
            assert answer.body == b"".join(map(bytes, store.save([name.replace("%3A", ":").replace("%2F", "/")])))
        with api.client() as client:
            assert b"".join(client.api.get_image("app:1")) == b"".join(map(bytes, store.save(["app:1"])))

    def test_what_is_not_there(self, api: Endpoint) -> None:
        for path in ("/images/get?names=app:1&names=nope", "/images/nope/get"):
            answer = api.get(path)
            assert (answer.status, answer.message) == (404, "No such image: nope")
        done = api.docker("save", "nope")
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.startswith(b"Error response from daemon: No such image: nope")
        query = "platform=%7B%22os%22%3A%22linux%22%2C%22architecture%22%3A%22s390x%22%7D"
        assert api.get(f"/images/app:1/get?{query}").status == 404

    def test_an_archive_is_cut_where_a_layer_is_damaged(
        self, api: Endpoint, store: ImageStore, image: BuiltImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        disk = Path(store.disk_paths("app:1")[-1])
        data = bytearray(disk.read_bytes())
        at = data.find(LAYERS[2][1024:1100])
        data[at] ^= 0xFF
        disk.chmod(0o600)
        disk.write_bytes(data)
        answer = api.get("/images/app:1/get")  # so small that no byte of it is under way before it is all there
        assert (answer.status, "layer" in answer.message) == (500, True)
        monkeypatch.setattr(tar_response, "_BATCH", 1)
        with pytest.raises(http.client.IncompleteRead):
            api.get("/images/app:1/get")
        assert api.docker("save", "-o", tmp_path / "out.tar", "app:1").returncode == 1
        assert api.get("/_ping").status == 200

    def test_skopeo_copies_from_here_to_there(self, api: Endpoint, image: BuiltImage, tmp_path: Path) -> None:
        need("skopeo")
        with ImageStore.open(str(tmp_path / "second")) as second, endpoint(second) as there:
            policy = ["skopeo", "copy", "--insecure-policy"]
            run(
                *policy,
                "--src-daemon-host",
                api.url,
                "--dest-daemon-host",
                there.url,
                "docker-daemon:app:1",
                "docker-daemon:copy:3",
            )
            assert names(second) == [(image.image_id, ("copy:3",))]
            assert [layer.diff_id for layer in second.image("copy:3").layers] == image.diff_ids


class TestImport:
    TAR = make_tar({"etc/hello": b"hello"})

    def test_docker_import(self, api: Endpoint, store: ImageStore) -> None:
        words = ["import", "-m", "made here", "-c", "ENV A=b", "-c", 'CMD ["/hi"]', "--platform", "linux/arm64", "-", "new:1"]
        image_id = api.docker_text(*words, input=gzip.compress(self.TAR)).strip()
        image = store.image("new:1")
        assert image.id == image_id
        assert image.architecture == "arm64"
        assert (image.config["config"]["Env"], image.config["config"]["Cmd"]) == (["A=b"], ["/hi"])
        assert image.config["comment"] == "made here"
        assert events(api) == [("tag", image_id, {"name": "new:1"}), ("import", image_id, {"name": image_id})]
        wait_until_clean(store)

    def test_docker_py_import(self, api: Endpoint, store: ImageStore) -> None:
        with api.client() as client:
            line = json.loads(client.api.import_image_from_data(self.TAR, "new", "2", changes=["USER me"]))
        assert store.image("new:2").id == line["status"]
        assert store.image("new:2").config["comment"] == "Imported from -"

    def test_without_a_name_or_a_tag(self, api: Endpoint, store: ImageStore) -> None:
        image_id = api.docker_text("import", "-", input=self.TAR).strip()
        assert names(store) == [(image_id, ())]
        api.post("/images/create?fromSrc=-&repo=named", self.TAR)
        assert store.image("named:latest")

    @pytest.mark.parametrize(
        ("query", "status", "message"),
        [
            ("repo=UPPER&tag=1", 400, "invalid reference format: repository name must be lowercase"),
            ("repo=x&tag=..", 400, "invalid tag format"),
            (f"repo=x@sha256:{'a' * 64}", 400, "cannot import digest reference"),
            ("changes=FOO+x", 400, "FOO is not a valid change command"),
            (
                "platform=a/b/c/d",
                400,
                "platform 'a/b/c/d': not os/architecture[/variant], as in linux/arm64/v8: invalid argument",
            ),
        ],
    )
    def test_what_makes_no_sense_is_said_before_the_body_is_read(
        self, api: Endpoint, store: ImageStore, query: str, status: int, message: str
    ) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=30)
        connection.putrequest("POST", f"/images/create?fromSrc=-&{query}")
        connection.putheader("Content-Length", "1000000000")
        connection.endheaders()
        response = connection.getresponse()
        assert (response.status, json.loads(response.read())["message"]) == (status, message)
        connection.close()
        assert store.images() == []

    @pytest.mark.parametrize("body", [b"", b"garbage", TAR[:700]])
    def test_what_is_no_tar(self, api: Endpoint, store: ImageStore, body: bytes) -> None:
        assert api.post("/images/create?fromSrc=-&repo=new", body).status == 500
        assert api.docker("import", "-", "new", input=body).returncode == 1
        assert store.images() == []
        wait_until_clean(store)

    def test_urls_are_left_to_others(self, api: Endpoint) -> None:
        done = api.docker("import", "http://example.com/x.tgz", "new:1")
        assert (done.returncode, done.stdout) == (1, b"")
        words = "imgstore does not download tar files: curl -fL http://example.com/x.tgz | docker import - NAME"
        assert done.stderr.decode() == f"Error response from daemon: {words}\n"


def test_docker_save_pipes_into_docker_load(
    api: Endpoint, store: ImageStore, image: BuiltImage, archive: bytes, tmp_path: Path
) -> None:
    list(store.load(io.BytesIO(archive)))
    with ImageStore.open(str(tmp_path / "second")) as second, endpoint(second) as there:
        save = subprocess.Popen(["docker", "save", "app:1"], stdout=subprocess.PIPE, env=api.docker_environment)
        load = subprocess.run(
            ["docker", "load"], stdin=save.stdout, capture_output=True, env=there.docker_environment, timeout=60
        )
        assert save.stdout is not None
        save.stdout.close()
        assert (save.wait(10), load.returncode, load.stdout) == (0, 0, b"Loaded image: app:1\n")
        assert names(second) == [(image.image_id, ("app:1",))]
