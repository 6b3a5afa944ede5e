"""Peak memory of a pull, of a push, and of making the layers' tars again, whatever the image: 256 MiB."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command_line import CommandLine
from tests.raw_tar import END, base256, header, padded, pax
from tests.servers.docker_registry import docker_registry
from tests.servers.images import BuiltImage, build_image, digest_of, make_tar, write_layout

LIMIT = 256 << 20
ZEROS = bytes(64 << 20)

# The peak of a process counts what its parent had at the fork, so a small one stands between it and the tests.
_MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def peak(cli: CommandLine, *words: str) -> int:
    """Bytes of the largest resident set that a command line had."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", _MEASURE, *cli.words(*words)], capture_output=True, env=cli.environment, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode()
    return int(done.stdout) * 1024


def zeros_of(parts: int) -> tuple[bytes, str]:
    """A gzip of one member a part, of a tar with a file of so many times 64 MiB of zeros, and its diff id."""
    start = header(b"zeros", size=base256(parts * len(ZEROS), 12))
    inflated = hashlib.sha256(start)
    for _ in range(parts):
        inflated.update(ZEROS)
    inflated.update(END)
    blob = gzip.compress(start) + gzip.compress(ZEROS, 1) * parts + gzip.compress(END)
    return blob, "sha256:" + inflated.hexdigest()


def image_of(blob: bytes, diff_id: str) -> BuiltImage:
    image = build_image([b""], config={"rootfs": {"type": "layers", "diff_ids": [diff_id]}})
    manifest = json.loads(image.manifest)
    manifest["layers"][0] |= {"digest": digest_of(blob), "size": len(blob)}
    blobs = {image.image_id: image.config, digest_of(blob): blob}
    return BuiltImage(json.dumps(manifest).encode(), image.media_type, image.config, blobs, image.layers, image.platform)


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[CommandLine]:
    yield CommandLine(tmp_path / "store")


def test_gzip_bomb(cli: CommandLine, tmp_path: Path) -> None:
    """1 GiB of zeros in 1 MiB, all of which a file claims to be."""
    layout = write_layout(tmp_path / "layout", {"1": image_of(*zeros_of(16))})
    assert peak(cli, "pull", "-q", f"oci:{layout}:1") <= LIMIT
    assert peak(cli, "check", "--read-data") <= LIMIT
    assert sum(path.stat().st_blocks * 512 for path in (cli.store / "disks").rglob("*")) < 4 << 20


def test_push(cli: CommandLine, tmp_path: Path) -> None:
    """Of three layers at once: 512 MiB of zeros, 100 MiB that cannot be compressed, and as many that go as they are."""
    blob, diff_id = zeros_of(8)
    noise = [make_tar({"noise": random.Random(number).randbytes(100 << 20)}) for number in range(2)]
    packed = gzip.compress(noise[0], 1, mtime=0)
    image = build_image(
        noise, compression="none", config={"rootfs": {"type": "layers", "diff_ids": [diff_id, *map(digest_of, noise)]}}
    )
    manifest = json.loads(image.manifest)
    first, second = (manifest["layers"][0] | {"digest": digest_of(each), "size": len(each)} for each in (blob, packed))
    manifest["layers"] = [first, second, manifest["layers"][1]]
    blobs = dict(image.blobs) | {digest_of(blob): blob, digest_of(packed): packed}
    built = BuiltImage(json.dumps(manifest).encode(), image.media_type, image.config, blobs, image.layers, image.platform)
    layout = write_layout(tmp_path / "layout", {"1": built})
    cli.text("pull", "-q", f"oci:{layout}:1")
    with docker_registry(tmp_path / "registry") as registry:
        cli.text("tag", "layout:1", f"{registry.host}/app:1")
        assert peak(cli, "push", "-q", f"{registry.host}/app:1") <= LIMIT


def test_sparse_file(cli: CommandLine, tmp_path: Path) -> None:
    """2 GiB with one byte at its end."""
    records = ((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"%d" % (2 << 30)))
    data = b"1\n%d\n1\n" % ((2 << 30) - 1)
    stored = padded(data) + b"x"
    tar = pax(*records) + header(b"sparse", size=len(stored)) + padded(stored) + END
    layout = write_layout(tmp_path / "layout", {"1": build_image([tar])})
    assert peak(cli, "pull", "-q", f"oci:{layout}:1") <= LIMIT
    assert sum(path.stat().st_blocks * 512 for path in (cli.store / "disks").rglob("*")) < 4 << 20


def test_127_layers(cli: CommandLine, tmp_path: Path) -> None:
    layers = [make_tar({f"file{number}": b"%d" % number}) for number in range(127)]
    layout = write_layout(tmp_path / "layout", {"1": build_image(layers)})
    assert peak(cli, "pull", "-q", f"oci:{layout}:1") <= LIMIT
    assert len(list(cli.store.glob("disks/*.json"))) == 127


def test_many_names_in_one_directory(cli: CommandLine, tmp_path: Path) -> None:
    """50,000 of them; nothing big may live as long as its file's entry."""
    tar = b"".join(header(b"directory/%06d" % number) for number in range(50_000)) + END
    layout = write_layout(tmp_path / "layout", {"1": build_image([tar])})
    assert peak(cli, "pull", "-q", f"oci:{layout}:1") <= LIMIT
    assert peak(cli, "check", "--read-data") <= LIMIT
