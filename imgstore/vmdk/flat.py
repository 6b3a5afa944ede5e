"""Flat disks: the bytes of the disk as a file, holes where nothing was ever written, and a descriptor beside it.

``monolithicFlat`` is the form of hosted products, ``vmfs`` that of ESXi; they differ in a word. Neither can have a parent.

Source: VMware "Virtual Disk Format 5.0", "Simple Extents".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from imgstore.blocks import Bytes, ReadableFile, WritableFile
from imgstore.errors import CorruptError, UnsupportedError
from imgstore.vmdk.descriptor import Descriptor
from imgstore.vmdk.link import HeldRun, Link


class FlatLink(Link):
    """A flat disk, opened for reading.

    Raises:
        CorruptError: the file is shorter than the disk.
        UnsupportedError: it has a parent.
    """

    def __init__(self, path: str, file: ReadableFile, descriptor: Descriptor) -> None:
        super().__init__(path, file, descriptor)
        if descriptor.parent_cid is not None:
            raise UnsupportedError(
                f"{path}: is a flat disk with a parent, {descriptor.parent_hint}: nothing would be read from it"
            )
        if file.size < self.capacity:
            raise CorruptError(f"{file.path}: has {file.size} bytes of a disk of {self.capacity}")

    def runs(self, offset: int, length: int) -> Iterator[HeldRun]:
        end = min(offset + length, self.capacity)
        for start, count in self.file.data_ranges(offset, end - offset):
            yield HeldRun(start, count, start)


def write_flat(file: WritableFile, capacity: int, pieces: Iterable[tuple[int, Bytes]]) -> None:
    """Fills an empty file with the bytes of a disk; what no piece has stays a hole.

    A crash leaves a part of it: the descriptor, which makes it a disk, is to be written afterwards.

    Args:
        file: not closed, and not put on stable storage.
        capacity: bytes, a multiple of 512.
        pieces: offset and bytes.

    Raises:
        NoSpaceError: the datastore is full.
    """
    file.truncate(capacity)
    for offset, data in pieces:
        file.pwrite(offset, data)
