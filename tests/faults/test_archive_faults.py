"""Archives that lie, attack, or end too early; and loads, saves and imports that are killed or find the disk full."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import zstandard

from imgstore import CorruptError, ImageStore, ImgstoreError, NoSpaceError, NotFoundError, UnsupportedError
from tests.archives import docker_members, make_archive, merged, symlink, write
from tests.command_line import CommandLine, complaint, contents, leftovers, litter
from tests.faults.test_memory import LIMIT, peak
from tests.hostile_tars import HOSTILE
from tests.raw_tar import END, base256, header
from tests.servers.images import build_image, build_index, make_tar
from tests.tools import need

DISK_SIZE = 64 << 20
TARS = [make_tar({"a": b"1" * 100}), make_tar({"b": b"2" * 100})]
ONE = build_image(TARS)
MEMBERS = docker_members(ONE, ["one"])
CONFIG = f"blobs/sha256/{ONE.image_id[7:]}"
TOP = f"blobs/sha256/{ONE.diff_ids[1][7:]}"
ZEROS = b"".join([header(b"zeros", size=base256(1 << 30, 12)), bytes(64 << 20)])


def with_config(**fields: object) -> dict[str, bytes]:
    """The archive of an image whose configuration has these fields."""
    return docker_members(build_image(TARS, config=fields), ["one"])


def root_fs(*diff_ids: str) -> dict[str, object]:
    return {"type": "layers", "diff_ids": list(diff_ids)}


def layer_of(tar: bytes, blob: bytes | None = None) -> dict[str, bytes]:
    """The archive of an image whose second layer is this tar, packed as it says."""
    image = build_image([TARS[0], tar])
    name = f"blobs/sha256/{image.diff_ids[1][7:]}"
    return docker_members(image, ["one"]) | {name: tar if blob is None else blob}


def without_top() -> list[tuple[str, bytes]]:
    return [(name, data) for name, data in MEMBERS.items() if name != TOP]


def empty_layout() -> bytes:
    """A layout whose index names an image that is not there."""
    return make_archive({"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": build_index([ONE.descriptor()])})


def huge_member() -> bytes:
    return header(b"manifest.json", size=base256(1 << 62, 12)) + b"[]"


def many_images() -> bytes:
    return make_archive({"manifest.json": json.dumps([{"Config": "c", "Layers": []}] * 1001).encode()})


HOSTILE_ARCHIVES: Mapping[str, tuple[Callable[[], bytes], type[ImgstoreError], str]] = {
    "parent in a member's name": (lambda: make_archive({**MEMBERS, "../x": b""}), CorruptError, "leads out of the archive"),
    "parent in a layer's name": (
        lambda: make_archive(docker_members(ONE, None, Layers=["../../etc/passwd", TOP])),
        CorruptError,
        "leads out of the archive",
    ),
    "absolute layer": (
        lambda: make_archive(docker_members(ONE, None, Layers=["/etc/passwd", TOP])),
        NotFoundError,
        "has no file 'etc/passwd'",
    ),
    "link out of the archive": (
        lambda: make_archive([*without_top(), (TOP, symlink("../../../etc/passwd"))]),
        CorruptError,
        "leads out of the archive",
    ),
    "link to a file of the host": (
        lambda: make_archive([*without_top(), (TOP, symlink("/etc/passwd"))]),
        NotFoundError,
        "has no file",
    ),
    "links in a circle": (
        lambda: make_archive([*without_top(), (TOP, symlink("x")), ("blobs/sha256/x", symlink(TOP[13:]))]),
        CorruptError,
        "more than 8 links",
    ),
    "manifest.json of 100 MB": (
        lambda: make_archive({**MEMBERS, "manifest.json": b"[" + b" " * 100_000_000}),
        CorruptError,
        "100000001 bytes, more than 1048576",
    ),
    "1001 images": (many_images, CorruptError, "1001 elements, more than 1000"),
    "member that claims 4 EiB": (huge_member, CorruptError, "4611686018427387904 bytes, the archive ends"),
    "configuration of 5 MB": (
        lambda: make_archive({**MEMBERS, CONFIG: b" " * 5_000_000}),
        CorruptError,
        "5000000 bytes, more than 4194304",
    ),
    "configuration of another image": (lambda: make_archive({**MEMBERS, CONFIG: b"{}"}), CorruptError, "has digest sha256:"),
    "fewer diff ids than layers": (
        lambda: make_archive(with_config(rootfs=root_fs(ONE.diff_ids[0]))),
        CorruptError,
        "manifest.json has 2 layers, the configuration 1 diff ids",
    ),
    "other diff ids than the layers have": (
        lambda: make_archive(with_config(rootfs=root_fs(ONE.diff_ids[0], "sha256:" + "0" * 64))),
        CorruptError,
        f"have digest {ONE.diff_ids[1]}",
    ),
    "diff id that is none": (lambda: make_archive(with_config(rootfs=root_fs("../../x", "y"))), CorruptError, "diff_ids"),
    "layers that are exchanged": (
        lambda: make_archive(docker_members(ONE, None, Layers=[TOP, f"blobs/sha256/{ONE.diff_ids[0][7:]}"])),
        CorruptError,
        "have digest",
    ),
    "compressed layer with another diff id": (
        lambda: make_archive(layer_of(TARS[1], gzip.compress(TARS[0]))),
        CorruptError,
        f"has digest {ONE.diff_ids[0]}, not the diff id",
    ),
    "layer that is cut off": (lambda: make_archive({**MEMBERS, TOP: TARS[1][:700]}), CorruptError, "layer "),
    "compressed layer that is cut off": (
        lambda: make_archive(layer_of(TARS[1], gzip.compress(TARS[1])[:-4])),
        CorruptError,
        "ends in the middle",
    ),
    "layer bomb": (
        lambda: make_archive(layer_of(TARS[1], gzip.compress(ZEROS, 9))),
        NoSpaceError,
        "",
    ),
    "layer that is no tar": (lambda: make_archive(layer_of(b"x" * 5000)), CorruptError, "neither gzip nor zstd nor tar"),
    "layer in xz": (lambda: make_archive(layer_of(TARS[1], lzma.compress(TARS[1]))), CorruptError, "have digest"),
    "layout and no blobs": (empty_layout, NotFoundError, "has no file"),
    "text": (lambda: b"[]" * 1000, CorruptError, "no tar header at byte 0"),
    "zip": (lambda: b"PK\x03\x04" + bytes(1000), UnsupportedError, "compressed with zip"),
    "nothing": (lambda: b"", CorruptError, "is empty"),
    "zeros": (lambda: bytes(10240), CorruptError, "holds no tar members"),
    "gzip in gzip": (lambda: gzip.compress(gzip.compress(make_archive(MEMBERS))), CorruptError, "no tar header at byte 0"),
    "half of it": (lambda: make_archive(MEMBERS)[:3000], CorruptError, "the archive ends at byte 3000"),
    "half of it in xz": (lambda: lzma.compress(make_archive(MEMBERS))[:-40], CorruptError, "the archive ends in the middle"),
    "half of it in bzip2": (lambda: bz2.compress(make_archive(MEMBERS))[:-40], CorruptError, "the archive ends in the middle"),
    "half of it in zstd": (
        lambda: zstandard.compress(make_archive(MEMBERS))[:-4],
        CorruptError,
        "the archive ends in the middle",
    ),
}


@pytest.mark.parametrize("name", HOSTILE_ARCHIVES)
def test_a_hostile_archive(tmp_path: Path, name: str) -> None:
    """One error, which says what is wrong, and a store as if nothing had been."""
    build, kind, words = HOSTILE_ARCHIVES[name]
    with ImageStore.create(str(tmp_path / "store"), disk_size=DISK_SIZE) as store:
        with pytest.raises(kind) as error:
            list(store.load(io.BytesIO(build())))
        assert words in str(error.value)
        assert store.images() == []
        assert store.usage().disks == 0
        assert list(store.check(read_data=True)) == []
    assert leftovers(tmp_path / "store") == []
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("name", sorted(HOSTILE)[::12])
def test_a_hostile_tar_is_not_imported(tmp_path: Path, name: str) -> None:
    hostile = HOSTILE[name]
    with ImageStore.create(str(tmp_path / "store"), disk_size=1 << 30) as store:
        with pytest.raises(hostile.error):
            store.import_image(io.BytesIO(hostile.data))
        assert store.images() == []
    assert leftovers(tmp_path / "store") == []


def test_a_hundred_images(tmp_path: Path) -> None:
    images = [build_image([make_tar({"n": b"%d" % number})]) for number in range(10)]
    archive = merged(*(docker_members(image, [f"app:{number}"]) for number, image in enumerate(images)))
    entries = json.loads(archive["manifest.json"])
    archive["manifest.json"] = json.dumps(
        [entry | {"RepoTags": [f"app:{number}"]} for number, entry in enumerate(entries * 10)]
    ).encode()
    with ImageStore.create(str(tmp_path / "store"), disk_size=DISK_SIZE) as store:
        assert sum(1 for _ in store.load(io.BytesIO(make_archive(archive)))) == 100
        assert len(store.images()) == 10
        assert sum(len(image.references) for image in store.images()) == 100


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of two images of a few MiB, so that a load of it takes a while."""
    rng = random.Random(1)
    layers = [make_tar({f"{number}/{name}": rng.randbytes(500_000) for name in range(6)}) for number in range(4)]
    images = [build_image(layers[:2]), build_image([layers[0], *layers[2:]])]
    archive = merged(*(docker_members(image, [f"app:{number}"]) for number, image in enumerate(images)))
    return write(tmp_path_factory.mktemp("big") / "big.tar", archive)


