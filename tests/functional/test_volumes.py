"""``imgstore volume`` and ``imgstore volume-store``."""

from __future__ import annotations

import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from imgstore.store import ImageStore
from tests.command_line import CommandLine


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path / "store")


@pytest.fixture(scope="module")
def with_volume(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    cli = CommandLine(tmp_path_factory.mktemp("volumes") / "store")
    with ImageStore.open(str(cli.store)) as store:
        store.create_volume("db", options={"Capacity": "128"})
    return cli


def test_the_life_of_a_volume(cli: CommandLine, tmp_path: Path) -> None:
    assert cli.text("volume", "create", "db", "-o", "Capacity=100MB", "-l", "tier=db", "-l", "plain") == "db\n"
    (shown,) = cli.json("volume", "inspect", "db")
    assert (shown["capacity"], shown["options"], shown["labels"]) == (
        100_007_936,
        {"Capacity": "100MB"},
        {"tier": "db", "plain": ""},
    )
    (tmp_path / "file").write_bytes(b"content")
    with tarfile.open(tmp_path / "in.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "file", "file")
    cli.text("volume", "import", "db", tmp_path / "in.tar.gz")
    cli.text("volume", "snapshot", "db", "monday")
    assert cli.text("volume", "clone", "db@monday", "copy", "-o", "capacity=128") == "copy\n"
    cli.text("volume", "grow", "db", "200")
    cli.text("volume", "export", "copy", "-o", tmp_path / "out.tar")
    with tarfile.open(tmp_path / "out.tar") as archive:
        assert archive.getnames() == [".", "file"]
    piped = cli.run("volume", "export", "db@monday")
    assert piped.stdout == (tmp_path / "out.tar").read_bytes() and piped.stderr == b""
    assert [(one["name"], one["capacity"], one["used"] > 0) for one in cli.json("volume", "df")] == [
        ("copy", 128 << 20, True),
        ("db", 200 << 20, True),
    ]
    lines = cli.text("volume", "ls").splitlines()
    assert [line.split()[:4] for line in lines] == [
        ["DRIVER", "VOLUME", "NAME", "STORE"],
        ["local", "copy", "default", "128MiB"],
        ["local", "db", "default", "200MiB"],
    ]
    assert cli.text("volume", "rm", "db@monday", "db") == "db@monday\ndb\n"
    assert cli.text("volume", "ls", "-q") == "copy\n"
    assert cli.json("check") == []
    usage = cli.json("df")
    assert usage["volumes"] == 1 and usage["volume_bytes"] > 0


def test_an_archive_from_a_pipe(cli: CommandLine, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("x"))
    cli.text("volume", "create", "v")
    words = cli.words("volume", "import", "v", "-")
    done = subprocess.run(words, input=(tmp_path / "in.tar").read_bytes(), env=cli.environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    done = subprocess.run(words, input=(tmp_path / "in.tar").read_bytes()[:700], env=cli.environment, capture_output=True)
    assert done.returncode == 7 and done.stderr.startswith(b"imgstore: standard input: ")


def test_prune(cli: CommandLine) -> None:
    cli.text("volume", "create", "named")
    name = cli.text("volume", "create").strip()
    assert len(name) == 64 and cli.json("volume", "ls", "-q", "--filter", "label=com.docker.volume.anonymous") == [name]
    assert "--force" in cli.run("volume", "prune").stderr.decode()
    size = cli.json("volume", "inspect", name)[0]["size"]
    assert cli.json("volume", "prune", "-f") == {"deleted": [name], "reclaimed": size}
    out = cli.text("volume", "prune", "-f", "-a").splitlines()
    assert out[0] == "Deleted: named" and out[1].startswith("Total reclaimed space: ")


def test_volume_stores(cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "extra").mkdir()
    assert cli.text("volume-store", "add", "extra", tmp_path / "extra") == "extra\n"
    cli.text("volume", "create", "v", "-o", "VolumeStore=extra")
    assert cli.json("volume-store", "ls") == [
        {"name": "default", "location": str(cli.store), "volumes": 0, "problem": None},
        {"name": "extra", "location": str(tmp_path / "extra"), "volumes": 1, "problem": None},
    ]
    (tmp_path / "extra").rename(tmp_path / "away")
    listed = cli.run("volume", "ls", "--format", "json")
    assert json.loads(listed.stdout) == []
    assert listed.stderr.decode() == f"warning: volume store extra: {tmp_path}/extra: no such directory\n"
    assert "no such directory" in cli.text("volume-store", "ls").splitlines()[2]
    assert cli.text("volume-store", "rm", "extra") == "extra\n"
    assert cli.run("volume", "ls").stderr == b""


@pytest.mark.parametrize(
    ("code", "words", "message"),
    [
        (10, "create db", "A volume named db already exists. Choose a different volume name."),
        (2, "create /db", 'volume name "/db" includes invalid characters, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed'),
        (4, "create -d nfs x", "error looking up volume plugin nfs: plugin not found"),
        (2, "create -o type=tmpfs x", "bad driver value - type is not a supported option"),
        (2, "create -o Capacity=0 x", "bad driver value - Invalid size: 0"),
        (2, "create -o =1 x", "--opt =1: has no name"),
        (4, "create -o volumestore=fast x", "No volume store named (fast) exists"),
        (4, "inspect x", "No such volume: x"),
        (4, "rm x", "Get x: no such volume"),
        (4, "rm db@x", "volume db: no such snapshot: x"),
        (4, "export db@x", "volume db: no such snapshot: x"),
        (10, "clone db db", "A volume named db already exists. Choose a different volume name."),
        (2, "grow db 1", "volume db has 134217728 bytes: it cannot get smaller, to 67108864"),
        (2, "grow db big", "invalid size: 'big'"),
        (2, "ls --filter size=1", "Invalid filter 'size'"),
    ],
)
def test_what_cannot_be_done(with_volume: CommandLine, code: int, words: str, message: str) -> None:
    assert f"imgstore: {message}" == with_volume.fails(code, "volume", *words.split())
    assert len(list((with_volume.store / "volumes").glob("*.vmdk"))) == 1
