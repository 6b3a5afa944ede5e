"""Location: the directory that a store is, and how one becomes a store."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from imgstore import layout, markers
from imgstore.blocks import GRAIN
from imgstore.catalog.catalog import Catalog
from imgstore.datastores.datastore import is_private
from imgstore.datastores.local import LocalDatastore
from imgstore.errors import InvalidError, UnsupportedError
from imgstore.ext4.format import MAXIMUM_SIZE, MINIMUM_SIZE
from imgstore.vmdk.chain import MAX_DEPTH

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
    raise UnsupportedError(f"{location}: a store is a directory, file://, osfs:// or mem://; {scheme}:// is none of them")


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
        raise InvalidError(
            f"{directory}: is not a store (it has no {layout.STORE}), and not empty: {sorted(strangers)[0]} is in it",
            hint="name another directory with --store, or with IMGSTORE_STORE",
        )
    marker = markers.encode(markers.StoreMarker(str(uuid.uuid4()), disk_size, max_depth))
    with LocalDatastore(directory) as datastore:
        datastore.write_atomic(layout.STORE, marker)


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
