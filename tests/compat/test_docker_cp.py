"""Copies in and out of containers, given to Debian's dockerd and to us: the same trees, the same words."""

from __future__ import annotations

import io
import os
import re
import shutil
import stat
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from imgstore.answers import Mount
from imgstore.cli.main import main
from imgstore.store import ImageStore
from tests.archive_members import TIME, entry, link, make_tar
from tests.hostile_tars import TREE_ATTACKS
from tests.servers.dockerd import DockerDaemon, docker_daemon
from tests.tools import need_root

OWN = re.compile(r"\.dockerenv|(dev|proc|sys)(/.*)?|etc/(hosts|hostname|resolv\.conf|mtab)")
"""What dockerd puts into every container."""

Member = tuple[str, bytes, int, int, int, int, str, int | None, tuple[int, int], bytes]


CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
IMAGE = make_tar(
    entry("etc", tarfile.DIRTYPE),
    (entry("etc/passwd"), b"root:x:0:0::/root:/bin/sh\nbob:x:1234:2345::/:\n"),
    (entry("etc/group"), b"root:x:0:\nstaff:x:3456:\n"),
    entry("data", tarfile.DIRTYPE, mode=0o2750, uid=5, gid=6),
    (entry("data/file", mode=0o4711, uid=7), b"content"),
    (entry("data/hard"), b"linked"),
    entry("data/hard2", tarfile.LNKTYPE, linkname="data/hard"),
    link("data/rel", "file"),
    link("data/abs", "/etc/passwd"),
    entry("data/pipe", tarfile.FIFOTYPE),
    entry("data/node", tarfile.CHRTYPE, devmajor=1, devminor=7),
    entry("data/sub", tarfile.DIRTYPE, mode=0o1777),
    (entry("data/sub/deep", pax_headers={"SCHILY.xattr.security.capability": CAPABILITY.decode("latin-1")}), b"deep"),
    (entry("data/with space \u00e4"), b"odd"),
    entry("empty", tarfile.DIRTYPE),
    link("to-data", "/data"),
    link("up", "../../../etc"),
    link("chain", "to-data/sub"),
    link("loop", "loop"),
    link("dangling", "/nope/../not/../there"),
    link("escape", "/../../../../data/sub"),
)


@dataclass
class Side:
    """One of the two: a way to run ``cp`` and the like, and a directory of this machine for it."""

    local: Path
    run: Callable[..., tuple[int, bytes, str]]
    export: Callable[[], bytes]


