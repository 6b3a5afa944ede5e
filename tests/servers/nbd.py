"""An NBD server in a thread, of devices in memory that can stall and fail, and a client that says whatever it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from imgstore.answers import DeviceInfo
from imgstore.blocks import Bytes, Extent, GuestDevice, MemoryBlockDevice
from imgstore.errors import DeniedError, InUseError, NotFoundError
from imgstore.listeners import Listener
from imgstore.nbd import protocol
from imgstore.nbd.exports import Devices, Exports
from imgstore.nbd.protocol import Chunk, Command, Option, OptionReply
from imgstore.nbd.server import Server
from tests import tools

SIZE = 8 << 20
TIME_MAX = 20.0


class Disk:
    """A device in memory.

    Attributes:
        gate: reads and writes in threads wait while it is not set.
        ready: whether reads can do without a thread.
        error: what reads, writes and flushes raise.
        closing_seconds: how long ``close`` takes.
        calls: what was called, beside reads.
    """

    def __init__(self, size: int = SIZE, *, read_only: bool = False) -> None:
        self.memory = MemoryBlockDevice(size)
        self.size, self.read_only = size, read_only
        self.gate = threading.Event()
        self.gate.set()
        self.ready = True
        self.error: Exception | None = None
        self.closing_seconds = 0.0
        self.calls: list[str] = []
        self.opened = 0
        self._lock = threading.Lock()

    def read(self, offset: int, length: int) -> bytes:
        self._wait()
        with self._lock:
            return self.memory.read(offset, length)

    def read_ready_into(self, offset: int, buffer: memoryview) -> bool:
        if not self.ready or self.error or not self.gate.is_set():
            return False
        buffer[:] = self.read(offset, len(buffer))
        return True

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        return self.memory.extents(offset, length)

    def write(self, offset: int, data: Bytes) -> None:
        self._change("write")
        with self._lock:
            self.memory.write(offset, data)

    def zero(self, offset: int, length: int, *, keep_space: bool = False) -> None:
        self._change(f"zero keep_space={keep_space}")
        with self._lock:
            self.memory.write(offset, bytes(length))

    def trim(self, offset: int, length: int) -> None:
        self._change("trim")

    def flush(self) -> None:
        self._change("flush")

    def close(self) -> None:
        time.sleep(self.closing_seconds)
        self.calls.append("close")
        self.opened -= 1
        if self.error is not None:
            raise self.error

    def _change(self, what: str) -> None:
        if self.read_only and what != "flush":
            raise DeniedError("the disk is read-only")
        self._wait()
        self.calls.append(what)

    def _wait(self) -> None:
        assert self.gate.wait(TIME_MAX)
        if self.error is not None:
            raise self.error


class Disks(dict[str, Disk]):
    """Devices by name. Who can be written can be open once."""

    def open_device(self, name: str, *, read_only: bool = False) -> GuestDevice:
        if name not in self:
            raise NotFoundError(f"No such device: {name}")
        disk = self[name]
        if read_only:
            return Disk(disk.size, read_only=True)
        if disk.opened and not disk.read_only:
            raise InUseError(f"{name}: in use")
        disk.opened += 1
        return disk

    def device_info(self, name: str) -> DeviceInfo:
        if name not in self:
            raise NotFoundError(f"No such device: {name}")
        return DeviceInfo(name, self[name].size, self[name].read_only, f"disk {name}")

    def devices(self) -> list[DeviceInfo]:
        return [self.device_info(name) for name in self]


@dataclass
class NbdEndpoint:
    """A server that listens on a Unix socket and a TCP port of this machine."""

    path: Path
    port: int
    server: Server

    def uri(self, name: str) -> str:
        return f"nbd+unix:///{name}?socket={self.path}"

    def connect(self) -> Wire:
        return Wire(connect(self.path))

    def wait_for(self, clients: int) -> None:
        """Waits until it has so many clients."""
        deadline = time.monotonic() + TIME_MAX
        while len(self.server._clients) != clients:
            assert time.monotonic() < deadline
            time.sleep(0.005)


@contextlib.contextmanager
def nbd_server(
    disks: Devices,
    *,
    tls: ssl.SSLContext | None = None,
    handshake_seconds: float = 10.0,
    names: Sequence[str] = (),
    read_only: bool = False,
) -> Iterator[NbdEndpoint]:
    """Serves until the end of the block. TLS is for both of its sockets."""
    with tempfile.TemporaryDirectory(prefix="imgstore-nbd-") as directory:
        path = Path(directory) / "nbd.sock"
        with socket.socket(socket.AF_UNIX) as unix, socket.create_server(("127.0.0.1", 0)) as tcp:
            unix.bind(str(path))
            unix.listen(256)
            listeners = [Listener(unix, f"unix://{path}", tls), Listener(tcp, "tcp://127.0.0.1", tls)]
            started, loop = threading.Event(), asyncio.new_event_loop()
            server = Server(Exports(disks, names, read_only), listeners, handshake_seconds=handshake_seconds)
            ended = asyncio.Event()

            async def serve() -> None:
                await server.start()
                started.set()
                await ended.wait()
                await server.stop()

            thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), name="nbd-server")
            thread.start()
            try:
                assert started.wait(TIME_MAX)
                yield NbdEndpoint(path, tcp.getsockname()[1], server)
            finally:
                loop.call_soon_threadsafe(ended.set)
                thread.join()
                loop.close()


def connect(path: Path) -> socket.socket:
    """A plain connection."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(TIME_MAX)
    connection.connect(str(path))
    return connection


