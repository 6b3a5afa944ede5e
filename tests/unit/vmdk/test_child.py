from __future__ import annotations

import secrets

import pytest

from imgstore.blocks import GRAIN, Bytes, Extent, ExtentKind
from imgstore.datastores import MemoryDatastore, StagedFile
from imgstore.errors import CorruptError, InvalidError, NoSpaceError, UnsupportedError
from imgstore.vmdk import Chain, check_disk, derive_cid, open_chain, random_cid, write_child
from tests.disks import SIZE, add_disk, path_of


def add_child(datastore: MemoryDatastore, name: str, parent: Chain, capacity: int) -> None:
    with datastore.create(path_of(name)) as file:
        write_child(file, capacity=capacity, cid=7, extent_name=f"{name}.vmdk", parent_cid=parent.cid, parent_hint="base.vmdk")


def test_an_empty_disk_shows_its_parent(tmp_path_factory: pytest.TempPathFactory) -> None:
    datastore = MemoryDatastore()
    base = add_disk(datastore, "base", None, [(5, b"below")])
    add_child(datastore, "child", base, SIZE)
    with datastore.open(path_of("child")) as file:
        assert check_disk(file) == []
        assert file.size == GRAIN
    with open_chain(datastore.open, path_of("child")) as chain:
        assert chain.read(0, 10) == bytes(5) + b"below"
        assert (list(chain.own_ranges()), chain.size, chain.cid) == ([], SIZE, 7)


def test_a_disk_may_be_larger_than_its_parent() -> None:
    datastore = MemoryDatastore()
    base = add_disk(datastore, "base", None, [(SIZE - 5, b"below")])
    add_child(datastore, "child", base, 3 * SIZE + GRAIN)
    with open_chain(datastore.open, path_of("child")) as chain:
        assert chain.size == 3 * SIZE + GRAIN
        assert chain.read(SIZE - 5, 10) == b"below" + bytes(5)
        assert list(chain.extents(SIZE - GRAIN)) == [
            Extent(SIZE - GRAIN, GRAIN, ExtentKind.DATA),
            Extent(SIZE, 2 * SIZE + GRAIN, ExtentKind.HOLE),
        ]
    with pytest.raises(CorruptError, match=f"disk of {SIZE // 2} bytes, but its parent .* one of {SIZE}"):
        add_child(datastore, "small", base, SIZE // 2)
        open_chain(datastore.open, path_of("small"))


def test_what_a_parent_has_past_its_end_stays_hidden() -> None:
    datastore = MemoryDatastore()
    size = 3 * GRAIN
    base = add_disk(datastore, "base", None, [(0, b"a" * 3 * GRAIN)], size=size)
    for table in (32 * 512, 48 * 512):
        with datastore.open_live(path_of("base"), writable=True) as file:
            file.pwrite(table + 3 * 4, file.pread(table, 4))
    add_child(datastore, "child", base, 8 * GRAIN)
    with open_chain(datastore.open, path_of("child")) as chain:
        assert chain.read(2 * GRAIN, 6 * GRAIN) == b"a" * GRAIN + bytes(5 * GRAIN)


def test_a_smaller_parent_ends_with_a_grain() -> None:
    datastore = MemoryDatastore()
    base = add_disk(datastore, "base", None, [], size=2 * GRAIN)
    with datastore.open_live(path_of("base"), writable=True) as file:
        file.pwrite(12, (129).to_bytes(8, "little"))
        text = file.pread(512, 512)
        file.pwrite(512, text.replace(b"RW 256 ", b"RW 129 "))
    add_child(datastore, "child", base, 8 * GRAIN)
    with pytest.raises(UnsupportedError, match=f"{129 * 512} bytes ends within a grain"):
        open_chain(datastore.open, path_of("child"))


class CountedFile:
    """Counts the bytes and the writes that reach a file, and has room for so many."""

    def __init__(self, file: StagedFile, room: int = 1 << 40) -> None:
        self._file = file
        self._room = room
        self.writes: list[int] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)

    def pwrite(self, offset: int, data: Bytes) -> None:
        if offset + len(data) > self._room:
            raise NoSpaceError(f"{self._file.path}: full")
        self.writes.append(len(data))
        self._file.pwrite(offset, data)


def test_a_disk_takes_three_short_writes() -> None:
    file = CountedFile(MemoryDatastore().create("a.vmdk"))
    write_child(file, capacity=8 << 30, cid=7, extent_name="a.vmdk")  # type: ignore[arg-type]
    assert len(file.writes) == 3
    assert max(file.writes) < 2048


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"capacity": GRAIN + 512}, "must be a multiple"),
        ({"cid": 0xFFFFFFFF}, "reserved"),
        ({"extent_name": "a/b.vmdk"}, "extent name"),
        ({"parent_cid": 5}, "needs both"),
        ({"parent_cid": 5, "parent_hint": "/a.vmdk"}, "not a relative path"),
    ],
)
def test_what_no_disk_can_have_is_refused(words: dict[str, object], match: str) -> None:
    datastore = MemoryDatastore()
    with datastore.create("a.vmdk") as file, pytest.raises(InvalidError, match=match):
        write_child(file, **({"capacity": SIZE, "cid": 7, "extent_name": "a.vmdk"} | words))  # type: ignore[arg-type]
    assert datastore.usage("a.vmdk") == 0


def test_random_content_ids_mean_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    rolls = iter([0, 0xFFFFFFFF, 0xFFFFFFFE, derive_cid("a")])
    monkeypatch.setattr(secrets, "randbits", lambda _: next(rolls))
    assert random_cid() == derive_cid("a")
