"""Disks as QEMU is to have them: drivers and formats are said, none is probed, and of a chain every file is named.

Source: QEMU's ``qapi/block-core.json`` (BlockdevOptions), ``qapi/sockets.json`` (SocketAddress); "Disk Images" and "NBD" of its manual,
which has ``-blockdev`` for what is to be exact: ``-drive`` guesses what it is not told, and takes a comma for the end of a file name.
"""

from __future__ import annotations

import enum
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from imgstore.attach.attachment import AttachedDisk
from imgstore.errors import InvalidError, UnsupportedError

Node = dict[str, Any]
"""BlockdevOptions: one node of QEMU's block layer."""

SocketAddress = Mapping[str, str]
"""Where a server listens."""

SERIAL_MAX = 20
"""Bytes of a serial number that the guest sees: VIRTIO_BLK_ID_BYTES of linux/virtio_blk.h; NVMe has as many."""

_PREFIXES = {"container": "ctr", "volume": "vol", "image": "img"}
_NBD_PORT = 10809  # IANA's


class DeviceModel(enum.StrEnum):
    """What the guest sees a disk as."""

    VIRTIO_BLK = "virtio-blk-pci"
    VIRTIO_SCSI = "virtio-scsi"
    NVME = "nvme"


def parse_nbd_address(text: str) -> SocketAddress:
    """Reads ``unix:///path`` or ``tcp://host[:port]``, as ``imgstore nbd serve --host`` has it.

    Raises:
        InvalidError: it is neither.
    """
    if (path := text.removeprefix("unix://")) != text and path.startswith("/"):
        return {"type": "unix", "path": path}
    found = re.fullmatch(r"tcp://(\[[0-9A-Fa-f:.]+\]|[^:/\[\]]+)(?::(\d{1,5}))?/?", text)
    if found is None or not 0 < int(found[2] or _NBD_PORT) < 2**16:
        raise InvalidError(f"NBD server {text}: is neither unix:///PATH nor tcp://HOST:PORT")
    return {"type": "inet", "host": found[1].strip("[]"), "port": found[2] or str(_NBD_PORT)}


def boot_serials(disks: Iterable[AttachedDisk]) -> list[str]:
    """Serial numbers for disks that a machine starts with: the container's own is ``root``, then ``volume-1``, ``image-1`` and so on.

    A second container's own disk is ``container-2``.
    """
    counts: dict[str, int] = {}
    serials = []
    for disk in disks:
        kind = disk.name.kind
        counts[kind] = number = counts.get(kind, 0) + 1
        serials.append("root" if (kind, number) == ("container", 1) else f"{kind}-{number}")
    return serials


def name_serial(disk: AttachedDisk) -> str:
    """Serial number by the disk's name, whatever else the machine has: ``vol-data``, ``img-alpine``, ``ctr-web``.

    A name that is long, or has other characters than letters, digits, ``.``, ``_`` and ``-``, is cut, and ends in six digits of its
    SHA-256.
    """
    prefix, name = _PREFIXES[disk.name.kind], disk.name.reference
    serial = f"{prefix}-{name}"
    if len(serial) <= SERIAL_MAX and re.fullmatch(r"[\w.-]+", name, re.ASCII):
        return serial
    digits = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:6]
    last = re.sub(r"[^\w.-]", "-", name.rpartition("/")[2], flags=re.ASCII)
    return f"{prefix}-{last[: SERIAL_MAX - len(prefix) - 8].rstrip('-._')}-{digits}"


def block_nodes(disk: AttachedDisk, name: str, nbd: SocketAddress | None = None) -> list[Node]:
    """The nodes that show a disk, each made of those before it; the last is the disk and is called ``name``.

    Args:
        name: at most 27 bytes: those below get ``-<depth>`` behind it, and QEMU takes 31.
        nbd: reach the disk through this server; None: open its files.

    Raises:
        UnsupportedError: a path is not UTF-8, which is all that QEMU reads.
    """
    if nbd is not None:
        export = {"driver": "nbd", "node-name": name, "server": dict(nbd), "export": str(disk.name)}
        return [export | {"read-only": disk.read_only, "discard": "unmap"}]
    nodes: list[Node] = []
    for depth, path in enumerate(disk.chain):
        is_top = depth == len(disk.chain) - 1
        node: Node = {
            "driver": "vmdk",
            "node-name": name if is_top else f"{name}-{depth}",
            "read-only": disk.read_only or not is_top,
            "file": {"driver": "file", "filename": _show(path)},
            "backing": nodes[-1]["node-name"] if nodes else None,  # None: none, whatever the file says
        }
        nodes.append(node)
    return nodes


def nest(nodes: Sequence[Node]) -> Node:
    """The nodes of `block_nodes` as one, which has those below inside, so that they come and go together."""
    nested = nodes[0]
    for node in nodes[1:]:
        nested = node | {"backing": nested}
    return nested


def qemu_arguments(
    disks: Sequence[AttachedDisk], *, model: DeviceModel = DeviceModel.VIRTIO_BLK, nbd: SocketAddress | None = None
) -> list[str]:
    """Words for the command line of ``qemu-system-*``: a ``-blockdev`` for each file, and a ``-device`` for each disk.

    The guest finds a disk by its serial number, one of `boot_serials`: ``/dev/disk/by-id/virtio-root``. QEMU locks the files as long as
    it has them open; whoever would write them is told so.

    Args:
        nbd: the disks are reached through this server, and no file is opened by QEMU.

    Raises:
        UnsupportedError: a path is not UTF-8.
    """
    words = []
    if model is DeviceModel.VIRTIO_SCSI and disks:
        words += ["-device", "virtio-scsi-pci,id=scsi"]
    for disk, serial in zip(disks, boot_serials(disks), strict=True):
        for node in block_nodes(disk, serial, nbd):
            words += ["-blockdev", json.dumps(node, separators=(",", ":"))]
        device = "scsi-hd,bus=scsi.0" if model is DeviceModel.VIRTIO_SCSI else model.value
        words += ["-device", f"{device},drive={serial},serial={serial}"]
    return words


def _show(path: Path) -> str:
    text = str(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UnsupportedError(f"{path}: QEMU opens only files whose names are UTF-8") from None
    return text
