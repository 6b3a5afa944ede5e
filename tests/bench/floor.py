"""The floors: what nobody can leave out of a pull, a save, a load, a push or a commit, and nothing else.

- pull: an image's layers read over HTTP, hashed, inflated, hashed again and written;
- save: the layers' disks read, and as many bytes hashed as their tars have;
- load: the layers read out of an archive, hashed and written;
- push: the same read, hashed, compressed as imgstore compresses, and hashed again;
- commit: a container's disk read, hashed, hashed again and written.

Each but the last is run as a program of its own, as what is compared with it is. What is written is one file a layer that holds the
inflated tar, and is fsync'ed, as is the directory: the durability that imgstore gives.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import queue
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from isal import igzip_lib

from imgstore.layers.gzip_writer import LEVEL, deflate

CHUNK = 512 << 10  # bytes at a time
AHEAD = 4  # chunks that a stage may be ahead of the next

Chunks = Iterator[bytes]
Stage = Callable[[Chunks], Chunks]


@dataclass(frozen=True)
class Layer:
    """One layer's work: where its bytes come from, and what each stage does to them. ``size`` says which is the longest."""

    size: int
    source: Callable[[], Chunks]
    stages: tuple[Stage, ...]


def main() -> None:
    """Does one verb's work in one of the modes."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--mode", choices=MODES, default="serial")
    verbs = parser.add_subparsers(dest="verb", required=True)
    pull = verbs.add_parser("pull")
    pull.add_argument("host")
    pull.add_argument("repository")
    pull.add_argument("tag")
    pull.add_argument("directory", type=Path)
    save = verbs.add_parser("save")
    save.add_argument("disks", nargs="+", metavar="DISK:TARSIZE")
    load = verbs.add_parser("load")
    load.add_argument("archive", type=Path)
    load.add_argument("directory", type=Path)
    push = verbs.add_parser("push")
    push.add_argument("archive", type=Path)
    given = parser.parse_args()
    directory: Path | None = getattr(given, "directory", None)
    if directory is not None:
        directory.mkdir()
    if given.verb == "pull":
        layers = _pulled_layers(given.host, given.repository, given.tag, given.directory)
    elif given.verb == "save":
        layers = [_saved_layer(*disk.rsplit(":", 1)) for disk in given.disks]
    else:
        layers = _archived_layers(given.archive, directory)
    _run_durably(given.mode, layers, directory)


def commit(mode: str, disk: Path, directory: Path) -> None:
    """What a commit of a container with this disk cannot leave out."""
    directory.mkdir()

    def write(chunks: Chunks) -> Chunks:
        return _written(directory / disk.name, _hashed(chunks))

    size = disk.stat().st_size
    _run_durably(mode, [Layer(size, lambda: _hashed(_read(str(disk), 0, size)), (write,))], directory)


def _run_durably(mode: str, layers: list[Layer], directory: Path | None) -> None:
    MODES[mode](layers)
    if directory is not None:
        descriptor = os.open(directory, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _serial(layers: list[Layer]) -> None:
    """One thread does all."""
    for layer in layers:
        _run(layer)


def _layers_overlapped(layers: list[Layer]) -> None:
    """One thread a core, each with a layer of its own."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_run, sorted(layers, key=lambda layer: -layer.size)))


def _stages_overlapped(layers: list[Layer]) -> None:
    """One layer after the other, its stages in threads with short queues between."""
    for layer in layers:
        chunks = layer.source()
        for stage in layer.stages:
            chunks = stage(_ahead(chunks))
        _drain(chunks)


MODES: dict[str, Callable[[list[Layer]], None]] = {
    "serial": _serial,
    "stages": _stages_overlapped,
    "layers": _layers_overlapped,
}


def _run(layer: Layer) -> None:
    chunks = layer.source()
    for stage in layer.stages:
        chunks = stage(chunks)
    _drain(chunks)


def _drain(chunks: Chunks) -> None:
    for _ in chunks:
        pass


