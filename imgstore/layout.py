"""Layout: where everything of a store lies on its datastore. Described for users in ``docs/reference/store-layout.md``.

::

    store.json                          the store's marker: version, id, disk size
    disks/scratch.vmdk                  the empty formatted base of every chain
    disks/<chain id>.vmdk               a layer's disk; absent when the layer changes nothing
    disks/<chain id>-delta.vmdk         its data, where the form of the disks is vmfs-sparse; likewise of the scratch disk
    disks/<chain id>-flat.vmdk          its data, where it is vmfs; the platform's to show or hide
    disks/<chain id>.import.vmdk        while the platform makes the disk of it: what it makes it of
    disks/blank.vmdk                    the empty disk below the scratch disk, where the form is vmfs-sparse; its data: blank-flat.vmdk
    disks/<chain id>.crc32c             CRC-32C of each of its grains
    disks/<chain id>.merged.crc32c      the same, of a disk that was merged with those below it
    disks/<chain id>.recipe             how the layer's tar is made again out of its disk
    disks/<chain id>.json               the layer's marker
    disks/<chain id>.blobs.json         blobs that pushes made of the layer; absent before the first
    images/<image id>/config.json       as the registry sent it
    images/<image id>/manifest.json     likewise; empty where the source has none
    images/<image id>/image.json        the image's marker
    references/<sha256 of name>.json    a name's marker
    containers/<container id>.vmdk      a container's writable disk, a child of its image's top disk
    containers/<container id>.json      the container's marker
    containers/<id>/<id>.vmdk           on a vSphere datastore: a container's disk, made by the platform; its further files lie beside it
    volume-stores/<sha256 of name>.json a named place for volumes
    volumes/<sha256 of name>.json       a volume's marker; here for the volume store ``default``, else at its own place
    volumes/<disk id>.vmdk              a disk of a volume, or one that its snapshots and clones stand on
    volumes/<name>/<name>.vmdk          on a vSphere datastore: the disk of a volume, which has no marker there
    quota.json                          how much the store may take; absent without a limit

Beside a writable disk lies, while it is being changed, ``<stem>.intent``: what an interrupted change still has to write.

Ids are written as their hex digits alone; names never become paths. All disks lie in one directory, so that a disk can name its parent by
the bare file name: QEMU and others put a relative path behind the path of the child, chain link after chain link, and fail when the whole
is longer than 4096 bytes.
"""

from __future__ import annotations

import hashlib

STORE = "store.json"
DISKS = "disks"
IMAGES = "images"
REFERENCES = "references"
CONTAINERS = "containers"
VOLUMES = "volumes"
VOLUME_STORES = "volume-stores"
QUOTA = "quota.json"

SCRATCH = "scratch"
"""What the scratch disk has in the place of a chain id."""

BLANK = "blank"
"""What the empty disk below the scratch disk has there."""

_OF_A_LAYER = frozenset({"json", "vmdk", "crc32c", "merged.crc32c", "recipe", "blobs.json", "import.vmdk"})
"""What stands behind the first dot in the name of a file of a layer."""

_EXTENTS = ("-delta", "-flat")
"""What stands before the last dot in the name of a file with the data of a disk."""

IMAGE_MARKER = "image.json"
CONFIG = "config.json"
MANIFEST = "manifest.json"


def hex_of(digest: str) -> str:
    """The hex digits of ``sha256:<hex>``."""
    return digest.partition(":")[2]


def disk_file(stem: str) -> str:
    """Name in ``disks`` of the VMDK of a layer, by the hex digits of its chain id, or of the scratch disk."""
    return f"{stem}.vmdk"


def delta_file(stem: str) -> str:
    """Name of the file with the data of a disk that is a redo log."""
    return f"{stem}-delta.vmdk"


def flat_file(stem: str) -> str:
    """Name of the file with the data of a disk that has all bytes in it."""
    return f"{stem}-flat.vmdk"


def import_file(stem: str) -> str:
    """Name in ``disks`` of what the platform is to make a layer's disk of."""
    return f"{stem}.import.vmdk"


def grain_sums_file(stem: str) -> str:
    """Name in ``disks`` of the checksums of a disk."""
    return f"{stem}.crc32c"


def merged_sums_file(stem: str) -> str:
    """Name in ``disks`` of the checksums of a disk that took the place of a layer's and shows all below it too."""
    return f"{stem}.merged.crc32c"


def recipe_file(stem: str) -> str:
    """Name in ``disks`` of the recipe of a layer, by the hex digits of its chain id."""
    return f"{stem}.recipe"


def layer_marker(chain_id: str) -> str:
    """Path of the marker of a layer."""
    return f"{DISKS}/{hex_of(chain_id)}.json"


def blobs_file(chain_id: str) -> str:
    """Path of what is remembered of the blobs made of a layer."""
    return f"{DISKS}/{hex_of(chain_id)}.blobs.json"


def layer_files(chain_id: str) -> tuple[str, ...]:
    """Paths of all files that a layer may have, its marker first."""
    stem = hex_of(chain_id)
    names = (*disk_files(stem), grain_sums_file(stem), merged_sums_file(stem), recipe_file(stem))
    return layer_marker(chain_id), *(f"{DISKS}/{name}" for name in names), blobs_file(chain_id)


def disk_files(stem: str) -> tuple[str, ...]:
    """Names of all files that a disk may be made of, the one that makes it a disk first."""
    return disk_file(stem), delta_file(stem), flat_file(stem), import_file(stem)


def layer_of(name: str) -> str | None:
    """The chain id of the layer that a file in ``disks`` belongs to; None where it is no layer's."""
    stem, _, suffix = name.partition(".")
    if suffix == "vmdk":
        stem = next((stem.removesuffix(extent) for extent in _EXTENTS if stem.endswith(extent)), stem)
    is_layer = suffix in _OF_A_LAYER and len(stem) == 64 and set(stem) <= set("0123456789abcdef")
    return f"sha256:{stem}" if is_layer else None


def image_directory(image_id: str) -> str:
    """Directory of an image."""
    return f"{IMAGES}/{hex_of(image_id)}"


def reference_file(name: str) -> str:
    """Path of the marker of a name."""
    return f"{REFERENCES}/{_hashed(name)}.json"


def container_marker(container_id: str) -> str:
    """Path of the marker of a container."""
    return f"{CONTAINERS}/{container_id}.json"


def container_disk(container_id: str) -> str:
    """Path of the disk of a container."""
    return f"{CONTAINERS}/{disk_file(container_id)}"


def platform_disk(directory: str, name: str) -> str:
    """Path of a disk that the platform makes, in ``containers`` or ``volumes``: in a directory of its own, with what else it is made of."""
    return f"{directory}/{name}/{disk_file(name)}"


def volume_marker(name: str) -> str:
    """Path of the marker of a volume, on the datastore of its volume store."""
    return f"{VOLUMES}/{_hashed(name)}.json"


def volume_disk(disk_id: str) -> str:
    """Path of a disk of a volume, on the datastore of its volume store."""
    return f"{VOLUMES}/{disk_file(disk_id)}"


def volume_store_marker(name: str) -> str:
    """Path of the marker of a volume store."""
    return f"{VOLUME_STORES}/{_hashed(name)}.json"


def _hashed(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
