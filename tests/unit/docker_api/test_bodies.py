"""Bodies that a thread reads while they come."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from imgstore.docker_api.bodies import BodyReader
from imgstore.docker_api.errors import ApiError


def request_of(messages: Callable[[], AsyncIterator[dict[str, Any]]]) -> Request:
    iterator = messages()

    async def receive() -> Any:
        return await anext(iterator)

    return Request({"type": "http", "method": "PUT", "headers": []}, receive)


def body(*pieces: bytes, ends: bool = True, hangs: bool = False) -> Callable[[], AsyncIterator[dict[str, Any]]]:
    async def messages() -> AsyncIterator[dict[str, Any]]:
        for piece in pieces:
            yield {"type": "http.request", "body": piece, "more_body": True}
        if hangs:
            await asyncio.sleep(60)
        yield {"type": "http.request", "body": b"", "more_body": False} if ends else {"type": "http.disconnect"}

    return messages


def read(messages: Callable[[], AsyncIterator[dict[str, Any]]], size: int = -1, **options: float) -> bytes:
    """What a thread reads that is none of the event loop's own."""

    async def run() -> bytes:
        with io.BufferedReader(BodyReader(request_of(messages), **options)) as reader:
            return await asyncio.to_thread(lambda: b"".join(iter(lambda: reader.read(size), b"")))

    return asyncio.run(run())


@pytest.mark.parametrize("size", [-1, 1, 1000, 5 << 20])
def test_all_of_it(size: int) -> None:
    pieces = [b"a" * 700_000, b"", b"b" * 700_000, b"c"]
    if size == 1:
        pieces = [b"abc", b"d"]
    assert read(body(*pieces), size) == b"".join(pieces)


def test_nothing() -> None:
    assert read(body()) == b""


def test_a_client_that_hangs_up() -> None:
    with pytest.raises(ClientDisconnect):
        read(body(b"half", ends=False))


def test_a_client_that_says_nothing() -> None:
    with pytest.raises(ApiError) as caught:
        read(body(b"half", hangs=True), silence=0.05)
    assert caught.value.status == 408


def test_the_end_of_the_request_ends_a_read() -> None:
    async def run() -> Exception | None:
        reader = BodyReader(request_of(body(hangs=True)))
        found: list[Exception] = []

        def read_one() -> None:
            try:
                reader.read(1)
            except ClientDisconnect as error:
                found.append(error)

        thread = threading.Thread(target=read_one)
        thread.start()
        await asyncio.sleep(0.05)
        reader.end()
        await asyncio.to_thread(thread.join, 10)
        with pytest.raises(ClientDisconnect):
            await asyncio.to_thread(reader.read, 1)
        return found[0] if found else None

    assert isinstance(asyncio.run(run()), ClientDisconnect)
