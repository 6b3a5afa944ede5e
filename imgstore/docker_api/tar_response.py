"""The answer that is a tar, made while it is sent."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any

import anyio
import anyio.to_thread
from starlette.types import Receive, Scope, Send

from imgstore.blocks import Bytes
from imgstore.docker_api.service import Service
from imgstore.docker_api.streams import watch_client

_BATCH = 4 << 20
"""Bytes that are made at once, in a thread's one turn."""


class TarResponse:
    """The answer that is a tar. Cut off where something turns out to be damaged: a tar without its end is none.

    A client that hangs up has the pieces closed, which gives back what they hold.

    Args:
        headers: beside the type.
        on_end: called in a thread once all of it was sent.
    """

    def __init__(
        self,
        service: Service,
        pieces: Generator[Bytes, None, None],
        *,
        headers: Mapping[str, str] | None = None,
        on_end: Callable[[], Any] = lambda: None,
    ) -> None:
        self._service = service
        self._pieces = pieces
        self._headers = {"Content-Type": "application/x-tar", **(headers or {})}
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error: Exception | None = None
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(watch_client, receive, group.cancel_scope)
                try:
                    await self._send(send)
                except Exception as raised:  # a task group would wrap it
                    error = raised
                group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._pieces.close)
        if error is not None:
            raise error

    async def _send(self, send: Send) -> None:
        pieces = await self._next()
        headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in self._headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while pieces:
            await send({"type": "http.response.body", "body": pieces, "more_body": True})
            pieces = await self._next()
        await self._service.work(self._on_end)
        await send({"type": "http.response.body", "body": b""})

    async def _next(self) -> bytes:
        """The next pieces; nothing at the end. Not to be abandoned: a generator that is running cannot be closed."""
        return await anyio.to_thread.run_sync(self._read, limiter=self._service.works)

    def _read(self) -> bytes:
        # Not ahead of what is sent: two threads that both need Python, one of them at every turn of the socket, only hinder each other.
        batch: list[Bytes] = []
        size = 0
        while size < _BATCH and (piece := next(self._pieces, None)) is not None:
            batch.append(piece)
            size += len(piece)
        return b"".join(batch)
