"""The server: one uvicorn on several sockets, each with or without TLS."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import uvicorn

from imgstore.docker_api.app import create_app
from imgstore.docker_api.connections import Connection
from imgstore.docker_api.service import Service

IDLE_SECONDS_MAX = 120
"""How long a connection is kept for the next request."""

_BACKLOG = 256
_HANDSHAKE_SECONDS_MAX = 10.0


@dataclass(frozen=True)
class Listener:
    """A socket that listens.

    Attributes:
        address: as users write it: ``unix:///run/imgstore.sock``, ``tcp://127.0.0.1:2375``.
        tls: how its connections are encrypted, or None.
    """

    socket: socket.socket
    address: str
    tls: ssl.SSLContext | None = None


class Server(uvicorn.Server):
    """Answers for a service on all of its listeners, from `serve` until `stop`.

    Args:
        shutdown_timeout: seconds that running requests have to end after `stop`; then they are cut.
        allowed_hosts: names that the Host header may have beside addresses and ``localhost``.
    """

    def __init__(
        self,
        service: Service,
        listeners: Sequence[Listener],
        *,
        shutdown_timeout: int = 15,
        allowed_hosts: frozenset[str] = frozenset(),
    ) -> None:
        config = uvicorn.Config(
            create_app(service, allowed_hosts=allowed_hosts),
            loop="asyncio",
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",  # what happens is in the log of the application, once and without secrets
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=IDLE_SECONDS_MAX,
            timeout_graceful_shutdown=shutdown_timeout,
        )
        super().__init__(config)
        self._service = service
        self._listeners = tuple(listeners)

    def stop(self, *, at_once: bool = False) -> None:
        """Begins to end, from a signal handler or another thread: nothing is accepted any more, and running requests may end."""
        self.should_exit = True
        if at_once:
            self.force_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens; called by `serve`."""

        def connect() -> asyncio.Protocol:
            return Connection(config=self.config, server_state=self.server_state, app_state={})

        loop = asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(
                connect,
                sock=listener.socket,
                ssl=listener.tls,
                backlog=_BACKLOG,
                ssl_handshake_timeout=_HANDSHAKE_SECONDS_MAX if listener.tls else None,
            )
            for listener in self._listeners
        ]
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Lets requests end, then cuts them; called by `serve`."""
        self._service.close()
        await super().shutdown(sockets)
        await self._service.jobs.end()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leaves signals to the process; uvicorn would raise them again at the end, and the exit code would be theirs."""
        yield
