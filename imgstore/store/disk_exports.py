"""DiskExports: disks of the store as disks for others, in the form that those read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from imgstore import layout
from imgstore.device_names import DeviceName, parse_device_name
from imgstore.disk_files import write_disk_files
from imgstore.errors import InvalidError
from imgstore.store.core import StoreCore
from imgstore.vmdk.formats import DiskFormat, data_ranges
from imgstore.vmdk.stack import OpenDisks


class DiskExports(StoreCore):
    """The methods of an `ImageStore` that copy its disks out of it."""

    def export_disk(self, name: str, target: Path | BinaryIO, disk_format: DiskFormat | str) -> list[Path]:
        """Writes a disk, with all that shows through it, as one VMDK without parent.

        Journals of containers and volumes that wait to be replayed are copied as they are. After any error nothing is left of the copy;
        after a crash perhaps files in the target's directory whose names begin with a dot and end in ``.part``.

        Args:
            name: ``image/REFERENCE``, ``container/NAME`` or ``volume/NAME``.
            target: of the copy, ends in ``.vmdk``; other files that the form has come beside it. Or a pipe, for ``stream-optimized``.
            disk_format: ``hosted``, ``flat``, ``vmfs``, ``vmfs-sparse`` or ``stream-optimized``.

        Returns:
            The files that were made.

        Raises:
            InvalidError: the name is none, or the target's does not end in ``.vmdk``; there is no such format.
            NotFoundError: there is no such image, container or volume.
            InUseError: a guest writes the container's or volume's disk.
            AlreadyExistsError: there is something of one of the target's names.
            UnsupportedError: the form is only read, or cannot be written to a pipe.
            NoSpaceError: the file system is full.
        """
        wanted = parse_device_name(name)
        if wanted.snapshot:
            raise InvalidError(f"{name}: a copy needs no ?snapshot")
        try:
            form = DiskFormat(disk_format)
        except ValueError:
            raise InvalidError(f"disk format {disk_format!r}: is none of {', '.join(DiskFormat)}") from None
        with self._shown_chain(wanted) as chain:
            return write_disk_files(target, form, chain, data_ranges(chain), cid=chain.cid)

    @contextlib.contextmanager
    def _shown_chain(self, name: DeviceName) -> Iterator[OpenDisks]:
        with contextlib.ExitStack() as stack:
            match name.kind:
                case "image":
                    chain = stack.enter_context(self._open_view(name.reference))
                case "container":
                    container = self._containers.find(name.reference)
                    chain = stack.enter_context(self._live_disks.read(layout.container_disk(container.id)))
                case "volume":
                    chain = stack.enter_context(self._volumes.read(name.reference))
            yield chain
