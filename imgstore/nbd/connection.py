"""Connection: the transmission phase of one client, from its first request to its last reply.

It works on the socket itself, not on a stream of asyncio: what arrived at once is answered at once, with one system call to receive many
requests and one to send their replies, and what is in the page cache needs no thread and no task. All else is done in threads.

A client is slowed down, never remembered: while it has not taken its replies, or has asked for as much as may be under way, nothing more
is read from its socket.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from concurrent.futures import Executor

from imgstore.blocks import Bytes
from imgstore.nbd.channel import BLOCKED, Channel
from imgstore.nbd.commands import Commands, Reply
from imgstore.nbd.protocol import PAYLOAD_MAX, REQUEST, REQUEST_MAGIC, Command, Request

JOBS_MAX = 16
"""Requests in threads at once, as with QEMU."""

JOB_SIZE_MAX = PAYLOAD_MAX
"""Bytes that these may carry or read together."""

QUEUE_SIZE_MAX = 1 << 20
"""Bytes of replies after which the next requests wait until these are sent."""

_RECEIVE_SIZE = 64 << 10
_PARTS_MAX = 1024  # IOV_MAX
_PAYLOAD_STEP = 1 << 20
"""Bytes of a payload for which memory is taken before any of them are there."""

_unpack = REQUEST.unpack_from
_REQUEST_SIZE = REQUEST.size

_log = logging.getLogger(__name__)


class Connection:
    """One client and its device.

    Args:
        executor: its threads do what has to wait.
    """

    def __init__(self, channel: Channel, commands: Commands, executor: Executor) -> None:
        self._socket = channel.socket
        self._encrypted = self._socket if isinstance(self._socket, ssl.SSLSocket) else None
        self._commands = commands
        self._executor = executor
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        self._watched = (False, False)
        self._received = bytearray(_RECEIVE_SIZE)
        self._start = self._end = 0
        self._writing: Request | None = None
        self._payload = Payload(0)
        self._skipped = 0
        """Bytes of a refused payload that are still to come."""
        self._queue: Reply = []
        self._jobs = 0
        self._job_size = 0
        self._is_read_up = False
        """The client sends nothing more."""
        self._is_last = False
        """Nothing more of what it sent is looked at."""
        self._is_lost = False
        """It gets nothing more."""

    @property
    def is_ending(self) -> bool:
        """Whether nothing new is begun."""
        return self._is_last

    async def serve(self) -> None:
        """Returns when the client went, or after `stop`, and when all that was under way is done."""
        try:
            self._receive()  # TLS may have read ahead
            await self._ended
        finally:
            self._watch(reading=False, writing=False)

    def stop(self) -> None:
        """Takes no more requests; those that are under way are still answered."""
        self._is_last = True
        self._advance()

    def abort(self) -> None:
        """Answers nothing more. What is under way is still done."""
        self._is_last = self._is_lost = True
        self._queue.clear()
        self._watch(reading=False, writing=False)
        self._end_if_idle()

    def _receive(self) -> None:
        """Takes what has arrived; called when there may be something."""
        try:
            count = self._payload.receive(self._socket) if self._writing is not None else self._receive_requests()
        except BLOCKED:
            count = -1
        except OSError as error:
            _log.debug("a client was lost: %s", error)
            self.abort()
            return
        self._is_read_up = not count
        self._advance()

    def _receive_requests(self) -> int:
        received = self._received
        if self._start:
            rest = self._end - self._start
            received[:rest] = received[self._start : self._end]
            self._start, self._end = 0, rest
        with memoryview(received) as view:
            count = self._socket.recv_into(view[self._end :])
        self._end += count
        return count

    def _advance(self) -> None:
        """Begins what has arrived, as far as it may, and sends what is done."""
        if self._is_lost or not self._send():
            return
        waits = not self._is_last and self._parse()
        if self._is_lost or not self._send():
            return
        if waits:
            self._watch(reading=False, writing=False)
        elif self._is_last or self._is_read_up:
            self._is_last = True
            self._watch(reading=False, writing=False)
            self._end_if_idle()
        else:
            self._watch(reading=True, writing=False)
            if self._encrypted is not None and self._encrypted.pending():
                self._loop.call_soon(self._receive)

    def _parse(self) -> bool:
        """Begins the requests that have arrived whole; returns whether one of them has to wait."""
        if self._writing is not None and not self._end_payload():
            return False
        received, end, queue = self._received, self._end, self._queue
        read_ready, data_header = self._commands.device.read_ready, self._commands.data_header
        size, dense_read_max = self._commands.size, self._commands.dense_read_max
        start, queued = self._start, 0
        if self._skipped:
            start = self._skip(start)
        while end - start >= _REQUEST_SIZE:
            if queued >= QUEUE_SIZE_MAX:
                self._start = start
                self._loop.call_soon(self._advance)  # the other clients first
                return True
            magic, flags, command, cookie, offset, length = _unpack(received, start)
            # What nearly all requests are, in as few steps as can be: a short read of what is in memory.
            if command == 0 == flags and 0 < length <= dense_read_max and offset + length <= size and magic == REQUEST_MAGIC:
                try:
                    data = read_ready(offset, length)
                except Exception:
                    data = None  # a thread meets the same error, and tells it
                if data is not None:
                    queue.append(data_header(cookie, offset, length))
                    queue.append(data)
                    queued += length + _REQUEST_SIZE
                    start += _REQUEST_SIZE
                    continue
            if magic != REQUEST_MAGIC:
                _log.debug("a request begins with %#x, not %#x", magic, REQUEST_MAGIC)
                self.abort()
                return False
            request = Request(flags, command, cookie, offset, length)
            ready = self._answer_now(request)
            if ready is not None:
                queue += ready
                queued += sum(map(len, ready))
            elif not self._has_room(request):
                self._start = start
                return True
            start += _REQUEST_SIZE
            if command == Command.DISC:
                self._is_last = True
                break
            if command == Command.WRITE:
                self._start = start
                if ready is None:
                    self._begin_payload(request)
                    if not self._end_payload():
                        return False
                    start = self._start
                else:
                    self._skipped = length
                    start = self._skip(start)
            elif ready is None:
                self._begin_job(request, b"")
        self._start = start
        return False

    def _answer_now(self, request: Request) -> Reply | None:
        """The reply to what needs no waiting, empty for none; None for what has to go to a thread."""
        if request.command == Command.DISC:
            return []
        refusal = self._commands.refusal(request)
        if refusal is None and request.command == Command.READ:
            return self._commands.read_now(request)
        return refusal

    def _has_room(self, request: Request) -> bool:
        if self._jobs == JOBS_MAX:
            return False
        return not self._jobs or self._job_size + _memory_of(request) <= JOB_SIZE_MAX

    def _skip(self, start: int) -> int:
        """Goes on behind the bytes of a refused payload that are there."""
        take = min(self._skipped, self._end - start)
        self._skipped -= take
        return start + take

    def _begin_payload(self, request: Request) -> None:
        self._writing, self._payload = request, Payload(request.length)
        with memoryview(self._received) as view:
            self._start += self._payload.add(view[self._start : self._end])

    def _end_payload(self) -> bool:
        """Hands on the write whose payload was being received; returns whether that is whole."""
        if not self._payload.is_whole or self._writing is None:
            return False
        request, self._writing = self._writing, None
        self._begin_job(request, self._payload.data)
        return True

    def _begin_job(self, request: Request, data: Bytes) -> None:
        self._jobs += 1
        self._job_size += _memory_of(request)
        self._executor.submit(self._work, request, data)

    def _work(self, request: Request, data: Bytes) -> None:
        reply = self._commands.perform(request, data)
        self._loop.call_soon_threadsafe(self._end_job, request, reply)

    def _end_job(self, request: Request, reply: Reply) -> None:
        self._jobs -= 1
        self._job_size -= _memory_of(request)
        if self._is_lost:
            self._end_if_idle()
        else:
            self._queue += reply
            self._advance()

    def _end_if_idle(self) -> None:
        if not self._jobs and not self._ended.done():
            self._ended.set_result(None)

    def _send(self) -> bool:
        """Sends what is in the queue; returns whether the kernel took all of it. Else it is called again when that can take more."""
        queue = self._queue
        try:
            while queue:
                if self._encrypted is None:
                    sent = self._socket.sendmsg(queue if len(queue) <= _PARTS_MAX else queue[:_PARTS_MAX])
                else:
                    if len(queue) > 1:
                        queue[:] = [b"".join(queue)]  # full records; OpenSSL wants the same bytes again where it had to wait
                    sent = self._socket.send(queue[0])
                _drop(queue, sent)
        except BLOCKED:
            self._watch(reading=False, writing=True)
            return False
        except OSError as error:
            _log.debug("a client was lost: %s", error)
            self.abort()
            return False
        return True

    def _watch(self, *, reading: bool, writing: bool) -> None:
        """Says what of the socket is waited for; nothing else is."""
        was_reading, was_writing = self._watched
        if reading and not was_reading:
            self._loop.add_reader(self._socket, self._receive)
        elif was_reading and not reading:
            self._loop.remove_reader(self._socket)
        if writing and not was_writing:
            self._loop.add_writer(self._socket, self._advance)
        elif was_writing and not writing:
            self._loop.remove_writer(self._socket)
        self._watched = (reading, writing)


class Payload:
    """The data of one write while they arrive. Takes memory as they do, not as they are announced."""

    def __init__(self, length: int) -> None:
        self.data = bytearray(min(length, _PAYLOAD_STEP))
        self._length = length
        self._filled = 0

    @property
    def is_whole(self) -> bool:
        """Whether ``data`` is all of it."""
        return self._filled == self._length

    def add(self, received: memoryview) -> int:
        """Takes what it can use of the bytes that are there already, and returns how many these were."""
        count = min(len(received), len(self.data))
        self.data[:count] = received[:count]
        self._filled = count
        return count

    def receive(self, connection: socket.socket) -> int:
        """Receives into what is missing; the count of bytes, as ``recv_into``."""
        if self._filled == len(self.data):
            self.data += bytes(min(len(self.data), self._length - self._filled))
        with memoryview(self.data) as view:
            count = connection.recv_into(view[self._filled :])
        self._filled += count
        return count


def _memory_of(request: Request) -> int:
    return request.length if request.command in (Command.READ, Command.WRITE) else 0


def _drop(queue: Reply, sent: int) -> None:
    """Removes the bytes that were sent."""
    whole = 0
    for part in queue:
        if sent < len(part):
            break
        sent -= len(part)
        whole += 1
    del queue[:whole]
    if sent:
        queue[0] = memoryview(queue[0])[sent:]
