"""Volumes and volume stores: names, what is shared, what stays and what goes."""

from __future__ import annotations

import functools
import io
import random
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imgstore import layout
from imgstore.answers import Mount, Volume
from imgstore.blocks import MemoryBlockDevice
from imgstore.changes import Entry, FileType, HardLink
from imgstore.errors import AlreadyExistsError, CorruptError, ImgstoreError, InUseError, InvalidError, NoSpaceError, NotFoundError
from imgstore.ext4.format import format_file_system
from imgstore.ext4.reader import FileSystem
from imgstore.ext4.writer import LayerWriter
from imgstore.store import ImageStore
from imgstore.volume_contents import copy_up
from imgstore.volumes import DEPTH_LIMIT
from tests.command_line import REFERENCE

MIB = 1 << 20
SMALL = {"Capacity": "64"}


@pytest.fixture(params=["directory", "mem://"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ImageStore]:
    with ImageStore.open(request.param if "://" in request.param else str(tmp_path / "store")) as opened:
        yield opened


@pytest.fixture
def local(tmp_path: Path) -> Iterator[ImageStore]:
    with ImageStore.open(str(tmp_path / "store")) as opened:
        yield opened


def tar_of(**files: bytes) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    out.seek(0)
    return out


def files_of(store: ImageStore, source: str) -> dict[str, bytes]:
    body = io.BytesIO(b"".join(bytes(piece) for piece in store.export_volume(source)))
    with tarfile.open(fileobj=body) as archive:
        return {
            member.name: found.read()
            for member in archive
            if member.isreg() and (found := archive.extractfile(member)) is not None
        }


def names(store: ImageStore, **filters: str) -> list[str]:
    return [volume.name for volume in store.volumes({name: [value] for name, value in filters.items()})[0]]


def disks(local: ImageStore) -> set[str]:
    return {path.name for path in Path(local.location, "volumes").glob("*.vmdk")}


def assert_fails(kind: type[ImgstoreError], text: str, act: object, *args: object, **options: object) -> None:
    assert callable(act)
    with pytest.raises(kind) as caught:
        act(*args, **options)
    assert text == str(caught.value)


def test_a_volume_is_what_was_asked_for(store: ImageStore) -> None:
    made = store.create_volume("db", driver="vsphere", options={"CaPacity": "100"}, labels={"a": "b"})
    assert made == store.volume("db") == store.volumes()[0][0]
    assert (made.name, made.store, made.driver, made.options, made.labels) == (
        "db",
        "default",
        "vsphere",
        {"CaPacity": "100"},
        {"a": "b"},
    )
    assert (made.capacity, made.snapshots, made.used_by, made.anonymous) == (100 * MIB, (), (), False)
    assert 0 < made.size < 4 * MIB
    assert store.create_volume().capacity == 1024 * MIB
    assert files_of(store, "db") == {}
    assert list(store.check()) == []


def test_two_volumes_never_have_one_uuid(store: ImageStore) -> None:
    uuids = set()
    for name in "ab":
        store.create_volume(name, options=SMALL)
        with store._volumes.read(name) as chain:
            uuids.add(FileSystem(chain).super_block.uuid)
    assert len(uuids) == 2


def test_names_are_one_set_over_all_volume_stores(store: ImageStore) -> None:
    store.add_volume_store("other", "mem://")
    store.create_volume("a", options={**SMALL, "VolumeStore": "other"})
    text = "A volume named a already exists. Choose a different volume name."
    assert_fails(AlreadyExistsError, text, store.create_volume, "a")
    assert store.create_volume("a", exist_ok=True).store == "other"
    store.create_volume("b", options=SMALL)
    assert_fails(
        AlreadyExistsError, text.replace("named a", "named b"), store.create_volume, "b", options={"VolumeStore": "other"}
    )
    assert_fails(AlreadyExistsError, text, store.clone_volume, "b", "a")
    assert_fails(
        NotFoundError, "No volume store named (third) exists", store.create_volume, "c", options={"volumestore": "third"}
    )


def test_of_many_creators_of_one_name_one_wins(local: ImageStore) -> None:
    outcomes: list[str] = []

    def create() -> None:
        with ImageStore.open(local.location) as store:
            try:
                outcomes.append(store.create_volume("a", options=SMALL).disk)
            except AlreadyExistsError as error:
                outcomes.append(str(error))

    threads = [threading.Thread(target=create) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes)[1:] == ["A volume named a already exists. Choose a different volume name."] * 5
    assert disks(local) == {Path(local.volume("a").disk).name}


def test_what_is_not_there(store: ImageStore) -> None:
    assert_fails(NotFoundError, "No such volume: x", store.volume, "x")
    assert_fails(NotFoundError, "Get x: no such volume", store.remove_volume, "x")
    store.remove_volume("x", force=True)
    for act in (store.snapshot_volume, store.remove_snapshot, store.clone_volume):
        assert_fails(NotFoundError, "No such volume: x", act, "x", "s")
    assert_fails(NotFoundError, "No such volume: x", store.grow_volume, "x", MIB)
    assert_fails(NotFoundError, "No such volume: x", store.export_volume, "x")
    assert_fails(NotFoundError, "No such volume: x", store.import_volume, "x", tar_of())
    store.create_volume("a", options=SMALL)
    for act in (store.export_volume, store.clone_volume):
        assert_fails(NotFoundError, "volume a: no such snapshot: s", act, "a@s")
    assert_fails(NotFoundError, "volume a: no such snapshot: s", store.remove_snapshot, "a", "s")


def test_a_volume_that_a_container_has(local: ImageStore) -> None:
    local.pull(REFERENCE)
    local.create_volume("a", options=SMALL)
    container = local.create_container("three-layers", mounts=[Mount("a", "/data")])
    assert local.volume("a").used_by == (container.id,)
    assert_fails(InUseError, f"volume a in use by {container.id}", local.remove_volume, "a")
    assert_fails(InUseError, f"volume a in use by {container.id}", local.remove_volume, "a", force=True)
    assert local.prune_volumes({"all": ["true"]}).names == ()
    assert (names(local, dangling="true"), names(local, dangling="0")) == ([], ["a"])
    local.snapshot_volume("a", "s")
    assert local.remove_container(container.id) and names(local, dangling="true") == ["a"]
    local.remove_volume("a")


def test_a_volume_that_somebody_has_open(store: ImageStore) -> None:
    store.create_volume("a", options=SMALL)
    store.import_volume("a", tar_of(x=b"old"))
    before = store.volume("a")
    with store._volumes.edit("a"):
        for act in (
            lambda: store.remove_volume("a"),
            lambda: store.grow_volume("a", 128 * MIB),
            lambda: store.snapshot_volume("a", "s"),
            lambda: store.clone_volume("a", "b"),
            lambda: store.export_volume("a"),
            lambda: store.import_volume("a", tar_of()),
        ):
            with pytest.raises(InUseError, match="is in use by a running guest or another imgstore"):
                act()
        assert store.prune_volumes({"all": ["true"]}).names == ()
        assert [(usage.used, usage.free) for usage in store.volume_usage()] == [(None, None)]
        assert list(store.check()) == []
    assert [before] == store.volumes()[0]
    pieces = store.export_volume("a")
    next(pieces)
    with pytest.raises(InUseError):
        store.remove_volume("a")
    pieces.close()
    store.remove_volume("a")


def test_snapshots_and_clones_do_not_see_what_is_written_later(store: ImageStore) -> None:
    store.create_volume("a", options=SMALL)
    store.import_volume("a", tar_of(x=b"one", big=b"b" * MIB))
    store.snapshot_volume("a", "first")
    store.import_volume("a", tar_of(x=b"two"))
    store.clone_volume("a", "copy", labels={"of": "a"})
    store.clone_volume("a@first", "old")
    store.import_volume("a", tar_of(x=b"three"))
    store.import_volume("copy", tar_of(x=b"four"))
    assert {source: files_of(store, source)["x"] for source in ("a", "a@first", "copy", "old")} == {
        "a": b"three",
        "a@first": b"one",
        "copy": b"four",
        "old": b"one",
    }
    assert [snapshot.name for snapshot in store.volume("a").snapshots] == ["first"]
    assert store.volume("copy").labels == {"of": "a"}
    assert store.volume("old").size < 128 << 10, "what it shares is not its own"
    assert_fails(AlreadyExistsError, "volume a: there is a snapshot first already", store.snapshot_volume, "a", "first")
    with pytest.raises(InvalidError, match="includes invalid characters"):
        store.snapshot_volume("a", "b@c")
    assert list(store.check()) == []


def test_a_disk_stays_as_long_as_something_stands_on_it(local: ImageStore) -> None:
    local.create_volume("a", options=SMALL)
    local.import_volume("a", tar_of(x=b"one"))
    first = Path(local.volume("a").disk)
    local.snapshot_volume("a", "s")
    assert first.stat().st_mode & 0o777 == 0o444
    content = first.read_bytes()
    local.clone_volume("a@s", "b")
    local.clone_volume("b", "c")
    local.import_volume("c", tar_of(x=b"two"))
    local.remove_snapshot("a", "s")
    local.remove_volume("a")
    local.remove_volume("b")
    assert first.read_bytes() == content and files_of(local, "c") == {"x": b"two"}
    before = sum(path.stat().st_blocks * 512 for path in Path(local.location, "volumes").glob("*.vmdk"))
    assert local.volume("c").size == before
    assert local.prune_volumes({"all": ["1"]}).reclaimed == before
    assert disks(local) == set()


def test_an_empty_disk_is_not_stood_on(local: ImageStore) -> None:
    local.create_volume("a", options=SMALL)
    local.snapshot_volume("a", "s")
    for name in "bcd":
        local.clone_volume("a", name)
        local.clone_volume(name, name * 2)
        local.snapshot_volume(name, "t")
    assert len(disks(local)) == 1 + 7, "the first disk, and one of each volume"
    assert {volume.snapshots[0].disk for volume in local.volumes()[0] if volume.snapshots} == {
        local.volume("a").snapshots[0].disk
    }


def test_a_chain_does_not_get_longer_and_longer() -> None:
    with ImageStore.open("mem://") as store:
        store.create_volume("a", options=SMALL)
        store.import_volume("a", tar_of(x=b"x"))
        depths = []
        for number in range(DEPTH_LIMIT + 3):
            with store._volumes.edit("a") as device:
                device.write(60 * MIB, b"%d" % number)  # a free block
            store.snapshot_volume("a", "s")
            store.remove_snapshot("a", "s")
            with store._volumes.read("a") as chain:
                depths.append(len(chain.files))
                assert chain.read(60 * MIB, 2) == b"%d" % number + b"\0" * (number < 10)
        assert max(depths) == DEPTH_LIMIT and depths[-1] < 10
        assert files_of(store, "a") == {"x": b"x"}
        assert list(store.check()) == []


def test_growing_keeps_everything(store: ImageStore) -> None:
    store.create_volume("a", options=SMALL)
    store.import_volume("a", tar_of(x=b"one", big=b"b" * 3 * MIB))
    store.snapshot_volume("a", "s")
    store.import_volume("a", tar_of(y=b"two"))
    before = files_of(store, "a")
    assert_fails(
        InvalidError, f"volume a has {64 * MIB} bytes: it cannot get smaller, to {63 * MIB}", store.grow_volume, "a", 63 * MIB
    )
    disk = store.volume("a").disk
    assert store.grow_volume("a", 64 * MIB).disk == disk, "nothing to do"
    assert store.grow_volume("a", 200 * MIB + 1).capacity == 200 * MIB + 65536
    assert files_of(store, "a") == before
    assert sorted(files_of(store, "a@s")) == ["big", "x"]
    assert store.clone_volume("a@s", "old").capacity == 64 * MIB
    assert store.clone_volume("a@s", "larger", options={"Capacity": "100"}).capacity == 100 * MIB
    assert files_of(store, "larger") == files_of(store, "old")
    store.import_volume("a", tar_of(more=b"m" * 100 * MIB))
    with pytest.raises(InvalidError, match="a clone cannot have less"):
        store.clone_volume("a", "less", options=SMALL)
    assert list(store.check()) == []
    with pytest.raises(InvalidError):
        store.grow_volume("a", 3 << 40)


def test_a_clone_in_another_volume_store_is_a_copy(store: ImageStore) -> None:
    store.add_volume_store("other", "mem://")
    store.create_volume("a", options=SMALL)
    store.import_volume("a", tar_of(x=b"one"))
    clone = store.clone_volume("a", "b", options={"VolumeStore": "other"})
    assert (clone.store, store.volume("a").store) == ("other", "default")
    assert store.clone_volume("b").store == "other"
    store.remove_volume("a")
    assert files_of(store, "b") == {"x": b"one"}


def test_filters(store: ImageStore) -> None:
    store.create_volume("web-data", labels={"tier": "web", "keep": ""}, options=SMALL)
    store.create_volume("db-data", labels={"tier": "db"}, driver="vsphere", options=SMALL)
    anonymous = store.create_volume(options=SMALL)
    assert anonymous.anonymous and anonymous.labels == {"com.docker.volume.anonymous": ""}
    assert names(store, name="data") == ["db-data", "web-data"]
    assert names(store, name="web-d") == ["web-data"]
    assert names(store, driver="vsphere") == ["db-data"]
    assert names(store, driver="vsph") == []
    assert names(store, label="tier") == ["db-data", "web-data"]
    assert names(store, label="tier=db") == ["db-data"]
    assert len(names(store, dangling="true")) == 3 and names(store, dangling="false") == []
    assert_fails(InvalidError, "Invalid filter 'size'", store.volumes, {"size": ["1"]})
    assert_fails(InvalidError, "invalid filter 'dangling=[maybe]'", store.volumes, {"dangling": ["maybe"]})
    assert_fails(InvalidError, "Invalid filter 'dangling'", store.prune_volumes, {"dangling": ["true"]})
    assert store.prune_volumes({"label": ["keep"]}).names == ()
    assert store.prune_volumes().names == (anonymous.name,)
    assert store.prune_volumes({"all": ["true"], "label!": ["keep"]}).names == ("db-data",)
    assert names(store) == ["web-data"]


def test_an_import_is_all_or_nothing(store: ImageStore) -> None:
    store.create_volume("a", options=SMALL)
    store.import_volume("a", tar_of(x=b"old"))
    whole = tar_of(x=b"new", big=b"b" * MIB).getvalue()
    with pytest.raises(CorruptError, match="archive: tar entry 'big'"):
        store.import_volume("a", io.BytesIO(whole[: len(whole) // 2]))
    with pytest.raises(NoSpaceError):
        store.import_volume("a", tar_of(x=b"new", big=b"b" * 70 * MIB))
    with pytest.raises(NoSpaceError):
        store.import_volume("a", tar_of(x=b"new", big=b"b" * 40 * MIB, more=b"m" * 40 * MIB))
    with pytest.raises(NotFoundError):
        store.import_volume("a", Path("/no/such/file"))
    with pytest.raises(CorruptError):
        store.import_volume("a", io.BytesIO(b""))
    assert files_of(store, "a") == {"x": b"old"}
    assert list(store.check()) == []


def test_an_export_comes_back_as_the_same_bytes(store: ImageStore) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        root = tarfile.TarInfo("./")
        root.type, root.mode, root.uid, root.gid, root.mtime = tarfile.DIRTYPE, 0o2750, 999, 999, 1_700_000_000
        archive.addfile(root)
        for name, kind, link in (
            ("d", tarfile.DIRTYPE, ""),
            ("d/link", tarfile.SYMTYPE, "/etc/passwd"),
            ("d/.wh.x", tarfile.REGTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.mtime = kind, link, 1_600_000_000
            archive.addfile(member)
        hard = tarfile.TarInfo("d/hard")
        hard.type, hard.linkname = tarfile.LNKTYPE, "d/.wh.x"
        archive.addfile(hard)
    out.seek(0)
    for name in "ab":
        store.create_volume(name, options=SMALL)
    store.import_volume("a", out)
    first = b"".join(bytes(piece) for piece in store.export_volume("a"))
    store.import_volume("b", io.BytesIO(first))
    assert first == b"".join(bytes(piece) for piece in store.export_volume("b"))
    with tarfile.open(fileobj=io.BytesIO(first)) as archive:
        members = {member.name: member for member in archive}
    assert sorted(members) == [".", "d", "d/.wh.x", "d/hard", "d/link"]
    assert (members["."].mode, members["."].uid, members["."].mtime) == (0o2750, 999, 1_700_000_000)


def image_with(*entries: Entry | HardLink) -> FileSystem:
    device = MemoryBlockDevice(64 * MIB)
    format_file_system(device)
    writer = LayerWriter(device)
    for entry in entries:
        writer.apply(entry)
    writer.finish()
    return FileSystem(device)


def test_an_empty_volume_gets_what_the_image_has(store: ImageStore) -> None:
    data = Entry(b"var/lib/db/x", FileType.REGULAR, 0o600, size=3, data=[memoryview(b"abc")], mtime_ns=5)
    image = image_with(
        Entry(b"var/lib/db", FileType.DIRECTORY, 0o1700, 999, 998, mtime_ns=7),
        data,
        HardLink(b"var/lib/db/y", b"var/lib/db/x"),
        Entry(b"link", FileType.SYMLINK, 0o777, target=b"var/lib/db"),
        Entry(b"file", FileType.REGULAR, 0o644),
    )
    store.create_volume("a", options=SMALL)
    for path in (b"/nowhere", b"/no/where"):
        with store._volumes.edit("a") as device:
            assert not copy_up(device, image, path)
    with (
        pytest.raises(InvalidError, match="cannot mount volume over existing file, file exists /file"),
        store._volumes.edit("a") as device,
    ):
        copy_up(device, image, b"/file")
    with store._volumes.edit("a") as device:
        assert copy_up(device, image, b"/link")
    with store._volumes.edit("a") as device:
        assert not copy_up(device, image, b"/"), "it is not empty"
    assert files_of(store, "a")["x"] == b"abc"
    with store._volumes.read("a") as chain:
        found = FileSystem(chain)
        root, x, y = (found.status(found.lookup(path)) for path in (b"", b"x", b"y"))
    assert (root.mode, root.uid, root.gid, root.mtime_ns) == (0o1700, 999, 998, 7)
    assert (x.mode, x.mtime_ns, x.links, x.inode) == (0o600, 5, 2, y.inode)


def test_who_makes_a_container_keeps_its_volumes(local: ImageStore) -> None:
    local.create_volume("a", options=SMALL)
    removed = threading.Thread(target=local.remove_volume, args=("a",))
    with local._volumes.kept(["a", "a"]):
        removed.start()
        with local._volumes.edit("a") as device:
            device.write(0, bytes(10))
        removed.join(0.3)
        assert removed.is_alive() and names(local) == ["a"]
    removed.join()
    assert names(local) == []
    with pytest.raises(NotFoundError, match="No such volume: a"), local._volumes.kept(["a"]):
        pass


def test_damage_hides_nothing_else(local: ImageStore) -> None:
    for name in "abc":
        local.create_volume(name, options=SMALL)
    local.snapshot_volume("a", "s")
    local.clone_volume("a", "d")
    marker = Path(local.location, layout.volume_marker("d"))
    marker.write_bytes(marker.read_bytes().replace(b'"local"', b'"l0cal"'))
    (Path(local.location) / layout.volume_disk("0" * 32)).write_bytes(b"?")
    assert names(local) == ["a", "b", "c"]
    (warning,) = local.volumes()[1]
    assert warning.startswith(f"{layout.volume_marker('d')}: ")
    before = disks(local)
    local.remove_volume("a")
    assert len(before - disks(local)) == 1, "the damaged one may stand on the others"
    Path(local.volume("b").disk).unlink()
    problems = [finding.object for finding in local.check()]
    assert problems == [layout.volume_marker("d"), local.volume("b").disk.removeprefix(f"{local.location}/")]
    local.remove_volume("b")
    marker.unlink()
    assert {finding.problem for finding in local.check()} == {"no volume needs this disk"}
    assert_fails(NotFoundError, "No such volume: d", local.volume, "d")
    assert names(local) == ["c"]


def test_volume_stores_come_and_go(local: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "extra").mkdir()
    with ImageStore.open(local.location) as other:
        local.add_volume_store("extra", str(tmp_path / "extra"))
        other.create_volume("a", options={**SMALL, "volumestore": "extra"})
        assert [(info.name, info.volumes, info.problem) for info in local.volume_stores()] == [
            ("default", 0, None),
            ("extra", 1, None),
        ]
        assert_fails(AlreadyExistsError, "volumestore (extra) already added", other.add_volume_store, "extra", "mem://")
        assert_fails(AlreadyExistsError, "volumestore (default) already added", other.add_volume_store, "default", "mem://")
        with pytest.raises(AlreadyExistsError, match=r"is the place of volume store \(default\)"):
            other.add_volume_store("again", local.location)
        assert_fails(NotFoundError, f"{tmp_path}/none: no such directory", other.add_volume_store, "none", f"{tmp_path}/none")
        other.remove_volume_store("extra")
    assert names(local) == []
    assert_fails(NotFoundError, "volume store (extra) not found", local.remove_volume_store, "extra")
    with pytest.raises(InvalidError, match=r"\(default\) is the store itself"):
        local.remove_volume_store("default")
    with ImageStore.open(str(tmp_path / "second")) as second:
        second.add_volume_store("shared", f"file://{tmp_path}/extra")
        assert names(second) == ["a"] and second.volume("a").disk.startswith(str(tmp_path / "extra" / "volumes"))


def test_a_volume_store_whose_volume_a_container_has(local: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "extra").mkdir()
    local.add_volume_store("extra", str(tmp_path / "extra"))
    local.create_volume("a", options={**SMALL, "volumestore": "extra"})
    local.pull(REFERENCE)
    container = local.create_container("three-layers", mounts=[Mount("a", "/etc")])
    assert "hostname" in files_of(local, "a"), "what the image has there"
    text = "volume store (extra): containers have its volumes a"
    assert_fails(InUseError, text, local.remove_volume_store, "extra")
    (tmp_path / "extra").rename(tmp_path / "away")
    marker = layout.container_marker(container.id)
    assert ("its volume a is not there", marker) in [(finding.problem, finding.object) for finding in local.check()]
    local.remove_volume_store("extra")


def test_a_volume_hides_another_of_its_name(local: ImageStore, tmp_path: Path) -> None:
    with ImageStore.open(str(tmp_path / "second")) as second:
        for store in (local, second):
            store.create_volume("a", options=SMALL)
        local.add_volume_store("second", second.location)
        assert local.volume("a").store == "default"
        assert [finding.problem for finding in local.check()] == ["volume store default has a volume a too, which hides this one"]
        local.remove_volume("a")
        assert local.volume("a").store == "second" and list(local.check()) == []


def test_a_volume_store_that_cannot_be_reached_hides_no_other(local: ImageStore, tmp_path: Path) -> None:
    for name in ("gone", "file", "damaged"):
        (tmp_path / name).mkdir()
        local.add_volume_store(name, str(tmp_path / name))
        local.create_volume(f"in-{name}", options={**SMALL, "volumestore": name})
    local.create_volume("a", options=SMALL)
    for name in ("gone", "file"):
        shutil.rmtree(tmp_path / name)
    (tmp_path / "file").touch()
    Path(local.location, layout.volume_store_marker("damaged")).write_bytes(b"{")
    found, warnings = local.volumes()
    assert [volume.name for volume in found] == ["a"]
    assert len(warnings) == 3 and f"volume store gone: {tmp_path}/gone: no such directory" in warnings
    assert [info.problem is None for info in local.volume_stores()] == [True, False, False, False]
    assert_fails(NotFoundError, "No such volume: in-gone", local.volume, "in-gone")
    with pytest.raises(ImgstoreError, match="gone: no such directory"):
        local.create_volume("b", options={"VolumeStore": "gone"})
    assert len(list(local.check())) == 3
    for name in ("gone", "file", "damaged"):
        local.remove_volume_store(name)
    assert len(local.volume_stores()) == 1 and list(local.check()) == []


def test_what_a_crash_left_goes_with_the_next_start(local: ImageStore) -> None:
    local.create_volume("a", options=SMALL)
    local.snapshot_volume("a", "s")
    kept = disks(local)
    sealed = Path(local.volume("a").snapshots[0].disk)
    sealed.chmod(0o600)
    lease = local._volumes._stores.default.leases.acquire("volume-x")
    assert lease is not None
    stray = local._volumes._stores.default.disks.create(64 * MIB)
    Path(local.location, layout.volume_disk(stray)).with_suffix(".intent").write_bytes(b"x")
    lease.abandon()
    assert [finding.problem for finding in local.check()] == ["no volume needs this disk"]
    with ImageStore.open(local.location) as again:
        assert disks(again) == kept and list(again.check()) == []
    assert sealed.stat().st_mode & 0o777 == 0o444
    assert list(Path(local.location, "volumes").glob("*.intent")) == []


def test_a_disk_that_is_read_while_its_last_user_goes(local: ImageStore) -> None:
    local.create_volume("a", options=SMALL)
    local.snapshot_volume("a", "s")
    pieces = local.export_volume("a@s")
    next(pieces)
    local.remove_volume("a")
    assert len(disks(local)) == 1
    pieces.close()
    local.create_volume("b", options=SMALL)
    assert disks(local) == {Path(local.volume("b").disk).name}


def test_many_volumes_are_listed_quickly_enough_to_read_each_once(local: ImageStore) -> None:
    local.create_volume("v0", options=SMALL, labels={"n": "0"})
    for number in range(1, 60):
        local.clone_volume("v0", f"v{number}", labels={"n": str(number)})
    shown: list[Volume] = local.volumes({"label": ["n"]})[0]
    assert len(shown) == 60 and sum(volume.size for volume in shown) < 60 * 128 << 10
    report = local.prune_volumes({"all": ["true"]})
    assert len(report.names) == 60 and disks(local) == set()


def test_many_who_work_at_once_leave_a_whole_store(local: ImageStore) -> None:
    """Each with a store of its own, as processes have, on the same few names."""
    unexpected: list[BaseException] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        with ImageStore.open(local.location) as store:
            for _ in range(80):
                name, other = chance.choice("abc"), chance.choice("abc")
                actions: list[Callable[[], object]] = [
                    functools.partial(store.create_volume, name, options=SMALL),
                    functools.partial(store.clone_volume, name, other),
                    functools.partial(store.clone_volume, f"{name}@s", other),
                    functools.partial(store.snapshot_volume, name, "s"),
                    functools.partial(store.remove_snapshot, name, "s"),
                    functools.partial(store.import_volume, name, tar_of(x=b"x")),
                    functools.partial(store.grow_volume, name, 65 * MIB),
                    functools.partial(store.remove_volume, name),
                    store.volumes,
                ]
                try:
                    chance.choice(actions)()
                except (NotFoundError, AlreadyExistsError, InUseError):
                    pass
                except BaseException as error:
                    unexpected.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert unexpected == []
    assert list(local.check()) == []
    local.prune_volumes({"all": ["true"]})
    assert disks(local) == set() and list(Path(local.location, "volumes", ".leases").iterdir()) == []


def test_labels_that_do_not_fit(store: ImageStore) -> None:
    with pytest.raises(InvalidError, match="more than 1048576"):
        store.create_volume("a", labels={"x": "y" * MIB})
    assert names(store) == [] and list(store.check()) == []


def test_the_quota_counts_volumes(local: ImageStore) -> None:
    local.create_volume("a", options=SMALL)
    local.import_volume("a", tar_of(x=b"x" * 4 * MIB))
    assert local.quota().volumes > 4 * MIB
    local.set_quota(local.quota().used + MIB)
    with pytest.raises(NoSpaceError, match="Storage quota exceeds"):
        local.grow_volume("a", 128 * MIB)
    with pytest.raises(NoSpaceError, match="Storage quota exceeds"):
        local.import_volume("a", tar_of(y=b"y" * 4 * MIB))
    local.set_quota(1)
    for act in (local.create_volume, lambda: local.clone_volume("a")):
        with pytest.raises(NoSpaceError):
            act()
    assert local.volume("a").capacity == 64 * MIB
