"""Diffs: what a container's disk has that its image has not; found in time by what changed, not by what there is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from imgstore import layout
from imgstore.catalog.catalog import ContainerRow
from imgstore.errors import InUseError
from imgstore.ext4.diff import Difference, diff
from imgstore.ext4.reader import FileSystem
from imgstore.ext4.recovery import RecoveredDevice, recovered
from imgstore.live_disks import LiveDisks


@dataclass(frozen=True, slots=True)
class ContainerView:
    """The file system of a container, and that of its image.

    Attributes:
        before: the image's.
        after: the container's, as a guest finds it: with what waits in the journal.
        changed: (offset, length) of all bytes that may differ.
    """

    before: FileSystem
    after: FileSystem
    changed: list[tuple[int, int]]

    def differences(self, *, exact: bool = False) -> list[Difference]:
        """As `imgstore.ext4.diff.diff`."""
        return diff(self.before, self.after, self.changed, exact=exact)


@contextlib.contextmanager
def open_container(live_disks: LiveDisks, container: ContainerRow) -> Iterator[ContainerView]:
    """A container's disk, open for reading; nobody writes it inside the block.

    Raises:
        InUseError: a guest runs on it, or it is being written.
        CorruptError: a disk, or what is on it, is damaged.
    """
    with contextlib.ExitStack() as stack:
        try:
            chain = stack.enter_context(live_disks.read(layout.container_disk(container.id)))
        except InUseError as error:
            raise InUseError(f"container {container.name}: {error}", hint=error.hint) from error
        device = recovered(chain)
        changed = list(chain.own_ranges())
        if isinstance(device, RecoveredDevice):
            changed += device.changed
        yield ContainerView(FileSystem(chain.below), FileSystem(device), changed)
