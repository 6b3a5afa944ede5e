from __future__ import annotations

import errno
import mmap
import os
import resource
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgstore.datastores import LocalDatastore, image_locks, local_files
from imgstore.datastores.datastore import owner_of, part_name, translate
from imgstore.errors import (
    AlreadyExistsError,
    DeniedError,
    ImgstoreError,
    InvalidError,
    NoSpaceError,
    NotFoundError,
    UnavailableError,
)
from tests.disks import read_ready


@pytest.fixture
def datastore(tmp_path: Path) -> Iterator[LocalDatastore]:
    with LocalDatastore(tmp_path / "store", create=True) as made:
        yield made


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_directory_must_exist_unless_it_is_to_be_made(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="store"):
        LocalDatastore(tmp_path / "store")
    with LocalDatastore(tmp_path / "store", create=True):
        pass
    with LocalDatastore(tmp_path / "store", create=True), LocalDatastore(str(tmp_path / "store")):
        pass
    with pytest.raises(NotFoundError, match="deep"):
        LocalDatastore(tmp_path / "deep" / "store", create=True)


def test_published_files_are_read_only_and_staged_ones_private(datastore: LocalDatastore, tmp_path: Path) -> None:
    staging = datastore.stage("disks", "a")
    closed, opened = staging.create("closed"), staging.create("opened")
    closed.close()
    [part] = (tmp_path / "store/disks").iterdir()
    assert owner_of(part.name) is not None
    assert (mode(part), mode(part / "closed")) == (0o700, 0o600)
    staging.publish()
    opened.close()
    published = tmp_path / "store/disks"
    assert (mode(published), mode(published / "closed"), mode(published / "opened")) == (0o750, 0o444, 0o444)


def test_holes_take_no_space(datastore: LocalDatastore) -> None:
    with datastore.stage("a", "test") as staging:
        file = staging.create("x")
        file.pwrite(1 << 30, b"x" * 4096)
        file.pwrite(1 << 20, b"x" * 4096)
        assert list(file.data_ranges(0, 1 << 40)) == [(1 << 20, 4096), (1 << 30, 4096)]
        staging.publish()
    assert datastore.usage("a/x") < 100_000


def test_writes_round_the_cache_and_through_it_mix(datastore: LocalDatastore) -> None:
    model = bytearray(3 << 20)
    with mmap.mmap(-1, 1 << 20) as memory, memoryview(memory) as aligned, datastore.stage("a", "test") as staging:
        file = staging.create("x")
        for number, (offset, start, length) in enumerate(
            [
                (0, 0, 1 << 20),
                (1 << 20, 4096, 1 << 19),
                (4096, 0, 1 << 17),
                (5000, 0, 1 << 18),  # the offset, the memory, or the length is one that storage does not take
                (1 << 21, 1, 1 << 18),
                (1 << 18, 0, (1 << 18) + 1),
                (0, 4096, 1 << 18),
            ]
        ):
            aligned[:] = bytes([number + 1, 2, 3, number]) * (1 << 18)
            with aligned[start : start + length] as piece:
                file.pwrite(offset, piece)
                model[offset : offset + length] = piece
            assert file.pread(0, 3 << 20) == model[: file.size]
            file.pwrite(offset + 10, b"small")
            model[offset + 10 : offset + 15] = b"small"
            assert file.pread(offset, 100) == model[offset : offset + 100]
        staging.publish()
        file.close()
    assert datastore.read_bytes("a/x") == model[: (1 << 21) + (1 << 18)]


