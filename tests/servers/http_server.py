"""HTTP servers in this process: what they are asked is recorded to the byte, and what they answer can be made to go wrong."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import select
import socket
import ssl
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs

from tests.servers.faults import Fault, Injected, error_body

_BODYLESS = (204, 304)
_PIECES = 64
_TLS_ON_PLAIN = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n400 Bad Request"
_PLAIN_ON_TLS = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"


@dataclass
class Request:
    """A request as it came, and what was answered.

    Attributes:
        server: the listener's name: ``registry``, ``storage``, ``token``, ``proxy``.
        path: with the query.
        body: all of it that was read.
        sent: bytes of the answer's body.
    """

    server: str
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    status: int = 0
    sent: int = 0


@dataclass(frozen=True)
class Answer:
    """What a server means to answer."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def json_answer(status: int, document: object, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(status, json.dumps(document).encode(), {"Content-Type": "application/json"} | dict(headers or {}))


def error_answer(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Answer:
    """An error as the distribution-spec has it."""
    return Answer(status, error_body(code, message), {"Content-Type": "application/json"} | dict(headers or {}))


class Service:
    """One or more listeners that belong together, from the beginning to the end of a ``with`` block.

    Attributes:
        requests: all, in the order in which they came, to any of the listeners.
        tls: with which all of them serve HTTPS, or None.
        scheme: ``http`` or ``https``.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.tls = tls
        self.scheme = "https" if tls else "http"
        self.requests: list[Request] = []
        self._received: dict[str, list[bytes]] = defaultdict(list)
        self._injected: list[Injected] = []
        self._lock = threading.Lock()
        self._listeners: list[Listener] = []

    def __enter__(self) -> Self:
        for listener in self._listeners:
            listener.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for listener in self._listeners:
            listener.stop()

    def listen(self, name: str, handler: type[Handler]) -> str:
        """For the constructor: one more listener; returns its ``127.0.0.1:port``."""
        self._listeners.append(Listener(self, name, handler))
        return self._listeners[-1].host

    def inject(self, pattern: str, fault: Fault, *, times: int = 1, method: str | None = None) -> Injected:
        """Lets the next ``times`` answers to requests whose path matches (``re.search``) go wrong. The first injected goes first.

        Args:
            method: strike only requests of this method.

        Returns:
            what counts how often it struck.
        """
        injected = Injected(re.compile(pattern), method, fault, times)
        with self._lock:
            self._injected.append(injected)
        return injected

    def clear_faults(self) -> None:
        """Forgets all that was injected."""
        with self._lock:
            self._injected.clear()

    def paths(self, pattern: str = "", *, method: str | None = None) -> list[str]:
        """Paths of the requests that match."""
        return [
            request.path for request in self.requests if method in (None, request.method) and re.search(pattern, request.path)
        ]

    def everything_received(self, server: str | None = None) -> bytes:
        """Every byte that came in, headers and bodies as they were on the wire (inside TLS), of one listener or of all."""
        names = [server] if server else list(self._received)
        return b"".join(b"".join(self._received[name]) for name in names)

    def connections(self, server: str) -> int:
        """How many connections one listener accepted."""
        return sum(listener.accepted for listener in self._listeners if listener.name == server)

    def record(self, server: str, data: bytes) -> None:
        """For listeners."""
        self._received[server].append(data)

    def take_fault(self, method: str, path: str) -> Fault:
        """For handlers: what to do to this answer."""
        with self._lock:
            for injected in self._injected:
                if injected.matches(method, path):
                    injected.times -= 1
                    injected.hits += 1
                    return injected.fault
        return Fault()


class Listener(ThreadingHTTPServer):
    """One port."""

    request_queue_size = 128
    daemon_threads = False

    def __init__(self, service: Service, name: str, handler: type[Handler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.service = service
        self.name = name
        self.host = f"127.0.0.1:{self.server_address[1]}"
        self.stopping = threading.Event()
        self.accepted = 0
        self._connections: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, name=f"test {name}")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.stopping.set()
        self.shutdown()
        self._thread.join()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the connection's own thread: the handshake, then requests until it is closed."""
        tls = self.service.tls
        self.accepted += 1
        self._connections.add(request)
        try:
            speaks_tls = request.recv(1, socket.MSG_PEEK) == b"\x16"
            if tls is None and speaks_tls:
                # What Go's server gives to a client that tries HTTPS first.
                request.sendall(_TLS_ON_PLAIN)
            elif tls is None:
                super().finish_request(request, client_address)
            elif not speaks_tls:
                self.service.record(self.name, request.recv(1 << 16))
                request.sendall(_PLAIN_ON_TLS)
            else:
                with tls.wrap_socket(request, server_side=True, do_handshake_on_connect=False) as secured:
                    self._connections.add(secured)
                    try:
                        secured.do_handshake()
                        super().finish_request(secured, client_address)
                    except ssl.SSLError:
                        _wait_for_end(secured)
                    finally:
                        self._connections.discard(secured)
        except OSError:
            pass  # the client went away, or we closed the connection under ourselves
        finally:
            self._connections.discard(request)


def _wait_for_end(connection: ssl.SSLSocket) -> None:
    """Lets the client read why the handshake failed: closing while its request waits unread would be a reset."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(1.0)
        while connection.recv(1 << 16):
            pass


class Handler(BaseHTTPRequestHandler):
    """Reads requests, and sends what `serve` answers, with the fault that was injected for it.

    Attributes:
        fault: what to do to the answer.
        seen: the request.
        truncated: the fault kept us from reading all of the request's body.
    """

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Listener

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_Recorded(self.connection, self.server))

    def finish(self) -> None:
        """Takes in what the client still sent, so that the kernel ends the connection in an orderly way."""
        with suppress(OSError, ValueError):
            self.connection.setblocking(False)
            while data := self.connection.recv(1 << 16):
                self.server.service.record(self.server.name, data)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""

    def serve(self, path: str, query: Mapping[str, list[str]]) -> Answer:
        """Does what is asked.

        Args:
            path: without the query.
        """
        raise NotImplementedError

    def handle_request(self) -> None:
        service = self.server.service
        self.fault = fault = service.take_fault(self.command, self.path)
        body = self._read_body(fault.cut_request)
        self.seen = Request(self.server.name, self.command, self.path, dict(self.headers), body)
        service.requests.append(self.seen)
        path, _, query = self.path.partition("?")
        answer = None
        if fault.after or not fault.in_place:
            answer = self.serve(path, parse_qs(query, keep_blank_values=True))
        self._pause(fault.delay)
        if fault.hang_up:
            self._hang_up()
        elif fault.raw is not None:
            self.wfile.write(fault.raw)
            self._hang_up()
        elif fault.status is not None:
            self._send(Answer(fault.status, fault.body, self._fill_in(fault.headers)))
        else:
            assert answer is not None
            self._send(replace(answer, headers=_merge(answer.headers, self._fill_in(fault.headers))))

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_CONNECT = handle_request  # noqa: N815

    def url(self, path: str) -> str:
        """The absolute URL of a path on this server."""
        return f"{self.server.service.scheme}://{self.server.host}{path}"

    def _read_body(self, limit: int | None) -> bytes:
        self.truncated = False
        if limit is not None:
            self.close_connection = True
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            length = int(self.headers.get("content-length") or 0)
            self.truncated = limit is not None and limit < length
            return self._read(length if limit is None else min(length, limit))
        body = bytearray()
        while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
            if limit is not None and len(body) + size > limit:
                self.truncated = True
                return bytes(body + self._read(limit - len(body)))
            body += self._read(size)
            self.rfile.readline()
        self.rfile.readline()  # behind the last chunk; nobody sends trailers
        return bytes(body)

    def _read(self, size: int) -> bytes:
        data = self.rfile.read(size)
        if len(data) < size:
            raise ConnectionAbortedError(f"the client went away after {len(data)} of {size} bytes")
        return data

    def _fill_in(self, headers: Mapping[str, str]) -> dict[str, str]:
        service = self.server.service
        values = {
            "{scheme}": service.scheme,
            "{host}": self.server.host,
            "{path}": self.path,
            "{storage}": getattr(service, "storage_host", ""),
            "{soon}": formatdate(time.time() + 1, usegmt=True),
        }
        filled = dict(headers)
        for name, value in filled.items():
            for placeholder, meaning in values.items():
                value = value.replace(placeholder, meaning)
            filled[name] = value
        return filled

    def _send(self, answer: Answer) -> None:
        fault = self.fault
        has_body = answer.status not in _BODYLESS
        body = fault.encode(answer.body) if has_body else b""
        headers = dict(answer.headers)
        if fault.gzip and body:
            headers["Content-Encoding"] = "gzip"
        if fault.chunked and has_body:
            headers["Transfer-Encoding"] = "chunked"
        elif has_body and "content-length" not in {name.lower() for name in headers}:
            headers["Content-Length"] = str(max(0, len(body) + fault.length_error))
        reason = http.client.responses.get(answer.status, "Unassigned")
        lines = [f"HTTP/1.1 {answer.status} {reason}", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        head = "\r\n".join(lines).encode("latin-1")
        for status in fault.interim:
            self.wfile.write(f"HTTP/1.1 {status} {http.client.responses[status]}\r\n\r\n".encode())
        self.seen.status = answer.status
        if fault.cut_headers is not None:
            self.wfile.write(head[: fault.cut_headers])
            self._hang_up()
        elif self.command == "HEAD" or not has_body:
            self.wfile.write(head)
        else:
            self._send_body(head, body)
        if fault.close and not self.close_connection:
            self._hang_up()

    def _send_body(self, head: bytes, body: bytes) -> None:
        fault = self.fault
        data = fault.cut(body)
        cut = len(data) < len(body)
        self.seen.sent = len(data)
        if fault.chunked:
            start = b"%x\r\n" % len(body) if body else b""
            end = b"" if cut else b"\r\n0\r\n\r\n" if body else b"0\r\n\r\n"
            data = start + data + end
        if fault.hold is not None:
            self.wfile.write(head + data[: len(data) // 2])
            head, data = b"", data[len(data) // 2 :]
            while not fault.hold.wait(0.05) and not self.server.stopping.is_set():
                pass
        if fault.piece_size:
            self.wfile.write(head)
            for _ in range(_PIECES):
                self.wfile.write(data[: fault.piece_size])
                data = data[fault.piece_size :]
                time.sleep(fault.pause if data else 0)
            self.wfile.write(data)
        elif len(data) < 1 << 16:
            self.wfile.write(head + data)
        else:
            self.wfile.write(head)
            self.wfile.write(data)
        if cut or fault.length_error > 0:
            self._pause(fault.stall)
            self._hang_up()

    def _pause(self, seconds: float) -> None:
        """Waits, but not for a client that went away, nor when the server stops."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not self.server.stopping.is_set():
            if select.select([self.connection], [], [], min(left, 0.05))[0]:
                return

    def _hang_up(self) -> None:
        self.close_connection = True
        if self.fault.reset:
            # RST instead of FIN; and not by socketserver, which would send a FIN first.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())


class _Recorded(io.RawIOBase):
    """What comes in by a connection, recorded."""

    def __init__(self, connection: socket.socket, listener: Listener) -> None:
        self._connection = connection
        self._listener = listener

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._connection.recv_into(buffer)
        if count:
            self._listener.service.record(self._listener.name, bytes(buffer[:count]))
        return count


def _merge(headers: Mapping[str, str], others: Mapping[str, str]) -> dict[str, str]:
    """Both; where a name is in both, the others' value."""
    names = {name.lower() for name in others}
    return {name: value for name, value in headers.items() if name.lower() not in names} | dict(others)
