"""Inquiries: what registries are asked without a pull."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from imgstore.answers import RemoteImage
from imgstore.errors import InvalidError
from imgstore.filters import check_filters, parse_boolean
from registry_client.manifest import Index, parse_manifest
from registry_client.search import FoundRepository
from registry_client.source import ImageSource

SEARCH_FILTERS = frozenset({"is-automated", "is-official", "stars"})


def parse_search_filters(given: Mapping[str, Sequence[str]]) -> Callable[[FoundRepository], bool]:
    """What a repository must be: ``is-official``, ``stars`` (at least so many); nothing ever is ``is-automated``.

    Source: moby ``registry/search.go``.

    Raises:
        InvalidError: an unknown filter, or a value that makes no sense.
    """
    check_filters(given, SEARCH_FILTERS)
    official = parse_boolean(given, "is-official")
    automated = parse_boolean(given, "is-automated")
    stars = max((_parse_stars(text) for text in given.get("stars", ())), default=0)

    def is_wanted(found: FoundRepository) -> bool:
        return automated is not True and official in (None, found.is_official) and found.stars >= stars

    return is_wanted


def describe_remote(source: ImageSource) -> RemoteImage:
    """What a source has, and for which platforms that is; attestations are for none.

    Raises:
        RegistryError: it cannot be read.
    """
    document = source.root()
    parsed = parse_manifest(document.data, document.media_type, f"manifest of {source.name}")
    if isinstance(parsed, Index):
        platforms = [entry.platform for entry in parsed.manifests if entry.platform is not None and not entry.is_attestation]
    else:
        platforms = [source.resolve(None).platform]
    return RemoteImage(parsed.media_type, str(document.digest), len(document.data), tuple(platforms))


def _parse_stars(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InvalidError(f"invalid filter 'stars={text[:100]}'")
    return int(text)
