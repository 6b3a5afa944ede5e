"""Connections: HTTP/1.1 as uvicorn speaks it, with an end to everything that a client can draw out.

uvicorn bounds a connection that is idle after a request. It does not bound the head of a request, in bytes or in time, nor a body that
nobody reads.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

CONNECTIONS_MAX = 512
"""At once. 100 clients pull at once without a thought; more than this many are a mistake or an attack."""

HEAD_SIZE_MAX = 64 << 10
"""Bytes of a request line with its headers: filters and tokens need a few KiB of them."""

HEAD_SECONDS_MAX = 30.0
"""From the first byte of a connection, or of the next request on it, to the end of the headers."""

UNREAD_SIZE_MAX = 256 << 10
"""Bytes of a body that are thrown away after the answer was sent, so that the connection can be used again (as Go's net/http)."""

UNREAD_SECONDS_MAX = 5.0
LINGER_SECONDS = 0.5


class Connection(HttpToolsProtocol):
    """One connection of a client."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = False
        self._head_size = 0
        self._in_body = False
        self._unread = 0
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn itself
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS_MAX:
            self._refuse(b"503 Service Unavailable", f"more than {CONNECTIONS_MAX} connections")
            return
        self._set_deadline(HEAD_SECONDS_MAX)

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._in_head:
            self._head_size += len(data)
            if self._head_size > HEAD_SIZE_MAX:
                self._refuse(b"431 Request Header Fields Too Large", f"request headers are longer than {HEAD_SIZE_MAX} bytes")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_size = True, 0
        if self._deadline is None:
            self._set_deadline(HEAD_SECONDS_MAX)

    def on_headers_complete(self) -> None:
        self._in_head, self._in_body, self._unread = False, True, 0
        self._clear_deadline()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self.cycle.response_complete:
            self._unread += len(body)
            if self._unread > UNREAD_SIZE_MAX:
                self._linger()
            return
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        self._clear_deadline()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_body and not self.transport.is_closing():
            self._unset_keepalive_if_required()
            self._set_deadline(UNREAD_SECONDS_MAX)

    def send_400_response(self, msg: str) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.close()  # a second answer must not land in the middle of the one that is being sent
        else:
            self._refuse(b"400 Bad Request", msg)

    def _unsupported_upgrade_warning(self) -> None:
        # Docker's clients ask for upgrades (attach, BuildKit); we answer in HTTP, and what follows is no request of ours.
        self.cycle.keep_alive = False

    def _linger(self) -> None:
        # To close a socket while data wait in it resets the connection, and the client may lose the answer: it gets time to read.
        self.transport.pause_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._set_deadline(LINGER_SECONDS)

    def _set_deadline(self, seconds: float) -> None:
        self._clear_deadline()
        self._deadline = self.loop.call_later(seconds, self.transport.close)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self, status: bytes, message: str) -> None:
        body = f'{{"message":"{message}"}}\n'.encode()
        head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (status, len(body)) + body)
        self.transport.close()
