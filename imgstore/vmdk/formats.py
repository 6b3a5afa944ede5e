"""The forms of VMDK in one table, and how a disk is written in one of them.

Which is for what: ``docs/reference/disk-format.md``; why these variants of each: ``docs/decisions/0021-forms-of-vmdk.md``.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from imgstore.blocks import GRAIN, SECTOR, BlockDevice, ExtentKind, WritableFile
from imgstore.errors import InvalidError, UnsupportedError
from imgstore.vmdk.cowd import check_cowd_capacity, write_cowd
from imgstore.vmdk.descriptor import Descriptor, describe_disk
from imgstore.vmdk.flat import write_flat
from imgstore.vmdk.grains import Layout
from imgstore.vmdk.hosted import HostedDiskWriter
from imgstore.vmdk.stream_optimized import check_stream_capacity, write_stream_optimized

SUFFIX = ".vmdk"

_PIECE = 1 << 20
"""Bytes that are read at once: whole grains, and a share of work for a thread."""

_NO_DATA = bytes(GRAIN)


class DiskFormat(enum.StrEnum):
    """A form of VMDK; the value is what users write."""

    HOSTED = "hosted"
    FLAT = "flat"
    VMFS = "vmfs"
    VMFS_SPARSE = "vmfs-sparse"
    STREAM_OPTIMIZED = "stream-optimized"
    SESPARSE = "sesparse"


@dataclass(frozen=True, slots=True)
class Form:
    """What a form is.

    Attributes:
        create_type: what the descriptor calls it.
        description: for people, in a few words.
        extent: ending of the file that has the data, behind the stem of the disk; None where the descriptor is inside.
        writable: can be written.
        has_parent: a disk of this form can stand on another one.
        streams: can be written to a pipe.
        unit: bytes that a disk has or has not as a whole.
    """

    create_type: str
    description: str
    extent: str | None
    writable: bool
    has_parent: bool
    streams: bool
    unit: int

    def files(self, stem: str) -> list[str]:
        """Names of the files of a disk, in the order in which they are made: the one that makes it a disk is the last."""
        return [*([] if self.extent is None else [stem + self.extent]), stem + SUFFIX]


FORMATS = {
    DiskFormat.HOSTED: Form(
        "monolithicSparse", "sparse, of QEMU and Workstation, and of stores themselves", None, True, True, False, GRAIN
    ),
    DiskFormat.FLAT: Form(
        "monolithicFlat", "all bytes of the disk in a file, of Workstation", "-flat.vmdk", True, False, False, SECTOR
    ),
    DiskFormat.VMFS: Form("vmfs", "all bytes of the disk in a file, of ESXi", "-flat.vmdk", True, False, False, SECTOR),
    DiskFormat.VMFS_SPARSE: Form(
        "vmfsSparse", "redo log of ESXi on VMFS5 and NFS (COWD)", "-delta.vmdk", True, True, False, SECTOR
    ),
    DiskFormat.STREAM_OPTIMIZED: Form(
        "streamOptimized", "deflated, for import and for OVF and OVA", None, True, True, True, GRAIN
    ),
    DiskFormat.SESPARSE: Form("seSparse", "redo log of ESXi on VMFS6", "-sesparse.vmdk", False, True, False, 8 * SECTOR),
}


class ParentDisk(NamedTuple):
    """What a disk has to know of the one below.

    Attributes:
        hint: path of it, or of its descriptor, relative to the directory where the disk will lie.
        cid: content id.
        capacity: bytes.
    """

    hint: str
    cid: int
    capacity: int


def write_disk(
    form: DiskFormat,
    create: Callable[[str], WritableFile],
    stem: str,
    device: BlockDevice,
    ranges: Iterable[tuple[int, int]],
    *,
    cid: int,
    parent: ParentDisk | None = None,
    deletable: bool = True,
) -> list[str]:
    """Writes what a device shows as a disk of some form.

    Holes are kept, and of a disk without parent grains of zeros become such. A crash, and an error, leave files without the last one, or
    a last one that is no disk yet; the files are closed, but not on stable storage: that, and the names, are the caller's.

    Args:
        create: makes an empty file of a name in the directory where the disk will lie.
        stem: name of the disk without ``.vmdk``.
        device: all that the disk is to show, its parent included.
        ranges: (offset, length) of what the disk holds itself, ascending, apart from each other; `data_ranges` for one without parent.
        cid: content id.
        parent: what is read where the disk has nothing.
        deletable: False makes vSphere refuse to delete the disk: for one that others stand on.

    Returns:
        The names of the files that were made.

    Raises:
        InvalidError: the device has a size that such a disk, or one on that parent, cannot have; or a name cannot be written.
        UnsupportedError: disks of this form are only read, or have no parents.
        NoSpaceError: the datastore is full.
    """
    known = FORMATS[form]
    descriptor = _describe(form, stem, device.size, cid, parent, deletable=deletable)
    pieces = read_pieces(device, ranges, known.unit, zeros=parent is not None)
    with contextlib.closing(create(known.files(stem)[0])) as file:
        match form:
            case DiskFormat.HOSTED:
                _write_hosted(file, descriptor, pieces, deletable=deletable)
            case DiskFormat.FLAT | DiskFormat.VMFS:
                write_flat(file, device.size, pieces)
            case DiskFormat.VMFS_SPARSE:
                write_cowd(file, device.size, pieces)
            case DiskFormat.STREAM_OPTIMIZED:
                write_stream_optimized(_appending(file), descriptor, pieces)
            case DiskFormat.SESPARSE:
                raise AssertionError("is not written")
    if known.extent is not None:
        with contextlib.closing(create(stem + SUFFIX)) as file:
            file.pwrite(0, descriptor.to_text())
    return known.files(stem)


def stream_disk(
    form: DiskFormat,
    append: Callable[[bytes], object],
    stem: str,
    device: BlockDevice,
    ranges: Iterable[tuple[int, int]],
    *,
    cid: int,
    parent: ParentDisk | None = None,
    deletable: bool = True,
) -> None:
    """Writes a disk as `write_disk` does, from its first byte to its last, into a pipe for example.

    Args:
        append: writes all that it is given behind what it was given before.

    Raises:
        UnsupportedError: disks of this form cannot be written so.
    """
    known = FORMATS[form]
    if not known.streams:
        streaming = ", ".join(name for name in DiskFormat if FORMATS[name].streams)
        raise UnsupportedError(f"{stem}: a disk of the form {form} cannot be written to a pipe, only {streaming}")
    descriptor = _describe(form, stem, device.size, cid, parent, deletable=deletable)
    write_stream_optimized(append, descriptor, read_pieces(device, ranges, known.unit, zeros=parent is not None))


def data_ranges(device: BlockDevice) -> Iterator[tuple[int, int]]:
    """The (offset, length) runs that are no holes: what a disk without parent that shows the same holds itself."""
    return ((extent.offset, extent.length) for extent in device.extents() if extent.kind is ExtentKind.DATA)


def read_pieces(device: BlockDevice, ranges: Iterable[tuple[int, int]], unit: int, *, zeros: bool) -> Iterator[tuple[int, bytes]]:
    """Reads ranges, widened to whole units, in pieces of at most a MiB; ascending, each byte once.

    Args:
        zeros: give grains of zeros, too.
    """
    done = 0
    for offset, length in ranges:
        start = max(done, offset // unit * unit)
        done = max(start, min(device.size, -(-(offset + length) // unit) * unit))
        while start < done:
            # Pieces end at multiples of a MiB: then all but the first begin with a grain.
            end = min(done, (start // _PIECE + 1) * _PIECE)
            data = device.read(start, end - start)
            if zeros:
                yield start, data
            else:
                yield from _without_zeros(start, data)
            start = end


def _without_zeros(offset: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    """The runs of a piece that has grains with something in them."""
    first = None
    position = 0
    while position < len(data):
        end = min(len(data), position + GRAIN - (offset + position) % GRAIN)
        if data.startswith(_NO_DATA[: end - position], position):
            if first is not None:
                yield offset + first, data[first:position]
                first = None
        elif first is None:
            first = position
        position = end
    if first is not None:
        yield offset + first, data[first:] if first else data


def _appending(file: WritableFile) -> Callable[[bytes], None]:
    """A function that writes to an empty file, each time where the last one ended."""
    end = 0

    def append(data: bytes) -> None:
        nonlocal end
        file.pwrite(end, data)
        end += len(data)

    return append


def _describe(form: DiskFormat, stem: str, capacity: int, cid: int, parent: ParentDisk | None, *, deletable: bool) -> Descriptor:
    """The descriptor of a disk; raises what `write_disk` does of what makes no sense, before anything is made."""
    _check(form, stem, capacity, parent)
    known = FORMATS[form]
    descriptor = describe_disk(
        capacity // SECTOR,
        cid,
        None if parent is None else parent.cid,
        None if parent is None else parent.hint,
        known.files(stem)[0],
        create_type=known.create_type,
        deletable=deletable,
    )
    descriptor.to_text()
    return descriptor


def _check(form: DiskFormat, stem: str, capacity: int, parent: ParentDisk | None) -> None:
    """Raises what `write_disk` raises, before anything is made."""
    known = FORMATS[form]
    if not known.writable:
        raise UnsupportedError(f"{stem}: disks of the form {form} are only read, not written")
    if parent is not None:
        if not known.has_parent:
            raise UnsupportedError(f"{stem}: disks of the form {form} have no parents")
        # ESXi wants all disks of a chain to be of one size; QEMU, and with it the disks of containers, do not.
        if capacity < parent.capacity or (form is not DiskFormat.HOSTED and capacity != parent.capacity):
            raise InvalidError(f"{stem}: is a disk of {capacity} bytes, its parent {parent.hint} one of {parent.capacity}")
    match form:
        case DiskFormat.HOSTED:
            Layout.plan(capacity)
        case DiskFormat.VMFS_SPARSE:
            check_cowd_capacity(capacity, stem)
        case DiskFormat.STREAM_OPTIMIZED:
            check_stream_capacity(capacity, stem)
        case _:
            if capacity <= 0 or capacity % SECTOR:
                raise InvalidError(f"{stem}: disk of {capacity} bytes: must be a multiple of {SECTOR} bytes")


def _write_hosted(file: WritableFile, descriptor: Descriptor, pieces: Iterable[tuple[int, bytes]], *, deletable: bool) -> None:
    writer = HostedDiskWriter(
        file,
        capacity=descriptor.capacity * SECTOR,
        cid=descriptor.cid,
        parent_cid=descriptor.parent_cid,
        parent_hint=descriptor.parent_hint,
        extent_name=descriptor.extent_name,
        deletable=deletable,
    )
    for offset, data in pieces:
        writer.write_grains(offset // GRAIN, data)
    writer.seal()
