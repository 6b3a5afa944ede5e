"""Any bytes give a value or a typed error, and any reference survives its own text."""

from __future__ import annotations

import json
import os
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from registry_client.auth import parse_challenges
from registry_client.digest import Digest
from registry_client.errors import InvalidReferenceError, RegistryError
from registry_client.image import Document, ImageResolver
from registry_client.image_config import parse_image_config
from registry_client.manifest import parse_manifest
from registry_client.reference import Reference
from registry_client.source import open_source
from registry_client.tar_index import TarIndex
from tests.servers.images import build_image, make_tar

IMAGE = build_image([b"one", b"two"])
KEYS = st.sampled_from(
    [
        "schemaVersion",
        "mediaType",
        "manifests",
        "layers",
        "config",
        "digest",
        "size",
        "platform",
        "os",
        "rootfs",
        "diff_ids",
        "annotations",
    ]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([IMAGE.media_type, IMAGE.digest])
)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=12)
COMPONENT = st.from_regex(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*", fullmatch=True).filter(lambda text: len(text) < 40)


def mutated(data: bytes, path: list[int], value: Any) -> bytes:
    """The document with one value inside of it replaced."""
    root = json.loads(data)
    node, parent, key = root, None, None
    for step in path:
        keys = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
        if not keys:
            break
        parent, key = node, keys[step % len(keys)]
        node = node[key]
    if parent is not None:
        parent[key] = value
    return json.dumps(root).encode()


@given(
    st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()),
    st.sampled_from(["", IMAGE.media_type, "text/html"]),
)
def test_any_bytes_as_a_document(data: bytes, media_type: str) -> None:
    with suppress(RegistryError):
        parse_manifest(data, media_type, "test")
    with suppress(RegistryError):
        parse_image_config(data, "test")


@given(st.sampled_from([IMAGE.manifest, IMAGE.config]), st.lists(st.integers(0, 20), min_size=1, max_size=4), JSON)
def test_one_wrong_value(data: bytes, path: list[int], value: Any) -> None:
    data = mutated(data, path, value)
    resolver = ImageResolver(lambda descriptor: IMAGE.blobs.get(descriptor.digest, data), "test", None)
    with suppress(RegistryError):
        resolver.resolve(Document(data, "", Digest.of(data)))
    with suppress(RegistryError):
        parse_image_config(data, "test").chain_ids  # noqa: B018


@given(
    st.sampled_from(["", "localhost/", "r.io/", "127.0.0.1:5000/", "[::1]:1/", "UPPER/"]),
    st.lists(COMPONENT, min_size=1, max_size=4),
    st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True),
    st.none() | st.binary().map(Digest.of),
)
def test_valid_references(registry: str, path: list[str], tag: str | None, digest: Digest | None) -> None:
    text = registry + "/".join(path) + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")
    try:
        reference = Reference.parse(text)
    except InvalidReferenceError:
        # Without a registry, a first component like ``a.b`` is taken for one, and may be no valid one.
        assert len(text) > 200 or (not registry and len(path) > 1 and "." in path[0])
        return
    assert reference.tag == (tag or (None if digest else "latest"))
    assert reference.digest == digest
    assert reference == Reference.parse(str(reference)) == Reference.parse(reference.familiar)


@given(st.text(max_size=80))
def test_any_text_as_a_reference(text: str) -> None:
    with suppress(InvalidReferenceError):
        assert Reference.parse(str(Reference.parse(text))) == Reference.parse(text)


@given(st.lists(st.text(alphabet='abc =,"\\ \t', max_size=40), max_size=3))
def test_any_text_as_challenges(headers: list[str]) -> None:
    parse_challenges(headers)


TAR = make_tar({"manifest.json": b"[]", "layer.tar": bytes(1000)})


@given(st.lists(st.tuples(st.integers(0, len(TAR) - 1), st.binary(min_size=1, max_size=8)), max_size=4), st.integers(0, len(TAR)))
def test_any_damage_of_an_archive(changes: list[tuple[int, bytes]], length: int) -> None:
    data = bytearray(TAR)
    for offset, piece in changes:
        data[offset : offset + len(piece)] = piece
    fd = os.memfd_create("archive")
    try:
        os.write(fd, data[:length])
        with suppress(RegistryError):
            TarIndex(fd, "test")
        with suppress(RegistryError), closing(open_source(f"docker-archive:/proc/self/fd/{fd}")):
            assert Path(f"/proc/self/fd/{fd}").exists()
    finally:
        os.close(fd)
