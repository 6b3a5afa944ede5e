"""A seSparse disk written by hand, for nothing but ESXi writes such; by QEMU's ``block/vmdk.c``, which reads them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from imgstore.blocks import WritableFile

GRAIN = 4096
TABLE_ENTRIES = 4096
ZERO, UNMAPPED = "zero", "unmapped"

_VOLATILE, _JOURNAL_HEADER, _JOURNAL, _DIRECTORY = 1, 2, 3, 8


def write_sesparse(
    create: Callable[[str], WritableFile],
    stem: str,
    capacity: int,
    grains: Mapping[int, bytes | str],
    *,
    cid: int,
    parent: tuple[str, int] | None = None,
    dirty: bool = False,
) -> None:
    """Makes ``<stem>-sesparse.vmdk`` and its descriptor.

    Args:
        grains: of 4 KiB, or ``ZERO`` or ``UNMAPPED``, by number.
        parent: hint and content id.
        dirty: with a journal that has to be replayed.
    """
    tables = -(-capacity // (GRAIN * TABLE_ENTRIES))
    used = sorted({number // TABLE_ENTRIES for number in grains})
    directory_sectors = -(-tables * 8 // 512)
    tables_at = _DIRECTORY + directory_sectors
    tables_sectors = max(1, len(used)) * 64
    grains_at = -(-(tables_at + tables_sectors + 2) // 8) * 8
    directory = [0] * (directory_sectors * 64)
    entries: dict[int, list[int]] = {}
    for index, number in enumerate(used):
        directory[number] = 0x1000000000000000 | index
        entries[number] = [0] * TABLE_ENTRIES
    bodies = []
    for number, body in sorted(grains.items()):
        if isinstance(body, str):
            entry = {ZERO: 2, UNMAPPED: 1}[body] << 60
        else:
            place = len(bodies)
            entry = 3 << 60 | (place & 0xFFF) << 48 | place >> 12
            bodies.append(body)
        entries[number // TABLE_ENTRIES][number % TABLE_ENTRIES] = entry
    header = [0xCAFEBABE, 0x0000000200000001, capacity // 512, 8, 64, 0, 0, 0, 0, 0]
    header += [_VOLATILE, 1, _JOURNAL_HEADER, 1, _JOURNAL, 4, _DIRECTORY, directory_sectors, tables_at, tables_sectors]
    header += [tables_at + tables_sectors, 1, tables_at + tables_sectors + 1, 1, grains_at, max(1, len(bodies)) * 8]
    file = create(f"{stem}-sesparse.vmdk")
    file.truncate((grains_at + max(1, len(bodies)) * 8) * 512)
    file.pwrite(0, struct.pack("<26Q", *header))
    file.pwrite(_VOLATILE * 512, struct.pack("<4Q", 0xCAFECAFE, len(used), 1, int(dirty)))
    file.pwrite(_DIRECTORY * 512, struct.pack(f"<{len(directory)}Q", *directory))
    for index, number in enumerate(used):
        file.pwrite((tables_at + index * 64) * 512, struct.pack(f"<{TABLE_ENTRIES}Q", *entries[number]))
    for index, data in enumerate(bodies):
        file.pwrite(grains_at * 512 + index * GRAIN, data)
    file.close()
    hint, parent_cid = parent or ("", 0xFFFFFFFF)
    lines = ["# Disk DescriptorFile", "version=1", f"CID={cid:08x}", f"parentCID={parent_cid:08x}", 'createType="seSparse"']
    lines += [f'parentFileNameHint="{hint}"'] if parent else []
    lines += ["# Extent description", f'RW {capacity // 512} SESPARSE "{stem}-sesparse.vmdk"', "", "# The Disk Data Base", "#DDB"]
    descriptor = create(f"{stem}.vmdk")
    descriptor.pwrite(0, ("\n".join(lines) + "\n").encode())
    descriptor.close()
