"""Clients of the NBD server that break the rules, stall, or go: what they are told, and that nobody else notices.

QEMU's server, to which the same is said, refuses the same.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgstore.blocks import Extent
from imgstore.errors import CorruptError, NoSpaceError, UnavailableError
from imgstore.nbd import protocol, server
from imgstore.nbd.connection import JOB_SIZE_MAX, JOBS_MAX
from imgstore.nbd.protocol import ALLOCATION, Chunk, Command, CommandFlag, Error, Info, Option, OptionReply
from imgstore.nbd.server import CONNECTIONS_MAX
from tests.servers.authority import Authority
from tests.servers.nbd import (
    SIZE,
    TIME_MAX,
    Disk,
    Disks,
    NbdEndpoint,
    Wire,
    connect,
    context_request,
    info_request,
    nbd_server,
    qemu_nbd,
)

FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = CommandFlag
ALL = 0xFFFFFFFF


@pytest.fixture
def disks() -> Disks:
    return Disks({"rw": Disk(), "ro": Disk(read_only=True)})


@pytest.fixture
def endpoint(disks: Disks) -> Iterator[NbdEndpoint]:
    with nbd_server(disks) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def qemu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """QEMU's servers of a disk that can be written, and of one that cannot."""
    directory = tmp_path_factory.mktemp("qemu")
    with contextlib.ExitStack() as stack:
        servers = {}
        for name, words in {"rw": (), "ro": ("-r",)}.items():
            disk = directory / f"{name}.raw"
            with disk.open("wb") as file:
                file.truncate(SIZE)
            servers[name] = stack.enter_context(qemu_nbd(disk, "-f", "raw", *words))
        yield servers


Bad = tuple[str, Command | int, int, int, int, Error]
BAD: list[Bad] = [
    ("rw", Command.READ, SIZE, 512, 0, Error.EINVAL),
    ("rw", Command.READ, SIZE - 512, 1024, 0, Error.EINVAL),
    ("rw", Command.READ, 2**64 - 512, 512, 0, Error.EINVAL),
    ("rw", Command.READ, 2**64 - 512, 1024, 0, Error.EINVAL),
    ("rw", Command.READ, 2**63, ALL, 0, Error.EINVAL),
    ("rw", Command.READ, 0, 64 << 20, 0, Error.EINVAL),
    ("rw", Command.READ, 0, 512, NO_HOLE, Error.EINVAL),
    ("rw", Command.READ, 0, 512, REQ_ONE, Error.EINVAL),
    ("rw", Command.READ, 0, 512, 1 << 15, Error.EINVAL),
    ("rw", Command.WRITE, SIZE, 512, 0, Error.ENOSPC),
    ("rw", Command.WRITE, SIZE - 512, 1024, 0, Error.ENOSPC),
    ("rw", Command.WRITE, 2**64 - 512, 512, 0, Error.ENOSPC),
    ("rw", Command.WRITE, 0, 512, NO_HOLE, Error.EINVAL),
    ("rw", Command.WRITE, 0, 512, DF, Error.EINVAL),
    ("rw", Command.WRITE_ZEROES, SIZE, 512, 0, Error.ENOSPC),
    ("rw", Command.WRITE_ZEROES, 2**64 - 512, 1024, 0, Error.ENOSPC),
    ("rw", Command.WRITE_ZEROES, 0, 512, REQ_ONE, Error.EINVAL),
    ("rw", Command.TRIM, SIZE, 512, 0, Error.EINVAL),
    ("rw", Command.TRIM, SIZE - 512, 1024, 0, Error.EINVAL),
    ("rw", Command.TRIM, 0, ALL, 0, Error.EINVAL),
    ("rw", Command.TRIM, 0, 512, DF, Error.EINVAL),
    ("rw", Command.CACHE, SIZE, 512, 0, Error.EINVAL),
    ("rw", Command.CACHE, 0, 64 << 20, 0, Error.EINVAL),
    ("rw", Command.BLOCK_STATUS, SIZE, 512, 0, Error.EINVAL),
    ("rw", Command.BLOCK_STATUS, 0, 0, 0, Error.EINVAL),
    ("rw", Command.BLOCK_STATUS, 0, ALL, 0, Error.EINVAL),
    ("rw", Command.FLUSH, 0, 0, DF, Error.EINVAL),
    ("rw", 8, 0, 0, 0, Error.EINVAL),
    ("rw", 0xFFFF, 0, 512, 0, Error.EINVAL),
    ("ro", Command.WRITE, 0, 512, 0, Error.EPERM),
    ("ro", Command.WRITE, SIZE, 512, 0, Error.EPERM),
    ("ro", Command.WRITE_ZEROES, 0, 512, 0, Error.EPERM),
    ("ro", Command.TRIM, 0, 512, 0, Error.EPERM),
]


