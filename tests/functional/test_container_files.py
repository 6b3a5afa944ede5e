"""Files of containers through the library and the command line: copied in and out, exported, compared."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imgstore.answers import Mount
from imgstore.changes import FileType
from imgstore.cli.main import main
from imgstore.copies import trees
from imgstore.errors import InUseError, InvalidError, NotFoundError
from imgstore.location import LEASES
from imgstore.store import ImageStore
from tests.archive_members import TIME, directory, entry, file_of, link, make_tar, names_of
from tests.command_line import CommandLine
from tests.tools import need

CAPACITY = 64 << 20
PASSWD = b"root:x:0:0::/:/bin/sh\nbob:x:1234:2345::/:\n"
IMAGE = make_tar(
    directory("etc"),
    (entry("etc/passwd"), PASSWD),
    (entry("etc/group"), b"root:x:0:\nstaff:x:3456:\n"),
    directory("data", uid=5, gid=6),
    (entry("data/file", mode=0o4711, uid=7), b"content"),
    link("to-data", "/data"),
    link("loop", "loop"),
)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "store"
    with ImageStore.create(str(path), disk_size=CAPACITY) as store:
        store.import_image(io.BytesIO(IMAGE), reference="base")
        store.create_volume("vv", options={"Capacity": "64"})
        store.create_container("base", name="one", mounts=[Mount("vv", "/srv/volume")], config={"Cmd": ["x"]})
    return path


@pytest.fixture
def store(template: Path, tmp_path: Path) -> Iterator[ImageStore]:
    shutil.copytree(template, tmp_path / "store", symlinks=True)
    with ImageStore.open(str(tmp_path / "store")) as store:
        yield store
        assert list(store.check()) == []


@pytest.fixture
def cli(store: ImageStore) -> CommandLine:
    return CommandLine(Path(store.location))


def copy_in(
    store: ImageStore, *members: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes], path: str = "/", **options: bool
) -> None:
    store.copy_to_container("one", path, io.BytesIO(make_tar(*members)), **options)


def members_of(store: ImageStore, path: str) -> dict[str, tarfile.TarInfo]:
    _, pieces = store.copy_from_container("one", path)
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as tar:
        return {member.name: member for member in tar}


def disk_of(store: ImageStore) -> Path:
    return Path(store.container("one").disk)


def leased(store: ImageStore) -> list[str]:
    """Names of the leases that somebody holds, or did not give back."""
    return [path.name for path in (Path(store.location) / LEASES).iterdir()]


def test_what_is_at_a_path(store: ImageStore) -> None:
    status, name, target = store.container_status("one", "/data/file")
    assert (status.type, status.mode, status.uid, status.size, status.mtime_ns) == (FileType.REGULAR, 0o4711, 7, 7, TIME * 10**9)
    assert (name, target) == ("file", "")
    for path, expected in (
        ("/", "/"),
        (".", "."),
        ("/data/.", "."),
        ("data/", "data"),
        ("/data/../etc", "etc"),
        ("to-data/", "to-data"),
    ):
        found = store.container_status("one", path)
        assert (found.name, found.status.type, found.link_target) == (expected, FileType.DIRECTORY, "")
    assert store.container_status("one", "to-data").link_target == "/data"
    assert store.container_status("one", b"srv").status.mode == 0o755


NOWHERE = [
    ("/nope", NotFoundError, "Could not find the file /nope in container one"),
    ("data/none/x", NotFoundError, "Could not find the file data/none/x in container one"),
    ("/data/file/", InvalidError, "lstat /data/file/: not a directory"),
    ("/data/file/x", InvalidError, "lstat /data/file/x: not a directory"),
    ("/loop/x", InvalidError, "stat /loop: too many levels of symbolic links"),
    ("", InvalidError, "bad parameter: 'path' cannot be empty"),
    ("a\0b", InvalidError, "/a\0b: a path of 3 bytes, allowed are 4095 and no NUL byte"),
    ("/" + "x/" * 2500, InvalidError, "allowed are 4095"),
]


def test_paths_that_lead_nowhere(store: ImageStore) -> None:
    for path, kind, words in NOWHERE:
        for look in (store.container_status, store.copy_from_container):
            with pytest.raises(kind) as caught:
                look("one", path)
            assert words in str(caught.value)
    assert leased(store) == []


def test_no_such_container(store: ImageStore) -> None:
    with pytest.raises(NotFoundError, match="No such container: two"):
        store.copy_from_container("two", "/")
    with pytest.raises(NotFoundError, match="No such container: two"):
        store.copy_to_container("two", "/", io.BytesIO())
    with pytest.raises(NotFoundError, match="No such container: two"):
        store.export_container("two")


def test_owners(store: ImageStore, tmp_path: Path) -> None:
    copy_in(store, (entry("a", uid=11, gid=12), b""), owner_of_user=True)
    assert (members_of(store, "a")["a"].uid, members_of(store, "a")["a"].gid) == (11, 12)
    users = {
        "bob": (1234, 2345),
        "bob:staff": (1234, 3456),
        "1234": (1234, 2345),
        "77": (77, 0),
        ":staff": (0, 3456),
        "77:88": (77, 88),
    }
    for number, (user, expected) in enumerate(users.items()):
        name = f"user-{number}"
        store.create_container("base", name=name, config={"Cmd": ["x"], "User": user})
        store.copy_to_container(name, "/", io.BytesIO(make_tar((entry("new/file", uid=9), b""))), owner_of_user=True)
        status = store.container_status(name, "/new/file").status
        assert expected == (status.uid, status.gid), user
        assert store.container_status(name, "/new").status.uid == 0
    store.create_container("base", name="nobody", config={"Cmd": ["x"], "User": "eve"})
    with pytest.raises(InvalidError, match='failed to look up user "eve" in container: no matching entries in passwd file'):
        store.copy_to_container("nobody", "/", io.BytesIO(make_tar((entry("f"), b""))), owner_of_user=True)


def test_directories_keep_what_they_have(store: ImageStore) -> None:
    acl = "user::rwx,user:100:rwx,group::r-x,mask::rwx,other::r-x"
    attributes = {"SCHILY.xattr.user.old": "kept", "SCHILY.acl.access": acl}
    copy_in(store, directory("acl", mode=0o775, pax_headers=attributes), (entry("acl/inside"), b"x"))
    copy_in(store, directory("acl", mode=0o700, uid=3, pax_headers={"SCHILY.xattr.user.new": "added"}))
    status = store.container_status("one", "/acl").status
    assert (status.mode, status.uid, status.xattrs[b"user.old"], status.xattrs[b"user.new"]) == (0o700, 3, b"kept", b"added")
    permissions = status.xattrs[b"system.posix_acl_access"][6::8]
    assert list(permissions) == [7, 7, 5, 0, 0]  # chmod(2) changes those of the owner, the mask and all others
    assert "acl/inside" in members_of(store, "acl")


def test_a_link_that_becomes_a_directory_on_the_way(store: ImageStore) -> None:
    copy_in(
        store,
        link("l", "/etc"),
        (entry("l/a"), b""),
        directory("l"),
        (entry("l/b"), b""),
        link("l/c", "/data"),
        (entry("l/c/d"), b""),
    )
    assert sorted(members_of(store, "/l")) == ["l", "l/b", "l/c"]
    assert "etc/a" in members_of(store, "/etc") and "etc/b" not in members_of(store, "/etc")
    assert "data/d" in members_of(store, "/data")


def test_compressed_archives(store: ImageStore) -> None:
    import bz2
    import gzip
    import lzma

    tar = make_tar((entry("packed"), b"x" * 10_000))
    for number, packed in enumerate((gzip.compress(tar), bz2.compress(tar), lzma.compress(tar))):
        store.copy_to_container("one", "/data", io.BytesIO(packed))
        assert file_of(store.copy_from_container("one", "/data/packed")[1], "packed") == b"x" * 10_000, number
    store.copy_to_container("one", "/data", io.BytesIO())


def test_times_of_directories(store: ImageStore) -> None:
    before = store.container_status("one", "/data").status
    copy_in(store, (entry("data/new"), b""), directory("stated"), (entry("stated/new"), b""))
    after = store.container_status("one", "/data").status
    assert before.mtime_ns < after.mtime_ns and before.uid == after.uid
    assert store.container_status("one", "/stated").status.mtime_ns == TIME * 10**9
    assert store.container_status("one", "/etc").status.mtime_ns == TIME * 10**9


def test_mounts_at_places_that_are_not_on_the_disk(store: ImageStore) -> None:
    assert list(members_of(store, "/srv")) == ["srv", "srv/volume"]
    assert names_of(store.export_container("one")) == ["data", "data/file", "etc", "etc/group", "etc/passwd", "loop", "to-data"]
    copy_in(store, (entry("srv/volume/x"), b"in"), (entry("srv/beside"), b"own"))
    assert sorted(members_of(store, "/srv")) == ["srv", "srv/beside", "srv/volume", "srv/volume/x"]
    assert "srv/volume" not in names_of(store.export_container("one"))
    assert file_of(store.copy_from_container("one", "/srv/volume/x")[1], "x") == b"in"


def test_a_guest_has_the_disk(store: ImageStore) -> None:
    need("qemu-io")
    for options, words in (((), "is open"), (("-r",), "")):
        guest = subprocess.Popen(
            ["qemu-io", *options, "-f", "vmdk", disk_of(store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert guest.stdin is not None and guest.stdout is not None
        guest.stdin.write(b"read 0 512\n")
        guest.stdin.flush()
        assert guest.stdout.readline()
        try:
            with pytest.raises(InUseError, match="container one: "):
                copy_in(store, (entry("x"), b""))
            if words:
                with pytest.raises(InUseError, match="container one: "):
                    store.copy_from_container("one", "/data")
            else:
                assert list(members_of(store, "/data")) == ["data", "data/file"]
        finally:
            guest.communicate(b"quit\n")
    copy_in(store, (entry("x"), b""))


def test_a_reader_that_goes_away_frees_the_container(store: ImageStore) -> None:
    for read in (False, True):
        _, pieces = store.copy_from_container("one", "/")
        if read:
            next(pieces)
        pieces.close()
        copy_in(store, (entry("x"), b""))
    exported = store.export_container("one")
    exported.close()
    assert leased(store) == []


def test_who_waits_too_long_gives_up(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "PATIENCE", 0.0)
    _, pieces = store.copy_from_container("one", "/")
    with pytest.raises(InUseError, match="container one: others have been busy with its files for 0 seconds"):
        copy_in(store, (entry("x"), b""))
    pieces.close()


def test_ten_copies_at_once(store: ImageStore) -> None:
    """Each with a store of its own, as processes have; some through the volume that all have."""
    noise = os.urandom(300_000)

    def copy(number: int) -> int:
        with ImageStore.open(store.location) as own:
            place = ("/data", "/srv/volume")[number // 2 % 2]
            if number % 2:
                own.copy_to_container("one", place, io.BytesIO(make_tar((entry(f"f{number}"), noise[number:]))))
                return number
            _, pieces = own.copy_from_container("one", place)
            return len(names_of(pieces))

    with ThreadPoolExecutor(10) as pool:
        counts = list(pool.map(copy, range(10)))
    assert counts[1::2] == [1, 3, 5, 7, 9]
    for number in (1, 3, 5, 7, 9):
        place = ("/data", "/srv/volume")[number // 2 % 2]
        assert file_of(store.copy_from_container("one", f"{place}/f{number}")[1], f"f{number}") == noise[number:]
    assert leased(store) == []


def test_the_commands(cli: CommandLine, tmp_path: Path) -> None:
    here = tmp_path / "here"
    (here / "tree/inner").mkdir(parents=True)
    (here / "tree/inner/file").write_bytes(b"local")
    cli.text("container", "cp", here / "tree", "one:/data")
    cli.text("container", "cp", "one:/data/.", here / "back")
    assert (here / "back/tree/inner/file").read_bytes() == b"local"
    assert (here / "back/file").stat().st_mode & 0o7777 == 0o4711
    assert cli.text("container", "diff", "one") == "C /data\nA /data/tree\nA /data/tree/inner\nA /data/tree/inner/file\n"
    assert cli.json("container", "diff", "one")[0] == {"kind": "changed", "path": "/data"}
    archive = cli.run("container", "cp", "one:/etc/passwd", "-").stdout
    assert file_of([archive], "passwd") == PASSWD
    cli.text("container", "export", "-o", here / "root.tar", "one")
    assert "data/tree/inner/file" in names_of([(here / "root.tar").read_bytes()])
    piped = subprocess.run(
        cli.words("container", "cp", "-", "one:/etc"),
        input=make_tar((entry("piped"), b"in")),
        env=cli.environment,
        capture_output=True,
    )
    assert piped.returncode == 0, piped.stderr.decode()
    assert file_of([cli.run("container", "cp", "one:/etc/piped", "-").stdout], "piped") == b"in"


NONSENSE = [
    (("one:/nope", "."), 4, "Could not find the file /nope in container one"),
    (("two:/", "."), 4, "No such container: two"),
    (("{here}/none", "one:/"), 4, "lstat {here}/none: no such file or directory"),
    (("one:/data", "one:/etc"), 2, "copying between containers is not supported"),
    (("{here}", "{here}/x"), 2, "must specify at least one container source"),
    (("", "one:/"), 2, "source can not be empty"),
    (("{here}", "one:/data/file"), 2, "cannot copy directory"),
    (("one:/data", "{here}/file"), 2, "cannot copy directory"),
    (("one:/data", "{here}/not/there"), 4, 'invalid output path: directory "{here}/not" does not exist'),
    (("one:/data/file", "{here}/new/"), 2, "no such directory"),
    (("-", "one:/data/file"), 2, 'destination "one:/data/file" must be a directory'),
    (("{here}/file", "one:/none/x"), 4, "Could not find the file /none in container one"),
]


def test_commands_that_make_no_sense(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("IMGSTORE_STORE", str(template))
    here = str(tmp_path)
    for words, code, said in NONSENSE:
        assert main(["container", "cp", *(word.format(here=here) for word in words)]) == code
        assert capsys.readouterr().err.splitlines()[0] == f"imgstore: {said.format(here=here)}"
