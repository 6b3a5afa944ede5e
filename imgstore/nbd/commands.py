"""Commands: what each request asks of a device, and the reply to it.

What is refused is what QEMU's server refuses (``nbd/server.c``); the errors are those of the protocol's section "Error values", where QEMU
says EINVAL to all.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
from collections.abc import Iterator

from imgstore.blocks import Bytes, Extent, ExtentKind, GuestDevice
from imgstore.errors import DeniedError, ImgstoreError, InvalidError, NoSpaceError
from imgstore.nbd.protocol import (
    ALLOCATION_ID,
    CHUNK,
    CHUNK_DONE,
    DATA_CHUNK,
    ERROR_PAYLOAD,
    EXTENT,
    HOLE_CHUNK,
    LENGTH,
    PAYLOAD_MAX,
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    STRING_MAX,
    STRUCTURED_REPLY_MAGIC,
    Chunk,
    Command,
    CommandFlag,
    Error,
    Request,
    State,
)

Reply = list[Bytes]
"""What goes to the client, in parts."""

SPARSE_READ_MIN = 64 << 10
"""Bytes. Shorter reads are answered with their zeros: to look for a hole would cost more than it saves."""

READY_SIZE_MAX = 256 << 10
"""Bytes of a read that is looked for in memory; longer ones would keep the other clients waiting."""

READY_REPLY_MAX = READY_SIZE_MAX + (4 << 10)
"""Bytes of a reply to such a read. One with more holes than fit beside its data is put together in a thread."""

EXTENTS_MAX = 1 << 16
"""Extents that one reply has, 512 KiB of them; the client asks again for the rest."""

_CACHED_AT_ONCE = 1 << 20

_OFFSET_SIZE = 8  # bytes in the payload of a chunk, before the data
_OFFSET_DATA = Chunk.OFFSET_DATA.value
_pack_data_chunk = DATA_CHUNK.pack_into

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CHANGES = frozenset((Command.WRITE, Command.WRITE_ZEROES, Command.TRIM))
_KNOWN = frozenset(Command)
_FLAGS = {
    Command.READ: CommandFlag.FUA,
    Command.WRITE_ZEROES: CommandFlag.FUA | CommandFlag.NO_HOLE | CommandFlag.FAST_ZERO,
    Command.BLOCK_STATUS: CommandFlag.FUA | CommandFlag.REQ_ONE,
}

_log = logging.getLogger(__name__)


class Commands:
    """What one client may ask of its device. Safe for several threads.

    Args:
        structured: the client takes structured replies.
        allocation: it chose the metadata context ``base:allocation``.

    Attributes:
        size: of the device, in bytes.
        header_size: bytes before the contents of a read that is not sparse.
        dense_read_max: bytes of the longest read that is answered with all its bytes, holes or not, and looked for in memory.
    """

    def __init__(self, device: GuestDevice, *, structured: bool, allocation: bool) -> None:
        self.device = device
        self.structured = structured
        self.size = device.size
        self.header_size = DATA_CHUNK.size if structured else SIMPLE_REPLY.size
        self.dense_read_max = SPARSE_READ_MIN - 1 if structured else READY_SIZE_MAX
        self._read_only = device.read_only
        self._allocation = allocation

    def refusal(self, request: Request) -> Reply | None:
        """The reply to a request that cannot be, whatever the device has; None if it can."""
        flags, command, _, offset, length = request
        if command not in _KNOWN:
            return self.error(request, Error.EINVAL, f"command {command} is unknown")
        if command in (Command.READ, Command.WRITE, Command.CACHE) and length > PAYLOAD_MAX:
            return self.error(request, Error.EINVAL, f"{length} bytes are more than {PAYLOAD_MAX}")
        if self._read_only and command in _CHANGES:
            return self.error(request, Error.EPERM, "the export is read-only")
        if offset + length > self.size:
            kind = Error.ENOSPC if command in (Command.WRITE, Command.WRITE_ZEROES) else Error.EINVAL
            return self.error(request, kind, f"bytes {offset}..{offset + length} are not inside an export of {self.size}")
        valid = _FLAGS.get(Command(command), CommandFlag.FUA)
        if self.structured and command == Command.READ:
            valid |= CommandFlag.DF
        if flags & ~int(valid):  # ~ of a Flag has no unknown bits
            return self.error(request, Error.EINVAL, f"flags {flags:#x} do not go with command {command}")
        if command == Command.BLOCK_STATUS and not (self._allocation and length):
            reason = "the length is 0" if self._allocation else "no metadata context was chosen"
            return self.error(request, Error.EINVAL, reason)
        if flags & CommandFlag.FAST_ZERO and flags & CommandFlag.NO_HOLE:
            return self.error(request, Error.ENOTSUP, "zeros that take space are not written faster than others")
        return None

    def perform(self, request: Request, data: Bytes) -> Reply:
        """Does what was asked, which may take long, and returns the reply; also that to a failure.

        Args:
            data: what a write writes, else empty.
        """
        try:
            return self._perform(request, data)
        except ImgstoreError as error:
            _log.debug("command %d of bytes %d..+%d: %s", request.command, request.offset, request.length, error)
            return self.error(request, _kind_of(error), str(error))
        except OSError as error:
            kind = Error.ENOSPC if error.errno in _NO_SPACE else Error.EIO
            return self.error(request, kind, error.strerror or "the storage failed")
        except Exception:
            _log.exception("command %d of bytes %d..+%d failed", request.command, request.offset, request.length)
            return self.error(request, Error.EIO, "an error that nobody expected; the server's log has it")

    def read_now(self, request: Request, out: memoryview) -> int:
        """Puts the reply to a read whose contents are in memory into ``out``, which has room for `READY_REPLY_MAX` bytes.

        Never waits. To look for the holes of a disk that is written would: its file is asked for them.

        Returns:
            Bytes of the reply; 0 where `perform` must be asked, because it would have to wait, or fail.
        """
        _, _, cookie, offset, length = request
        if not 0 < length <= READY_SIZE_MAX:
            return 0
        with contextlib.suppress(Exception):  # `perform` meets the same error, and tells it
            if self._may_be_sparse(request):
                return self._read_sparse_now(request, out) if self._read_only else 0
            end = self.header_size + length
            if self.device.read_ready_into(offset, out[self.header_size : end]):
                self.pack_header(out, 0, cookie, offset, length)
                return end
        return 0

    def pack_header(self, out: memoryview, position: int, cookie: int, offset: int, length: int) -> None:
        """Puts what comes before the contents of a read, at least one byte, into ``out``: ``header_size`` bytes."""
        if self.structured:
            _pack_data_chunk(
                out, position, STRUCTURED_REPLY_MAGIC, CHUNK_DONE, _OFFSET_DATA, cookie, length + _OFFSET_SIZE, offset
            )
        else:
            SIMPLE_REPLY.pack_into(out, position, SIMPLE_REPLY_MAGIC, 0, cookie)

    def error(self, request: Request, error: Error, message: str) -> Reply:
        """The reply to a request that failed."""
        if not self.structured:
            return [SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error, request.cookie)]
        words = message.encode(errors="backslashreplace")[:STRING_MAX]
        payload = ERROR_PAYLOAD.pack(error, len(words)) + words
        return [CHUNK.pack(STRUCTURED_REPLY_MAGIC, CHUNK_DONE, Chunk.ERROR, request.cookie, len(payload)) + payload]

    def _perform(self, request: Request, data: Bytes) -> Reply:
        flags, command, cookie, offset, length = request
        device = self.device
        if command == Command.READ:
            return self._read(request)
        if command == Command.BLOCK_STATUS:
            return [self._block_status(request)]
        if command == Command.CACHE:
            for start in range(offset, offset + length, _CACHED_AT_ONCE):
                device.read(start, min(_CACHED_AT_ONCE, offset + length - start))
        elif command == Command.WRITE:
            device.write(offset, data)
        elif command == Command.WRITE_ZEROES:
            device.zero(offset, length, keep_space=bool(flags & CommandFlag.NO_HOLE))
        elif command == Command.TRIM:
            device.trim(offset, length)
        if not self._read_only and (command == Command.FLUSH or (flags & CommandFlag.FUA and command in _CHANGES)):
            device.flush()
        return [SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, 0, cookie)]

    def _read(self, request: Request) -> Reply:
        _, _, cookie, offset, length = request
        if not length:
            return [self._end(cookie)]
        if self._may_be_sparse(request):
            return self._read_sparse(request)
        header = memoryview(bytearray(self.header_size))
        self.pack_header(header, 0, cookie, offset, length)
        return [header, self.device.read(offset, length)]

    def _may_be_sparse(self, request: Request) -> bool:
        return self.structured and request.length >= SPARSE_READ_MIN and not request.flags & CommandFlag.DF

    def _read_sparse(self, request: Request) -> Reply:
        """Contents as chunks of data and of holes."""
        reply: Reply = []
        for header, extent in self._chunks(request):
            reply.append(header)
            if extent.kind is ExtentKind.DATA:
                reply.append(self.device.read(extent.offset, extent.length))
        return reply

    def _read_sparse_now(self, request: Request, out: memoryview) -> int:
        position = 0
        for header, extent in self._chunks(request):
            begin = position + len(header)
            end = begin + (extent.length if extent.kind is ExtentKind.DATA else 0)
            if end > len(out):
                return 0
            out[position:begin] = header
            if end > begin and not self.device.read_ready_into(extent.offset, out[begin:end]):
                return 0
            position = end
        return position

    def _chunks(self, request: Request) -> Iterator[tuple[bytes, Extent]]:
        """The chunks of a read: what comes before the contents of each, and what it is of."""
        _, _, cookie, offset, length = request
        for extent in _runs(self.device.extents(offset, length)):
            start, size, kind = extent
            flags = CHUNK_DONE if start + size == offset + length else 0
            if kind is ExtentKind.HOLE:
                yield HOLE_CHUNK.pack(STRUCTURED_REPLY_MAGIC, flags, Chunk.OFFSET_HOLE, cookie, 12, start, size), extent
            else:
                payload = size + _OFFSET_SIZE
                yield DATA_CHUNK.pack(STRUCTURED_REPLY_MAGIC, flags, Chunk.OFFSET_DATA, cookie, payload, start), extent

    def _block_status(self, request: Request) -> bytes:
        _, _, cookie, offset, length = request
        one = bool(request.flags & CommandFlag.REQ_ONE)
        extents = bytearray(LENGTH.pack(ALLOCATION_ID))
        for _, size, kind in itertools.islice(_runs(self.device.extents(offset, length)), 1 if one else EXTENTS_MAX):
            extents += EXTENT.pack(size, State.HOLE | State.ZERO if kind is ExtentKind.HOLE else 0)
        return CHUNK.pack(STRUCTURED_REPLY_MAGIC, CHUNK_DONE, Chunk.BLOCK_STATUS, cookie, len(extents)) + extents

    def _end(self, cookie: int) -> bytes:
        if self.structured:
            return CHUNK.pack(STRUCTURED_REPLY_MAGIC, CHUNK_DONE, Chunk.NONE, cookie, 0)
        return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, 0, cookie)


def _runs(extents: Iterator[Extent]) -> Iterator[Extent]:
    """The same with neighbours of one kind as one."""
    current: Extent | None = None
    for extent in extents:
        if current is None:
            current = extent
        elif extent.kind is current.kind:
            current = Extent(current.offset, current.length + extent.length, current.kind)
        else:
            yield current
            current = extent
    if current is not None:
        yield current


def _kind_of(error: ImgstoreError) -> Error:
    if isinstance(error, DeniedError):
        return Error.EPERM
    if isinstance(error, NoSpaceError):
        return Error.ENOSPC
    return Error.EINVAL if isinstance(error, InvalidError) else Error.EIO
