"""Disk files: VMDKs as plain files of this machine, outside of stores, opened with their parents and written in any form."""

from __future__ import annotations

import contextlib
import heapq
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from imgstore.blocks import GRAIN, BlockDevice, ReadableFile, WritableFile
from imgstore.datastores.datastore import named_errors
from imgstore.datastores.local_files import READ, LocalLiveFile
from imgstore.errors import AlreadyExistsError, InvalidError
from imgstore.vmdk.child import random_cid
from imgstore.vmdk.descriptor import is_reserved
from imgstore.vmdk.formats import FORMATS, SUFFIX, DiskFormat, ParentDisk, data_ranges, stream_disk, write_disk
from imgstore.vmdk.stack import OpenDisks, open_disks, parent_cid

_COMPARED = 1 << 20
"""Bytes of two disks that are read at once to see where they differ: whole grains."""


def open_disk_files(path: Path) -> OpenDisks:
    """Opens the VMDK at ``path`` with its parents, by their hints, and locks them as QEMU does who reads.

    Links of the file system are followed to ``path``, but not where a VMDK names a file.

    Raises:
        NotFoundError: a file is missing.
        InUseError: a running guest, or another imgstore, writes one of them.
        CorruptError: a disk is damaged, or two of them do not fit together.
        UnsupportedError: a VMDK of a form that is not read.
    """
    return open_disks(_open_file, os.path.realpath(path))


def convert_disk(source: Path, target: Path | BinaryIO, form: DiskFormat, *, child_of: Path | None = None) -> list[Path]:
    """Writes what a VMDK shows, its parents included, as one disk, which keeps the content id.

    After any error nothing is left of it; after a crash perhaps files whose names begin with a dot and end in ``.part``.

    Args:
        source: any VMDK.
        target: of the new disk, ends in ``.vmdk``; other files it has come beside it. Or a pipe, for a form that can be streamed.
        child_of: a disk that the new one is to stand on: then it holds only where the two differ.

    Returns:
        The files that were made.

    Raises:
        AlreadyExistsError: there is something of one of the names.
        InvalidError: the size of the source, or a name, is none that a disk of this form can have.
        UnsupportedError: the form is only read, has no parents, or cannot be streamed.
        NoSpaceError: the file system is full.
    """
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(open_disk_files(source))
        parent, below = None, None
        ranges = data_ranges(device)
        if child_of is not None:
            below = stack.enter_context(open_disk_files(child_of))
            if parent_cid(_open_file, device.path) == below.cid:
                ranges = device.own_ranges()
            else:
                ranges = _joined(data_ranges(device), data_ranges(below))
            ranges = _differences(device, below, ranges)
            directory = os.path.realpath(target.parent) if isinstance(target, Path) else os.getcwd()  # noqa: PTH109
            parent = ParentDisk(os.path.relpath(below.path, directory), below.cid, below.size)
        return write_disk_files(target, form, device, ranges, cid=device.cid, parent=parent)


def write_disk_files(
    target: Path | BinaryIO,
    form: DiskFormat,
    device: BlockDevice,
    ranges: Iterable[tuple[int, int]],
    *,
    cid: int,
    parent: ParentDisk | None = None,
) -> list[Path]:
    """Writes what a device shows as a disk; its files get their names when all of them are on stable storage.

    Args, what is returned and raised, and what a crash leaves: as of `convert_disk` and ``vmdk.formats.write_disk``.
    """
    if is_reserved(cid):  # of other programs
        cid = random_cid()
    if not isinstance(target, Path):
        stream_disk(form, target.write, "disk", device, ranges, cid=cid, parent=parent)
        return []
    if not target.name.endswith(SUFFIX) or target.name == SUFFIX:
        raise InvalidError(f"{target}: the name of a disk ends in {SUFFIX}")
    stem = target.name.removesuffix(SUFFIX)
    with _appearing(target.parent, FORMATS[form].files(stem)) as create:
        names = write_disk(form, create, stem, device, ranges, cid=cid, parent=parent)
    return [target.parent / name for name in names]


@contextlib.contextmanager
def _appearing(directory: Path, names: list[str]) -> Iterator[Callable[[str], WritableFile]]:
    """Gives a function that makes files, which get their names when the block ends well, and are removed when it does not.

    They get them in the order in which they were made: the last one is what makes a disk of them.
    """
    for name in names:
        if os.path.lexists(directory / name):
            raise AlreadyExistsError(f"{directory / name}: exists already")
    parts: dict[str, Path] = {}
    named: list[Path] = []

    def create(name: str) -> WritableFile:
        part = directory / f".{name}.{os.getpid()}.part"
        with named_errors(str(directory / name), "make it"):
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        parts[name] = part
        return LocalLiveFile(str(directory / name), descriptor)

    try:
        yield create
        for name, part in parts.items():
            with named_errors(str(directory / name), "put it on stable storage"):
                _sync(part)
        for name, part in parts.items():
            with named_errors(str(directory / name), "give it its name"):
                _link(part, directory / name)
            named.append(directory / name)
        with named_errors(str(directory), "put it on stable storage"):
            _sync(directory)
    except BaseException:
        for path in named:
            path.unlink(missing_ok=True)
        raise
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(part: Path, path: Path) -> None:
    try:
        os.link(part, path)  # unlike a rename this replaces nothing
    except PermissionError:  # EPERM: the file system has no links
        part.rename(path)


def _open_file(path: str) -> ReadableFile:
    with named_errors(path, "open it"):
        file = LocalLiveFile(path, os.open(path, READ))
    try:
        with named_errors(path, "lock it"):
            file.lock(writable=False)
    except BaseException:
        file.close()
        raise
    return file


def _joined(*several: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """What is in any of them, each of which ascends; what touches as one."""
    start = end = 0
    for offset, length in heapq.merge(*several):
        if offset > end:
            if end > start:
                yield start, end - start
            start = offset
        end = max(end, offset + length)
    if end > start:
        yield start, end - start


def _differences(device: BlockDevice, below: BlockDevice, ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The grains touched by ``ranges`` in which two devices differ; what lies past the end of ``below`` is zeros there."""
    position = 0
    for offset, length in ranges:
        position = max(position, offset // GRAIN * GRAIN)
        end = min(device.size, -(-(offset + length) // GRAIN) * GRAIN)
        while position < end:
            count = min(_COMPARED, end - position)
            ours = device.read(position, count)
            shared = max(0, min(count, below.size - position))
            theirs = (below.read(position, shared) if shared else b"").ljust(count, b"\0")
            if ours != theirs:
                for start in range(0, count, GRAIN):
                    stop = min(start + GRAIN, count)
                    if ours[start:stop] != theirs[start:stop]:
                        yield position + start, stop - start
            position += count
