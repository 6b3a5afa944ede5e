"""Commands: the bytes of replies, and what of a device each request asks."""

from __future__ import annotations

import pytest

from imgstore.blocks import GRAIN
from imgstore.nbd import commands, protocol
from imgstore.nbd.commands import READY_REPLY_MAX, READY_SIZE_MAX, Commands
from imgstore.nbd.protocol import Chunk, Command, CommandFlag, Request
from tests.servers.nbd import SIZE, Disk

COOKIE = 0x0123456789ABCDEF


@pytest.fixture
def disk() -> Disk:
    disk = Disk()
    disk.memory.write(GRAIN, b"\1" * GRAIN)
    disk.memory.write(3 * GRAIN, b"\3" * GRAIN)
    return disk


def request(command: Command, offset: int = 0, length: int = 0, flags: int = 0) -> Request:
    return Request(flags, command, COOKIE, offset, length)


def perform(disk: Disk, asked: Request, data: bytes = b"", *, structured: bool = True) -> bytes:
    return b"".join(Commands(disk, structured=structured, allocation=True).perform(asked, data))


def read_now(disk: Disk, asked: Request, *, structured: bool = True) -> bytes:
    out = bytearray(READY_REPLY_MAX)
    return bytes(out[: Commands(disk, structured=structured, allocation=True).read_now(asked, memoryview(out))])


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize(
    "asked",
    [
        request(Command.READ, GRAIN, 4096),
        request(Command.READ, 5, 1),
        request(Command.READ, 0, 4 * GRAIN),
        request(Command.READ, 0, 4 * GRAIN, CommandFlag.DF),
        request(Command.READ, 4 * GRAIN, 3 * GRAIN),
    ],
)
def test_what_is_in_memory_is_answered_as_what_is_not(disk: Disk, asked: Request, structured: bool) -> None:
    disk.read_only = True
    assert read_now(disk, asked, structured=structured) == perform(disk, asked, structured=structured) != b""
    disk.ready = False
    if disk.memory.read(asked.offset, asked.length).strip(b"\0"):
        assert read_now(disk, asked, structured=structured) == b""


def test_a_disk_that_is_written_is_asked_for_its_holes_in_a_thread(disk: Disk) -> None:
    assert read_now(disk, request(Command.READ, 0, 4 * GRAIN), structured=True) == b""
    assert read_now(disk, request(Command.READ, 0, 4 * GRAIN, CommandFlag.DF), structured=True) != b""


def test_long_reads_tell_holes(disk: Disk) -> None:
    reply = perform(disk, request(Command.READ, GRAIN, 3 * GRAIN))
    kinds = []
    while reply:
        magic, flags, kind, cookie, length = protocol.CHUNK.unpack_from(reply)
        assert (magic, cookie) == (0x668E33EF, COOKIE)
        kinds.append((kind, flags, length))
        reply = reply[protocol.CHUNK.size + length :]
    assert kinds == [(Chunk.OFFSET_DATA, 0, GRAIN + 8), (Chunk.OFFSET_HOLE, 0, 12), (Chunk.OFFSET_DATA, 1, GRAIN + 8)]
    whole = perform(disk, request(Command.READ, GRAIN, 3 * GRAIN, CommandFlag.DF))
    assert len(whole) == protocol.DATA_CHUNK.size + 3 * GRAIN


def test_a_read_with_more_holes_than_fit_goes_to_a_thread(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk.memory, "PAGE", 512)  # from here on, as a file system with small blocks
    disk.memory._pages.clear()
    disk.read_only = True
    for offset in range(0, READY_SIZE_MAX, 1024):
        disk.memory._pages[offset // 512] = bytearray(b"\1" * 512)
    asked = request(Command.READ, 0, READY_SIZE_MAX)
    assert len(perform(disk, asked)) > READY_SIZE_MAX // 2
    asked = request(Command.READ, 0, READY_SIZE_MAX)
    out = bytearray(8 << 10)
    assert Commands(disk, structured=True, allocation=True).read_now(asked, memoryview(out)) == 0


def test_the_first_bytes_of_replies(disk: Disk) -> None:
    cookie = COOKIE.to_bytes(8, "big")
    assert perform(disk, request(Command.READ, 0, 1), structured=False) == b"\x67\x44\x66\x98" + bytes(4) + cookie + b"\0"
    assert perform(disk, request(Command.READ), structured=False) == b"\x67\x44\x66\x98" + bytes(4) + cookie
    assert perform(disk, request(Command.READ)) == b"\x66\x8e\x33\xef\0\1\0\0" + cookie + bytes(4)
    status = perform(disk, request(Command.BLOCK_STATUS, 0, 2 * GRAIN))
    assert status == b"\x66\x8e\x33\xef\0\1\0\5" + cookie + b"\0\0\0\x14\0\0\0\1" + b"\0\1\0\0\0\0\0\3" + b"\0\1\0\0\0\0\0\0"


def test_block_status_is_bounded(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    header = protocol.CHUNK.size + 4
    assert len(perform(disk, request(Command.BLOCK_STATUS, 0, SIZE))) == header + 5 * 8
    assert len(perform(disk, request(Command.BLOCK_STATUS, 0, SIZE, CommandFlag.REQ_ONE))) == header + 8
    monkeypatch.setattr(commands, "EXTENTS_MAX", 2)
    assert len(perform(disk, request(Command.BLOCK_STATUS, 0, SIZE))) == header + 2 * 8


@pytest.mark.parametrize(
    ("asked", "calls"),
    [
        (request(Command.WRITE, 0, 4), ["write"]),
        (request(Command.WRITE, 0, 4, CommandFlag.FUA), ["write", "flush"]),
        (request(Command.TRIM, 0, 4, CommandFlag.FUA), ["trim", "flush"]),
        (request(Command.WRITE_ZEROES, 0, 4), ["zero keep_space=False"]),
        (request(Command.WRITE_ZEROES, 0, 4, CommandFlag.NO_HOLE | CommandFlag.FUA), ["zero keep_space=True", "flush"]),
        (request(Command.WRITE_ZEROES, 0, 4, CommandFlag.FAST_ZERO), ["zero keep_space=False"]),
        (request(Command.FLUSH), ["flush"]),
        (request(Command.CACHE, 0, SIZE), []),
        (request(Command.READ, 0, 4, CommandFlag.FUA), []),
    ],
)
def test_what_is_asked_of_the_device(disk: Disk, asked: Request, calls: list[str]) -> None:
    assert Commands(disk, structured=True, allocation=True).refusal(asked) is None
    perform(disk, asked, b"abcd" if asked.command == Command.WRITE else b"")
    assert disk.calls == calls


def test_nothing_unexpected_is_told(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    disk.error = RuntimeError("the password is swordfish")
    reply = perform(disk, request(Command.READ, 0, 512))
    assert b"the server's log has it" in reply and b"swordfish" not in reply
    assert "swordfish" in caplog.text
