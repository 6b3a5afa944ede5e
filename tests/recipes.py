"""Recipes for tests: recorded while a tar becomes a file system in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from imgstore.blocks import BlockDevice, Bytes, WritableBlockDevice
from imgstore.ext4.writer import LayerWriter
from imgstore.layers.recipe import RecipeWriter, rebuild_tar
from imgstore.layers.tar_reader import read_changes


class ByteFile:
    """A file of a datastore, in memory."""

    path = "disks/layer.recipe"

    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)

    @property
    def size(self) -> int:
        return len(self.data)

    def pread(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])

    def pwrite(self, offset: int, data: Bytes) -> None:
        assert offset == len(self.data), "a recipe is written from its start to its end"
        self.data += data

    def data_ranges(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        yield offset, length

    def truncate(self, size: int) -> None:
        raise AssertionError("not of a recipe")

    def fsync(self) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass
class Recorded:
    """The recipe of a layer, and what its tar was."""

    file: ByteFile
    size: int
    diff_id: str

    def rebuild(self, device: BlockDevice) -> Iterator[Bytes]:
        return rebuild_tar(self.file, device, size=self.size, diff_id=self.diff_id)


def record(pieces: Iterable[bytes], device: WritableBlockDevice) -> Recorded:
    """Applies a tar to the file system on ``device``."""
    file = ByteFile()
    recipe = RecipeWriter(file)
    writer = LayerWriter(device, recipe.place)
    tar_hash = hashlib.sha256()
    size = 0

    def hashed() -> Iterator[bytes]:
        nonlocal size
        for piece in pieces:
            tar_hash.update(piece)
            size += len(piece)
            yield piece

    for change in read_changes(recipe.follow(hashed()), capacity=device.size, announce=recipe.announce):
        writer.apply(change)
    writer.finish()
    diff_id = "sha256:" + tar_hash.hexdigest()
    summary = recipe.finish(size, diff_id)
    assert (summary.size, summary.digest) == (file.size, "sha256:" + hashlib.sha256(file.data).hexdigest())
    return Recorded(file, size, diff_id)


def in_pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))
