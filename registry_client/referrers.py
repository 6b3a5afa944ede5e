"""The index that stands in for the referrers API, at the tag ``sha256-<hex>`` of a subject.

Source: OCI distribution-spec 1.1, "Referrers Tag Schema", "Pushing Manifests with Subject"; image-spec image-index.md.
"""

from __future__ import annotations

import json
from typing import Any

from registry_client import media_types
from registry_client.digest import Digest
from registry_client.errors import MalformedError, UnsupportedError
from registry_client.image import Document
from registry_client.manifest import DESCRIPTORS_MAX, Index, parse_manifest
from registry_client.strict_json import Fields, parse_object


def describe_referrer(data: bytes, media_type: str, digest: Digest, what: str) -> dict[str, Any]:
    """The descriptor of a manifest or index among the referrers of its subject.

    Its artifactType is that of the manifest, or else the media type of its configuration; its annotations are those of the manifest.

    Raises:
        MalformedError, UnsupportedError: ``data`` is no manifest.
    """
    parsed = parse_manifest(data, media_type, what)
    artifact_type = parse_object(data, what).string("artifactType", "")
    if not artifact_type and not isinstance(parsed, Index):
        artifact_type = parsed.config.media_type
    entry: dict[str, Any] = {"mediaType": media_type, "digest": str(digest), "size": len(data)}
    if artifact_type:
        entry["artifactType"] = artifact_type
    if parsed.annotations:
        entry["annotations"] = dict(parsed.annotations)
    return entry


def change_referrers(found: Document | None, digest: Digest, entry: dict[str, Any] | None, what: str) -> bytes | None:
    """The index with one referrer more, or less; all else in it stays as it is.

    Args:
        found: what is at the tag; None for nothing.
        digest: of the referrer.
        entry: its descriptor; None to take it out.

    Returns:
        None if there is nothing to change.

    Raises:
        MalformedError: something else than an index is at the tag.
        UnsupportedError: it has as many entries as we read.
    """
    fields = _read(found, what)
    there = [other.values for other in fields.objects("manifests", maximum=DESCRIPTORS_MAX)]
    kept = [other for other in there if other.get("digest") != digest]
    if (len(kept) < len(there)) == (entry is not None):
        return None
    if entry is not None:
        if len(kept) >= DESCRIPTORS_MAX:
            raise UnsupportedError(f"{what}: has {len(kept)} entries already, no more are read")
        kept.append(entry)
    return json.dumps({**fields.values, "manifests": kept}, separators=(",", ":")).encode()


def _read(found: Document | None, what: str) -> Fields:
    if found is None:
        return Fields({"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": []}, what)
    if not isinstance(parse_manifest(found.data, found.media_type, what), Index):
        raise MalformedError(f"{what}: is a manifest, not an index")
    return parse_object(found.data, what)
