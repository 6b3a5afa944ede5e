"""``imgstore nbd serve`` and ``imgstore serve --nbd-host`` as processes: where they listen, who gets in, how they end."""

from __future__ import annotations

import contextlib
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from imgstore.nbd.protocol import Command, Option, OptionReply
from tests.command_line import REFERENCE, CommandLine
from tests.servers.authority import Authority
from tests.servers.nbd import Wire, connect, info_request
from tests.tools import need, run


@pytest.fixture(scope="module")
def command_line(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    command_line = CommandLine(tmp_path_factory.mktemp("nbd") / "store")
    command_line.text("init", "--disk-size", "64MiB")
    command_line.text("pull", REFERENCE)
    command_line.text("container", "create", "--name", "web", "three-layers")
    return command_line


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory whose name is short enough for the path of a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="imgstore-nbd-") as directory:
        yield Path(directory)


@contextlib.contextmanager
def serving(command_line: CommandLine, *words: str | Path, addresses: int = 1) -> Iterator[list[str]]:
    """Yields where it says that NBD is served; it must end well by SIGTERM."""
    with command_line.start(*words) as process:
        try:
            yield list(_read_addresses(process, addresses))
            process.send_signal(signal.SIGTERM)
            said = process.communicate(timeout=30)[1].decode()
            assert (process.returncode, said) == (0, "")
        finally:
            process.kill()


def _read_addresses(process: subprocess.Popen[bytes], count: int) -> Iterator[str]:
    assert process.stderr is not None
    while count:
        line = process.stderr.readline().decode()
        assert line, process.poll()
        if line.startswith("NBD listen on "):
            yield line.removeprefix("NBD listen on ").strip()
            count -= 1


def list_exports(wire: Wire) -> Sequence[bytes]:
    wire.greet()
    return [data[4 : 4 + int.from_bytes(data[:4], "big")] for kind, data in wire.ask(Option.LIST) if kind == OptionReply.SERVER]


def test_a_write_is_there_when_the_service_has_ended(command_line: CommandLine, place: Path) -> None:
    path = place / "nbd.sock"
    with (
        serving(command_line, "nbd", "serve", "-H", f"unix://{path}", "-H", "tcp://127.0.0.1:0", addresses=2) as addresses,
        Wire(connect(path)) as wire,
    ):
        assert addresses[0] == f"unix://{path}" and addresses[1].startswith("tcp://127.0.0.1:")
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with Wire(connect(path)) as other:
            assert list_exports(other) == [b"image/three-layers:latest", b"container/web"]
        wire.go("container/web")
        assert wire.do(Command.WRITE, 1 << 20, 4096, data=b"\7" * 4096).error == 0
        assert "in use" in command_line.fails(9, "container", "cp", "web:/etc", "-")
    assert not path.exists()
    with serving(command_line, "nbd", "serve", "-H", f"unix://{path}"), Wire(connect(path)) as wire:
        wire.go("container/web")
        assert wire.do(Command.READ, 1 << 20, 4096).data == b"\7" * 4096


def test_only_some_exports(command_line: CommandLine, place: Path) -> None:
    path = place / "nbd.sock"
    words = ("nbd", "serve", "-H", f"unix://{path}", "--export", "container/web", "--read-only")
    with serving(command_line, *words):
        with Wire(connect(path)) as wire:
            assert list_exports(wire) == [b"container/web"]
            ((kind, words_of_it),) = wire.ask(Option.GO, info_request("image/three-layers"))
            assert (kind, words_of_it) == (OptionReply.ERR_UNKNOWN, b"export 'image/three-layers': is not offered here")
        with Wire(connect(path)) as wire:
            wire.go("")
            assert wire.do(Command.WRITE, 0, 512, data=bytes(512)).error == 1


