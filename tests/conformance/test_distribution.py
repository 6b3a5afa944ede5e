"""One suite for registries, after the conformance tests of the OCI distribution-spec 1.1: pull, push, discovery, management.

It runs on the registry in this process and on Debian's docker-registry: what our client takes for granted is what both do, and what only
one does is said in ``Place``.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from registry_client import media_types
from registry_client.blobs import read_blob
from registry_client.client import RepositoryClient
from registry_client.credentials import Credential
from registry_client.digest import Digest
from registry_client.errors import (
    DigestMismatchError,
    NotFoundError,
    RegistryError,
    SizeMismatchError,
    UnsupportedError,
)
from registry_client.manifest import Descriptor
from registry_client.options import Options, Places
from registry_client.platform import Platform
from registry_client.push import push_image
from registry_client.reference import Reference
from registry_client.retry import RetryPolicy
from registry_client.server import Connections
from registry_client.source import open_source
from registry_client.uploads import PushStatus
from registry_client.writer import RepositoryWriter
from tests.servers.docker_registry import docker_registry
from tests.servers.images import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, build_image, make_tar, write_layout
from tests.servers.registry import Registry

OPTIONS = Options(credential=Credential(), places=Places(), retry=RetryPolicy(tries=2, base=0.001))
BLOB = random.Random(8).randbytes(700_000)
EMPTY = b"{}"
_numbers = itertools.count()


@dataclass
class Place:
    """A registry.

    Attributes:
        deletes_tags: as the specification wants it; distribution 2.8 knows only digests.
        has_referrers: the referrers API is there; else the tag stands in for it.
    """

    host: str
    connections: Connections
    deletes_tags: bool
    has_referrers: bool


@pytest.fixture(scope="module", params=["in process", "in process, without referrers", "docker-registry"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with Connections(OPTIONS) as connections:
        if request.param == "docker-registry":
            with docker_registry(tmp_path_factory.mktemp("registry")) as served:
                yield Place(served.host, connections, deletes_tags=False, has_referrers=False)
        else:
            with Registry() as registry:
                registry.referrers = request.param == "in process"
                yield Place(registry.host, connections, deletes_tags=True, has_referrers=registry.referrers)


@pytest.fixture
def repository(place: Place) -> str:
    """The name of one that nobody used before."""
    return f"conformance/r{next(_numbers)}"


@pytest.fixture
def client(place: Place, repository: str) -> RepositoryClient:
    return RepositoryClient(place.host, repository, OPTIONS, place.connections)


@pytest.fixture
def writer(client: RepositoryClient) -> RepositoryWriter:
    return RepositoryWriter(client.primary)


def describe(data: bytes, media_type: str = OCI_LAYER) -> Descriptor:
    return Descriptor(media_type, Digest.of(data), len(data))


def push_blob(writer: RepositoryWriter, data: bytes, **options: tuple[str, ...]) -> PushStatus:
    return writer.push_blob(describe(data), lambda offset: iter([data[offset:]] if offset < len(data) else []), **options)


def entry(descriptor: Descriptor) -> dict[str, object]:
    return {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size}


def manifest_of(*layers: bytes, subject: Descriptor | None = None, artifact_type: str | None = None) -> bytes:
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": entry(describe(EMPTY, artifact_type or OCI_CONFIG)),
        "layers": [entry(describe(layer)) for layer in layers],
    }
    return json.dumps(document | ({"subject": entry(subject)} if subject else {})).encode()


def push_manifest(writer: RepositoryWriter, *layers: bytes, tag: str | None = None) -> bytes:
    """Pushes blobs and a manifest; returns the manifest."""
    for data in (EMPTY, *layers):
        push_blob(writer, data)
    data = manifest_of(*layers)
    writer.put_manifest(tag or Digest.of(data), data, OCI_MANIFEST)
    return data


class TestPull:
    def test_what_is_not_there(self, client: RepositoryClient, writer: RepositoryWriter) -> None:
        nothing = Digest.of(b"nothing")
        for name in ("missing", nothing):
            with pytest.raises(NotFoundError):
                client.manifest(name)
            assert client.find_manifest(name) is None
        assert not client.has_blob(nothing)
        with pytest.raises(NotFoundError):
            read_blob(client.open_blob(Descriptor(OCI_LAYER, nothing, 7)))
        push_manifest(writer, tag="there")
        with pytest.raises(NotFoundError, match="manifest unknown"):
            client.manifest("missing")

    def test_a_manifest_by_tag_and_by_digest(self, client: RepositoryClient, writer: RepositoryWriter) -> None:
        data = push_manifest(writer, BLOB, tag="1")
        for name in ("1", Digest.of(data)):
            document = client.manifest(name)
            assert document.data == data
            assert document.media_type == OCI_MANIFEST
            assert document.digest == Digest.of(data)
            assert client.find_manifest(name) == describe(data, OCI_MANIFEST)

    def test_a_blob_whole_and_in_part(self, client: RepositoryClient, writer: RepositoryWriter) -> None:
        push_blob(writer, BLOB)
        assert client.has_blob(Digest.of(BLOB))
        assert read_blob(client.open_blob(describe(BLOB))) == BLOB
        for offset in (1, len(BLOB) // 2, len(BLOB) - 1):
            assert b"".join(client.open_blob(describe(BLOB), offset)) == BLOB[offset:]

    def test_a_blob_of_another_size(self, client: RepositoryClient, writer: RepositoryWriter) -> None:
        push_blob(writer, BLOB)
        for size in (len(BLOB) - 1, len(BLOB) + 1):
            with pytest.raises(SizeMismatchError):
                read_blob(client.open_blob(Descriptor(OCI_LAYER, Digest.of(BLOB), size)))

    def test_an_image_for_several_platforms(self, place: Place, repository: str, tmp_path: Path) -> None:
        images = [build_image([make_tar({"a": name.encode()})], platform=name) for name in ("linux/amd64", "linux/arm64")]
        layout = write_layout(tmp_path / "layout", {"1": images})
        name = f"{place.host}/{repository}:1"
        with closing(open_source(f"oci:{layout}:1")) as source:
            digest = push_image(source, Reference.parse(name), OPTIONS, place.connections)
        with closing(open_source(name, OPTIONS, place.connections)) as source:
            assert source.digest() == digest
            for image in images:
                assert source.resolve(Platform.parse(image.platform)).config.image_id == image.image_id


class TestPush:
    @pytest.mark.parametrize("size", [1, 5000, 5 << 20])
    def test_a_blob(self, client: RepositoryClient, writer: RepositoryWriter, size: int) -> None:
        data = random.Random(size).randbytes(size)
        assert push_blob(writer, data) is PushStatus.UPLOADED
        assert push_blob(writer, data) is PushStatus.EXISTS
        assert read_blob(client.open_blob(describe(data))) == data

    def test_a_blob_in_chunks(self, client: RepositoryClient) -> None:
        assert push_blob(RepositoryWriter(client.primary, 100_000), BLOB) is PushStatus.UPLOADED
        assert read_blob(client.open_blob(describe(BLOB))) == BLOB

    def test_bytes_that_are_others(self, client: RepositoryClient, writer: RepositoryWriter) -> None:
        with pytest.raises(DigestMismatchError):
            writer.push_blob(describe(BLOB), lambda offset: iter([BLOB[::-1][offset:]]))
        assert not client.has_blob(Digest.of(BLOB))

    def test_a_mount(self, place: Place, client: RepositoryClient, writer: RepositoryWriter, repository: str) -> None:
        push_blob(writer, BLOB)
        with RepositoryClient(place.host, f"{repository}-other", OPTIONS, place.connections) as other:
            assert not other.has_blob(Digest.of(BLOB))
            assert push_blob(RepositoryWriter(other.primary), BLOB, mount_from=(repository,)) is PushStatus.MOUNTED
            assert read_blob(other.open_blob(describe(BLOB))) == BLOB

    def test_a_manifest_by_tag_and_by_digest(self, client: RepositoryClient, writer: RepositoryWriter) -> None:
        by_digest = push_manifest(writer, b"one")
        by_tag = push_manifest(writer, b"two", tag="2")
        assert client.manifest(Digest.of(by_digest)).data == by_digest
        assert client.manifest("2").data == client.manifest(Digest.of(by_tag)).data == by_tag

    def test_a_manifest_that_names_what_is_missing(self, client: RepositoryClient, writer: RepositoryWriter) -> None:
        with pytest.raises(RegistryError, match="blob unknown"):
            writer.put_manifest("1", manifest_of(b"missing"), OCI_MANIFEST)
        assert client.find_manifest("1") is None

    def test_a_tag_moves(self, client: RepositoryClient, writer: RepositoryWriter) -> None:
        first, second = push_manifest(writer, b"one", tag="1"), push_manifest(writer, b"two", tag="1")
        assert client.manifest("1").data == second
        assert client.manifest(Digest.of(first)).data == first

    def test_an_index(self, client: RepositoryClient, writer: RepositoryWriter) -> None:
        data = push_manifest(writer, BLOB)
        index = json.dumps(
            {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry(describe(data, OCI_MANIFEST))]}
        ).encode()
        writer.put_manifest("all", index, OCI_INDEX)
        assert client.manifest("all").data == index
        assert client.manifest("all").media_type in media_types.INDEXES


class TestDiscovery:
    def test_tags(self, client: RepositoryClient, writer: RepositoryWriter) -> None:
        with pytest.raises(NotFoundError):
            list(client.tags())
        tags = ["a", "b", "latest", "v1.0"]
        for tag in reversed(tags):
            push_manifest(writer, tag=tag)
        assert sorted(client.tags()) == tags

    def test_tags_in_pages(self, client: RepositoryClient, writer: RepositoryWriter, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("registry_client.client.PAGE_SIZE", 2)
        tags = [f"t{number}" for number in range(5)]
        for tag in tags:
            push_manifest(writer, tag=tag)
        assert sorted(client.tags()) == tags

    def test_referrers(self, client: RepositoryClient, writer: RepositoryWriter) -> None:
        subject = describe(push_manifest(writer, BLOB, tag="1"), OCI_MANIFEST)
        assert client.referrers(subject.digest) == []
        pushed = {}
        for kind in ("application/vnd.example.sbom", "application/vnd.example.signature"):
            data = manifest_of(subject=subject, artifact_type=kind)
            pushed[kind] = writer.put_manifest(Digest.of(data), data, OCI_MANIFEST)
        assert {found.digest for found in client.referrers(subject.digest)} == set(pushed.values())
        for kind, digest in pushed.items():
            assert [found.digest for found in client.referrers(subject.digest, kind)] == [digest]
        assert client.referrers(subject.digest, "application/vnd.example.other") == []

    def test_tags_that_stand_in_for_the_api_are_not_listed(
        self, place: Place, client: RepositoryClient, writer: RepositoryWriter
    ) -> None:
        subject = describe(push_manifest(writer, BLOB, tag="1"), OCI_MANIFEST)
        data = manifest_of(subject=subject, artifact_type="application/vnd.example.sbom")
        writer.put_manifest(Digest.of(data), data, OCI_MANIFEST)
        assert list(client.tags()) == ["1"]
        assert len(list(client.tags(companions=True))) == (1 if place.has_referrers else 2)


class TestManagement:
    def test_a_manifest_is_deleted(self, client: RepositoryClient, writer: RepositoryWriter) -> None:
        digest = Digest.of(push_manifest(writer, BLOB, tag="1"))
        writer.delete_manifest(digest)
        assert client.find_manifest(digest) is None
        assert client.find_manifest("1") is None
        with pytest.raises(NotFoundError):
            writer.delete_manifest(digest)

    def test_a_tag_is_deleted(self, place: Place, client: RepositoryClient, writer: RepositoryWriter) -> None:
        digest = Digest.of(push_manifest(writer, BLOB, tag="1"))
        if place.deletes_tags:
            writer.delete_tag("1")
            assert client.find_manifest("1") is None
        else:
            with pytest.raises(UnsupportedError):
                writer.delete_tag("1")
        assert client.find_manifest(digest) is not None

    def test_a_blob_is_deleted(self, client: RepositoryClient, writer: RepositoryWriter) -> None:
        push_blob(writer, BLOB)
        writer.delete_blob(Digest.of(BLOB))
        assert not client.has_blob(Digest.of(BLOB))
        assert push_blob(writer, BLOB) is PushStatus.UPLOADED
