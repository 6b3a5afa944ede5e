"""A store of many images, made in seconds: one layer is converted, all others are its files under other names.

Each image has that layer below and one of its own, whose disk, checksums and recipe are hard links to those of the first; marker,
configuration and name are real. The catalog is not written but rebuilt, by the store itself, from what lies there: it takes in nothing
that is not whole. A list looks at all of it as it does at real images; the disks of the second layers are no chain, and none is opened.

A program of its own, so that the bench itself stays small: what it starts would seem to take as much memory.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import sys
import tarfile
import time
from contextlib import ExitStack
from pathlib import Path

import msgspec

from imgstore import layout, markers
from imgstore.store import ImageStore

_SUFFIXES = (layout.disk_file, layout.grain_sums_file, layout.recipe_file)


def main() -> None:
    """Makes stores, or lists them in turn and prints a JSON array of the seconds that each took, in their order."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("verb", choices=("make", "list"))
    parser.add_argument("stores", nargs="+", metavar="STORE[:COUNT]", help="to be made with so many images")
    given = parser.parse_args()
    if given.verb == "make":
        for directory, count in (store.rsplit(":", 1) for store in given.stores):
            make_store(Path(directory), int(count))
        return
    with ExitStack() as stack:
        stores = [stack.enter_context(ImageStore.open(store, create=False)) for store in given.stores]
        for store in stores:
            store.images()  # for what a store remembers
        json.dump([_time_list(store) for store in stores], sys.stdout)


def _time_list(store: ImageStore) -> float:
    start = time.perf_counter()
    store.images()
    return time.perf_counter() - start


def make_store(directory: Path, count: int) -> None:
    """Makes a store of ``count`` images at ``directory``, which must not exist.

    Raises:
        RuntimeError: the store did not take them all for whole.
    """
    with ImageStore.create(str(directory)) as store:
        base = store.import_image(_tar(), reference="bench/base:1")
    below = markers.decode(markers.LayerMarker, (directory / layout.layer_marker(base.layers[0].chain_id)).read_bytes(), "base")
    for number in range(count - 1):
        _add_image(directory, below, number)
    with ImageStore.open(str(directory)) as store:
        report = store.rebuild()
    if report.images != count or report.left_out:
        raise RuntimeError(f"{directory}: {report.images} images of {count}; {report.left_out[:3]}")


def _add_image(directory: Path, below: markers.LayerMarker, number: int) -> None:
    diff_id = _sha256(f"layer {number}".encode())
    chain_id = _sha256(f"{below.chain_id} {diff_id}".encode())
    stem, stem_below = layout.hex_of(chain_id), layout.hex_of(below.chain_id)
    for name_of in _SUFFIXES:
        os.link(directory / layout.DISKS / name_of(stem_below), directory / layout.DISKS / name_of(stem))
    assert below.disk is not None
    disk = msgspec.structs.replace(below.disk, file=layout.disk_file(stem), grain_sums=layout.grain_sums_file(stem))
    recipe = msgspec.structs.replace(below.recipe, file=layout.recipe_file(stem))
    marker = markers.LayerMarker(chain_id, diff_id, below.chain_id, below.size, disk, recipe)
    (directory / layout.layer_marker(chain_id)).write_bytes(markers.encode(marker))
    config = _config([below.diff_id, diff_id], number)
    image_id = _sha256(config)
    image = directory / layout.image_directory(image_id)
    image.mkdir()
    (image / layout.CONFIG).write_bytes(config)
    (image / layout.MANIFEST).write_bytes(b"")
    layers = tuple(
        markers.ImageLayer(chain, diff, None, "application/vnd.oci.image.layer.v1.tar+gzip")
        for chain, diff in ((below.chain_id, below.diff_id), (chain_id, diff_id))
    )
    (image / layout.IMAGE_MARKER).write_bytes(markers.encode(markers.ImageMarker(image_id, None, layers)))
    name = f"localhost:5000/bench/application-{number % 500}:{number}"
    (directory / layout.reference_file(name)).parent.mkdir(exist_ok=True)
    (directory / layout.reference_file(name)).write_bytes(markers.encode(markers.ReferenceMarker(name, image_id, None)))


def _config(diff_ids: list[str], number: int) -> bytes:
    """About as long as those of real images, some 2 kB."""
    return json.dumps(
        {
            "created": f"2023-11-14T{number // 3600 % 24:02}:{number // 60 % 60:02}:{number % 60:02}Z",
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Cmd": ["/usr/bin/application", "--serve"],
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"],
                "Labels": {"org.opencontainers.image.version": f"1.0.{number}", "org.opencontainers.image.vendor": "Bench"},
            },
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [{"created_by": f"/bin/sh -c #(nop) step {step} of {number}", "empty_layer": True} for step in range(20)]
            + [{"created_by": f"/bin/sh -c make install-{step} && rm -rf /var/cache/apt"} for step in range(2)],
        }
    ).encode()


def _tar() -> io.BytesIO:
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w") as tar:
        member = tarfile.TarInfo("etc/os-release")
        member.size = 20
        tar.addfile(member, io.BytesIO(b"PRETTY_NAME='Bench'\n"))
    body.seek(0)
    return body


def _sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    main()
