"""Debian's ``docker-registry`` (distribution 2.8) on a free port of the loopback interface."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests import tools
from tests.servers.authority import Certificate

if TYPE_CHECKING:
    from tests.servers.token_server import TokenServer

USERNAME = "robot$project+puller"
PASSWORD = "s3cret:with$signs"
# bcrypt with the lowest cost; the registry takes nothing else.
_HTPASSWD = "robot$project+puller:$2b$04$abcdefghijklmnopqrstuuQLE38A.k7eaCbZCb4ZxIFhqg1NTBeQm\n"
_START_TIME_MAX = 20.0
_ACCESS = re.compile(r'"([A-Z]+) (\S+) HTTP/[\d.]+" (\d{3}) ')


@dataclass(frozen=True)
class DockerRegistry:
    """A registry that runs.

    Attributes:
        host: ``127.0.0.1:port``.
        root: its directory.
    """

    host: str
    root: Path

    @property
    def log(self) -> str:
        """What it wrote, with a line for each request."""
        return (self.root / "log").read_text(errors="replace")

    @property
    def requests(self) -> list[tuple[str, str, int]]:
        """Method, path with query, and status of all requests that were answered."""
        return [(method, path, int(status)) for method, path, status in _ACCESS.findall(self.log)]

    def push(self, source: str, name: str, *options: str) -> str:
        """Copies an image into it with skopeo; returns the reference, ``host/name``."""
        tools.need("skopeo")
        reference = f"{self.host}/{name}"
        tools.run("skopeo", "copy", "--dest-tls-verify=false", *options, source, f"docker://{reference}")
        return reference


@contextlib.contextmanager
def docker_registry(
    root: Path,
    *,
    password: bool = False,
    tls: Certificate | None = None,
    client_ca: Path | None = None,
    token_server: TokenServer | None = None,
    relative_urls: bool = False,
) -> Iterator[DockerRegistry]:
    """Runs a registry until the end of the block. Skips or fails the test where there is no ``docker-registry``.

    Manifests and blobs can be deleted; tags cannot, and there is no referrers API.

    Args:
        root: an empty directory for its data.
        password: ask for USERNAME and PASSWORD.
        tls: certificate and key, PEM.
        client_ca: demand client certificates of this authority; needs ``tls``.
        token_server: asks for its tokens. They are verified without asking it.
        relative_urls: Locations without scheme and host.
    """
    tools.need("docker-registry")
    root.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    http_options: dict[str, object] = {"addr": host, "relativeurls": relative_urls}
    if tls:
        tls_options: dict[str, object] = {"certificate": str(tls[0]), "key": str(tls[1])}
        http_options["tls"] = tls_options | ({"clientcas": [str(client_ca)]} if client_ca else {})
    config: dict[str, object] = {
        "version": "0.1",
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(root / "data")}, "delete": {"enabled": True}},
        "http": http_options,
    }
    if password:
        (root / "htpasswd").write_text(_HTPASSWD)
        config["auth"] = {"htpasswd": {"realm": "test registry", "path": str(root / "htpasswd")}}
    if token_server:
        config["auth"] = {
            "token": {
                "realm": token_server.realm,
                "service": token_server.service,
                "issuer": token_server.issuer,
                "rootcertbundle": str(token_server.root_certificates),
            }
        }
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
        except ssl.SSLError:
            return  # it answers, and asks for a client certificate
        except OSError:
            time.sleep(0.02)
    raise AssertionError(f"docker-registry did not answer within {_START_TIME_MAX:.0f} s: {log.read_text()}")
