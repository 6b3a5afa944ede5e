"""The image that the bench pulls: synthetic, deterministic, and shaped like a real one.

File sizes are log-normal, as file systems have them; nine files in ten are text that gzip shrinks 3:1, the tenth does not shrink;
layers differ in size as those of an application image do, and the last one replaces and removes files of others. Blobs are made by zlib
at level 6, as Docker makes them, so inflating costs what it costs in life.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import random
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

LAYERS = (  # name, share of the files, share of the bytes
    ("base", 0.14, 0.17),
    ("runtime", 0.27, 0.34),
    ("dependencies", 0.50, 0.36),
    ("application", 0.08, 0.12),
    ("configuration", 0.01, 0.01),
)
FILES_PER_DIRECTORY = 12
MEDIAN_FILE, SPREAD = 4000, 1.7  # bytes; the sigma of the log-normal distribution
LARGEST_FILE = 48 << 20  # before scaling to the share
MTIME = 1_700_000_000
TREE = "tree"
"""The directory in which all is that ``write_tree`` writes."""


@dataclass(frozen=True)
class Recipe:
    """How much of it.

    Attributes:
        files: regular files and symbolic links together.
        size: bytes of all contents.
        pool: bytes that contents are slices of, far more than gzip's window of 32 KiB, so a repetition never shows.
    """

    files: int
    size: int
    pool: int

    @property
    def tag(self) -> str:
        return f"{self.size // 1_000_000}mb-{self.files}"


FULL = Recipe(files=60_000, size=1_000_000_000, pool=16 << 20)
SMOKE = Recipe(files=600, size=10_000_000, pool=1 << 20)


def build_image(recipe: Recipe, directory: Path) -> Path:
    """Makes the image below ``directory``, as an OCI layout named by the recipe, or finds it there. Returns the layout's path."""
    layout = directory / recipe.tag
    if layout.exists():
        return layout
    part = directory / f"{recipe.tag}.part"
    shutil.rmtree(part, ignore_errors=True)
    blobs = part / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    with ProcessPoolExecutor(2) as pool:
        layers = list(pool.map(_write_layer, itertools.repeat(recipe), range(len(LAYERS)), itertools.repeat(blobs)))
    config = _write_json(
        blobs,
        "application/vnd.oci.image.config.v1+json",
        {
            "created": "2023-11-14T22:13:20Z",
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]},
            "history": [{"created_by": name} for name, _, _ in LAYERS],
        },
    )
    manifest_type = "application/vnd.oci.image.manifest.v1+json"
    manifest = _write_json(
        blobs,
        manifest_type,
        {"schemaVersion": 2, "mediaType": manifest_type, "config": config, "layers": [descriptor for descriptor, _ in layers]},
    )
    index = {"schemaVersion": 2, "manifests": [{**manifest, "annotations": {"org.opencontainers.image.ref.name": "latest"}}]}
    (part / "index.json").write_text(json.dumps(index))
    (part / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return part.rename(layout)


def write_tree(tar: Path, recipe: Recipe) -> Path:
    """Writes a tar of one directory with files as those of the image are, and returns its path."""
    with ProcessPoolExecutor(1) as pool:  # what the contents take is not to be this process's
        return pool.submit(_write_tree, tar, recipe).result()


def write_change(tar: Path, path: str) -> Path:
    """Writes a tar of one file, which says nothing that is in the image, and returns its path."""
    with tarfile.open(tar, "w") as archive:
        archive.addfile(_member(path, tarfile.REGTYPE, mode=0o600))
    return tar


def rounded_size(layout: Path) -> int:
    """Bytes that the image's contents take in blocks of 4 KiB, each file and each directory rounded up, as du counts them.

    All layers added up, as each stores its own.
    """
    total = 0
    for blob in layer_blobs(layout):
        with tarfile.open(blob, "r:gz") as tar:
            for member in tar:
                if member.isreg():
                    total += -(-member.size // 4096) * 4096
                elif member.isdir():
                    total += 4096
    return total


def layer_blobs(layout: Path) -> list[Path]:
    """The layers' blobs, lowest first."""
    (manifest,) = json.loads((layout / "index.json").read_text())["manifests"]
    layers = json.loads(_blob(layout, manifest["digest"]).read_text())["layers"]
    return [_blob(layout, layer["digest"]) for layer in layers]


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


def _write_json(blobs: Path, media_type: str, value: dict[str, Any]) -> dict[str, Any]:
    body = json.dumps(value).encode()
    digest = hashlib.sha256(body).hexdigest()
    (blobs / digest).write_bytes(body)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(body)}


def _write_layer(recipe: Recipe, number: int, blobs: Path) -> tuple[dict[str, Any], str]:
    part = blobs / f"layer-{number}"
    with part.open("wb") as file:
        out = _GzipWriter(file)
        with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 20) as tar:  # type: ignore[call-overload]
            for member, contents in _members(recipe, number):
                tar.addfile(member, io.BytesIO(contents))
        out.finish()
    digest = out.compressed.hexdigest()
    size = part.stat().st_size
    part.rename(blobs / digest)
    descriptor = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": f"sha256:{digest}", "size": size}
    return descriptor, f"sha256:{out.plain.hexdigest()}"


