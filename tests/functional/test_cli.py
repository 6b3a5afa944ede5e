"""The command line end to end, as processes, on a real store and a real image; skopeo, umoci, tar and qemu-img judge what it says."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.servers.images import make_tar
from tests.servers.registry import Fault, Registry
from tests.tools import need, need_root, run

ROOT = Path(__file__).parents[2]
LAYOUT = ROOT / "testdata/three-layers"
REFERENCE = f"oci:{LAYOUT}"
ID = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Cli:
    """The program, with a store of its own."""

    store: Path

    def command(self, *words: str | Path) -> list[str]:
        return [sys.executable, "-m", "imgstore", *map(str, words)]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "IMGSTORE_STORE": str(self.store), "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}

    def bytes(self, *words: str | Path, code: int = 0) -> subprocess.CompletedProcess[bytes]:
        """Runs a command line to its end, which must have this exit code."""
        done = subprocess.run(self.command(*words), capture_output=True, env=self.environment, timeout=120)
        assert code == done.returncode, done.stderr.decode(errors="replace")
        return done

    def text(self, *words: str | Path, code: int = 0) -> str:
        """Returns the standard output."""
        return self.bytes(*words, code=code).stdout.decode()

    def error(self, *words: str | Path, code: int) -> str:
        """Returns the standard error; nothing may be on standard output."""
        done = self.bytes(*words, code=code)
        assert done.stdout == b""
        assert b"Traceback" not in done.stderr
        return done.stderr.decode()

    def json(self, *words: str | Path, code: int = 0) -> Any:
        return json.loads(self.text(*words, "--format", "json", code=code))

    def on_terminal(self, *words: str | Path, stdout_too: bool = False, code: int = 0) -> str:
        """Returns what a terminal saw on standard error, and on standard output if asked for."""
        controller, terminal = pty.openpty()
        process = subprocess.Popen(
            self.command(*words),
            stdin=subprocess.DEVNULL,
            stdout=terminal if stdout_too else subprocess.DEVNULL,
            stderr=terminal,
            env={**self.environment, "TERM": "xterm", "COLUMNS": "100", "LINES": "24"},
        )
        os.close(terminal)
        seen = b""
        try:
            while piece := os.read(controller, 1 << 16):
                seen += piece
        except OSError:  # how Linux says that the other side is closed
            pass
        os.close(controller)
        assert code == process.wait(60), seen
        return seen.decode()


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """A store that does not exist yet."""
    return Cli(tmp_path / "store")


@pytest.fixture(scope="module")
def pulled(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """A store with the image in it, for tests that change nothing."""
    cli = Cli(tmp_path_factory.mktemp("pulled") / "store")
    cli.text("pull", REFERENCE)
    return cli


@pytest.fixture(scope="module")
def image_id(pulled: Cli) -> str:
    return pulled.text("images", "--quiet", "--no-trunc").strip()


@pytest.fixture
def changeable(pulled: Cli, tmp_path: Path) -> Cli:
    """A copy of that store, for tests that change it."""
    shutil.copytree(pulled.store, tmp_path / "store", symlinks=True)
    return Cli(tmp_path / "store")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file tree of the image as umoci unpacks it."""
    need("umoci")
    need_root()
    bundle = tmp_path_factory.mktemp("umoci") / "bundle"
    run("umoci", "unpack", "--image", f"{LAYOUT}:latest", bundle)
    return bundle / "rootfs"


