from __future__ import annotations

import json
from typing import Any

import pytest

from registry_client.digest import Digest
from registry_client.errors import MalformedError, UnsupportedError
from registry_client.image import Document
from registry_client.manifest import DESCRIPTORS_MAX
from registry_client.media_types import OCI_INDEX, OCI_MANIFEST
from registry_client.referrers import change_referrers, describe_referrer

CONFIG = {"mediaType": "application/vnd.example.config", "digest": Digest.of(b"{}"), "size": 2}
MANIFEST: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": CONFIG, "layers": []}
INDEX: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}


def describe(fields: dict[str, Any]) -> dict[str, Any]:
    data = json.dumps(fields).encode()
    entry = describe_referrer(data, fields["mediaType"], Digest.of(data), "signature")
    assert (entry.pop("digest"), entry.pop("size")) == (Digest.of(data), len(data))
    return entry


def entry_of(name: str) -> dict[str, Any]:
    return {"mediaType": OCI_MANIFEST, "digest": str(Digest.of(name.encode())), "size": len(name)}


def index_of(*entries: dict[str, Any], **more: Any) -> Document:
    data = json.dumps({**INDEX, "manifests": entries, **more}).encode()
    return Document(data, OCI_INDEX, Digest.of(data))


def test_descriptors() -> None:
    assert describe(MANIFEST) == {"mediaType": OCI_MANIFEST, "artifactType": "application/vnd.example.config"}
    assert describe({**MANIFEST, "artifactType": "x/y"}) == {"mediaType": OCI_MANIFEST, "artifactType": "x/y"}
    assert describe({**MANIFEST, "annotations": {"a": "b"}})["annotations"] == {"a": "b"}
    assert describe(INDEX) == {"mediaType": OCI_INDEX}
    assert describe({**INDEX, "artifactType": "x/y"}) == {"mediaType": OCI_INDEX, "artifactType": "x/y"}


def test_first_entry() -> None:
    entry = entry_of("one")
    data = change_referrers(None, Digest(entry["digest"]), entry, "referrers")
    assert data is not None
    assert json.loads(data) == {**INDEX, "manifests": [entry]}


def test_what_others_wrote_stays() -> None:
    other = entry_of("other") | {"x-unknown": [1, None]}
    found = index_of(other, annotations={"kept": "yes"}, **{"x-top": {}})
    entry = entry_of("one")
    data = change_referrers(found, Digest(entry["digest"]), entry, "referrers")
    assert data is not None
    assert json.loads(data) == {**json.loads(found.data), "manifests": [other, entry]}
    again = Document(data, OCI_INDEX, Digest.of(data))
    assert change_referrers(again, Digest(entry["digest"]), entry, "referrers") is None
    removed = change_referrers(again, Digest(entry["digest"]), None, "referrers")
    assert removed is not None
    assert json.loads(removed) == json.loads(found.data)
    assert change_referrers(found, Digest(entry["digest"]), None, "referrers") is None
    assert change_referrers(None, Digest(entry["digest"]), None, "referrers") is None


def test_no_index() -> None:
    data = json.dumps(MANIFEST).encode()
    entry = entry_of("one")
    with pytest.raises(MalformedError, match="referrers: is a manifest, not an index"):
        change_referrers(Document(data, OCI_MANIFEST, Digest.of(data)), Digest(entry["digest"]), entry, "referrers")


def test_as_many_as_are_read() -> None:
    entry = entry_of("one")
    full = index_of(*(entry_of(str(number)) for number in range(DESCRIPTORS_MAX)))
    with pytest.raises(UnsupportedError, match=f"has {DESCRIPTORS_MAX} entries already"):
        change_referrers(full, Digest(entry["digest"]), entry, "referrers")
