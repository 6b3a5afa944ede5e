"""Markers: the small JSON files that make a layer, an image, a name, a container or a volume exist.

A marker is the last file written for its object: without it, the object is not there, whatever else lies on the datastore. Each carries the
version of its form and a checksum over itself, so that a torn or edited marker is told from a whole one on any datastore.
What they hold and where they lie is described in ``docs/reference/store-layout.md``.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, TypeVar, get_args

import msgspec

from imgstore.errors import CorruptError, UnsupportedError
from imgstore.structs import prepare

VERSION = 1
LIMIT = 1 << 20
"""Longest marker in bytes; an image of 127 layers needs a twentieth of it."""


HOSTED = "hosted"
"""The form of VMDK that stores have."""


class StoreMarker(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """``store.json``: a directory is a store.

    Attributes:
        id: random, names this store in leases and logs; no disk depends on it.
        disk_size: capacity of every image disk of this store in bytes.
        max_depth: how many disks the chain of an image may have; not written where any number is fine.
    """

    id: str
    disk_size: int
    max_depth: Annotated[int, msgspec.Meta(ge=1)] | None = None


class DiskRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The disk of a layer.

    Attributes:
        file: name of the VMDK, beside the marker.
        size: its length in bytes, holes included; of ``vmfs-sparse`` that of the file with its data, of ``vmfs`` the capacity.
        grains: how many grains of 64 KiB it holds.
        cid: its content id, 8 hex digits.
        grain_sums: file beside the marker with the CRC-32C of each grain (u32, little-endian) in the order of the file.
        grain_sums_digest: ``sha256:…`` of that file.
        merged: it stands on no other layer: what the disks below it show was merged into it.
        format: a ``DiskFormat``, not written where it is the form that stores have. A disk of another form has no ``grain_sums``, and
            its ``grain_sums_digest`` is of the file whose size is given; empty for ``vmfs``, whose file the platform made.
        origin: ``grain_sums_digest`` of the hosted disk that it was converted from, if it stands on others.
    """

    file: str
    size: int
    grains: int
    cid: str
    grain_sums: str
    grain_sums_digest: str
    merged: bool = False
    format: str = HOSTED
    origin: str = ""


class RecipeRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The recipe of a layer: how its tar is made again.

    Attributes:
        file: name of the recipe, beside the marker.
        size: its length in bytes.
        digest: ``sha256:…`` of it.
    """

    file: str
    size: int
    digest: str


class LayerMarker(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """``layer.json``: a layer is committed.

    Attributes:
        chain_id: identifies the layer with all below it (OCI image-spec, config.md, "Layer ChainID").
        diff_id: digest of its inflated tar.
        parent: chain id of the layer below, or None.
        size: bytes of the inflated tar.
        disk: None when the layer changes nothing over its parent: then its disk is the parent's.
        recipe: how the tar is made again out of the disk.
        replacement: the disk that is about to take the place of ``disk``, which has the same name; until this is gone again either of
            the two lies there. Not written where nothing is about to happen.
        covered: its disk is not on this datastore, though it changes something: a merged disk above shows it. Not written else.
    """

    chain_id: str
    diff_id: str
    parent: str | None
    size: int
    disk: DiskRecord | None
    recipe: RecipeRecord
    replacement: DiskRecord | None = None
    covered: bool = False


class ImageLayer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A layer as an image names it; ``digest`` of the compressed blob, None where none is known."""

    chain_id: str
    diff_id: str
    digest: str | None
    media_type: str


