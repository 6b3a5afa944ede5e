"""The server: listens, and gives every client its handshake, its device and its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from imgstore.errors import ImgstoreError
from imgstore.listeners import Listener
from imgstore.nbd.channel import Channel
from imgstore.nbd.commands import Commands
from imgstore.nbd.connection import JOBS_MAX, Connection
from imgstore.nbd.exports import Exports
from imgstore.nbd.handshake import Agreement, DroppedError, Handshake

CONNECTIONS_MAX = 100
"""At once; who comes then is dropped."""

HANDSHAKE_SECONDS_MAX = 10.0
"""From the first byte to the choice of an export, as with QEMU."""

SHUTDOWN_SECONDS = 5.0
"""How long clients may take, after `Server.stop`, to take the replies to what they had asked for."""

SETTLE_SECONDS = 5.0
"""How long somebody who wants a disk waits for clients that are going: of one that does not take its last replies, nobody knows when."""

_SEND_BUFFER = 4 << 20  # bytes; a Unix socket's own are few, and with each time they are full both sides wait for the other
_SHORTAGE_SECONDS = 1.0

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Client:
    """One client, from `Server._accept` until its device is closed."""

    channel: Channel
    tls: ssl.SSLContext | None
    connection: Connection | None = None
    """None during the handshake."""


class Server:
    """Serves exports on all of its listeners, from `start` to `stop`, in the event loop that called them.

    A client that goes without a word costs nothing but its own connection: what it wrote is flushed, and its device given back.

    Args:
        handshake_seconds: the most that a client may take to choose an export.
    """

    def __init__(
        self, exports: Exports, listeners: Sequence[Listener], *, handshake_seconds: float = HANDSHAKE_SECONDS_MAX
    ) -> None:
        self.exports = exports
        self._listeners = tuple(listeners)
        self._handshake_seconds = handshake_seconds
        self._executor = ThreadPoolExecutor(CONNECTIONS_MAX, thread_name_prefix="nbd")
        """Opens and closes devices, one of a client at a time."""
        self._accepting: list[asyncio.Task[None]] = []
        self._is_full = False
        self._clients: dict[asyncio.Task[None], _Client] = {}

    async def start(self) -> None:
        """Begins to listen."""
        for listener in self._listeners:
            listener.socket.setblocking(False)
            self._accepting.append(asyncio.create_task(self._accept(listener)))

    async def stop(self) -> None:
        """Accepts nobody any more, answers what clients had asked for, flushes and closes every device.

        Clients have `SHUTDOWN_SECONDS`; the storage has as long as it takes, for what was written is lost if it is cut short. To cancel it
        does that.
        """
        try:
            for accepting in self._accepting:
                accepting.cancel()
            await asyncio.gather(*self._accepting, return_exceptions=True)
            for task, client in self._clients.items():
                if client.connection is None:
                    task.cancel()
            for end, seconds in ((Connection.stop, SHUTDOWN_SECONDS), (Connection.abort, None)):
                for client in list(self._clients.values()):
                    if client.connection is not None:
                        end(client.connection)
                if self._clients:
                    await asyncio.wait(self._clients, timeout=seconds)
        finally:
            self._executor.shutdown(wait=False, cancel_futures=True)

    async def _accept(self, listener: Listener) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener.socket)
            except ConnectionAbortedError:
                continue
            except OSError as error:  # no descriptors or no memory, which others may give back
                _log.warning("%s: a connection has to wait: %s", listener.address, error.strerror)
                await asyncio.sleep(_SHORTAGE_SECONDS)
                continue
            was_full, self._is_full = self._is_full, len(self._clients) >= CONNECTIONS_MAX
            if self._is_full:
                if not was_full:
                    _log.warning("%s: clients are dropped: %d are connected", listener.address, len(self._clients))
                connection.close()
                continue
            _tune(connection)
            client = _Client(Channel(connection), listener.tls)
            task = asyncio.create_task(self._serve(client))
            self._clients[task] = client
            task.add_done_callback(self._clients.pop)

    async def _serve(self, client: _Client) -> None:
        try:
            agreed = await self._shake_hands(client)
            if agreed is not None:
                await self._transmit(client, agreed)
        except (DroppedError, TimeoutError, EOFError, OSError) as error:
            _log.debug("a client was dropped: %s", error)
        except Exception:
            _log.exception("a client was dropped")
        finally:
            client.channel.close()

    async def _shake_hands(self, client: _Client) -> Agreement | None:
        async with asyncio.timeout(self._handshake_seconds) as limit:
            handshake = Handshake(client.channel, self.exports, client.tls, self._executor, limit, settle=self._settle)
            return await handshake.negotiate()

    async def _transmit(self, client: _Client, agreed: Agreement) -> None:
        device = agreed.device
        commands = Commands(device, structured=agreed.structured, allocation=agreed.allocation)
        # Threads of its own: storage that hangs holds up those who use it, and nobody else. There are as many as are at work.
        executor = ThreadPoolExecutor(JOBS_MAX, thread_name_prefix="nbd-client")
        try:
            client.connection = Connection(client.channel, commands, executor)
            await client.connection.serve()  # cancelled, it may still be at work, and the device must stay open
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
        try:
            # Before the socket: a client that waits for its end finds the export free, and what it wrote safe.
            await asyncio.get_running_loop().run_in_executor(self._executor, device.close)
        except ImgstoreError as error:
            _log.error("a client went, and what it wrote and did not flush may be lost: %s", error)

    async def _settle(self) -> None:
        """Waits until the devices of clients that have gone are given back, but not for ever."""
        ending = [task for task, client in self._clients.items() if client.connection is not None and client.connection.is_ending]
        if ending:
            await asyncio.wait(ending, timeout=SETTLE_SECONDS)


def _tune(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        if connection.family == socket.AF_UNIX:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        else:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a dead client must not keep a disk for ever
