"""Channel: the socket of one client, plain or encrypted, on the event loop.

Not a stream of asyncio: that would read ahead. What a client sends before the TLS handshake must stay in the kernel until TLS reads it and
finds that it is no TLS: so nothing that somebody injected there can ever be taken for an option (CVE-2021-3716).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Any

BLOCKED = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
"""What a call on the socket raises where it would have to wait."""

_SKIPPED = 1 << 16


class Channel:
    """The socket, to be closed with `close`. For one task.

    Attributes:
        socket: non-blocking; another one after `start_tls`.
        encrypted: whether TLS was begun.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.encrypted = False
        self._loop = asyncio.get_running_loop()

    async def receive(self, length: int) -> bytes:
        """Exactly ``length`` bytes, and none of what follows.

        Raises:
            EOFError: the client closed the connection.
            OSError: it broke.
        """
        received = bytearray(length)
        with memoryview(received) as view:
            await self._fill(view)
        return bytes(received)

    async def skip(self, length: int) -> None:
        """Throws ``length`` bytes away. Raises what `receive` raises."""
        with memoryview(bytearray(min(length, _SKIPPED))) as view:
            while length:
                take = min(length, len(view))
                await self._fill(view[:take])
                length -= take

    async def send(self, data: bytes) -> None:
        """Returns when the kernel has all of it. Raises OSError where the connection broke."""
        rest = memoryview(data)
        while rest:
            sent = await self._retry(self.socket.send, rest)
            rest = rest[sent:]

    async def start_tls(self, context: ssl.SSLContext) -> None:
        """Everything is encrypted from now on.

        Raises:
            ssl.SSLError: the client speaks no TLS, or has not the certificate that it needs; the connection cannot be used any more.
        """
        self.socket = encrypted = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.encrypted = True
        await self._retry(encrypted.do_handshake)

    def close(self) -> None:
        """Says goodbye to TLS, without waiting for the other side's, and closes the socket."""
        if isinstance(self.socket, ssl.SSLSocket):
            with contextlib.suppress(OSError, ValueError):
                self.socket.unwrap()
        self.socket.close()

    async def _fill(self, view: memoryview) -> None:
        filled = 0
        while filled < len(view):
            received = await self._retry(self.socket.recv_into, view[filled:])
            if not received:
                raise EOFError("the client closed the connection")
            filled += received

    async def _retry(self, call: Callable[..., Any], *words: Any) -> Any:
        """Calls until it need not wait."""
        while True:
            try:
                return call(*words)
            except (ssl.SSLWantReadError, BlockingIOError) as blocked:
                writes = call == self.socket.send and not isinstance(blocked, ssl.SSLWantReadError)
            except ssl.SSLWantWriteError:
                writes = True
            if writes:
                await self._wait(self._loop.add_writer, self._loop.remove_writer)
            else:
                await self._wait(self._loop.add_reader, self._loop.remove_reader)

    async def _wait(self, add: Callable[..., Any], remove: Callable[[int], bool]) -> None:
        ready = asyncio.Event()
        descriptor = self.socket.fileno()
        add(descriptor, ready.set)
        try:
            await ready.wait()
        finally:
            remove(descriptor)
