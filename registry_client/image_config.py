"""Image configurations: platform, layers and history of an image, and how to run it.

Source: OCI image-spec config.md. The SHA-256 of the bytes is the image id.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from registry_client.digest import ChainId, DiffId, ImageId, chain_ids
from registry_client.errors import InvalidDigestError, MalformedError
from registry_client.manifest import LAYERS_MAX
from registry_client.platform import Platform
from registry_client.strict_json import parse_object

HISTORY_MAX = 10_000

# RFC 3339 as Go writes it: up to nine digits of a second, of which datetime holds six.
_TIME = re.compile(r"(\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)")


@dataclass(frozen=True, slots=True)
class History:
    """One step of the image's making; an ``empty_layer`` step made no layer."""

    created: datetime | None = None
    created_by: str = ""
    comment: str = ""
    author: str = ""
    empty_layer: bool = False


@dataclass(frozen=True)
class ImageConfig:
    """An image configuration.

    Attributes:
        raw: the bytes as they came.
        values: the parsed document, for what has no attribute here.
        created: when, or None where the image does not say, or says it wrongly.
        diff_ids: one for each layer, lowest first.
        history: oldest first.
    """

    raw: bytes
    values: Mapping[str, Any]
    platform: Platform
    created: datetime | None
    diff_ids: tuple[DiffId, ...]
    history: tuple[History, ...]

    @cached_property
    def image_id(self) -> ImageId:
        """SHA-256 of the bytes."""
        return ImageId.of(self.raw)

    @cached_property
    def chain_ids(self) -> tuple[ChainId, ...]:
        """One for each layer, lowest first."""
        return chain_ids(self.diff_ids)


def parse_image_config(data: bytes, what: str) -> ImageConfig:
    """Parses an image configuration.

    Args:
        what: name of the document, for messages.

    Raises:
        MalformedError: breaks its specification.
    """
    fields = parse_object(data, what)
    root_fs = fields.nested("rootfs")
    if root_fs.string("type") != "layers":
        raise MalformedError(f"{what}: rootfs.type is {root_fs.string('type')[:64]!r}, not 'layers'")
    try:
        diff_ids = tuple(DiffId(text) for text in root_fs.strings("diff_ids", maximum=LAYERS_MAX))
    except InvalidDigestError as error:
        raise MalformedError(f"{what}: rootfs.diff_ids: {error}") from None
    platform = Platform.of(
        fields.string("os"), fields.string("architecture"), fields.string("variant", ""), fields.string("os.version", "")
    )
    history = tuple(
        History(
            created=parse_time(step.string("created", "")),
            created_by=step.string("created_by", ""),
            comment=step.string("comment", ""),
            author=step.string("author", ""),
            empty_layer=step.boolean("empty_layer"),
        )
        for step in fields.objects("history", maximum=HISTORY_MAX)
    )
    return ImageConfig(data, fields.values, platform, parse_time(fields.string("created", "")), diff_ids, history)


def parse_time(text: str) -> datetime | None:
    """The time of an image in UTC. Of no consequence for the image's bytes, so a time that cannot be read is None and no error."""
    found = _TIME.fullmatch(text)
    if found is None:
        return None
    seconds, fraction, zone = found.groups()
    try:
        return datetime.fromisoformat(f"{seconds}.{(fraction or '0')[:6]:0<6}{zone.upper()}").astimezone(UTC)
    except (ValueError, OverflowError):
        return None