@dataclass
class Reply:
    """What a request was answered.

    Attributes:
        error: 0, or the number of the last error.
        message: its words; empty in a simple reply.
        data: of a read; holes are zeros.
        chunks: types of the chunks, in order; None for a simple reply.
        extents: of a block status.
    """

    cookie: int
    error: int = 0
    message: str = ""
    data: bytes = b""
    chunks: list[int] | None = None
    extents: list[tuple[int, int]] = field(default_factory=list)


class Wire:
    """A client that sends what it is told to, right or wrong. Closes its socket at the end of a ``with`` block."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._cookies = itertools.count(1)
        self._reads: dict[int, tuple[int, int]] = {}
        self.structured = False

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *rest: object) -> None:
        self.socket.close()

    def receive(self, length: int) -> bytes:
        """Exactly so many bytes; EOFError where the server closed the connection."""
        received = bytearray()
        while len(received) < length:
            try:
                part = self.socket.recv(length - len(received))
            except ConnectionResetError:
                part = b""
            if not part:
                raise EOFError
            received += part
        return bytes(received)

    def is_dropped(self) -> bool:
        """Whether the server closes the connection, once it has said all that it wanted to."""
        with contextlib.suppress(ConnectionResetError):
            while self.socket.recv(1 << 16):
                pass
        return True

    def greet(self, flags: int = 3) -> int:
        """The greeting; returns the server's flags."""
        magic, option_magic, offered = protocol.GREETING.unpack(self.receive(protocol.GREETING.size))
        assert (magic, option_magic) == (b"NBDMAGIC", b"IHAVEOPT")
        self.socket.sendall(protocol.CLIENT_FLAGS.pack(flags))
        return int(offered)

    def send_option(self, option: int, data: bytes = b"", *, magic: bytes = b"IHAVEOPT", length: int | None = None) -> None:
        self.socket.sendall(protocol.OPTION.pack(magic, option, len(data) if length is None else length) + data)

    def option_replies(self, option: int) -> list[tuple[int, bytes]]:
        """All replies to an option, the last one an ACK or an error."""
        replies: list[tuple[int, bytes]] = []
        while not replies or (replies[-1][0] != OptionReply.ACK and replies[-1][0] < 1 << 31):
            magic, answered, kind, length = protocol.OPTION_REPLY.unpack(self.receive(protocol.OPTION_REPLY.size))
            assert (magic, answered) == (protocol.OPTION_REPLY_MAGIC, option)
            replies.append((kind, self.receive(length)))
        return replies

    def ask(self, option: int, data: bytes = b"", *, length: int | None = None) -> list[tuple[int, bytes]]:
        self.send_option(option, data, length=length)
        return self.option_replies(option)

    def answer(self, option: int, data: bytes = b"") -> int:
        """The type of the last reply to an option."""
        return self.ask(option, data)[-1][0]

    def go(self, name: str, *, structured: bool = True, context: bool = True) -> tuple[int, int]:
        """From the greeting to the transmission; returns the export's size and flags."""
        self.greet()
        self.structured = structured
        if structured:
            assert self.answer(Option.STRUCTURED_REPLY) == OptionReply.ACK
        if structured and context:
            replies = self.ask(Option.SET_META_CONTEXT, context_request(name, protocol.ALLOCATION))
            assert [kind for kind, _ in replies] == [OptionReply.META_CONTEXT, OptionReply.ACK]
        replies = self.ask(Option.GO, info_request(name))
        assert replies[-1][0] == OptionReply.ACK, replies
        (export,) = (data for kind, data in replies if kind == OptionReply.INFO and data[:2] == b"\0\0")
        size, flags = protocol.EXPORT.unpack(export[2:])
        return size, flags

    def send(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        *,
        flags: int = 0,
        data: bytes = b"",
        magic: int = protocol.REQUEST_MAGIC,
    ) -> int:
        """Sends a request, and returns its cookie."""
        cookie = next(self._cookies)
        if command == Command.READ:
            self._reads[cookie] = (offset, length)
        self.socket.sendall(protocol.REQUEST.pack(magic, flags, command, cookie, offset, length) + data)
        return cookie

    def reply(self) -> Reply:
        """The next reply, whole; replies of several chunks must not be mixed."""
        (magic,) = protocol.LENGTH.unpack(self.receive(4))
        if magic == protocol.SIMPLE_REPLY_MAGIC:
            _, error, cookie = protocol.SIMPLE_REPLY.unpack(protocol.LENGTH.pack(magic) + self.receive(12))
            _, length = self._reads.pop(cookie, (0, 0))
            return Reply(cookie, error, data=b"" if error or self.structured else self.receive(length))
        reply, done = Reply(0, chunks=[]), False
        data = bytearray()
        assert reply.chunks is not None
        while not done:
            assert magic == protocol.STRUCTURED_REPLY_MAGIC
            _, flags, kind, reply.cookie, length = protocol.CHUNK.unpack(protocol.LENGTH.pack(magic) + self.receive(16))
            self._take_chunk(reply, kind, self.receive(length), data)
            done = bool(flags & protocol.CHUNK_DONE)
            if not done:
                (magic,) = protocol.LENGTH.unpack(self.receive(4))
        reply.data = bytes(data)
        return reply

    def _take_chunk(self, reply: Reply, kind: int, payload: bytes, data: bytearray) -> None:
        assert reply.chunks is not None
        reply.chunks.append(kind)
        if kind & 1 << 15:
            reply.error, length = protocol.ERROR_PAYLOAD.unpack_from(payload)
            reply.message = payload[6 : 6 + length].decode()
        elif kind == Chunk.BLOCK_STATUS:
            reply.extents = list(protocol.EXTENT.iter_unpack(payload[4:]))
        elif kind in (Chunk.OFFSET_DATA, Chunk.OFFSET_HOLE):
            start, total = self._reads[reply.cookie]
            data.extend(bytes(total - len(data)))
            at = int.from_bytes(payload[:8], "big") - start
            size = len(payload) - 8 if kind == Chunk.OFFSET_DATA else int.from_bytes(payload[8:], "big")
            assert at >= 0 and size > 0 and at + size <= total
            data[at : at + size] = payload[8:] if kind == Chunk.OFFSET_DATA else bytes(size)

    def do(self, command: int, offset: int = 0, length: int = 0, *, flags: int = 0, data: bytes = b"") -> Reply:
        """One request and its reply."""
        cookie = self.send(command, offset, length, flags=flags, data=data)
        reply = self.reply()
        assert reply.cookie == cookie
        return reply

    def lives(self) -> bool:
        """Whether a good request is still answered."""
        return self.do(Command.READ, 0, 512).error == 0


