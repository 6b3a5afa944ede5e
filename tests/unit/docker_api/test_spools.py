"""Bodies of requests in files without a name."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from imgstore.docker_api import spools
from imgstore.docker_api.errors import ApiError
from imgstore.docker_api.spools import spool_body
from imgstore.errors import NoSpaceError


def request(*messages: dict[str, Any], length: str | None = None) -> Request:
    """A request whose body comes in these messages; after them its client is silent."""
    waiting = list(messages)

    async def receive() -> dict[str, Any]:
        if not waiting:
            await asyncio.sleep(60)
        return waiting.pop(0)

    headers = [] if length is None else [(b"content-length", length.encode())]
    return Request({"type": "http", "headers": headers}, receive)


def piece(data: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": data, "more_body": more}


@pytest.mark.parametrize("count", [0, 1, 3, 40])
def test_the_whole_body_from_its_first_byte_on(tmp_path: Path, count: int) -> None:
    data = [bytes([number]) * 65_537 for number in range(count)]
    with asyncio.run(spool_body(request(*map(piece, data), piece(b"", more=False)), tmp_path)) as file:
        assert file.read() == b"".join(data)
        assert list(tmp_path.iterdir()) == []


def test_a_store_in_memory_has_no_directory() -> None:
    with asyncio.run(spool_body(request(piece(b"body", more=False)), None)) as file:
        assert file.read() == b"body"


def test_silence_ends_it(tmp_path: Path) -> None:
    with pytest.raises(ApiError, match=r"the client sent nothing for 0 s") as caught:
        asyncio.run(spool_body(request(piece(b"begin")), tmp_path, silence=0.05))
    assert caught.value.status == 408


def test_a_cut_ends_it(tmp_path: Path) -> None:
    with pytest.raises(ClientDisconnect):
        asyncio.run(spool_body(request(piece(b"begin"), {"type": "http.disconnect"}), tmp_path))


def test_what_is_too_long_is_refused_before_its_first_byte(tmp_path: Path) -> None:
    with pytest.raises(NoSpaceError, match=f"{1 << 62} bytes more do not fit"):
        asyncio.run(spool_body(request(length=str(1 << 62)), tmp_path))


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: object) -> object:
        class Full:
            async def write(self, data: bytes) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

        return Full()

    monkeypatch.setattr(spools, "wrap", fail)
    with pytest.raises(NoSpaceError, match="no space left for it"):
        asyncio.run(spool_body(request(piece(b"x", more=False)), tmp_path))