@pytest.mark.parametrize("structured", [True, False])
def test_bad_requests_are_refused_as_by_qemu_and_the_connection_lives(
    endpoint: NbdEndpoint, disks: Disks, qemu: dict[str, Path], structured: bool
) -> None:
    for name in ("rw", "ro"):
        with endpoint.connect() as ours, Wire(connect(qemu[name])) as theirs:
            ours.go(name, structured=structured)
            theirs.go("", structured=structured)
            for _, command, offset, length, flags, error in (bad for bad in BAD if bad[0] == name):
                errors = []
                for wire in (ours, theirs):
                    data = b"\1" * length if command == Command.WRITE else b""
                    errors.append(wire.do(command, offset, length, flags=flags, data=data).error)
                    assert wire.lives()
                # QEMU's error is the same for all.
                assert errors == [error, Error.EINVAL], f"command {command} of {offset}+{length}, flags {flags:#x}"
            ours.send(Command.DISC)
            assert ours.is_dropped()
    assert disks["rw"].calls == ["close"]
    assert disks["rw"].memory.read(0, SIZE) == bytes(SIZE)


def test_what_qemu_does_not_survive(endpoint: NbdEndpoint, disks: Disks) -> None:
    with endpoint.connect() as wire:
        wire.go("rw")
        for offset in (0, 2**64 - 1):  # QEMU hangs up on a payload of more than 32 MiB
            length = protocol.PAYLOAD_MAX + 1
            reply = wire.do(Command.WRITE, offset, length, data=bytes(length))
            assert (reply.error, reply.chunks) == (Error.EINVAL, [Chunk.ERROR])
            assert wire.lives()
        reply = wire.do(Command.WRITE_ZEROES, 0, 4096, flags=FAST_ZERO | NO_HOLE)
        assert reply.error == Error.ENOTSUP
        for command in (Command.READ, Command.WRITE, Command.WRITE_ZEROES, Command.TRIM, Command.CACHE):
            assert wire.do(command, SIZE, 0).error == 0
            assert wire.lives()
    assert disks["rw"].memory.read(0, SIZE) == bytes(SIZE)


def test_block_status_was_not_negotiated(endpoint: NbdEndpoint) -> None:
    for structured in (True, False):
        with endpoint.connect() as wire:
            wire.go("ro", structured=structured, context=False)
            assert wire.do(Command.BLOCK_STATUS, 0, 4096).error == Error.EINVAL
            assert wire.lives()
    with endpoint.connect() as wire:  # chosen for another export
        wire.greet()
        wire.answer(Option.STRUCTURED_REPLY)
        wire.ask(Option.SET_META_CONTEXT, context_request("rw", ALLOCATION))
        assert wire.answer(Option.GO, info_request("ro")) == OptionReply.ACK
        assert wire.do(Command.BLOCK_STATUS, 0, 4096).error == Error.EINVAL


