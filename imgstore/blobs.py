"""Blobs: layers compressed for a registry, and what is remembered of them.

A layer of the store is a disk; what a registry wants of it, a blob, is made when it is pushed and not kept. Only which blob was made, and
which repositories have it, is written beside the disk, so that the next push need not make it to find that out.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from imgstore import layout, markers
from imgstore.blocks import Bytes
from imgstore.datastores.datastore import Datastore, named_errors
from imgstore.errors import CorruptError, NotFoundError, UnsupportedError
from imgstore.layers.gzip_writer import compress
from imgstore.layers.read_ahead import read_ahead
from imgstore.markers import BlobRecord, BlobsMarker

BLOBS_MAX = 4
"""Blobs remembered of one layer. More than one comes of another compressor, or another version of it."""

REPOSITORIES_MAX = 16
"""Repositories remembered of one blob."""

_AHEAD = 2
"""Pieces that reading may be ahead of compressing, and that ahead of writing."""

_PIECE_SIZE = 1 << 20


class KnownBlobs:
    """What is remembered of the blobs that were made of the store's layers. It is a hint: lost or damaged, it is as if it never was."""

    def __init__(self, datastore: Datastore) -> None:
        self._datastore = datastore

    def of(self, chain_id: str) -> tuple[BlobRecord, ...]:
        """The blobs of a layer, that of the latest push first."""
        path = layout.blobs_file(chain_id)
        try:
            marker = markers.decode(BlobsMarker, self._datastore.read_bytes(path, markers.LIMIT), path)
        except (NotFoundError, CorruptError, UnsupportedError):
            return ()
        return marker.blobs if marker.chain_id == chain_id else ()

    def remember(self, chain_id: str, digest: str, size: int, repository: str) -> None:
        """Notes that a repository has this blob of the layer. Of two that note at once, one is forgotten.

        Args:
            repository: with its registry.
        """
        known = self.of(chain_id)
        before = next((blob.repositories for blob in known if blob.digest == digest), ())
        repositories = tuple(dict.fromkeys((repository, *before)))[:REPOSITORIES_MAX]
        others = (blob for blob in known if blob.digest != digest)
        blobs = (BlobRecord(digest, size, repositories), *others)[:BLOBS_MAX]
        if blobs != known:
            marker = BlobsMarker(chain_id, blobs)
            self._datastore.write_atomic(layout.blobs_file(chain_id), markers.encode(marker))


class SpooledBlob:
    """A compressed layer in a file without a name, which the kernel forgets with us. Made by `compress_layer`.

    Attributes:
        digest: ``sha256:…`` of its bytes.
        size: how many there are.
    """

    def __init__(self, descriptor: int, digest: str, size: int) -> None:
        self._descriptor = descriptor
        self.digest = digest
        self.size = size

    def open_at(self, offset: int) -> Iterator[bytes]:
        """The bytes from an offset on, in pieces of at most a MiB. May be read any number of times."""
        while piece := os.pread(self._descriptor, _PIECE_SIZE, offset):
            yield piece
            offset += len(piece)

    def close(self) -> None:
        """Frees the file. The blob is unusable afterwards."""
        os.close(self._descriptor)


def compress_layer(tar: Iterator[Bytes], directory: Path | None, name: str) -> SpooledBlob:
    """Compresses a layer's tar into a file without a name.

    Reading, compressing and writing overlap; a few pieces are in memory.

    Args:
        directory: where the file lies; None: the system's temporary directory.
        name: of the layer, for errors.

    Raises:
        NoSpaceError, DeniedError, UnavailableError: the file system of the directory is full, or does not let us.
        BaseException: what ``tar`` raises.
    """
    place = str(directory or tempfile.gettempdir())
    with named_errors(place, f"hold {name} compressed"), tempfile.TemporaryFile(dir=directory) as file:
        digest, size = hashlib.sha256(), 0
        read = read_ahead(tar, _AHEAD, name="imgstore-read")
        packed = read_ahead(_closing(compress(read), read), _AHEAD, name="imgstore-compress")
        with contextlib.closing(packed):
            for piece in packed:
                digest.update(piece)
                _write(file.fileno(), piece, size)
                size += len(piece)
        return SpooledBlob(os.dup(file.fileno()), f"sha256:{digest.hexdigest()}", size)


def _closing(pieces: Iterator[bytes], source: Iterator[Bytes]) -> Iterator[bytes]:
    """The pieces; closing this closes what they are made of, whose thread would else run on until it is collected."""
    try:
        yield from pieces
    finally:
        close = getattr(source, "close", None)
        if close is not None:
            close()


def _write(descriptor: int, piece: bytes, offset: int) -> None:
    view = memoryview(piece)
    while view:
        written = os.pwrite(descriptor, view, offset)
        offset += written
        view = view[written:]
