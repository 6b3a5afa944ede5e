"""A monitor that misbehaves."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgstore.attach.qmp import LINE_MAX, QmpError, QmpMonitor
from imgstore.errors import DeniedError, InUseError, InvalidError, NotFoundError, UnavailableError, UnsupportedError

GREETING = b'{"QMP": {"version": {}, "capabilities": ["oob"]}}\r\n'


@contextmanager
def peer(path: Path, behave: Callable[[socket.socket], None]) -> Iterator[Path]:
    """A server that treats one client so."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                try:
                    behave(connection)
                    connection.recv(1 << 20)
                except (BrokenPipeError, ConnectionResetError):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield path
        finally:
            thread.join(20)
            assert not thread.is_alive()


def says(*lines: bytes) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(b"".join(lines))


def answers(*replies: bytes) -> Callable[[socket.socket], None]:
    """A server that greets, agrees on capabilities, and answers each command so; ``%d`` is its id."""

    def behave(connection: socket.socket) -> None:
        with connection.makefile("rb") as lines:
            connection.sendall(GREETING)
            for reply in (b'{"return": {}, "id": %d}\n', *replies):
                asked = json.loads(lines.readline())
                connection.sendall(reply.replace(b"%d", b"%d" % asked["id"]))

    return behave


def test_answers_are_told_from_events_and_from_answers_to_others(tmp_path: Path) -> None:
    reply = (
        b'{"event": "A", "data": {"device": "x"}}\n\n{"return": 1, "id": 99}\n{"event": "B"}\n{"return": ["mine"], "id": %d}\n'
    )
    with peer(tmp_path / "qmp", answers(reply)) as path, QmpMonitor(path, seconds=10) as monitor:
        assert monitor.execute("query-x", node_name="y") == ["mine"]
        assert monitor.wait_for(lambda name, data: data == {"device": "x"}, 0) == ("A", {"device": "x"})
        assert monitor.wait_for(lambda name, data: name == "B", 0) == ("B", {})
        assert monitor.wait_for(lambda name, data: True, 0.01) is None


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"class": "CommandNotFound", "desc": "no such"}, UnsupportedError),
        ({"class": "DeviceNotFound", "desc": "Device 'x' not found"}, NotFoundError),
        ({"class": "GenericError", "desc": 'Failed to get "write" lock'}, InUseError),
        ({"class": "GenericError", "desc": "Could not open '/x': Permission denied"}, DeniedError),
        ({"class": "GenericError", "desc": "Bus 'pcie.0' does not support hotplugging"}, InvalidError),
        ({"class": 5}, InvalidError),
        ("no object", InvalidError),
    ],
)
def test_refusals(tmp_path: Path, error: object, kind: type[Exception]) -> None:
    reply = json.dumps({"error": error, "id": "%d"}).replace('"%d"', "%d").encode() + b"\n"
    with peer(tmp_path / "qmp", answers(reply, b'{"return": 2, "id": %d}\n')) as path, QmpMonitor(path, seconds=10) as monitor:
        with pytest.raises(QmpError, match="qmp: device_add: ") as raised:
            monitor.execute("device_add")
        assert isinstance(raised.value, kind)
        assert monitor.execute("goes-on") == 2


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (b"220 mail.example.com ESMTP\r\n", "a line of 27 bytes is no JSON"),
        (b"\xff\xfe\n", "is no JSON"),
        (b"[1]\n", "a line is no object but list"),
        (b"[" * 100_000 + b"\n", "is no JSON"),
        (b'{"QMP": 1}\n', "its first line is no greeting"),
        (b'{"return": {}}\n', "its first line is no greeting"),
        (b"x" * (LINE_MAX + 1), f"a line of more than {LINE_MAX} bytes"),
    ],
)
def test_what_is_no_monitor(tmp_path: Path, said: bytes, problem: str) -> None:
    with (
        peer(tmp_path / "qmp", says(said)) as path,
        pytest.raises(InvalidError, match=f"qmp: is no QMP monitor of QEMU: .*{problem}"),
    ):
        QmpMonitor(path, seconds=20)


def test_silence(tmp_path: Path) -> None:
    with peer(tmp_path / "qmp", says()) as path, pytest.raises(UnavailableError, match="no greeting in time") as raised:
        QmpMonitor(path, seconds=0.05)
    assert "one client at a time" in raised.value.hint


def test_an_answer_that_does_not_come(tmp_path: Path) -> None:
    events = b'{"event": "NOISE"}\n' * 1000
    with peer(tmp_path / "qmp", answers(events)) as path, QmpMonitor(path, seconds=10) as monitor:
        monitor._seconds = 0.05
        with pytest.raises(UnavailableError, match="device_del was not answered in time"):
            monitor.execute("device_del")
        with pytest.raises(UnavailableError, match="blockdev-del was not sent: the machine does not answer any more"):
            monitor.execute("blockdev-del")


def test_a_machine_that_ends(tmp_path: Path) -> None:
    def behave(connection: socket.socket) -> None:
        answers()(connection)
        connection.recv(1 << 16)
        connection.shutdown(socket.SHUT_RDWR)

    ended = pytest.raises(UnavailableError, match="the machine has hung up: quit was not answered")
    with peer(tmp_path / "qmp", behave) as path, QmpMonitor(path, seconds=10) as monitor, ended:
        monitor.execute("quit")


def test_no_socket(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no such socket"):
        QmpMonitor(tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(InvalidError, match="is no socket that can be used"):
        QmpMonitor(tmp_path / "file")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    with pytest.raises(UnavailableError, match="nobody listens: the machine has ended"):
        QmpMonitor(tmp_path / "dead")
    with pytest.raises(InvalidError, match="at most 107 bytes"):
        QmpMonitor(tmp_path / ("x" * 107))
