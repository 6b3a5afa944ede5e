"""A recording HTTP proxy: tunnels (CONNECT), and plain HTTP by absolute URIs."""

from __future__ import annotations

import base64
import http.client
import select
import socket
from collections.abc import Mapping
from typing import cast
from urllib.parse import urlsplit

from tests.servers.http_server import Answer, Handler, Service

_HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-authorization", "proxy-connection", "transfer-encoding", "te", "upgrade"}
)
_TIMEOUT = 30.0


class Proxy(Service):
    """See the module.

    ::

        with Proxy(names={"harbor.example.com:443": registry.host}) as proxy:
            ... HTTPS_PROXY=proxy.url, and https://harbor.example.com leads to the registry ...
            assert proxy.targets == ["harbor.example.com:443"]

    Args:
        credentials: user and password that it asks for (Basic).
        names: where requests for ``host:port`` really go: names that need not exist.

    Attributes:
        host: ``127.0.0.1:port``.
        url: for ``HTTP_PROXY`` and ``HTTPS_PROXY``; without credentials.
        targets: ``host:port`` of all requests, tunnels and others, that were let through, in their order.
    """

    def __init__(self, *, credentials: tuple[str, str] | None = None, names: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.credentials = credentials
        self.names = dict(names or {})
        self.targets: list[str] = []
        self.host = self.listen("proxy", _ProxyHandler)
        self.url = f"http://{self.host}"


class _ProxyHandler(Handler):
    @property
    def proxy(self) -> Proxy:
        return cast("Proxy", self.server.service)

    def serve(self, path: str, query: Mapping[str, list[str]]) -> Answer:
        refusal = self._refusal()
        if refusal is not None:
            return refusal
        if self.command == "CONNECT":
            return self._tunnel(self.path)
        url = urlsplit(self.path)
        if url.scheme != "http" or not url.hostname:
            return Answer(400, b"a proxy is asked by absolute http:// URIs, or CONNECT\n")
        return self._forward(f"{url.hostname}:{url.port or 80}", url._replace(scheme="", netloc="").geturl() or "/")

    def _refusal(self) -> Answer | None:
        if self.proxy.credentials is None:
            return None
        wanted = base64.b64encode(":".join(self.proxy.credentials).encode()).decode()
        if self.headers.get("proxy-authorization") == f"Basic {wanted}":
            return None
        return Answer(407, b"", {"Proxy-Authenticate": 'Basic realm="proxy"'})

    def _forward(self, target: str, path: str) -> Answer:
        self.proxy.targets.append(target)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        connection = http.client.HTTPConnection(self.proxy.names.get(target, target), timeout=_TIMEOUT)
        try:
            connection.request(self.command, path, self.seen.body or None, headers)
            response = connection.getresponse()
            kept = {name: value for name, value in response.getheaders() if name.lower() not in _HOP_BY_HOP}
            return Answer(response.status, response.read(), kept)
        except (OSError, http.client.HTTPException) as error:
            return Answer(502, f"{target}: {error}\n".encode())
        finally:
            connection.close()

    def _tunnel(self, target: str) -> Answer:
        """Passes bytes on until one side is silent for good. Only a refusal is an answer that is sent as usual."""
        self.proxy.targets.append(target)
        host, _, port = self.proxy.names.get(target, target).rpartition(":")
        try:
            far = socket.create_connection((host, int(port)), timeout=_TIMEOUT)
        except OSError as error:
            return Answer(502, f"{target}: {error}\n".encode())
        self.close_connection = True
        with far:
            self.seen.status = 200
            self.connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            self._relay(far)
        raise ConnectionAbortedError("the tunnel has ended")

    def _relay(self, far: socket.socket) -> None:
        others = {self.connection: far, far: self.connection}
        while not self.server.stopping.is_set():
            for ready in select.select(list(others), [], [], 0.05)[0]:
                data = ready.recv(1 << 16)
                if not data:
                    return
                if ready is self.connection:
                    self.server.service.record(self.server.name, data)
                others[ready].sendall(data)
