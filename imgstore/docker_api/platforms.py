"""Platforms as Docker's API takes them: a JSON object of the OCI image-spec.

Source: moby ``api/server/httputils/form.go`` (DecodePlatform), ``daemon/images/image.go`` (GetImage).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from imgstore.answers import Image
from imgstore.docker_api.errors import ApiError
from imgstore.structs import prepare
from registry_client.platform import Platform, choose

_SHOWN_MAX = 200


class _Given(msgspec.Struct):
    os: str | None = None
    architecture: str | None = None
    variant: str | None = None
    os_version: str | None = msgspec.field(default=None, name="os.version")


prepare(_Given)


def decode_platform(text: str | None) -> Platform | None:
    """The platform in a query parameter; None where it is not given.

    Raises:
        ApiError: 400; no such object, or without operating system or architecture.
    """
    if not text:
        return None
    try:
        given = msgspec.json.decode(text, type=_Given)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ApiError(400, f"failed to parse platform: {error}") from None
    if not given.os and not given.architecture and (given.variant or given.os_version):
        raise ApiError(400, "optional platform fields provided, but OS and Architecture are missing")
    if not given.os or not given.architecture:
        raise ApiError(400, "both OS and Architecture must be provided")
    return Platform.of(given.os, given.architecture, given.variant or "", given.os_version or "")


def decode_platforms(texts: Sequence[str]) -> list[Platform]:
    """The platforms in a query parameter that may be repeated. Raises what `decode_platform` raises."""
    return [platform for text in texts if (platform := decode_platform(text)) is not None]


def check_platform(image: Image, name: str, platform: Platform | None) -> None:
    """Raises ApiError, 404, unless the image, found under ``name``, is for the platform."""
    own = Platform(image.os, image.architecture, image.variant)
    if platform is not None and choose(platform, [own]) is None:
        shown = str(platform)[:_SHOWN_MAX]
        raise ApiError(404, f"image with reference {name} was found but does not provide the specified platform ({shown})")
