"""The faults themselves: what goes over the wire is what their names say, and what was asked is done or not done."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest

from tests.servers.faults import ALWAYS, FAULTS, HARMLESS, LOST_ANSWERS, TEMPORARY, Fault
from tests.servers.images import digest_of
from tests.servers.registry import Registry

DATA = bytes(range(256)) * 8
DIGEST = digest_of(DATA)
WAIT = 0.2  # seconds; stalls are longer


@pytest.fixture(scope="module")
def running() -> Iterator[Registry]:
    with Registry() as registry:
        registry.add_blob("app", DATA)
        yield registry


@pytest.fixture
def registry(running: Registry) -> Registry:
    running.clear_faults()
    running.requests.clear()
    return running


def ask(host: str, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    with closing(http.client.HTTPConnection(host, timeout=WAIT)) as connection:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read()


@pytest.mark.parametrize("name", FAULTS)
def test_what_an_upload_leaves(registry: Registry, name: str) -> None:
    """Lost answers are those of requests that took effect; an answer in the place of the registry's own means that nothing was done."""
    fault, data = FAULTS[name], f"data of {name}".encode()
    digest = digest_of(data)
    path = registry.uploads.path(registry.uploads.start("app"))
    injected = registry.inject("/uploads/", fault, method="PUT")
    with suppress(OSError, http.client.HTTPException):
        ask(registry.host, "PUT", f"{path}?digest={digest}", data)
    assert injected.hits == 1
    in_effect = fault.cut_request is None if name in LOST_ANSWERS else not fault.in_place
    assert (registry.blob("app", digest) == data) == in_effect
    if name == "part-of-body-then-hang-up":
        assert registry.uploads.unfinished[path.rpartition("/")[2]].data == data[:3]
    elif not in_effect:
        assert ask(registry.host, "PUT", f"{path}?digest={digest}", data)[0] == 201


@pytest.mark.parametrize(
    "name", [*(name for name, fault in TEMPORARY.items() if fault.status is None), "content-length-too-long"]
)
def test_broken_connections(registry: Registry, name: str) -> None:
    registry.inject("/blobs/", FAULTS[name])
    fault = FAULTS[name]
    expected: type[Exception] | None = http.client.RemoteDisconnected
    if fault.stall or fault.delay:
        expected = TimeoutError
    elif fault.reset:
        expected = ConnectionResetError
    elif fault.cut_after is not None or fault.cut_at is not None or fault.length_error:
        expected = http.client.IncompleteRead
    elif name == "cut-status-line":
        expected = http.client.BadStatusLine
    elif name == "cut-headers":
        expected = None
    try:
        assert ask(registry.host, "GET", f"/v2/app/blobs/{DIGEST}") == (200, b"")
        raised = None
    except (OSError, http.client.HTTPException) as error:
        raised = type(error)
    assert raised is expected
    assert ask(registry.host, "GET", f"/v2/app/blobs/{DIGEST}") == (200, DATA)


@pytest.mark.parametrize("name", sorted(HARMLESS.keys() - {"blob-redirect"}))
def test_harmless_faults(registry: Registry, name: str) -> None:
    registry.inject("", FAULTS[name], times=ALWAYS)
    assert ask(registry.host, "GET", f"/v2/app/blobs/{DIGEST}") == (200, DATA)
    assert ask(registry.host, "HEAD", f"/v2/app/blobs/{DIGEST}") == (200, b"")
    assert ask(registry.host, "GET", f"/v2/app/blobs/{digest_of(b'')}")[0] == 404


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.status is not None])
def test_statuses(registry: Registry, name: str) -> None:
    registry.inject("/blobs/", FAULTS[name])
    assert ask(registry.host, "GET", f"/v2/app/blobs/{DIGEST}") == (FAULTS[name].status, FAULTS[name].body)
    assert ask(registry.host, "GET", f"/v2/app/blobs/{DIGEST}") == (200, DATA)


def test_order_method_and_count(registry: Registry) -> None:
    first = registry.inject("/blobs/", Fault(status=500), times=2)
    second = registry.inject("/blobs/", Fault(status=501), method="HEAD", times=ALWAYS)
    path = f"/v2/app/blobs/{DIGEST}"
    assert [ask(registry.host, method, path)[0] for method in ("HEAD", "GET", "GET", "HEAD")] == [500, 500, 200, 501]
    assert (first.times, first.hits, second.hits) == (0, 2, 1)
    registry.clear_faults()
    assert ask(registry.host, "HEAD", path)[0] == 200


def test_every_byte_is_recorded(registry: Registry) -> None:
    """Those of a body that nobody read, too."""
    registry.inject("/canary", Fault(status=413, cut_request=0))
    body = b"canary-body" * 1000
    head = f"PUT /v2/canary-path HTTP/1.1\r\nHost: {registry.host}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    host, _, port = registry.host.partition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head + body)  # at once: what comes after the server closed the connection, it does not see
        while connection.recv(1 << 16):
            pass
    assert registry.everything_received("registry").endswith(head + body)