@pytest.fixture(scope="module")
def undisturbed(big: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    with ImageStore.open(str(store)) as opened:
        list(opened.load(big))
    return store


def assert_recovers(cli: CommandLine, archive: Path, undisturbed: Path) -> None:
    """What is there is whole, and the next load makes what an undisturbed one makes."""
    with ImageStore.open(str(cli.store)) as store:
        assert list(store.check(read_data=True)) == []
    assert litter(cli.store) == []
    with ImageStore.open(str(cli.store)) as store:
        list(store.load(archive))
        assert list(store.check(read_data=True)) == []
    assert contents(undisturbed) == contents(cli.store)
    assert litter(cli.store) == []


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_load_that_is_killed(tmp_path: Path, big: Path, undisturbed: Path, seed: int, compressed: bool) -> None:
    archive = big
    if compressed:
        archive = tmp_path / "big.tar.gz"
        archive.write_bytes(gzip.compress(big.read_bytes(), 1))
    cli = CommandLine(tmp_path / "store")
    process = cli.start("load", "-q", "-i", archive)
    while not cli.store.exists() and process.poll() is None:
        time.sleep(0.001)
    time.sleep(random.Random(seed).uniform(0, 0.5))
    process.kill()
    process.communicate()
    assert_recovers(cli, archive, undisturbed)


@pytest.mark.parametrize(("call", "number"), [("renameat", 3), ("renameat", 9), ("fsync", 5), ("pwrite64", 40)])
def test_a_load_that_is_killed_at_a_call(tmp_path: Path, big: Path, undisturbed: Path, call: str, number: int) -> None:
    need("strace")
    cli = CommandLine(tmp_path / "store")
    wrapper = [
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        f"trace={call}",
        "-e",
        f"inject={call}:signal=SIGKILL:when={number}",
    ]
    done = cli.run("load", "-q", "-i", big, wrapper=wrapper)
    assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
    assert_recovers(cli, big, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_load_that_is_interrupted(tmp_path: Path, big: Path, undisturbed: Path, number: signal.Signals) -> None:
    cli = CommandLine(tmp_path / "store")
    process = subprocess.Popen(
        cli.words("load"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=cli.environment
    )
    assert process.stdin is not None
    process.stdin.write(big.read_bytes()[: 1 << 20])
    process.stdin.flush()
    while not cli.store.exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(number)
    said = process.communicate()[1]
    assert 128 + number == process.returncode
    assert "images that were printed as loaded are kept" in complaint(said)
    assert_recovers(cli, big, undisturbed)


@pytest.mark.parametrize("words", [["load", "-q"], ["import", "-q", "-"]])
def test_no_space_for_the_archive(tmp_path: Path, words: list[str]) -> None:
    """A bomb of an archive fills what there is, and gives it back."""
    need("mount", "umount")
    directory = tmp_path / "small"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", directory], check=True)
    try:
        cli = CommandLine(directory / "store")
        cli.text("images")
        free = shutil.disk_usage(directory).free
        bomb = lzma.compress(ZEROS)
        done = subprocess.run(cli.words(*words), input=bomb, capture_output=True, env=cli.environment, timeout=120)
        assert done.returncode == 8, done.stderr
        assert "standard input: no space left for what it holds" in complaint(done.stderr)
        assert abs(shutil.disk_usage(directory).free - free) < 1 << 20
        cli.assert_empty()
    finally:
        subprocess.run(["umount", directory], check=True)


def test_memory(tmp_path: Path) -> None:
    """256 MiB, whatever comes: 512 MiB in a layer, imported, saved, and loaded."""
    size = 512 << 20
    tar = tmp_path / "tree.tar"
    with tar.open("wb") as out:
        out.write(header(b"file", size=base256(size, 12)))
        for _ in range(size >> 20):
            out.write(bytes(1 << 20))
        out.write(END)
    cli = CommandLine(tmp_path / "store")
    assert peak(cli, "import", "-q", str(tar), "app") <= LIMIT
    tar.unlink()
    archive = tmp_path / "app.tar"
    assert peak(cli, "save", "-o", str(archive), "app") <= LIMIT
    assert archive.stat().st_size > size
    packed = tmp_path / "app.tar.gz"
    with archive.open("rb") as plain, gzip.open(packed, "wb", 1) as out:
        shutil.copyfileobj(plain, out, 1 << 20)
    archive.unlink()
    other = CommandLine(tmp_path / "other")
    assert peak(other, "load", "-q", "-i", str(packed)) <= LIMIT
    assert cli.json("images")[0]["id"] == other.json("images")[0]["id"]


def test_an_archive_that_is_cut_off_anywhere(tmp_path: Path) -> None:
    archive = make_archive(MEMBERS)
    end = archive.rindex(b"]", 0, len(archive)) + 1
    with ImageStore.create(str(tmp_path / "store"), disk_size=DISK_SIZE) as store:
        for length in random.Random(2).sample(range(1, end), 60):
            with pytest.raises((CorruptError, NotFoundError)):
                list(store.load(io.BytesIO(archive[:length])))
        assert store.images() == []
        assert store.usage().disks == 0
