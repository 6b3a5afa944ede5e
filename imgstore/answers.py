"""Answers: what an ImageStore tells of its images, its pulls and its space."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from imgstore.errors import ImgstoreError
from registry_client.options import Options
from registry_client.platform import Platform


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of an image.

    Attributes:
        chain_id: identifies it with all below it.
        diff_id: digest of its inflated tar.
        digest: of the compressed blob, or None where no registry served one.
        disk: path of its disk, or None when it changes nothing.
        size: bytes that it takes on the datastore: its disk, and what lies beside that.
    """

    chain_id: str
    diff_id: str
    digest: str | None
    disk: str | None
    size: int


@dataclass(frozen=True)
class Image:
    """An image of the store.

    Attributes:
        id: digest of its config.
        references: its names with a tag, as docker shows them.
        digests: its names with a digest.
        size: bytes that its layers take on the datastore, those that it shares with others included.
        layers: lowest first.
        disks: paths of the disks that show it together: the scratch disk first, its top disk last.
        labels: of its configuration.
        parent: id of the image that it was made from here, or None.
        tagged: when it was last given one of its names by hand, or None.
        containers: how many were made from it.
        manifest_digest: of ``manifest_bytes``; None where the source had no manifest.
        manifest_bytes: as the source served it, or empty.
        config_bytes: the OCI image configuration, whose digest is the id.
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
    disks: tuple[str, ...]
    labels: Mapping[str, str] = field(repr=False)
    parent: str | None
    tagged: datetime | None
    manifest_digest: str | None
    manifest_bytes: bytes = field(repr=False)
    config_bytes: bytes = field(repr=False)
    containers: int = 0

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The OCI image configuration; read when it is first asked for: it has a hundred times the size of all else."""
        config: Mapping[str, Any] = msgspec.json.decode(self.config_bytes)
        return config


@dataclass(frozen=True, slots=True)
class Mount:
    """A volume in a container.

    Attributes:
        volume: its name; empty, where a container is to be made: a new one without a name.
        destination: absolute path in the container.
        no_copy: an empty volume does not get what the image has at this path. Only says something where a container is made.
    """

    volume: str
    destination: str
    read_only: bool = False
    no_copy: bool = False


@dataclass(frozen=True, slots=True)
class Container:
    """A container of the store.

    Attributes:
        id: 64 hex digits.
        name: without a leading slash.
        image: the name or id under which its image was asked for.
        platform: what it runs on, as its image says.
        capacity: of its disk in bytes.
        read_only: its root file system is not to be written by what it runs.
        config: what it runs, in Docker's names.
        host_config: how it was asked to run, in Docker's names: kept, and left to the platform that runs it.
        labels: of ``config``.
        disk: path of its disk.
        size_rw: bytes that the disk takes on the datastore.
    """

    id: str
    name: str
    created: datetime
    image: str
    image_id: str
    platform: str
    capacity: int
    read_only: bool
    mounts: tuple[Mount, ...]
    config: Mapping[str, Any] = field(repr=False)
    host_config: Mapping[str, Any] = field(repr=False)
    labels: Mapping[str, str] = field(repr=False)
    disk: str
    size_rw: int


@dataclass(frozen=True, slots=True)
class VolumeSnapshot:
    """What a volume was at one moment; ``disk`` is the path of the disk that shows it, which is not written any more."""

    name: str
    created: datetime
    disk: str


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume of the store.

    Attributes:
        store: name of the volume store where it lies.
        driver: as it was asked for: ``local`` and ``vsphere`` mean the same.
        options: of the driver, as they were given.
        capacity: of its disk in bytes.
        disk: path of the disk that is written.
        image: reference of the image that its first contents came from, or empty.
        snapshots: oldest first.
        size: bytes that its disks take on the datastore, without those that other volumes need too.
        used_by: ids of the containers that have it.
        anonymous: nobody gave it a name.
    """

    name: str
    store: str
    driver: str
    options: Mapping[str, str]
    labels: Mapping[str, str]
    created: datetime
    capacity: int
    disk: str
    image: str
    snapshots: tuple[VolumeSnapshot, ...]
    size: int
    used_by: tuple[str, ...]
    anonymous: bool


@dataclass(frozen=True, slots=True)
class VolumePruneReport:
    """What a prune of volumes removed: their names, and the bytes that their disks took."""

    names: tuple[str, ...]
    reclaimed: int


@dataclass(frozen=True, slots=True)
class VolumeUsage:
    """What a volume takes and holds, in bytes.

    Attributes:
        size: that its disks take on the datastore, without those that other volumes need too.
        used, free: what the file system says of its blocks; None where it cannot be read now, because a guest writes it.
    """

    name: str
    store: str
    capacity: int
    size: int
    used: int | None
    free: int | None


@dataclass(frozen=True, slots=True)
class VolumeStoreInfo:
    """A place for volumes.

    Attributes:
        location: its directory, absolute, or ``mem://``; empty where nobody knows.
        volumes: how many lie there.
        problem: why it cannot be used, or None.
    """

    name: str
    location: str
    volumes: int
    problem: str | None


@dataclass(frozen=True, slots=True)
class Removal:
    """What a removal did.

    Attributes:
        untagged: familiar names that are gone.
        deleted: ids of images, and chain ids of layers, that are gone.
        images: how many of ``deleted``, from the first, are images; the rest is layers.
        image: the image that was meant, as it was before; None where layers were removed that no image had.
        by_name: it was meant by one of its names.
    """

    untagged: tuple[str, ...]
    deleted: tuple[str, ...]
    images: int = 0
    image: Image | None = None
    by_name: bool = False


@dataclass(frozen=True, slots=True)
class HistoryItem:
    """One step of an image's making; ``empty`` if it made no layer, else ``size`` counts the bytes of its disk."""

    created: datetime | None
    created_by: str
    size: int
    comment: str
    empty: bool
    chain_id: str | None


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A disk that can be had as a device.

    Attributes:
        name: ``image/REFERENCE``, ``container/NAME`` or ``volume/NAME``: what ``ImageStore.open_device`` takes.
        size: bytes.
        read_only: nobody can write it, but for a private overlay.
        description: what it is, for people.
    """

    name: str
    size: int
    read_only: bool
    description: str


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What a prune removed.

    Attributes:
        removals: one for each image, and one for the layers that were left without an image.
        reclaimed: bytes that the removed layers took on the datastore.
    """

    removals: tuple[Removal, ...]
    reclaimed: int