@pytest.mark.parametrize("target", ["/etc", "..", "real"])
def test_symbolic_links_are_not_followed(datastore: LocalDatastore, tmp_path: Path, target: str) -> None:
    with datastore.stage("real", "test") as staging:
        staging.create("passwd").pwrite(0, b"x")
        staging.publish()
    (tmp_path / "store/link").symlink_to(target)
    (tmp_path / "store/file").symlink_to(f"{target}/passwd")
    for path in ("link/passwd", "file"):
        with pytest.raises(NotFoundError, match=path):
            datastore.open(path)
    for call in (
        datastore.remove_file,
        lambda path: datastore.write_atomic(path, b""),
        lambda path: datastore.stage(*path.split("/")),
    ):
        with pytest.raises(NotFoundError, match="link/passwd"):
            call("link/passwd")
    with pytest.raises(NotFoundError, match="link"):
        datastore.remove_tree("link")
    with pytest.raises(NotFoundError, match="link"):
        datastore.list("link")
    assert datastore.read_bytes("real/passwd") == b"x"


def test_removing_a_tree_removes_links_and_not_what_they_name(datastore: LocalDatastore, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/kept").touch()
    (tmp_path / "store/a").mkdir()
    (tmp_path / "store/a/link").symlink_to(tmp_path / "outside")
    datastore.remove_tree("a")
    assert (tmp_path / "outside/kept").exists()
    assert datastore.list() == []


def test_a_fifo_is_not_waited_for(datastore: LocalDatastore, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "store/fifo")
    with pytest.raises(NotFoundError, match="fifo: is not a regular file"):
        datastore.open("fifo")


def test_local_paths_are_those_of_the_files(datastore: LocalDatastore) -> None:
    datastore.write_atomic("d/a", b"data")
    assert datastore.local_path("d/a").read_bytes() == b"data"


def test_a_relative_directory_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with LocalDatastore("store", create=True) as datastore:
        monkeypatch.chdir("/")
        datastore.write_atomic("a", b"data")
        assert datastore.local_path("a") == tmp_path / "store/a"
        assert datastore.local_path("a").read_bytes() == b"data"


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, NoSpaceError),
        (errno.EDQUOT, NoSpaceError),
        (errno.EFBIG, NoSpaceError),
        (errno.ENOENT, NotFoundError),
        (errno.ENOTDIR, NotFoundError),
        (errno.EEXIST, AlreadyExistsError),
        (errno.ENOTEMPTY, AlreadyExistsError),
        (errno.EACCES, DeniedError),
        (errno.EROFS, DeniedError),
        (errno.ENAMETOOLONG, InvalidError),
        (errno.EIO, UnavailableError),
        (errno.ESTALE, UnavailableError),
        (errno.EMFILE, UnavailableError),
    ],
)
def test_what_the_system_says_has_a_kind_and_names_the_file(number: int, kind: type[ImgstoreError]) -> None:
    error = translate(OSError(number, os.strerror(number)), "disks/a/x", "write it")
    assert type(error) is kind
    assert str(error) == f"disks/a/x: cannot write it: {os.strerror(number)}"


