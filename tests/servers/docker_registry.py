"""Debian's ``docker-registry`` (distribution 2.8) on a free port of the loopback interface."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests import tools

USERNAME = "robot$project+puller"
PASSWORD = "s3cret:with$signs"
# bcrypt with the lowest cost; the registry takes nothing else.
_HTPASSWD = "robot$project+puller:$2b$04$abcdefghijklmnopqrstuuQLE38A.k7eaCbZCb4ZxIFhqg1NTBeQm\n"
_START_TIME_MAX = 20.0


@dataclass(frozen=True)
class DockerRegistry:
    """A registry that runs.

    Attributes:
        host: ``127.0.0.1:port``.
        root: its directory.
    """

    host: str
    root: Path

    def push(self, source: str, name: str, *options: str) -> str:
        """Copies an image into it with skopeo; returns the reference, ``host/name``."""
        tools.need("skopeo")
        reference = f"{self.host}/{name}"
        tools.run("skopeo", "copy", "--dest-tls-verify=false", *options, source, f"docker://{reference}")
        return reference


@contextlib.contextmanager
def docker_registry(root: Path, *, password: bool = False, tls: tuple[Path, Path] | None = None) -> Iterator[DockerRegistry]:
    """Runs a registry until the end of the block. Skips or fails the test where there is no ``docker-registry``.

    Args:
        root: an empty directory for its data.
        password: ask for USERNAME and PASSWORD.
        tls: certificate and key, PEM.
    """
    tools.need("docker-registry")
    root.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    http_options: dict[str, object] = {"addr": host}
    if tls:
        http_options["tls"] = {"certificate": str(tls[0]), "key": str(tls[1])}
    config: dict[str, object] = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(root / "data")}, "delete": {"enabled": True}},
        "http": http_options,
    }
    if password:
        (root / "htpasswd").write_text(_HTPASSWD)
        config["auth"] = {"htpasswd": {"realm": "test registry", "path": str(root / "htpasswd")}}
    (root / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    with (root / "log").open("wb") as log:
        server = subprocess.Popen(["docker-registry", "serve", root / "config.yml"], stdout=log, stderr=log)
        try:
            _wait(server, host, root / "log", encrypted=tls is not None)
            yield DockerRegistry(host, root)
        finally:
            server.terminate()
            server.wait()


def _wait(server: subprocess.Popen[bytes], host: str, log: Path, *, encrypted: bool) -> None:
    deadline = time.monotonic() + _START_TIME_MAX
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise AssertionError(f"docker-registry ended with {server.returncode}: {log.read_text()}")
        # Only a question whether it answers.
        connection = (
            http.client.HTTPSConnection(host, timeout=5, context=ssl._create_unverified_context())
            if encrypted
            else http.client.HTTPConnection(host, timeout=5)
        )
        try:
            with contextlib.closing(connection):
                connection.request("GET", "/v2/")
                connection.getresponse().read()
                return
        except OSError:
            time.sleep(0.02)
    raise AssertionError(f"docker-registry did not answer within {_START_TIME_MAX:.0f} s: {log.read_text()}")
