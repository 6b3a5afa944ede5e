from __future__ import annotations

import pytest

from imgstore.blocks import GRAIN, Extent, ExtentKind
from imgstore.datastores import MemoryDatastore
from imgstore.errors import CorruptError, NotFoundError, UnsupportedError
from imgstore.vmdk import Chain, HostedDiskWriter, SnapshotDevice, derive_cid, open_chain, open_disk
from imgstore.vmdk import chain as chain_module
from tests.disks import SIZE, add_chain, add_disk, path_of


@pytest.fixture
def datastore() -> MemoryDatastore:
    return MemoryDatastore()


def raw_disk(datastore: MemoryDatastore, name: str, *, parent_cid: int | None, hint: str | None, size: int = SIZE) -> None:
    """A disk that says whatever the caller wants of its parent."""
    with datastore.stage("disks", name) as staging:
        file = staging.create(f"{name}.vmdk")
        HostedDiskWriter(
            file, capacity=size, cid=derive_cid(name), extent_name=f"{name}.vmdk", parent_cid=parent_cid, parent_hint=hint
        ).seal()
        staging.publish()


def test_a_chain_reads_what_was_written_last(datastore: MemoryDatastore) -> None:
    base = add_disk(datastore, "base", None, [(0, b"a" * 2 * GRAIN), (5 * GRAIN, b"b" * GRAIN)])
    add_disk(datastore, "top", base, [(GRAIN, b"c" * 10)])
    with open_chain(datastore.open, path_of("top")) as chain:
        assert chain.read(GRAIN - 2, 14) == b"aa" + b"c" * 10 + b"aa"
        assert chain.read(2 * GRAIN - 1, 2) == b"a\0"
        assert chain.read(5 * GRAIN - 1, 3) == b"\0bb"
        assert chain.read(SIZE, 0) == b""
        assert (chain.size, chain.cid, chain.path, len(chain.files)) == (SIZE, derive_cid("top"), path_of("top"), 2)


def test_extents_tell_data_from_holes(datastore: MemoryDatastore) -> None:
    base = add_disk(datastore, "base", None, [(0, b"a" * 2 * GRAIN)])
    chain = add_disk(datastore, "top", base, [(2 * GRAIN, b"c"), (700 * GRAIN, b"d")])
    data, hole = ExtentKind.DATA, ExtentKind.HOLE
    assert list(chain.extents()) == [
        Extent(0, 3 * GRAIN, data),
        Extent(3 * GRAIN, 697 * GRAIN, hole),
        Extent(700 * GRAIN, GRAIN, data),
        Extent(701 * GRAIN, SIZE - 701 * GRAIN, hole),
    ]
    assert list(chain.extents(3 * GRAIN - 7, 20)) == [Extent(3 * GRAIN - 7, 7, data), Extent(3 * GRAIN, 13, hole)]
    assert list(chain.extents(10, 0)) == []


def test_a_chain_that_grew_disk_by_disk_is_the_chain_opened_anew(datastore: MemoryDatastore) -> None:
    grown, model = add_chain(datastore, 5, seed=1)
    opened = open_chain(datastore.open, path_of("d4"))
    joined = open_chain(datastore.open, path_of("d3")).with_child(open_disk(datastore.open(path_of("d4"))))
    for chain in (grown, opened, joined):
        assert chain.read(0, SIZE) == model
        assert list(chain.extents()) == list(opened.extents())
        assert chain.cid == opened.cid


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, -1), (SIZE, 1), (0, SIZE + 1)])
def test_a_range_outside_is_the_callers_error(datastore: MemoryDatastore, offset: int, length: int) -> None:
    chain = add_disk(datastore, "a", None, [])
    with pytest.raises(ValueError, match="not inside"):
        chain.read(offset, length)
    with pytest.raises(ValueError, match="not inside"):
        chain.extents(offset, length)


def test_a_parent_with_another_content_id_is_refused(datastore: MemoryDatastore) -> None:
    add_disk(datastore, "base", None, [])
    raw_disk(datastore, "top", parent_cid=5, hint="base.vmdk")
    with pytest.raises(CorruptError, match=rf"{path_of('top')}: has parent content id 00000005, but {path_of('base')} has"):
        open_chain(datastore.open, path_of("top"))