class _GzipWriter:
    """A gzip file without a time stamp, and the digests of what goes in and of what comes out."""

    def __init__(self, file: BinaryIO) -> None:
        self.plain, self.compressed = hashlib.sha256(), hashlib.sha256()
        self._file = file
        self._compressor = zlib.compressobj(6, zlib.DEFLATED, 31)

    def write(self, data: bytes) -> int:
        self.plain.update(data)
        self._emit(self._compressor.compress(data))
        return len(data)

    def finish(self) -> None:
        self._emit(self._compressor.flush())

    def _emit(self, data: bytes) -> None:
        self.compressed.update(data)
        self._file.write(data)


def _members(recipe: Recipe, number: int) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    name, share_of_files, share_of_bytes = LAYERS[number]
    rng = random.Random(f"{name} {recipe.files} {recipe.size}")
    sizes = _file_sizes(rng, round(recipe.files * share_of_files), round(recipe.size * share_of_bytes))
    if name == "configuration":
        yield from _changes_below(recipe, rng)
    seen: set[str] = set()
    for index, size in enumerate(sizes):
        directory = _directory(name, index)
        for depth in range(1, directory.count("/") + 2):
            parent = "/".join(directory.split("/")[:depth])
            if parent not in seen:
                seen.add(parent)
                yield _member(parent, tarfile.DIRTYPE, mode=0o755), b""
        path = file_path(name, index)
        if index % 33 == 32:
            link = _member(path, tarfile.SYMTYPE, mode=0o777)
            link.linkname = Path(file_path(name, index - 1)).name
            yield link, b""
        else:
            yield _file(path, _contents(rng, size, recipe.pool))


def _changes_below(recipe: Recipe, rng: random.Random) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Replaces some files of the first layer and removes some of the third."""
    some = recipe.files // 300
    for index in range(0, 40 * some, 40):
        yield _file(file_path("base", index), _contents(rng, 2000, recipe.pool))
    for index in range(0, 100 * some, 100):
        path = Path(file_path("dependencies", index))
        yield _file(str(path.with_name(f".wh.{path.name}")), b"")


def _write_tree(tar: Path, recipe: Recipe) -> Path:
    rng = random.Random(f"{TREE} {recipe.files} {recipe.size}")
    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(_member(TREE, tarfile.DIRTYPE, mode=0o755))
        for index, size in enumerate(_file_sizes(rng, recipe.files, recipe.size)):
            directory = f"{TREE}/package-{index // FILES_PER_DIRECTORY:05}"
            if index % FILES_PER_DIRECTORY == 0:
                archive.addfile(_member(directory, tarfile.DIRTYPE, mode=0o755))
            member, contents = _file(f"{directory}/module_{index}.py", _contents(rng, size, recipe.pool))
            archive.addfile(member, io.BytesIO(contents))
    return tar


def _file_sizes(rng: random.Random, count: int, total: int) -> list[int]:
    sizes = [min(rng.lognormvariate(math.log(MEDIAN_FILE), SPREAD), LARGEST_FILE) for _ in range(count)]
    scale = total / sum(sizes)
    return [int(size * scale) for size in sizes]


def _directory(layer: str, index: int) -> str:
    package = index // FILES_PER_DIRECTORY
    return f"usr/lib/{layer}/package-{package // 4:05}" + ("", "/src", "/src/core", "/locale")[package % 4]


def file_path(layer: str, index: int) -> str:
    """Where in the image a file is that the layer of this name has."""
    stem, suffix = (("module", "py"), ("component", "js"), ("messages", "so"), ("readme", "txt"))[index % 4]
    return f"{_directory(layer, index)}/{stem}_{index}.{suffix}"


def _file(path: str, contents: bytes) -> tuple[tarfile.TarInfo, bytes]:
    member = _member(path, tarfile.REGTYPE, mode=0o644)
    member.size = len(contents)
    return member, contents


def _member(path: str, kind: bytes, *, mode: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(path)
    member.type, member.mode, member.mtime = kind, mode, MTIME
    return member


def _contents(rng: random.Random, size: int, length: int) -> bytes:
    pool = _noise(length) if rng.random() < 0.1 else _text(length)
    start = rng.randrange(length - min(size, length - 1))
    if start + size <= length:
        return pool[start : start + size]
    return (pool * (-(-(start + size) // length)))[start : start + size]


@cache
def _noise(length: int) -> bytes:
    return random.Random("noise").randbytes(length)


@cache
def _text(length: int) -> bytes:
    """Lines of words, the frequent ones far more frequent, as in prose and in programs."""
    rng = random.Random("text")
    letters = "etaoinshrdlucmfwypvbgkqjxz"
    weights = list(itertools.accumulate(1 / (rank + 2) for rank in range(len(letters))))
    words = ["".join(rng.choices(letters, cum_weights=weights, k=rng.randint(2, 11))) for _ in range(6000)]
    frequencies = list(itertools.accumulate(1 / (rank + 1) for rank in range(len(words))))
    chosen = iter(rng.choices(words, cum_weights=frequencies, k=length // 4))
    lines = []
    made = 0
    while made < length:
        line = " " * (4 * rng.randrange(4)) + " ".join(itertools.islice(chosen, rng.randint(1, 12))) + "\n"
        lines.append(line)
        made += len(line)
    return "".join(lines).encode()[:length]
