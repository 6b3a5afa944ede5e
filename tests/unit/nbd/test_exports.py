"""Exports: names, flags, and what may not be written."""

from __future__ import annotations

import pytest

from imgstore.errors import InUseError, NotFoundError
from imgstore.nbd.exports import Exports, transmission_flags
from imgstore.nbd.protocol import TransmissionFlag
from tests.servers.nbd import SIZE, Disk, Disks

READ_ONLY, WRITABLE = transmission_flags(read_only=True), transmission_flags(read_only=False)


@pytest.fixture
def disks() -> Disks:
    return Disks({"rw": Disk(), "ro": Disk(read_only=True), "rw?snapshot": Disk(), "x" * 4097: Disk()})


def test_names(disks: Disks) -> None:
    assert list(Exports(disks).list()) == [(b"rw", b"disk rw"), (b"ro", b"disk ro"), (b"rw?snapshot", b"disk rw?snapshot")]
    assert list(Exports(disks, ["ro", "ro?snapshot"]).list()) == [(b"ro", b"disk ro"), (b"ro?snapshot", b"")]
    one = Exports(disks, ["rw"])
    assert one.open("") is disks["rw"]
    one.open("rw?snapshot").close()
    assert Exports(disks, ["rw?snapshot", "ro"]).open("rw?snapshot") is disks["rw?snapshot"]
    for exports, name in (
        (one, "ro"),
        (Exports(disks, ["rw?snapshot"]), "rw"),
        (Exports(disks), ""),
        (Exports(disks, ["rw", "ro"]), ""),
        (Exports(disks), "none"),
    ):
        with pytest.raises(NotFoundError):
            exports.open(name)


def test_descriptions(disks: Disks) -> None:
    exports = Exports(disks)
    assert exports.describe("ro") == (SIZE, READ_ONLY)
    assert exports.describe("rw") == (SIZE, WRITABLE)
    assert [disk.calls for disk in disks.values()] == [[]] * 4
    exports.open("rw")
    assert exports.describe("rw") == (SIZE, WRITABLE)
    assert Exports(disks, read_only=True).describe("rw") == (SIZE, READ_ONLY)
    with pytest.raises(InUseError):
        exports.open("rw")
    disks["secret"] = disks.pop("rw")
    with pytest.raises(NotFoundError):
        exports.describe("rw")


def test_only_who_cannot_write_may_connect_several_times() -> None:
    assert TransmissionFlag.CAN_MULTI_CONN in READ_ONLY and TransmissionFlag.CAN_MULTI_CONN not in WRITABLE
    assert TransmissionFlag.READ_ONLY in READ_ONLY and TransmissionFlag.SEND_TRIM not in READ_ONLY
