"""Other programs' view of a VMDK chain: QEMU, libvmdk, dissect.hypervisor, and the grain tables read by the letter of the specification.

A virtual disk of 32 GiB holds little. So the whole is compared as: every grain that any disk of the chain has, byte for byte, and
samples of everything else, which must read as zeros.
"""

from __future__ import annotations

import array
import os
import random
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import pyvmdk
from dissect.hypervisor.disk.vmdk import VMDK

from tests.judges.tree import data_runs
from tests.tools import need, run

GRAIN = 1 << 16
SECTOR = 512
_PIECE = 64 * GRAIN
_TABLE_SPAN = 512 * GRAIN

Read = Callable[[int, int], bytes]
"""Offset and length in bytes to bytes of the virtual disk."""


def check(disk: Path) -> None:
    """``qemu-img check`` finds nothing."""
    need("qemu-img")
    run("qemu-img", "check", "-q", "-f", "vmdk", disk)


def convert(disk: Path, raw: Path) -> None:
    """Writes the contents of a disk and its parents to a sparse raw file, by QEMU."""
    need("qemu-img")
    run("qemu-img", "convert", "-q", "-f", "vmdk", "-O", "raw", disk, raw)


def own_grains(disk: Path) -> list[tuple[int, int, int]]:
    """The runs (offset on the virtual disk, offset in the file, length) that a hosted sparse disk stores itself, in bytes, ascending.

    Read straight from the structures of VMware's "Virtual Disk Format 1.1": header, grain directory, grain tables.
    """
    with disk.open("rb") as file:
        header = file.read(SECTOR)
        magic, _, _, capacity, grain_size, _, _, entries, _, directory_sector = struct.unpack_from("<4sIIQQQQIQQ", header)
        assert magic == b"KDMV", f"{disk}: magic is {magic!r}"
        assert grain_size * SECTOR == GRAIN, f"{disk}: a grain is {grain_size} sectors"
        tables = -(-capacity // (grain_size * entries))
        directory = _u32(file.fileno(), directory_sector * SECTOR, tables)
        runs: list[tuple[int, int, int]] = []
        for number, table_sector in enumerate(directory):
            if table_sector == 0:
                continue
            table = _u32(file.fileno(), table_sector * SECTOR, entries)
            for index, sector in enumerate(table) if any(table) else ():
                if sector > 1:
                    _append(runs, (number * entries + index) * GRAIN, sector * SECTOR)
                assert sector != 1, f"{disk}: grain {number * entries + index} is a zeroed grain"
    return runs


def _u32(descriptor: int, offset: int, count: int) -> array.array[int]:
    values = array.array("I")
    values.frombytes(os.pread(descriptor, 4 * count, offset))
    assert len(values) == count, f"a table of {count} entries at byte {offset} ends after {len(values)}"
    return values


def _append(runs: list[tuple[int, int, int]], offset: int, stored: int) -> None:
    if runs:
        start, first, length = runs[-1]
        if start + length == offset and first + length == stored:
            runs[-1] = (start, first, length + GRAIN)
            return
    runs.append((offset, stored, GRAIN))


def apply(disk: Path, raw: Path) -> None:
    """Writes what one disk stores itself over a raw file that holds its parent's contents; makes the file for a disk without parent."""
    with disk.open("rb") as source, open(raw, "r+b" if raw.exists() else "w+b") as sink:  # noqa: PTH123
        header = source.read(20)
        sink.truncate(struct.unpack_from("<Q", header, 12)[0] * SECTOR)
        for offset, stored, length in own_grains(disk):
            _copy(source.fileno(), stored, sink.fileno(), offset, length)


def _copy(source: int, start: int, sink: int, offset: int, length: int) -> None:
    while length:
        copied = os.copy_file_range(source, sink, length, start, offset)
        assert copied, f"the disk ends {length} bytes before the end of its grains"
        start, offset, length = start + copied, offset + copied, length - copied


@contextmanager
def libvmdk(chain: Sequence[Path]) -> Iterator[Read]:
    """libvmdk's reading of a chain, first disk first. It opens no parents by itself and refuses one with another CID."""
    with ExitStack() as stack:
        parent = None
        for disk in chain:
            handle = pyvmdk.handle()
            handle.open(str(disk))
            stack.callback(handle.close)
            handle.open_extent_data_files()
            if parent is not None:
                handle.set_parent(parent)
            parent = handle
        assert parent is not None
        yield lambda offset, length: parent.read_buffer_at_offset(length, offset)


@contextmanager
def dissect(top: Path) -> Iterator[Read]:
    """dissect.hypervisor's reading of a chain; it follows the hints by itself."""
    with ExitStack() as stack:

        class KeptPath(type(top)):  # type: ignore[misc]  # dissect closes none of the files that it opens by their paths
            def open(self, *words: object, **options: object) -> IO[bytes]:
                return stack.enter_context(super().open(*words, **options))

        disk = VMDK(KeptPath(top))

        def read(offset: int, length: int) -> bytes:
            disk.seek(offset)
            return bytes(disk.read(length))

        yield read


def assert_reads_equal(raw: Path, chain: Iterable[Path], readers: dict[str, Read]) -> None:
    """Fails where a reader gives other bytes than the raw file that QEMU made of the same chain.

    Every grain that one of the disks stores is read whole; of the rest each reader is asked for the ends of every grain table's span
    and for random places, and so is the raw file.
    """
    grains = {offset + step for disk in chain for offset, _, length in own_grains(disk) for step in range(0, length, GRAIN)}
    size = raw.stat().st_size
    with raw.open("rb") as file:
        for offset, length in data_runs(file.fileno(), size):
            lost = [grain for grain in range(offset, offset + length, GRAIN) if grain not in grains]
            assert not lost, f"{raw} has data at byte {lost[0]}, where no disk of the chain stores any"
        for offset, length in [*_pieces(sorted(grains)), *_samples(grains, size)]:
            expected = os.pread(file.fileno(), length, offset)
            for name, read in readers.items():
                actual = read(offset, length)
                if actual != expected:
                    pairs = enumerate(zip(expected, actual, strict=False))
                    at = offset + next((index for index, (left, right) in pairs if left != right), len(actual))
                    raise AssertionError(
                        f"{name} differs from {raw} at byte {at}; it read {len(actual)} of {length} bytes at {offset}"
                    )


def _pieces(grains: Iterable[int]) -> Iterator[tuple[int, int]]:
    start = stop = 0
    for grain in grains:
        if grain == stop and stop - start < _PIECE:
            stop += GRAIN
            continue
        if stop > start:
            yield start, stop - start
        start, stop = grain, grain + GRAIN
    if stop > start:
        yield start, stop - start


def _samples(grains: set[int], size: int) -> Iterator[tuple[int, int]]:
    chance = random.Random(size)
    for span in range(0, size, _TABLE_SPAN):
        end = min(span + _TABLE_SPAN, size)
        for grain in (span, end - GRAIN, chance.randrange(span, end, GRAIN)):
            if grain not in grains:
                yield grain + chance.randrange(0, GRAIN, 4096), 4096
