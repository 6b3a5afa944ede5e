"""Connections to the endpoint that no client of Docker would make: drawn out, too large, broken, or a web page's."""

from __future__ import annotations

import contextlib
import http.client
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from imgstore.docker_api import connections, events, requests, service, system
from imgstore.store import ImageStore
from registry_client.credentials import Credential
from tests.servers.endpoint import Endpoint, endpoint

PING = b"GET /_ping HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def api() -> Iterator[Endpoint]:
    with ImageStore.open("mem://") as store, endpoint(store) as served:
        yield served


def read_all(connection: socket.socket) -> bytes:
    """What comes until the other side closes, or resets, the connection."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            found += data
    return found


def send_all(connection: socket.socket, data: bytes) -> None:
    """Sends what the other side takes."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(data)


@pytest.mark.parametrize("at_once", [False, True])
def test_a_head_that_is_too_large(api: Endpoint, at_once: bool) -> None:
    with api.connect() as connection:
        line = b"X-Padding: " + 4000 * b"x" + b"\r\n"
        if at_once:
            send_all(connection, PING[:-2] + 100 * line)
        else:
            send_all(connection, PING[:-2])
            for _ in range(100):
                send_all(connection, line)
        assert read_all(connection).startswith(b"HTTP/1.1 431 ")


def test_a_head_as_large_as_it_may_be(api: Endpoint) -> None:
    assert api.get("/_ping", headers={"X-Registry-Auth": "x" * 60_000}).status == 200


