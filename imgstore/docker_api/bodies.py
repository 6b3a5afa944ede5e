"""Bodies: that of a request as a file that a thread reads while it comes."""

from __future__ import annotations

import io
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from anyio import from_thread
from starlette.requests import Request

from imgstore.docker_api.spools import SILENCE_SECONDS_MAX, body_pieces
from imgstore.stop import Stop

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class BodyReader(io.RawIOBase):
    """The body of a request, to be read once, by one thread of `Service.work`. Holds a piece of about a MiB.

    A read waits for the client; one that hangs up is a ClientDisconnect from the read, one that says nothing for too long an ApiError.

    Args:
        stop: set where the client is not there any more.
        silence: seconds without a byte after which the client counts as gone.
    """

    def __init__(self, request: Request, stop: Stop, *, silence: float = SILENCE_SECONDS_MAX) -> None:
        super().__init__()
        self._pieces = body_pieces(request, silence=silence)
        self._stop = stop
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        if not self._rest:
            try:
                self._rest = memoryview(from_thread.run(_next, self._pieces))
            except BaseException:
                self._stop.set()
                raise
        target = memoryview(buffer).cast("B")
        count = min(len(target), len(self._rest))
        target[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


async def _next(pieces: AsyncGenerator[bytes, None]) -> bytes:
    return await anext(pieces, b"")
