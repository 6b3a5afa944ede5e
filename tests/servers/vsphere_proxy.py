"""What stands between us and a vcsim: it passes everything on, and does wrong what a test injects."""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from imgstore.vsphere.transport import tls_context
from tests.servers.authority import Authority
from tests.servers.http_server import Answer, Handler, Service
from tests.servers.vcsim import Vcsim

_KEPT = ("content-range", "content-type", "location", "set-cookie")


class VsphereProxy(Service):
    """See the module; between ``with`` and its end, at `login`."""

    def __init__(self, vcsim: Vcsim, authority: Authority, handler: type[Forward] | None = None) -> None:
        super().__init__(authority.server_context())
        self.vcsim = vcsim
        self.context = tls_context(vcsim.login)
        self.port = int(self.listen("vsphere", handler or Forward).rpartition(":")[2])
        self.login = replace(vcsim.login, port=self.port, ca_file=str(authority.ca_file))

    def url(self, path: str = "") -> str:
        """``vsphere://`` with a path of the first datastore, percent-encoded."""
        return self.vcsim.url(path).replace(f":{self.vcsim.port}/", f":{self.port}/")

    @property
    def logins(self) -> int:
        """How often somebody logged in."""
        return sum(b"<Login " in request.body for request in self.requests)


class Forward(Handler):
    """Passes on what it is asked, and the answer."""

    def serve(self, path: str, query: Mapping[str, list[str]]) -> Answer:
        proxy = cast("VsphereProxy", self.server.service)
        connection = http.client.HTTPSConnection(proxy.vcsim.host, proxy.vcsim.port, context=proxy.context)
        headers = {name: value for name, value in self.seen.headers.items() if name.lower() not in ("host", "transfer-encoding")}
        method = "GET" if self.command == "HEAD" else self.command  # whose answer has the length
        try:
            connection.request(method, self.path, self.seen.body, headers)
            response = connection.getresponse()
            kept = {name: value for name, value in response.getheaders() if name.lower() in _KEPT}
            return Answer(response.status, response.read(), kept)
        finally:
            connection.close()
