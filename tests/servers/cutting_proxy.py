"""A TCP proxy that passes on what clients send, up to a byte, and then closes the connection."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

_PIECE_SIZE = 1 << 16


class CuttingProxy:
    """See the module; for the length of a ``with`` block.

    Args:
        target: ``host:port``.

    Attributes:
        host: ``127.0.0.1:port``.
        passed: bytes that clients sent to the target, on all connections.
        cuts: how often a connection was closed.
        connections: how many were made.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.passed = 0
        self.cuts = 0
        self.connections = 0
        self._cut_at: int | None = None
        self._cut_before: tuple[bytes, int] | None = None
        self._pause_before: tuple[bytes, float] | None = None
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, name="cutting proxy")]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listener.close()
        for each in self._sockets:
            _shut(each)
        for thread in self._threads[1:]:
            thread.join()

    def cut_after(self, size: int) -> None:
        """Closes the connection on which so many bytes more have come from clients; those get through."""
        self._cut_at = self.passed + size

    def cut_before(self, method: str, count: int = 1) -> None:
        """Closes the connection on which the ``count``-th request of this method from now comes; nothing of it gets through."""
        self._cut_before = f"{method} ".encode(), count

    def pause_before(self, method: str, seconds: float) -> None:
        """Reads nothing for so long from the connection on which the next request of this method comes."""
        self._pause_before = f"{method} ".encode(), seconds

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            self.connections += 1
            self._sockets += [client, server]
            for source, sink, upwards in ((client, server, True), (server, client, False)):
                thread = threading.Thread(target=self._pass, args=(source, sink, upwards), name="cutting proxy")
                self._threads.append(thread)
                thread.start()

    def _pass(self, source: socket.socket, sink: socket.socket, upwards: bool) -> None:
        with suppress(OSError):
            while data := source.recv(_PIECE_SIZE):
                kept, cut = self._admit(data) if upwards else (data, False)
                sink.sendall(kept)
                if cut:
                    break
        _shut(source)
        _shut(sink)
        source.close()  # each direction closes the end that it reads

    def _admit(self, data: bytes) -> tuple[bytes, bool]:
        """What gets through, and whether that was the last."""
        if self._pause_before is not None and data.startswith(self._pause_before[0]):
            seconds, self._pause_before = self._pause_before[1], None
            time.sleep(seconds)
        with self._lock:
            if self._cut_before is not None and data.startswith(self._cut_before[0]):
                method, count = self._cut_before
                self._cut_before = (method, count - 1) if count > 1 else None
                if count == 1:
                    self.cuts += 1
                    return b"", True
            kept = data if self._cut_at is None else data[: max(0, self._cut_at - self.passed)]
            self.passed += len(kept)
            if self._cut_at is None or self.passed < self._cut_at:
                return kept, False
            self._cut_at = None
            self.cuts += 1
            return kept, True


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
