"""The floor under every pull: an image's layers read over HTTP, hashed, inflated, hashed again and written, and nothing else.

Run as a program of its own, as the pulls it is compared with are. Each layer becomes one file that holds the inflated tar, and is fsync'ed,
as is the directory: the durability that imgstore gives.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from isal import igzip_lib

CHUNK = 512 << 10  # compressed bytes at a time
AHEAD = 4  # chunks that a stage may be ahead of the next


def main() -> None:
    """Fetches all layers of HOST REPOSITORY TAG into DIRECTORY."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("host")
    parser.add_argument("repository")
    parser.add_argument("tag")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--mode", choices=MODES, default="serial")
    arguments = parser.parse_args()
    arguments.directory.mkdir()
    layers = _layers(arguments.host, arguments.repository, arguments.tag)
    MODES[arguments.mode](arguments.host, f"/v2/{arguments.repository}/blobs/", layers, arguments.directory)
    directory = os.open(arguments.directory, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def _layers(host: str, repository: str, tag: str) -> list[dict[str, Any]]:
    connection = http.client.HTTPConnection(host)
    connection.request(
        "GET", f"/v2/{repository}/manifests/{tag}", headers={"Accept": "application/vnd.oci.image.manifest.v1+json"}
    )
    layers: list[dict[str, Any]] = json.loads(connection.getresponse().read())["layers"]
    return layers


def _serial(host: str, path: str, layers: list[dict[str, Any]], directory: Path) -> None:
    """One thread does all."""
    for layer in layers:
        _fetch_layer(host, path, layer, directory)


def _layers_overlapped(host: str, path: str, layers: list[dict[str, Any]], directory: Path) -> None:
    """One thread a core, each with a layer of its own."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda layer: _fetch_layer(host, path, layer, directory), sorted(layers, key=lambda layer: -layer["size"])))


def _stages_overlapped(host: str, path: str, layers: list[dict[str, Any]], directory: Path) -> None:
    """One layer after the other, its stages in threads with short queues between: read and hash, inflate, hash and write."""
    fetched: queue.Queue[bytes | None] = queue.Queue(AHEAD)
    inflated: queue.Queue[bytes | None] = queue.Queue(AHEAD)

    def fetch() -> None:
        for layer in layers:
            for chunk in _hashed(_chunks(host, path, layer), layer["digest"]):
                fetched.put(chunk)
            fetched.put(None)

    def inflate() -> None:
        for _ in layers:
            for data in _inflated(iter(fetched.get, None)):
                inflated.put(data)
            inflated.put(None)

    threads = [threading.Thread(target=stage, daemon=True) for stage in (fetch, inflate)]
    for thread in threads:
        thread.start()
    for layer in layers:
        _write_file(directory / layer["digest"], iter(inflated.get, None))
    for thread in threads:
        thread.join()


MODES: dict[str, Callable[[str, str, list[dict[str, Any]], Path], None]] = {
    "serial": _serial,
    "layers": _layers_overlapped,
    "stages": _stages_overlapped,
}


def _fetch_layer(host: str, path: str, layer: dict[str, Any], directory: Path) -> None:
    chunks = _hashed(_chunks(host, path, layer), layer["digest"])
    _write_file(directory / layer["digest"], _inflated(chunks))


def _chunks(host: str, path: str, layer: dict[str, Any]) -> Iterator[bytes]:
    connection = http.client.HTTPConnection(host)
    connection.request("GET", path + layer["digest"])
    response = connection.getresponse()
    if response.status != 200:
        raise SystemExit(f"{path}{layer['digest']}: {response.status} {response.reason}")
    while chunk := response.read(CHUNK):
        yield chunk
    connection.close()


def _hashed(chunks: Iterator[bytes], expected: str) -> Iterator[bytes]:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
        yield chunk
    if f"sha256:{digest.hexdigest()}" != expected:
        raise SystemExit(f"a blob has sha256:{digest.hexdigest()}, not {expected}")


def _inflated(chunks: Iterator[bytes]) -> Iterator[bytes]:
    decompressor = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    for chunk in chunks:
        yield decompressor.decompress(chunk)


def _write_file(path: Path, chunks: Iterator[bytes]) -> None:
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        for chunk in chunks:
            digest.update(chunk)
            file.write(chunk)
        os.fsync(file.fileno())


if __name__ == "__main__":
    main()
