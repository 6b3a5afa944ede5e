"""``docker cp``, ``diff`` and ``export`` against the endpoint: streams, and what is left when they break."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import os
import random
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import docker.errors
import pytest

from imgstore.docker_api import tar_response
from imgstore.store import ImageStore
from tests.servers.endpoint import Endpoint, endpoint
from tests.servers.images import build_image, make_tar, write_docker_archive

RANDOM = random.Random(5).randbytes(3_000_000)
LAYERS = [make_tar({"etc/motd": b"hello\n", "large": RANDOM})]
CHUNK = 64 << 10


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = build_image(LAYERS, config={"config": {"Cmd": ["run"]}})
    return write_docker_archive(tmp_path_factory.mktemp("archive") / "a.tar", {"app:1": image})


@pytest.fixture
def store(archive: Path, tmp_path: Path) -> Iterator[ImageStore]:
    with ImageStore.open(str(tmp_path / "store")) as opened:
        with archive.open("rb") as body:
            list(opened.load(body))
        opened.create_container("app:1", name="web")
        yield opened


@pytest.fixture
def api(store: ImageStore) -> Iterator[Endpoint]:
    with endpoint(store) as served:
        yield served


def events(api: Endpoint) -> list[str]:
    assert api.service is not None
    return [event.action for event in api.service.events.past() if event.type == "container"]


def tree(store: ImageStore) -> set[str]:
    """All paths of the container."""
    with tarfile.open(fileobj=io.BytesIO(b"".join(store.export_container("web")))) as tar:
        return set(tar.getnames())


def assert_free(store: ImageStore, api: Endpoint) -> None:
    """Soon nobody holds the container's disk, and the endpoint answers."""
    deadline = time.monotonic() + 20
    while True:
        with contextlib.suppress(Exception):
            store.remove_container("web")
            break
        assert time.monotonic() < deadline, "the disk is still held"
        time.sleep(0.02)
    assert api.get("/_ping").status == 200


@contextlib.contextmanager
def connection(api: Endpoint) -> Iterator[http.client.HTTPConnection]:
    connected = http.client.HTTPConnection("127.0.0.1", timeout=60)
    connected.sock = api.connect()
    with contextlib.closing(connected):
        yield connected


def test_in_and_out_with_the_command_line(api: Endpoint, store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "in/deep/file").write_bytes(RANDOM)
    (tmp_path / "in/link").symlink_to("deep/file")
    os.link(tmp_path / "in/deep/file", tmp_path / "in/hard")
    assert api.docker("cp", tmp_path / "in", "web:/etc").returncode == 0
    assert api.docker("cp", "web:/etc/in", tmp_path / "out").returncode == 0
    assert (tmp_path / "out/deep/file").read_bytes() == (tmp_path / "out/hard").read_bytes() == RANDOM
    assert (tmp_path / "out/link").readlink() == Path("deep/file")
    assert api.docker_text("diff", "web").splitlines() == [
        "C /etc",
        *(f"A /etc/in{path}" for path in ("", "/deep", "/deep/file", "/hard", "/link")),
    ]
    assert events(api) == ["extract-to-dir", "archive-path"]
    assert list(store.check()) == []
    api.docker_text("export", "-o", tmp_path / "tree.tar", "web")
    with tarfile.open(tmp_path / "tree.tar") as tar:
        assert {"etc/in/hard", "large", "etc/motd"} <= set(tar.getnames())


