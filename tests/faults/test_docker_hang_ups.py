"""Clients of the endpoint that hang up in the middle, and many that come at once: nobody else notices, and nothing is left."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imgstore.disks import layer_lease
from imgstore.docker_api.jobs import JOBS_MAX
from imgstore.leases import FileLeases
from imgstore.store import ImageStore
from registry_client.digest import chain_ids
from tests.servers.endpoint import Endpoint, endpoint
from tests.servers.images import BuiltImage, make_tar, write_docker_archive
from tests.servers.registry import ALWAYS, Fault, Registry

CLIENTS = 100
LAYERS = [make_tar({name: random.Random(name).randbytes(2_000_000)}) for name in "abc"]


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as served:
        yield served


@pytest.fixture
def image(registry: Registry) -> BuiltImage:
    return registry.add_image("app", "1", LAYERS)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ImageStore]:
    with ImageStore.open(str(tmp_path / "store")) as opened:
        yield opened


@pytest.fixture
def api(store: ImageStore) -> Iterator[Endpoint]:
    with endpoint(store) as served:
        yield served


def wait_until(holds: Callable[[], bool], what: object = None) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def leftovers(store: ImageStore) -> list[str]:
    """Stagings, leases, and open files of this process in the store that have no name."""
    directory = store.info().directory
    assert directory is not None
    found = [str(path) for path in directory.rglob("*") if path.suffix == ".part" or path.parent.name == ".leases"]
    return found + [target for target in open_files() if target.startswith(str(directory)) and target.endswith("(deleted)")]


def open_files() -> list[str]:
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(entry.readlink()))
        except OSError:
            continue
    return found


def assert_nothing_left(store: ImageStore, images: int = 0) -> None:
    wait_until(lambda: not leftovers(store), "leftovers")
    assert len(store.images()) == images


def send(api: Endpoint, method: str, path: str, body: bytes = b"") -> socket.socket:
    """Sends a request; the caller reads, or hangs up."""
    connection = api.connect()
    connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: docker\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def read_until(connection: socket.socket, *words: bytes) -> None:
    heard = b""
    while not any(word in heard for word in words):
        piece = connection.recv(65536)
        assert piece, heard
        heard += piece


def hold(registry: Registry, image: BuiltImage, number: int) -> threading.Event:
    event = threading.Event()
    registry.inject(f"/blobs/{image.layer_digests[number]}", Fault(hold=event), times=ALWAYS)
    return event


class TestPull:
    def test_the_only_client(self, api: Endpoint, store: ImageStore, registry: Registry, image: BuiltImage) -> None:
        hold(registry, image, 1)
        with send(api, "POST", f"/images/create?fromImage={registry.host}/app&tag=1") as client:
            read_until(client, b"Pull complete")
            assert leftovers(store)
        assert_nothing_left(store)
        registry.clear_faults()
        assert "Downloaded" in api.post(f"/images/create?fromImage={registry.host}/app&tag=1").lines[-1]["status"]

    def test_docker_is_killed(self, api: Endpoint, store: ImageStore, registry: Registry, image: BuiltImage) -> None:
        hold(registry, image, 2)
        client = subprocess.Popen(
            ["docker", "pull", f"{registry.host}/app:1"], stdout=subprocess.PIPE, env=api.docker_environment
        )
        assert client.stdout is not None
        while b"Pull complete" not in client.stdout.readline():
            assert client.poll() is None
        client.send_signal(signal.SIGINT)
        client.wait(10)
        client.stdout.close()
        assert_nothing_left(store)

    def test_one_of_two(self, api: Endpoint, store: ImageStore, registry: Registry, image: BuiltImage) -> None:
        event = hold(registry, image, 1)
        path = f"/images/create?fromImage={registry.host}/app&tag=1"
        with ThreadPoolExecutor(1) as pool:
            first = send(api, "POST", path)
            read_until(first, b"Downloading", b"Converting")
            second = pool.submit(api.post, path)
            time.sleep(0.2)  # the second has come, too
            assert running_jobs(api) == 1
            first.close()
            time.sleep(0.2)
            event.set()
            assert second.result(30).lines[-1]["status"].startswith("Status: Downloaded")
        assert len(registry.paths("/manifests/")) == 1
        assert_nothing_left(store, images=1)

    def test_while_the_registry_gives_no_answer(
        self, api: Endpoint, store: ImageStore, registry: Registry, image: BuiltImage
    ) -> None:
        registry.inject("/manifests/", Fault(delay=3.0))
        with send(api, "POST", f"/images/create?fromImage={registry.host}/app&tag=1"):
            wait_until(lambda: bool(registry.paths("/manifests/")))
        # Who comes now does not wait for what was given up.
        assert api.post(f"/images/create?fromImage={registry.host}/app&tag=1").status == 200
        assert_nothing_left(store, images=1)

    def test_while_it_waits_for_another_process(
        self, api: Endpoint, store: ImageStore, registry: Registry, image: BuiltImage, tmp_path: Path
    ) -> None:
        lease = FileLeases(tmp_path / "store/.leases").acquire(layer_lease(str(chain_ids(image.diff_ids)[0])))
        assert lease is not None
        with send(api, "POST", f"/images/create?fromImage={registry.host}/app&tag=1") as client:
            read_until(client, b"Waiting")
        wait_until(lambda: len(list((tmp_path / "store/.leases").iterdir())) == 1)
        lease.release()
        assert_nothing_left(store)


def test_load(api: Endpoint, store: ImageStore, image: BuiltImage, tmp_path: Path) -> None:
    archive = write_docker_archive(tmp_path / "a.tar", {"app:1": image}).read_bytes()
    lease = FileLeases(tmp_path / "store/.leases").acquire(layer_lease(str(chain_ids(image.diff_ids)[2])))
    assert lease is not None
    with send(api, "POST", "/images/load?quiet=0", archive) as client:
        read_until(client, b"Loading layer")
        assert len(leftovers(store)) > 1
    wait_until(lambda: len(leftovers(store)) == 1, leftovers(store))
    lease.release()
    assert_nothing_left(store)


def test_save(api: Endpoint, store: ImageStore, registry: Registry) -> None:
    registry.add_image("app", "1", [make_tar({"more than sockets hold": random.Random(0).randbytes(24_000_000)})])
    store.pull(f"{registry.host}/app:1")
    with send(api, "GET", f"/images/get?names={registry.host}/app:1") as client:
        read_until(client, b"blobs/sha256")
        assert leftovers(store)  # what it needs is kept
    assert_nothing_left(store, images=1)


def test_push(api: Endpoint, store: ImageStore, registry: Registry, image: BuiltImage) -> None:
    store.pull(f"{registry.host}/app:1")
    store.tag(f"{registry.host}/app:1", f"{registry.host}/new:1")
    registry.inject("/new/blobs/uploads/", Fault(delay=1.0), times=ALWAYS)
    with send(api, "POST", f"/images/{registry.host}/new/push?tag=1") as client:
        read_until(client, b"Preparing")
        wait_until(lambda: bool(registry.paths("/new/blobs/uploads/")))
    assert_nothing_left(store, images=1)
    assert ("new", "1") not in registry.manifests


class TestManyClients:
    def test_of_one_image(self, api: Endpoint, store: ImageStore, registry: Registry, image: BuiltImage) -> None:
        path = f"/images/create?fromImage={registry.host}/app&tag=1"
        registry.add_image("warm", "1", [make_tar({"warm": b"up"})])
        api.post(f"/images/create?fromImage={registry.host}/warm&tag=1")
        begun = len(registry.requests)
        files, threads, memory = len(open_files()), threads_of_ours(), resident()
        event = hold(registry, image, 2)
        with ThreadPoolExecutor(CLIENTS) as pool:
            clients = [pool.submit(api.post, path) for _ in range(CLIENTS)]
            wait_until(lambda: len(open_files()) >= files + 2 * CLIENTS, "connections")
            pings = []
            for _ in range(20):
                begin = time.monotonic()
                assert api.get("/_ping").status == 200
                pings.append(time.monotonic() - begin)
            assert sorted(pings)[10] < 1.0, pings  # milliseconds on a machine that has nothing else to do
            event.set()
            answers = [client.result(60) for client in clients]
        assert {answer.status for answer in answers} == {200}
        assert {json.dumps(answer.lines[-1]) for answer in answers} == {
            json.dumps({"status": f"Status: Downloaded newer image for {registry.host}/app:1"})
        }
        asked = [request.path.rpartition("/")[2] for request in registry.requests[begun:]]
        assert sorted(asked) == sorted(["1", image.image_id, *image.layer_digests])
        wait_until(lambda: len(open_files()) <= files + 8, "open files")  # connections that are kept, to the registry
        wait_until(lambda: threads_of_ours() <= threads + 8, "threads")
        assert resident() - memory < 100 << 20
        assert_nothing_left(store, images=2)

    def test_of_as_many_images(self, api: Endpoint, store: ImageStore, registry: Registry) -> None:
        tags = [str(number) for number in range(2 * JOBS_MAX)]
        for tag in tags:
            image = registry.add_image("many", tag, LAYERS, config={"author": tag})
        threads = threads_of_ours()
        event = hold(registry, image, 0)
        with ThreadPoolExecutor(len(tags)) as pool:
            clients = [pool.submit(api.post, f"/images/create?fromImage={registry.host}/many&tag={tag}") for tag in tags]
            wait_until(lambda: running_jobs(api) == len(tags), "jobs")
            event.set()
            answers = [client.result(60) for client in clients]
        assert all(answer.lines[-1]["status"].startswith("Status: Downloaded") for answer in answers)
        assert any({"status": "Waiting"} in answer.lines for answer in answers)
        assert [len(registry.paths(f"/blobs/{digest}")) for digest in image.layer_digests] == [1, 1, 1]
        wait_until(lambda: threads_of_ours() <= threads + JOBS_MAX + 8, "threads")
        assert_nothing_left(store, images=len(tags))


def running_jobs(api: Endpoint) -> int:
    assert api.service is not None
    return len(api.service.jobs)


def threads_of_ours() -> int:
    """Threads of this process, without those of the registry: it has one for each connection."""
    return sum("process_request_thread" not in thread.name for thread in threading.enumerate())


def resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
