"""ImageStore: one method for each thing a user can ask of a store. The command line and the API endpoint are its faces.

::

    with ImageStore.open("/var/lib/imgstore") as store:
        pulled = store.pull("harbor.example/library/app:1")
        print(store.disk_paths(pulled.reference)[-1])
"""

from __future__ import annotations

import contextlib
import enum
import itertools
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Self

from registry_client.image_config import ImageConfig, parse_image_config
from registry_client.options import Options
from registry_client.platform import Platform
from registry_client.reference import Reference
from registry_client.source import ImageSource, open_source

from imgstore import gc, layout, markers
from imgstore.catalog.catalog import Catalog, ImageLayerRow, ImageRow
from imgstore.check import Finding, check_store
from imgstore.datastores.datastore import Datastore
from imgstore.datastores.local import LocalDatastore
from imgstore.datastores.memory import MemoryDatastore
from imgstore.disks import Disks
from imgstore.errors import AlreadyExistsError, InvalidError, NotFoundError, UnsupportedError
from imgstore.ext4.reader import FileStatus, FileSystem
from imgstore.images import Images, Removal, familiar, names_of
from imgstore.layers.tar_writer import write_tar
from imgstore.leases import FileLeases, Lease, Leases, MemoryLeases, held, wait_for
from imgstore.progress import ProgressEvent, ProgressSink, ignore
from imgstore.pulls import LayerPull, WantedLayer
from imgstore.rebuild import RebuildReport, rebuild
from imgstore.registries import translated

DEFAULT_DISK_SIZE = 32 << 30
"""Capacity of a store's disks in bytes unless told otherwise; what is not used takes no space."""

_CATALOG = "catalog.sqlite3"
_LEASES = ".leases"


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of an image.

    Attributes:
        chain_id: identifies it with all below it.
        diff_id: digest of its inflated tar.
        digest: of the compressed blob, or None where no registry served one.
        disk: path of its disk, or None when it changes nothing.
        size: bytes that its disk has on the datastore.
    """

    chain_id: str
    diff_id: str
    digest: str | None
    disk: str | None
    size: int


@dataclass(frozen=True, slots=True)
class Image:
    """An image of the store.

    Attributes:
        id: digest of its config.
        references: its names with a tag, as docker shows them.
        digests: its names with a digest.
        size: bytes of the disks of its layers, those that it shares included.
        layers: lowest first.
        config: the OCI image configuration.
    """

    id: str
    references: tuple[str, ...]
    digests: tuple[str, ...]
    created: datetime | None
    os: str
    architecture: str
    variant: str
    size: int
    layers: tuple[Layer, ...]
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class HistoryItem:
    """One step of an image's making; ``empty`` if it made no layer, else ``size`` counts the bytes of its disk."""

    created: datetime | None
    created_by: str
    size: int
    comment: str
    empty: bool
    chain_id: str | None


class PullStatus(enum.Enum):
    """Whether a pull brought something."""

    DOWNLOADED = "Downloaded newer image"
    UP_TO_DATE = "Image is up to date"


@dataclass(frozen=True, slots=True)
class PullResult:
    """What a pull brought.

    Attributes:
        reference: under what it can be found: the canonical name, or the image id if the source gives none.
        digest: of what the registry served under the name, or None.
    """

    reference: str
    image: Image
    status: PullStatus
    digest: str | None


@dataclass(frozen=True, slots=True)
class ImageUsage:
    """Bytes that the disks of an image take on the datastore; ``shared`` are also other images', ``unique`` are not."""

    id: str
    references: tuple[str, ...]
    size: int
    shared: int
    unique: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes on the datastore.

    Attributes:
        disks: number of layer disks.
        disk_bytes: what these take, each counted once.
        staged_bytes: what disks that are being made take, and leftovers of those that were not finished.
        free_bytes: what is left there, or None if nobody knows.
        capacity: size of each disk as a guest sees it.
    """

    images: tuple[ImageUsage, ...]
    disks: int
    disk_bytes: int
    scratch_bytes: int
    catalog_bytes: int
    staged_bytes: int
    free_bytes: int | None
    capacity: int


class ImageStore:
    """A store: images, and the disks that show them. Make one with `open` or `create`; several processes may use one directory.

    Methods raise ImgstoreErrors only; which kinds mean what is in ``docs/reference/errors.md``. They may be called from several threads.
    """

    def __init__(self, datastore: Datastore, catalog: Catalog, leases: Leases, disk_size: int, directory: Path | None) -> None:
        self._datastore = datastore
        self._catalog = catalog
        self._leases = leases
        self._directory = directory
        self._disks = Disks(datastore, leases, disk_size)
        self._images = Images(datastore, catalog)

    @classmethod
    def open(cls, location: str, *, create: bool = True) -> Self:
        """Opens the store at ``location``.

        Args:
            location: a directory, ``file://`` or ``osfs://`` with one, or ``mem://`` for a store that vanishes with this object.
            create: make it, with the default disk size, if there is none; the directory must be missing or empty then.

        Raises:
            NotFoundError: there is none, and ``create`` is False.
            InvalidError: the directory holds something else.
            UnsupportedError: a newer imgstore made it, or no datastore of ours is reached that way.
        """
        return cls._open(location, disk_size=DEFAULT_DISK_SIZE if create else None)

    @classmethod
    def create(cls, location: str, *, disk_size: int = DEFAULT_DISK_SIZE) -> Self:
        """Makes a store.

        Args:
            disk_size: capacity of all its disks in bytes, for good: a multiple of 64 KiB, at least 64 MiB.

        Raises:
            AlreadyExistsError: there is one.
            InvalidError: the directory holds something else, or the size is none.
        """
        check_disk_size(disk_size)
        return cls._open(location, disk_size=disk_size, exclusive=True)
