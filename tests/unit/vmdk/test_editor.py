from __future__ import annotations

import struct

import pytest

from imgstore.blocks import GRAIN, Bytes
from imgstore.datastores import LiveFile, MemoryDatastore
from imgstore.errors import CorruptError, NoSpaceError, UnsupportedError
from imgstore.vmdk import EditedDisk, check_disk, open_chain, open_disk
from tests.disks import SIZE, add_disk, path_of

# Where things lie in a disk of 64 MiB, in bytes.
REDUNDANT_DIRECTORY, REDUNDANT_TABLE = 24 * 512, 32 * 512
DIRECTORY, TABLE = 40 * 512, 48 * 512


class Edits:
    """A disk in memory over a parent, and the intents that were kept of it."""

    def __init__(self) -> None:
        self.datastore = MemoryDatastore()
        base = add_disk(self.datastore, "base", None, [(0, b"b" * 4 * GRAIN)])
        add_disk(self.datastore, "a", base, [(0, b"a" * GRAIN), (5 * GRAIN, b"a" * GRAIN), (600 * GRAIN, b"a" * GRAIN)])
        self.intents: list[bytes | None] = []
        self.room = 1 << 40
        self._file: LiveFile | None = None

    def write(self, intent: bytes) -> None:
        if self.room < 1 << 40:
            raise NoSpaceError("intent: full")
        self.intents.append(intent)

    def erase(self) -> None:
        self.intents.append(None)

    def edit(self) -> EditedDisk:
        if self._file is not None:
            self._file.close()
        self._file = self.datastore.open_live(path_of("a"), writable=True)
        file = FullFile(self._file, self)
        chain = open_chain(lambda path: file if path == path_of("a") else self.datastore.open(path), path_of("a"))  # type: ignore[arg-type,return-value]
        return EditedDisk(chain, file, self, cache_size=2 * GRAIN)  # type: ignore[arg-type]

    def bytes(self) -> bytes:
        return self.datastore.fs.readbytes(path_of("a"))

    def read(self, offset: int, length: int) -> bytes:
        with open_chain(self.datastore.open, path_of("a")) as chain:
            return chain.read(offset, length)

    def patch(self, *patches: tuple[int, bytes]) -> None:
        data = bytearray(self.bytes())
        for offset, new in patches:
            data[offset : offset + len(new)] = new
        self.datastore.fs.writebytes(path_of("a"), bytes(data))

    def findings(self, *, sealed: bool) -> list[str]:
        with self.datastore.open(path_of("a")) as file:
            return [finding.problem for finding in check_disk(file, sealed=sealed)]


class FullFile:
    """A file that does not grow beyond the room."""

    def __init__(self, file: LiveFile, edits: Edits) -> None:
        self._file = file
        self._edits = edits

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)

    def pwrite(self, offset: int, data: Bytes) -> None:
        if offset + len(data) > self._edits.room:
            raise NoSpaceError(f"{self._file.path}: full")
        self._file.pwrite(offset, data)


@pytest.fixture
def edits() -> Edits:
    return Edits()


def test_what_is_committed_is_what_is_read(edits: Edits) -> None:
    device = edits.edit()
    device.write(GRAIN - 3, b"123456")
    device.write(601 * GRAIN, b"new" * GRAIN)
    assert device.read(GRAIN - 4, 8) == b"a123456b"
    assert edits.read(GRAIN - 4, 8) == b"aaaabbbb"
    device.commit()
    assert edits.read(GRAIN - 4, 8) == b"a123456b"
    assert edits.read(601 * GRAIN, 6) == b"newnew"
    assert edits.findings(sealed=False) == []
    assert len(edits.intents) == 2
    assert edits.intents[1] is None


def test_an_edit_that_writes_nothing_touches_nothing(edits: Edits) -> None:
    before = edits.bytes()
    device = edits.edit()
    assert device.read(0, 1) == b"a"
    device.write(9, b"")
    device.commit()
    device.discard()
    assert edits.bytes() == before
    assert edits.intents == []


def test_what_is_discarded_leaves_the_file_as_it_was(edits: Edits) -> None:
    before = edits.bytes()
    device = edits.edit()
    device.write(0, b"1" * 10 * GRAIN)
    assert edits.bytes() != before
    device.discard()
    device.discard()
    assert edits.bytes() == before
    with pytest.raises(ValueError, match="its edit is over"):
        device.write(0, b"1" * GRAIN)


