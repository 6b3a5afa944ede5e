"""Whatever a client of the Docker API writes: a value, or an error of the request."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.requests import Request

from imgstore.docker_api.errors import ApiError
from imgstore.docker_api.event_filters import accepts, parse_time
from imgstore.docker_api.events import Event
from imgstore.docker_api.login import parse_server_address
from imgstore.docker_api.requests import filters_of
from imgstore.docker_api.security import is_own_host
from imgstore.errors import InvalidError
from imgstore.store import ImageStore
from registry_client.reference import Reference
from tests.servers.endpoint import Endpoint, endpoint

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "label", "image", "x"]), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(st.text(max_size=40) | st.from_regex(r"[-+0-9TZ:.hmsnu]{1,30}", fullmatch=True))
@example("9999-12-31T23:59:59.999999999+23:59")
@example("0001-01-01T00:00:00+23:59")
def test_times(text: str) -> None:
    with contextlib.suppress(InvalidError):
        found = parse_time(text)
        assert found is None or isinstance(found, int)


@given(JSON | st.text(max_size=30), st.text(max_size=5))
def test_filters(value: object, id: str) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    query = f"filters={quote(text)}".encode()
    request = Request({"type": "http", "query_string": query, "headers": [], "path": "/events", "method": "GET"})
    with contextlib.suppress(ApiError):
        found = filters_of(request, None)
        assert accepts(found, Event("image", "tag", id, {"name": id})) in (True, False)


@given(st.text(max_size=40) | st.from_regex(r"\[?[0-9a-f:.]{0,20}\]?(:[0-9]{0,5})?", fullmatch=True))
def test_hosts(text: str) -> None:
    assert is_own_host(text, frozenset()) in (True, False)


@given(st.text(max_size=40) | st.from_regex(r"(https?://)?[a-z0-9.:-]{0,20}(/v[12]/)?", fullmatch=True))
def test_server_addresses(text: str) -> None:
    with contextlib.suppress(ApiError):
        registry = parse_server_address(text)
        assert Reference.parse(f"{registry}/x/y").registry == registry


@pytest.fixture(scope="module")
def api() -> Iterator[Endpoint]:
    with ImageStore.open("mem://") as store, endpoint(store) as served:
        yield served


METHODS = st.sampled_from([b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"X"])
PATHS = st.binary(max_size=20).map(lambda raw: b"/" + quote(raw).encode()) | st.sampled_from(
    [
        b"*",
        b"//",
        b"/../..",
        b"http://x/_ping",
        b"/v1.44/%2e%2e/info",
        b"/containers//json",
        b"/v999.999/info",
        b"/images/%00/json",
    ]
)


@given(METHODS, PATHS, st.binary(max_size=30))
def test_requests(api: Endpoint, method: bytes, path: bytes, rest: bytes) -> None:
    with api.connect() as connection:
        connection.sendall(method + b" " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" + rest)
        found = b""
        with contextlib.suppress(ConnectionResetError):
            while data := connection.recv(65536):
                found += data
    status = found.split(b" ")[1] if found else b""
    assert status in (b"", b"200", b"400", b"404", b"501", b"503"), found
    if status not in (b"", b"200") and method != b"HEAD":
        assert b'{"message":"' in found
