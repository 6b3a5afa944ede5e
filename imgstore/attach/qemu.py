"""Disks as arguments of QEMU: drivers and formats are said, none is probed, and of a chain every file is named.

Source: QEMU's ``qapi/block-core.json`` (BlockdevOptions), "Disk Images" of its manual.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from imgstore.attach.attachment import AttachedDisk


def qemu_arguments(disks: Iterable[AttachedDisk]) -> list[str]:
    """Words for the command line of ``qemu-system-*``: a ``-blockdev`` for each file, and a ``virtio-blk-pci`` device for each disk.

    The guest finds a disk by ``/dev/disk/by-id/virtio-<serial>``: ``root`` is the container's own, ``volume-1`` its first volume.
    QEMU locks the files as long as it has them open; whoever would write them is told so.
    """
    words = []
    for number, disk in enumerate(disks):
        name = f"volume-{number}" if disk.volume else "root"
        node = None
        for depth, path in enumerate(disk.chain):
            is_top = depth == len(disk.chain) - 1
            options = {
                "driver": "vmdk",
                "node-name": name if is_top else f"{name}-{depth}",
                "read-only": disk.read_only or not is_top,
                "file": {"driver": "file", "filename": str(path)},
                **({} if node is None else {"backing": node}),
            }
            node = options["node-name"]
            words += ["-blockdev", json.dumps(options, separators=(",", ":"))]
        words += ["-device", f"virtio-blk-pci,drive={name},serial={name}"]
    return words
