"""Bad input through the command line: the exit code, one clear line, nothing visible, nothing left, and the next try works."""

from __future__ import annotations

import gc
import gzip
import json
import os
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from imgstore.cli.main import main
from imgstore.errors import CorruptError, InvalidError, NoSpaceError
from imgstore.store import ImageStore
from tests.command_line import REFERENCE, CommandLine, complaint, contents, leftovers, litter, paths
from tests.hostile_tars import CAPACITY, HOSTILE, TREE_ATTACKS
from tests.servers.images import BuiltImage, build_image, digest_of, make_tar, write_layout
from tests.servers.registry import Fault, Registry
from tests.tools import need, need_root, run

LAYERS = [make_tar({"first": b"1" * 10_000}), make_tar({"second": random.Random(5).randbytes(300_000)})]
SMALL_DISK = 64 << 20
ERRORS = {InvalidError: 2, CorruptError: 7, NoSpaceError: 8}


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with Registry() as registry:
        yield registry


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    """A store that does not exist yet."""
    return CommandLine(tmp_path / "store")


@pytest.fixture
def app(registry: Registry, request: pytest.FixtureRequest) -> str:
    """A repository of this test's own."""
    return "app-" + re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")


def serve(registry: Registry, app: str, **options: Any) -> BuiltImage:
    return registry.add_image(app, "1", LAYERS, **options)


def pull_heals(cli: CommandLine, reference: str) -> None:
    """The fault is gone: the same command works."""
    assert cli.text("pull", "-q", reference).startswith("sha256:")
    with ImageStore.open(str(cli.store)) as store:
        assert len(store.images()) == 1
        assert list(store.check(read_data=True)) == []
    assert litter(cli.store) == []


class TestNames:
    @pytest.mark.parametrize(
        "reference", ["", "a b", "app/UPPER", "app:", "app@sha256:12", "app@md5:" + 32 * "0", "../etc/passwd", "-x/y", "oci:"]
    )
    def test_no_reference(self, cli: CommandLine, reference: str) -> None:
        assert "invalid reference format" in cli.fails(2, "pull", "--", reference)

    @pytest.mark.parametrize("platform", ["", "linux", "linux/", "linux/amd64/v2/x", "li nux/amd64"])
    def test_no_platform(self, cli: CommandLine, platform: str) -> None:
        line = cli.fails(2, "pull", "--platform", platform, REFERENCE)
        assert "platform" in line and repr(platform) in line

    @pytest.mark.parametrize(
        "words",
        [
            ["pull"],
            ["pull", REFERENCE, REFERENCE],
            ["pull", "--nosuchoption", REFERENCE],
            ["pull", "--format", "xml", REFERENCE],
            ["nosuchcommand"],
            ["--store", "", "images"],
            ["--store", "ftp://host/x", "images"],
            ["init", "--disk-size", "12"],
            ["init", "--disk-size", "much"],
            ["tag", "app"],
        ],
    )
    def test_no_command_line(self, cli: CommandLine, words: list[str]) -> None:
        assert cli.run(*words).returncode in (2, 11)
        complaint(cli.run(*words).stderr)
        assert not cli.store.exists()


