"""Saves: images as one tar that is an OCI image layout and a docker-archive at once, as Docker 25 and later write it.

``blobs/sha256/`` holds configurations as they came, layers as uncompressed tars, and a manifest made for these; ``index.json`` and
``oci-layout`` make it a layout, ``manifest.json`` a docker-archive, ``repositories`` is for readers older than that. Names, their order,
modes and times are docker's: a member of ``blobs`` that an image brought has the time of that image, all else the beginning of the epoch.
Docker also writes, for each layer, a configuration as before version 1.10, which nothing in the archive refers to; these are left out.
The same images give the same bytes.

Source: moby ``image/tarexport/save.go`` (28.2); OCI image-spec image-layout.md.
"""

from __future__ import annotations

import contextlib
import json
import tarfile
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from imgstore import gc
from imgstore.blocks import Bytes
from imgstore.catalog.catalog import Catalog, ImageRow
from imgstore.disks import Disks
from imgstore.errors import CorruptError, NotFoundError
from imgstore.images import Images, NoSuchImageError, parse_reference
from imgstore.layout import hex_of
from imgstore.leases import Leases
from imgstore.registries import translated
from registry_client import media_types
from registry_client.digest import Digest
from registry_client.image_config import ImageConfig, parse_image_config
from registry_client.layout import CONTAINERD_NAME, REF_NAME
from registry_client.platform import Platform, choose
from registry_client.reference import Reference

_BLOBS = "blobs/sha256"
_END = bytes(2 * tarfile.BLOCKSIZE)


@dataclass(slots=True)
class SavedImage:
    """An image to be saved, and the names that the archive is to give it."""

    row: ImageRow
    config: ImageConfig
    references: list[Reference] = field(default_factory=list)


def select_images(images: Images, catalog: Catalog, names: Sequence[str], platform: Platform | None) -> list[SavedImage]:
    """The images that are named, each once, in the order in which they are named first.

    A name with a tag gives the image that name; a repository stands for all its tags; an id, or a name with a digest, gives no name.

    Raises:
        NoSuchImageError: there is none of that name.
        NotFoundError: it is for another platform.
    """
    selected: dict[str, SavedImage] = {}
    for name in names:
        for row, reference in _find(images, catalog, name):
            if row.id not in selected:
                selected[row.id] = SavedImage(row, _config_of(row, platform))
            known = selected[row.id].references
            if reference is not None and reference not in known:
                known.append(reference)
    return list(selected.values())


def write_archive(saved: Sequence[SavedImage], disks: Disks, leases: Leases) -> Generator[Bytes, None, None]:
    """The archive, in pieces. That all is there is seen before this returns; its layers are not collected until the end, or `close`.

    Raises:
        NotFoundError: a layer is not there.
        CorruptError: a marker is damaged; while the pieces come: a layer is, and what came is no archive.
    """
    pieces = _write(saved, disks, leases)
    next(pieces)  # up to the first piece, which is empty
    return pieces


def _find(images: Images, catalog: Catalog, name: str) -> Iterator[tuple[ImageRow, Reference | None]]:
    """The images of a name, with the name that each has by it."""
    found = images.find_id(name)
    if found is not None:
        yield found, None
        return
    reference = parse_reference(name)
    if reference.digest is not None or ":" in name.rpartition("/")[2]:
        yield images.find(name), None if reference.digest is not None else reference
        return
    rows = [row for row in catalog.references() if row.name.startswith((f"{reference.name}:", f"{reference.name}@"))]
    if not rows:
        try:
            found = images.find(name)  # the start of an id
        except NoSuchImageError as error:
            raise NoSuchImageError(f"No such image: {name}", hint=error.hint) from None  # not one of the tag "latest" alone
        yield found, None
        return
    for row in rows:
        image = catalog.image(row.image_id)
        if image is None:
            raise NoSuchImageError(f"No such image: {name}")
        yield image, None if "@" in row.name else Reference.parse(row.name)


def _config_of(row: ImageRow, platform: Platform | None) -> ImageConfig:
    with translated():
        config = parse_image_config(row.config, f"image {row.id}")
    if platform is not None and choose(platform, [config.platform]) is None:
        raise NotFoundError(
            f"image {row.id}: no suitable export target found for platform {platform}: it is for {config.platform}"
        )
    return config


@dataclass(frozen=True, slots=True)
class _Member:
    """A file of the archive: its bytes, or the chain of layers whose last one it is."""

    size: int
    mtime: int
    data: bytes = b""
    chain_ids: Sequence[str] = ()


