"""Layer copies: the files of a layer on their way to another datastore, compared with their checksums before anybody sees them."""

from __future__ import annotations

import hashlib
import posixpath
from array import array
from collections.abc import Callable, Iterator, Sequence

from crc32c import crc32c

from imgstore import layout
from imgstore.blocks import GRAIN, SECTOR, Extent
from imgstore.datastores.datastore import Staging, StoredFile
from imgstore.errors import CorruptError
from imgstore.markers import DiskRecord, RecipeRecord
from imgstore.stop import Stop
from imgstore.vmdk.chain import Chain
from imgstore.vmdk.check import check_disk
from imgstore.vmdk.cowd import write_cowd
from imgstore.vmdk.descriptor import describe_disk
from imgstore.vmdk.formats import FORMATS, DiskFormat, ParentDisk, data_ranges, read_pieces, stream_disk
from imgstore.vmdk.grains import numbers_from_bytes, numbers_to_bytes

_PIECE = 1 << 20
"""Bytes that are read, compared and written at once: as much as goes past the page cache in one write."""

_KEEP_GIL = 0
"""The sum of a grain takes 5 µs; to let other threads have the interpreter for that, and to get it back, takes longer."""


def copy_disk(file: StoredFile, staging: Staging, name: str, sums: bytes, stop: Stop, tell: Callable[[int], None]) -> None:
    """Copies a sealed disk, whose grains end the file in the order of their sums; holes stay holes.

    Args:
        tell: is given how many bytes of the grains have come.

    Raises:
        CorruptError: a grain has another sum, or what the file has before its grains makes no sense.
    """
    first = file.size - len(sums) // 4 * GRAIN
    if first < 0:
        raise CorruptError(f"{file.path}: has {file.size} bytes, too few for {len(sums) // 4} grains")
    copy = staging.create(name)
    if not copy.clone(file):
        copy.truncate(file.size)
        for start, length in file.data_ranges(0, first):
            for offset in range(start, start + length, _PIECE):
                copy.pwrite(offset, _read(file, offset, min(_PIECE, start + length - offset)))
        wanted = numbers_from_bytes(sums)
        for offset in range(first, file.size, _PIECE):
            stop.check()
            data = _read(file, offset, min(_PIECE, file.size - offset))
            _compare(file.path, offset, data, wanted[(offset - first) // GRAIN :][: _PIECE // GRAIN])
            copy.pwrite(offset, data)
            tell(offset + len(data) - first)
    for finding in check_disk(copy):
        place = "" if finding.offset is None else f" at byte {finding.offset}"
        raise CorruptError(f"{file.path}{place}: {finding.problem}")
    copy.close()


def _compare(path: str, offset: int, data: bytes, sums: Sequence[int]) -> None:
    view = memoryview(data)
    for position, wanted in enumerate(sums):
        found = crc32c(view[position * GRAIN : (position + 1) * GRAIN], gil_release_mode=_KEEP_GIL)
        if found != wanted:
            raise CorruptError(f"{path} at byte {offset + position * GRAIN}: grain has CRC-32C {found:08x}, not {wanted:08x}")


def copy_recipe(file: StoredFile, staging: Staging, record: RecipeRecord) -> None:
    """Copies the recipe of a layer.

    Raises:
        CorruptError: it is not what its record says.
    """
    if file.size != record.size:
        raise CorruptError(f"{file.path}: has {file.size} bytes, its marker says {record.size}")
    digest = hashlib.sha256()
    copy = staging.create(record.file)
    for offset in range(0, file.size, _PIECE):
        data = _read(file, offset, min(_PIECE, file.size - offset))
        digest.update(data)
        copy.pwrite(offset, data)
    if (found := f"sha256:{digest.hexdigest()}") != record.digest:
        raise CorruptError(f"{file.path}: its digest is {found}, its marker says {record.digest}")
    copy.close()


def put_file(staging: Staging, name: str, data: bytes) -> None:
    """Puts a small file among those of a layer."""
    file = staging.create(name)
    file.pwrite(0, data)
    file.close()


def _read(file: StoredFile, offset: int, length: int) -> bytes:
    data = file.pread(offset, length)
    if len(data) != length:
        raise CorruptError(f"{file.path} at byte {offset}: {length} bytes are needed, the file ends after {len(data)}")
    return data


def write_single(
    chain: Chain,
    sums: Sequence[array[int]],
    staging: Staging,
    stem: str,
    form: DiskFormat,
    stop: Stop,
    tell: Callable[[int], None],
) -> DiskRecord:
    """Writes what a chain shows as one disk without parent, of a form that is written from its first byte to its last.

    For ``vmfs`` it is what the platform makes the disk of (`disk_forms.import_disk`).

    Args:
        sums: of each disk of the chain, in the order of its file.
        stem: the hex digits of the chain id of the layer.
        tell: is given how many bytes of grains are read.

    Raises:
        CorruptError: a grain is not what its checksum says.
        NoSpaceError: the datastore is full.
    """
    imports = form is DiskFormat.VMFS
    name = layout.disk_file(stem)
    file = staging.create(layout.import_file(stem) if imports else name)
    digest, size = hashlib.sha256(), 0

    def append(data: bytes) -> None:
        nonlocal size
        file.pwrite(size, data)
        digest.update(data)
        size += len(data)

    ranges = list(data_ranges(chain))
    # Deleted with a machine that has it, it would be gone for all others.
    written = DiskFormat.STREAM_OPTIMIZED if imports else form
    stream_disk(written, append, stem, _ProvedChain(chain, sums, stop, tell), ranges, cid=chain.cid, deletable=False)
    file.close()
    grains = sum(length for _, length in ranges) // GRAIN
    if imports:
        return DiskRecord(name, chain.size, grains, f"{chain.cid:08x}", "", "", merged=True, format=form)
    return DiskRecord(name, size, grains, f"{chain.cid:08x}", "", f"sha256:{digest.hexdigest()}", merged=True, format=form)


def write_redo_log(
    chain: Chain,
    sums: Sequence[array[int]],
    staging: Staging,
    stem: str,
    blank: ParentDisk,
    stop: Stop,
    tell: Callable[[int], None],
    *,
    merged: bool,
) -> DiskRecord:
    """Writes the top disk of a chain as a ``vmfs-sparse`` one, over its parent as that will lie beside it.

    Args:
        sums: of each disk of the chain, in the order of its file.
        stem: the hex digits of the chain id of the layer, or ``scratch``.
        blank: what a disk without parent stands on there.
        tell: is given how many bytes of grains are read.
        merged: write all that the chain shows, over ``blank``.

    Raises:
        CorruptError: a grain is not what its checksum says.
        InvalidError: such disks cannot be as large.
        NoSpaceError: the datastore is full.
    """
    is_lowest = merged or len(chain.files) == 1
    if is_lowest:
        parent, ranges = blank, list(data_ranges(chain))
    else:
        parent = ParentDisk(posixpath.basename(chain.below.path), chain.below.cid, chain.size)
        ranges = list(chain.own_ranges())
    name = layout.delta_file(stem)
    delta = staging.create(name)
    write_cowd(delta, chain.size, read_pieces(_ProvedChain(chain, sums, stop, tell), ranges, GRAIN, zeros=True))
    digest, size = hashlib.sha256(), delta.size
    for offset in range(0, size, _PIECE):
        digest.update(delta.pread(offset, _PIECE))
    delta.close()
    capacity = chain.size // SECTOR
    descriptor = describe_disk(
        capacity,
        chain.cid,
        parent.cid,
        parent.hint,
        name,
        create_type=FORMATS[DiskFormat.VMFS_SPARSE].create_type,
        deletable=False,
    )
    put_file(staging, layout.disk_file(stem), descriptor.to_text())
    return DiskRecord(
        layout.disk_file(stem),
        size,
        sum(length for _, length in ranges) // GRAIN,
        f"{chain.cid:08x}",
        "",
        f"sha256:{digest.hexdigest()}",
        merged=is_lowest,
        format=DiskFormat.VMFS_SPARSE,
        origin="" if is_lowest else f"sha256:{hashlib.sha256(numbers_to_bytes(sums[-1])).hexdigest()}",
    )


class _ProvedChain:
    """A chain whose every grain is compared with its checksum when it is read. Reads whole grains only.

    Args:
        tell: is given how many bytes have been read.
    """

    def __init__(self, chain: Chain, sums: Sequence[array[int]], stop: Stop, tell: Callable[[int], None]) -> None:
        self._chain = chain
        self._sums = sums
        self._stop = stop
        self._tell = tell
        self._done = 0
        self._firsts = [file.size - len(each) * GRAIN for file, each in zip(chain.files, sums, strict=True)]

    @property
    def size(self) -> int:
        return self._chain.size

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        return self._chain.extents(offset, length)

    def read(self, offset: int, length: int) -> bytes:
        data = self._chain.read(offset, length)
        for run in self._chain.block_map.runs(offset // GRAIN, length // GRAIN):
            if run.disk is None:
                continue
            place = run.sector * SECTOR
            index = (place - self._firsts[run.disk]) // GRAIN
            start = run.grain * GRAIN - offset
            wanted = self._sums[run.disk][index : index + run.length]
            _compare(self._chain.files[run.disk].path, place, data[start : start + run.length * GRAIN], wanted)
        self._stop.check()
        self._done += length
        self._tell(self._done)
        return data
