"""Empty disks for guests to write: a header, a descriptor, two directories, and tables that are holes of the file."""

from __future__ import annotations

import functools
import secrets
from array import array

from imgstore.blocks import SECTOR, WritableFile
from imgstore.vmdk.descriptor import describe_disk, is_reserved
from imgstore.vmdk.grains import TABLE_SECTORS, Layout, numbers_to_bytes


def random_cid() -> int:
    """A content id for a disk whose contents will change; never one of the values that mean something else."""
    while True:
        cid = secrets.randbits(32)
        if not is_reserved(cid):
            return cid


def write_child(
    file: WritableFile,
    *,
    capacity: int,
    cid: int,
    extent_name: str,
    parent_cid: int | None = None,
    parent_hint: str | None = None,
) -> None:
    """Makes an empty file a disk without grains, by a few short writes; not on stable storage when it returns.

    Every grain table has its place from the start, for QEMU only ever sets entries. A crash may leave a part of it, which is no disk or
    an empty one: callers keep a record of disks that were made.

    Args:
        capacity: size of the disk in bytes, a multiple of 64 KiB, not less than the parent's; what lies past the parent's reads as zeros.
        cid: content id, see ``random_cid``.
        parent_cid: content id of the parent, or None for a disk without parent.
        parent_hint: path of the parent relative to the directory of this disk, or None.
        extent_name: base name of the file.

    Raises:
        InvalidError: an argument cannot be written into a VMDK.
        NoSpaceError: the datastore is full.
    """
    layout, header, redundant_directory, directory = _frame(capacity)
    descriptor = describe_disk(layout.capacity, cid, parent_cid, parent_hint, extent_name).to_bytes()
    file.truncate(layout.overhead * SECTOR)
    file.pwrite(0, header + descriptor.rstrip(b"\0"))
    file.pwrite(layout.redundant_directory * SECTOR, redundant_directory)
    file.pwrite(layout.directory * SECTOR, directory)


@functools.lru_cache(maxsize=4)
def _frame(capacity: int) -> tuple[Layout, bytes, bytes, bytes]:
    """What all disks of one capacity share: layout, header and both grain directories."""
    layout = Layout.plan(capacity)
    redundant, primary = (
        numbers_to_bytes(array("I", range(first, first + layout.tables * TABLE_SECTORS, TABLE_SECTORS)))
        for first in (layout.redundant_tables, layout.first_table)
    )
    return layout, layout.header().to_bytes(), redundant, primary
