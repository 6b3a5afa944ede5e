"""Handshake: fixed newstyle negotiation, up to the export that a client chose.

What a client may make us keep is small: options are handled one by one, and their data are bounded. No disk is opened before a client
names it, and on a listener with TLS none can be named before TLS is there (mode FORCEDTLS of the protocol).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import struct
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any, TypeVar

from imgstore.blocks import GuestDevice
from imgstore.errors import DeniedError, ImgstoreError, InUseError, InvalidError, NotFoundError
from imgstore.nbd.channel import Channel
from imgstore.nbd.exports import Exports, transmission_flags
from imgstore.nbd.protocol import (
    ALLOCATION,
    ALLOCATION_ID,
    BLOCK_SIZE_MIN,
    BLOCK_SIZE_PREFERRED,
    BLOCK_SIZES,
    CLIENT_FLAGS,
    COUNT,
    EXPORT,
    EXPORT_PADDING,
    GREETING,
    INFO,
    INIT_MAGIC,
    LENGTH,
    OPTION,
    OPTION_MAGIC,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    PAYLOAD_MAX,
    STRING_MAX,
    HandshakeFlag,
    Info,
    Option,
    OptionReply,
    TransmissionFlag,
)

OPTION_SIZE_MAX = 32 << 20
"""Bytes of an option's data that are thrown away if they are of no use; who sends more is dropped, as with QEMU."""

OPTION_SIZE_KEPT = 256 << 10
"""Bytes of an option's data that are read: the longest name, and all the items of information that 16 bits can count."""

_STATELESS = frozenset((Option.LIST, Option.STARTTLS, Option.STRUCTURED_REPLY))
"""Options that have no data."""

Answer = TypeVar("Answer")

_log = logging.getLogger(__name__)


class DroppedError(Exception):
    """The client did what it must not, and cannot be told so: the connection ends."""


@dataclass(frozen=True)
class Agreement:
    """What both sides know when the handshake is over.

    Attributes:
        device: open, and to be closed by who has this.
        structured: the client takes structured replies.
        allocation: it chose the metadata context ``base:allocation``.
    """

    device: GuestDevice
    structured: bool
    allocation: bool


