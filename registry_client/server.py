"""Server: one API root of a registry or mirror, and Connections: all servers that a process talks to.

What a server taught us lives here and is shared by all repositories on it: which scheme it speaks, the tokens it handed out, whether it
was there lately.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Self

from registry_client.auth import Authorizer
from registry_client.credentials import Credential
from registry_client.endpoint import Endpoint
from registry_client.errors import PlainHttpError, RedirectError, RegistryError, UnreachableError
from registry_client.options import Options
from registry_client.transport import Reach, Transport, discard

REST = 60.0
"""Seconds in which a mirror that did not answer is not asked again."""

_ACCOUNTS_MAX = 256
"""Accounts whose tokens are remembered: a service that asks on behalf of many is not to keep them all."""

_PLAIN_HTTP_REFUSED = 400
"""What servers of HTTPS say to plain HTTP (Go, nginx, Apache)."""


class Server:
    """One API root. Made by `Connections.server`; may be used from several threads."""

    def __init__(self, endpoint: Endpoint, transport: Transport) -> None:
        """Sends nothing yet. The endpoint's repository does not matter."""
        self.transport = transport
        self.reach = Reach.of(endpoint)
        self.reached = False
        """Whether it ever answered: one that did gets time to come back, one that never did is more likely a wrong name."""
        self.asks_who_we_are = False
        """Whether it ever answered 401: then we say at once who we are."""
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._base: str | None = None
        self._authorizers: dict[Credential, Authorizer] = {}
        self._rests_until = 0.0

    @property
    def base(self) -> str:
        """Scheme and host. Found out at the first call, which sends a request where there are several schemes to choose from.

        Raises:
            RegistryError: no scheme works; the reason is that of the first that got anywhere.
        """
        with self._lock:
            if self._base is None:
                self._base = self._find_base()
            return self._base

    def authorizer(self, credential: Credential) -> Authorizer:
        """The tokens of one account."""
        base = self.base
        with self._lock:
            authorizer = self._authorizers.pop(credential, None) or Authorizer(self.transport, base, self.reach, credential)
            self._authorizers[credential] = authorizer  # the latest is the last one
            if len(self._authorizers) > _ACCOUNTS_MAX:
                del self._authorizers[next(iter(self._authorizers))]
            return authorizer

    def rest(self) -> None:
        """It did not answer: to be left alone for a while."""
        self._rests_until = time.monotonic() + REST

    @property
    def rests(self) -> bool:
        """Whether it is left alone."""
        return time.monotonic() < self._rests_until

    def _find_base(self) -> str:
        bases = [f"{scheme}://{self._endpoint.host}" for scheme in self._endpoint.schemes]
        if len(bases) == 1:
            return bases[0]
        failures: list[RegistryError] = []
        for base in bases:
            if failures and isinstance(failures[-1], PlainHttpError):
                return base
            try:
                status = self._probe(base)
            except (PlainHttpError, UnreachableError) as error:
                failures.append(error)
                continue
            if failures and status == _PLAIN_HTTP_REFUSED:
                continue  # a server of HTTPS that hung up on us before
            self.reached = True
            return base
        raise failures[0]

    def _probe(self, base: str) -> int:
        """The status that a scheme is answered with. Without credentials: they are for a registry that we know how to talk to."""
        try:
            response = self.transport.send("GET", f"{base}{self._endpoint.api}/", {}, self.reach)[0]
        except RedirectError as error:
            return error.status or 0
        discard(response)
        return response.status_code


class Connections:
    """Connections and tokens, to share between any number of sources and clients of one process, from any thread.

    After `close` neither it nor what was made with it must be used.
    """

    def __init__(self, options: Options | None = None) -> None:
        """Sends nothing. Of the options, those about connections count, for all that is done with them."""
        self._transport = Transport(options or Options())
        self._lock = threading.Lock()
        self._servers: dict[Endpoint, Server] = {}

    def server(self, endpoint: Endpoint) -> Server:
        """The server of an endpoint: the same for all repositories on it."""
        key = replace(endpoint, repository="", serves_tags=True, serves_digests=True)
        with self._lock:
            if key not in self._servers:
                self._servers[key] = Server(key, self._transport)
            return self._servers[key]

    def close(self) -> None:
        """Closes all connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *rest: object) -> None:
        self.close()
