"""Addresses to listen on: what is understood, what is refused, and what is left behind."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgstore.errors import ImgstoreError, InUseError, InvalidError
from imgstore.listeners import Access, Listeners, activated_sockets, create_tls, find_group


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="imgstore-") as directory:
        yield Path(directory)


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("tcp://0.0.0.0:0", "anyone could read along"),
        ("tcp://:0", "anyone could read along"),
        ("tcp://[::]:0", "anyone could read along"),
        ("tcp://192.0.2.1:0", "anyone could read along"),
        ("http://127.0.0.1:1", "is none of unix://PATH"),
        ("127.0.0.1:2375", "is none of unix://PATH"),
        ("tcp://127.0.0.1:70000", "is not tcp://ADDRESS:PORT"),
        ("tcp://127.0.0.1:", "is not tcp://ADDRESS:PORT"),
        ("tcp://127.0.0.1:+1", "is not tcp://ADDRESS:PORT"),
        ("tcp://::1:2375", "is not tcp://ADDRESS:PORT"),
        ("tcp://[::1]x", "is not tcp://ADDRESS:PORT"),
        ("unix://relative.sock", "must be an absolute path"),
        ("unix://", "must be an absolute path"),
        (f"unix:///{'x' * 107}", "at most 107 bytes"),
        ("unix:///no/such/directory/a.sock", "no such file or directory"),
        ("unix:///dev/null", "there is a file that is no socket"),
        ("fd://", "no such socket was passed to us"),
        ("fd://web", "no such socket was passed to us"),
    ],
)
def test_refused(host: str, words: str) -> None:
    with Listeners() as listeners, pytest.raises(InvalidError) as caught:
        listeners.open(host, Access(), {})
    assert words in str(caught.value)


@pytest.mark.parametrize("host", ["tcp://127.0.0.1:0", "tcp://127.8.9.10:0/", "tcp://localhost:0", "tcp://LOCALHOST:0"])
def test_loopback_needs_no_flag(host: str) -> None:
    with Listeners() as listeners:
        listeners.open(host, Access(), {})
        assert listeners.all[0].address.startswith("tcp://127.")
        assert len({listener.address.rpartition(":")[2] for listener in listeners.all}) == 1
        assert listeners.warnings() == []


def test_everywhere_warns() -> None:
    with Listeners() as listeners:
        listeners.open("tcp://:0", Access(allow_anyone=True), {})
        assert len(listeners.warnings()) == len(listeners.all)


def test_unix_sockets_come_and_go(place: Path) -> None:
    path = place / "a.sock"
    before = os.umask(0)
    os.umask(before)
    with Listeners() as listeners:
        listeners.open(f"unix://{path}", Access(), {})
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with Listeners() as others, pytest.raises(InUseError, match=f"unix://{path}: address already in use"):
            others.open(f"unix://{path}", Access(), {})
        assert path.exists()
    assert list(place.iterdir()) == []
    assert os.umask(before) == before


def test_a_socket_that_nobody_listens_on_is_replaced(place: Path) -> None:
    path = place / "a.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with Listeners() as listeners:
        listeners.open(f"unix://{path}", Access(), {})
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_what_was_opened_before_an_error_is_removed(place: Path) -> None:
    with pytest.raises(ImgstoreError), Listeners() as listeners:
        listeners.open(f"unix://{place}/a.sock", Access(), {})
        listeners.open("tcp://0.0.0.0:0", Access(), {})
    assert list(place.iterdir()) == []


def test_sockets_are_for_the_process_that_they_were_passed_to() -> None:
    environment = {"LISTEN_PID": str(os.getpid() + 1), "LISTEN_FDS": "1"}
    assert activated_sockets(environment, os.getpid()) == {}
    assert activated_sockets({}, os.getpid()) == {}
    assert activated_sockets({"LISTEN_PID": "7", "LISTEN_FDS": "x"}, 7) == {}


def test_a_passed_socket_that_does_not_listen_is_refused() -> None:
    with socket.socket() as passed, Listeners() as listeners, pytest.raises(InvalidError, match="no stream socket that listens"):
        listeners.open("fd://web", Access(), {"web": [passed]})


def test_a_passed_socket_is_no_way_around_authentication() -> None:
    with socket.create_server(("0.0.0.0", 0)) as passed, Listeners() as listeners:
        with pytest.raises(InvalidError, match="anyone could read along"):
            listeners.open("fd://", Access(), {"*": [passed]})
        listeners.open("fd://", Access(allow_anyone=True), {"*": [passed]})


def test_a_group_gets_the_socket(place: Path) -> None:
    path = place / "a.sock"
    group = 12345 if os.geteuid() == 0 else os.getgroups()[-1]
    with Listeners() as listeners:
        listeners.open(f"unix://{path}", Access(group=group), {})
        assert (path.stat().st_gid, stat.S_IMODE(path.stat().st_mode)) == (group, 0o660)


def test_groups() -> None:
    assert find_group("root") == 0
    assert find_group("12345") == 12345
    for none in ("no-such-group", "-1", "4294967295", ""):
        with pytest.raises(InvalidError, match="no such group"):
            find_group(none)


def test_files_of_tls(place: Path) -> None:
    with pytest.raises(InvalidError, match="No such file"):
        create_tls(place / "cert.pem", place / "key.pem", None)
    (place / "cert.pem").write_text("none")
    with pytest.raises(InvalidError, match=r"certificate .*cert\.pem"):
        create_tls(place / "cert.pem", place / "cert.pem", None)
