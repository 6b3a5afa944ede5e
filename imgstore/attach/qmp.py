"""QmpMonitor: a machine that runs, asked and told by QEMU's machine protocol.

Source: QEMU's ``docs/interop/qmp-spec`` (greeting, capabilities, ids, events, one object a line), ``qapi/error.json``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from imgstore.errors import (
    DeniedError,
    InUseError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)

LINE_MAX = 16 << 20
"""Bytes of one line that are read: a machine of thousands of disks fills one or two MiB."""

ANSWER_SECONDS = 30.0
"""How long the machine may take for the greeting, and for an answer: opening a chain of a hundred files on a slow datastore is one."""

_EVENTS_KEPT = 256
_EVENT_MAX = 1 << 16  # bytes; QEMU's have some hundred
_PIECE = 1 << 16
_PATH_MAX = 107  # bytes, without the NUL; see unix(7)


class QmpError(Exception):
    """QEMU refuses a command, in its own words: always together with a kind of ImgstoreError."""


class QmpInvalidError(QmpError, InvalidError):
    """What was asked makes no sense to this machine."""


class QmpNotFoundError(QmpError, NotFoundError):
    """The machine has no such device or node, or the server no such export."""


class QmpInUseError(QmpError, InUseError):
    """Somebody else has the file open."""


class QmpDeniedError(QmpError, DeniedError):
    """QEMU may not open the file: it often runs as another user."""


class QmpUnavailableError(QmpError, UnavailableError):
    """QEMU does not reach a server."""


class QmpUnsupportedError(QmpError, UnsupportedError):
    """This QEMU has no such command."""


class QmpMonitor:
    """A connection to the monitor of one machine, for one thread; QEMU talks to one client at a time.

    After an UnavailableError, or an InvalidError that says that this is no monitor, it can only be closed. What had been asked may have
    happened or not.

    Args:
        path: socket of ``-qmp unix:PATH,server=on,wait=off``.
        seconds: how long the machine may take for each answer.

    Raises:
        NotFoundError: there is no socket.
        DeniedError: we may not use it.
        UnavailableError: nobody listens, or nothing is said: another client has the monitor.
        InvalidError: what listens there is no monitor of QEMU.
    """

    def __init__(self, path: Path, *, seconds: float = ANSWER_SECONDS) -> None:
        self._path = path
        self._seconds = seconds
        self._received = bytearray()
        self._searched = 0
        self._events: deque[dict[str, Any]] = deque(maxlen=_EVENTS_KEPT)
        self._last_id = 0
        self._lost = False
        self._socket = _connect(path, seconds)
        try:
            self._greet()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Hangs up; the machine goes on. Allowed more than once."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def execute(self, command: str, /, **arguments: Any) -> Any:
        """Runs one command and returns what it returns. ``_`` in the names of arguments is ``-`` in QEMU's.

        Raises:
            QmpError: QEMU refuses, of the kind that its words are about.
            UnavailableError: no answer in time, or the machine has ended.
        """
        return self.send(command, {name.replace("_", "-"): value for name, value in arguments.items()})

    def send(self, command: str, arguments: dict[str, Any]) -> Any:
        """As `execute`, with the names of arguments as they are."""
        if self._lost:
            raise UnavailableError(f"{self._path}: {command} was not sent: the machine does not answer any more")
        self._last_id += 1
        asked = {"execute": command, "arguments": arguments, "id": self._last_id}
        self._lost = True
        answer = self._ask(command, msgspec.json.encode(asked) + b"\n")
        self._lost = False
        if "error" in answer:
            raise self._refusal(command, answer["error"])
        return answer["return"]

    def wait_for(self, wanted: Callable[[str, dict[str, Any]], bool], seconds: float) -> tuple[str, dict[str, Any]] | None:
        """Waits for an event that is ``wanted``, by its name and its data; also one that was told while a command ran.

        Returns:
            name and data of the event; None if it was not told in time. Those before it are forgotten.

        Raises:
            UnavailableError: the machine has ended.
        """
        deadline = time.monotonic() + seconds
        while True:
            while self._events:
                told = self._events.popleft()
                name, data = str(told["event"]), told.get("data", {})
                if isinstance(data, dict) and wanted(name, data):
                    return name, data
            try:
                self._receive(deadline, "no event")
            except QmpTimeoutError:
                return None

    def _greet(self) -> None:
        deadline = time.monotonic() + self._seconds
        try:
            greeting = self._receive(deadline, "no greeting")
        except QmpTimeoutError as error:
            raise UnavailableError(str(error), hint="QEMU's monitor (-qmp) talks to one client at a time") from None
        if not isinstance(greeting.get("QMP"), dict):
            raise self._no_monitor("its first line is no greeting")
        self.send("qmp_capabilities", {})

    def _ask(self, command: str, request: bytes) -> dict[str, Any]:
        deadline = time.monotonic() + self._seconds
        what = f"{command} was not answered"
        with self._talking(deadline, what):
            self._socket.sendall(request)
        while True:
            message = self._receive(deadline, what)
            if "error" in message and message.get("id") in (self._last_id, None):
                return message
            if "return" in message and message.get("id") == self._last_id:
                return message
            # Else it is an event, or the answer to a command whose sender hung up before us.

    def _receive(self, deadline: float, what: str) -> dict[str, Any]:
        """The next object that the machine sends; events are kept, too."""
        while True:
            end = self._received.find(b"\n", self._searched)
            if end >= 0:
                line = bytes(self._received[:end])
                del self._received[: end + 1]
                self._searched = 0
                if not line.strip():
                    continue
                message = self._decode(line)
                if "event" in message and len(line) <= _EVENT_MAX:
                    self._events.append(message)
                return message
            self._searched = len(self._received)
            if self._searched > LINE_MAX:
                raise self._no_monitor(f"a line of more than {LINE_MAX} bytes")
            with self._talking(deadline, what):
                piece = self._socket.recv(_PIECE)
            if not piece:
                raise UnavailableError(f"{self._path}: the machine has hung up: {what}")
            self._received += piece

    def _decode(self, line: bytes) -> dict[str, Any]:
        try:
            message = msgspec.json.decode(line)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            raise self._no_monitor(f"a line of {len(line)} bytes is no JSON") from None
        if not isinstance(message, dict):
            raise self._no_monitor(f"a line is no object but {type(message).__name__}")
        return message

    def _refusal(self, command: str, error: object) -> QmpError:
        described = error if isinstance(error, dict) else {}
        error_class, words = str(described.get("class", "GenericError")), str(described.get("desc", "no reason given"))
        return _kind_of(error_class, words)(f"{self._path}: {command}: {words}")

    def _no_monitor(self, why: str) -> InvalidError:
        return InvalidError(f"{self._path}: is no QMP monitor of QEMU: {why}")

    @contextlib.contextmanager
    def _talking(self, deadline: float, what: str) -> Iterator[None]:
        left = deadline - time.monotonic()
        if left <= 0:
            raise QmpTimeoutError(f"{self._path}: {what} in time")
        self._socket.settimeout(left)
        try:
            yield
        except TimeoutError:
            raise QmpTimeoutError(f"{self._path}: {what} in time") from None
        except OSError as error:
            raise UnavailableError(f"{self._path}: the machine has hung up: {error.strerror}: {what}") from None


class QmpTimeoutError(UnavailableError):
    """The machine did not answer in time."""


def _kind_of(error_class: str, words: str) -> type[QmpError]:
    if error_class == "CommandNotFound":
        return QmpUnsupportedError
    if error_class == "DeviceNotFound":
        return QmpNotFoundError
    # The rest is GenericError, and told apart by what block/file-posix.c, block/nbd.c and errno say.
    if '" lock' in words or "using the image" in words:
        return QmpInUseError
    if "export not available" in words:
        return QmpNotFoundError
    if "Failed to connect" in words:
        return QmpUnavailableError
    if os.strerror(errno.EACCES) in words or os.strerror(errno.EPERM) in words:
        return QmpDeniedError
    return QmpInvalidError


def _connect(path: Path, seconds: float) -> socket.socket:
    if len(os.fsencode(path)) > _PATH_MAX:
        raise InvalidError(f"{path}: the path of a socket has at most {_PATH_MAX} bytes")
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(seconds)
        connection.connect(os.fsencode(path))
    except BaseException as error:
        connection.close()
        match error:
            case FileNotFoundError():
                raise NotFoundError(
                    f"{path}: there is no such socket", hint=f"QEMU makes it: -qmp unix:{path},server=on,wait=off"
                ) from None
            case PermissionError():
                raise DeniedError(f"{path}: {error.strerror}") from None
            case ConnectionRefusedError() if path.is_socket():
                raise UnavailableError(f"{path}: nobody listens: the machine has ended") from None
            case TimeoutError() | BlockingIOError():
                raise UnavailableError(f"{path}: too many clients wait") from None
            case OSError():
                raise InvalidError(f"{path}: is no socket that can be used: {error.strerror}") from None
        raise
    return connection
