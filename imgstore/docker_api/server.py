"""The server: one uvicorn on several sockets, each with or without TLS."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Generator, Sequence
from typing import Protocol

import uvicorn

from imgstore.docker_api.app import create_app
from imgstore.docker_api.connections import Connection
from imgstore.docker_api.service import Service
from imgstore.listeners import Listener

IDLE_SECONDS_MAX = 120
"""How long a connection is kept for the next request."""

SHUTDOWN_SECONDS = 15.0
"""How long running requests may go on after the end was asked for, as with Docker."""

_BACKLOG = 256
_TICK = 0.05  # seconds between two looks whether all have ended
_HANDSHAKE_SECONDS_MAX = 10.0

_log = logging.getLogger(__name__)


class Companion(Protocol):
    """What else is served in the same event loop, for as long."""

    async def start(self) -> None:
        """Begins to listen."""
        ...

    async def stop(self) -> None:
        """Lets clients end, in a time of its own. Cancelled, it need not end well."""
        ...


class Server(uvicorn.Server):
    """Answers for a service on all of its listeners, from `serve` until `stop`.

    Args:
        shutdown_timeout: seconds that running requests have to end after `stop`; then they are cut.
        allowed_hosts: names that the Host header may have beside addresses and ``localhost``.
        on_start: called once all listeners are answered.
        companions: begin and end with it.
    """

    def __init__(
        self,
        service: Service,
        listeners: Sequence[Listener],
        *,
        shutdown_timeout: float = SHUTDOWN_SECONDS,
        allowed_hosts: frozenset[str] = frozenset(),
        on_start: Callable[[], None] = lambda: None,
        companions: Sequence[Companion] = (),
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
        )
        super().__init__(config)
        self._service = service
        self._on_start = on_start
        self._companions = tuple(companions)
        self._shutdown_timeout = shutdown_timeout
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
        for companion in self._companions:
            await companion.start()
        self.started = True
        self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Lets requests end, then cuts them; called by `serve`."""
        for server in self.servers:
            server.close()
        ends = [asyncio.create_task(companion.stop()) for companion in self._companions]
        self._service.close()
        state = self.server_state
        for connection in list(state.connections):
            connection.shutdown()
        deadline = time.monotonic() + self._shutdown_timeout
        while (state.connections or state.tasks) and not self.force_exit and time.monotonic() < deadline:
            await asyncio.sleep(_TICK)
        if state.tasks:
            _log.warning("%d requests were cut", len(state.tasks))
        for task in list(state.tasks):
            task.cancel()
        await asyncio.sleep(0)
        for connection in list(state.connections):
            connection.transport.abort()
        await self._service.jobs.end()
        ended = asyncio.gather(*ends)
        while not ended.done() and not self.force_exit:
            await asyncio.wait((ended,), timeout=_TICK)
        if ended.done():
            ended.result()
        else:
            ended.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leaves signals to the process; uvicorn would raise them again at the end, and the exit code would be theirs."""
        yield
