"""ContainerTrees: opens what a container sees, for reading or to be changed as a whole.

Readers share a container and its volumes; who changes them has them alone. Ours wait for one another, by leases that all take in one
order: the container's, which who renames or removes it takes too, then those of its volumes by name. Nobody takes one of them twice. Guests
are not waited for: a disk that one has open is an InUseError at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from imgstore import layout
from imgstore.blocks import WritableBlockDevice
from imgstore.containers import container_lease
from imgstore.copies.tree import FilesRead, FilesWritten, MountedTree, MountPoint
from imgstore.errors import InUseError
from imgstore.ext4.reader import FileSystem
from imgstore.ext4.recovery import recover, recovered
from imgstore.ext4.writer import LayerWriter
from imgstore.leases import Leases, wait_for
from imgstore.live_disks import LiveDisks
from imgstore.markers import ContainerMarker
from imgstore.stop import Stop
from imgstore.vmdk.chain import Chain
from imgstore.volumes import Volumes

PATIENCE = 300.0
"""Seconds that a copy waits for others. One that somebody reads from slowly, or not at all, must not hold up all others for good."""


class ContainerTrees:
    """Opens the trees of a store's containers. May be used from several threads."""

    def __init__(self, live_disks: LiveDisks, volumes: Volumes, leases: Leases) -> None:
        self._live_disks = live_disks
        self._volumes = volumes
        self._leases = leases

    @contextlib.contextmanager
    def read(self, container: ContainerMarker) -> Iterator[MountedTree[FilesRead]]:
        """The tree, as it is from now to the end of the block; journals that guests left are read as if they had been replayed.

        Raises:
            InUseError: a guest has the disk open to write it, or, when a path first leads into one, a volume; or other copies do not
                come to an end.
            NotFoundError: a disk is missing.
            CorruptError, UnsupportedError: a disk or file system is damaged, or cannot be read.
        """
        with self._leased(container, Stop(), shared=True), contextlib.ExitStack() as stack:
            opened: dict[str, FilesRead] = {}

            def open_volume(name: str) -> FilesRead:
                if name not in opened:
                    opened[name] = self._read_volume(name, stack)
                return opened[name]

            yield MountedTree(self._read_disk(container, stack), _mount_points(container), open_volume)

    @contextlib.contextmanager
    def read_disk(self, container: ContainerMarker) -> Iterator[Chain]:
        """The container's own disk with what it stands on. Raises what `read` raises."""
        with self._leased(container, Stop(), shared=True), contextlib.ExitStack() as stack:
            yield self._open_disk(container, stack)

    @contextlib.contextmanager
    def edit(self, container: ContainerMarker, now_ns: int, stop: Stop) -> Iterator[MountedTree[FilesWritten]]:
        """The tree, to be changed; nobody else has it meanwhile. What cannot be written is FilesRead in it.

        When the block ends well, the changes are durable; after an error nothing is changed. They come to one disk after the other, each
        as a whole: a crash while this ends can leave the volumes with the changes, and the container's own disk without.

        Args:
            now_ns: nanoseconds since the epoch, the time of what is done.
            stop: ends the waiting for others.

        Raises:
            InUseError: as for `read`; a guest must not have open what is to be written, not even to read it.
            NoSpaceError: a file system or the datastore is full.
            NotFoundError, CorruptError, UnsupportedError: as for `read`.
        """
        with self._leased(container, stop, shared=False), contextlib.ExitStack() as stack:
            writers: list[LayerWriter] = []
            opened: dict[str, FilesWritten] = {}
            written = _written_volumes(container)

            def write(what: str, edited: AbstractContextManager[WritableBlockDevice]) -> LayerWriter:
                with _naming(what):
                    device = stack.enter_context(edited)
                recover(device)
                writers.append(LayerWriter(device, now_ns=now_ns))
                return writers[-1]

            def open_volume(name: str) -> FilesWritten:
                if name not in opened:
                    edited = write(f"volume {name}", self._volumes.edit(name)) if name in written else None
                    opened[name] = edited or self._read_volume(name, stack)
                return opened[name]

            root: FilesWritten
            if container.read_only:
                root = self._read_disk(container, stack)
            else:
                root = write(f"container {container.name}", self._live_disks.edit(layout.container_disk(container.id)))
            yield MountedTree(root, _mount_points(container), open_volume)
            for writer in writers:
                writer.finish()

    def _read_disk(self, container: ContainerMarker, stack: contextlib.ExitStack) -> FilesRead:
        return FilesRead(FileSystem(recovered(self._open_disk(container, stack))))

    def _open_disk(self, container: ContainerMarker, stack: contextlib.ExitStack) -> Chain:
        with _naming(f"container {container.name}"):
            return stack.enter_context(self._live_disks.read(layout.container_disk(container.id)))

    def _read_volume(self, name: str, stack: contextlib.ExitStack) -> FilesRead:
        with _naming(f"volume {name}"):
            return FilesRead(FileSystem(recovered(stack.enter_context(self._volumes.read(name)))))

    @contextlib.contextmanager
    def _leased(self, container: ContainerMarker, stop: Stop, *, shared: bool) -> Iterator[None]:
        deadline = time.monotonic() + PATIENCE

        def waiting(_: dict[str, Any]) -> None:
            stop.check()
            if time.monotonic() > deadline:
                raise InUseError(f"container {container.name}: others have been busy with its files for {PATIENCE:.0f} seconds")

        written = set() if shared else _written_volumes(container)
        wanted = [(container_lease(container.id), shared)]
        wanted += [(_volume_lease(name), name not in written) for name in sorted({mount.volume for mount in container.mounts})]
        with contextlib.ExitStack() as stack:
            for name, together in wanted:
                stack.callback(wait_for(self._leases, name, shared=together, waiting=waiting).release)
            yield


def _mount_points(container: ContainerMarker) -> list[MountPoint]:
    own = MountPoint(b"", "", container.read_only)
    return [own, *(MountPoint(os.fsencode(mount.destination), mount.volume, mount.read_only) for mount in container.mounts)]


def _written_volumes(container: ContainerMarker) -> set[str]:
    return {mount.volume for mount in container.mounts if not mount.read_only}


def _volume_lease(name: str) -> str:
    """Name of the lease of the files of a volume. That of the volume itself is another one, which its own operations take for a moment."""
    return f"volume-files-{hashlib.sha256(name.encode()).hexdigest()}"


@contextlib.contextmanager
def _naming(what: str) -> Iterator[None]:
    try:
        yield
    except InUseError as error:
        raise InUseError(f"{what}: {error}", hint=error.hint) from error
