"""Builds small images: in memory, in OCI layouts, in docker-archives."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True)
class BuiltImage:
    """An image in memory. ``blobs`` holds configuration and layers by digest, not the manifest."""

    manifest: bytes
    media_type: str
    config: bytes
    blobs: Mapping[str, bytes]
    layers: tuple[bytes, ...]
    platform: str

    @property
    def digest(self) -> str:
        return digest_of(self.manifest)

    @property
    def image_id(self) -> str:
        return digest_of(self.config)

    @property
    def layer_digests(self) -> list[str]:
        return [layer["digest"] for layer in json.loads(self.manifest)["layers"]]

    @property
    def diff_ids(self) -> list[str]:
        return [digest_of(layer) for layer in self.layers]

    def descriptor(self, *, annotations: Mapping[str, str] | None = None) -> dict[str, Any]:
        """For an index."""
        os, architecture, *variant = self.platform.split("/")
        platform = {"os": os, "architecture": architecture} | ({"variant": variant[0]} if variant else {})
        found = {"mediaType": self.media_type, "digest": self.digest, "size": len(self.manifest), "platform": platform}
        return found | ({"annotations": dict(annotations)} if annotations else {})


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def make_tar(files: Mapping[str, bytes] | Iterable[tuple[str, bytes]]) -> bytes:
    """A tar of regular files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files.items() if isinstance(files, Mapping) else files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def build_image(
    layers: Sequence[bytes],
    *,
    compression: str = "gzip",
    platform: str = "linux/amd64",
    config: Mapping[str, Any] | None = None,
    manifest: Mapping[str, Any] | None = None,
) -> BuiltImage:
    """An image of these tars, lowest first.

    Args:
        compression: ``gzip``, ``zstd`` or ``none``.
        config: fields that replace those of the configuration.
        manifest: likewise, of the manifest.
    """
    os, architecture, *variant = platform.split("/")
    config_fields: dict[str, Any] = {
        "created": "2024-05-01T12:00:00Z",
        "architecture": architecture,
        "os": os,
        "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
        "history": [{"created": "2024-05-01T12:00:00Z", "created_by": f"layer {number}"} for number in range(len(layers))],
    }
    if variant:
        config_fields["variant"] = variant[0]
    config_bytes = json.dumps(config_fields | dict(config or {})).encode()
    packed = [_compress(layer, compression) for layer in layers]
    suffix = "" if compression == "none" else f"+{compression}"
    manifest_fields = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": digest_of(config_bytes), "size": len(config_bytes)},
        "layers": [{"mediaType": OCI_LAYER + suffix, "digest": digest_of(blob), "size": len(blob)} for blob in packed],
    } | dict(manifest or {})
    blobs = {digest_of(blob): blob for blob in [config_bytes, *packed]}
    media_type = str(manifest_fields["mediaType"])
    return BuiltImage(json.dumps(manifest_fields).encode(), media_type, config_bytes, blobs, tuple(layers), platform)


def build_index(entries: Sequence[Mapping[str, Any]], media_type: str = OCI_INDEX) -> bytes:
    """An index of descriptors; see `BuiltImage.descriptor`."""
    return json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": [dict(entry) for entry in entries]}).encode()


def write_layout(path: Path, images: Mapping[str, BuiltImage | Sequence[BuiltImage]]) -> Path:
    """An OCI layout directory with these tags. Several images for one tag become an index."""
    blobs: dict[str, bytes] = {}
    entries: list[dict[str, Any]] = []
    for tag, image in images.items():
        annotations = {"org.opencontainers.image.ref.name": tag}
        several = [image] if isinstance(image, BuiltImage) else list(image)
        for one in several:
            blobs |= dict(one.blobs) | {one.digest: one.manifest}
        if isinstance(image, BuiltImage):
            entries.append(image.descriptor(annotations=annotations))
        else:
            index = build_index([one.descriptor() for one in several])
            blobs[digest_of(index)] = index
            entries.append(
                {"mediaType": OCI_INDEX, "digest": digest_of(index), "size": len(index), "annotations": annotations},
            )
    (path / "blobs/sha256").mkdir(parents=True)
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (path / "index.json").write_bytes(build_index(entries))
    for digest, data in blobs.items():
        (path / "blobs/sha256" / digest.removeprefix("sha256:")).write_bytes(data)
    return path


def write_archive(path: Path, layout: Path) -> Path:
    """An oci-archive of a layout directory."""
    with tarfile.open(path, "w") as tar:
        tar.add(layout, arcname=".")
    return path


def write_docker_archive(path: Path, images: Mapping[str, BuiltImage], *, compression: str = "none") -> Path:
    """A docker-archive as docker wrote it before version 25. A layer that two images share is a symbolic link in the second."""
    entries = []
    seen: dict[str, str] = {}
    with tarfile.open(path, "w") as tar:

        def add(name: str, data: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))

        for tag, image in images.items():
            config = image.image_id.removeprefix("sha256:") + ".json"
            add(config, image.config)
            names = []
            for number, (layer, diff_id) in enumerate(zip(image.layers, image.diff_ids, strict=True)):
                name = f"{digest_of(f'{tag}{number}'.encode())[7:]}/layer.tar"
                names.append(name)
                if diff_id in seen:
                    link = tarfile.TarInfo(name)
                    link.type, link.linkname = tarfile.SYMTYPE, f"../{seen[diff_id]}"
                    tar.addfile(link)
                else:
                    seen[diff_id] = name
                    add(name, _compress(layer, compression))
            entries.append({"Config": config, "RepoTags": [tag], "Layers": names})
        add("manifest.json", json.dumps(entries).encode())
    return path


def _compress(data: bytes, compression: str) -> bytes:
    if compression == "gzip":
        return gzip.compress(data, 6, mtime=0)
    if compression == "zstd":
        return zstandard.compress(data)
    assert compression == "none"
    return data
