"""OCI image layouts written from layer tars (image-spec, image-layout.md)."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SHELL: Mapping[str, object] = {"Cmd": ["/bin/sh"], "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}
"""What an image runs that is given nothing else."""

_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Image:
    """An image in an OCI layout, and the tars that it was made of.

    Attributes:
        layout: directory of the layout.
        layers: the uncompressed layers, first to last.
    """

    name: str
    layout: Path
    layers: tuple[Path, ...]
    tag: str = "latest"

    @property
    def source(self) -> str:
        """Where skopeo finds it."""
        return f"oci:{self.layout}:{self.tag}"

    @property
    def repository(self) -> str:
        """Its name in a registry, tag included."""
        return f"judged/{self.name}:{self.tag}"


def write_layout(layout: Path, layers: Sequence[Path], tag: str = "latest", config: Mapping[str, object] = SHELL) -> None:
    """Writes a layout with one image of gzipped layers for linux/amd64."""
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    written = [_write_layer(blobs, layer) for layer in layers]
    image = {
        "created": "2023-11-14T22:13:20Z",
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [diff_id for diff_id, _ in written]},
        "history": [{"created": "2023-11-14T22:13:20Z", "created_by": f"layer {number}"} for number in range(len(layers))],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": _write_json(blobs, image, "application/vnd.oci.image.config.v1+json"),
        "layers": [descriptor for _, descriptor in written],
    }
    descriptor = _write_json(blobs, manifest, "application/vnd.oci.image.manifest.v1+json")
    descriptor["annotations"] = {"org.opencontainers.image.ref.name": tag}
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [descriptor]}))


def _write_layer(blobs: Path, layer: Path) -> tuple[str, dict[str, object]]:
    inflated, compressed, size = hashlib.sha256(), hashlib.sha256(), 0
    squeeze = zlib.compressobj(1, wbits=31)
    staged = blobs / f".{layer.name}"
    with layer.open("rb") as source, staged.open("wb") as sink:
        more = True
        while more:
            data = source.read(_PIECE)
            more = bool(data)
            inflated.update(data)
            packed = squeeze.compress(data) if more else squeeze.flush()
            compressed.update(packed)
            size += sink.write(packed)
    staged.rename(blobs / compressed.hexdigest())
    descriptor = {
        "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
        "digest": f"sha256:{compressed.hexdigest()}",
        "size": size,
    }
    return f"sha256:{inflated.hexdigest()}", descriptor


def _write_json(blobs: Path, value: object, media_type: str) -> dict[str, object]:
    data = json.dumps(value).encode()
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}
