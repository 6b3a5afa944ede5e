"""Spools: the body of a request in a file without a name, which the kernel forgets with us."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import shutil
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import BinaryIO

from aiofiles.threadpool import wrap
from starlette.requests import Request

from imgstore.docker_api.errors import ApiError
from imgstore.errors import NoSpaceError

SILENCE_SECONDS_MAX = 600.0
"""How long a client may send nothing: what feeds it may have to begin with something slow."""

RESERVE = 64 << 20
"""Bytes of the file system that a body leaves for what is going on beside it."""

_PIECE = 1 << 20


async def spool_body(request: Request, directory: Path | None, *, silence: float = SILENCE_SECONDS_MAX) -> BinaryIO:
    """The whole body, from its first byte on, in a file that the caller closes. A body that is cut leaves nothing.

    Args:
        directory: where the file lies; None: the system's temporary directory.
        silence: seconds without a byte after which the client counts as gone.

    Raises:
        NoSpaceError: it does not fit; known before the first byte where the client says how long it is.
        ApiError: 408; the client sent nothing for too long.
        ClientDisconnect: the client hung up in the middle.
    """
    place = directory or Path(tempfile.gettempdir())
    announced = request.headers.get("content-length", "")
    _check_space(place, int(announced) if announced.isascii() and announced.isdigit() else 0)
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(tempfile.TemporaryFile(dir=directory))
        file = wrap(raw)
        async for piece in body_pieces(request, silence=silence):
            _check_space(place, len(piece))
            try:
                await file.write(piece)
                await file.flush()
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise
                raise NoSpaceError(f"request body: no space left for it in {place}") from error
        await file.seek(0)
        stack.pop_all()
    return raw


def _check_space(place: Path, size: int) -> None:
    free = shutil.disk_usage(place).free - RESERVE
    if size > free:
        raise NoSpaceError(f"request body: {size} bytes more do not fit the {max(free, 0)} bytes that are free in {place}")


async def body_pieces(request: Request, *, silence: float = SILENCE_SECONDS_MAX) -> AsyncGenerator[bytes, None]:
    """The body in pieces of about a MiB: each costs a thread's turn.

    Args:
        silence: seconds without a byte after which the client counts as gone.

    Raises:
        ApiError: 408; the client sent nothing for too long.
        ClientDisconnect: the client hung up in the middle.
    """
    held, size = [], 0
    stream = request.stream()
    while True:
        try:
            piece = await asyncio.wait_for(anext(stream, None), silence)
        except TimeoutError:
            raise ApiError(408, f"request body: the client sent nothing for {silence:.0f} s") from None
        if piece is None:
            break
        held.append(piece)
        size += len(piece)
        if size >= _PIECE:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)