class Handshake:
    """The handshake with one client.

    Args:
        tls: nothing is told to who is not encrypted by this; None: there is no TLS.
        executor: its threads open devices.
        limit: when the client's time is over; the time that we take to open a device is not the client's.
        settle: waits for devices that are just being given back; called before somebody is told that one is in use.
    """

    def __init__(
        self,
        channel: Channel,
        exports: Exports,
        tls: ssl.SSLContext | None,
        executor: Executor,
        limit: asyncio.Timeout,
        *,
        settle: Callable[[], Awaitable[None]],
    ) -> None:
        self._channel = channel
        self._exports = exports
        self._tls = tls
        self._executor = executor
        self._limit = limit
        self._settle = settle
        self._padded = True
        self._structured = False
        self._allocation_of: str | None = None
        """The export for which ``base:allocation`` was chosen."""

    async def negotiate(self) -> Agreement | None:
        """Answers options until one of them ends the handshake; None if the client then wants nothing more.

        Raises:
            DroppedError: it broke the rules.
            EOFError, OSError: it went.
        """
        flags = HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES
        await self._channel.send(GREETING.pack(INIT_MAGIC, OPTION_MAGIC, flags))
        (chosen,) = CLIENT_FLAGS.unpack(await self._channel.receive(CLIENT_FLAGS.size))
        if chosen & ~int(flags):  # ~ of a Flag has no unknown bits
            raise DroppedError(f"client flags {chosen:#x} are unknown")
        self._padded = not chosen & HandshakeFlag.NO_ZEROES
        while True:
            magic, option, length = OPTION.unpack(await self._channel.receive(OPTION.size))
            if magic != OPTION_MAGIC or length > OPTION_SIZE_MAX:
                raise DroppedError(f"option {option} with magic {magic!r} and {length} bytes of data")
            if option == Option.EXPORT_NAME:
                return await self._enter(length)
            if not chosen & HandshakeFlag.FIXED_NEWSTYLE:
                raise DroppedError(f"option {option} of a client that knows only EXPORT_NAME")
            if option == Option.ABORT:
                await self._channel.skip(length)
                await self._reply(option, OptionReply.ACK)
                return None
            agreed = await self._answer(option, length)
            if agreed is not None:
                return agreed

    async def _answer(self, option: int, length: int) -> Agreement | None:
        """Answers one option; returns what was agreed if it was the last one."""
        secret = self._tls is not None and not self._channel.encrypted
        if length > OPTION_SIZE_KEPT:
            await self._channel.skip(length)
            kind = OptionReply.ERR_TLS_REQD if secret else OptionReply.ERR_TOO_BIG
            await self._reply(option, kind, f"{length} bytes of data are more than {OPTION_SIZE_KEPT}")
            return None
        data = await self._channel.receive(length)
        if secret and option != Option.STARTTLS:
            await self._reply(option, OptionReply.ERR_TLS_REQD, "TLS comes first here")
        elif data and option in _STATELESS:
            await self._reply(option, OptionReply.ERR_INVALID, f"option {option} has no data")
        elif option == Option.STARTTLS:
            await self._start_tls(option)
        elif option == Option.LIST:
            await self._list(option)
        elif option == Option.STRUCTURED_REPLY:
            self._structured = True
            await self._reply(option, OptionReply.ACK)
        elif option in (Option.INFO, Option.GO):
            return await self._tell(option, data)
        elif option in (Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT):
            await self._choose_contexts(option, data)
        else:
            await self._reply(option, OptionReply.ERR_UNSUP, f"option {option} is unknown")
        return None

    async def _start_tls(self, option: int) -> None:
        if self._tls is None:
            await self._reply(option, OptionReply.ERR_POLICY, "there is no TLS here")
        elif self._channel.encrypted:
            await self._reply(option, OptionReply.ERR_INVALID, "TLS is there already")
        else:
            await self._reply(option, OptionReply.ACK)
            await self._channel.start_tls(self._tls)

    async def _list(self, option: int) -> None:
        try:
            exports = await self._run(lambda: list(self._exports.list()))
        except Exception as error:
            await self._refuse(option, error)
            return
        replies = bytearray()
        for name, description in exports:
            replies += _option_reply(option, OptionReply.SERVER, LENGTH.pack(len(name)) + name + description)
        await self._channel.send(bytes(replies) + _option_reply(option, OptionReply.ACK, b""))

    async def _tell(self, option: int, data: bytes) -> Agreement | None:
        """INFO and GO."""
        try:
            name, asked = _parse_info_request(data)
        except _MalformedError as error:
            await self._reply(option, error.kind, str(error))
            return None
        device = None
        try:
            if option == Option.GO:
                device = await self._open(name)
                size, flags = device.size, transmission_flags(read_only=device.read_only)
            else:
                size, flags = await self._run(self._exports.describe, name)
        except Exception as error:
            await self._refuse(option, error)
            return None
        with _closing_on_error(device, self._executor):
            if Info.NAME in asked:
                await self._inform(option, Info.NAME, name.encode())
            await self._inform(option, Info.BLOCK_SIZE, BLOCK_SIZES.pack(BLOCK_SIZE_MIN, BLOCK_SIZE_PREFERRED, PAYLOAD_MAX))
            await self._inform(option, Info.EXPORT, EXPORT.pack(size, self._offer(flags)))
            await self._reply(option, OptionReply.ACK)
        return None if device is None else self._agree(name, device)

    async def _enter(self, length: int) -> Agreement:
        """EXPORT_NAME, which has no reply for an error."""
        if self._tls is not None and not self._channel.encrypted:
            raise DroppedError("EXPORT_NAME before TLS")
        if length > STRING_MAX:
            raise DroppedError(f"a name of {length} bytes")
        try:
            name = (await self._channel.receive(length)).decode()
            device = await self._open(name)
        except (ImgstoreError, UnicodeError) as error:
            raise DroppedError(str(error)) from error
        flags = self._offer(transmission_flags(read_only=device.read_only))
        with _closing_on_error(device, self._executor):
            await self._channel.send(EXPORT.pack(device.size, flags) + (EXPORT_PADDING if self._padded else b""))
        return self._agree(name, device)

    async def _choose_contexts(self, option: int, data: bytes) -> None:
        """LIST_META_CONTEXT and SET_META_CONTEXT."""
        setting = option == Option.SET_META_CONTEXT
        if setting:
            self._allocation_of = None
        if not self._structured:
            await self._reply(option, OptionReply.ERR_INVALID, "metadata contexts need structured replies")
            return
        try:
            name, queries = _parse_context_request(data)
        except _MalformedError as error:
            await self._reply(option, error.kind, str(error))
            return
        try:
            await self._run(self._exports.describe, name)
        except Exception as error:
            await self._refuse(option, error)
            return
        if ALLOCATION in queries or (not setting and (not queries or b"base:" in queries)):
            if setting:
                self._allocation_of = name
            await self._reply_bytes(option, OptionReply.META_CONTEXT, LENGTH.pack(ALLOCATION_ID if setting else 0) + ALLOCATION)
        await self._reply(option, OptionReply.ACK)

    def _agree(self, name: str, device: GuestDevice) -> Agreement:
        return Agreement(device, self._structured, self._allocation_of == name)

    def _offer(self, flags: TransmissionFlag) -> TransmissionFlag:
        return flags | TransmissionFlag.SEND_DF if self._structured else flags

    async def _open(self, name: str) -> GuestDevice:
        try:
            return await self._open_now(name)
        except InUseError:
            with self._unhurried():
                await self._settle()
            return await self._open_now(name)

    async def _open_now(self, name: str) -> GuestDevice:
        opening = self._executor.submit(self._exports.open, name)
        try:
            return await self._wait(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_opened)
            raise

    async def _run(self, function: Callable[..., Answer], *words: Any) -> Answer:
        return await self._wait(self._executor.submit(function, *words))

    async def _wait(self, work: Future[Answer]) -> Answer:
        with self._unhurried():
            return await asyncio.wrap_future(work)

    @contextlib.contextmanager
    def _unhurried(self) -> Iterator[None]:
        """What is waited for inside the block is not the client's fault, and not of its time."""
        loop, end = asyncio.get_running_loop(), self._limit.when()
        begin = loop.time()
        self._limit.reschedule(None)
        try:
            yield
        finally:
            self._limit.reschedule(end and end + loop.time() - begin)

    async def _refuse(self, option: int, error: Exception) -> None:
        if not isinstance(error, ImgstoreError):
            _log.error("option %d failed", option, exc_info=error)
            await self._reply(option, OptionReply.ERR_PLATFORM, "an error that nobody expected; the server's log has it")
        elif isinstance(error, NotFoundError | InvalidError):
            await self._reply(option, OptionReply.ERR_UNKNOWN, str(error))
        elif isinstance(error, InUseError | DeniedError):
            await self._reply(option, OptionReply.ERR_POLICY, str(error))
        else:
            await self._reply(option, OptionReply.ERR_PLATFORM, str(error))

    async def _inform(self, option: int, info: Info, payload: bytes) -> None:
        await self._reply_bytes(option, OptionReply.INFO, INFO.pack(info) + payload)

    async def _reply(self, option: int, kind: OptionReply, message: str = "") -> None:
        await self._reply_bytes(option, kind, message.encode(errors="backslashreplace")[:STRING_MAX])

    async def _reply_bytes(self, option: int, kind: OptionReply, data: bytes) -> None:
        await self._channel.send(_option_reply(option, kind, data))


