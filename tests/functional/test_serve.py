"""``imgstore serve`` as a process: where it listens, who gets in, how it begins and ends.

The clients are Docker's command line, curl, and sockets.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgstore.store import ImageStore
from tests.command_line import REFERENCE, ROOT, CommandLine, litter
from tests.servers.authority import Authority
from tests.servers.endpoint import serving
from tests.servers.faults import Fault
from tests.servers.registry import Registry
from tests.tools import need, run

PING = "HTTP/1.1 200 OK"


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory whose name is short enough for the path of a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="imgstore-serve-") as directory:
        yield Path(directory)


@pytest.fixture
def store(place: Path) -> Path:
    return place / "store"


def docker(host: str, *words: str | Path, home: Path) -> subprocess.CompletedProcess[bytes]:
    need("docker")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DOCKER_")}
    return subprocess.run(
        ["docker", "-H", host, *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**kept, "HOME": str(home)},
        timeout=60,
    )


def head(connection: socket.socket, text: str) -> str:
    """The first line of the answer to a request that is sent as it stands."""
    connection.sendall(text.replace("\n", "\r\n").encode())
    return connection.recv(65536).decode().partition("\r\n")[0]


def connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(30)
    connection.connect(str(path))
    return connection


def ping(path: Path) -> str:
    with connect(path) as connection:
        return head(connection, "GET /_ping HTTP/1.1\nHost: x\n\n")


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def test_several_listeners_at_once(place: Path, store: Path) -> None:
    first, second = place / "a.sock", place / "b.sock"
    hosts = ("-H", f"unix://{first}", "-H", "tcp://localhost:0", "--host", f"unix://{second}")
    with serving(store, *hosts, listeners=4) as service:
        port = port_of(service.addresses[1])
        assert service.addresses == [f"unix://{first}", f"tcp://127.0.0.1:{port}", f"tcp://[::1]:{port}", f"unix://{second}"]
        ids = {docker(host, "info", "-f", "{{.ID}}", home=place).stdout for host in service.addresses}
        assert len(ids) == 1 and len(ids.pop()) == 37
        assert stat.S_IMODE(first.stat().st_mode) == 0o660
        service.end()
    assert not first.exists() and not second.exists()
    assert litter(store) == []


def test_two_services_make_and_use_one_store(place: Path, store: Path) -> None:
    with contextlib.ExitStack() as stack:
        hosts = [f"unix://{place}/{name}.sock" for name in "ab"]
        services = [stack.enter_context(serving(store, "-H", host, listeners=0)) for host in hosts]
        for service in services:
            service.read_start(1)
        CommandLine(store).text("pull", REFERENCE)
        for host, service in zip(hosts, services, strict=True):
            assert docker(host, "images", "-q", home=place).stdout.count(b"\n") == 1
            service.end()
    with ImageStore.open(str(store), create=False) as opened:
        assert list(opened.check()) == []


def test_a_socket_that_lives_is_refused_and_a_dead_one_replaced(place: Path, store: Path) -> None:
    path = place / "a.sock"
    with serving(store, "-H", f"unix://{path}") as service:
        error = CommandLine(store).fails(9, "serve", "-H", f"unix://{path}")
        assert f"unix://{path}: address already in use" in error
        assert ping(path) == PING
        service.process.kill()
        service.wait()
    assert path.exists()
    with serving(store, "-H", f"unix://{path}") as service:
        assert ping(path) == PING
        # What another has put in the place of our socket is not ours to remove.
        path.unlink()
        path.write_text("other")
        service.end()
    assert path.read_text() == "other"
    assert "no socket" in CommandLine(store).fails(2, "serve", "-H", f"unix://{path}")


def test_a_refused_address(store: Path) -> None:
    # More of them in tests/unit/docker_api/test_listeners.py.
    error = CommandLine(store).fails(2, "serve", "-H", "tcp://0.0.0.0:0")
    assert "anyone could read along" in error
    assert not store.exists()


def test_an_address_that_is_taken(store: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        assert f"{address}: address already in use" in CommandLine(store).fails(9, "serve", "-H", address)


def test_everywhere_with_the_flag_and_a_warning(place: Path, store: Path) -> None:
    with serving(store, "-H", "tcp://0.0.0.0:0", "--insecure-no-auth") as service:
        host = f"tcp://127.0.0.1:{port_of(service.addresses[0])}"
        done = docker(host, "info", home=place)
        assert done.stderr.decode() == f"WARNING: API is accessible on {service.addresses[0]} without encryption.\n"
        assert done.returncode == 0


def test_names_that_clients_may_call_it(place: Path, store: Path) -> None:
    need("curl")
    with serving(store, "-H", "tcp://127.0.0.1:0", "--allowed-host", "Build.lan") as service:
        url = f"http://127.0.0.1:{port_of(service.addresses[0])}/_ping"
        for name, status in {"build.lan": "200", "evil.example": "403", "127.0.0.1": "200"}.items():
            assert (
                run("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-H", f"Host: {name}", url).stdout.decode() == status
            )
        assert (
            run("curl", "-sS", "-H", "Origin: http://127.0.0.1", url).stdout
            == b'{"message":"requests of web pages are not answered"}\n'
        )


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def test_tls_with_client_certificates(authority: Authority, place: Path, store: Path) -> None:
    need("curl")
    certificate, key = authority.server
    mine, my_key = authority.client
    stranger, its_key = Authority(place / "stranger").client
    options = ("--tlsverify", "--tlscacert", authority.ca_file, "--tlscert", certificate, "--tlskey", key)
    with serving(store, "-H", "tcp://0.0.0.0:0", "-H", f"unix://{place}/a.sock", *options, listeners=2) as service:
        port = port_of(service.addresses[0])
        tls = ("--tlsverify", "--tlscacert", authority.ca_file)
        done = docker(f"tcp://localhost:{port}", *tls, "--tlscert", mine, "--tlskey", my_key, "info", home=place)
        assert (done.returncode, done.stderr) == (0, b"")
        # Unix sockets are guarded by their modes alone.
        assert docker(service.addresses[1], "version", home=place).returncode == 0
        assert docker(f"tcp://localhost:{port}", *tls, "version", home=place).returncode != 0
        done = docker(f"tcp://localhost:{port}", *tls, "--tlscert", stranger, "--tlskey", its_key, "version", home=place)
        assert done.returncode != 0
        url = f"https://localhost:{port}/_ping"
        curl = ("curl", "-sS", "--cacert", authority.ca_file)
        assert run(*curl, "--cert", mine, "--key", my_key, "--tlsv1.2", "--tls-max", "1.2", url).stdout == b"OK"
        assert run(*curl, "--cert", mine, "--key", my_key, url).stdout == b"OK"
        for version in ("1.2", "1.3"):
            done = run(*curl, "--tls-max", version, url, check=False)
            assert (done.returncode != 0, done.stdout) == (True, b"")
        assert run(*curl, "--cert", mine, "--key", my_key, "--tls-max", "1.1", url, check=False).returncode != 0
        with socket.create_connection(("127.0.0.1", port), timeout=30) as plain:
            plain.sendall(b"GET /_ping HTTP/1.1\r\nHost: localhost\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert b"OK" not in plain.recv(100)
        # Clients that are sent away are no news.
        assert service.end().count("\n") == 2


def test_tls_alone_encrypts_and_lets_anybody_in(authority: Authority, place: Path, store: Path) -> None:
    certificate, key = authority.server
    options = ("--tls", "--tlscert", certificate, "--tlskey", key)
    assert "anyone could use it" in CommandLine(store).fails(2, "serve", "-H", "tcp://0.0.0.0:0", *options)
    with serving(store, "-H", "tcp://127.0.0.1:0", *options) as service:
        address = f"tcp://localhost:{port_of(service.addresses[0])}"
        assert docker(address, "--tlsverify", "--tlscacert", authority.ca_file, "version", home=place).returncode == 0


def test_activated_sockets(place: Path, store: Path) -> None:
    need("systemd-socket-activate")
    path = place / "a.sock"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    wrapper = ("systemd-socket-activate", "--fdname=web:local", "-l", f"127.0.0.1:{port}", "-l", str(path))
    kept = [word for name, value in CommandLine(store).environment.items() for word in ("-E", f"{name}={value}")]
    with serving(store, "-H", "fd://local", "-H", "fd://3", listeners=0, wrapper=(*wrapper, *kept)) as service:
        deadline = time.monotonic() + 30
        while not path.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        # The first connection starts the service, and is answered by it.
        assert docker(f"unix://{path}", "version", home=place).returncode == 0
        assert docker(f"tcp://127.0.0.1:{port}", "version", home=place).returncode == 0
        said = service.end()
        assert f"API listen on unix://{path}" in said and f"API listen on tcp://127.0.0.1:{port}" in said


@pytest.mark.parametrize("abstract", [False, True])
def test_notification(abstract: bool, place: Path, store: Path) -> None:
    address = f"\0imgstore-{os.getpid()}" if abstract else f"{place}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(30)
        settings = {"NOTIFY_SOCKET": address.replace("\0", "@")}
        with serving(store, "-H", f"unix://{place}/a.sock", settings=settings) as service:
            assert manager.recv(100) == b"READY=1"
            service.end()
            assert manager.recv(100) == b"STOPPING=1"


def test_running_requests_may_end(place: Path, store: Path) -> None:
    path = place / "a.sock"
    with (
        serving(store, "-H", f"unix://{path}") as service,
        connect(path) as running,
        connect(path) as idle,
        connect(path) as live,
    ):
        assert head(idle, "HEAD /_ping HTTP/1.1\nHost: x\n\n") == PING
        assert head(live, "GET /events HTTP/1.1\nHost: x\n\n") == PING
        running.sendall(b"POST /auth HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n")
        time.sleep(0.3)
        service.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 10
        while answers(path):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        # Nothing new is accepted, idle connections and streams of events end, and the request goes on.
        assert idle.recv(100) == b""
        assert live.recv(100).endswith(b"0\r\n\r\n")
        assert service.process.poll() is None
        running.sendall(b"[]")
        assert b"400 Bad Request" in running.recv(65536)
        assert service.wait(within=10) == 0
    assert not path.exists()


@pytest.mark.parametrize("twice", [False, True])
def test_requests_that_do_not_end_are_cut(twice: bool, place: Path, store: Path) -> None:
    path = place / "a.sock"
    timeout = 60 if twice else 1
    with serving(store, "-H", f"unix://{path}", "--shutdown-timeout", str(timeout)) as service, connect(path) as running:
        running.sendall(b"POST /auth HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n")
        time.sleep(0.3)
        begin = time.monotonic()
        service.process.send_signal(signal.SIGINT)
        if twice:
            time.sleep(0.3)
            service.process.send_signal(signal.SIGINT)
        assert service.wait(within=20) == 0
        assert time.monotonic() - begin < 10
        assert "cut" in service.said and "Traceback" not in service.said
    assert not path.exists()


def test_a_thread_that_does_not_end_is_cut_with_the_process(place: Path, store: Path) -> None:
    with Registry(auth="basic") as registry:
        registry.inject(r"/v2/", Fault(delay=60.0))
        body = json.dumps({"username": "u", "password": "p", "serveraddress": registry.host}).encode()
        with (
            serving(store, "-H", f"unix://{place}/a.sock", "--shutdown-timeout", "0.5") as service,
            connect(place / "a.sock") as running,
        ):
            request = b"POST /auth HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            running.sendall(request % len(body) + body)
            deadline = time.monotonic() + 30
            while not registry.requests:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert "still at work" in service.end(within=15)
    with ImageStore.open(str(store)) as opened:
        assert list(opened.check()) == []
    assert litter(store) == []


def test_requests_are_logged_without_secrets(place: Path, store: Path) -> None:
    path = place / "a.sock"
    with serving(store, "-H", f"unix://{path}", wrapper=()) as quiet, connect(path) as connection:
        assert head(connection, "GET /_ping HTTP/1.1\nHost: x\n\n") == PING
        assert quiet.end() == f"API listen on unix://{path}\n"
    body = json.dumps({"username": "u", "password": "hunter2-body", "serveraddress": "127.0.0.1:1"})
    words = [sys.executable, "-m", "imgstore", "--debug", "serve", "-H", f"unix://{path}"]
    with subprocess.Popen(words, env=CommandLine(store).environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        process.stderr.readline()
        with contextlib.closing(http.client.HTTPConnection("localhost")) as connection:
            connection.sock = connect(path)
            headers = {"Content-Type": "application/json", "X-Registry-Auth": "hunter2-header"}
            connection.request("POST", "/v1.50/auth?x=hunter2-query", body, headers)
            assert connection.getresponse().status >= 400
        process.terminate()
        said = process.stderr.read()
        assert process.wait() == 0
    assert "POST /v1.50/auth: " in said
    assert "hunter2" not in said


def test_units_of_systemd(place: Path) -> None:
    need("systemd-analyze")
    for unit in sorted((ROOT / "docs/systemd").iterdir()):
        (place / unit.name).write_text(unit.read_text().replace("/usr/local/bin/imgstore", sys.executable))
    done = run("systemd-analyze", "verify", "--man=no", place / "imgstore.socket", place / "imgstore.service", check=False)
    complaints = [line for line in done.stderr.decode().splitlines() if "imgstore" in line]
    assert (done.returncode, complaints) == (0, [])
