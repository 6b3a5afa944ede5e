"""Layers in spools, and what is remembered of them."""

from __future__ import annotations

import gzip
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgstore import layout, markers
from imgstore.blobs import BLOBS_MAX, REPOSITORIES_MAX, KnownBlobs, compress_layer
from imgstore.datastores.memory import MemoryDatastore
from imgstore.errors import CorruptError, NotFoundError
from imgstore.markers import BlobRecord, BlobsMarker
from tests.servers.images import digest_of

CHAIN_ID = "sha256:" + 64 * "a"
OTHER = "sha256:" + 64 * "b"
PATH = layout.blobs_file(CHAIN_ID)


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_what_is_remembered() -> None:
    blobs = KnownBlobs(MemoryDatastore())
    assert blobs.of(CHAIN_ID) == ()
    blobs.remember(CHAIN_ID, digest(1), 100, "host/a")
    blobs.remember(CHAIN_ID, digest(2), 200, "host/a")
    blobs.remember(CHAIN_ID, digest(1), 100, "host/b")
    assert blobs.of(CHAIN_ID) == (BlobRecord(digest(1), 100, ("host/b", "host/a")), BlobRecord(digest(2), 200, ("host/a",)))
    assert blobs.of(OTHER) == ()


def test_the_oldest_are_forgotten() -> None:
    blobs = KnownBlobs(MemoryDatastore())
    for number in range(1, 9):
        blobs.remember(CHAIN_ID, digest(number), number, "host/a")
    assert [blob.size for blob in blobs.of(CHAIN_ID)] == [8, 7, 6, 5][:BLOBS_MAX]
    for number in range(40):
        blobs.remember(CHAIN_ID, digest(8), 8, f"host/{number}")
    assert blobs.of(CHAIN_ID)[0].repositories == tuple(f"host/{39 - number}" for number in range(REPOSITORIES_MAX))


def test_nothing_is_written_that_is_known() -> None:
    datastore = MemoryDatastore()
    blobs = KnownBlobs(datastore)
    blobs.remember(CHAIN_ID, digest(1), 100, "host/a")
    datastore.remove_file(PATH)
    datastore.write_atomic(PATH, known := markers.encode(BlobsMarker(CHAIN_ID, (BlobRecord(digest(1), 100, ("host/a",)),))))
    blobs.remember(CHAIN_ID, digest(1), 100, "host/a")
    assert datastore.read_bytes(PATH) == known


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-9],
        lambda data: data.replace(b"host/a", b"host/x"),
        lambda data: data.replace(b'"version": 1', b'"version": 9'),
        lambda data: b"",
        lambda data: markers.encode(BlobsMarker(OTHER, (BlobRecord(digest(1), 100, ("host/a",)),))),
        lambda data: markers.encode(BlobsMarker(CHAIN_ID, (BlobRecord(digest(1), -1, ("host/a",)),))),
        lambda data: markers.encode(BlobsMarker(CHAIN_ID, ())) + bytes(markers.LIMIT),
    ],
)
def test_damage_is_as_if_it_never_was(damage: object) -> None:
    assert callable(damage)
    datastore = MemoryDatastore()
    blobs = KnownBlobs(datastore)
    blobs.remember(CHAIN_ID, digest(1), 100, "host/a")
    data = damage(datastore.read_bytes(PATH))
    datastore.remove_file(PATH)
    datastore.write_atomic(PATH, data)
    assert blobs.of(CHAIN_ID) == ()
    blobs.remember(CHAIN_ID, digest(2), 200, "host/a")
    assert blobs.of(CHAIN_ID) == (BlobRecord(digest(2), 200, ("host/a",)),)


def test_it_belongs_to_the_layer() -> None:
    assert PATH in layout.layer_files(CHAIN_ID)
    assert layout.layer_of(PATH.rpartition("/")[2]) == CHAIN_ID


def test_a_spool(tmp_path: Path) -> None:
    tar = os.urandom(3 << 20)
    spool = compress_layer(iter([tar[:5], tar[5:]]), tmp_path, "layer x")
    assert list(tmp_path.iterdir()) == []
    data = b"".join(spool.open_at(0))
    assert (spool.digest, spool.size) == (digest_of(data), len(data))
    assert gzip.decompress(data) == tar
    assert b"".join(spool.open_at(1_234_567)) == data[1_234_567:]
    assert list(spool.open_at(spool.size)) == []
    spool.close()


@pytest.mark.parametrize("good", [0, 1, 5])
def test_a_layer_that_cannot_be_read(good: int, tmp_path: Path) -> None:
    closed = []

    def broken() -> Iterator[bytes]:
        try:
            for _ in range(good):
                yield os.urandom(1 << 20)
            raise CorruptError("layer x: is damaged")
        finally:
            closed.append(True)

    before, files = threading.active_count(), open_files()
    with pytest.raises(CorruptError, match="layer x: is damaged"):
        compress_layer(broken(), tmp_path, "layer x")
    assert closed == [True]
    assert threading.active_count() == before
    assert open_files() == files


def test_a_spool_that_cannot_be_written(tmp_path: Path) -> None:
    closed = []

    def endless() -> Iterator[bytes]:
        try:
            while True:
                yield os.urandom(1 << 20)
        finally:
            closed.append(True)

    with pytest.raises(NotFoundError, match=r"gone: cannot hold layer x compressed: No such file or directory"):
        compress_layer(endless(), tmp_path / "gone", "layer x")
    assert closed == []
