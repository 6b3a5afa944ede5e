"""DiskStack: a disk and its parents, whatever their forms, as one block device."""

from __future__ import annotations

import contextlib
import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, Self

from imgstore.blocks import BlockDevice, Extent, ExtentKind, ReadableFile
from imgstore.errors import CorruptError, ImgstoreError, UnsupportedError
from imgstore.vmdk import cowd, grains
from imgstore.vmdk.chain import Chain, check_links, check_range, open_members
from imgstore.vmdk.cowd import CowdLink
from imgstore.vmdk.descriptor import EMBEDDED, EXTENT_KINDS, SIGNATURE, Descriptor
from imgstore.vmdk.flat import FlatLink
from imgstore.vmdk.grains import HeaderFlag
from imgstore.vmdk.hosted import HostedDisk
from imgstore.vmdk.hosted_variants import HostedLink, read_header
from imgstore.vmdk.link import ZEROS, HeldRun, Link
from imgstore.vmdk.sesparse import SeSparseLink
from imgstore.vmdk.stream_optimized import StreamOptimizedLink

MAX_DESCRIPTOR_FILE = 1 << 16
"""Bytes of a descriptor that is a file of its own; ESXi's have about 1 KiB."""

_SEGMENT = 32 << 20
"""Bytes of the device whose map is made at once: what a grain table of a hosted disk has."""

_MAX_CACHED_RUNS = 1 << 18
"""Runs of all maps in memory, at 26 bytes each."""

_NOWHERE = -1
"""Index of the disk of a run that reads as zeros."""

_READERS: dict[str, type[CowdLink | FlatLink | SeSparseLink]] = {
    "monolithicFlat": FlatLink,
    "vmfs": FlatLink,
    "vmfsSparse": CowdLink,
    "seSparse": SeSparseLink,
}
"""Of disks that have their descriptor in a file of its own, by ``createType``."""


class OpenDisks(BlockDevice, Protocol):
    """A disk and its parents, opened for reading: `Chain` and `DiskStack`."""

    @property
    def cid(self) -> int:
        """Content id of the top disk."""
        ...

    @property
    def path(self) -> str:
        """Where the top disk lies in its datastore."""
        ...

    @property
    def paths(self) -> tuple[str, ...]:
        """Where all disks lie, the one without parent first."""
        ...

    def own_ranges(self) -> Iterator[tuple[int, int]]:
        """The (offset, length) runs that the top disk holds itself, ascending: all that can differ from its parent."""
        ...

    def close(self) -> None:
        """Closes all files; allowed more than once."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...


class _Segment(NamedTuple):
    """Where the bytes of a part of the device are: of each run where it begins, its disk, its place there, and where the place begins."""

    starts: array[int]
    disks: array[int]
    places: array[int]
    origins: array[int]


class DiskStack:
    """The disks of a chain, the one without parent first. Reads from several threads are safe.

    The map of a part of the device is made when that is first read, from the tables of all disks; as long as it stays in memory a read
    costs the same at any depth.

    Args:
        links: each the parent of the next. Closed by ``close``.

    Raises:
        CorruptError: a content id, a capacity or a hint does not fit the disk below; the message names both files.
    """

    def __init__(self, links: Sequence[Link]) -> None:
        check_links(links)
        self._links = tuple(links)
        self._segments: OrderedDict[int, _Segment] = OrderedDict()
        self._cached_runs = 0
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._links[-1].capacity

    @property
    def cid(self) -> int:
        """Content id of the top disk: what a child names as its parent's."""
        return self._links[-1].cid

    @property
    def path(self) -> str:
        """Where the top disk, or its descriptor, lies in its datastore."""
        return self._links[-1].path

    @property
    def paths(self) -> tuple[str, ...]:
        """Where the disks, or their descriptors, lie, the one without parent first."""
        return tuple(link.path for link in self._links)

    def own_ranges(self) -> Iterator[tuple[int, int]]:
        """The (offset, length) runs that the top disk holds itself, ascending: all that can differ from its parent."""
        start = end = 0
        for run in self._links[-1].runs(0, self.size):
            if run.offset != end:
                if end > start:
                    yield start, end - start
                start = run.offset
            end = run.offset + run.length
        if end > start:
            yield start, end - start

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes at ``offset``; what no disk has reads as zeros.

        Raises:
            ValueError: the range is not inside the device.
            CorruptError: a disk is damaged.
            UnavailableError: the datastore does not answer.
        """
        check_range(offset, length, self.size)
        parts = []
        for position, count, disk, start, place in self._runs(offset, offset + length):
            parts.append(bytes(count) if disk == _NOWHERE else self._links[disk].read_run(start, place, position - start, count))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        """The runs that tile the range, ascending: DATA where a disk has bytes, HOLE where none has, or one says "zeros"."""
        end = self.size if length is None else offset + length
        check_range(offset, end - offset, self.size)
        position, kind = offset, None
        for start, _, disk, _, _ in self._runs(offset, end):
            new = ExtentKind.HOLE if disk == _NOWHERE else ExtentKind.DATA
            if new is not kind:
                if kind is not None:
                    yield Extent(position, start - position, kind)
                position, kind = start, new
        if kind is not None:
            yield Extent(position, end - position, kind)

    def close(self) -> None:
        """Closes all files; allowed more than once. Nothing can be read afterwards."""
        for link in self._links:
            link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _runs(self, offset: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
        """The runs that tile a range: offset, length, disk, where its place begins on the device, and the place."""
        while offset < end:
            number = offset // _SEGMENT
            starts, disks, places, origins = self._segment(number)
            limit = min(end, (number + 1) * _SEGMENT)
            index = bisect_right(starts, offset) - 1
            while offset < limit:
                stop = min(limit, starts[index + 1]) if index + 1 < len(starts) else limit
                yield offset, stop - offset, disks[index], origins[index], places[index]
                offset = stop
                index += 1

    def _segment(self, number: int) -> _Segment:
        with self._lock:
            segment = self._segments.get(number)
            if segment is not None:
                self._segments.move_to_end(number)
                return segment
        segment = self._merge(number * _SEGMENT, min((number + 1) * _SEGMENT, self.size))
        with self._lock:
            if number not in self._segments:
                self._segments[number] = segment
                self._cached_runs += len(segment.starts)
            while self._cached_runs > _MAX_CACHED_RUNS and len(self._segments) > 1:
                self._cached_runs -= len(self._segments.popitem(last=False)[1].starts)
        return segment

    def _merge(self, start: int, end: int) -> _Segment:
        """Looks from the top disk down until all of a part of the device is found."""
        gaps = [(start, end)]
        found: list[tuple[int, int, int, int]] = []
        for disk in range(len(self._links) - 1, -1, -1):
            gaps = _fill(gaps, self._links[disk].runs(start, end - start), disk, found)
            if not gaps:
                break
        found += [(gap, _NOWHERE, 0, gap) for gap, _ in gaps]
        found.sort()
        starts, disks, places, origins = zip(*found, strict=True)
        return _Segment(array("Q", starts), array("h", disks), array("Q", places), array("Q", origins))


def _fill(
    gaps: list[tuple[int, int]], runs: Iterator[HeldRun], disk: int, found: list[tuple[int, int, int, int]]
) -> list[tuple[int, int]]:
    """Puts into the gaps what a disk has for them; returns those that are left, ascending like the others."""
    run = next(runs, None)
    if run is None:
        return gaps
    left = []
    for start, end in gaps:
        position = start
        while run is not None and run.offset < end:
            stop = run.offset + run.length
            if stop > position:
                if run.offset > position:
                    left.append((position, run.offset))
                    position = run.offset
                found.append((position, _NOWHERE, 0, position) if run.place == ZEROS else (position, disk, run.place, run.offset))
                position = min(stop, end)
            if stop > end:
                break  # it goes on in the next gap
            run = next(runs, None)
        if position < end:
            left.append((position, end))
    return left


def open_disks(open_file: Callable[[str], ReadableFile], path: str) -> OpenDisks:
    """Opens the VMDK at ``path`` and, by their hints, its parents down to the one that has none; any forms, mixed as they may be.

    Disks of the form that stores have make a `Chain`. No file stays open if it fails.

    Args:
        open_file: opens a file of the datastore by its path there (``Datastore.open``).
        path: of the top disk: its descriptor, or the file that has it inside.

    Raises:
        NotFoundError: a file is missing.
        CorruptError: a disk is damaged, a hint leaves the datastore, the chain is a circle, or two disks do not fit together.
        UnsupportedError: a VMDK of a form that is not read, or more than ``MAX_DEPTH`` disks.
    """
    links = open_members(lambda path: open_link(open_file, path), path)
    try:
        if all(isinstance(link, HostedLink) for link in links):
            try:
                return Chain([HostedDisk(link.file) for link in links])
            except UnsupportedError:  # a variant that imgstore does not write
                pass
        return DiskStack(links)
    except ImgstoreError:
        for link in links:
            link.close()
        raise


def parent_cid(open_file: Callable[[str], ReadableFile], path: str) -> int | None:
    """The content id that the VMDK at ``path`` names as its parent's, or None. Raises what `open_link` raises."""
    with contextlib.closing(open_link(open_file, path)) as link:
        return link.parent_cid


