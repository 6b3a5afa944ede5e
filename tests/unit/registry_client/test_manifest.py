"""Manifests, indexes and configurations: what is read, and what is refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from registry_client import media_types
from registry_client.digest import Digest
from registry_client.errors import MalformedError, NoMatchingPlatformError, RegistryError, UnsupportedError
from registry_client.image import Document, Image, ImageResolver
from registry_client.image_config import parse_image_config
from registry_client.manifest import Descriptor, Index, Manifest, encode_manifest, parse_manifest
from registry_client.platform import Platform
from registry_client.strict_json import parse_json
from tests.servers.images import OCI_INDEX, OCI_MANIFEST, BuiltImage, build_image, build_index

AMD64 = Platform.parse("linux/amd64")
IMAGE = build_image([b"one", b"two"])
MANIFEST: dict[str, Any] = json.loads(IMAGE.manifest)
CONFIG: dict[str, Any] = json.loads(IMAGE.config)


def resolve(data: bytes, *images: BuiltImage, media_type: str = "", platform: Platform | None = AMD64) -> Image:
    documents: dict[str, bytes] = {}
    for image in images:
        documents |= dict(image.blobs) | {image.digest: image.manifest}
    documents[Digest.of(data)] = data
    resolver = ImageResolver(lambda descriptor: documents[descriptor.digest], "test", platform)
    return resolver.resolve(Document(data, media_type, Digest.of(data)))


def changed(fields: dict[str, Any], **changes: Any) -> bytes:
    return json.dumps({name: value for name, value in (fields | changes).items() if value is not ...}).encode()


def test_manifest() -> None:
    manifest = parse_manifest(IMAGE.manifest, OCI_MANIFEST, "test")
    assert isinstance(manifest, Manifest)
    assert [layer.digest for layer in manifest.layers] == IMAGE.layer_digests
    assert manifest.config == Descriptor(media_types.OCI_CONFIG, Digest(IMAGE.image_id), len(IMAGE.config))


@pytest.mark.parametrize("media_type", ["", OCI_MANIFEST, "application/json", "text/plain"])
@pytest.mark.parametrize("own", [OCI_MANIFEST, ...])
def test_types_that_agree(media_type: str, own: object) -> None:
    assert isinstance(parse_manifest(changed(MANIFEST, mediaType=own), media_type, "test"), Manifest)
    assert isinstance(parse_manifest(b'{"schemaVersion": 2, "manifests": []}', "", "test"), Index)


@pytest.mark.parametrize(
    ("data", "media_type", "words"),
    [
        (changed(MANIFEST), OCI_INDEX, "served as .*index.*but its mediaType"),
        (changed(MANIFEST, mediaType=...), OCI_INDEX, "is an index .*but has layers"),
        (changed(MANIFEST, manifests=[]), OCI_MANIFEST, "manifests and layers at once"),
        (changed(MANIFEST, mediaType=OCI_INDEX), "", "is an index .*but has layers"),
        (build_index([]).replace(OCI_INDEX.encode(), OCI_MANIFEST.encode()), "", "is a manifest .*but has manifests"),
        (changed(MANIFEST, schemaVersion=3), "", "schemaVersion is 3"),
        (changed(MANIFEST, schemaVersion="2"), "", "schemaVersion is a string, not an integer"),
        (changed(MANIFEST, schemaVersion=True), "", "schemaVersion is a boolean, not an integer"),
        (changed(MANIFEST, config=...), "", "config: missing, not an object"),
        (changed(MANIFEST, layers=[1]), "", r"layers\[0\]: a number, not an object"),
        (changed(MANIFEST, layers=[{}] * 1001), "", "layers has 1001 elements"),
        (changed(MANIFEST, layers=[MANIFEST["layers"][0] | {"size": -1}]), "", "size is -1"),
        (changed(MANIFEST, layers=[MANIFEST["layers"][0] | {"size": 1 << 63}]), "", "size is 9223372036854775808"),
        (changed(MANIFEST, layers=[MANIFEST["layers"][0] | {"size": 1.0}]), "", "size is a number, not an integer"),
        (changed(MANIFEST, layers=[MANIFEST["layers"][0] | {"digest": "sha256:../../x"}]), "", "digest: digest 'sha256:"),
        (changed(MANIFEST, annotations={"a": 1}), "", r"annotations\.a is a number"),
        (build_index([IMAGE.descriptor()] * 1001), "", "manifests has 1001 elements"),
        (b"[]", "", "a list, not an object"),
        (b"", "", "not valid JSON"),
        (b"\xff", "", "not valid JSON"),
        (b'\xef\xbb\xbf{"schemaVersion": 2}', "", "not valid JSON"),
        (b'{"schemaVersion": 2, "layers": [], "layers": []}', "", "key 'layers' is there twice"),
        (b'{"schemaVersion": NaN}', "", "NaN is no number"),
        (b'{"schemaVersion": 1e999}', "", "too big"),
        (b'{"schemaVersion": ' + b"1" * 5000 + b"}", "", "not valid JSON"),
        (b'{"a": "\\ud800"}', "", "surrogate"),
        (b'{"a": ' + b"[" * 65 + b"]" * 65 + b"}", "", "deeper than 64"),
        (b"[" * 100_000, "", "deeper than 64"),
        (b" " * ((4 << 20) + 1), "", "4194305 bytes, more than 4194304"),
    ],
)
def test_malformed(data: bytes, media_type: str, words: str) -> None:
    with pytest.raises(MalformedError, match=words):
        parse_manifest(data, media_type, "test")


def test_keys_are_exact() -> None:
    """Go's decoder would take ``MediaType`` for ``mediaType``; two readers must not see two documents."""
    data = changed(MANIFEST, mediaType=..., MediaType=OCI_INDEX, Manifests=[])
    assert isinstance(parse_manifest(data, OCI_MANIFEST, "test"), Manifest)