@pytest.fixture
def silent_registry() -> Iterator[socket.socket]:
    """A registry that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        yield server


def files_of(tree: Path) -> list[Path]:
    """Every path of a tree but its root, as absolute paths inside it."""
    return [Path("/") / path.relative_to(tree) for path in sorted(tree.rglob("*"))]


def names_in(directory: Path) -> list[str]:
    return sorted((path.name for path in directory.iterdir()), key=os.fsencode)


class TestPull:
    def test_lines_in_a_pipe(self, cli: Cli) -> None:
        done = cli.bytes("pull", REFERENCE)
        assert len(done.stdout.decode().splitlines()) == 1
        told = done.stderr.decode()
        assert "\r" not in told and "\x1b" not in told
        lines = told.splitlines()
        for state in ("Converting", "Pull complete"):
            assert len([line for line in lines if re.fullmatch(rf"[0-9a-f]{{12}}: {state}", line)]) == 3
        assert len(lines) == len(set(lines))
        assert lines[-1].startswith("Status: Downloaded newer image for ")

    def test_quiet_prints_the_image_id_alone(self, cli: Cli) -> None:
        need("skopeo")
        done = cli.bytes("pull", "--quiet", REFERENCE)
        assert done.stderr == b""
        manifest = json.loads(run("skopeo", "inspect", "--raw", f"{REFERENCE}:latest").stdout)
        assert f"{manifest['config']['digest']}\n" == done.stdout.decode()

    def test_json(self, cli: Cli) -> None:
        result = cli.json("pull", REFERENCE)
        assert set(result) == {"reference", "image_id", "digest", "status", "disk"}
        assert ID.fullmatch(result["image_id"]) and result["status"] == "downloaded"
        assert Path(result["disk"]).is_file()

    def test_again(self, changeable: Cli) -> None:
        done = changeable.bytes("pull", REFERENCE)
        assert b"Status: Image is up to date for " in done.stderr
        assert b"Converting" not in done.stderr

    def test_bars_on_a_terminal(self, cli: Cli) -> None:
        seen = cli.on_terminal("pull", REFERENCE)
        assert "\x1b[" in seen
        last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen).splitlines()
        assert any(re.match(r"[0-9a-f]{12} Pull complete ", line) for line in last)
        assert any(re.match(r"Total\s+3/3 layers ", line) for line in last)
        assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l"), "the cursor stays hidden"

    @pytest.mark.parametrize("form", ["oci:{0}/nowhere", "oci-archive:{0}/nowhere.tar", "docker-archive:{0}/nowhere.tar"])
    def test_nothing_there(self, cli: Cli, tmp_path: Path, form: str) -> None:
        assert "nowhere" in cli.error("pull", form.format(tmp_path), code=4)
        assert cli.json("images") == []

    def test_no_such_tag_in_json(self, cli: Cli) -> None:
        told = cli.error("pull", "--format", "json", f"{REFERENCE}:nosuchtag", code=4)
        error = json.loads(told[told.index("{") :])["error"]
        assert error["code"] == "not-found" and "nosuchtag" in error["message"]

    def test_no_such_platform(self, cli: Cli) -> None:
        assert "plan9" in cli.error("pull", "--platform", "plan9/mips", REFERENCE, code=4)

    @pytest.mark.parametrize("reference", ["app/UPPER", "a b", "", "x@sha256:12"])
    def test_no_reference(self, cli: Cli, reference: str) -> None:
        assert cli.error("pull", reference, code=2).startswith("imgstore: ")

    def test_no_registry(self, cli: Cli) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            host = f"127.0.0.1:{server.getsockname()[1]}"
        assert host in cli.error("pull", f"{host}/app:1", code=6)

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_interrupted(self, cli: Cli, silent_registry: socket.socket, number: signal.Signals, code: int) -> None:
        reference = f"127.0.0.1:{silent_registry.getsockname()[1]}/app:1"
        environment = {**cli.environment, "PYTHONWARNINGS": ""}  # the connection that hangs is dropped as it is
        process = subprocess.Popen(
            cli.command("pull", reference), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
        connection, _ = silent_registry.accept()
        with connection:
            process.send_signal(number)
            out, told = process.communicate(timeout=60)
        assert code == process.returncode, told
        assert out == b""
        assert b"layers that were complete are kept" in told and b"hint: run the same command again\n" in told
        assert b"Traceback" not in told
        assert cli.bytes("pull", "--quiet", REFERENCE).stdout


class TestRegistry:
    """Pulls from a registry in this process: what needs names, tags and digests."""

    def test_pulled_then_up_to_date(self, cli: Cli) -> None:
        with Registry() as registry:
            built = registry.add_image("library/app", "1", [make_tar({"etc/motd": b"one"})])
            name = f"{registry.host}/library/app"
            first = cli.bytes("pull", f"{name}:1")
            again = cli.bytes("pull", f"{name}:1")
        assert first.stdout.decode() == again.stdout.decode() == f"{name}:1\n"
        digest = f"Digest: {built.digest}\n".encode()
        assert first.stderr.endswith(digest + f"Status: Downloaded newer image for {name}:1\n".encode())
        assert again.stderr.endswith(digest + f"Status: Image is up to date for {name}:1\n".encode())
        row = cli.text("images", "--digests").splitlines()[1]
        assert row.split()[:3] == [name, "1", built.digest]
        assert f"{built.image_id}\n" == cli.text("images", "-q", "--no-trunc")

    def test_all_tags(self, cli: Cli) -> None:
        with Registry() as registry:
            built = {tag: registry.add_image("app", tag, [make_tar({"tag": tag.encode()})]) for tag in ("a", "b")}
            name = f"{registry.host}/app"
            assert cli.text("pull", "--all-tags", name) == f"{name}:a\n{name}:b\n"
            quiet = cli.bytes("pull", "--all-tags", "--quiet", name)
            pulled = cli.json("pull", "--all-tags", name)
        assert [image.image_id for image in built.values()] == quiet.stdout.decode().split()
        assert quiet.stderr == b""
        assert [(f"{name}:{tag}", image.digest, "up-to-date") for tag, image in built.items()] == [
            (result["reference"], result["digest"], result["status"]) for result in pulled
        ]

    def test_interrupted_between_two_layers(self, cli: Cli) -> None:
        with Registry() as registry:
            built = registry.add_image("app", "1", [make_tar({"first": b"1"}), make_tar({"second": b"2"})])
            first, second = (digest.removeprefix("sha256:") for digest in built.layer_digests)
            registry.inject(second, Fault(delay=5))
            command = cli.command("pull", f"{registry.host}/app:1")
            environment = {**cli.environment, "PYTHONWARNINGS": ""}  # the connection that waits is dropped as it is
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
                assert process.stdout is not None and process.stderr is not None
                before = list(iter(process.stderr.readline, f"{first[:12]}: Pull complete\n"))
                process.send_signal(signal.SIGINT)
                assert process.stdout.read() == ""
                told = process.stderr.read()
            assert process.returncode == 130, (before, told)
            assert "layers that were complete are kept" in told and "Traceback" not in told
            assert cli.json("images") == []
            assert cli.text("check") == ""
            again = cli.bytes("pull", f"{registry.host}/app:1").stderr.decode().splitlines()
        assert f"{first[:12]}: Already exists" in again
        assert f"{second[:12]}: Pull complete" in again

    @pytest.mark.parametrize("name", ["app:nosuchtag", "nosuchrepository:1"])
    def test_not_there(self, cli: Cli, name: str) -> None:
        with Registry() as registry:
            registry.add_image("app", "1", [make_tar({"a": b""})])
            assert "not found" in cli.error("pull", f"{registry.host}/{name}", code=4)
        assert cli.json("images") == []


class TestImages:
    def test_table(self, pulled: Cli, image_id: str) -> None:
        heading, row = pulled.text("images").splitlines()
        assert re.split(r"\s{3,}", heading) == ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"]
        cells = re.split(r"\s{3,}", row)
        assert image_id[7:19] == cells[2]
        assert re.fullmatch(r"[\d.]+[kM]?B", cells[4])

    def test_digests_and_full_ids(self, pulled: Cli, image_id: str) -> None:
        heading, row = pulled.text("images", "--digests", "--no-trunc").splitlines()
        assert "DIGEST" in heading and image_id in row

    def test_quiet(self, pulled: Cli, image_id: str) -> None:
        assert f"{image_id[7:19]}\n" == pulled.text("images", "-q")
        assert [image_id] == pulled.json("images", "-q")

    def test_json(self, pulled: Cli, image_id: str) -> None:
        (image,) = pulled.json("images")
        assert image_id == image["id"]
        assert sum(layer["size"] for layer in pulled.json("inspect", image_id)[0]["layers"]) == image["size"]

    def test_none(self, cli: Cli) -> None:
        assert cli.text("images").split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
        assert cli.json("images") == []

    def test_inspect_says_what_skopeo_says(self, pulled: Cli, image_id: str) -> None:
        need("skopeo")
        config = json.loads(run("skopeo", "inspect", "--config", "--raw", f"{REFERENCE}:latest").stdout)
        (image,) = json.loads(pulled.text("inspect", image_id))
        assert config == image["config"]
        assert config["rootfs"]["diff_ids"] == [layer["diff_id"] for layer in image["layers"]]
        manifest = json.loads(run("skopeo", "inspect", "--raw", f"{REFERENCE}:latest").stdout)
        assert [layer["digest"] for layer in manifest["layers"]] == [layer["digest"] for layer in image["layers"]]
        for layer in image["layers"]:
            assert 0 < layer["size"] <= Path(layer["disk"]).stat().st_size

    def test_inspect_one_of_two(self, pulled: Cli, image_id: str) -> None:
        done = pulled.bytes("inspect", image_id, "nosuchimage", code=3)
        assert [image_id] == [image["id"] for image in json.loads(done.stdout)]
        assert b"imgstore: 1 of 2 failed: No such image: nosuchimage" in done.stderr

    def test_inspect_none(self, pulled: Cli) -> None:
        assert "imgstore: No such image: nosuchimage" in pulled.error("inspect", "nosuchimage", code=4)

    def test_history(self, pulled: Cli, image_id: str) -> None:
        need("skopeo")
        config = json.loads(run("skopeo", "inspect", "--config", "--raw", f"{REFERENCE}:latest").stdout)
        items = pulled.json("history", image_id)
        assert [step.get("created_by", "") for step in reversed(config["history"])] == [item["created_by"] for item in items]
        chain_ids = [item["chain_id"] for item in reversed(items) if not item["empty"]]
        assert chain_ids == [layer["chain_id"] for layer in pulled.json("inspect", image_id)[0]["layers"]]
        heading, first, *_ = pulled.text("history", image_id).splitlines()
        assert heading.split() == ["IMAGE", "CREATED", "CREATED", "BY", "SIZE", "COMMENT"]
        assert first.startswith(image_id[7:19])

    def test_tag_and_remove(self, changeable: Cli, image_id: str) -> None:
        assert changeable.text("tag", image_id, "example.org/app:1") == ""
        changeable.text("tag", "example.org/app:1", "app")
        names = changeable.json("inspect", image_id)[0]["references"]
        assert {"example.org/app:1", "app:latest"} <= set(names)
        assert "Untagged: app:latest" in changeable.text("rm", "app").splitlines()
        assert changeable.json("rm", "example.org/app:1")["untagged"] == ["example.org/app:1"]

    def test_remove_by_id(self, changeable: Cli, image_id: str) -> None:
        changeable.text("tag", image_id, "one:1")
        changeable.text("tag", image_id, "two:1")
        assert "--force" in changeable.error("rm", image_id, code=9)
        assert f"Deleted: {image_id}" in changeable.text("rm", "--force", image_id).splitlines()
        assert changeable.json("images") == []
        assert changeable.json("df")["disks"] == 0
        assert changeable.text("check") == ""

    def test_remove_one_of_two(self, changeable: Cli, image_id: str) -> None:
        done = changeable.bytes("rm", "nosuchimage", image_id, "--format", "json", code=3)
        assert image_id in json.loads(done.stdout)["deleted"]
        assert json.loads(done.stderr)["error"]["code"] == "partial"


class TestDisks:
    def test_the_chain_is_the_one_that_qemu_sees(self, pulled: Cli, image_id: str) -> None:
        need("qemu-img")
        chain = pulled.text("disk", image_id, "--chain").splitlines()
        assert f"{chain[-1]}\n" == pulled.text("disk", image_id)
        assert {"disk": chain[-1], "chain": chain} == pulled.json("disk", image_id)
        seen = json.loads(run("qemu-img", "info", "--backing-chain", "--output=json", chain[-1]).stdout)
        assert [Path(path).resolve() for path in reversed(chain)] == [Path(disk["filename"]).resolve() for disk in seen]

    def test_no_such_image(self, pulled: Cli) -> None:
        assert "No such image: nosuchimage" in pulled.error("disk", "nosuchimage", code=4)


class TestFiles:
    def test_ls_knows_what_lstat_knows(self, pulled: Cli, image_id: str, tree: Path) -> None:
        for path in [Path("/"), *files_of(tree)]:
            directory = tree / path.relative_to("/")
            if directory.is_symlink() or not directory.is_dir():
                continue
            listed = {file["name"]: file for file in pulled.json("ls", image_id, path)}
            assert names_in(directory) == sorted(listed, key=os.fsencode)
            for name, found in listed.items():
                inside = directory / name
                wanted = inside.lstat()
                assert stat.S_IMODE(wanted.st_mode) == int(found["mode"], 8)
                assert (wanted.st_uid, wanted.st_gid) == (found["uid"], found["gid"])
                assert (str(inside.readlink()) if inside.is_symlink() else None) == found["target"]
                assert {
                    key: os.getxattr(inside, key, follow_symlinks=False) for key in os.listxattr(inside, follow_symlinks=False)
                } == {key: b64decode(value) for key, value in found["xattrs"].items() if not key.startswith("user.umoci")}
                if stat.S_ISREG(wanted.st_mode):
                    assert (wanted.st_size, wanted.st_nlink) == (found["size"], found["links"])
                    assert found["mtime"].startswith(
                        datetime.fromtimestamp(int(wanted.st_mtime), UTC).strftime("%Y-%m-%dT%H:%M:%S.")
                    )

    def test_ls_prints_names(self, pulled: Cli, image_id: str, tree: Path) -> None:
        assert [os.fsencode(name) for name in names_in(tree)] == pulled.bytes("ls", image_id).stdout.splitlines()
        assert pulled.text("ls", image_id, "/etc/motd") == "/etc/motd\n"

    def test_links_are_followed_inside_the_image(self, cli: Cli, tmp_path: Path) -> None:
        need("umoci")
        need_root()
        layout = f"{tmp_path}/layout:latest"
        run("umoci", "init", "--layout", tmp_path / "layout")
        run("umoci", "new", "--image", layout)
        run("umoci", "unpack", "--image", layout, tmp_path / "bundle")
        root = tmp_path / "bundle/rootfs"
        (root / "usr/lib").mkdir(parents=True)
        (root / "usr/lib/os-release").write_text("NAME=test\n")
        (root / "lib").symlink_to("usr/lib")
        (root / "release").symlink_to("/lib/../../../lib/os-release")
        run("umoci", "repack", "--image", layout, tmp_path / "bundle")
        image_id = cli.text("pull", "-q", f"oci:{layout}").strip()
        assert cli.text("cat", image_id, "/release") == "NAME=test\n"
        assert cli.text("ls", image_id, "/lib") == "os-release\n"
        assert cli.text("ls", "-l", image_id, "/lib").endswith(" /lib -> usr/lib\n")

    def test_long_listing(self, pulled: Cli, image_id: str, tree: Path) -> None:
        lines = pulled.text("ls", "-l", image_id).splitlines()
        assert len(names_in(tree)) == len(lines)
        for line in lines:
            assert re.fullmatch(r"[-dlcbps][-rwxsStT]{9} +\d+ +\d+ +\d+ +(\d+|\d+, +\d+) \d{4}-\d\d-\d\d \d\d:\d\d .+", line)

    def test_cat_prints_what_is_in_a_file(self, pulled: Cli, image_id: str, tree: Path) -> None:
        for path in files_of(tree):
            inside = tree / path.relative_to("/")
            if inside.is_file() and not inside.is_symlink():
                assert inside.read_bytes() == pulled.bytes("cat", image_id, path).stdout

    def test_cat_of_a_directory(self, pulled: Cli, image_id: str) -> None:
        assert pulled.error("cat", image_id, "/", code=2) == "imgstore: /: is no regular file, but a directory\n"

    @pytest.mark.parametrize("command", ["ls", "cat"])
    def test_no_such_file(self, pulled: Cli, image_id: str, command: str) -> None:
        told = pulled.error(command, image_id, "/no/such/file", code=4)
        assert told == "imgstore: /no/such/file: /no does not exist\n"
        assert "No such image: nosuchimage" in pulled.error(command, "nosuchimage", "/", code=4)

    def test_export_writes_the_tree(self, pulled: Cli, image_id: str, tree: Path, tmp_path: Path) -> None:
        need("tar")
        (tmp_path / "rootfs.tar").write_bytes(pulled.bytes("export", image_id).stdout)
        listed = run("tar", "-tf", tmp_path / "rootfs.tar").stdout.decode().splitlines()
        names = {Path("/") / name for name in listed} - {Path("/")}
        assert set(files_of(tree)) == names

    def test_export_into_a_file(self, pulled: Cli, image_id: str, tmp_path: Path) -> None:
        done = pulled.bytes("export", image_id, "-o", tmp_path / "rootfs.tar")
        assert done.stdout == b""
        assert pulled.bytes("export", image_id).stdout == (tmp_path / "rootfs.tar").read_bytes()
        assert names_in(tmp_path) == ["rootfs.tar"]

    def test_export_that_fails_leaves_no_file_and_keeps_the_old_one(self, pulled: Cli, tmp_path: Path) -> None:
        (tmp_path / "old.tar").write_bytes(b"old")
        for name in ("new.tar", "old.tar"):
            pulled.error("export", "nosuchimage", "-o", tmp_path / name, code=4)
        assert names_in(tmp_path) == ["old.tar"]
        assert (tmp_path / "old.tar").read_bytes() == b"old"

    def test_export_into_no_directory(self, pulled: Cli, image_id: str, tmp_path: Path) -> None:
        path = tmp_path / "nowhere/rootfs.tar"
        assert f"imgstore: {path}: cannot be written: No such file or directory\n" == pulled.error(
            "export", image_id, "-o", path, code=2
        )

    def test_export_spares_the_terminal(self, pulled: Cli, image_id: str) -> None:
        seen = pulled.on_terminal("export", image_id, stdout_too=True, code=2)
        assert seen.startswith("imgstore: cowardly refusing to save to a terminal")

    def test_a_reader_that_goes_away_is_no_error(self, pulled: Cli, image_id: str) -> None:
        with subprocess.Popen(
            pulled.command("export", image_id), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=pulled.environment
        ) as process:
            assert process.stdout is not None and process.stderr is not None
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode == 141

    def test_a_full_disk_is_an_error(self, pulled: Cli, image_id: str) -> None:
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(pulled.command("export", image_id), stdout=full, stderr=subprocess.PIPE, env=pulled.environment)
        assert done.returncode == 8
        assert b"No space left on device" in done.stderr


class TestStore:
    def test_check_of_a_good_store(self, pulled: Cli) -> None:
        for words in (["check"], ["check", "--read-data"]):
            done = pulled.bytes(*words)
            assert (done.stdout, done.stderr) == (b"", b"no problems found\n")
        assert pulled.json("check") == []

    def test_check_of_a_damaged_disk(self, changeable: Cli, image_id: str) -> None:
        path = Path(changeable.text("disk", image_id).strip())
        path.chmod(0o600)
        with path.open("r+b") as disk:
            disk.seek(-4096, os.SEEK_END)
            damaged = bytes(byte ^ 0xFF for byte in disk.read(4096))
            disk.seek(-4096, os.SEEK_END)
            disk.write(damaged)
        done = changeable.bytes("check", "--read-data", code=12)
        assert path.name in done.stdout.decode()
        problems = changeable.json("check", "--read-data", code=12)
        assert all(set(problem) == {"object", "problem", "offset"} for problem in problems)
        assert len(problems) == len(done.stdout.splitlines())

    @pytest.mark.parametrize("command", ["check", "rebuild"])
    def test_some_commands_never_make_a_store(self, cli: Cli, command: str) -> None:
        assert str(cli.store) in cli.error(command, code=4)
        assert not cli.store.exists()

    def test_df(self, pulled: Cli, image_id: str) -> None:
        used = pulled.json("df")
        assert [image_id] == [image["id"] for image in used["images"]]
        assert (used["disks"], used["disk_size"]) == (3, 32 << 30)
        of_layers = [path for path in (pulled.store / "disks").iterdir() if path.stem != "scratch"]
        assert len(of_layers) == 12, "each layer has a disk, its sums, a recipe and a marker"
        assert 512 * sum(path.stat().st_blocks for path in of_layers) == used["disk_bytes"]
        assert re.search(r"^Layer disks +3 +[\d.]+[kM]B$", pulled.text("df"), re.MULTILINE)
        assert image_id[7:19] in pulled.text("df", "--verbose")

    def test_init(self, cli: Cli) -> None:
        done = cli.bytes("init", "--disk-size", "8GiB")
        assert f"{cli.store}\n" == done.stdout.decode()
        assert done.stderr == b"Made a store of disks of 8GiB\n"
        need("qemu-img")
        disk = cli.json("pull", REFERENCE)["disk"]
        assert json.loads(run("qemu-img", "info", "--output=json", disk).stdout)["virtual-size"] == 8 << 30
        assert cli.json("df")["disk_size"] == 8 << 30

    def test_init_of_what_is_there(self, pulled: Cli) -> None:
        error = json.loads(pulled.error("init", "--format", "json", code=10))["error"]
        assert error["code"] == "already-exists"

    def test_init_in_json(self, cli: Cli) -> None:
        assert {"store": str(cli.store), "disk_size": 32 << 30, "max_depth": None} == cli.json("init")

    def test_a_directory_that_is_not_ours(self, cli: Cli) -> None:
        cli.store.mkdir()
        (cli.store / "thesis.txt").write_text("mine")
        assert str(cli.store) in cli.error("pull", REFERENCE, code=2)
        assert names_in(cli.store) == ["thesis.txt"]

    def test_rebuild(self, changeable: Cli) -> None:
        before = changeable.json("images"), changeable.json("df")["disk_bytes"]
        for path in changeable.store.glob("catalog*"):
            path.unlink()
        report = changeable.json("rebuild")
        assert (report["images"], report["disks"]) == (1, 3)
        assert before == (changeable.json("images"), changeable.json("df")["disk_bytes"])
        assert changeable.text("check") == ""
        assert changeable.text("rebuild").split() == ["IMAGES", "DISKS", "CONTAINERS", "LEFT", "OUT", "1", "3", "0", "0"]

    def test_the_option_beats_the_variable(self, pulled: Cli, tmp_path: Path) -> None:
        other = tmp_path / "other"
        assert pulled.text("--store", other, "images", "-q") == ""
        assert other.is_dir()


def test_a_name_cannot_steer_the_terminal(cli: Cli, tmp_path: Path) -> None:
    need("umoci")
    need_root()
    run("umoci", "init", "--layout", tmp_path / "layout")
    run("umoci", "new", "--image", f"{tmp_path}/layout:latest")
    run("umoci", "unpack", "--image", f"{tmp_path}/layout:latest", tmp_path / "bundle")
    (tmp_path / "bundle/rootfs" / "\x1b[31mred").touch()
    (tmp_path / "bundle/rootfs" / "new\nline").touch()
    run("umoci", "repack", "--image", f"{tmp_path}/layout:latest", tmp_path / "bundle")
    image_id = cli.text("pull", "-q", f"oci:{tmp_path}/layout").strip()
    assert cli.on_terminal("ls", image_id, stdout_too=True).splitlines() == ["\\x1b[31mred", "new\\nline"]
    assert cli.bytes("ls", image_id).stdout == b"\x1b[31mred\nnew\nline\n"
    assert [file["name"] for file in cli.json("ls", image_id)] == ["\x1b[31mred", "new\nline"]
