"""Container volumes: those that a container is to have are made, and get what the image has where they are mounted, as docker does.

Source: moby ``daemon/create_unix.go`` (createContainerVolumesOS, populateVolumes), ``daemon/mounts.go`` (removeMountPoints).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from imgstore.answers import Mount
from imgstore.errors import InUseError, NotFoundError
from imgstore.ext4.reader import FileSystem
from imgstore.ext4.recovery import recovered
from imgstore.ext4.structures import ROOT_INODE
from imgstore.volume_contents import copy_up
from imgstore.volume_options import ANONYMOUS_LABEL, new_name, parse_options
from imgstore.volumes import Volumes

_DRIVER = "local"


@contextlib.contextmanager
def named_volumes(volumes: Volumes, mounts: Sequence[Mount], image: str, tree: FileSystem) -> Iterator[None]:
    """Makes the volumes that have a name and are not there, and keeps all of them as they are inside the block.

    Args:
        image: reference of the image that ``tree`` is of.

    Raises:
        InvalidError: a name that no volume can have; the image has a file where an empty volume is to be mounted.
        NoSpaceError: the datastore is full, or a volume is too small for what the image has.
    """
    named = [mount for mount in mounts if mount.volume]
    for mount in named:
        volumes.create(mount.volume, parse_options(_DRIVER, {}), {}, image=image, exist_ok=True)
    with volumes.kept(mount.volume for mount in named):
        for mount in named:
            if not mount.no_copy and _is_empty(volumes, mount.volume):
                _fill(volumes, mount, tree)
        yield


@contextlib.contextmanager
def anonymous_volumes(volumes: Volumes, mounts: Sequence[Mount], image: str, tree: FileSystem) -> Iterator[tuple[Mount, ...]]:
    """Makes a volume for each mount that has none, and gives the mounts with their names. If the block fails they are removed.

    After a crash they may be there without a container; ``imgstore volume prune`` removes such. Raises what `named_volumes` raises.
    """
    made: list[str] = []
    try:
        complete = []
        for mount in mounts:
            if not mount.volume:
                mount = replace(mount, volume=new_name())
                volumes.create(mount.volume, parse_options(_DRIVER, {}), {ANONYMOUS_LABEL: ""}, image=image)
                made.append(mount.volume)
                if not mount.no_copy:
                    _fill(volumes, mount, tree)
            complete.append(mount)
        with volumes.kept(made):
            yield tuple(complete)
    except BaseException:
        volumes.remove(made, skip=(InUseError, NotFoundError))
        raise


def remove_anonymous(volumes: Volumes, names: Iterable[str]) -> None:
    """Removes those of the volumes that nobody gave a name, and that no container has any more."""
    found = [name for name in names if _is_anonymous(volumes, name)]
    volumes.remove(found, skip=(InUseError, NotFoundError))


def _is_anonymous(volumes: Volumes, name: str) -> bool:
    try:
        return ANONYMOUS_LABEL in volumes.find(name).marker.labels
    except NotFoundError:
        return False


def _is_empty(volumes: Volumes, name: str) -> bool:
    """Whether nothing is in it; one that a guest has open is taken for one that has something."""
    try:
        with volumes.read(name) as chain:
            file_system = FileSystem(recovered(chain))
            return next(iter(file_system.list_directory(file_system.node(ROOT_INODE))), None) is None
    except InUseError:
        return False


def _fill(volumes: Volumes, mount: Mount, tree: FileSystem) -> None:
    with volumes.edit(mount.volume) as device:
        copy_up(device, tree, os.fsencode(mount.destination))