@pytest.mark.parametrize(
    ("data", "media_type", "words"),
    [
        (b"{}", "application/vnd.docker.distribution.manifest.v1+prettyjws", "schema 1 is deprecated"),
        (b'{"schemaVersion": 1, "name": "a", "fsLayers": []}', "", "schema 1 is deprecated"),
        (changed(MANIFEST, mediaType="application/vnd.example"), "", "neither manifest nor index"),
        (
            changed(MANIFEST, config=MANIFEST["config"] | {"mediaType": "application/vnd.cncf.helm.config.v1+json"}),
            "",
            r"not a runnable image \(artifactType=application/vnd.cncf.helm",
        ),
        (
            changed(
                MANIFEST,
                artifactType="application/x-sbom",
                config=MANIFEST["config"] | {"mediaType": "application/vnd.oci.empty.v1+json"},
            ),
            "",
            r"not a runnable image \(artifactType=application/x-sbom\)",
        ),
        (
            changed(MANIFEST, layers=[MANIFEST["layers"][0] | {"mediaType": media_types.OCI_LAYER_GZIP + "+encrypted"}]),
            "",
            "layer 1 of 1 .* is encrypted",
        ),
        (
            changed(
                MANIFEST,
                layers=[MANIFEST["layers"][0] | {"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"}],
            ),
            "",
            "is foreign",
        ),
        (changed(MANIFEST, layers=[MANIFEST["layers"][0] | {"mediaType": "text/html"}]), "", "unknown media type 'text/html'"),
    ],
)
def test_unsupported(data: bytes, media_type: str, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        resolve(data, IMAGE, media_type=media_type)


def test_platform_choice_skips_attestations() -> None:
    attestation = IMAGE.descriptor() | {"platform": {"os": "unknown", "architecture": "unknown"}}
    marked = IMAGE.descriptor(annotations={"vnd.docker.reference.type": "attestation-manifest"})
    other = build_image([b"x"], platform="linux/arm64")
    data = build_index([attestation, marked, other.descriptor()])
    assert resolve(data, IMAGE, other, platform=Platform.parse("arm64")).config.image_id == other.image_id
    with pytest.raises(NoMatchingPlatformError, match=r"no matching manifest for linux/amd64 .* \(there are: linux/arm64\)"):
        resolve(data, IMAGE, other)


def test_entries_without_a_platform_are_looked_into() -> None:
    other = build_image([b"x"], platform="linux/arm64")
    bare = [{name: value for name, value in image.descriptor().items() if name != "platform"} for image in (other, IMAGE)]
    assert resolve(build_index(bare), IMAGE, other).config.image_id == IMAGE.image_id


def test_indexes_in_indexes() -> None:
    def around(data: bytes) -> tuple[bytes, BuiltImage]:
        entry = {"mediaType": OCI_INDEX, "digest": Digest.of(data), "size": len(data)}
        return build_index([entry]), BuiltImage(data, OCI_INDEX, b"", {}, (), "")

    data, kept = build_index([IMAGE.descriptor()]), [IMAGE]
    for _ in range(2):
        data, inner = around(data)
        kept.append(inner)
        assert resolve(data, *kept).config.image_id == IMAGE.image_id
        assert resolve(data, *kept).index_digest == Digest.of(data)
    data, inner = around(data)
    with pytest.raises(MalformedError, match="nested deeper than 3"):
        resolve(data, *kept, inner)


def test_fan_out_is_bounded() -> None:
    images = [build_image([str(number).encode()], platform="linux/s390x") for number in range(20)]
    bare = [{name: value for name, value in image.descriptor().items() if name != "platform"} for image in images]
    with pytest.raises(MalformedError, match="more than 16 documents"):
        resolve(build_index(bare), *images)


def test_big_documents_are_not_fetched() -> None:
    data = changed(MANIFEST, config=MANIFEST["config"] | {"size": (4 << 20) + 1})
    with pytest.raises(MalformedError, match="4194305 bytes"):
        resolve(data)


def test_configuration_must_agree() -> None:
    liar = IMAGE.descriptor() | {"platform": {"os": "linux", "architecture": "s390x"}}
    with pytest.raises(MalformedError, match="is for linux/s390x says the index, for linux/amd64 its configuration"):
        resolve(build_index([liar]), IMAGE, platform=Platform.parse("s390x"))
    with pytest.raises(
        NoMatchingPlatformError, match=r"platform \(linux/amd64\) does not match the specified platform \(linux/s390x\)"
    ):
        resolve(IMAGE.manifest, IMAGE, platform=Platform.parse("s390x"))
    assert resolve(
        build_image([b"x"], platform="linux/s390x").manifest, build_image([b"x"], platform="linux/s390x"), platform=None
    ).platform == (Platform.parse("s390x"))
    short = build_image([b"one"], config={"rootfs": {"type": "layers", "diff_ids": []}})
    with pytest.raises(MalformedError, match="manifest has 1 layers, its configuration 0 diff ids"):
        resolve(short.manifest, short)


def test_configuration() -> None:
    config = parse_image_config(IMAGE.config, "test")
    assert config.created == datetime(2024, 5, 1, 12, tzinfo=UTC)
    assert config.values["config"] == {"Cmd": ["/bin/sh"]}
    assert [step.created_by for step in config.history] == ["layer 0", "layer 1"]
    assert config.chain_ids[0] == config.diff_ids[0] == IMAGE.diff_ids[0]
    assert config.image_id == IMAGE.image_id


@pytest.mark.parametrize(
    ("text", "created"),
    [
        ("2023-05-02T16:49:27.123456789+02:00", datetime(2023, 5, 2, 14, 49, 27, 123456, tzinfo=UTC)),
        ("2023-05-02T16:49:27.5Z", datetime(2023, 5, 2, 16, 49, 27, 500000, tzinfo=UTC)),
        ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
        ("0001-01-01T00:00:00+10:00", None),
        ("2023-13-02T16:49:27Z", None),
        ("yesterday", None),
    ],
)
def test_times(text: str, created: datetime | None) -> None:
    assert created == parse_image_config(changed(CONFIG, created=text), "test").created


@pytest.mark.parametrize(
    "changes",
    [
        {"rootfs": ...},
        {"rootfs": {"type": "tree", "diff_ids": []}},
        {"rootfs": {"type": "layers", "diff_ids": ["sha256:x"]}},
        {"rootfs": {"type": "layers", "diff_ids": [1]}},
        {"os": ...},
        {"architecture": 1},
        {"history": [1]},
        {"history": [{"empty_layer": 1}]},
        {"history": {}},
    ],
)
def test_malformed_configurations(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedError, match="test"):
        parse_image_config(changed(CONFIG, **changes), "test")


def test_deepest_document() -> None:
    assert parse_json(b"[" * 63 + b"]" * 63, "test") is not None
    with pytest.raises(RegistryError):
        parse_json(b"[" * 65 + b"]" * 65, "test")


@pytest.mark.parametrize("media_type", sorted(media_types.MANIFESTS))
def test_what_is_encoded_is_what_is_parsed(media_type: str) -> None:
    config = Descriptor(media_types.OCI_CONFIG, Digest.of(b"{}"), 2)
    layers = [
        Descriptor(media_types.OCI_LAYER_GZIP, Digest.of(b"a"), 7, annotations={"z": "é", "a": ""}),
        Descriptor(media_types.DOCKER_LAYER_GZIP, Digest.of(b"b", "sha512"), 1 << 40, urls=("https://example.com/b",)),
    ]
    data = encode_manifest(media_type, config, layers, {"b": "1", "a": "2"})
    parsed = parse_manifest(data, media_type, "it")
    assert isinstance(parsed, Manifest)
    assert (parsed.media_type, parsed.config, list(parsed.layers)) == (media_type, config, layers)
    assert parsed.annotations == {"a": "2", "b": "1"}
    assert data == encode_manifest(media_type, config, layers, {"a": "2", "b": "1"})
    assert b"annotations" not in encode_manifest(media_type, config, [], {})


def test_urls_are_bounded() -> None:
    layer = {"mediaType": media_types.OCI_LAYER, "digest": Digest.of(b""), "size": 0, "urls": ["https://example.com"] * 101}
    data = json.dumps({"schemaVersion": 2, "config": layer | {"urls": []}, "layers": [layer]}).encode()
    with pytest.raises(MalformedError, match=r"layers\[0\]: urls has 101 elements, more than 100"):
        parse_manifest(data, "", "it")