def test_a_larger_parent_is_refused(datastore: MemoryDatastore) -> None:
    add_disk(datastore, "base", None, [])
    raw_disk(datastore, "top", parent_cid=derive_cid("base"), hint="base.vmdk", size=SIZE // 2)
    with pytest.raises(CorruptError, match=rf"{path_of('top')}: .*{SIZE // 2} bytes, but its parent {path_of('base')}"):
        open_chain(datastore.open, path_of("top"))


def test_a_chain_in_the_wrong_order_is_refused(datastore: MemoryDatastore) -> None:
    add_chain(datastore, 3, seed=1)
    disks = [open_disk(datastore.open(path_of(name))) for name in ("d0", "d2", "d1")]
    with pytest.raises(CorruptError, match=f"{path_of('d2')}: has parent content id"):
        Chain(disks)
    with pytest.raises(CorruptError, match=f"{path_of('d1')}: has a parent"):
        Chain(disks[2:])


def test_a_disk_under_another_name_is_not_the_parent(datastore: MemoryDatastore) -> None:
    add_chain(datastore, 2, seed=1)
    datastore.fs.makedir("other")
    datastore.fs.copy("disks/d0.vmdk", "other/d0.vmdk")
    with pytest.raises(CorruptError, match=r"its hint 'd0.vmdk' does not name its parent other/d0.vmdk"):
        open_chain(datastore.open, "other/d0.vmdk").with_child(open_disk(datastore.open(path_of("d1"))))


def test_a_circle_is_refused(datastore: MemoryDatastore) -> None:
    raw_disk(datastore, "a", parent_cid=derive_cid("b"), hint="b.vmdk")
    raw_disk(datastore, "b", parent_cid=derive_cid("a"), hint="a.vmdk")
    with pytest.raises(CorruptError, match=f"{path_of('b')}: its parent {path_of('a')} is in the chain already"):
        open_chain(datastore.open, path_of("a"))


def test_a_chain_has_a_bound(datastore: MemoryDatastore, monkeypatch: pytest.MonkeyPatch) -> None:
    add_chain(datastore, 4, seed=1, writes=0)
    monkeypatch.setattr(chain_module, "MAX_DEPTH", 3)
    open_chain(datastore.open, path_of("d2"))
    with pytest.raises(UnsupportedError, match="more than 3 disks"):
        open_chain(datastore.open, path_of("d3"))


def test_a_hint_that_leaves_the_datastore_is_refused(datastore: MemoryDatastore) -> None:
    raw_disk(datastore, "a", parent_cid=5, hint="../../../etc/shadow")
    with pytest.raises(CorruptError, match="not a relative path inside the datastore"):
        open_chain(datastore.open, path_of("a"))


@pytest.mark.parametrize("hint", ["/etc/shadow", "nbd:10.0.0.1", "a\\b"])
def test_a_hint_that_is_no_plain_path_is_refused(datastore: MemoryDatastore, hint: str) -> None:
    raw_disk(datastore, "a", parent_cid=5, hint="x" * len(hint))
    data = datastore.fs.readbytes(path_of("a"))
    datastore.fs.writebytes(path_of("a"), data.replace(b'"' + b"x" * len(hint) + b'"', f'"{hint}"'.encode()))
    with pytest.raises(CorruptError, match="not a relative path inside the datastore"):
        open_chain(datastore.open, path_of("a"))


def test_a_missing_parent_is_named(datastore: MemoryDatastore) -> None:
    raw_disk(datastore, "a", parent_cid=5, hint="b.vmdk")
    with pytest.raises(NotFoundError, match=path_of("b")):
        open_chain(datastore.open, path_of("a"))


def test_a_file_that_lost_its_end_is_an_error_not_zeros(datastore: MemoryDatastore) -> None:
    chain = add_disk(datastore, "a", None, [(0, b"a" * 2 * GRAIN)])
    chain.close()
    chain = open_chain(datastore.open, path_of("a"))
    with datastore.fs.openbin(path_of("a"), "r+") as file:
        file.truncate(2 * GRAIN + 10)
    with pytest.raises(CorruptError, match=f"{path_of('a')} at byte {GRAIN}: {2 * GRAIN} bytes are needed, the file ends after"):
        chain.read(0, 2 * GRAIN)


def test_no_file_stays_open_when_opening_fails(datastore: MemoryDatastore) -> None:
    add_chain(datastore, 3, seed=1)
    opened = []

    def open_file(path: str) -> object:
        if path == path_of("d0"):
            raise NotFoundError(path)
        opened.append(datastore.open(path))
        return opened[-1]

    with pytest.raises(NotFoundError):
        open_chain(open_file, path_of("d2"))  # type: ignore[arg-type]
    assert len(opened) == 2
    for file in opened:
        with pytest.raises(ValueError, match="closed"):
            file.pread(0, 1)


def test_a_device_wants_the_parent_that_its_disk_names(datastore: MemoryDatastore) -> None:
    parent = add_disk(datastore, "base", None, [])
    file = datastore.stage("disks", "a").create("a.vmdk")
    with pytest.raises(ValueError, match="names another parent"):
        SnapshotDevice(HostedDiskWriter(file, capacity=SIZE, cid=1, extent_name="a.vmdk"), parent)
    with pytest.raises(ValueError, match="but its parent one of"):
        SnapshotDevice(HostedDiskWriter(file, capacity=2 * SIZE, cid=1, extent_name="a.vmdk"), parent)