def _write(saved: Sequence[SavedImage], disks: Disks, leases: Leases) -> Generator[Bytes, None, None]:
    with gc.kept(leases, dict.fromkeys(layer.chain_id for image in saved for layer in image.row.layers)):
        members = _members(saved, disks)
        yield b""
        yield _header("blobs", tarfile.DIRTYPE) + _header(_BLOBS, tarfile.DIRTYPE)
        for name in sorted(members):
            member = members[name]
            yield _header(name, tarfile.REGTYPE, member.size, member.mtime)
            if member.chain_ids:
                with contextlib.closing(_sized(disks, member)) as pieces:
                    yield from pieces
            else:
                yield member.data
            yield bytes(-member.size % tarfile.BLOCKSIZE)
        yield _END


def _sized(disks: Disks, member: _Member) -> Generator[Bytes, None, None]:
    """A layer, of which the header said how long it is."""
    written = 0
    for piece in disks.read_layer(member.chain_ids):
        written += len(piece)
        yield piece
    if written != member.size:
        raise CorruptError(f"layer {member.chain_ids[-1]}: {written} bytes, its marker says {member.size}")


def _header(name: str, kind: bytes, size: int = 0, mtime: int = 0) -> bytes:
    """A tar header, with a PAX header before it for 8 GiB and more."""
    member = tarfile.TarInfo(name)
    member.type = kind
    member.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    member.size = size
    member.mtime = mtime
    return member.tobuf(tarfile.PAX_FORMAT)


def _members(saved: Sequence[SavedImage], disks: Disks) -> dict[str, _Member]:
    members: dict[str, _Member] = {}
    index: list[dict[str, Any]] = []
    manifests: list[dict[str, Any]] = []
    repositories: dict[str, dict[str, str]] = {}
    for image in saved:
        mtime = _mtime_of(image.config)
        chain_ids = [layer.chain_id for layer in image.row.layers]
        layers = []
        for count, layer in enumerate(image.row.layers, 1):
            size = disks.read_marker(layer.chain_id).size
            layers.append({"mediaType": media_types.OCI_LAYER, "digest": layer.diff_id, "size": size})
            members.setdefault(_blob(layer.diff_id), _Member(size, mtime, chain_ids=chain_ids[:count]))
        members.setdefault(_blob(image.row.id), _Member(len(image.row.config), mtime, image.row.config))
        manifest = _json(
            {
                "schemaVersion": 2,
                "mediaType": media_types.OCI_MANIFEST,
                "config": {"mediaType": media_types.OCI_CONFIG, "digest": image.row.id, "size": len(image.row.config)},
                "layers": layers,
            }
        )
        digest = str(Digest.of(manifest))
        members[_blob(digest)] = _Member(len(manifest), 0, manifest)
        entry = {"mediaType": media_types.OCI_MANIFEST, "digest": digest, "size": len(manifest)}
        names = [{CONTAINERD_NAME: str(reference), REF_NAME: reference.tag} for reference in image.references]
        index.extend({**entry, "annotations": annotations} for annotations in names)
        if not names:
            index.append(entry)
        for reference in image.references if layers else ():
            repositories.setdefault(reference.familiar_name, {})[str(reference.tag)] = hex_of(image.row.layers[-1].diff_id)
        manifests.append(_docker_manifest(image, layers))
    members["index.json"] = _document({"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": index})
    members["manifest.json"] = _document(manifests, end=b"\n")
    version = b'{"imageLayoutVersion": "1.0.0"}'
    members["oci-layout"] = _Member(len(version), 0, version)
    if repositories:
        ordered = {name: dict(sorted(tags.items())) for name, tags in sorted(repositories.items())}
        members["repositories"] = _document(ordered, end=b"\n")
    return members


def _docker_manifest(image: SavedImage, layers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """An element of ``manifest.json``."""
    digests = {layer["digest"]: layer for layer in sorted(layers, key=lambda layer: str(layer["digest"]))}
    sources = {
        digest: {"mediaType": layer["mediaType"], "size": layer["size"], "digest": digest} for digest, layer in digests.items()
    }
    return {
        "Config": _blob(image.row.id),
        "RepoTags": [reference.familiar for reference in image.references] or None,
        "Layers": [_blob(layer["digest"]) for layer in layers],
        **({"LayerSources": sources} if sources else {}),
    }


def _mtime_of(config: ImageConfig) -> int:
    return 0 if config.created is None else max(0, int(config.created.timestamp()))


def _blob(digest: str) -> str:
    return f"{_BLOBS}/{hex_of(digest)}"


def _document(value: object, *, end: bytes = b"") -> _Member:
    data = _json(value) + end
    return _Member(len(data), 0, data)


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
