"""Chain: a disk and its parents, read as one block device through one merged map."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

from imgstore.blocks import GRAIN, SECTOR, BlockMap, Extent, ExtentKind, ReadableFile, Run
from imgstore.errors import CorruptError, ImgstoreError, UnsupportedError
from imgstore.vmdk.hosted import HostedDisk, open_disk, read_whole
from imgstore.vmdk.link import Member

MAX_DEPTH = 1024
"""Disks in a chain: a guard against endless ones. Images have at most some 127 layers."""

AnyDisk = TypeVar("AnyDisk", bound=Member)


ZEROS = memoryview(bytes(GRAIN))


class Chain:
    """The disks of a chain, scratch first, as one BlockDevice. Reads from several threads are safe.

    A read costs the same at any depth. Chains that came out of one another by ``with_disk`` share open files: closing one closes
    the files of all.

    Args:
        disks: from the disk without parent to the top one, each the parent of the next. Closed by ``close``.

    Raises:
        CorruptError: a content id, a capacity or a hint does not fit the disk below; the message names both files.
        UnsupportedError: a disk is larger than its parent, which ends within a grain.
    """

    def __init__(self, disks: Sequence[HostedDisk]) -> None:
        if not disks:
            raise ValueError("a chain needs a disk")
        check_links(disks)
        for parent, child in pairwise(disks):
            _check_end(parent.path, parent.capacity, child)
        self._files: tuple[ReadableFile, ...] = tuple(disk.file for disk in disks)
        self._below: Chain | None = None
        block_map = BlockMap()
        for index, disk in enumerate(disks):
            if index and index == len(disks) - 1:
                below = disks[index - 1]
                self._below = Chain._of(self._files[:-1], below.capacity, below.cid, block_map)
            block_map = block_map.child(index, disk.grain_tables())
        self._size = disks[-1].capacity
        self._cid = disks[-1].cid
        self._map = block_map

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._size

    @property
    def cid(self) -> int:
        """Content id of the top disk: what a child names as its parent's."""
        return self._cid

    @property
    def path(self) -> str:
        """Where the top disk's file lies in its datastore."""
        return self._files[-1].path

    @property
    def paths(self) -> tuple[str, ...]:
        """Where the files lie, scratch first."""
        return tuple(file.path for file in self._files)

    @property
    def files(self) -> tuple[ReadableFile, ...]:
        """The open files, scratch first."""
        return self._files

    @property
    def block_map(self) -> BlockMap:
        """Which of ``files`` holds each grain. Not to be changed: copy it."""
        return self._map

    def with_child(self, disk: HostedDisk) -> Chain:
        """The chain that has ``disk`` on top; its tables are read, those below are not read again.

        Args:
            disk: closed by ``close`` from now on, and if this fails.

        Raises:
            CorruptError: it was not made on top of this chain's top disk, or is damaged.
        """
        try:
            _check_link(self.path, self._cid, self._size, disk)
            _check_end(self.path, self._size, disk)
            block_map = self._map.child(len(self._files), disk.grain_tables())
        except ImgstoreError:
            disk.close()
            raise
        return Chain._of((*self._files, disk.file), disk.capacity, disk.cid, block_map)

    def with_disk(self, file: ReadableFile, cid: int, block_map: BlockMap) -> Chain:
        """The chain that has one more disk on top, without reading anything; what ``SnapshotDevice.chain`` calls.

        Args:
            file: the new disk; closed by ``close`` from now on.
            cid: its content id.
            block_map: where the new chain's grains are; the new disk has index ``len(self.files)``.
        """
        return Chain._of((*self._files, file), self._size, cid, block_map)

    @classmethod
    def _of(cls, files: tuple[ReadableFile, ...], size: int, cid: int, block_map: BlockMap) -> Chain:
        chain = cls.__new__(cls)
        chain._files, chain._size, chain._cid, chain._map = files, size, cid, block_map
        chain._below = None
        return chain

    @classmethod
    def of_scratch(cls, file: ReadableFile, size: int, cid: int, block_map: BlockMap) -> Chain:
        """The chain of one disk that was just written, without reading anything."""
        return cls._of((file,), size, cid, block_map)

    @property
    def below(self) -> Chain:
        """The chain without its top disk, of a chain that was opened; it shares the open files.

        Raises:
            ValueError: the chain has one disk, or was not opened but came out of another one.
        """
        if self._below is None:
            raise ValueError(f"{self.path}: nothing is known of a disk below")
        return self._below

    def own_ranges(self) -> Iterator[tuple[int, int]]:
        """The (offset, length) runs that the top disk holds itself, ascending: all that can differ from its parent."""
        disk = len(self._files) - 1
        start = end = 0
        for number, table in self._map.tables(disk):
            for position in (position for position, sector in enumerate(table) if sector):
                grain = number * BlockMap.SEGMENT + position
                if grain != end:
                    if end > start:
                        yield start * GRAIN, (end - start) * GRAIN
                    start = grain
                end = grain + 1
        if end > start:
            yield start * GRAIN, (end - start) * GRAIN

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes at ``offset``; what no disk has reads as zeros.

        Raises:
            ValueError: the range is not inside the device.
            CorruptError: a disk's file became shorter.
            UnavailableError: the datastore does not answer.
        """
        check_range(offset, length, self._size)
        return read_mapped(self._map, self._files, offset, length)

    def read_ready_into(self, offset: int, buffer: memoryview) -> bool:
        """As ``read``, of what is in memory; False where that would have to wait for the storage, or would fail there."""
        length = len(buffer)
        check_range(offset, length, self._size)
        grain, start = divmod(offset, GRAIN)
        if start + length > GRAIN:
            return fill_ready(self._map.runs(grain, -(-(offset + length) // GRAIN) - grain), self._files, offset, buffer)
        found = self._map.find(grain)  # most reads of guests: one lookup
        if found is None:
            buffer[:] = ZEROS[:length]
            return True
        disk, sector = found
        return self._files[disk].read_ready_into(sector * SECTOR + start, buffer)

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        """The runs that tile the range, ascending: DATA where a disk has the grain, else HOLE."""
        end = self._size if length is None else offset + length
        check_range(offset, end - offset, self._size)
        return mapped_extents(self._map, offset, end)

    def close(self) -> None:
        """Closes all files; allowed more than once. Nothing can be read afterwards."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Chain:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def open_chain(open_file: Callable[[str], ReadableFile], path: str) -> Chain:
    """Opens the disk at ``path`` and, by their hints, its parents down to the one that has none.

    Takes time by grain tables in use. No file stays open if it fails.

    Args:
        open_file: opens a file of the datastore by its path there (``Datastore.open``).
        path: of the top disk.

    Raises:
        NotFoundError: a file is missing.
        CorruptError: a disk is damaged, a hint leaves the datastore, the chain is a circle, or two disks do not fit together.
        UnsupportedError: a VMDK of another variant, or more than ``MAX_DEPTH`` disks.
    """
    disks = open_members(lambda path: open_disk(open_file(path)), path)
    try:
        return Chain(disks)
    except ImgstoreError:
        for disk in disks:
            disk.close()
        raise