class TestRegistries:
    def test_unknown_host(self, cli: CommandLine) -> None:
        assert "registry registry.invalid: no such host" in cli.fails(6, "pull", "registry.invalid/app:1")
        cli.assert_empty()

    def test_plain_http_where_https_is_expected(self, cli: CommandLine, registry: Registry, app: str, tmp_path: Path) -> None:
        """A name that is no literal loopback address, though it leads to one: nothing is sent in the clear."""
        need_root()
        need("unshare")
        serve(registry, app)
        (tmp_path / "hosts").write_text("127.0.0.1 registry.test localhost\n")
        name = registry.host.replace("127.0.0.1", "registry.test")
        before = len(registry.requests)
        line = cli.fails(
            6,
            "pull",
            f"{name}/{app}:1",
            wrapper=["unshare", "--mount", "sh", "-c", f'mount --bind {tmp_path}/hosts /etc/hosts && exec "$@"', "sh"],
        )
        assert f"registry {name}: " in line and ("HTTP response to HTTPS client" in line or "TLS handshake failed" in line)
        assert len(registry.requests) == before
        cli.assert_empty()

    def test_no_such_repository(self, cli: CommandLine, registry: Registry) -> None:
        assert f"repository {registry.host}/nosuch not found" in cli.fails(4, "pull", f"{registry.host}/nosuch:1")
        cli.assert_empty()

    def test_no_such_tag(self, cli: CommandLine, registry: Registry, app: str) -> None:
        image = serve(registry, app)
        assert f"{app}:2 not found" in cli.fails(4, "pull", f"{registry.host}/{app}:2")
        assert "not found" in cli.fails(4, "pull", f"{registry.host}/{app}@sha256:{64 * '0'}")
        cli.assert_empty()
        registry.add_built(app, "2", image)
        pull_heals(cli, f"{registry.host}/{app}:2")

    @pytest.mark.parametrize("auth", ["basic", "bearer"])
    def test_login_needed(self, cli: CommandLine, auth: str) -> None:
        with Registry(auth=auth) as registry:
            registry.add_image("app", "1", LAYERS)
            line = cli.fails(5, "pull", f"{registry.host}/app:1")
        assert f"{registry.host}/app" in line and ("authentication required" in line or "denied" in line)
        cli.assert_empty()

    def test_denied(self, cli: CommandLine, registry: Registry, app: str) -> None:
        serve(registry, app)
        body = b'{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}'
        registry.inject(f"/{app}/manifests/", Fault(status=403, body=body))
        line = cli.fails(5, "pull", f"{registry.host}/{app}:1")
        assert app in line and "denied" in line
        cli.assert_empty()
        pull_heals(cli, f"{registry.host}/{app}:1")

    def test_a_registry_that_is_down(self, cli: CommandLine, registry: Registry, app: str) -> None:
        serve(registry, app)
        registry.inject(f"/{app}/manifests/", Fault(status=503, headers={"Retry-After": "0"}), times=5)
        assert "503" in cli.fails(6, "pull", f"{registry.host}/{app}:1")
        cli.assert_empty()
        pull_heals(cli, f"{registry.host}/{app}:1")


class TestManifests:
    @pytest.mark.parametrize(
        ("media_type", "manifest", "code", "words"),
        [
            (
                "application/vnd.docker.distribution.manifest.v1+prettyjws",
                {"schemaVersion": 1, "name": "app", "tag": "1", "fsLayers": [], "history": []},
                11,
                "schema",
            ),
            ("application/vnd.oci.image.manifest.v1+json", b"<html>hello</html>", 7, "manifest"),
            ("application/vnd.oci.image.manifest.v1+json", b"[" * 100_000, 7, "manifest"),
            ("application/vnd.oci.image.manifest.v1+json", {"schemaVersion": 2}, 7, "manifest"),
            (
                "application/vnd.oci.image.manifest.v1+json",
                {
                    "schemaVersion": 2,
                    "artifactType": "application/vnd.example.sbom",
                    "mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest_of(b"{}"), "size": 2},
                    "layers": [{"mediaType": "text/plain", "digest": digest_of(b"x"), "size": 1}],
                },
                11,
                "not a runnable image",
            ),
        ],
        ids=["schema 1", "HTML", "deep JSON", "half a manifest", "an artifact"],
    )
    def test_no_image(
        self, cli: CommandLine, registry: Registry, app: str, media_type: str, manifest: Any, code: int, words: str
    ) -> None:
        data = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
        registry.add_manifest(app, "1", data, media_type)
        line = cli.fails(code, "pull", f"{registry.host}/{app}:1")
        assert words in line, line
        cli.assert_empty()

    def test_nothing_for_the_platform(self, cli: CommandLine, registry: Registry, app: str) -> None:
        registry.add_index(app, "1", [build_image(LAYERS), build_image(LAYERS, platform="linux/arm64/v8")])
        line = cli.fails(4, "pull", "--platform", "plan9/mips", f"{registry.host}/{app}:1")
        assert "plan9/mips" in line and "linux/arm64" in line and app in line
        cli.assert_empty()

    def test_more_diff_ids_than_layers(self, cli: CommandLine, registry: Registry, app: str) -> None:
        diff_ids = [digest_of(layer) for layer in [*LAYERS, b""]]
        registry.add_image(app, "1", LAYERS, config={"rootfs": {"type": "layers", "diff_ids": diff_ids}})
        line = cli.fails(7, "pull", f"{registry.host}/{app}:1")
        assert "3" in line and "2" in line
        cli.assert_empty()


