"""Commits: what a container's disk has over its image becomes a layer, and with it an image.

The layer's tar is read from the disk twice, once for its digest and once to be converted; it is never put anywhere.

Source: moby ``daemon/commit.go``, ``image/image.go`` (NewChildImage).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from imgstore.blocks import Bytes
from imgstore.catalog.catalog import Catalog, ContainerRow, ImageRow
from imgstore.containers import marker_of
from imgstore.diffs import ContainerView, open_container
from imgstore.disks import Disks
from imgstore.errors import InvalidError
from imgstore.ext4.diff import Difference, layer_changes
from imgstore.images import NoSuchImageError, names_of, parse_reference
from imgstore.instructions import apply_changes
from imgstore.intake import Intake
from imgstore.layers.tar_writer import tar_pieces
from imgstore.live_disks import LiveDisks
from imgstore.markers import ContainerMarker
from imgstore.progress import ProgressSink
from imgstore.run_config import merge_run_config
from imgstore.stop import Stop
from imgstore.timestamps import format_time
from registry_client import media_types
from registry_client.blobs import BlobStream
from registry_client.digest import Digest
from registry_client.image import Image
from registry_client.image_config import parse_image_config
from registry_client.manifest import LAYERS_MAX, Descriptor
from registry_client.reference import Reference

_OF_AN_IMAGE = (
    "User",
    "ExposedPorts",
    "Env",
    "Entrypoint",
    "Cmd",
    "Volumes",
    "WorkingDir",
    "Labels",
    "StopSignal",
    "ArgsEscaped",
    "Healthcheck",
    "OnBuild",
    "Shell",
)
"""What of a container's configuration goes into an image; the rest (host name, terminal, …) is the container's own."""


@dataclass(frozen=True, slots=True)
class CommitOptions:
    """What the image of a commit is to be.

    Attributes:
        reference: its name, or None.
        message: comment of its newest step.
        author: of the image.
        changes: instructions of a Dockerfile that change its configuration.
        config: what it runs, in Docker's names, in the place of what the container runs; the rest of that is kept.
        created: when it was made; None: now.
    """

    reference: str | None = None
    message: str = ""
    author: str = ""
    changes: Sequence[str] = ()
    config: Mapping[str, Any] | None = None
    created: datetime | None = None


class Commits:
    """Makes images of the containers of a store."""

    def __init__(self, catalog: Catalog, disks: Disks, live_disks: LiveDisks, intake: Intake) -> None:
        self._catalog = catalog
        self._disks = disks
        self._live_disks = live_disks
        self._intake = intake

    def commit(self, container: ContainerRow, options: CommitOptions, progress: ProgressSink, stop: Stop) -> ImageRow:
        """The new image. After an error or a crash it is not there, and nothing of it.

        Raises:
            NoSuchImageError: the container's image is gone.
            InvalidError: the options make no sense.
            InUseError: a guest runs on the container's disk.
            NoSpaceError: the layer does not fit the disk of an image, the datastore, or the quota.
        """
        reference = None if options.reference is None else _parse_name(options.reference)
        parent = self._catalog.image(container.image_id)
        if parent is None:
            raise NoSuchImageError(f"No such image: {container.image_id}: the container {container.name} was made from it")
        marker = marker_of(container)
        changed = apply_changes(marker.config if options.config is None else options.config, options.changes)
        run_config = merge_run_config(marker.config, changed)
        with open_container(self._live_disks, container) as view:
            source = _LayerSource(view, view.differences(exact=True))
            layer = source.describe(stop)
            layers = self._layers_of(parent)
            if layer is not None and len(layers) == LAYERS_MAX:
                raise InvalidError(f"container {container.name}: its image has {LAYERS_MAX} layers already")
            data = _make_config(parent, layer, run_config, marker, options)
            config = parse_image_config(data, f"commit of container {container.name}")
            image = Image(config, layers if layer is None else (*layers, layer))
            tagged = datetime.now(UTC).isoformat(timespec="microseconds")
            names = [replace(name, tagged=tagged) for name in names_of(reference, str(config.image_id), None)]
            return self._intake.take(source, image, names, progress, stop, parent=parent.id).image

    def _layers_of(self, image: ImageRow) -> tuple[Descriptor, ...]:
        """The layers that are there, as the image has them; as plain tars where it came without blobs."""
        descriptors = []
        for layer in image.layers:
            size = self._disks.read_marker(layer.chain_id).size
            digest = layer.digest or layer.diff_id
            descriptors.append(Descriptor(layer.media_type, Digest(digest), size))
        return tuple(descriptors)


class _LayerSource:
    """A BlobSource whose only blob is the tar of a container's layer."""

    local = True

    def __init__(self, view: ContainerView, differences: Sequence[Difference]) -> None:
        self._view = view
        self._differences = differences

    def describe(self, stop: Stop) -> Descriptor | None:
        """Descriptor of the tar, which is read once; None if there is nothing in it."""
        if not self._differences:
            return None
        running = hashlib.sha256()
        size = 0
        for piece in self._pieces():
            stop.check()
            running.update(piece)
            size += len(piece)
        return Descriptor(media_types.DOCKER_LAYER, Digest(f"sha256:{running.hexdigest()}"), size)

    def open_blob(self, descriptor: Descriptor) -> BlobStream:
        """See BlobSource."""
        return BlobStream(descriptor, lambda offset: _TarBody(self._pieces))

    def _pieces(self) -> Iterator[Bytes]:
        return tar_pieces(layer_changes(self._view.after, self._differences))


class _TarBody:
    """A Body of a tar that is made while it is read; from its beginning, for it never breaks off."""

    def __init__(self, pieces: Callable[[], Iterator[Bytes]]) -> None:
        self._pieces = pieces()
        self._piece = memoryview(b"")

    def read(self, size: int) -> bytes:
        if not self._piece:
            self._piece = memoryview(next(self._pieces, b""))
        taken, self._piece = self._piece[:size], self._piece[size:]
        return bytes(taken)

    def interrupt(self) -> None:
        """Nothing to interrupt: it never waits."""

    def close(self) -> None:
        self._piece = memoryview(b"")


def _parse_name(text: str) -> Reference:
    reference = parse_reference(text)
    if reference.digest is not None:
        raise InvalidError("cannot commit to digest reference")
    return reference


def _make_config(
    parent: ImageRow, layer: Descriptor | None, run_config: Mapping[str, Any], container: ContainerMarker, options: CommitOptions
) -> bytes:
    """The image configuration: that of the parent with one more step."""
    values: dict[str, Any] = json.loads(parent.config)
    time = format_time(options.created or datetime.now(UTC))
    step = {
        "created": time,
        **({"author": options.author} if options.author else {}),
        "created_by": " ".join(container.config.get("Cmd") or []),
        **({"comment": options.message} if options.message else {}),
        **({} if layer is not None else {"empty_layer": True}),
    }
    diff_ids = [*values["rootfs"]["diff_ids"], *([] if layer is None else [str(layer.digest)])]
    values |= {
        "created": time,
        "author": options.author,
        "container": container.id,
        "config": {name: run_config[name] for name in _OF_AN_IMAGE if run_config.get(name)},
        "rootfs": {**values["rootfs"], "diff_ids": diff_ids},
        "history": [*(values.get("history") or []), step],
    }
    for name in ("comment", "container_config", *([] if options.author else ["author"])):
        values.pop(name, None)
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode(errors="surrogateescape")
