"""Layout: where everything of a store lies on its datastore. Described for users in ``docs/reference/store-layout.md``.

::

    store.json                          the store's marker: version, id, disk size
    disks/scratch/scratch.vmdk          the empty formatted base of every chain
    disks/<chain id>/<chain id>.vmdk    a layer's disk; absent when the layer changes nothing
    disks/<chain id>/<chain id>.crc32c  CRC-32C of each of its grains
    disks/<chain id>/layer.json         the layer's marker
    images/<image id>/config.json       as the registry sent it
    images/<image id>/manifest.json     likewise; empty where the source has none
    images/<image id>/image.json        the image's marker
    references/<sha256 of name>.json    a name's marker

Ids are written as their hex digits alone; names never become paths.
"""

from __future__ import annotations

import hashlib

STORE = "store.json"
DISKS = "disks"
IMAGES = "images"
REFERENCES = "references"

SCRATCH = "disks/scratch"
SCRATCH_DISK = "scratch.vmdk"

LAYER_MARKER = "layer.json"
IMAGE_MARKER = "image.json"
CONFIG = "config.json"
MANIFEST = "manifest.json"


def hex_of(digest: str) -> str:
    """The hex digits of ``sha256:<hex>``."""
    return digest.partition(":")[2]


def layer_directory(chain_id: str) -> str:
    """Directory of a layer."""
    return f"{DISKS}/{hex_of(chain_id)}"


def disk_file(chain_id: str) -> str:
    """Name of a layer's VMDK in its directory; no other file of the store has it."""
    return f"{hex_of(chain_id)}.vmdk"


def grain_sums_file(chain_id: str) -> str:
    """Name of the file of checksums beside a layer's VMDK."""
    return f"{hex_of(chain_id)}.crc32c"


def image_directory(image_id: str) -> str:
    """Directory of an image."""
    return f"{IMAGES}/{hex_of(image_id)}"


def reference_file(name: str) -> str:
    """Path of the marker of a name."""
    return f"{REFERENCES}/{hashlib.sha256(name.encode()).hexdigest()}.json"