def members(tar: bytes, since: float) -> dict[str, Member]:
    """What a tar has, by name; times that are of the copy itself are left out."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        found = {}
        for member in archive:
            name = member.name.lstrip("/").removeprefix("./")
            if OWN.fullmatch(name):
                continue
            body = archive.extractfile(member) if member.isreg() else None
            mtime = int(member.mtime) if member.mtime < since - 60 and name not in ("", ".", "etc") else None
            capability = member.pax_headers.get("SCHILY.xattr.security.capability", "")
            found[name] = (
                member.name,
                member.type,
                member.mode & 0o7777,
                member.uid,
                member.gid,
                member.size if member.isreg() else 0,
                member.linkname,
                mtime,
                (member.devmajor, member.devminor) if member.isdev() else (0, 0),
                (body.read() if body else b"") + capability.encode(),
            )
        return found


def tree(directory: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        special = path.is_symlink() or not (path.is_file() or path.is_dir())
        content = (
            str(path.readlink()).encode() if path.is_symlink() else path.read_bytes() if not special and path.is_file() else b""
        )
        mtime = int(status.st_mtime) if status.st_mtime < time.time() - 3600 else None
        names = status.st_nlink if stat.S_ISREG(status.st_mode) else 0
        found[str(path.relative_to(directory))] = (oct(status.st_mode), status.st_uid, status.st_rdev, names, mtime, content)
    return found


def make_local(directory: Path) -> None:
    """What is copied in."""
    (directory / "dir/inner").mkdir(parents=True)
    (directory / "file").write_bytes(b"local")
    (directory / "file").chmod(0o640)
    (directory / "dir/one").write_bytes(b"1")
    os.link(directory / "dir/one", directory / "dir/two")
    (directory / "dir/inner/.wh.odd").write_bytes(b"no whiteout")
    (directory / "dir/inner/link").symlink_to("../one")
    (directory / "to-file").symlink_to("file")
    (directory / "to-dir").symlink_to("dir")
    with (directory / "sparse").open("wb") as sparse:
        sparse.truncate(5 << 20)
        sparse.seek(3 << 20)
        sparse.write(b"x" * 5000)
    os.chown(directory / "file", 77, 88)
    (directory / "out").mkdir()
    for path in [*directory.rglob("*"), directory]:
        os.utime(path, (TIME, TIME), follow_symlinks=False)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerDaemon]:
    need_root()
    root = tmp_path_factory.mktemp("d")
    with docker_daemon(root) as running:
        done = running.run("import", "-", "base", input=IMAGE)
        assert done.returncode == 0, done.stderr.decode()
        yield running
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageStore]:
    with ImageStore.create(str(tmp_path_factory.mktemp("store") / "s"), disk_size=256 << 20) as opened:
        opened.import_image(io.BytesIO(IMAGE), reference="base")
        yield opened


Sides = Callable[..., tuple[Side, Side]]


@pytest.fixture
def sides(
    daemon: DockerDaemon,
    store: ImageStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> Iterator[Sides]:
    """Makes a container ``one`` on both sides."""
    monkeypatch.setenv("IMGSTORE_STORE", store.location)

    def make(*, volumes: tuple[str, ...] = (), user: str = "", read_only: bool = False) -> tuple[Side, Side]:
        theirs, ours = tmp_path / "theirs", tmp_path / "ours"
        for directory in (theirs, ours):
            make_local(directory)
        words = [word for volume in volumes for word in ("-v", volume)] + (["--read-only"] if read_only else [])
        done = daemon.run("create", "--name", "one", *words, *(["-u", user] if user else []), "base", "sh")
        assert done.returncode == 0, done.stderr.decode()
        mounts = []
        for volume in volumes:
            name, destination, *mode = volume.split(":")
            store.create_volume(name)
            mounts.append(Mount(name, destination, mode == ["ro"]))
        store.create_container("base", name="one", mounts=mounts, read_only=read_only, config={"Cmd": ["sh"], "User": user})

        def docker(*words: str, input: bytes = b"") -> tuple[int, bytes, str]:
            monkeypatch.chdir(theirs)
            done = daemon.run(*words, input=input)
            return done.returncode, done.stdout, done.stderr.decode()

        def imgstore(*words: str, input: bytes = b"") -> tuple[int, bytes, str]:
            monkeypatch.chdir(ours)
            capfdbinary.readouterr()
            with monkeypatch.context() as patch:
                patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(input)))
                code = main(["container", *words])
            said = capfdbinary.readouterr()
            return code, said.out, said.err.decode()

        def docker_export() -> bytes:
            return daemon.run("export", "one").stdout

        return Side(theirs, docker, docker_export), Side(ours, imgstore, lambda: b"".join(store.export_container("one")))

    yield make
    daemon.run("rm", "-v", "one")
    store.remove_container("one")
    for name in ("vv", "ww"):
        daemon.run("volume", "rm", "-f", name)
        store.remove_volume(name, force=True)


def words_of(said: str, root: Path) -> str:
    """An error in the words that both have: without who says it, and where dockerd keeps the files."""
    lines = [line for line in said.splitlines() if not line.startswith(("hint:", "time="))]  # the client logs what it gives up
    said = "\n".join(lines)
    said = re.sub(r"^(Error response from daemon: |imgstore: )+", "", said.strip())
    said = re.sub(r"Error processing tar file\(exit status 1\): ", "", said)
    said = re.sub(r"/\S*/vfs/dir/[0-9a-f]{64}", "", said)
    return said.replace(str(root), "LOCAL").replace("Error: ", "")


def differences(what: str, answers: list[object]) -> list[str]:
    """What the two sides say differently, theirs first."""
    expected, actual = answers
    if isinstance(expected, tuple) and isinstance(actual, tuple):
        return [line for pair in zip(expected, actual, strict=True) for line in differences(what, list(pair))]
    if isinstance(expected, dict) and isinstance(actual, dict):
        names = sorted(expected.keys() | actual.keys())
        return [
            f"{what}: {name}: {expected.get(name)} {actual.get(name)}" for name in names if expected.get(name) != actual.get(name)
        ]
    return [] if expected == actual else [f"{what}: {expected!r} {actual!r}"]


OUT = [
    ["data", "out"],
    ["data", "new"],
    ["data/", "new"],
    ["data/.", "out"],
    ["data/.", "new"],
    ["data/file", "out"],
    ["data/file", "new"],
    ["data/file", "file"],
    ["/data/../data/./file", "out/"],
    ["to-data", "out"],
    ["to-data/", "out"],
    ["to-data/.", "out"],
    ["-L", "to-data", "out"],
    ["-L", "data/rel", "out"],
    ["-L", "data/abs", "new"],
    ["chain/", "new"],
    ["escape/deep", "out"],
    ["up/passwd", "out"],
    ["dangling", "out"],
    ["data/node", "out"],
    ["data/file", "to-file"],
    ["data/file", "to-dir"],
    ["data", "file"],
    ["data/file", "new/"],
    ["data/file", "not/there"],
    ["data/file", "file/x"],
    ["nope", "out"],
    ["dangling/", "out"],
    ["data/file/", "out"],
    ["data/file/x", "out"],
    ["data/file/.", "out"],
]


def test_copies_out(sides: Sides) -> None:
    theirs, ours = sides()
    found: list[str] = []
    for words in OUT:
        *options, source, destination = words
        answers = []
        for side in (theirs, ours):
            code, _, said = side.run("cp", *options, f"one:{source}", destination)
            answers.append((code == 0, words_of(said, side.local) if code else "", tree(side.local)))
            shutil.rmtree(side.local)
            make_local(side.local)
        found += differences(" ".join(words), answers)
    assert not found, "\n".join(found)


def test_archives_of_paths(sides: Sides) -> None:
    theirs, ours = sides()
    since = time.time()
    found: list[str] = []
    for source in ("data", "/data/", "/data/.", "/", "/.", "to-data", "to-data/", "data/hard2", "chain/.", "data/pipe"):
        archives = [side.run("cp", f"one:{source}", "-")[1] for side in (theirs, ours)]
        found += differences(source, [members(archive, since) for archive in archives])
    assert not found, "\n".join(found)


IN = [
    ["file", "/data"],
    ["file", "/data/new"],
    ["file", "data/file"],
    ["file", "/data/new/"],
    ["file", "/nope/new"],
    ["file", "/data/file/new"],
    ["file", "/to-data"],
    ["file", "/to-data/sub/"],
    ["file", "/escape"],
    ["file", "/up/from-file"],
    ["file", "/dangling"],
    ["file", "/data/rel"],
    ["file", "/data/abs"],
    ["file", "/data/sub/../moved"],
    ["file", "/data/node"],
    ["file", "/loop"],
    ["dir", "/data"],
    ["dir", "/data"],
    ["dir", "/data/copy"],
    ["dir/", "/data/copy2"],
    ["dir/.", "/data/copy3"],
    ["dir/.", "/data/copy4/."],
    ["dir/.", "/empty"],
    ["dir", "/data/file"],
    ["dir", "/chain"],
    ["to-file", "/empty"],
    ["to-file", "/empty/renamed"],
    ["-L", "to-file", "/empty"],
    ["to-dir", "/empty"],
    ["to-dir/", "/empty"],
    ["to-dir/.", "/empty"],
    ["-L", "to-dir", "/empty/followed"],
    ["sparse", "/"],
    ["-a", "file", "/owned"],
    ["nope", "/data"],
    ["file", "/data/with space ä"],
]


def test_copies_in(sides: Sides) -> None:
    theirs, ours = sides()
    since = time.time()
    found: list[str] = []
    for words in IN:
        *options, source, destination = words
        answers = []
        for side in (theirs, ours):
            code, _, said = side.run("cp", *options, source, f"one:{destination}")
            answers.append((code == 0, words_of(said, side.local) if code else ""))
        found += differences(" ".join(words), answers)
    found += differences("the tree", [members(side.export(), since) for side in (theirs, ours)])
    assert not found, "\n".join(found)


TARS = {
    "missing parents": [(entry("a/b/c"), b"x"), (entry("a/b2/c", uid=3), b"y")],
    "root's attributes": [entry("./", tarfile.DIRTYPE, mode=0o700), (entry("./x"), b"x")],
    "through a link": [link("l1", "sub"), (entry("l1/through"), b"x")],
    "through an absolute link": [link("l2", "/etc"), (entry("l2/through"), b"x")],
    "through one that is there": [(entry("abs/x"), b"x")],
    "through a dangling link": [link("l3", "/none"), (entry("l3/x"), b"x")],
    "through a file": [(entry("file/x"), b"x")],
    "link that leads out": [link("sub/l", "../../../x")],
    "link that leads up inside": [link("sub/l", "../file")],
    "hard link to what is there": [entry("h1", tarfile.LNKTYPE, linkname="hard")],
    "hard link to nothing": [entry("h", tarfile.LNKTYPE, linkname="none")],
    "hard link to a directory": [entry("h", tarfile.LNKTYPE, linkname="sub")],
    "directory for a file": [entry("file", tarfile.DIRTYPE)],
    "directory for a link": [entry("abs", tarfile.DIRTYPE)],
    "file for a directory": [(entry("sub"), b"x")],
    "link for a directory": [link("sub", "x")],
    "file for a link": [(entry("rel"), b"x"), (entry("abs"), b"x")],
    "whiteouts": [(entry(".wh.file"), b""), (entry("sub/.wh..wh..opq"), b""), (entry(".wh..wh.aufs"), b"")],
    "twice": [
        (entry("t"), b"first"),
        (entry("t"), b"second"),
        entry("d", tarfile.DIRTYPE),
        entry("d", tarfile.DIRTYPE, mode=0o711),
    ],
    "devices": [entry("n", tarfile.CHRTYPE, devmajor=5, devminor=300), entry("p", tarfile.FIFOTYPE, uid=9)],
    "capability": [(entry("c", pax_headers={"SCHILY.xattr.security.capability": CAPABILITY.decode("latin-1")}), b"x")],
    "merged directory": [entry("sub", tarfile.DIRTYPE, mode=0o700, uid=11, gid=12), (entry("sub/new"), b"x")],
}


def test_tars(sides: Sides) -> None:
    theirs, ours = sides()
    since = time.time()
    found: list[str] = []
    for what, content in TARS.items():
        answers = []
        for side in (theirs, ours):
            code, _, said = side.run("cp", "-", "one:/data", input=make_tar(*content))
            answers.append((code == 0, words_of(said, side.local) if code else ""))
        found += differences(what, answers)
    trees = [members(side.export(), since) for side in (theirs, ours)]
    found += differences("the tree", [{name: nodes[name] for name in nodes if name != "data/l3"} for nodes in trees])
    assert not found, "\n".join(found)


def test_volumes(sides: Sides) -> None:
    """``w`` is mounted in ``v``, at a place that is not there yet, and ``v`` on a directory of the image."""
    theirs, ours = sides(volumes=("vv:/data/sub", "ww:/to-data/sub/inner/w"))
    since = time.time()
    found: list[str] = []
    tars = [
        make_tar((entry("sub/in-v"), b"v"), (entry("sub/inner/w/in-w"), b"w"), (entry("beside"), b"own")),
        make_tar(
            entry("sub", tarfile.DIRTYPE, mode=0o711, uid=3), link("sub/to-w", "inner/w"), (entry("sub/to-w/through"), b"w")
        ),
        make_tar((entry("sub/hard"), b"x"), entry("sub/hard2", tarfile.LNKTYPE, linkname="sub/hard")),
        make_tar(entry("sub/across", tarfile.LNKTYPE, linkname="file")),
    ]
    for number, tar in enumerate(tars):
        answers = []
        for side in (theirs, ours):
            code, _, said = side.run("cp", "-", "one:/data", input=tar)
            answers.append((code == 0, words_of(said, side.local) if code else ""))
        found += differences(f"tar {number}", answers)
    for side in (theirs, ours):
        assert side.run("cp", "dir", "one:/chain/inner")[0] == 0
    for source in ("data", "data/sub", "chain/.", "data/sub/inner/w", "data/sub/inner/w/in-w", "data/sub/to-w/"):
        archives = [side.run("cp", f"one:{source}", "-")[1] for side in (theirs, ours)]
        trees = [members(archive, since) for archive in archives]
        found += differences(source, trees)
    assert not found, "\n".join(found)


def test_what_cannot_be_written(sides: Sides) -> None:
    theirs, ours = sides(volumes=("vv:/data/sub:ro", "ww:/empty"), read_only=True)
    found: list[str] = []
    for source, destination in (("file", "/data"), ("file", "/data/sub"), ("dir", "/empty"), ("file", "/data/sub/in")):
        answers = []
        for side in (theirs, ours):
            code, _, said = side.run("cp", source, f"one:{destination}")
            answers.append((code == 0, words_of(said, side.local) if code else ""))
        found += differences(f"{source} {destination}", answers)
    assert not found, "\n".join(found)


def test_attacks_stay_inside_as_they_do_there(sides: Sides) -> None:
    theirs, ours = sides()
    since = time.time()
    found: list[str] = []
    refused: list[str] = []
    attacks = {what: tar for what, tar in TREE_ATTACKS.items() if "ten thousand" not in what}
    for number, (what, tar) in enumerate(attacks.items()):
        directory = make_tar(entry(f"d{number:02}", tarfile.DIRTYPE))
        assert [side.run("cp", "-", "one:/empty", input=directory)[0] for side in (theirs, ours)] == [0, 0]
        codes = [side.run("cp", "-", f"one:/empty/d{number:02}", input=tar)[0] == 0 for side in (theirs, ours)]
        found += differences(what, codes)
        if not all(codes):
            refused += [f"empty/d{number:02}"]  # here nothing is left of it
    trees = [members(side.export(), since) for side in (theirs, ours)]
    for nodes in trees:
        for name in [name for name in nodes if name.startswith(tuple(refused))]:
            del nodes[name]
    found += differences("the tree", trees)
    assert not found, "\n".join(found)