def open_link(open_file: Callable[[str], ReadableFile], path: str) -> Link:
    """Opens the VMDK at ``path`` alone, without its parents.

    Raises:
        NotFoundError: a file is missing.
        CorruptError: it is damaged, or no VMDK.
        UnsupportedError: a VMDK of a form that is not read.
    """
    file = open_file(path)
    try:
        start = file.pread(0, len(SIGNATURE))
        if start.startswith(grains.MAGIC):
            header = read_header(file)
            return StreamOptimizedLink(file, header) if header.flags & HeaderFlag.COMPRESSED else HostedLink(file, header)
        if start != SIGNATURE:
            if start.startswith(cowd.MAGIC):
                raise UnsupportedError(f"{path}: is the extent of a vmfsSparse disk: name its descriptor instead")
            raise CorruptError(f"{path}: starts with {start[:8]!r}, as no VMDK does")
        descriptor = read_descriptor(file)
    except BaseException:
        file.close()
        raise
    file.close()
    if not 0 < descriptor.capacity < 1 << 50:
        raise CorruptError(f"{path}: a disk of {descriptor.capacity} sectors")
    if "://" in descriptor.extent_name:
        raise UnsupportedError(f"{path}: its data are in {descriptor.extent_name}, which only the platform reads")
    directory, slash, _ = path.rpartition("/")
    extent = open_file(directory + slash + descriptor.extent_name)
    try:
        return _READERS[descriptor.create_type](path, extent, descriptor)
    except BaseException:
        extent.close()
        raise


def read_descriptor(file: ReadableFile) -> Descriptor:
    """The descriptor that is a file of its own.

    Raises:
        CorruptError: it is none, or damaged.
        UnsupportedError: of a VMDK of a form that is not read.
    """
    if file.size > MAX_DESCRIPTOR_FILE:
        raise CorruptError(f"{file.path}: a descriptor of {file.size} bytes, more than {MAX_DESCRIPTOR_FILE}")
    forms = [form for form in EXTENT_KINDS if form not in EMBEDDED]
    return Descriptor.from_bytes(file.pread(0, MAX_DESCRIPTOR_FILE), file.path, forms, offset=0)