class ImageMarker(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """``image.json``: an image is committed. Its config and manifest lie beside it, as the registry sent them.

    Attributes:
        id: digest of ``config.json``.
        manifest_digest: digest of ``manifest.json``; None where the source has no manifest (a docker-archive).
        parent: id of the image that it was made from here; not written where it came as it is.
    """

    id: str
    manifest_digest: str | None
    layers: tuple[ImageLayer, ...]
    parent: str | None = None


class ReferenceMarker(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """``references/<sha256 of the name>.json``: a name of an image; see ``catalog.ReferenceRow``."""

    name: str
    image_id: str
    digest: str | None
    tagged: str | None = None


class BlobRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A blob that a push made of a layer: always gzip.

    Attributes:
        repositories: with their registries, that had it after a push; the latest first.
    """

    digest: str
    size: Annotated[int, msgspec.Meta(ge=1)]
    repositories: tuple[str, ...]


class BlobsMarker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``<chain id>.blobs.json``: what pushes made of a layer. Only a hint; without it the layer is no less there."""

    chain_id: str
    blobs: tuple[BlobRecord, ...]


class MountRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A volume that a container has.

    Attributes:
        volume: its name.
        destination: absolute path in the container, in normal form.
    """

    volume: str
    destination: str
    read_only: bool


class ContainerMarker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``containers/<id>.json``: a container is there. Its disk lies beside it, and has no digest: guests write it.

    Attributes:
        id: 64 hex digits, random.
        name: without a leading slash.
        created: RFC 3339, UTC, with nanoseconds.
        image: the name or id under which the image was asked for.
        chain_id: of the image's top layer; None for an image without layers. Its disks stay as long as the container does.
        capacity: of the disk in bytes.
        config: what the container runs: the image's configuration with what the creation changed, in Docker's names.
        host_config: how it was asked to run, in Docker's names: kept, shown, and left to the platform that runs it.
    """

    id: str
    name: str
    created: str
    image: str
    image_id: str
    chain_id: str | None
    platform: str
    capacity: int
    read_only: bool
    mounts: tuple[MountRecord, ...]
    config: dict[str, Any]
    host_config: dict[str, Any]


class SnapshotRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a volume was at one moment: ``disk`` shows it, and is not written any more."""

    name: str
    disk: str
    created: str


class VolumeMarker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``volumes/<sha256 of the name>.json``: a volume is there.

    Attributes:
        driver: ``vsphere`` or ``local``, which mean the same.
        options: as they were given, in their own case.
        created: RFC 3339, UTC, with nanoseconds.
        capacity: of the disk in bytes.
        disk: id of its disk, 32 hex digits, random; what it stands on is found by the parent hints.
        image: reference of the image that its first content came from, or empty.
        snapshots: oldest first.
    """

    name: str
    driver: str
    options: dict[str, str]
    labels: dict[str, str]
    created: str
    capacity: int
    disk: str
    image: str
    snapshots: tuple[SnapshotRecord, ...]


class VolumeStoreMarker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``volume-stores/<sha256 of the name>.json``: a place for volumes; ``location`` as the user gave it, a directory made absolute."""

    name: str
    location: str


class QuotaMarker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``quota.json``: bytes that images, containers and volumes of the store may take together."""

    limit: Annotated[int, msgspec.Meta(ge=1)]


Marker = (
    StoreMarker
    | LayerMarker
    | ImageMarker
    | ReferenceMarker
    | BlobsMarker
    | ContainerMarker
    | VolumeMarker
    | VolumeStoreMarker
    | QuotaMarker
)
M = TypeVar("M", bound=Marker)


class _Envelope(msgspec.Struct):
    version: int
    checksum: str
    content: msgspec.Raw


prepare(_Envelope, *get_args(Marker))


def encode(marker: Marker) -> bytes:
    """The marker's file, deterministic."""
    content = msgspec.json.encode(marker)
    return (
        msgspec.json.format(msgspec.json.encode(_Envelope(VERSION, _checksum(content), msgspec.Raw(content))), indent=1) + b"\n"
    )


def decode(kind: type[M], data: bytes, name: str) -> M:
    """Reads a marker's file.

    Args:
        name: path, for the errors.

    Raises:
        UnsupportedError: a newer program wrote it.
        CorruptError: it is torn, edited, or no marker of this kind.
    """
    try:
        envelope = msgspec.json.decode(data, type=_Envelope)
        if envelope.version > VERSION:
            raise UnsupportedError(
                f"{name}: format version {envelope.version}, this imgstore knows up to {VERSION}", hint="upgrade imgstore"
            )
        content = msgspec.json.format(bytes(envelope.content), indent=-1)
        if _checksum(content) != envelope.checksum:
            raise CorruptError(f"{name}: checksum is {_checksum(content)}, not {envelope.checksum}")
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptError(f"{name}: {error}") from error


def _checksum(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()
