"""The Docker API of a store, in a thread of the test: on a Unix socket and on a TCP port of the loopback interface, both at once."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker

from imgstore.docker_api.server import Server
from imgstore.docker_api.service import Service
from imgstore.listeners import Listener
from imgstore.store import ImageStore
from tests import tools
from tests.command_line import CommandLine

_START_TIME_MAX = 10.0


@dataclass(frozen=True)
class Answer:
    """What the endpoint said."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        """The objects of a stream."""
        return [json.loads(line) for line in self.body.splitlines() if line]

    @property
    def message(self) -> str:
        """The words of an error."""
        message: str = self.json["message"]
        return message


@dataclass
class Endpoint:
    """An endpoint that answers.

    Attributes:
        service: what it answers for; None where it is another process.
        socket: path of its Unix socket.
        port: on 127.0.0.1.
        home: empty directory that is the docker command line's HOME: it keeps its logins there.
    """

    service: Service | None
    socket: Path
    port: int
    home: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def tcp_url(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def docker(self, *words: str | Path, input: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        """Runs Docker's command line against it, however it ends."""
        tools.need("docker")
        return subprocess.run(
            ["docker", *map(str, words)],
            stdin=subprocess.DEVNULL if input is None else None,
            input=input,
            capture_output=True,
            env=self.docker_environment,
            timeout=120,
        )

    @property
    def docker_environment(self) -> dict[str, str]:
        """What makes Docker's clients talk to it."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("DOCKER_")}
        own = {"DOCKER_HOST": self.url, "DOCKER_CONFIG": str(self.home / ".docker"), "HOME": str(self.home), "LC_ALL": "C.UTF-8"}
        return kept | own | self.environment

    def docker_text(self, *words: str | Path, input: bytes | None = None) -> str:
        """Runs a docker command that must go well; returns what it printed."""
        done = self.docker(*words, input=input)
        assert done.returncode == 0, f"docker {' '.join(map(str, words))}: {done.stdout.decode()}{done.stderr.decode()}"
        return done.stdout.decode()

    @contextlib.contextmanager
    def client(self, **options: Any) -> Iterator[docker.DockerClient]:
        """docker-py's client."""
        client = docker.DockerClient(base_url=self.url, **options)
        try:
            yield client
        finally:
            client.close()

    def connect(self) -> socket.socket:
        """A plain connection to its Unix socket."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(30)
        connection.connect(str(self.socket))
        return connection

    def request(
        self,
        method: str,
        path: str,
        body: bytes | object | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        tcp: bool = False,
    ) -> Answer:
        """One request on a connection of its own; a body that is not bytes is sent as JSON."""
        own = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            own.setdefault("Content-Type", "application/json")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        if not tcp:
            connection.sock = self.connect()
        with contextlib.closing(connection):
            connection.request(method, path, body, own)
            response = connection.getresponse()
            return Answer(response.status, dict(response.headers), response.read())

    def get(self, path: str, **options: Any) -> Answer:
        return self.request("GET", path, **options)

    def post(self, path: str, body: bytes | object | None = None, **options: Any) -> Answer:
        return self.request("POST", path, body, **options)

    def delete(self, path: str, **options: Any) -> Answer:
        return self.request("DELETE", path, **options)


@contextlib.contextmanager
def endpoint(store: ImageStore) -> Iterator[Endpoint]:
    """Answers for ``store`` until the end of the block; leaves the store open.

    What is still running then is cut.
    """
    with tempfile.TemporaryDirectory(prefix="imgstore-api-") as directory:
        home = Path(directory)  # not pytest's directory: the path of a Unix socket has at most 107 bytes
        unix, tcp = socket.socket(socket.AF_UNIX), socket.socket()
        unix.bind(f"{home}/api.sock")
        tcp.bind(("127.0.0.1", 0))
        port = tcp.getsockname()[1]
        service = Service(store)
        listeners = [Listener(unix, f"unix://{home}/api.sock"), Listener(tcp, f"tcp://127.0.0.1:{port}")]
        server = Server(service, listeners, shutdown_timeout=1)
        thread = threading.Thread(target=server.run, name="endpoint")
        thread.start()
        try:
            deadline = time.monotonic() + _START_TIME_MAX
            while not server.started:
                assert thread.is_alive() and time.monotonic() < deadline, "the endpoint did not start"
                time.sleep(0.005)
            yield Endpoint(service, home / "api.sock", port, home)
        finally:
            server.stop()
            thread.join()


@dataclass
class Serving:
    """``imgstore serve`` as a process.

    Attributes:
        addresses: where it says that it listens.
        lines: all that it said on standard error, so far.
    """

    process: subprocess.Popen[str]
    addresses: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def end(self, number: int = signal.SIGTERM, *, within: float = 30.0) -> str:
        """Sends a signal, which must end it well; returns what it had said."""
        self.process.send_signal(number)
        assert self.wait(within=within) == 0, self.said
        return self.said

    def wait(self, *, within: float = 30.0) -> int:
        """Waits for the end, and returns the exit code."""
        _, rest = self.process.communicate(timeout=within)
        self.lines += rest.splitlines(keepends=True)
        return self.process.returncode

    @property
    def said(self) -> str:
        return "".join(self.lines)

    def read_start(self, listeners: int) -> None:
        """Waits until it has named so many addresses."""
        assert self.process.stderr is not None
        while len(self.addresses) < listeners:
            line = self.process.stderr.readline()
            assert line, f"the service ended: {self.said}"
            self.lines.append(line)
            if line.startswith("API listen on "):
                self.addresses.append(line.removeprefix("API listen on ").strip())


@contextlib.contextmanager
def serving(
    store: Path,
    *words: str | Path,
    listeners: int = 1,
    settings: Mapping[str, str] | None = None,
    wrapper: Sequence[str] = (),
    pass_fds: Sequence[int] = (),
) -> Iterator[Serving]:
    """Runs ``imgstore serve`` with these options until the end of the block; then it is killed, if it still runs.

    Args:
        listeners: how many addresses it must name before the block begins.
        settings: more of its environment.
        wrapper: words before the command line.
    """
    command_line = CommandLine(store)
    with subprocess.Popen(
        [*wrapper, *command_line.words("serve", *words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**command_line.environment, **(settings or {})},
        pass_fds=pass_fds,
    ) as process:
        served = Serving(process)
        try:
            served.read_start(listeners)
            yield served
        finally:
            process.kill()
