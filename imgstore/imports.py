"""Imports: a tar of a file tree becomes an image of one layer.

Source: moby ``daemon/images/image_import.go``. The configuration has what docker's has, without the fields that are empty.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from imgstore.catalog.catalog import ImageRow
from imgstore.errors import InvalidError, UnsupportedError
from imgstore.images import names_of, parse_reference
from imgstore.inputs import open_input
from imgstore.instructions import apply_changes
from imgstore.intake import Intake
from imgstore.progress import ProgressSink
from imgstore.stop import Stop
from imgstore.timestamps import format_time
from registry_client import media_types
from registry_client.blobs import BlobStream
from registry_client.digest import DiffId, Digest
from registry_client.files import FileBody
from registry_client.image import Image
from registry_client.image_config import parse_image_config
from registry_client.manifest import Descriptor
from registry_client.platform import Platform
from registry_client.reference import Reference

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What the image of an import is to be.

    Attributes:
        reference: its name, or None.
        changes: instructions of a Dockerfile that make its configuration.
        message: its comment; if empty, the one that docker gives.
        platform: what it is said to run on; None: Linux on this machine's architecture.
        created: when it was made; None: now.
    """

    reference: str | None = None
    changes: Sequence[str] = ()
    message: str = ""
    platform: Platform | None = None
    created: datetime | None = None


def import_image(
    body: Path | BinaryIO,
    name: str,
    options: ImportOptions,
    intake: Intake,
    directory: Path | None,
    progress: ProgressSink,
    stop: Stop,
) -> ImageRow:
    """Takes the image in.

    Args:
        name: what errors call the body.
        directory: where a body that is compressed, or comes through a pipe, is put while it is read.

    Raises:
        InvalidError: the options make no sense.
        ImgstoreError: the tar cannot be read, or not be converted; nothing of it is left.
    """
    reference = None if options.reference is None else _parse_name(options.reference)
    platform = options.platform or Platform.host()
    if platform.os != "linux":
        raise UnsupportedError(f"platform {platform}: operating system is not supported")
    run_config = apply_changes({}, options.changes)
    created = options.created or datetime.now(UTC)
    with open_input(body, name, directory) as file:
        source = _TarSource(file)
        layer = source.describe()
        data = _make_config(DiffId(layer.digest), run_config, platform, options.message, created)
        config = parse_image_config(data, name)
        image = Image(config, (layer,))
        return intake.take(source, image, names_of(reference, str(config.image_id), None), progress, stop).image


class _TarSource:
    """A BlobSource whose only blob is a plain file."""

    local = True

    def __init__(self, file: BinaryIO) -> None:
        self._fd = file.fileno()

    def describe(self) -> Descriptor:
        """Descriptor of the file; reads it once."""
        running = hashlib.sha256()
        size = 0
        while piece := os.pread(self._fd, _CHUNK, size):
            running.update(piece)
            size += len(piece)
        return Descriptor(media_types.DOCKER_LAYER, Digest(f"sha256:{running.hexdigest()}"), size)

    def open_blob(self, descriptor: Descriptor) -> BlobStream:
        """See BlobSource."""
        return BlobStream(descriptor, lambda offset: FileBody(self._fd, offset, descriptor.size, owned=False))


def _parse_name(text: str) -> Reference:
    reference = parse_reference(text)
    if reference.digest is not None:
        raise InvalidError("cannot import digest reference")
    return reference


def _make_config(diff_id: DiffId, run_config: dict[str, Any], platform: Platform, message: str, created: datetime) -> bytes:
    """The image configuration; the same bytes for the same arguments."""
    time = format_time(created)
    comment = message or "Imported from -"
    values: dict[str, Any] = {
        "comment": comment,
        "created": time,
        "config": {key: dict(sorted(value.items())) if isinstance(value, dict) else value for key, value in run_config.items()},
        "architecture": platform.architecture,
        **({"variant": platform.variant} if platform.variant else {}),
        "os": platform.os,
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": time, "comment": comment}],
    }
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode(errors="surrogateescape")