class TestBlobs:
    @pytest.mark.parametrize(
        ("fault", "words"),
        [
            (Fault(damage_at=60), "have digest"),
            (Fault(drop=7), "bytes, its descriptor says"),
            (Fault(append=b"more"), "bytes, its descriptor says"),
            (Fault(append=b"more", chunked=True), "longer than the"),
            (Fault(status=404, body=b'{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown"}]}'), "blob"),
        ],
        ids=["damaged", "short", "long", "long in chunks", "missing"],
    )
    @pytest.mark.parametrize("number", [0, 1])
    def test_bad_blob(self, cli: CommandLine, registry: Registry, app: str, fault: Fault, words: str, number: int) -> None:
        image = serve(registry, app)
        digest = image.layer_digests[number]
        registry.inject(f"/{app}/blobs/{digest}", fault)
        line = cli.fails(4 if fault.status else 7, "pull", f"{registry.host}/{app}:1")
        assert words in line and digest in line
        with ImageStore.open(str(cli.store)) as store:
            assert store.images() == []
            assert list(store.check(read_data=True)) == []
            assert len(list((cli.store / "disks").glob("*.json"))) <= number, "layers below the bad one may stay"
        assert litter(cli.store) == []
        pull_heals(cli, f"{registry.host}/{app}:1")

    def test_damage_that_is_met_before_the_end_of_the_blob(self, cli: CommandLine, registry: Registry, app: str) -> None:
        """A blob that makes no sense because it was damaged on its way is called damaged, not malformed."""
        image = registry.add_image(app, "1", [make_tar({"large": random.Random(6).randbytes(2 << 20)})])
        registry.inject(f"/{app}/blobs/{image.layer_digests[0]}", Fault(damage_at=2))
        line = cli.fails(7, "pull", f"{registry.host}/{app}:1")
        assert "have digest" in line and image.layer_digests[0] in line
        cli.assert_empty()
        pull_heals(cli, f"{registry.host}/{app}:1")

    def test_wrong_diff_id(self, cli: CommandLine, registry: Registry, app: str) -> None:
        diff_ids = [digest_of(b"another"), digest_of(LAYERS[1])]
        registry.add_image(app, "1", LAYERS, config={"rootfs": {"type": "layers", "diff_ids": diff_ids}})
        line = cli.fails(7, "pull", f"{registry.host}/{app}:1")
        assert diff_ids[0] in line and digest_of(LAYERS[0]) in line
        cli.assert_empty()

    @pytest.mark.parametrize(
        ("pack", "code", "words"),
        [
            (lambda tar: gzip.compress(tar)[:-9], 7, "ends in the middle"),
            (lambda tar: gzip.compress(tar)[: len(gzip.compress(tar)) // 2], 7, "ends in the middle"),
            (lambda tar: gzip.compress(tar)[:-8] + b"\0" * 8, 7, "gzip member 1"),
            (lambda tar: gzip.compress(tar) + b"garbage", 7, "something else than zeros"),
            (lambda tar: zstandard.compress(tar)[:-3], 7, "ends in the middle"),
            (lambda tar: b"\xfd7zXZ\0" + bytes(600), 11, "xz"),
            (lambda tar: random.Random(3).randbytes(4000), 7, "neither gzip nor zstd nor tar"),
            (lambda tar: b"", 7, "0 bytes"),
        ],
        ids=["cut trailer", "cut in half", "wrong checksum", "trailing garbage", "cut zstd", "xz", "noise", "empty"],
    )
    def test_bad_compression(
        self, cli: CommandLine, tmp_path: Path, pack: Callable[[bytes], bytes], code: int, words: str
    ) -> None:
        layout = write_layout(tmp_path / "layout", {"1": image_of_blob(LAYERS[1], pack(LAYERS[1]))})
        line = cli.fails(code, "pull", f"oci:{layout}:1")
        assert words in line, line
        cli.assert_empty()


def image_of_blob(tar: bytes, blob: bytes) -> BuiltImage:
    """An image of one layer that has these very bytes."""
    image = build_image([tar])
    manifest = json.loads(image.manifest)
    manifest["layers"][0] |= {"digest": digest_of(blob), "size": len(blob)}
    blobs = {image.image_id: image.config, digest_of(blob): blob}
    return BuiltImage(json.dumps(manifest).encode(), image.media_type, image.config, blobs, image.layers, image.platform)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with an image, of the size that the hostile tars are for."""
    store = tmp_path_factory.mktemp("hostile") / "store"
    assert main(["--store", str(store), "init", "--disk-size", str(CAPACITY)]) == 0
    base = write_layout(store.parent / "base", {"1": build_image([LAYERS[0]])})
    assert main(["--store", str(store), "pull", "-q", f"oci:{base}:1"]) == 0
    return store


class TestHostileTars:
    """In this process, so that the store, the threads and the open files can be looked at after each."""

    @pytest.mark.parametrize("name", HOSTILE)
    def test_refused(self, store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
        attack = HOSTILE[name]
        before = contents(store), paths(store), threading.active_count(), open_files()
        image = build_image([LAYERS[0], attack.data])
        layout = write_layout(tmp_path / "layout", {"1": image})
        code = main(["--store", str(store), "pull", f"oci:{layout}:1"])
        said = capfd.readouterr()
        assert said.out == ""
        line = complaint(said.err.encode())
        assert attack.words in line
        assert code == next(code for kind, code in ERRORS.items() if issubclass(attack.error, kind))
        assert before[:2] == (contents(store), paths(store))
        assert_soon_at_most(before[2], threading.active_count)
        assert_soon_at_most(before[3], open_files)

    @pytest.mark.parametrize("name", TREE_ATTACKS)
    def test_stays_inside(self, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
        store = tmp_path / "store"
        assert main(["--store", str(store), "init", "--disk-size", str(CAPACITY)]) == 0
        layout = write_layout(tmp_path / "layout", {"1": build_image([TREE_ATTACKS[name]])})
        capfd.readouterr()
        code = main(["--store", str(store), "pull", f"oci:{layout}:1"])
        said = capfd.readouterr()
        with ImageStore.open(str(store)) as opened:
            assert list(opened.check(read_data=True)) == []
            assert len(opened.images()) == (1 if code == 0 else 0)
        assert litter(store) == []
        if code != 0:
            complaint(said.err.encode())
            assert code in (2, 7)
            assert leftovers(store) == []


def assert_soon_at_most(limit: int, count: Callable[[], int]) -> None:
    """A thread may be counted while it ends, and what another test left may go at any time."""
    for _ in range(50):
        if count() <= limit:
            return
        time.sleep(0.02)
    assert count() <= limit


def open_files() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


class TestSpace:
    def test_layer_larger_than_the_disk(self, cli: CommandLine, registry: Registry, app: str) -> None:
        cli.text("init", "--disk-size", str(SMALL_DISK))
        chosen = random.Random(1)
        files = {f"file{number}": chosen.randbytes(1 << 20) for number in range(66)}
        registry.add_image(app, "1", [make_tar(files)], compression="none")
        line = cli.fails(8, "pull", f"{registry.host}/{app}:1")
        assert re.search(r"file\d+: no block is free: 16384 of 16384 blocks are used", line)
        cli.assert_empty()

    def test_more_files_than_inodes(self, cli: CommandLine, tmp_path: Path) -> None:
        cli.text("init", "--disk-size", str(SMALL_DISK))
        layout = write_layout(tmp_path / "layout", {"1": build_image([many_files(40_000)])})
        line = cli.fails(8, "pull", f"oci:{layout}:1")
        assert "inode" in line, line
        cli.assert_empty()

    @pytest.mark.parametrize("inodes", [False, True], ids=["bytes", "inodes"])
    def test_store_on_a_full_file_system(self, tmp_path: Path, inodes: bool) -> None:
        need_root()
        need("mount", "umount")
        (tmp_path / "full").mkdir()
        options = "size=64m,nr_inodes=14" if inodes else "size=6m"
        run("mount", "-t", "tmpfs", "-o", options, "tmpfs", tmp_path / "full")
        try:
            cli = CommandLine(tmp_path / "full/store")
            layers = [make_tar({f"file{number}": random.Random(number).randbytes(4 << 20)}) for number in range(3)]
            layout = write_layout(tmp_path / "layout", {"1": build_image(layers)})
            line = cli.fails(8, "pull", f"oci:{layout}:1")
            assert "No space left on device" in line or "no space left" in line, line
            assert litter(cli.store) == []
            run("mount", "-o", "remount,size=200m,nr_inodes=1000", tmp_path / "full")
            pull_heals(cli, f"oci:{layout}:1")
        finally:
            run("umount", tmp_path / "full")


def many_files(count: int) -> bytes:
    """A tar of empty files; tarfile would take seconds."""
    from tests.raw_tar import END, header

    return b"".join(header(b"f%d" % number) for number in range(count)) + END


class TestStores:
    def test_directory_that_is_not_ours(self, cli: CommandLine) -> None:
        cli.store.mkdir()
        (cli.store / "thesis.txt").write_text("mine")
        line = cli.fails(2, "pull", REFERENCE)
        assert str(cli.store) in line and "thesis.txt" in line
        assert paths(cli.store) == ["thesis.txt"]

    def test_file_where_the_store_should_be(self, cli: CommandLine) -> None:
        cli.store.write_text("mine")
        assert str(cli.store) in cli.fails(2, "pull", REFERENCE)
        assert str(cli.store) in cli.fails(2, "images")
        assert cli.store.read_text() == "mine"

    def test_newer_version(self, cli: CommandLine) -> None:
        cli.text("init")
        marker = cli.store / "store.json"
        marker.write_text(marker.read_text().replace('"version": 1', '"version": 2'))
        for words in (["pull", REFERENCE], ["images"], ["check"], ["rebuild"]):
            line = cli.fails(11, *words)
            assert str(marker) in line and "version 2" in line
        assert leftovers(cli.store) == []

    def test_damaged_marker_of_the_store(self, cli: CommandLine) -> None:
        cli.text("init")
        marker = cli.store / "store.json"
        for damaged in (b"", b"{", b"\xff\xfe", marker.read_bytes().replace(b'"disk_size": 3', b'"disk_size": 4')):
            marker.write_bytes(damaged)
            assert str(marker) in cli.fails(7, "images")

    def test_no_right_to_read(self, cli: CommandLine) -> None:
        need_root()
        need("setpriv")
        cli.text("pull", REFERENCE)
        os.chown(cli.store, 65534, 65534)
        cli.store.chmod(0o700)
        # Root without the rights that make it root for files: another user might not be let near our interpreter.
        nobody = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]
        for command in ("images", "check", "df"):
            line = cli.fails(5, command, wrapper=nobody)
            assert str(cli.store) in line and "denied" in line
        line = cli.fails(5, "pull", REFERENCE, wrapper=nobody)
        assert "denied" in line

    def test_no_right_to_write(self, cli: CommandLine, tmp_path: Path) -> None:
        need_root()
        need("mount", "umount")
        cli.text("pull", REFERENCE)
        base = write_layout(tmp_path / "layout", {"1": build_image(LAYERS)})
        before = contents(cli.store)
        run("mount", "--bind", cli.store, cli.store)
        try:
            run("mount", "-o", "remount,ro,bind", cli.store)
            line = cli.fails(5, "pull", f"oci:{base}:1")
            assert str(cli.store) in line
        finally:
            run("umount", cli.store)
        assert before == contents(cli.store)


class TestFiles:
    @pytest.mark.parametrize("form", ["oci:{}", "oci-archive:{}", "docker-archive:{}"])
    def test_missing(self, cli: CommandLine, tmp_path: Path, form: str) -> None:
        assert f"{tmp_path}/nowhere" in cli.fails(4, "pull", form.format(tmp_path / "nowhere"))
        cli.assert_empty()

    @pytest.mark.parametrize("form", ["oci-archive:{}", "docker-archive:{}"])
    @pytest.mark.parametrize(
        "data",
        [b"", b"hello", bytes(20_000), random.Random(4).randbytes(20_000), gzip.compress(b"x" * 1000), make_tar({"a": b"b"})],
        ids=["empty", "text", "zeros", "noise", "gzip of noise", "a tar of something else"],
    )
    def test_garbage(self, cli: CommandLine, tmp_path: Path, form: str, data: bytes) -> None:
        (tmp_path / "archive").write_bytes(data)
        done = cli.run("pull", form.format(tmp_path / "archive"))
        assert done.returncode in (4, 7), done.stderr
        assert f"{tmp_path}/archive" in complaint(done.stderr)
        cli.assert_empty()

    def test_directory_that_is_no_layout(self, cli: CommandLine, tmp_path: Path) -> None:
        (tmp_path / "directory").mkdir()
        done = cli.run("pull", f"oci:{tmp_path}/directory")
        assert done.returncode in (4, 7)
        assert f"{tmp_path}/directory" in complaint(done.stderr)
        cli.assert_empty()

    def test_blob_that_is_missing_in_the_layout(self, cli: CommandLine, tmp_path: Path) -> None:
        image = build_image(LAYERS)
        layout = write_layout(tmp_path / "layout", {"1": image})
        blob = layout / "blobs/sha256" / image.layer_digests[0].removeprefix("sha256:")
        data = blob.read_bytes()
        blob.unlink()
        done = cli.run("pull", f"oci:{layout}:1")
        assert done.returncode in (4, 7)
        assert blob.name in complaint(done.stderr)
        cli.assert_empty()
        blob.write_bytes(data)
        pull_heals(cli, f"oci:{layout}:1")


def test_silence_where_a_registry_should_be(cli: CommandLine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host = f"127.0.0.1:{server.getsockname()[1]}"
    process = cli.start("pull", f"{host}/app:1")
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 6
    assert f"registry {host}: connection refused" in complaint(told)
    cli.assert_empty()