def open_members(open_member: Callable[[str], AnyDisk], path: str) -> list[AnyDisk]:
    """Opens the disk at ``path`` and, by their hints, its parents down to the one that has none; that one is the first of the list.

    No disk stays open if it fails.

    Raises:
        CorruptError: a hint leaves the datastore, or the chain is a circle; and what ``open_member`` raises.
        UnsupportedError: more than ``MAX_DEPTH`` disks.
    """
    disks: list[AnyDisk] = []
    seen: set[str] = set()
    try:
        following: str | None = posixpath.normpath(path)
        while following is not None:
            if following in seen:
                raise CorruptError(f"{disks[-1].path}: its parent {following} is in the chain already: the chain is a circle")
            if len(seen) == MAX_DEPTH:
                raise UnsupportedError(f"{path}: more than {MAX_DEPTH} disks in a chain")
            seen.add(following)
            disks.append(open_member(following))
            following = parent_path(disks[-1])
    except ImgstoreError:
        for disk in disks:
            disk.close()
        raise
    return disks[::-1]


def parent_path(disk: Member) -> str | None:
    """Where the parent of ``disk`` lies in the datastore, by the hint; None if it has no parent.

    Raises:
        CorruptError: the hint is absolute or leaves the datastore.
    """
    hint = disk.parent_hint
    if hint is None:
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(disk.path), hint))
    if hint.startswith("/") or path.startswith("../") or path in (".", "..") or any(letter in hint for letter in ":\\\0"):
        raise CorruptError(f"{disk.path}: parent hint {hint!r} is not a relative path inside the datastore")
    return path