def test_the_status_of_a_path(api: Endpoint) -> None:
    with io.BytesIO() as buffer, tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, type, mode in (
            ("link", tarfile.SYMTYPE, 0o777),
            ("fifo", tarfile.FIFOTYPE, 0o600),
            ("suid", tarfile.REGTYPE, 0o4755),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.mode, member.linkname, member.mtime = type, mode, "/etc/motd", 1_000_000_000
            tar.addfile(member)
        tar.close()
        assert api.request("PUT", "/containers/web/archive?path=/", buffer.getvalue()).status == 200
    expected = {
        "/link": {"name": "link", "size": 9, "mode": 1 << 27 | 0o777, "mtime": "2001-09-09T01:46:40Z", "linkTarget": "/etc/motd"},
        "/fifo": {"name": "fifo", "size": 0, "mode": 1 << 25 | 0o600, "mtime": "2001-09-09T01:46:40Z", "linkTarget": ""},
        "/suid": {"name": "suid", "size": 0, "mode": 1 << 23 | 0o755, "mtime": "2001-09-09T01:46:40Z", "linkTarget": ""},
    }
    for path, status in expected.items():
        for method in ("HEAD", "GET"):
            answer = api.request(method, f"/containers/web/archive?path={path}")
            assert json.loads(base64.b64decode(answer.headers["x-docker-container-path-stat"])) == status
            assert bool(answer.body) is (method == "GET")


def test_a_name_that_is_no_text(api: Endpoint) -> None:
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape") as tar:
        member = tarfile.TarInfo("odd\udcff")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"yes"))
    assert api.request("PUT", "/containers/web/archive?path=/etc", body.getvalue()).status == 200
    answer = api.get("/containers/web/archive?path=/etc/odd%FF")
    assert (answer.status, b"yes" in answer.body) == (200, True)
    assert json.loads(base64.b64decode(answer.headers["x-docker-container-path-stat"]))["name"] == "odd\ufffd"
    assert api.get("/containers/web/changes").json[-1] == {"Path": "/etc/odd\ufffd", "Kind": 1}
    assert api.get("/containers/web/archive?path=/etc/no%FF").status == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("GET", "/web/archive", None, 400, "bad parameter: path cannot be empty"),
        ("GET", "/web/archive?path=/nosuch", None, 404, "Could not find the file /nosuch in container web"),
        ("GET", "/nosuch/archive?path=/etc", None, 404, "No such container: nosuch"),
        ("PUT", "/nosuch/archive?path=/etc", b"", 404, "No such container: nosuch"),
        ("PUT", "/web/archive?path=/nosuch", b"", 404, "Could not find the file /nosuch in container web"),
        ("PUT", "/web/archive?path=/etc/motd", b"", 400, "extraction point is not a directory"),
        ("PUT", "/web/archive?path=/etc", b"garbage", 400, "tar header at byte 0"),
        ("PUT", "/web/archive?path=/etc", make_tar({"new": bytes(5000)})[:2000], 400, "tar"),
        (
            "PUT",
            "/web/archive?path=/&noOverwriteDirNonDir=1",
            make_tar({"a": b"", "etc": b""}),
            400,
            "cannot overwrite directory",
        ),
        ("GET", "/nosuch/changes", None, 404, "No such container: nosuch"),
        ("GET", "/nosuch/export", None, 404, "No such container: nosuch"),
    ],
)
def test_what_cannot_be_copied(
    api: Endpoint, store: ImageStore, method: str, path: str, body: bytes | None, status: int, words: str
) -> None:
    before = tree(store)
    answer = api.request(method, f"/containers{path}", body)
    assert (answer.status, words in answer.message) == (status, True), answer.message
    assert (tree(store), events(api)) == (before, [])


def test_a_body_is_unpacked_as_it_comes(api: Endpoint, store: ImageStore, tmp_path: Path) -> None:
    """In pieces, nothing of it lies in a file of its own; a client that hangs up leaves the container as it was."""
    before = tree(store)
    body = make_tar({"new/a": RANDOM, "new/b": RANDOM})
    with connection(api) as client:
        client.putrequest("PUT", "/containers/web/archive?path=/etc")
        client.putheader("Transfer-Encoding", "chunked")
        client.endheaders()
        for start in range(0, len(body) // 2, CHUNK):
            piece = body[start : start + CHUNK]
            client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        time.sleep(0.2)
        spooled = [
            link for link in Path("/proc/self/fd").iterdir() if "(deleted)" in _target(link) and str(tmp_path) in _target(link)
        ]
        assert spooled == []
    deadline = time.monotonic() + 20
    while True:
        with contextlib.suppress(Exception):
            assert tree(store) == before
            break
        assert time.monotonic() < deadline
    assert list(store.check()) == []
    assert_free(store, api)


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


@pytest.mark.parametrize("path", ["archive?path=/", "export"])
def test_a_client_that_hangs_up_frees_the_disk(
    api: Endpoint, store: ImageStore, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_response, "_BATCH", 1)
    with connection(api) as client:
        client.request("GET", f"/containers/web/{path}")
        assert client.getresponse().read(1000)
    assert_free(store, api)


def test_ten_at_once(api: Endpoint, store: ImageStore) -> None:
    """Those who write wait for each other, and for those who read."""
    statuses: list[int] = []

    def put(number: int) -> None:
        statuses.append(
            api.request("PUT", "/containers/web/archive?path=/etc", make_tar({f"f{number}": RANDOM[:100_000]})).status
        )

    def get() -> None:
        statuses.append(api.get("/containers/web/archive?path=/large").status)

    threads = [
        threading.Thread(target=put, args=(number,)) if number % 2 else threading.Thread(target=get) for number in range(10)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 10
    assert {f"etc/f{number}" for number in range(1, 10, 2)} <= tree(store)


def test_with_docker_py(api: Endpoint) -> None:
    with api.client() as client:
        container = client.containers.get("web")
        assert container.put_archive("/etc", make_tar({"new": b"new"}))
        pieces, status = container.get_archive("/etc/new")
        assert status["name"] == "new" and b"new" in b"".join(pieces)
        assert container.diff() == [{"Path": "/etc", "Kind": 0}, {"Path": "/etc/new", "Kind": 1}]
        with tarfile.open(fileobj=io.BytesIO(b"".join(container.export()))) as tar:
            assert "etc/new" in tar.getnames()
        with pytest.raises(docker.errors.NotFound, match="Could not find the file /x in container"):
            container.get_archive("/x")
