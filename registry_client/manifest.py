"""Manifests and indexes: the documents that say of what an image consists.

Sources: OCI image-spec manifest.md, image-index.md, descriptor.md; distribution "Image Manifest Version 2, Schema 2". The bytes as they
came are the truth (their digest names the image), so what was read is never written back; `encode_manifest` makes new ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from registry_client import media_types
from registry_client.digest import Digest
from registry_client.errors import MalformedError, UnsupportedError
from registry_client.platform import Platform
from registry_client.strict_json import SIZE_MAX, Fields, parse_object

LAYERS_MAX = 1000  # overlayfs stops at 500, docker at 127
DESCRIPTORS_MAX = 1000  # in one index
URLS_MAX = 100  # of one blob

_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a document says about a blob: its type, digest and size in bytes.

    Attributes:
        platform: only in an index, and not always there.
        artifact_type: what an artifact that is no image says it is, or ``""``.
        urls: where else the blob can be had. They are not followed.
    """

    media_type: str
    digest: Digest
    size: int
    platform: Platform | None = None
    annotations: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    artifact_type: str = ""
    urls: tuple[str, ...] = ()

    @property
    def is_attestation(self) -> bool:
        """Whether this entry of an index is a provenance or SBOM document of buildkit, and no image."""
        unknown = self.platform is not None and "unknown" in (self.platform.os, self.platform.architecture)
        return unknown or "vnd.docker.reference.type" in self.annotations


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image for one platform: a configuration and layers, lowest first."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    artifact_type: str = ""

    def check_runnable(self, what: str) -> None:
        """Refuses what is no image with a root file system that we can read.

        Raises:
            UnsupportedError: an artifact; or a layer that is encrypted, foreign, or of an unknown type.
        """
        if self.config.media_type not in media_types.CONFIGS:
            kind = self.artifact_type or self.config.media_type
            raise UnsupportedError(f"{what}: not a runnable image (artifactType={kind})")
        for index, layer in enumerate(self.layers):
            name = f"{what}: layer {index + 1} of {len(self.layers)} ({layer.digest.short})"
            if media_types.is_encrypted(layer.media_type):
                raise UnsupportedError(f"{name} is encrypted ({layer.media_type})")
            if media_types.is_foreign(layer.media_type):
                raise UnsupportedError(f"{name} is foreign, its bytes are not in the registry ({layer.media_type})")
            if layer.media_type not in media_types.LAYERS:
                raise UnsupportedError(f"{name} has unknown media type {layer.media_type!r}")


@dataclass(frozen=True, slots=True)
class Index:
    """One image for several platforms: descriptors of manifests, or of further indexes."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=lambda: _NOTHING)


def parse_manifest(data: bytes, media_type: str, what: str) -> Manifest | Index:
    """Parses a manifest or an index.

    The type is what ``media_type`` (the Content-Type, or the descriptor's) and the body's ``mediaType`` agree on. Where neither names a
    type, as in early OCI documents behind a generic Content-Type, the body's own lists decide.

    Args:
        media_type: ``""`` or a generic one (``application/json``) if nothing is known.
        what: name of the document, for messages.

    Raises:
        MalformedError: breaks its specification, or its two types disagree, or it is manifest and index at once.
        UnsupportedError: schema 1, or no manifest at all.
    """
    if media_type in media_types.SCHEMA_1:
        raise _schema_1(what)
    fields = parse_object(data, what)
    version = fields.integer("schemaVersion")
    if version == 1:
        raise _schema_1(what)
    if version != 2:
        raise MalformedError(f"{what}: schemaVersion is {version}, not 2")
    own_type = fields.string("mediaType", "")
    known = media_types.INDEXES | media_types.MANIFESTS
    if media_type in known and own_type and own_type != media_type:
        raise MalformedError(f"{what}: served as {media_type}, but its mediaType is {own_type!r}")
    is_index, is_manifest = "manifests" in fields, "layers" in fields or "config" in fields
    if is_index and is_manifest:
        raise MalformedError(f"{what}: has manifests and layers at once")
    agreed = media_type if media_type in known else own_type
    if not agreed:
        agreed = media_types.OCI_INDEX if is_index else media_types.OCI_MANIFEST
    if agreed not in known:
        raise UnsupportedError(f"{what}: media type {agreed[:160]!r} is neither manifest nor index")
    if agreed in media_types.INDEXES:
        if is_manifest:
            raise MalformedError(f"{what}: is an index ({agreed}), but has layers")
        return _parse_index(fields, agreed)
    if is_index:
        raise MalformedError(f"{what}: is a manifest ({agreed}), but has manifests")
    return _parse_image_manifest(fields, agreed)


def parse_descriptor(fields: Fields) -> Descriptor:
    """Reads one descriptor.

    Raises:
        MalformedError: a field is missing, or of a wrong type or range.
    """
    platform = None
    if "platform" in fields:
        inner = fields.nested("platform")
        platform = Platform.of(
            inner.string("os", ""), inner.string("architecture", ""), inner.string("variant", ""), inner.string("os.version", "")
        )
    return Descriptor(
        media_type=fields.string("mediaType"),
        digest=fields.digest("digest"),
        size=fields.integer("size"),
        platform=platform,
        annotations=MappingProxyType(fields.string_map("annotations")),
        artifact_type=fields.string("artifactType", ""),
        urls=tuple(fields.strings("urls", maximum=URLS_MAX)),
    )


def encode_manifest(media_type: str, config: Descriptor, layers: Sequence[Descriptor], annotations: Mapping[str, str]) -> bytes:
    """A manifest of an image: the same bytes each time.

    Args:
        layers: lowest first. Of descriptors, all is written that belongs in a manifest.
    """
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": _fields_of(config),
        "layers": [_fields_of(layer) for layer in layers],
    }
    if annotations:
        document["annotations"] = dict(sorted(annotations.items()))
    return json.dumps(document, indent=3, ensure_ascii=False).encode()  # as docker writes it


def _fields_of(descriptor: Descriptor) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "size": descriptor.size,
        "digest": str(descriptor.digest),
    }
    if descriptor.urls:
        fields["urls"] = list(descriptor.urls)
    if descriptor.annotations:
        fields["annotations"] = dict(sorted(descriptor.annotations.items()))
    return fields


def check_document_size(descriptor: Descriptor, what: str) -> None:
    """Refuses a manifest or configuration that says it is bigger than documents may be, before it is fetched.

    Raises:
        MalformedError: more than 4 MiB.
    """
    if descriptor.size > SIZE_MAX:
        raise MalformedError(f"{what}: {descriptor.size} bytes, more than {SIZE_MAX}")


def _parse_index(fields: Fields, media_type: str) -> Index:
    manifests = tuple(parse_descriptor(entry) for entry in fields.objects("manifests", maximum=DESCRIPTORS_MAX))
    return Index(media_type, manifests, MappingProxyType(fields.string_map("annotations")))


def _parse_image_manifest(fields: Fields, media_type: str) -> Manifest:
    layers = tuple(parse_descriptor(entry) for entry in fields.objects("layers", maximum=LAYERS_MAX))
    return Manifest(
        media_type=media_type,
        config=parse_descriptor(fields.nested("config")),
        layers=layers,
        annotations=MappingProxyType(fields.string_map("annotations")),
        artifact_type=fields.string("artifactType", ""),
    )


def _schema_1(what: str) -> UnsupportedError:
    return UnsupportedError(
        f"{what}: image manifest schema 1 is deprecated and not supported; rebuild and push the image with a current tool"
    )
