"""Bodies: that of a request as a file that a thread reads while it comes."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect, Request

from imgstore.docker_api.spools import SILENCE_SECONDS_MAX, body_pieces

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class BodyReader(io.RawIOBase):
    """The body of a request, to be read once, by one thread at a time that is not the event loop's. Holds a piece of about a MiB.

    A read waits for the client. One that hangs up is a ClientDisconnect from the read, as is the end of the request; one that says
    nothing for too long is an ApiError.

    Made in the event loop, where `end` is called in the end.

    Args:
        silence: seconds without a byte after which the client counts as gone.
    """

    def __init__(self, request: Request, *, silence: float = SILENCE_SECONDS_MAX) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._pieces = body_pieces(request, silence=silence)
        self._coming: Future[bytes] | None = None
        self._ended = False
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        if not self._rest:
            self._rest = memoryview(self._receive())
        target = memoryview(buffer).cast("B")
        count = min(len(target), len(self._rest))
        target[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def end(self) -> None:
        """Ends a read that waits, and all later ones; called in the event loop when the request is over."""
        self._ended = True
        if self._coming is not None:
            self._coming.cancel()

    def _receive(self) -> bytes:
        if self._ended:
            raise ClientDisconnect
        self._coming = asyncio.run_coroutine_threadsafe(_next(self._pieces), self._loop)
        if self._ended:
            self._coming.cancel()
        try:
            return self._coming.result()
        except CancelledError:
            raise ClientDisconnect from None


async def _next(pieces: AsyncGenerator[bytes, None]) -> bytes:
    return await anext(pieces, b"")