def test_errors_of_the_storage_are_told_never_zeros(endpoint: NbdEndpoint, disks: Disks) -> None:
    disk = disks["rw"]
    disk.memory.write(0, b"\1" * SIZE)
    cases = [
        (CorruptError("disks/a.vmdk at byte 512: is wrong"), Error.EIO),
        (UnavailableError("the datastore does not answer"), Error.EIO),
        (NoSpaceError("the datastore is full"), Error.ENOSPC),
        (OSError(28, "No space left on device"), Error.ENOSPC),
        (OSError(5, "Input/output error"), Error.EIO),
    ]
    for structured in (True, False):
        with endpoint.connect() as wire:
            wire.go("rw", structured=structured)
            for error, number in cases:
                disk.error = error
                for command, length in ((Command.READ, 512), (Command.READ, 1 << 20), (Command.WRITE, 512), (Command.FLUSH, 0)):
                    reply = wire.do(command, 0, length, data=bytes(length) if command == Command.WRITE else b"")
                    assert (reply.error, reply.data) == (number, b"")
                    assert reply.message == (
                        "" if not structured else error.strerror if isinstance(error, OSError) else str(error)
                    )
                disk.error = None
                assert wire.lives()
        disk.error = None
        endpoint.wait_for(0)


@pytest.mark.parametrize(
    ("option", "data", "answer"),
    [
        (Option.LIST, b"x", OptionReply.ERR_INVALID),
        (Option.STRUCTURED_REPLY, b"x", OptionReply.ERR_INVALID),
        (Option.STARTTLS, b"", OptionReply.ERR_POLICY),
        (4, b"", OptionReply.ERR_UNSUP),
        (11, b"", OptionReply.ERR_UNSUP),
        (0xFFFFFFFF, bytes(1000), OptionReply.ERR_UNSUP),
        (Option.GO, b"", OptionReply.ERR_INVALID),
        (Option.GO, info_request("ro")[:-1], OptionReply.ERR_INVALID),
        (Option.GO, info_request("ro") + b"x", OptionReply.ERR_INVALID),
        (Option.GO, b"\xff\xff\xff\xff" + b"ro\0\0", OptionReply.ERR_INVALID),
        (Option.INFO, info_request("no such"), OptionReply.ERR_UNKNOWN),
        (Option.GO, info_request(""), OptionReply.ERR_UNKNOWN),
        (Option.SET_META_CONTEXT, context_request("ro", ALLOCATION), OptionReply.ERR_INVALID),
    ],
)
def test_bad_options_are_refused_as_by_qemu(
    endpoint: NbdEndpoint, qemu: dict[str, Path], option: int, data: bytes, answer: int
) -> None:
    compared = option not in (Option.SET_META_CONTEXT,) and data != info_request("")  # QEMU's default export is its only one
    with endpoint.connect() as ours, Wire(connect(qemu["ro"])) as theirs:
        for wire in (ours, theirs) if compared else (ours,):
            wire.greet()
            assert wire.answer(option, data) == answer
            assert wire.answer(Option.LIST) == OptionReply.ACK
            assert wire.answer(Option.ABORT, b"bye") == OptionReply.ACK
            assert wire.is_dropped()


def test_contexts_of_an_export_that_is_not_there(endpoint: NbdEndpoint, qemu: dict[str, Path]) -> None:
    with endpoint.connect() as ours, Wire(connect(qemu["ro"])) as theirs:
        for wire in (ours, theirs):
            wire.greet()
            assert wire.answer(Option.STRUCTURED_REPLY) == OptionReply.ACK
            for option in (Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT):
                assert wire.answer(option, context_request("no such", ALLOCATION)) == OptionReply.ERR_UNKNOWN


