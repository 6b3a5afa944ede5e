"""The same command to dockerd and to the endpoint: exit code, standard output and standard error are the same."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgstore.store import ImageStore
from tests.servers.dockerd import docker_daemon
from tests.servers.endpoint import Endpoint, endpoint

COMMANDS = [
    "ps -a",
    "ps -aq --filter status=exited",
    "volume ls",
    "plugin ls",
    "inspect nope",
    "inspect --type container nope",
    "inspect --type network nope",
    "inspect --type volume nope",
    "inspect --type plugin nope",
    "network inspect nope",
    "network rm nope",
    "volume inspect nope",
    "volume rm nope",
    "volume rm -f nope",
    "rm nope",
    "rm -f nope",
    "logs nope",
    "exec nope true",
    "container prune -f",
    "volume prune -f",
    "network prune -f",
    "events --since 10 --until 5",
]

PATHS = [
    ("GET", "/nope"),
    ("PUT", "/images/json"),
    ("GET", "/exec/nope/json"),
    ("GET", "/plugins/nope/json"),
    ("DELETE", "/volumes/nope"),
    ("DELETE", "/volumes/nope?force=1"),
    ("DELETE", "/networks/nope"),
    ("DELETE", "/containers/nope?force=1"),
    ("GET", "/events?since=10&until=5"),
    ("GET", "/events?since=10&until=20"),
    ("HEAD", "/_ping"),
    ("GET", "/_ping"),
]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Endpoint]]:
    directory = tmp_path_factory.mktemp("dockerd")
    with docker_daemon(directory) as theirs, ImageStore.open("mem://") as store, endpoint(store) as ours:
        yield theirs.host, ours


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(hosts: tuple[str, Endpoint], command: str) -> None:
    theirs, ours = hosts
    expected, found = (
        subprocess.run(
            ["docker", *command.split()],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**os.environ, "DOCKER_HOST": host, "HOME": str(ours.home)},
        )
        for host in (theirs, ours.url)
    )
    assert (expected.returncode, expected.stdout, expected.stderr) == (found.returncode, found.stdout, found.stderr)


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_answers(hosts: tuple[str, Endpoint], method: str, path: str) -> None:
    theirs, ours = hosts
    connection = http.client.HTTPConnection("localhost", timeout=60)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(Path(theirs.removeprefix("unix://"))))
    connection.request(method, path)
    expected = connection.getresponse()
    found = ours.request(method, path)
    assert (expected.status, expected.read()) == (found.status, found.body)
    assert (expected.headers["Content-Type"] or "").partition(";")[0] == found.headers.get("content-type", "").partition(";")[0]
    connection.close()
