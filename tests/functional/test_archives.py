"""Images out to archives and in again, through the library and the command line."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pty
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import zstandard

from imgstore import CorruptError, ImageStore, InvalidError, NotFoundError, ProgressEvent, UnsupportedError
from imgstore.images import NoSuchImageError
from tests.archives import docker_members, make_archive, merged, write
from tests.command_line import LAYOUT, REFERENCE, CommandLine, complaint, contents, leftovers
from tests.servers.images import BuiltImage, build_image, digest_of, make_tar, write_layout

NAME = "three-layers:latest"
BASE = make_tar({"etc/motd": b"hello\n"})
ONE = build_image([BASE, make_tar({"one": b"1" * 5000})])
OTHER = build_image([BASE, make_tar({"other": b"2"}), BASE], compression="zstd")
EMPTY = build_image([])
DISK_SIZE = 64 << 20


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    members = merged(docker_members(ONE, ["one:1", "one:2", "localhost:5000/one:1"]), docker_members(OTHER, ["other"]))
    return write(tmp_path_factory.mktemp("archive") / "images.tar", members)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ImageStore]:
    with ImageStore.create(str(tmp_path / "store"), disk_size=DISK_SIZE) as opened:
        yield opened
        assert list(opened.check(read_data=True)) == []


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path / "store")


def save(store: ImageStore, *references: str, **options: str) -> bytes:
    return b"".join(store.save(references, **options))


def members(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {member.name: tar.extractfile(member).read() if member.isreg() else b"" for member in tar}  # type: ignore[union-attr]


def tags(archive: bytes) -> list[tuple[str, list[str] | None]]:
    found = json.loads(members(archive)["manifest.json"])
    return [("sha256:" + entry["Config"].rpartition("/")[2], entry["RepoTags"]) for entry in found]


def test_what_is_saved_and_loaded_is_what_was_pulled(store: ImageStore, tmp_path: Path) -> None:
    pulled = store.pull(REFERENCE).image
    saved = save(store, NAME)
    with ImageStore.create(str(tmp_path / "second"), disk_size=DISK_SIZE) as second:
        (loaded,) = second.load(io.BytesIO(saved))
        assert (NAME,) == loaded.references == loaded.image.references
        assert (pulled.id, pulled.config) == (loaded.image.id, loaded.image.config)
        assert [layer.diff_id for layer in pulled.layers] == [layer.diff_id for layer in loaded.image.layers]
        assert saved == save(second, NAME)
    first = {path: digest for path, digest in contents(tmp_path / "store").items() if path.startswith("disks/")}
    assert first == {path: digest for path, digest in contents(tmp_path / "second").items() if path.startswith("disks/")}
    blobs = members(saved)
    for blob in (path.read_bytes() for path in (LAYOUT / "blobs/sha256").iterdir()):
        if blob.startswith(b"\x1f\x8b"):
            layer = gzip.decompress(blob)
            assert layer == blobs[f"blobs/sha256/{digest_of(layer)[7:]}"]


def test_the_archive_is_as_docker_writes_it(store: ImageStore, archive: Path) -> None:
    list(store.load(archive))
    saved = save(store, "one:1", "other")
    with tarfile.open(fileobj=io.BytesIO(saved)) as tar:
        found = tar.getmembers()
    assert [member.name for member in found if member.isdir()] == ["blobs", "blobs/sha256"]
    assert sorted(member.name for member in found) == [member.name for member in found]
    assert {(0o755, True), (0o644, False)} == {(member.mode, member.isdir()) for member in found}
    assert {(0, 0, "", "")} == {(member.uid, member.gid, member.uname, member.gname) for member in found}
    created = int(datetime(2024, 5, 1, 12, tzinfo=UTC).timestamp())
    layers = {BASE, *ONE.layers, *OTHER.layers}
    timed = {f"blobs/sha256/{digest_of(data)[7:]}" for data in (*layers, ONE.config, OTHER.config)}
    assert dict.fromkeys(timed, created) == {member.name: member.mtime for member in found if member.mtime}
    assert len(found) == 2 + len(timed) + 2 + 4
    files = members(saved)
    assert files["oci-layout"] == b'{"imageLayoutVersion": "1.0.0"}'
    top = digest_of(BASE)[7:]
    assert (
        json.dumps({"one": {"1": ONE.diff_ids[1][7:]}, "other": {"latest": top}}, separators=(",", ":")).encode() + b"\n"
        == files["repositories"]
    )
    one, other = json.loads(files["manifest.json"])
    assert list(one) == ["Config", "RepoTags", "Layers", "LayerSources"]
    assert (one["RepoTags"], other["RepoTags"]) == (["one:1"], ["other:latest"])
    assert [f"blobs/sha256/{diff_id[7:]}" for diff_id in OTHER.diff_ids] == other["Layers"]
    source = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "size": len(BASE), "digest": digest_of(BASE)}
    assert source == one["LayerSources"][digest_of(BASE)]
    index = json.loads(files["index.json"])
    assert [entry["annotations"] for entry in index["manifests"]] == [
        {"io.containerd.image.name": "docker.io/library/one:1", "org.opencontainers.image.ref.name": "1"},
        {"io.containerd.image.name": "docker.io/library/other:latest", "org.opencontainers.image.ref.name": "latest"},
    ]
    manifest = json.loads(files[f"blobs/sha256/{index['manifests'][1]['digest'][7:]}"])
    assert OTHER.image_id == manifest["config"]["digest"]
    assert [digest_of(layer) for layer in OTHER.layers] == [layer["digest"] for layer in manifest["layers"]]


def test_what_names_an_image_to_save(store: ImageStore, archive: Path) -> None:
    list(store.load(archive))
    one, other = ONE.image_id, OTHER.image_id
    store.tag("other", "one:3")
    assert [(one, ["one:1"])] == tags(save(store, "one:1"))
    assert [(one, ["one:1", "one:2"]), (other, ["one:3"])] == tags(save(store, "one"))
    assert [(other, ["other:latest", "one:3"]), (one, ["one:2"])] == tags(save(store, "other", "one:3", "one:2", other))
    assert [(one, ["localhost:5000/one:1"])] == tags(save(store, "localhost:5000/one"))
    for identifier in (one, one[7:], one[:20], one[7:19]):
        assert [(one, None)] == tags(save(store, identifier))
    assert [(one, None), (other, None)] == tags(save(store, one, other))
    assert len(json.loads(members(save(store, one, "other"))["index.json"])["manifests"]) == 2


@pytest.mark.parametrize(
    ("references", "kind", "words"),
    [
        (["one:1", "none"], NoSuchImageError, "No such image: none"),
        (["one:9"], NoSuchImageError, "No such image: one:9"),
        (["0" * 64], NoSuchImageError, "No such image"),
        (["sha256:" + "0" * 64], NoSuchImageError, "No such image"),
        (["one@sha256:" + "0" * 64], NoSuchImageError, "No such image: one@sha256"),
        (["One"], InvalidError, "must be lowercase"),
        ([""], InvalidError, "invalid reference"),
    ],
)
def test_an_image_that_is_not_there(
    store: ImageStore, archive: Path, references: list[str], kind: type[Exception], words: str
) -> None:
    list(store.load(archive))
    with pytest.raises(kind, match=words):
        store.save(references)


def test_an_image_for_another_platform(store: ImageStore, archive: Path) -> None:
    list(store.load(archive))
    assert save(store, "one", platform="linux/amd64") == save(store, "one")
    with pytest.raises(NotFoundError, match="no suitable export target found for platform linux/arm64"):
        store.save(["one"], platform="linux/arm64")
    with pytest.raises(NotFoundError, match=r"linux/amd64\) does not match the specified platform \(linux/arm64\)"):
        list(store.load(archive, platform="linux/arm64"))


def test_only_the_images_for_a_platform_are_loaded(store: ImageStore, tmp_path: Path) -> None:
    arm = build_image([BASE], platform="linux/arm64")
    both = write(tmp_path / "a.tar", merged(docker_members(arm, ["arm"]), docker_members(ONE, ["one"])))
    assert [image.references for image in store.load(both, platform="linux/arm64")] == [("arm:latest",)]
    assert [image.references for image in store.load(both)] == [("arm:latest",), ("one:latest",)]


def test_an_image_without_layers(store: ImageStore, tmp_path: Path) -> None:
    (loaded,) = store.load(write(tmp_path / "a.tar", docker_members(EMPTY, ["empty"])))
    assert (EMPTY.image_id, ()) == (loaded.image.id, loaded.image.layers)
    saved = save(store, "empty")
    assert "repositories" not in members(saved)
    (again,) = store.load(io.BytesIO(saved))
    assert again.references == ("empty:latest",)


def test_a_saved_layer_is_kept_until_it_is_written(store: ImageStore, archive: Path) -> None:
    list(store.load(archive))
    expected = save(store, "one:1")
    pieces = store.save(["one:1"])
    store.remove(ONE.image_id, force=True)
    store.remove(OTHER.image_id, force=True)
    assert expected == b"".join(pieces)
    list(store.load(io.BytesIO(expected)))
    closed = store.save(["one:1"])
    next(closed)
    closed.close()
    store.remove("one:1")
    assert store.usage().disks == 0  # what the first one kept went, too


def test_a_layer_that_is_damaged(store: ImageStore, archive: Path, tmp_path: Path, cli: CommandLine) -> None:
    list(store.load(archive))
    disk = Path(str(store.image("one:1").layers[1].disk))
    intact = disk.read_bytes()
    disk.write_bytes(intact.replace(b"1" * 5000, b"1" * 4000 + b"0" * 1000))
    with pytest.raises(CorruptError, match=ONE.diff_ids[1]):
        save(store, "one:1")
    assert ONE.diff_ids[1] in cli.fails(7, "save", "-o", tmp_path / "out.tar", "one:1")
    assert [path.name for path in tmp_path.iterdir() if "out.tar" in path.name] == []
    disk.write_bytes(intact)


@pytest.mark.parametrize(
    "compress",
    [
        gzip.compress,
        zstandard.compress,
        lzma.compress,
        bz2.compress,
        lambda data: gzip.compress(data[:9999]) + gzip.compress(data[9999:]),
    ],
)
def test_compressed_archives(store: ImageStore, archive: Path, compress: Callable[[bytes], bytes]) -> None:
    loaded = list(store.load(io.BytesIO(compress(archive.read_bytes()))))
    assert [ONE.image_id, OTHER.image_id] == [image.image.id for image in loaded]


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_compressed_layers(store: ImageStore, tmp_path: Path, compression: str) -> None:
    image = build_image(ONE.layers, compression=compression)
    packed = dict(zip(image.diff_ids, image.layer_digests, strict=True))
    layers = {f"blobs/sha256/{diff_id[7:]}": image.blobs[digest] for diff_id, digest in packed.items()}
    (loaded,) = store.load(write(tmp_path / "a.tar", docker_members(image, ["one"]) | layers))
    assert image.diff_ids == [layer.diff_id for layer in loaded.image.layers]
    assert image.layer_digests == [layer.digest for layer in loaded.image.layers]


def test_a_layout_with_platforms(store: ImageStore, tmp_path: Path) -> None:
    arm = build_image([BASE], platform="linux/arm64")
    layout = write_layout(tmp_path / "layout", {"example.com/one:1": [arm, ONE], "other": OTHER})
    files = {str(path.relative_to(layout)): path.read_bytes() for path in layout.rglob("*") if path.is_file()}
    path = write(tmp_path / "a.tar", files)
    loaded = list(store.load(path, platform="linux/amd64"))
    assert [image.references for image in loaded] == [("example.com/one:1",), ()]
    assert [ONE.image_id, OTHER.image_id] == [image.image.id for image in loaded]
    assert arm.image_id == next(store.load(path, platform="linux/arm64")).image.id


def test_a_name_goes_over_to_the_image_that_is_loaded(store: ImageStore, tmp_path: Path) -> None:
    def load(image: BuiltImage) -> list[str]:
        told: list[ProgressEvent] = []
        list(store.load(write(tmp_path / "a.tar", docker_members(image, ["app"])), progress=told.append))
        return [event.message for event in told if event.message]

    assert load(ONE) == []
    assert [f"The image app:latest already exists, renaming the old one with ID {ONE.image_id} to empty string"] == load(OTHER)
    assert load(OTHER) == []
    assert OTHER.image_id == store.image("app").id
    assert store.image(ONE.image_id).references == ()


def test_images_before_a_bad_one_stay(store: ImageStore, tmp_path: Path) -> None:
    third = build_image([make_tar({"third": b"3"})])
    archive = merged(docker_members(ONE, ["one"]), docker_members(OTHER, ["other"]), docker_members(third, ["third"]))
    archive[f"blobs/sha256/{OTHER.diff_ids[1][7:]}"] = make_tar({"other": b"3"})
    loaded = []
    with pytest.raises(CorruptError, match=OTHER.diff_ids[1]):
        loaded.extend(image.image.id for image in store.load(write(tmp_path / "a.tar", archive)))
    assert [ONE.image_id] == [image.id for image in store.images()]


def test_loads_at_once(store: ImageStore, archive: Path) -> None:
    """Each layer is converted once, and all get the images."""
    with ThreadPoolExecutor(8) as pool:
        loads = [pool.submit(lambda: [image.image.id for image in store.load(archive)]) for _ in range(8)]
        saves = [pool.submit(save, store, ONE.image_id) for load in loads if load.result()]
        assert [[ONE.image_id, OTHER.image_id]] * 8 == [load.result() for load in loads]
        assert len({done.result() for done in saves}) == 1


TREE = make_tar({"etc/motd": b"hello\n", "etc/.wh.gone": b"", "bin/sh": b"#!"})


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstandard.compress, lzma.compress, bz2.compress])
def test_import(store: ImageStore, compress: Callable[[bytes], bytes]) -> None:
    created = datetime(2024, 2, 3, 4, 5, 6, 120_000, tzinfo=UTC)
    options: dict[str, Any] = {"platform": "linux/arm64/v8", "created": created, "message": "a comment"}
    image = store.import_image(
        io.BytesIO(compress(TREE)), reference="app", changes=['CMD ["sh"]', "ENV A=1", "LABEL b=1 a=2"], **options
    )
    config = {
        "comment": "a comment",
        "created": "2024-02-03T04:05:06.12Z",
        "config": {"Cmd": ["sh"], "Env": ["A=1"], "Labels": {"a": "2", "b": "1"}},
        "architecture": "arm64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [digest_of(TREE)]},
        "history": [{"created": "2024-02-03T04:05:06.12Z", "comment": "a comment"}],
    }
    assert digest_of(json.dumps(config, separators=(",", ":")).encode()) == image.id
    assert (config, ("app:latest",), created) == (image.config, image.references, image.created)
    assert [name for name, _ in store.list_directory("app", "etc")] == [b"motd"]
    assert members(save(store, "app"))[f"blobs/sha256/{digest_of(TREE)[7:]}"] == TREE


def test_import_of_an_empty_tar(store: ImageStore) -> None:
    image = store.import_image(io.BytesIO(bytes(1024)))
    assert (image.layers[0].disk, image.references) == (None, ())
    assert image.config["comment"] == "Imported from -"


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"reference": "app@sha256:" + "0" * 64}, InvalidError, "cannot import digest reference"),
        ({"reference": "App"}, InvalidError, "must be lowercase"),
        ({"platform": "windows/amd64"}, UnsupportedError, "operating system is not supported"),
        ({"platform": "a/b/c/d"}, InvalidError, "not os/architecture"),
        ({"changes": ["FOO x"]}, InvalidError, "FOO is not a valid change command"),
    ],
)
def test_import_that_makes_no_sense(store: ImageStore, options: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        store.import_image(io.BytesIO(TREE), **options)
    assert store.images() == []


def test_command_line(cli: CommandLine, archive: Path, tmp_path: Path) -> None:
    done = cli.run("load", "-q", "-i", archive)
    lines = ["Loaded image: one:1", "Loaded image: one:2", "Loaded image: localhost:5000/one:1", "Loaded image: other:latest"]
    assert (0, lines, b"") == (done.returncode, done.stdout.decode().splitlines(), done.stderr)
    assert cli.text("save", "-o", tmp_path / "out.tar", "one") == ""
    saved = (tmp_path / "out.tar").read_bytes()
    assert saved == cli.run("save", "one").stdout
    assert saved == cli.run("save", "--output", "/dev/stdout", "one").stdout
    assert [(ONE.image_id, ["one:1", "one:2"])] == tags(saved)
    by_id = cli.run("save", ONE.image_id).stdout
    done = run(cli, by_id, "load")
    assert f"Loaded image ID: {ONE.image_id}\n" == done.stdout.decode()
    assert b"Already exists" in done.stderr
    assert [{"image_id": ONE.image_id, "references": ["one:1", "one:2"]}] == cli.json("load", "-i", tmp_path / "out.tar")
    assert cli.json("load", "-i", write(tmp_path / "none.tar", {"manifest.json": b"[]"})) == []


def test_import_on_the_command_line(cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "tree.tar").write_bytes(TREE)
    first = cli.text("import", "-q", tmp_path / "tree.tar").strip()
    done = run(
        cli,
        gzip.compress(TREE),
        "import",
        "-",
        "app:1",
        "-c",
        "CMD a",
        "--change",
        "USER b",
        "-m",
        "words",
        "--platform",
        "arm64",
    )
    (found,) = cli.json("inspect", "app:1")
    assert found["id"] == done.stdout.decode().strip() != first
    assert found["config"]["config"] == {"Cmd": ["/bin/sh", "-c", "a"], "User": "b"}
    assert (found["architecture"], found["config"]["comment"]) == ("arm64", "words")
    described = cli.json("import", tmp_path / "tree.tar", "app:2")
    assert described["references"] == ["app:2"]
    assert "not supported" in cli.fails(11, "import", "https://example.com/a.tar")
    assert "no such file" in cli.fails(4, "import", tmp_path / "none")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["save", "one"], "cowardly refusing to save to a terminal. Use the -o flag or redirect"),
        (["load"], "requested load from stdin, but stdin is a terminal"),
        (["import", "-"], "requested import from stdin, but stdin is a terminal"),
    ],
)
def test_a_terminal_is_refused(cli: CommandLine, words: list[str], message: str) -> None:
    controller, terminal = pty.openpty()
    try:
        done = subprocess.run(
            cli.words(*words), stdin=terminal, stdout=terminal, stderr=subprocess.PIPE, env=cli.environment, timeout=60
        )
    finally:
        os.close(terminal)
        os.close(controller)
    assert (2, f"imgstore: {message}") == (done.returncode, complaint(done.stderr))
    assert not cli.store.exists()


def test_nothing_is_left_of_a_save_that_fails(cli: CommandLine, archive: Path, tmp_path: Path) -> None:
    cli.text("load", "-q", "-i", archive)
    before = contents(cli.store)
    assert "No such image: none" in cli.fails(4, "save", "-o", tmp_path / "out.tar", "one", "none")
    assert "cannot be written" in cli.fails(2, "save", "-o", tmp_path / "no/such/directory", "one")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert before == contents(cli.store)


def test_an_archive_that_is_none(cli: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"no archive at all" * 100)
    assert f"{path}: no tar header at byte 0" in cli.fails(7, "load", "-i", path)
    path.write_bytes(make_archive({"a": b""}))
    assert "holds no images" in cli.fails(4, "load", "-i", path)
    assert "no such file" in cli.fails(4, "load", "-i", tmp_path / "none")
    assert "standard input: is empty" in complaint(run(cli, b"", "load").stderr)
    assert leftovers(cli.store) == []


def run(cli: CommandLine, data: bytes, *words: str | Path) -> subprocess.CompletedProcess[bytes]:
    """Runs a command line with these bytes on its standard input, a pipe."""
    return subprocess.run(cli.words(*words), input=data, capture_output=True, env=cli.environment, timeout=60)