def test_a_commit_can_be_followed_by_another(edits: Edits) -> None:
    device = edits.edit()
    for number in range(3):
        device.write(0, bytes([number]) * GRAIN)
        device.commit()
        assert edits.read(0, 2) == bytes([number]) * 2
    device.write(0, b"x")
    device.discard()
    assert edits.read(0, 2) == b"\2\2"


def test_the_places_of_replaced_grains_are_used_again(edits: Edits) -> None:
    size = len(edits.bytes())
    for number in range(6):
        device = edits.edit()
        device.write(5 * GRAIN, bytes([number]) * GRAIN)
        device.commit()
    assert len(edits.bytes()) == size + GRAIN
    assert edits.findings(sealed=False) == []
    [problem] = edits.findings(sealed=True)
    assert problem.startswith("the file has")


def test_the_content_id_changes_and_all_else_in_the_descriptor_stays(edits: Edits) -> None:
    edits.patch((512, edits.bytes()[512:1400].replace(b"toolsVersion", b"otherProgram")))
    before = open_disk(edits.datastore.open(path_of("a"))).descriptor
    device = edits.edit()
    device.write(0, b"x")
    device.commit()
    after = open_disk(edits.datastore.open(path_of("a"))).descriptor
    assert before.cid != after.cid
    assert after.ddb["longContentID"] == before.ddb["longContentID"][:24] + f"{after.cid:08x}"
    assert "otherProgram" in after.ddb
    assert (before.parent_cid, before.parent_hint, before.extent_name) == (after.parent_cid, after.parent_hint, after.extent_name)


def test_an_end_of_the_file_that_no_table_names_is_written_over(edits: Edits) -> None:
    size = len(edits.bytes())
    edits.datastore.fs.appendbytes(path_of("a"), b"z" * 70_001)
    assert edits.findings(sealed=False) == []
    device = edits.edit()
    device.write(7 * GRAIN, b"1" * GRAIN)
    device.commit()
    assert edits.bytes()[size : size + GRAIN] == b"1" * GRAIN
    assert edits.read(7 * GRAIN, GRAIN) == b"1" * GRAIN


def test_a_redundant_table_that_lags_behind_is_brought_up(edits: Edits) -> None:
    edits.patch((REDUNDANT_TABLE, bytes(4)))
    assert edits.findings(sealed=False) == []
    assert edits.findings(sealed=True) != []
    device = edits.edit()
    device.write(9 * GRAIN, b"1")
    device.commit()
    with edits.datastore.open(path_of("a")) as file:
        assert file.pread(REDUNDANT_TABLE, 2048) == file.pread(TABLE, 2048)


@pytest.mark.parametrize(
    ("patches", "error", "match"),
    [
        ([(TABLE + 12, struct.pack("<I", 128))], CorruptError, "4 grains lie at 3 places"),
        ([(TABLE + 12, struct.pack("<I", 250))], UnsupportedError, "sector 250 does not lie at a multiple of 128"),
        ([(REDUNDANT_DIRECTORY, bytes(4))], UnsupportedError, "grain table 0 is missing in a grain directory"),
        ([(REDUNDANT_DIRECTORY, b"\xff" * 4)], CorruptError, "outside the file"),
    ],
)
def test_a_damaged_disk_is_not_written(
    edits: Edits, patches: list[tuple[int, bytes]], error: type[Exception], match: str
) -> None:
    edits.patch(*patches)
    before = edits.bytes()
    device = edits.edit()
    with pytest.raises(error, match=match):
        device.write(0, b"x" * GRAIN)
        device.commit()
    device.discard()
    assert edits.bytes() == before


@pytest.mark.parametrize("room", [4, 5, 6])
def test_a_full_datastore_leaves_the_disk_as_it_was(edits: Edits, room: int) -> None:
    before = edits.bytes()
    assert len(before) == 4 * GRAIN
    edits.room = room * GRAIN
    device = edits.edit()
    with pytest.raises(NoSpaceError):
        for grain in (8, 0):
            device.write(grain * GRAIN, b"x" * GRAIN)
        device.commit()
    device.discard()
    assert edits.bytes() == before
    assert edits.intents == ([None] if room == 6 else [])  # erased, for nobody knows whether it was kept


def test_ranges_outside_are_the_callers_error(edits: Edits) -> None:
    device = edits.edit()
    with pytest.raises(ValueError, match="not inside"):
        device.write(SIZE - 1, b"xx")
