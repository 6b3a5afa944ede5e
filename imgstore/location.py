"""Location: the directory that a store is, and how one becomes a store."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from imgstore import layout, markers
from imgstore.blocks import GRAIN
from imgstore.catalog.catalog import Catalog
from imgstore.datastores.datastore import Datastore, is_private, list_names, named_errors
from imgstore.datastores.local import LocalDatastore
from imgstore.errors import InvalidError, UnsupportedError
from imgstore.ext4.format import MAXIMUM_SIZE, MINIMUM_SIZE
from imgstore.vmdk.chain import MAX_DEPTH

if TYPE_CHECKING:
    from imgstore.vsphere.login import VsphereLogin

LEASES = ".leases"
"""Directory of the leases in the store's."""

CATALOG = "catalog.sqlite3"
"""File of the catalog there."""

_CATALOG_SPACE = 1 << 20
"""Bytes that must be free for SQLite to begin: its log and its index of the log."""


def directory_of(location: str) -> Path | None:
    """The directory of a store, or None for one in memory.

    Raises:
        UnsupportedError: the location has another scheme than ``file``, ``osfs`` or ``mem``.
        InvalidError: it is empty.
    """
    scheme, separator, rest = location.partition("://")
    if not separator:
        if not location:
            raise InvalidError("store: its directory has no name")
        return Path(location).absolute()
    if scheme == "mem":
        return None
    if scheme in ("file", "osfs"):
        return Path(rest).absolute()
    # Not the whole of it, which may have a password.
    raise UnsupportedError(f"{scheme}://: a store is a directory, file://, osfs://, vsphere://, ds:// or mem://")


def has_store(directory: Path) -> bool:
    """Whether a directory of this machine is a store.

    Raises:
        DeniedError: nobody may look.
        InvalidError: no directory can have this name.
    """
    with named_errors(str(directory), "look for a store"):
        try:
            (directory / layout.STORE).stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
    return True


def make_store(directory: Path, disk_size: int, max_depth: int | None) -> None:
    """Makes the directory a store by its marker: the rest is made when it is needed, so that a crash leaves a store or nothing.

    Raises:
        InvalidError: the directory cannot be made or read, or something else is in it.
    """
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        strangers = [entry.name for entry in directory.iterdir() if not is_private(entry.name)]
    except OSError as error:
        raise InvalidError(f"{directory}: cannot be a store: {error.strerror}") from error
    if strangers:
        raise _not_empty(str(directory), sorted(strangers)[0])
    marker = markers.encode(markers.StoreMarker(str(uuid.uuid4()), disk_size, max_depth))
    with LocalDatastore(directory) as datastore:
        datastore.write_atomic(layout.STORE, marker)


def mark_store(datastore: Datastore, disk_size: int, max_depth: int | None) -> bytes:
    """Makes what is not a directory of this machine a store by its marker, which is returned.

    Raises:
        InvalidError: something else is in it.
        UnsupportedError: it cannot keep to a depth.
    """
    if max_depth is not None:
        raise UnsupportedError(f"{datastore.location}: no disk can be replaced there in one step, so that depth has no limit")
    if strangers := list_names(datastore, ""):
        raise _not_empty(datastore.location, strangers[0])
    marker = markers.encode(markers.StoreMarker(str(uuid.uuid4()), disk_size))
    datastore.write_atomic(layout.STORE, marker)
    return marker


def open_vsphere(location: str, login: VsphereLogin | None) -> Datastore:
    """The datastore at a vSphere location; nothing is asked before it is needed.

    Raises:
        InvalidError: the location makes no sense, or names no server and ``login`` has none.
        UnsupportedError: pyVmomi is not installed.
    """
    from imgstore.datastores.vsphere import VsphereDatastore  # pyVmomi is optional, and takes a while
    from imgstore.vsphere.locations import parse_datastore

    place = parse_datastore(location, login)
    return VsphereDatastore(place, place.login(login))


def open_catalog(directory: Path) -> Catalog:
    """The catalog; one in memory where the file system is too full for SQLite to use a file, so that images can still be removed.

    The file is removed then, since it would not learn of that; it is made again when there is space.
    """
    catalog = Catalog(directory / CATALOG)
    if shutil.disk_usage(directory).free >= _CATALOG_SPACE:
        return catalog
    catalog.discard()
    return Catalog(None)


def check_depth(depth: int) -> None:
    """Raises InvalidError unless chains of at most ``depth`` disks can be made."""
    if not 1 <= depth <= MAX_DEPTH:
        raise InvalidError(f"depth {depth}: a chain has 1 to {MAX_DEPTH} disks, the scratch disk counted")


def check_disk_size(size: int) -> None:
    """Raises InvalidError unless disks of ``size`` bytes can be made."""
    if not MINIMUM_SIZE <= size <= MAXIMUM_SIZE or size % GRAIN:
        nearest = min(max(-(-size // GRAIN) * GRAIN, MINIMUM_SIZE), MAXIMUM_SIZE)
        raise InvalidError(
            f"disk size {size}: must be a multiple of {GRAIN} bytes from {MINIMUM_SIZE} to {MAXIMUM_SIZE}",
            hint=f"the next that can be is {nearest}",
        )


def _not_empty(location: str, stranger: str) -> InvalidError:
    return InvalidError(
        f"{location}: is not a store (it has no {layout.STORE}), and not empty: {stranger} is in it",
        hint="name another directory with --store, or with IMGSTORE_STORE",
    )