def test_options_that_are_too_large(endpoint: NbdEndpoint) -> None:
    with endpoint.connect() as wire:
        wire.greet()
        assert wire.answer(Option.GO, info_request("x" * 4097)) == OptionReply.ERR_TOO_BIG
        assert wire.answer(Option.GO, info_request(b"\xff")) == OptionReply.ERR_INVALID
        assert wire.answer(Option.GO, bytes(300 << 10)) == OptionReply.ERR_TOO_BIG
        wire.answer(Option.STRUCTURED_REPLY)
        many = context_request("ro", *[b"base:x"] * 20_000)
        assert [kind for kind, _ in wire.ask(Option.SET_META_CONTEXT, many)] == [OptionReply.ACK]
        assert wire.answer(Option.SET_META_CONTEXT, context_request("ro", b"x" * 4097)) == OptionReply.ERR_TOO_BIG
        assert wire.answer(Option.SET_META_CONTEXT, many[:-1]) == OptionReply.ERR_INVALID
        assert wire.answer(Option.GO, info_request("ro", *range(60_000))) == OptionReply.ACK
        assert wire.lives()


def test_who_is_dropped(endpoint: NbdEndpoint) -> None:
    def send_flags(wire: Wire) -> None:
        wire.greet(flags=1 << 31)

    def send_magic(wire: Wire) -> None:
        wire.greet()
        wire.send_option(Option.LIST, magic=b"IHAVEOPX")

    def send_length(wire: Wire) -> None:
        wire.greet()
        wire.send_option(Option.LIST, length=(32 << 20) + 1)

    def send_long_name(wire: Wire) -> None:
        wire.greet()
        wire.send_option(Option.EXPORT_NAME, b"x" * 4097)

    def send_unknown_name(wire: Wire) -> None:
        wire.greet()
        wire.send_option(Option.EXPORT_NAME, b"no such")

    def send_option_of_fixed(wire: Wire) -> None:
        wire.greet(flags=0)
        wire.send_option(Option.LIST)

    def send_request_magic(wire: Wire) -> None:
        wire.go("ro")
        wire.send(Command.READ, 0, 512, magic=0x12560953)

    for send in (
        send_flags,
        send_magic,
        send_length,
        send_long_name,
        send_unknown_name,
        send_option_of_fixed,
        send_request_magic,
    ):
        with endpoint.connect() as wire:
            send(wire)
            assert wire.is_dropped(), send.__name__
    endpoint.wait_for(0)


def test_the_first_protocol_of_newstyle(endpoint: NbdEndpoint) -> None:
    for flags, padding in ((0, 124), (1, 124), (3, 0)):
        with endpoint.connect() as wire:
            wire.greet(flags)
            wire.send_option(Option.EXPORT_NAME, b"ro")
            size, _ = protocol.EXPORT.unpack(wire.receive(10))
            assert size == SIZE
            assert wire.receive(padding) == bytes(padding)
            assert wire.do(Command.READ, 0, 1024).data == bytes(1024)


def test_nothing_is_opened_before_it_is_named(endpoint: NbdEndpoint, disks: Disks) -> None:
    with endpoint.connect() as wire:
        wire.greet()
        wire.answer(Option.LIST)
        wire.answer(Option.STRUCTURED_REPLY)
        wire.ask(Option.SET_META_CONTEXT, context_request("rw", ALLOCATION))
        assert disks["rw"].opened == 0 and disks["rw"].calls == []
        replies = wire.ask(Option.INFO, info_request("rw", Info.NAME, Info.BLOCK_SIZE, 0x7777))
        assert (OptionReply.INFO, b"\0\1rw") in replies
        assert (OptionReply.INFO, b"\0\3" + protocol.BLOCK_SIZES.pack(1, 64 << 10, 32 << 20)) in replies
        assert disks["rw"].opened == 0 and disks["rw"].calls == []


