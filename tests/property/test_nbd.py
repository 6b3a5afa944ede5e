"""Any bytes to the NBD server: it drops the client or goes on, and the other clients do not notice."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgstore.nbd import protocol
from imgstore.nbd.protocol import ALLOCATION, Command, Option
from tests.servers.nbd import SIZE, Disk, Disks, NbdEndpoint, Wire, context_request, info_request, nbd_server

RAW = st.binary(max_size=200)
OPTIONS = st.builds(
    lambda option, data, lie: protocol.OPTION.pack(b"IHAVEOPT", option, max(0, len(data) + lie)) + data,
    st.sampled_from([*Option, 4, 11, 0xFFFFFFFF]),
    st.one_of(RAW, st.just(b""), st.just(info_request("ro", 3)), st.just(context_request("ro", ALLOCATION))),
    st.sampled_from([0, 0, 0, 1, -1, 100_000]),
)
LENGTHS = st.sampled_from([0, 1, 512, 4096, 70_000, SIZE, 32 << 20, 0xFFFFFFFF])
REQUESTS = st.builds(
    lambda flags, command, offset, length, data: (
        protocol.REQUEST.pack(protocol.REQUEST_MAGIC, flags, command, 7, offset, length) + data
    ),
    st.integers(0, 31),
    st.sampled_from([*Command, Command.READ, Command.WRITE, 9]),
    st.sampled_from([0, 1, 4096, SIZE - 1, SIZE, 2**63, 2**64 - 1]),
    LENGTHS,
    RAW,
)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[NbdEndpoint]:
    with nbd_server(Disks({"rw": Disk(), "ro": Disk(read_only=True)})) as server:
        yield server


@pytest.fixture(scope="module")
def bystander(endpoint: NbdEndpoint) -> Iterator[Wire]:
    with endpoint.connect() as wire:
        wire.go("ro")
        yield wire


def say(wire: Wire, data: bytes) -> None:
    """Sends, and hears the answers until the server has no more to say and closes."""

    def send() -> None:
        with contextlib.suppress(OSError):
            wire.socket.sendall(data)
            wire.socket.shutdown(1)

    thread = threading.Thread(target=send)
    thread.start()
    assert wire.is_dropped()
    thread.join()


@given(parts=st.lists(st.one_of(OPTIONS, RAW), max_size=5))
def test_any_handshake(endpoint: NbdEndpoint, bystander: Wire, parts: list[bytes]) -> None:
    with endpoint.connect() as wire:
        wire.greet()
        say(wire, b"".join(parts))
    assert bystander.lives()


@given(parts=st.lists(st.one_of(REQUESTS, RAW), max_size=8), structured=st.booleans())
def test_any_requests(endpoint: NbdEndpoint, bystander: Wire, parts: list[bytes], structured: bool) -> None:
    with endpoint.connect() as wire:
        wire.go("rw", structured=structured)
        say(wire, b"".join(parts))
    assert bystander.lives()
    endpoint.wait_for(1)
