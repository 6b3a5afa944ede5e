"""What every datastore does, whatever it is made of; and PyFilesystem's own suite on the ``fs`` of each."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import threading
import time
import unittest
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from imgstore.datastores import Datastore, LocalDatastore, MemoryDatastore
from imgstore.datastores.datastore import list_names
from imgstore.datastores.vsphere import VsphereDatastore
from imgstore.errors import (
    AlreadyExistsError,
    CorruptError,
    DeniedError,
    InUseError,
    InvalidError,
    NotFoundError,
    UnsupportedError,
)
from imgstore.vsphere.locations import parse_datastore
from tests.disks import read_ready
from tests.servers.vcsim import Vcsim, vcsim

from fs.base import FS  # isort: skip
from fs.test import FSTestCases  # isort: skip

LOCAL_KINDS: dict[str, Callable[[Path], Datastore]] = {
    "local": lambda directory: LocalDatastore(directory / "store", create=True),
    "memory": lambda _: MemoryDatastore(),
}

BAD_PATHS = ["/a", "a/", "a//b", "..", "../a", "a/../b", "a/.", "a\0b"]


@pytest.fixture(scope="module")
def vsphere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vcsim]:
    with vcsim(tmp_path_factory.mktemp("vcsim") / "server") as server:
        yield server


@pytest.fixture(params=[*LOCAL_KINDS, "vsphere"])
def datastore(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Datastore]:
    if request.param == "vsphere":
        server = request.getfixturevalue("vsphere")
        with VsphereDatastore(parse_datastore(server.url(f"{tmp_path.name} [%25]/store")), server.login) as made:
            yield made
        return
    with LOCAL_KINDS[request.param](tmp_path) as made:
        yield made


def has_parts(datastore: Datastore) -> bool:
    """Whether what is being made lies on the datastore already."""
    return not isinstance(datastore, VsphereDatastore)


def publish(datastore: Datastore, directory: str, **files: bytes) -> None:
    with datastore.stage(directory, "test") as staging:
        for name, data in files.items():
            with staging.create(name) as file:
                file.pwrite(0, data)
        staging.publish()


class TestStaging:
    def test_nothing_is_visible_before_it_is_published(self, datastore: Datastore) -> None:
        staging = datastore.stage("deep/disks", "a")
        file = staging.create("x")
        file.pwrite(0, b"data")
        assert datastore.list("deep/disks") == []
        assert not datastore.exists("deep/disks/x")
        with pytest.raises(NotFoundError):
            datastore.open("deep/disks/x")
        parts = datastore.parts("deep/disks")
        assert [part.rpartition(".")[0].rpartition(".")[0] for part in parts] == ["deep/disks/.a"] * has_parts(datastore)
        staging.publish()
        assert datastore.list("deep/disks") == ["x"]
        assert datastore.read_bytes("deep/disks/x") == b"data"
        assert datastore.parts("deep/disks") == []

    def test_files_of_many_stagings_lie_in_one_directory(self, datastore: Datastore) -> None:
        with datastore.stage("disks", "same name") as first, datastore.stage("disks", "same name") as second:
            first.create("a").pwrite(0, b"first")
            second.create("c").pwrite(0, b"second")
            second.create("b").pwrite(0, b"second")
            second.publish()
            first.publish()
        assert {name: datastore.read_bytes(f"disks/{name}") for name in datastore.list("disks")} == {
            "a": b"first",
            "b": b"second",
            "c": b"second",
        }

    def test_files_may_lie_in_the_root(self, datastore: Datastore) -> None:
        with datastore.stage("", "a") as staging:
            file = staging.create("x")
            assert len(datastore.parts("")) == has_parts(datastore)
            staging.publish()
        assert (file.path, datastore.list()) == ("x", ["x"])

    def test_nothing_stays_of_what_is_discarded(self, datastore: Datastore) -> None:
        with datastore.stage("disks", "a") as staging:
            staging.create("x").pwrite(0, b"data")
        staging.discard()
        assert datastore.list("disks") == []
        assert [name for name in datastore.fs.walk.files("/") if "owner" not in name] == []
        with pytest.raises(ValueError, match="disks/a was published or discarded already"):
            staging.publish()

    def test_the_same_file_may_be_staged_twice_and_the_first_wins(self, datastore: Datastore) -> None:
        with datastore.stage("disks", "a") as first, datastore.stage("disks", "a") as second:
            first.create("x").pwrite(0, b"first")
            second.create("x").pwrite(0, b"second")
            first.publish()
            with pytest.raises(AlreadyExistsError, match="disks/x: exists already"):
                second.publish()
        assert datastore.read_bytes("disks/x") == b"first"

    def test_nothing_moves_if_one_name_is_taken(self, datastore: Datastore) -> None:
        publish(datastore, "disks", y=b"old")
        with datastore.stage("disks", "a") as staging:
            staging.create("x")
            staging.create("y")
            with pytest.raises(AlreadyExistsError, match="disks/y: exists already"):
                staging.publish()
            assert datastore.list("disks") == ["y"]
        assert datastore.read_bytes("disks/y") == b"old"
        assert datastore.parts("disks") == []

    def test_a_directory_is_in_the_way_too(self, datastore: Datastore) -> None:
        publish(datastore, "disks/x")
        with datastore.stage("disks", "a") as staging:
            staging.create("x")
            with pytest.raises(AlreadyExistsError, match="disks/x: exists already"):
                staging.publish()
        assert datastore.list("disks/x") == []

    def test_files_take_the_place_of_others(self, datastore: Datastore) -> None:
        publish(datastore, "disks", x=b"old", z=b"stays")
        if not datastore.can_replace:
            with datastore.stage("disks", "a") as staging, pytest.raises(UnsupportedError, match="cannot be replaced"):
                staging.create("x")
                staging.replace()
            assert datastore.read_bytes("disks/x") == b"old"
            return
        with datastore.open("disks/x") as before, datastore.stage("disks", "a") as staging:
            staging.create("y").pwrite(0, b"first")
            staging.create("x").pwrite(0, b"new")
            staging.replace()
            assert before.pread(0, 9) == b"old"
        contents = {name: datastore.read_bytes(f"disks/{name}") for name in datastore.list("disks")}
        assert contents == {"x": b"new", "y": b"first", "z": b"stays"}
        assert datastore.parts("disks") == []
        with pytest.raises(ValueError, match="disks/a was published or discarded already"):
            staging.replace()

    def test_a_name_is_made_once(self, datastore: Datastore) -> None:
        with datastore.stage("a", "test") as staging:
            staging.create("x")
            with pytest.raises(AlreadyExistsError, match="a/x"):
                staging.create("x")
            with pytest.raises(ValueError, match="directory of its own"):
                staging.create("y/z")
        with pytest.raises(ValueError, match="directory of its own"):
            datastore.stage("a", "y/z")

    def test_a_file_is_read_on_after_it_was_published(self, datastore: Datastore) -> None:
        staging = datastore.stage("a", "test")
        file = staging.create("x")
        file.pwrite(3, b"data")
        staging.publish()
        staging.discard()
        assert (file.path, file.size, file.pread(2, 9)) == ("a/x", 7, b"\0data")
        file.close()

    def test_a_long_name_can_be_staged(self, datastore: Datastore) -> None:
        name = "n" * 250
        with datastore.stage("", name) as staging:
            staging.create(name)
            staging.publish()
        assert datastore.list() == [name]

    def test_names_may_be_in_any_script(self, datastore: Datastore) -> None:
        with datastore.stage("d/ジャケット", "föß") as staging:
            staging.create("föß").pwrite(0, b"data")
            staging.publish()
        assert datastore.list("d") == ["ジャケット"]
        assert datastore.read_bytes("d/ジャケット/föß") == b"data"

    def test_two_threads_may_publish(self, datastore: Datastore) -> None:
        threads = [
            threading.Thread(target=publish, args=(datastore, "disks"), kwargs={f"x{number}": b"x", f"y{number}": b"y"})
            for number in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert datastore.list("disks") == [f"{name}{number}" for name in "xy" for number in range(8)]


class TestFiles:
    def test_bytes_go_where_they_are_put(self, datastore: Datastore) -> None:
        with datastore.stage("a", "test") as staging:
            file = staging.create("x")
            file.pwrite(100_000, memoryview(b"end"))
            file.pwrite(0, bytearray(b"start"))
            file.pwrite(1, b"T")
            file.fsync()
            assert (file.size, file.pread(0, 6), file.pread(99_999, 100)) == (100_003, b"sTart\0", b"\0end")
            assert file.pread(100_003, 5) == b""
            file.truncate(3)
            file.truncate(6)
            assert file.pread(0, 100) == b"sTa\0\0\0"

    def test_data_ranges_have_all_data_and_stay_inside(self, datastore: Datastore) -> None:
        with datastore.stage("a", "test") as staging:
            file = staging.create("x")
            file.truncate(1 << 20)
            file.pwrite(1 << 18, b"x" * 4096)
            file.pwrite(1 << 19, b"y" * 4096)
            for offset, length in (
                (0, 1 << 20),
                (5, 1 << 19),
                ((1 << 18) + 100, 8),
                (1 << 19, 4096),
                (0, 0),
                (1 << 20, 5),
                (0, 1 << 30),
            ):
                ranges = list(file.data_ranges(offset, length))
                assert ranges == sorted(ranges)
                covered = set()
                for start, size in ranges:
                    assert offset <= start and size > 0 and start + size <= min(offset + length, 1 << 20)
                    covered |= set(range(start, start + size))
                content = file.pread(offset, length)
                assert {offset + at for at, byte in enumerate(content) if byte} <= covered

    def test_threads_read_at_their_own_offsets(self, datastore: Datastore) -> None:
        publish(datastore, "a", x=bytes(range(256)) * 256)
        wrong: list[int] = []
        with datastore.open("a/x") as file:

            def read(first: int) -> None:
                for offset in range(first, 60_000, 97):
                    if file.pread(offset, 2) != bytes((offset & 255, offset + 1 & 255)):
                        wrong.append(offset)

            threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert wrong == []

    def test_a_closed_file_gives_nothing(self, datastore: Datastore) -> None:
        publish(datastore, "a", x=b"data")
        file = datastore.open("a/x")
        file.close()
        file.close()
        with pytest.raises(ValueError, match="a/x is closed"):
            file.pread(0, 1)

    def test_what_is_missing_or_no_file_is_not_found(self, datastore: Datastore) -> None:
        publish(datastore, "a", x=b"data")
        for path in ("b", "a", "a/y", "a/x/y"):
            with pytest.raises(NotFoundError, match=path):
                datastore.open(path)

    def test_a_small_file_has_a_bound(self, datastore: Datastore) -> None:
        datastore.write_atomic("a", b"12345")
        assert datastore.read_bytes("a", 5) == b"12345"
        with pytest.raises(CorruptError, match="a: has more than 4 bytes"):
            datastore.read_bytes("a", 4)


class TestNames:
    def test_write_atomic_makes_and_replaces(self, datastore: Datastore) -> None:
        datastore.write_atomic("refs/x/a.json", b"one")
        datastore.write_atomic("refs/x/a.json", b"two")
        assert datastore.read_bytes("refs/x/a.json") == b"two"
        assert datastore.list("refs/x") == ["a.json"]

    def test_write_atomic_replaces_no_directory(self, datastore: Datastore) -> None:
        publish(datastore, "a", x=b"")
        with pytest.raises((NotFoundError, AlreadyExistsError), match="a"):
            datastore.write_atomic("a", b"data")
        assert datastore.list() == ["a"]

    def test_write_many_makes_files_of_one_directory(self, datastore: Datastore) -> None:
        datastore.write_many("new/deep", [("a", b"one"), ("b", b""), ("c", b"three")])
        assert datastore.list("new/deep") == ["a", "b", "c"]
        assert [datastore.read_bytes(f"new/deep/{name}") for name in "abc"] == [b"one", b"", b"three"]
        datastore.write_many("new/deep", [])
        assert list(datastore.parts("new/deep")) == []

    @pytest.mark.parametrize("name", ["", "..", "a/b"])
    def test_write_many_wants_names(self, datastore: Datastore, name: str) -> None:
        with pytest.raises((InvalidError, ValueError)):
            datastore.write_many("d", [("good", b""), (name, b"")])
        assert not datastore.exists("d/good")

    def test_a_reader_of_the_replaced_file_keeps_the_old_one(self, datastore: Datastore) -> None:
        datastore.write_atomic("a", b"old")
        with datastore.open("a") as file:
            datastore.write_atomic("a", b"newer")
            assert file.pread(0, 10) == b"old"

    def test_exists_tells_files_and_directories(self, datastore: Datastore) -> None:
        publish(datastore, "d/a", x=b"")
        assert [datastore.exists(path) for path in ("", "d", "d/a", "d/a/x")] == [True] * 4
        assert [datastore.exists(path) for path in ("e", "d/b", "d/a/y", "d/a/x/z")] == [False] * 4

    def test_list_wants_a_directory(self, datastore: Datastore) -> None:
        publish(datastore, "a", x=b"")
        for path in ("b", "a/x"):
            with pytest.raises(NotFoundError, match=path):
                datastore.list(path)
        assert list_names(datastore, "b") == []
        assert list_names(datastore, "a") == ["x"]

    def test_files_and_trees_are_removed(self, datastore: Datastore) -> None:
        publish(datastore, "d/a", x=b"", y=b"")
        datastore.remove_file("d/a/x")
        assert datastore.list("d/a") == ["y"]
        datastore.remove_tree("d/a")
        assert datastore.list("d") == []
        datastore.remove_tree("d")
        assert datastore.list() == []

    def test_what_is_removed_must_be_there_and_be_of_that_kind(self, datastore: Datastore) -> None:
        publish(datastore, "d/a", x=b"")
        for path in ("d", "e", "d/b"):
            with pytest.raises(NotFoundError, match=path):
                datastore.remove_file(path)
        for path in ("d/a/x", "e", "d/b"):
            with pytest.raises(NotFoundError, match=path):
                datastore.remove_tree(path)
        assert datastore.list("d/a") == ["x"]

    @pytest.mark.parametrize("path", BAD_PATHS)
    def test_a_path_that_is_none_is_refused_everywhere(self, datastore: Datastore, path: str) -> None:
        calls: list[Callable[[str], object]] = [
            datastore.open,
            lambda bad: datastore.stage(bad, "test"),
            lambda bad: datastore.write_atomic(bad, b""),
            datastore.exists,
            datastore.list,
            datastore.remove_file,
            datastore.remove_tree,
            datastore.usage,
            datastore.local_path,
        ]
        for call in calls:
            with pytest.raises(InvalidError, match="path"):
                call(path)

    @pytest.mark.parametrize("name", ["", ".", "..", "a\0b"])
    def test_a_name_that_is_none_is_refused(self, datastore: Datastore, name: str) -> None:
        with pytest.raises(InvalidError):
            datastore.stage("disks", name)
        with datastore.stage("disks", "a") as staging, pytest.raises(InvalidError):
            staging.create(name)

    def test_the_root_stays(self, datastore: Datastore) -> None:
        for call in (datastore.remove_tree, datastore.remove_file, datastore.open):
            with pytest.raises(InvalidError, match="root"):
                call("")

    def test_usage_counts_all_that_lies_below(self, datastore: Datastore) -> None:
        publish(datastore, "d/a", x=b"x" * 100_000)
        publish(datastore, "d/b", y=b"y" * 50_000)
        assert 100_000 <= datastore.usage("d/a/x") < 120_000
        assert 150_000 <= datastore.usage("d") <= datastore.usage() < 200_000
        assert datastore.usages("d/a") == {name: datastore.usage(f"d/a/{name}") for name in datastore.list("d/a")}
        assert (datastore.usages("d").keys() & {"a"}, datastore.usages("e")) == (set(), {})
        with datastore.stage("d/a", "made"):
            assert datastore.usages("d/a").keys() == set(datastore.list("d/a"))
        with pytest.raises(NotFoundError, match="e"):
            datastore.usage("e")

    def test_sweep_leaves_alone_what_is_being_made(self, datastore: Datastore) -> None:
        with datastore.stage("d/a", "test") as staging:
            staging.create("x").pwrite(0, b"data")
            assert list(datastore.sweep()) == []
            staging.publish()
        assert datastore.read_bytes("d/a/x") == b"data"
        assert list(datastore.sweep()) == []

    def test_close_may_be_called_again(self, datastore: Datastore) -> None:
        datastore.close()
        datastore.close()


class TestLiveFiles:
    @pytest.fixture(params=LOCAL_KINDS)
    def datastore(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Datastore]:
        with LOCAL_KINDS[request.param](tmp_path) as made:
            yield made

    def test_a_file_is_visible_at_its_place_from_the_start(self, datastore: Datastore) -> None:
        with datastore.create("deep/disks/a") as file:
            file.pwrite(3, b"data")
            assert (file.path, datastore.list("deep/disks")) == ("deep/disks/a", ["a"])
            assert datastore.read_bytes("deep/disks/a") == b"\0\0\0data"
            file.fsync()
        with pytest.raises(AlreadyExistsError, match="deep/disks/a"):
            datastore.create("deep/disks/a")
        assert datastore.parts("deep/disks") == []
        datastore.sync()
        assert list(datastore.sweep()) == []

    def test_a_file_is_written_where_it_lies(self, datastore: Datastore) -> None:
        datastore.create("disks/a").close()
        with datastore.open_live("disks/a", writable=True) as file:
            file.pwrite(0, b"abcdef" * 1000)
            file.truncate(10_000)
            file.truncate(9_000)
            file.fsync()
            file.punch(4096, 4096)
            assert (file.size, file.pread(4090, 6)) == (9_000, b"efabcd")
            assert (0, 4096) in [(offset, min(length, 4096)) for offset, length in file.data_ranges(0, 9_000)]
        with datastore.open_live("disks/a", writable=False) as file:
            assert file.pread(8_999, 5) == b"\0"

    @pytest.mark.parametrize("keep_space", [False, True])
    def test_bytes_are_zeroed(self, datastore: Datastore, keep_space: bool) -> None:
        with datastore.create("disks/a") as file:
            file.pwrite(0, b"x" * 50_000)
            file.zero(5, 40_000, keep_space=keep_space)
            file.fdatasync()
            assert (file.size, file.pread(0, 50_000)) == (50_000, b"x" * 5 + bytes(40_000) + b"x" * 9_995)

    def test_a_file_without_a_name_is_seen_by_nobody(self, datastore: Datastore) -> None:
        with datastore.create_unnamed("what it is for") as file:
            file.pwrite(10, b"data")
            file.truncate(20)
            file.punch(0, 10)
            assert (file.path, file.size, file.pread(10, 20)) == ("what it is for", 20, b"data" + bytes(6))
            assert datastore.list() == []
        assert datastore.list() == []

    def test_what_is_ready_is_what_is_read(self, datastore: Datastore) -> None:
        with datastore.create("disks/a") as file:
            file.pwrite(0, b"x" * 9_000)
        with datastore.open("disks/a") as file:
            assert read_ready(file, 4_000, 5_000) in (None, b"x" * 5_000)
            assert read_ready(file, 4_000, 5_001) is None

    @pytest.mark.parametrize(("first", "second"), [(True, True), (True, False), (False, True)])
    def test_who_writes_has_it_alone(self, datastore: Datastore, first: bool, second: bool) -> None:
        datastore.create("disks/a").close()
        with datastore.open_live("disks/a", writable=first):
            with pytest.raises(InUseError, match=r"^disks/a: is in use by a running guest or another imgstore$"):
                datastore.open_live("disks/a", writable=second)
            datastore.open("disks/a").close()
        datastore.open_live("disks/a", writable=second).close()

    def test_several_may_read_it(self, datastore: Datastore) -> None:
        datastore.create("disks/a").close()
        first, second = (datastore.open_live("disks/a", writable=False) for _ in range(2))
        first.close()
        first.close()
        with pytest.raises(InUseError):
            datastore.open_live("disks/a", writable=True)
        second.close()
        datastore.open_live("disks/a", writable=True).close()

    def test_threads_exclude_each_other(self, datastore: Datastore) -> None:
        with datastore.create("disks/a") as file:
            file.pwrite(0, bytes(8))
        wins = []

        def count() -> None:
            for _ in range(20):
                try:
                    file = datastore.open_live("disks/a", writable=True)
                except InUseError:
                    continue
                with file:
                    number = int.from_bytes(file.pread(0, 8), "little")
                    file.pwrite(0, (number + 1).to_bytes(8, "little"))
                    wins.append(1)

        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wins
        assert int.from_bytes(datastore.read_bytes("disks/a"), "little") == len(wins)

    def test_what_is_not_there_cannot_be_opened(self, datastore: Datastore) -> None:
        publish(datastore, "disks/d", x=b"")
        for path in ("disks/a", "disks/d", "none/a"):
            for writable in (False, True):
                with pytest.raises(NotFoundError, match=path):
                    datastore.open_live(path, writable=writable)

    @pytest.mark.parametrize("path", ["", *BAD_PATHS])
    def test_a_path_that_is_none_is_refused(self, datastore: Datastore, path: str) -> None:
        with pytest.raises(InvalidError):
            datastore.create(path)
        with pytest.raises(InvalidError):
            datastore.open_live(path, writable=True)


class TestVsphere:
    """What a datastore that is reached over the network has not."""

    @pytest.fixture
    def datastore(self, vsphere: Vcsim, tmp_path: Path) -> Iterator[VsphereDatastore]:
        with VsphereDatastore(parse_datastore(vsphere.url(tmp_path.name)), vsphere.login) as made:
            yield made

    def test_no_file_is_written_in_place(self, datastore: VsphereDatastore) -> None:
        publish(datastore, "disks", a=b"data")
        calls: list[Callable[[], object]] = [
            lambda: datastore.create("disks/b"),
            lambda: datastore.open_live("disks/a", writable=True),
            lambda: datastore.open_live("disks/a", writable=False),
            lambda: datastore.create_unnamed("an overlay"),
        ]
        for call in calls:
            with pytest.raises(UnsupportedError, match=r"^\[LocalDS_0\] .*: disks that guests write cannot be made on"):
                call()
        with datastore.stage("disks", "a") as staging:
            staging.create("a")
            with pytest.raises(UnsupportedError, match="cannot be replaced in one step"):
                staging.replace()
        assert datastore.list("disks") == ["a"]

    def test_nothing_is_asked_before_it_is_needed(self, vsphere: Vcsim) -> None:
        with VsphereDatastore(parse_datastore(vsphere.url("x")), replace(vsphere.login, password="wrong")) as datastore:
            assert datastore.prefix + "a b/c.vmdk" == "[LocalDS_0] x/a b/c.vmdk"
            assert datastore.local_path("a") is None
            with pytest.raises(DeniedError, match="wrong user name or password"):
                datastore.list()

    def test_old_leftovers_of_markers_are_swept(self, datastore: VsphereDatastore, vsphere: Vcsim) -> None:
        datastore.write_atomic("refs/a/b.json", b"{}")
        directory = vsphere.directory() / datastore.prefix.partition("] ")[2] / "refs/a"
        for name, age in ((".b.json.0123-4567.part", 7200), (".b.json.0123-89ab.part", 0), ("old.part", 7200)):
            (directory / name).write_bytes(b"{")
            os.utime(directory / name, (time.time() - age, time.time() - age))
        assert list(datastore.sweep()) == ["refs/a/.b.json.0123-4567.part"]
        assert [part.rpartition("/")[2] for part in datastore.parts("refs/a")] == [".b.json.0123-89ab.part"]
        assert datastore.list("refs/a") == ["b.json", "old.part"]

    def test_a_long_file_is_read_in_any_order(self, datastore: VsphereDatastore) -> None:
        data = random.Random(6).randbytes(3 << 20)
        publish(datastore, "disks", a=data)
        with datastore.open("disks/a") as file:
            assert b"".join(file.pread(offset, 50_000) for offset in range(0, len(data), 50_000)) == data
            for offset, length in ((0, 10), (3 << 19, 1 << 20), (len(data) - 5, 100), (len(data), 1), (100_000, 1), (0, 4 << 20)):
                assert file.pread(offset, length) == data[offset : offset + length]

    def test_it_says_what_it_is(self, datastore: VsphereDatastore, vsphere: Vcsim) -> None:
        description = datastore.describe()
        assert (description.name, description.type) == ("LocalDS_0", "local")
        assert 0 < description.free <= description.capacity
        vsphere.add_nfs_datastore("nfs", "NFS41")
        with VsphereDatastore(parse_datastore(vsphere.url(datastore="nfs")), vsphere.login) as other:
            assert other.describe().type == "NFS41"


class _FileSystemCases(FSTestCases):
    # Python 3.12 dropped the old name, which fs 2.4.16 still uses.
    assertRaisesRegexp = unittest.TestCase.assertRaisesRegex  # noqa: N815

    def destroy_fs(self, fs: FS) -> None:
        fs.close()


class TestLocalFileSystem(_FileSystemCases, unittest.TestCase):
    test_unicode_path = None  # OSFS says of itself on Linux that it has no such names, and the test skips; see TestStaging

    def make_fs(self) -> FS:
        self._directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self._directory)
        datastore = LocalDatastore(self._directory)
        self.addCleanup(datastore.close)
        return datastore.fs


class TestMemoryFileSystem(_FileSystemCases, unittest.TestCase):
    def make_fs(self) -> FS:
        return MemoryDatastore().fs
