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
from imgstore.nbd.commands import READY_REPLY_MAX, Commands, Reply
from imgstore.nbd.protocol import PAYLOAD_MAX, REQUEST, REQUEST_MAGIC, Command, Request

JOBS_MAX = 16
"""Requests in threads at once, as with QEMU."""

JOB_SIZE_MAX = PAYLOAD_MAX
"""Bytes that these may carry or read together."""

TURN_SIZE_MAX = 1 << 20
"""Bytes of replies after which the other clients have their turn."""

_OUT_SIZE = 2 * READY_REPLY_MAX
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
        self._descriptor = self._socket.fileno()
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
        self._out = memoryview(bytearray(_OUT_SIZE))
        """Replies of what was in memory, put together where they are sent from."""
        self._out_start = self._out_end = 0
        self._queue: Reply = []
        """Parts of replies from threads, and of errors. Sent when nothing is left in ``_out``."""
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
        self._loop.call_soon(self._receive)  # TLS may have read ahead
        try:
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
        self._out_start = self._out_end = 0
        self._queue.clear()
        self._watch(reading=False, writing=False)
        self._end_if_idle()

    def _receive(self) -> None:
        """Takes what has arrived; called when there may be something."""
        if self._is_last:
            return
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
        if self._end == len(received):
            return -1  # requests that wait; to receive into no room would look like the end
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
        received, end, out = self._received, self._end, self._out
        read_ready_into, pack_header = self._commands.device.read_ready_into, self._commands.pack_header
        size, dense_read_max, header_size = self._commands.size, self._commands.dense_read_max, self._commands.header_size
        start, answered = self._start, 0
        if self._skipped:
            start = self._skip(start)
        while end - start >= _REQUEST_SIZE:
            if answered >= TURN_SIZE_MAX:
                self._start = start
                self._loop.call_soon(self._advance)
                return True
            if self._out_end > READY_REPLY_MAX and not self._send():
                self._start = start
                return True
            magic, flags, command, cookie, offset, length = _unpack(received, start)
            # What nearly all requests are, in as few steps as can be: a short read of what is in memory.
            if command == 0 == flags and 0 < length <= dense_read_max and offset + length <= size and magic == REQUEST_MAGIC:
                position = self._out_end
                begin = position + header_size
                try:
                    ready = read_ready_into(offset, out[begin : begin + length])
                except Exception:
                    ready = False  # a thread meets the same error, and tells it
                if ready:
                    pack_header(out, position, cookie, offset, length)
                    self._out_end = begin + length
                    answered += length
                    start += _REQUEST_SIZE
                    continue
            if magic != REQUEST_MAGIC:
                _log.debug("a request begins with %#x, not %#x", magic, REQUEST_MAGIC)
                self.abort()
                return False
            request = Request(flags, command, cookie, offset, length)
            answer = self._answer_now(request)
            if answer is None and not self._has_room(request):
                self._start = start
                return True
            start += _REQUEST_SIZE
            answered += answer or 0
            if command == Command.DISC:
                self._is_last = True
                break
            if command == Command.WRITE:
                self._start = start
                if answer is None:
                    self._begin_payload(request)
                    if not self._end_payload():
                        return False
                    start = self._start
                else:
                    self._skipped = length
                    start = self._skip(start)
            elif answer is None:
                self._begin_job(request, b"")
        self._start = start
        return False

    def _answer_now(self, request: Request) -> int | None:
        """Answers what needs no waiting; returns bytes of the reply, or None for what has to go to a thread."""
        if request.command == Command.DISC:
            return 0
        refusal = self._commands.refusal(request)
        if refusal is not None:
            self._queue += refusal
            return sum(map(len, refusal))
        if request.command == Command.READ and (size := self._commands.read_now(request, self._out[self._out_end :])):
            self._out_end += size
            return size
        return None

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
        """Sends the replies there are; returns whether the kernel took all of them. Else it goes on when that can take more."""
        try:
            while self._out_end:
                self._out_start += self._socket.send(self._out[self._out_start : self._out_end])
                if self._out_start == self._out_end:
                    self._out_start = self._out_end = 0
            if self._queue:
                self._send_queue()
        except BLOCKED:
            self._watch(reading=False, writing=True)
            return False
        except OSError as error:
            _log.debug("a client was lost: %s", error)
            self.abort()
            return False
        return True

    def _send_queue(self) -> None:
        queue = self._queue
        while queue:
            if self._encrypted is None:
                sent = self._socket.sendmsg(queue[:_PARTS_MAX])
            else:
                if len(queue) > 1:
                    queue[:] = [b"".join(queue)]  # full records; OpenSSL wants the same bytes again where it had to wait
                sent = self._socket.send(queue[0])
            _drop(queue, sent)

    def _watch(self, *, reading: bool, writing: bool) -> None:
        """Says what of the socket is waited for; nothing else is."""
        was_reading, was_writing = self._watched
        if reading and not was_reading:
            self._loop.add_reader(self._descriptor, self._receive)
        elif was_reading and not reading:
            self._loop.remove_reader(self._descriptor)
        if writing and not was_writing:
            self._loop.add_writer(self._descriptor, self._advance)
        elif was_writing and not writing:
            self._loop.remove_writer(self._descriptor)
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