def test_one_client_writes_at_a_time(endpoint: NbdEndpoint, disks: Disks) -> None:
    with endpoint.connect() as first, endpoint.connect() as second:
        _, flags = first.go("rw")
        assert not flags & protocol.TransmissionFlag.CAN_MULTI_CONN
        second.greet()
        ((kind, words),) = second.ask(Option.GO, info_request("rw"))
        assert (kind, words) == (OptionReply.ERR_POLICY, b"rw: in use")
        assert second.answer(Option.INFO, info_request("rw")) == OptionReply.ACK
        first.do(Command.WRITE, 0, 512, data=b"x" * 512)
        first.send(Command.DISC)
        assert first.is_dropped()  # and so the disk is free
        assert second.answer(Option.GO, info_request("rw")) == OptionReply.ACK
        assert second.do(Command.READ, 0, 512, flags=0).error == 0
    assert disks["rw"].calls[:2] == ["write", "close"]


def test_who_does_not_go_for_good_keeps_nobody_waiting(disks: Disks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SETTLE_SECONDS", 1.5)  # more than the handshake may take here
    with (
        nbd_server(disks, handshake_seconds=1.0) as endpoint,
        endpoint.connect() as deaf,
        endpoint.connect() as holder,
        endpoint.connect() as late,
    ):
        deaf.go("ro")
        disks["ro"].memory.write(0, b"\1" * SIZE)
        for _ in range(4):
            deaf.send(Command.READ, 0, SIZE)
        deaf.send(Command.DISC)
        holder.go("rw")
        late.greet()
        assert late.answer(Option.GO, info_request("rw")) == OptionReply.ERR_POLICY
        assert late.answer(Option.GO, info_request("ro")) == OptionReply.ACK
        assert late.lives()


def test_idle_handshakes_are_dropped(disks: Disks) -> None:
    with nbd_server(disks, handshake_seconds=0.5) as endpoint, endpoint.connect() as silent, endpoint.connect() as slow:
        slow.greet()
        slow.socket.sendall(b"IHAVE")
        assert silent.is_dropped() and slow.is_dropped()
        with endpoint.connect() as idle:
            idle.go("ro")
            time.sleep(0.6)
            assert idle.lives()  # the time of a handshake is over when the handshake is


def test_a_client_too_many(disks: Disks) -> None:
    with nbd_server(disks) as endpoint, contextlib.ExitStack() as stack:
        wires = [stack.enter_context(endpoint.connect()) for _ in range(CONNECTIONS_MAX)]
        for wire in wires:
            wire.go("ro")
        with endpoint.connect() as late:
            assert late.is_dropped()
        assert all(wire.lives() for wire in wires)
        wires[0].socket.close()
        endpoint.wait_for(CONNECTIONS_MAX - 1)
        with endpoint.connect() as next_one:
            next_one.go("ro")
            assert next_one.lives()


def test_hang_ups_in_the_middle(endpoint: NbdEndpoint, disks: Disks) -> None:
    header = protocol.REQUEST.pack(protocol.REQUEST_MAGIC, 0, Command.WRITE, 1, 0, 4096)
    for part in (b"", header[:5], header, header + b"x" * 4095):
        with endpoint.connect() as wire:
            wire.go("rw")
            wire.socket.sendall(part)
        endpoint.wait_for(0)
    assert disks["rw"].calls == ["close"] * 4
    with endpoint.connect() as wire:
        wire.go("rw")
        wire.send(Command.WRITE, 0, 4096, data=b"x" * 4096)
    endpoint.wait_for(0)
    assert disks["rw"].calls[4:] == ["write", "close"]  # what was asked for whole is done
    with endpoint.connect() as wire:
        wire.greet()
        wire.send_option(Option.GO, info_request("rw"))
    endpoint.wait_for(0)
    assert disks["rw"].opened == 0


def test_who_says_no_more_still_hears(endpoint: NbdEndpoint) -> None:
    with endpoint.connect() as wire:
        wire.go("ro")
        cookies = [wire.send(Command.READ, number << 20, 1 << 20) for number in range(8)]
        wire.socket.shutdown(socket.SHUT_WR)
        assert sorted(wire.reply().cookie for _ in cookies) == cookies
        assert wire.is_dropped()


def test_stalled_clients_hold_up_nobody_and_little_memory(disks: Disks) -> None:
    disks["ro"].memory.write(0, b"\1" * SIZE)
    with nbd_server(disks) as endpoint, contextlib.ExitStack() as stack:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(4):
            deaf = stack.enter_context(endpoint.connect())
            deaf.go("ro")
            deaf.socket.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                for _ in range(2000):
                    deaf.send(Command.READ, 0, SIZE)
        half = stack.enter_context(endpoint.connect())
        half.go("rw")
        half.socket.sendall(protocol.REQUEST.pack(protocol.REQUEST_MAGIC, 0, Command.WRITE, 1, 0, SIZE) + b"x")
        with endpoint.connect() as wire:
            wire.go("ro")
            for _ in range(50):
                assert wire.do(Command.READ, 0, 4096).data == b"\1" * 4096
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
        assert grown < 4 * (2 * JOB_SIZE_MAX)


def test_a_stalled_disk_holds_up_nobody(endpoint: NbdEndpoint, disks: Disks) -> None:
    disks["rw"].gate.clear()
    with endpoint.connect() as stuck, endpoint.connect() as wire:
        stuck.go("rw")
        for number in range(100):
            stuck.send(Command.READ, number * 4096, 4096)
        wire.go("ro")
        assert wire.lives()
        disks["rw"].gate.set()
        assert sorted(stuck.reply().cookie for _ in range(100)) == list(range(1, 101))


def test_stalled_disks_of_many_hold_up_nobody(disks: Disks) -> None:
    stuck = [Disk() for _ in range(6)]
    disks.update({f"stuck{number}": disk for number, disk in enumerate(stuck)})
    disks["ro"].ready = False
    with nbd_server(disks) as endpoint, contextlib.ExitStack() as stack:
        for number, disk in enumerate(stuck):
            disk.gate.clear()
            stack.callback(disk.gate.set)
            waiting = stack.enter_context(endpoint.connect())
            waiting.socket.settimeout(TIME_MAX / 2)  # less than the disks are stuck for
            waiting.go(f"stuck{number}")
            for _ in range(JOBS_MAX):
                waiting.send(Command.READ, 0, 4096)
        wire = stack.enter_context(endpoint.connect())
        wire.socket.settimeout(TIME_MAX / 2)
        wire.go("ro")
        assert wire.lives()


def test_to_look_for_holes_holds_up_nobody(endpoint: NbdEndpoint, disks: Disks, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answered = threading.Event(), threading.Event()

    def extents(offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        asked.set()
        assert answered.wait(TIME_MAX)
        return disks["rw"].memory.extents(offset, length)

    monkeypatch.setattr(disks["rw"], "extents", extents)  # as of a file on a server that is slow to say where its holes are
    with endpoint.connect() as writer, endpoint.connect() as wire:
        writer.go("rw")
        wire.go("ro")
        wire.socket.settimeout(TIME_MAX / 2)
        cookie = writer.send(Command.READ, 0, 1 << 17)
        assert asked.wait(TIME_MAX)
        assert wire.lives()
        answered.set()
        assert writer.reply().cookie == cookie


def test_the_storage_has_all_the_time_at_the_end(disks: Disks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SHUTDOWN_SECONDS", 0.1)
    disks["rw"].closing_seconds = 1.0
    with nbd_server(disks) as endpoint, contextlib.closing(endpoint.connect().socket) as connection:
        wire = Wire(connection)
        wire.go("rw")
        assert wire.do(Command.WRITE, 0, 512, data=b"x" * 512).error == 0
    assert disks["rw"].calls == ["write", "close"]


def test_what_is_lost_when_a_client_goes_is_told(endpoint: NbdEndpoint, disks: Disks, caplog: pytest.LogCaptureFixture) -> None:
    with endpoint.connect() as wire:
        wire.go("rw")
        wire.do(Command.WRITE, 0, 512, data=b"x" * 512)
        disks["rw"].error = NoSpaceError("containers/a.vmdk: the datastore is full")
        wire.send(Command.DISC)
        assert wire.is_dropped()
    (record,) = caplog.records
    assert record.getMessage().endswith("may be lost: containers/a.vmdk: the datastore is full") and record.exc_info is None


def test_what_is_under_way_ends_before_the_server(disks: Disks) -> None:
    with contextlib.ExitStack() as stack:
        with nbd_server(disks) as endpoint:
            wire, idle = stack.enter_context(endpoint.connect()), stack.enter_context(endpoint.connect())
            wire.go("rw")
            idle.go("ro")
            shaking = stack.enter_context(endpoint.connect())
            shaking.greet()
            disks["rw"].gate.clear()
            wire.send(Command.WRITE, 0, 512, data=b"x" * 512)
            time.sleep(0.2)
            disks["rw"].gate.set()
        assert wire.reply().error == 0
        assert wire.is_dropped() and idle.is_dropped() and shaking.is_dropped()
    assert disks["rw"].calls == ["write", "close"]
    assert disks["ro"].opened == 0


def test_with_tls_nothing_is_told_before_it(disks: Disks, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    with nbd_server(disks, tls=authority.server_context()) as endpoint:
        with endpoint.connect() as wire:
            wire.greet()
            for option, data in (
                (Option.LIST, b""),
                (Option.INFO, info_request("ro")),
                (Option.GO, info_request("ro")),
                (Option.STRUCTURED_REPLY, b""),
                (77, b"x"),
                (Option.GO, bytes(300 << 10)),
            ):
                assert wire.answer(option, data) == OptionReply.ERR_TLS_REQD
            assert wire.answer(Option.STARTTLS, b"x") == OptionReply.ERR_INVALID
            assert wire.answer(Option.ABORT) == OptionReply.ACK
            assert wire.is_dropped()
        with endpoint.connect() as wire:
            wire.greet()
            wire.send_option(Option.EXPORT_NAME, b"ro")
            assert wire.is_dropped()
        assert disks["ro"].calls == []


def test_what_comes_before_tls_is_not_believed(disks: Disks, tmp_path: Path) -> None:
    """CVE-2021-3716: an option that somebody put between STARTTLS and the handshake."""
    authority = Authority(tmp_path / "authority")
    context = client_context(authority)
    with nbd_server(disks, tls=authority.server_context()) as endpoint:
        with endpoint.connect() as wire:
            wire.greet()
            injected = protocol.OPTION.pack(b"IHAVEOPT", Option.GO, len(info_request("ro"))) + info_request("ro")
            wire.socket.sendall(protocol.OPTION.pack(b"IHAVEOPT", Option.STARTTLS, 0) + injected)
            assert wire.option_replies(Option.STARTTLS) == [(OptionReply.ACK, b"")]
            assert wire.is_dropped()
        assert disks["ro"].calls == []
        with endpoint.connect() as wire:
            wire.greet()
            assert wire.answer(Option.STARTTLS) == OptionReply.ACK
            with context.wrap_socket(wire.socket, server_hostname="localhost") as wire.socket:
                assert wire.answer(Option.STARTTLS) == OptionReply.ERR_INVALID
                assert wire.answer(Option.SET_META_CONTEXT, context_request("ro", ALLOCATION)) == OptionReply.ERR_INVALID
                request = info_request("ro")
                together = protocol.OPTION.pack(b"IHAVEOPT", Option.GO, len(request)) + request
                together += protocol.REQUEST.pack(protocol.REQUEST_MAGIC, 0, Command.READ, 5, 0, 512)
                wire.socket.sendall(together)  # one record: what is behind the handshake waits in TLS, not in the socket
                assert wire.option_replies(Option.GO)[-1][0] == OptionReply.ACK
                assert wire.receive(16 + 512)[8:16] == (5).to_bytes(8, "big")


def client_context(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(authority.ca_file))
