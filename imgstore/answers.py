"""Answers: what an ImageStore tells of its images, its pulls and its space."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from registry_client.options import Options


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
class LoadedImage:
    """An image that a load brought.

    Attributes:
        references: the names that the archive gave it, as docker shows them; other images have lost them.
    """

    image: Image
    references: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PushResult:
    """What a push left in the registry.

    Attributes:
        reference: the canonical name.
        digest: that the registry has under it now: of the manifest.
        size: bytes of the manifest.
    """

    reference: str
    digest: str
    size: int


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
        disk_bytes: what these take with their markers and checksums, each counted once.
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


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What a store is.

    Attributes:
        id: made with the store, and kept when it is moved.
        directory: where it lies on this machine, or None for one in memory.
        images, layers: how many there are; layers that several images have count once.
        shared_layers: how many of these several images have.
        capacity: bytes of each disk as a guest sees it.
        space, free_space: bytes of the datastore, or None if nobody knows.
        registries: how registries are reached.
    """

    id: str
    directory: Path | None
    images: int
    layers: int
    shared_layers: int
    capacity: int
    space: int | None
    free_space: int | None
    registries: Options