def test_a_file_that_may_not_grow_is_a_lack_of_space(datastore: LocalDatastore) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with datastore.stage("a", "test") as staging:
        file = staging.create("x")
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        try:
            with pytest.raises(NoSpaceError, match="a/x: cannot write 20000 bytes at byte 0"):
                file.pwrite(0, bytes(20_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_names_tell_their_owner() -> None:
    assert owner_of(part_name("a.b-c", "0123")) == "0123"
    assert owner_of(part_name("ä" * 127, "0123")) == "0123"
    assert len(part_name("ä" * 127, "0" * 12).encode()) <= 255
    for name in ("a", ".part", "..part", ".a.part", ".a.b.part", "a.0123-4567.part", ".a.-45.part"):
        assert owner_of(name) is None


def leave_behind(directory: Path) -> None:
    """Lets another process begin things in a datastore and end without a word."""
    code = f"""
import os
from imgstore.datastores import LocalDatastore
datastore = LocalDatastore({str(directory)!r})
datastore.stage("disks", "a").create("x").pwrite(0, b"data")
datastore.stage("", "b")
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})


def test_sweep_removes_what_the_dead_left(datastore: LocalDatastore, tmp_path: Path) -> None:
    leave_behind(tmp_path / "store")
    live = datastore.stage("disks", "a")
    live.create("x")
    assert len(list((tmp_path / "store").glob(".owner-*.lock"))) == 2
    removed = list(datastore.sweep())
    assert sorted(path.rsplit("/")[0] for path in removed if "/" in path) == ["disks"]
    assert len(removed) == 2
    assert len(list((tmp_path / "store").glob(".owner-*.lock"))) == 1
    live.publish()
    assert datastore.list("disks") == ["x"]
    assert list(datastore.sweep()) == []


def test_sweep_of_another_process_spares_what_this_one_makes(datastore: LocalDatastore, tmp_path: Path) -> None:
    live = datastore.stage("disks", "a")
    live.create("x").close()
    with LocalDatastore(tmp_path / "store") as other:
        assert list(other.sweep()) == []
    live.publish()
    assert datastore.list("disks") == ["x"]


def test_sweep_takes_no_name_that_is_not_its_own(datastore: LocalDatastore, tmp_path: Path) -> None:
    (tmp_path / "store/d").mkdir()
    for name in ("a.part", ".hidden", ".a.part", "d/.x", "d/note.part"):
        (tmp_path / "store" / name).touch()
    (tmp_path / "store/d/link").symlink_to(tmp_path)
    (tmp_path / ".evil.0123-45.part").mkdir()
    (tmp_path / "store/.owner-0123.lock").touch()
    (tmp_path / "store/d/.owner-0123.lock").touch()
    assert list(datastore.sweep()) == []
    assert (tmp_path / ".evil.0123-45.part").exists()
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [".a.part", ".hidden", "a.part", "d"]
    assert sorted(path.name for path in (tmp_path / "store/d").iterdir()) == [".owner-0123.lock", ".x", "link", "note.part"]


def test_sweep_searches_only_if_an_owner_is_dead(datastore: LocalDatastore, tmp_path: Path) -> None:
    (tmp_path / "store/.a.0123-45.part").mkdir()
    (tmp_path / "store/.b.0123-46.part").touch()
    with datastore.stage("disks", "a"), LocalDatastore(tmp_path / "store") as other, other.stage("disks", "b"):
        assert list(datastore.sweep()) == []
    (tmp_path / "store/.owner-4567.lock").touch()
    # What has no lock file at all goes with the rest.
    assert sorted(datastore.sweep()) == [".a.0123-45.part", ".b.0123-46.part"]
    assert [path.name for path in (tmp_path / "store").iterdir() if ".owner" not in path.name] == ["disks"]


def test_what_is_open_at_the_close_is_swept_by_the_next(tmp_path: Path) -> None:
    with LocalDatastore(tmp_path, create=True) as datastore:
        staging = datastore.stage("disks", "a")
        file = staging.create("x")
    with LocalDatastore(tmp_path) as datastore:
        [swept] = datastore.sweep()
        assert swept.startswith("disks/.a.")
        assert [path.name for path in tmp_path.rglob("*")] == ["disks"]
        with pytest.raises(NotFoundError, match="disks/a: cannot publish it"):
            staging.publish()
    staging.discard()
    with pytest.raises(ValueError, match="disks/x is closed"):
        file.pread(0, 1)


def test_a_datastore_that_is_closed_leaves_no_litter(tmp_path: Path) -> None:
    with LocalDatastore(tmp_path / "store", create=True) as datastore:
        datastore.write_atomic("a", b"")
        (tmp_path / "store/file").touch()
        with datastore.stage("disks", "discarded") as staging:
            staging.create("x")
        for path in ("disks", "file/x"):
            with pytest.raises((NotFoundError, AlreadyExistsError)):
                datastore.write_atomic(path, b"")
        with pytest.raises(NotFoundError):
            datastore.stage("file", "x")
        datastore.remove_tree("disks")
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["a", "file"]
    for call in (datastore.list, datastore.sweep, datastore.usage, lambda: datastore.stage("b", "b")):
        with pytest.raises(ValueError, match="is closed"):
            call()


def test_no_descriptor_is_lost(datastore: LocalDatastore) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    def use(number: int) -> None:
        with datastore.stage(f"disks/{number}", "published") as staging:
            staging.create("x").close()
            staging.publish()
        with datastore.stage(f"disks/{number}", "taken") as staging:
            staging.create("x")
            with pytest.raises(AlreadyExistsError):
                staging.publish()
        with datastore.stage("disks", "discarded") as staging:
            staging.create("x")
        for bad in ("disks/none", "disks", "none/none"):
            with pytest.raises(NotFoundError):
                datastore.open(bad)
        datastore.write_atomic("a/b", b"")
        datastore.exists("disks/x")
        datastore.usage()
        datastore.sweep()
        datastore.remove_tree(f"disks/{number}")

    use(0)
    before = descriptors()
    for number in range(1, 5):
        use(number)
    assert descriptors() == before


def test_live_files_are_for_their_owner_and_give_storage_back(datastore: LocalDatastore, tmp_path: Path) -> None:
    with datastore.create("a/x") as file:
        file.pwrite(0, b"x" * (1 << 20))
        file.fsync()
        before = datastore.usage("a/x")
        file.punch(4096, (1 << 20) - 4096)
        assert datastore.usage("a/x") < before // 4
        assert file.size == 1 << 20
    assert mode(tmp_path / "store/a/x") == 0o600


def test_the_name_of_a_live_file_is_durable_with_its_contents(
    datastore: LocalDatastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(Path(f"/proc/self/fd/{descriptor}").readlink()))
    with datastore.create("a/x") as file:
        made = len(synced)
        file.fsync()
        file.fsync()
    directory = tmp_path / "store/a"
    assert synced[made:] == [directory / "x", directory, directory / "x"]


def test_a_live_file_that_was_removed_while_it_was_opened_is_not_there(
    datastore: LocalDatastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datastore.create("a/x").close()
    take = image_locks.take

    def remove_first(descriptor: int, *, writable: bool) -> bool:
        (tmp_path / "store/a/x").unlink()
        return take(descriptor, writable=writable)

    monkeypatch.setattr(image_locks, "take", remove_first)
    with pytest.raises(NotFoundError, match="a/x: was removed just now"):
        datastore.open_live("a/x", writable=True)


def test_live_files_are_not_links_or_fifos(datastore: LocalDatastore, tmp_path: Path) -> None:
    datastore.create("a/x").close()
    (tmp_path / "store/link").symlink_to("a")
    (tmp_path / "store/a/link").symlink_to("x")
    os.mkfifo(tmp_path / "store/a/fifo")
    for path in ("link/x", "a/link", "a/fifo"):
        for writable in (False, True):
            with pytest.raises(NotFoundError, match=path):
                datastore.open_live(path, writable=writable)
    with pytest.raises(NotFoundError, match="link/y"):
        datastore.create("link/y")


def test_zeros_are_written_where_the_file_system_knows_no_other_way(
    datastore: LocalDatastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_files, "zero_range", lambda *_, **__: False)
    with datastore.create("a/x") as file:
        file.pwrite(0, b"x" * (3 << 20))
        file.zero(1, (3 << 20) - 2)
        assert file.pread(0, 4 << 20) == b"x" + bytes((3 << 20) - 2) + b"x"


def test_a_file_system_that_cannot_tell_what_is_ready_is_asked_once(
    datastore: LocalDatastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def preadv(*arguments: object) -> int:
        asked.append(arguments)
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    datastore.write_atomic("a/x", b"data")
    monkeypatch.setattr(os, "preadv", preadv)
    with datastore.open("a/x") as file:
        assert [read_ready(file, 0, 4), read_ready(file, 0, 4)] == [None, None]
    assert len(asked) == 1


def test_a_file_without_a_name_may_find_no_room(datastore: LocalDatastore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(NoSpaceError, match=r"^what it is for: cannot create it: No space left on device$"):
        datastore.create_unnamed("what it is for")
