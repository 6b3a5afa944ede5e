"""``imgstore serve`` as a process of its own, and requests to it."""

from __future__ import annotations

import http.client
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from tests.bench.measure import Run, cpu_seconds_of, peak_of, reset_peak

VERSION = "/v1.41"  # what the dockerd that we are compared with speaks
_CHUNK = 1 << 20
_PING_SECONDS = 0.01
"""Between an answer and the next question."""


class RequestError(Exception):
    """The endpoint did not do what it was asked for; the message holds its words."""


@dataclass(frozen=True)
class Latencies:
    """Seconds that questions took: the median, and what 99 of 100 took at most."""

    count: int
    median: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latencies:
        """Of at least two."""
        return cls(len(seconds), statistics.median(seconds), statistics.quantiles(seconds, n=100, method="inclusive")[98])


class Endpoint:
    """The Docker API of a store, on a Unix socket; there from ``with`` on, gone when it ends.

    Args:
        store: its directory; made if there is none.
    """

    def __init__(self, store: Path) -> None:
        self.store = store

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            # Not below the bench's own directory: the path of a Unix socket has at most 107 bytes.
            home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="imgstore-bench-")))
            self._socket, self._log = home / "api.sock", home / "log"
            command = [sys.executable, "-m", "imgstore", "--store", str(self.store), "serve", "--host", f"unix://{self._socket}"]
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            stack.callback(self._end)
            deadline = time.monotonic() + 60
            while not self._answers():
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"imgstore serve does not answer:\n{self._log.read_text()}")
                time.sleep(0.02)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def request(self, method: str, path: str) -> int:
        """One request on a connection of its own, whose answer is read to its end and dropped. Returns how many bytes it has.

        Raises:
            RequestError: it failed, at once or in the middle.
        """
        with closing(self._connect()) as connection:
            connection.request(method, VERSION + path)
            response = connection.getresponse()
            length, last = 0, b""
            while chunk := response.read1(_CHUNK):
                length += len(chunk)
                last = chunk
        message = _error_of(last)
        if response.status >= 400 or message:
            raise RequestError(f"{method} {path}: {response.status} {message or last.decode(errors='replace')}")
        return length

    def pull(self, reference: str) -> Run:
        """Pulls; the figures of CPU and memory are the server's."""
        before = self._cpu_seconds()
        reset_peak(self._process.pid)
        start = time.perf_counter()
        self.request("POST", f"/images/create?fromImage={quote(reference, safe='')}")
        seconds = time.perf_counter() - start
        return Run(seconds, self._cpu_seconds() - before, peak_of(self._process.pid))

    def remove(self, reference: str) -> None:
        """Removes an image, if it is there, and all that nothing else needs."""
        try:
            self.request("DELETE", f"/images/{reference}?force=1")
        except RequestError as error:
            if " 404 " not in str(error):
                raise

    def save(self, reference: str) -> int:
        """Bytes of the archive of an image."""
        return self.request("GET", f"/images/{reference}/get")

    def list(self) -> int:
        """Bytes of the list of all images."""
        return self.request("GET", "/images/json")

    def answer_times(
        self, work: Sequence[Callable[[], object]], *, background: Sequence[Callable[[], object]] = ()
    ) -> list[float]:
        """Seconds that each ``GET /_ping`` took, on connections of their own, while the work went on.

        Args:
            work: done one after the other, once.
            background: each repeated in a thread of its own, until the work is done.
        """
        done = threading.Event()
        failures: list[BaseException] = []

        def guard(act: Callable[[], object], *, repeat: bool) -> None:
            try:
                while not done.is_set():
                    act()
                    if not repeat:
                        return
            except BaseException as error:
                failures.append(error)
                done.set()

        def run_work() -> None:
            for act in work:
                guard(act, repeat=False)
            done.set()

        threads = [threading.Thread(target=run_work)]
        threads += [threading.Thread(target=guard, args=(act,), kwargs={"repeat": True}) for act in background]
        for thread in threads:
            thread.start()
        seconds = []
        while not done.is_set():
            start = time.perf_counter()
            self.request("GET", "/_ping")
            seconds.append(time.perf_counter() - start)
            time.sleep(_PING_SECONDS)
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return seconds

    def _connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("localhost", timeout=600)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(600)
        connection.sock.connect(str(self._socket))
        return connection

    def _answers(self) -> bool:
        try:
            return self.request("GET", "/_ping") > 0
        except OSError:
            return False

    def _end(self) -> None:
        self._process.terminate()
        self._process.wait(60)

    def _cpu_seconds(self) -> float:
        return cpu_seconds_of(self._process.pid)


def _error_of(last: bytes) -> str:
    """What the last message of a stream says went wrong; empty for what is no message."""
    line = last.strip().rpartition(b"\n")[2]
    if not line.startswith(b"{"):
        return ""
    try:
        message: Any = json.loads(line)
    except ValueError:
        return ""
    return str(message.get("error", "")) if isinstance(message, dict) else ""