def _ahead(chunks: Chunks) -> Chunks:
    waiting: queue.Queue[bytes | None] = queue.Queue(AHEAD)

    def work() -> None:
        for chunk in chunks:
            waiting.put(chunk)
        waiting.put(None)

    threading.Thread(target=work, daemon=True).start()
    return iter(waiting.get, None)


def _pulled_layers(host: str, repository: str, tag: str, directory: Path) -> list[Layer]:
    connection = http.client.HTTPConnection(host)
    accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
    connection.request("GET", f"/v2/{repository}/manifests/{tag}", headers=accept)

    def layer_of(digest: str, size: int) -> Layer:
        def source() -> Chunks:
            return _hashed(_fetched(host, f"/v2/{repository}/blobs/{digest}"), digest)

        def write(chunks: Chunks) -> Chunks:
            return _written(directory / digest, _hashed(chunks))

        return Layer(size, source, (_inflated, write))

    return [layer_of(layer["digest"], layer["size"]) for layer in json.loads(connection.getresponse().read())["layers"]]


def _saved_layer(disk: str, tar_size: str) -> Layer:
    def hash_as_many(chunks: Chunks) -> Chunks:
        digest, left = hashlib.sha256(), int(tar_size)
        for chunk in chunks:
            digest.update(chunk[:left])
            left -= min(left, len(chunk))
            yield chunk

    return Layer(int(tar_size), lambda: _read(disk, 0, Path(disk).stat().st_size), (hash_as_many,))


def _archived_layers(archive: Path, directory: Path | None) -> list[Layer]:
    """The layers of an archive of one image: to be written into the directory, or, without one, to be compressed."""
    with tarfile.open(archive) as tar:
        members = {member.name: member for member in tar}
        manifest = tar.extractfile("manifest.json")
        assert manifest is not None
        names = json.loads(manifest.read())[0]["Layers"]

    def layer_of(name: str) -> Layer:
        member = members[name]

        def source() -> Chunks:
            return _read(str(archive), member.offset_data, member.size)

        def write(chunks: Chunks) -> Chunks:
            assert directory is not None
            return _written(directory / Path(name).name, _hashed(chunks))

        def compress(chunks: Chunks) -> Chunks:
            return _compressed(_hashed(chunks))

        return Layer(member.size, source, (compress, _hashed) if directory is None else (write,))

    return [layer_of(name) for name in names]


def _fetched(host: str, path: str) -> Chunks:
    connection = http.client.HTTPConnection(host)
    connection.request("GET", path)
    response = connection.getresponse()
    if response.status != 200:
        raise SystemExit(f"{path}: {response.status} {response.reason}")
    while chunk := response.read(CHUNK):
        yield chunk
    connection.close()


def _read(path: str, start: int, length: int) -> Chunks:
    descriptor = os.open(path, os.O_RDONLY)
    for offset in range(start, start + length, CHUNK):
        yield os.pread(descriptor, min(CHUNK, start + length - offset), offset)
    os.close(descriptor)


def _hashed(chunks: Iterable[bytes], expected: str | None = None) -> Chunks:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
        yield chunk
    if expected not in (None, f"sha256:{digest.hexdigest()}"):
        raise SystemExit(f"a blob has sha256:{digest.hexdigest()}, not {expected}")


def _inflated(chunks: Iterable[bytes]) -> Chunks:
    decompressor = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    for chunk in chunks:
        yield decompressor.decompress(chunk)


def _compressed(chunks: Iterable[bytes]) -> Chunks:
    compressor = deflate.compressobj(LEVEL, zlib.DEFLATED, 31)
    for chunk in chunks:
        yield compressor.compress(chunk)
    yield compressor.flush()


def _written(path: Path, chunks: Iterable[bytes]) -> Chunks:
    with path.open("wb", buffering=0) as file:
        for chunk in chunks:
            file.write(chunk)
            yield chunk
        os.fsync(file.fileno())


if __name__ == "__main__":
    main()