@dataclass(frozen=True, slots=True)
class RemoteImage:
    """What a registry has under a name: a manifest or an index, its size in bytes, and the platforms that it is for."""

    media_type: str
    digest: str
    size: int
    platforms: tuple[Platform, ...]


class PullStatus(enum.Enum):
    """Whether a pull brought something."""

    DOWNLOADED = "Downloaded newer image"
    UP_TO_DATE = "Image is up to date"


@dataclass(frozen=True, slots=True)
class FlattenResult:
    """What a flattening did.

    Attributes:
        image: as it is now.
        before: how many disks its chain had.
        after: how many it has.
        written: bytes of the grains that were copied.
    """

    image: Image
    before: int
    after: int
    written: int


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
class CopyResult:
    """What a copy of an image to another datastore did.

    Attributes:
        location: the store there.
        references: the names that the image has there by it, as docker shows them.
        copied_layers, present_layers: how many came, and how many were there already.
        copied_bytes: that the files of the layers that came take there.
        changed: False when the image, all its layers and its names were there.
    """

    location: str
    image_id: str
    references: tuple[str, ...]
    copied_layers: int
    present_layers: int
    copied_bytes: int
    changed: bool


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """What a copy of an image would do.

    Attributes:
        layers: how many would be copied.
        bytes: that those take in the store that they come from; those that it has not pulled yet are not counted.
        problem: why it cannot be done, or empty.
    """

    location: str
    layers: int
    present_layers: int
    bytes: int
    problem: str = ""


@dataclass(frozen=True, slots=True)
class SeedPlan:
    """What seeding would do for one image of the list.

    Attributes:
        reference: as the list has it.
        pulled_layers: how many the store would pull.
        pulled_bytes: of these, as they are sent.
        copies: one for each datastore.
        problem: why the image cannot be pulled, or empty; then nothing else is known.
    """

    reference: str
    pulled_layers: int = 0
    pulled_bytes: int = 0
    copies: tuple[CopyPlan, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class SeedFailure:
    """What seeding could not do: a pull, where ``location`` is empty; a copy; or all of a datastore, where ``reference`` is empty."""

    reference: str
    location: str
    error: ImgstoreError


@dataclass(frozen=True, slots=True)
class SeedReport:
    """What seeding did, in the order of the list and of the datastores.

    Attributes:
        pulls: of the images that the list names, once each.
        copies: to each datastore, its images in the order of the list.
    """

    pulls: tuple[PullResult, ...]
    copies: tuple[CopyResult, ...]
    failures: tuple[SeedFailure, ...]


@dataclass(frozen=True, slots=True)
class RemoteStore:
    """What a store has, as one finds it who does not open it for writing.

    Attributes:
        location: where it is.
        capacity: of its disks in bytes.
        images: that are whole, newest first.
        left_out: what is there and not whole, a sentence each.
    """

    location: str
    capacity: int
    images: tuple[Image, ...]
    left_out: tuple[str, ...]


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
        metadata_bytes: what configs, manifests and names of images take.
        containers: number of them.
        container_bytes: what their disks and markers take.
        volumes: number of them, in all volume stores that can be reached.
        volume_bytes: what their disks and markers take, there.
        staged_bytes: what disks that are being made take, and leftovers of those that were not finished.
        free_bytes: what is left there, or None if nobody knows.
        capacity: size of each disk as a guest sees it.
    """

    images: tuple[ImageUsage, ...]
    disks: int
    disk_bytes: int
    scratch_bytes: int
    catalog_bytes: int
    metadata_bytes: int
    containers: int
    container_bytes: int
    volumes: int
    volume_bytes: int
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
        containers: how many there are.
        capacity: bytes of each disk as a guest sees it.
        space, free_space: bytes of the datastore, or None if nobody knows.
        max_depth: how many disks the chain of an image may have, or None.
        quota: bytes that images, containers and volumes may take together, or None.
        registries: how registries are reached.
    """

    id: str
    directory: Path | None
    images: int
    layers: int
    shared_layers: int
    containers: int
    capacity: int
    space: int | None
    free_space: int | None
    max_depth: int | None
    quota: int | None
    registries: Options