@pytest.mark.parametrize("before", [b"", PING], ids=["first", "second"])
def test_a_head_that_never_ends(api: Endpoint, before: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS_MAX", 0.5)
    begin = time.monotonic()
    with api.connect() as connection:
        connection.sendall(before + PING[:10])
        for letter in PING[10:20]:
            send_all(connection, bytes([letter]))
            time.sleep(0.02)
        read_all(connection)
    assert time.monotonic() - begin < 10


def test_a_body_that_never_ends_where_none_is_wanted(api: Endpoint) -> None:
    with api.connect() as connection:
        connection.sendall(b"GET /_ping HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        taken = 0
        with contextlib.suppress(OSError):
            while taken < 100 << 20:
                connection.sendall(b"10000\r\n" + 65536 * b"x" + b"\r\n")
                taken += 65536
        assert taken < 8 << 20  # what was read, and what waits in the buffers of the sockets
        assert read_all(connection).startswith(b"HTTP/1.1 200 ")


def test_a_short_body_where_none_is_wanted_does_no_harm(api: Endpoint) -> None:
    with api.connect() as connection:
        for _ in range(2):
            connection.sendall(b"GET /_ping HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + 100_000 * b"x")
            found = b""
            while not found.endswith(b"OK"):
                found += connection.recv(65536)
            assert found.startswith(b"HTTP/1.1 200 ")


def test_a_json_body_that_is_too_long_or_too_slow(api: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = api.post("/auth", b" " * (1 << 20) + b"{}", headers={"Content-Type": "application/json"})
    assert (answer.status, answer.message) == (413, "request body is longer than 1048576 bytes")
    monkeypatch.setattr(requests, "_BODY_SECONDS_MAX", 0.2)
    with api.connect() as connection:
        connection.sendall(b"POST /auth HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 5\r\n\r\n[")
        assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")


def test_too_many_connections(api: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "CONNECTIONS_MAX", 3)
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            connection = stack.enter_context(api.connect())
            connection.sendall(PING)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        refused = stack.enter_context(api.connect())
        assert b"more than 3 connections" in read_all(refused)
    deadline = time.monotonic() + 10
    while api.get("/_ping").status != 200:
        assert time.monotonic() < deadline


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET /_ping HTTP/1.1\r\nHost localhost\r\n\r\n",
        b"POST /auth HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /auth HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_what_is_no_request(api: Endpoint, garbage: bytes) -> None:
    with api.connect() as connection:
        connection.sendall(garbage)
        connection.shutdown(socket.SHUT_WR)
        found = read_all(connection)
    assert found == b"" or found.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 404 "))
    assert b"Traceback" not in found
    assert api.get("/_ping").status == 200


def test_garbage_behind_a_request_does_not_mix_with_its_answer(api: Endpoint) -> None:
    with api.connect() as connection:
        connection.sendall(b"GET /info HTTP/1.1\r\nHost: x\r\n\r\n\x00\x00\x00")
        assert read_all(connection).count(b"HTTP/1.1") <= 1


def test_requests_one_after_the_other_without_waiting(api: Endpoint) -> None:
    with api.connect() as connection:
        connection.sendall(3 * PING + b"GET /nope HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        found = read_all(connection)
    assert re.findall(rb"HTTP/1.1 (\d+)", found) == [b"200", b"200", b"200", b"404"]


@pytest.mark.parametrize("protocol", ["tcp", "h2c", "websocket"])
def test_upgrades_are_answered_in_http(api: Endpoint, protocol: str) -> None:
    with api.connect() as connection:
        head = f"POST /session HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n"
        connection.sendall(head.encode() + b"PRI * HTTP/2.0")
        found = read_all(connection)
    assert found.startswith(b"HTTP/1.1 501 ") and b"does not build images" in found


def test_clients_that_hang_up_leave_nothing(api: Endpoint) -> None:
    assert api.service is not None
    for _ in range(50):
        with api.connect() as connection:
            connection.sendall(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
            connection.recv(10)
        with api.connect() as connection:
            connection.sendall(b"POST /auth HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 5\r\n\r\n[")
    deadline = time.monotonic() + 10
    while api.service.events.listeners:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_lists_are_answered_while_all_works_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "WORKS_MAX", 2)
    end, running = threading.Event(), threading.Semaphore(0)

    def check_login(registry: str, credential: Credential) -> Credential:
        running.release()
        assert end.wait(30)
        return credential

    with ImageStore.open("mem://") as store:
        monkeypatch.setattr(store, "check_login", check_login)
        with endpoint(store) as api, ThreadPoolExecutor(3) as clients:
            logins = [clients.submit(api.post, "/auth", {"username": "u", "password": "p"}) for _ in range(3)]
            try:
                assert running.acquire(timeout=30) and running.acquire(timeout=30)
                assert not running.acquire(timeout=0.2)  # the third waits for a thread
                for path in ("/_ping", "/images/json", "/info"):
                    assert api.get(path).status == 200
            finally:
                end.set()
            assert [login.result().status for login in logins] == [200, 200, 200]


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:80", "", "127.0.0.1.evil.example"])
def test_names_of_others(api: Endpoint, host: str) -> None:
    answer = api.get("/images/json", headers={"Host": host}, tcp=True)
    assert (answer.status, "--allowed-host" in answer.message) == (403, True)
    # Clients send what they like to a Unix socket.
    assert api.get("/images/json", headers={"Host": host}).status == 200


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:2375", "192.0.2.1"])
def test_names_of_our_own(api: Endpoint, host: str) -> None:
    assert api.get("/images/json", headers={"Host": host}, tcp=True).status == 200


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("header", [("Origin", "null"), ("Origin", "http://localhost"), ("Sec-Fetch-Site", "cross-site")])
def test_web_pages(api: Endpoint, header: tuple[str, str], tcp: bool) -> None:
    answer = api.post("/containers/prune", headers=dict([header]), tcp=tcp)
    assert (answer.status, answer.message) == (403, "requests of web pages are not answered")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_json_must_be_declared(api: Endpoint, kind: str) -> None:
    answer = api.post("/auth", b"{}", headers={"Content-Type": kind})
    assert (answer.status, "must be 'application/json'" in answer.message) == (400, True)


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/nope", 404, "page not found"),
        ("GET", "/v1.44/nope", 404, "page not found"),
        ("PUT", "/images/json", 404, "page not found"),
        ("DELETE", "/info", 404, "page not found"),
        ("GET", "/v1.44", 404, "page not found"),
        ("GET", "/", 404, "page not found"),
        (
            "GET",
            "/v1.10/info",
            400,
            "client version 1.10 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version",
        ),
        ("GET", "/v1.99/info", 400, "client version 1.99 is too new. Maximum supported API version is 1.51"),
    ],
)
def test_refused_paths(api: Endpoint, method: str, path: str, status: int, message: str) -> None:
    answer = api.request(method, path)
    assert (answer.status, answer.message) == (status, message)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["api-version"] == "1.51"
    assert answer.headers["ostype"] == "linux"


def test_head_is_there_where_get_is(api: Endpoint) -> None:
    for path in ("/_ping", "/version", "/info", "/images/json", "/networks"):
        answer = api.request("HEAD", path)
        assert (answer.status, answer.body) == (200, b"")


def test_what_is_not_foreseen(api: Endpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(service: object) -> None:
        raise RuntimeError("the password is hunter2")

    monkeypatch.setattr(system, "describe_service", fail)
    with caplog.at_level(logging.ERROR):
        answer = api.get("/v1.50/info")
    assert (answer.status, answer.message) == (500, "internal error (RuntimeError); the log of the service has more")
    assert answer.headers["api-version"] == "1.51"
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.name.startswith("imgstore.docker_api") and record.exc_info is not None


def test_an_answer_that_breaks_off_is_seen_to(api: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(event: events.Event) -> bytes:
        raise RuntimeError

    monkeypatch.setattr(events.Event, "to_json", fail)
    assert api.service is not None
    api.service.publish("image", "tag", "x", {})
    with pytest.raises(http.client.IncompleteRead):
        api.get("/events?since=1")


def test_who_does_not_read_events_holds_up_nobody(api: Endpoint) -> None:
    assert api.service is not None
    with api.connect() as asleep:
        asleep.sendall(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        assert asleep.recv(10)
        begin = time.monotonic()
        for number in range(20_000):
            api.service.publish("image", "tag", str(number), {"name": "x" * 100})
        assert api.get("/_ping").status == 200
        assert time.monotonic() - begin < 30