class _MalformedError(Exception):
    """An option's data are not what they should be."""

    def __init__(self, message: str, kind: OptionReply = OptionReply.ERR_INVALID) -> None:
        super().__init__(message)
        self.kind = kind


def _option_reply(option: int, kind: OptionReply, data: bytes) -> bytes:
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, kind, len(data)) + data


def _parse_info_request(data: bytes) -> tuple[str, set[int]]:
    """The export's name, and the numbers of the information asked for."""
    name, position = _parse_string(data, 0)
    count = _parse_number(COUNT, data, position)
    position += COUNT.size
    if len(data) - position != count * INFO.size:
        raise _MalformedError(f"{count} items of information in {len(data) - position} bytes")
    return _parse_name(name), {number for (number,) in INFO.iter_unpack(data[position:])}


def _parse_context_request(data: bytes) -> tuple[str, list[bytes]]:
    """The export's name, and the queries."""
    name, position = _parse_string(data, 0)
    count = _parse_number(LENGTH, data, position)
    position += LENGTH.size
    queries: list[bytes] = []
    for _ in range(count):
        query, position = _parse_string(data, position)
        queries.append(query)
    if position != len(data):
        raise _MalformedError(f"{len(data) - position} bytes are left behind the last query")
    return _parse_name(name), queries


def _parse_string(data: bytes, position: int) -> tuple[bytes, int]:
    length = _parse_number(LENGTH, data, position)
    position += LENGTH.size
    if length > len(data) - position:
        raise _MalformedError(f"a string of {length} bytes in {len(data) - position}")
    if length > STRING_MAX:
        raise _MalformedError(f"a string of {length} bytes is longer than {STRING_MAX}", OptionReply.ERR_TOO_BIG)
    return data[position : position + length], position + length


def _parse_number(form: struct.Struct, data: bytes, position: int) -> int:
    if position + form.size > len(data):
        raise _MalformedError(f"the data end after {len(data)} bytes, within a number")
    number: int = form.unpack_from(data, position)[0]
    return number


def _parse_name(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise _MalformedError("the export's name is not UTF-8") from None


@contextlib.contextmanager
def _closing_on_error(device: GuestDevice | None, executor: Executor) -> Iterator[None]:
    """Closes a device in a thread where its client went before it could have it."""
    try:
        yield
    except BaseException:
        if device is not None:
            executor.submit(device.close)
        raise


def _close_opened(opening: Future[GuestDevice]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