def test_beside_the_api_with_tls(command_line: CommandLine, place: Path) -> None:
    need("nbdinfo", "curl")
    authority = Authority(place / "authority")
    (certificate, key), (client, client_key) = authority.server, authority.client
    pki = place / "pki"
    pki.mkdir()
    for file, name in ((authority.ca_file, "ca-cert.pem"), (client, "client-cert.pem"), (client_key, "client-key.pem")):
        (pki / name).write_bytes(file.read_bytes())
    tls = ("--tlsverify", "--tlscacert", authority.ca_file, "--tlscert", certificate, "--tlskey", key)
    api, words = place / "api.sock", ("--nbd-host", "tcp://127.0.0.1:0", "--nbd-host", f"unix://{place}/nbd.sock")
    with serving(command_line, "serve", "-H", f"unix://{api}", *words, *tls, addresses=2) as addresses:
        port = addresses[0].rpartition(":")[2]
        shown = run("nbdinfo", f"nbds://localhost:{port}/container/web?tls-certificates={pki}").stdout
        assert b"with TLS" in shown and b"67108864" in shown
        assert run("nbdinfo", f"nbd://localhost:{port}/container/web", check=False).returncode != 0
        assert run("curl", "-sf", "--unix-socket", api, "http://localhost/_ping").stdout == b"OK"
        with Wire(connect(place / "nbd.sock")) as wire:
            assert wire.go("image/three-layers")[0] == 64 << 20
    assert sorted(path.name for path in place.iterdir()) == ["authority", "pki"]


def test_who_is_told_to_ignore_hang_ups_goes_on(command_line: CommandLine, place: Path) -> None:
    path = place / "nbd.sock"
    with command_line.start("nbd", "serve", "-H", f"unix://{path}", wrapper=["nohup"]) as process:
        try:
            list(_read_addresses(process, 1))
            process.send_signal(signal.SIGHUP)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
            with Wire(connect(path)) as wire:
                wire.go("image/three-layers")
                assert wire.lives()
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)
            assert process.returncode == 0
        finally:
            process.kill()


def test_a_second_signal_does_not_wait_for_the_storage(command_line: CommandLine, place: Path) -> None:
    need("strace")
    path = place / "nbd.sock"
    slow = [
        "strace",
        "-D",
        "-f",
        "-qq",
        "-o",
        f"{place}/trace",
        "-e",
        "trace=fdatasync",
        "-e",
        "inject=fdatasync:delay_enter=3s",
    ]
    with command_line.start("nbd", "serve", "-H", f"unix://{path}", wrapper=slow) as process:
        try:
            list(_read_addresses(process, 1))
            with Wire(connect(path)) as wire:
                wire.go("container/web")
                wire.send(Command.WRITE, 0, 512, data=bytes(512))
                process.send_signal(signal.SIGTERM)
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(1)
                process.send_signal(signal.SIGTERM)
                assert b"ended at once" in process.communicate(timeout=30)[1]
                assert process.returncode == 128 + signal.SIGTERM
        finally:
            process.kill()


def test_refused(command_line: CommandLine, place: Path) -> None:
    assert "anyone could read along" in command_line.fails(2, "nbd", "serve", "-H", "tcp://0.0.0.0:0")
    with socket.socket(socket.AF_UNIX) as passed:
        passed.bind(str(place / "passed"))
        passed.listen()
        shell = ["sh", "-c", 'exec env LISTEN_PID=$$ LISTEN_FDS=1 "$@" 3<&0', "sh"]
        words = command_line.words("serve", "-H", "fd://", "--nbd-host", "fd://")
        both = subprocess.run([*shell, *words], stdin=passed, capture_output=True, env=command_line.environment, timeout=60)
        assert b"mean the same socket" in both.stderr and both.returncode == 2, both.stderr
    assert "Missing option" in command_line.fails(2, "nbd", "serve")
    assert "needs --tlscacert" in command_line.fails(
        2, "nbd", "serve", "-H", "tcp://127.0.0.1:0", "--tlsverify", "--tlscert", "a", "--tlskey", "b"
    )
    assert "No such container" in command_line.fails(4, "nbd", "serve", "-H", f"unix://{place}/a", "--export", "container/wbe")
    assert "device 'web'" in command_line.fails(2, "nbd", "serve", "-H", f"unix://{place}/a", "--export", "web")
    assert "no store" in CommandLine(place / "none").fails(4, "nbd", "serve", "-H", f"unix://{place}/a").lower()
    with serving(command_line, "nbd", "serve", "-H", f"unix://{place}/a"):
        assert "address already in use" in command_line.fails(9, "nbd", "serve", "-H", f"unix://{place}/a")
