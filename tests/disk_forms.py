"""Disks and chains of every form, for tests, and the bytes that they must show."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from imgstore.blocks import GRAIN, MemoryBlockDevice
from imgstore.datastores import Datastore
from imgstore.vmdk.formats import FORMATS, DiskFormat, ParentDisk, data_ranges, write_disk
from tests import sesparse

WRITTEN = [form for form in DiskFormat if FORMATS[form].writable]
CHILDREN = [form for form in WRITTEN if FORMATS[form].has_parent]


def device_of(data: bytes | bytearray) -> MemoryBlockDevice:
    """A device that shows ``data``, its pages of zeros as holes."""
    device = MemoryBlockDevice(len(data))
    for offset in range(0, len(data), GRAIN):
        page = data[offset : offset + GRAIN]
        if page.count(0) != len(page):
            device.write(offset, page)
    return device


def cid_of(number: int) -> int:
    """Content id of the disk number ``number`` of a chain."""
    return 0xC1D00000 + number


def add_chain(datastore: Datastore, forms: Sequence[DiskFormat], size: int, *, seed: int = 0, writes: int = 2) -> bytes:
    """Makes disks ``d0.vmdk``, ``d1.vmdk``, … of these forms, each on the one before; returns the bytes that the last one must show."""
    chance = random.Random(seed)
    model = bytearray(size)
    with datastore.stage("", "chain") as staging:
        for number, form in enumerate(forms):
            ranges = []
            for _ in range(writes if number else 3 * writes):
                offset = chance.randrange(size // 4096) * 4096
                length = min(chance.choice((4096, 20480, GRAIN)), size - offset)
                model[offset : offset + length] = bytes(length) if chance.random() < 0.2 else chance.randbytes(length)
                ranges.append((offset, length))
            parent = ParentDisk(f"d{number - 1}.vmdk", cid_of(number - 1), size) if number else None
            if form is DiskFormat.SESPARSE:
                covered = {offset // 4096 + step for offset, length in ranges for step in range(length // 4096)}
                bodies: dict[int, bytes | str] = {}
                for grain in covered:
                    body = bytes(model[grain * 4096 : (grain + 1) * 4096])
                    bodies[grain] = body if any(body) else sesparse.ZERO
                link = None if parent is None else (parent.hint, parent.cid)
                sesparse.write_sesparse(staging.create, f"d{number}", size, bodies, cid=cid_of(number), parent=link)
            else:
                device = device_of(model)
                own = joined(ranges) if parent else data_ranges(device)
                write_disk(form, staging.create, f"d{number}", device, own, cid=cid_of(number), parent=parent)
        staging.publish()
    return bytes(model)


def joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same bytes, ascending, each once."""
    found: list[tuple[int, int]] = []
    for offset, length in sorted(ranges):
        if found and offset <= sum(found[-1]):
            start = found[-1][0]
            found[-1] = (start, max(sum(found[-1]), offset + length) - start)
        else:
            found.append((offset, length))
    return found
