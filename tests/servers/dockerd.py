"""Debian's ``dockerd`` (API 1.41), whose answers ours are compared with. It needs root; it gets no network of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests import tools

_START_TIME_MAX = 60.0
_STOP_TIME_MAX = 30.0


@dataclass(frozen=True)
class DockerDaemon:
    """A daemon that runs.

    Attributes:
        host: what ``DOCKER_HOST`` and ``docker -H`` take: ``unix:///...``.
        root: directory of its data, its socket, and what it logged (``log``).
    """

    host: str
    root: Path

    def run(self, *words: str | Path, input: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        """Runs one command line of the docker client to its end, however it ends."""
        return run_docker(self.host, *words, input=input)

    @property
    def log(self) -> str:
        """What it wrote."""
        return (self.root / "log").read_text(errors="replace")


@contextlib.contextmanager
def docker_daemon(root: Path, *, mirror: str | None = None) -> Iterator[DockerDaemon]:
    """Runs a daemon until the end of the block. Skips or fails the test where there is no ``dockerd``, or no root.

    Its storage driver is ``vfs``, which works on every file system and copies each layer whole: keep images small. Containers get no
    network. Registries on the loopback interface are asked by plain HTTP.

    Args:
        root: an empty directory. The socket lies in it, so its path may not be long.
        mirror: ``host:port`` of a registry that is asked in the place of Docker Hub.
    """
    tools.need("dockerd", "docker")
    tools.need_root()
    root.mkdir(parents=True, exist_ok=True)
    path = root / "docker.sock"
    command = [
        "dockerd",
        *("--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=vfs"),
        *("--data-root", str(root / "data"), "--exec-root", str(root / "exec")),
        *("--pidfile", str(root / "pid"), "--host", f"unix://{path}"),
        *("--config-file", str(_configuration(root))),
        *(["--registry-mirror", f"http://{mirror}"] if mirror else []),
    ]
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin:/sbin"}
    with (root / "log").open("wb") as log:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        try:
            _wait(server, path, root / "log")
            yield DockerDaemon(f"unix://{path}", root)
        finally:
            server.terminate()  # it ends its containerd, too
            try:
                server.wait(_STOP_TIME_MAX)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def run_docker(
    host: str, *words: str | Path, input: bytes | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Runs one command line of the docker client against ``host`` to its end, however it ends."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DOCKER_")}
    return subprocess.run(
        ["docker", "--host", host, *map(str, words)],
        input=b"" if input is None else input,
        capture_output=True,
        env={**kept, "LC_ALL": "C.UTF-8", "NO_PROXY": "*", **(environment or {})},
        timeout=120,
    )


def _configuration(root: Path) -> Path:
    path = root / "daemon.json"  # not the machine's own in /etc/docker
    path.write_text("{}")
    return path


def _wait(server: subprocess.Popen[bytes], path: Path, log: Path) -> None:
    deadline = time.monotonic() + _START_TIME_MAX
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise AssertionError(f"dockerd ended with {server.returncode}: {log.read_text(errors='replace')[-4000:]}")
        with contextlib.suppress(OSError), contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
            probe.settimeout(5)
            probe.connect(str(path))
            probe.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            if b" 200 " in probe.recv(4096):
                return
        time.sleep(0.05)
    raise AssertionError(f"dockerd did not answer within {_START_TIME_MAX:.0f} s: {log.read_text(errors='replace')[-4000:]}")