def check_links(disks: Sequence[Member]) -> None:
    """Proves that each disk was made on top of the one before, and the first on none.

    Raises:
        CorruptError: a content id, a capacity or a hint does not fit the disk below; the message names both files.
    """
    if disks[0].parent_cid is not None:
        raise CorruptError(f"{disks[0].path}: has a parent, {disks[0].parent_hint}, which is not in the chain")
    for parent, child in pairwise(disks):
        _check_link(parent.path, parent.cid, parent.capacity, child)


def _check_link(path: str, cid: int, capacity: int, child: Member) -> None:
    """Proves that ``child`` was made on top of the disk that the first three describe."""
    if child.parent_cid != cid:
        named = "no parent" if child.parent_cid is None else f"parent content id {child.parent_cid:08x}"
        raise CorruptError(f"{child.path}: has {named}, but {path} has content id {cid:08x}")
    # QEMU reads zeros past the end of a smaller parent, and so do we; a container's disk may be larger than its image's. Layers
    # are all of one size, which ``disks`` sees to.
    if child.capacity < capacity:
        raise CorruptError(f"{child.path}: is a disk of {child.capacity} bytes, but its parent {path} one of {capacity}")
    if parent_path(child) != posixpath.normpath(path):
        raise CorruptError(f"{child.path}: its hint {child.parent_hint!r} does not name its parent {path}")


def _check_end(path: str, capacity: int, child: HostedDisk) -> None:
    """Proves that a map of whole grains can show the end of the parent that the first two describe."""
    if child.capacity > capacity and capacity % GRAIN:
        raise UnsupportedError(f"{child.path}: its smaller parent {path} of {capacity} bytes ends within a grain of {GRAIN}")


def check_range(offset: int, length: int, size: int) -> None:
    """Raises ValueError unless the range is inside a device of ``size`` bytes."""
    if offset < 0 or length < 0 or offset + length > size:
        raise ValueError(f"bytes {offset}..{offset + length} are not inside a device of {size} bytes")


def read_mapped(block_map: BlockMap, files: Sequence[ReadableFile], offset: int, length: int) -> bytes:
    """Reads a range through a map, neighbours in one file by one pread."""
    if not length:
        return b""
    first = offset // GRAIN
    return read_runs(block_map.runs(first, -(-(offset + length) // GRAIN) - first), files, offset, length)


def read_runs(runs: Iterable[Run], files: Sequence[ReadableFile], offset: int, length: int) -> bytes:
    """Reads a range that these runs of a map tile."""
    end = offset + length
    parts: list[bytes] = []
    for run in runs:
        start = max(offset, run.grain * GRAIN)
        take = min(end, (run.grain + run.length) * GRAIN) - start
        if run.disk is None:
            parts.append(bytes(take))
        else:
            parts.append(read_whole(files[run.disk], run.sector * SECTOR + start - run.grain * GRAIN, take))
    return parts[0] if len(parts) == 1 else b"".join(parts)


def fill_ready(runs: Iterable[Run], files: Sequence[ReadableFile], offset: int, buffer: memoryview) -> bool:
    """As `read_runs`, into a buffer, of what is in memory; False where that would have to wait for the storage."""
    end = offset + len(buffer)
    for run in runs:
        first = run.grain * GRAIN
        start, stop = max(offset, first), min(end, first + run.length * GRAIN)
        part = buffer[start - offset : stop - offset]
        if run.disk is None:
            part[:] = bytes(stop - start)
        elif not files[run.disk].read_ready_into(run.sector * SECTOR + start - first, part):
            return False
    return True


def mapped_extents(block_map: BlockMap, offset: int, end: int) -> Iterator[Extent]:
    """The extents of a range by a map, neighbours of one kind as one."""
    first = offset // GRAIN
    position, kind = offset, None
    for run in block_map.runs(first, -(-end // GRAIN) - first if end > offset else 0):
        new = ExtentKind.HOLE if run.disk is None else ExtentKind.DATA
        if new is kind:
            continue
        start = max(offset, run.grain * GRAIN)
        if kind is not None:
            yield Extent(position, start - position, kind)
        position, kind = start, new
    if kind is not None:
        yield Extent(position, end - position, kind)