def info_request(name: str | bytes, *infos: int) -> bytes:
    """The data of INFO and GO."""
    encoded = name.encode() if isinstance(name, str) else name
    items = b"".join(map(protocol.INFO.pack, infos))
    return protocol.LENGTH.pack(len(encoded)) + encoded + protocol.COUNT.pack(len(infos)) + items


def context_request(name: str, *queries: bytes) -> bytes:
    """The data of LIST_META_CONTEXT and SET_META_CONTEXT."""
    encoded = name.encode()
    words = b"".join(protocol.LENGTH.pack(len(query)) + query for query in queries)
    return protocol.LENGTH.pack(len(encoded)) + encoded + protocol.LENGTH.pack(len(queries)) + words


@contextlib.contextmanager
def qemu_nbd(disk: Path, *words: str) -> Iterator[Path]:
    """QEMU's own server of one disk, under the empty name; yields its Unix socket."""
    tools.need("qemu-nbd")
    with tempfile.TemporaryDirectory(prefix="imgstore-nbd-") as directory:
        path = Path(directory) / "qemu.sock"
        with subprocess.Popen(
            ["qemu-nbd", "--shared=0", "-t", "-k", str(path), *words, str(disk)], env=dict(os.environ)
        ) as process:
            try:
                deadline = time.monotonic() + TIME_MAX
                while not path.exists():
                    assert process.poll() is None and time.monotonic() < deadline
                    time.sleep(0.01)
                yield path
            finally:
                process.terminate()
