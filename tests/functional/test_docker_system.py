"""System commands of Docker's own clients against the endpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from imgstore.store import ImageStore
from tests.servers.endpoint import Endpoint, endpoint


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    root: Path = tmp_path_factory.mktemp("store")
    with ImageStore.open(str(root / "store")) as store, endpoint(store) as served:
        yield served


def test_ping(api: Endpoint) -> None:
    for tcp in (False, True):
        answer = api.get("/_ping", tcp=tcp)
        assert (answer.status, answer.body) == (200, b"OK")
        assert answer.headers["api-version"] == "1.51"
    assert api.request("HEAD", "/_ping").body == b""


def test_docker_py_pings(api: Endpoint) -> None:
    with api.client() as client:
        assert client.ping()
