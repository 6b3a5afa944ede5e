"""Pushes to Debian's docker-registry: skopeo reads what we pushed, with the digests that it had before."""

from __future__ import annotations

import hashlib
import json
import random
import re
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from registry_client import media_types
from registry_client.client import RepositoryClient
from registry_client.credentials import Credential
from registry_client.digest import Digest
from registry_client.errors import DeniedError, NotFoundError, UnsupportedError
from registry_client.manifest import Descriptor
from registry_client.options import Options
from registry_client.platform import Platform
from registry_client.push import BLOBS_AT_ONCE, PushEvent, push_image
from registry_client.reference import Reference
from registry_client.retry import RetryPolicy
from registry_client.server import Connections
from registry_client.source import open_source
from registry_client.uploads import PushStatus
from registry_client.writer import RepositoryWriter
from tests import tools
from tests.servers.authority import Authority
from tests.servers.cutting_proxy import CuttingProxy
from tests.servers.docker_registry import PASSWORD, USERNAME, DockerRegistry, docker_registry
from tests.servers.images import OCI_INDEX, OCI_MANIFEST, build_image, build_index, digest_of, make_tar, write_layout
from tests.servers.token_server import Account, TokenServer

OPTIONS = Options(credential=Credential(), retry=RetryPolicy(base=0.001))
THREE_LAYERS = Path("testdata/three-layers")
MIB = 1 << 20


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture(scope="module")
def multi_platform(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layout with an index of two platforms, whose attestation is in it as buildkit puts it there, below another index."""
    images = [
        build_image([make_tar({"name": name.encode()}), make_tar({"shared": b"x" * 5000})], platform=name)
        for name in ("linux/amd64", "linux/arm/v7")
    ]
    attestation = build_image([b'{"predicateType": "https://slsa.dev/provenance/v0.2"}'], platform="unknown/unknown")
    marks = {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": images[0].digest}
    inner = build_index([images[1].descriptor()])
    entries = [images[0].descriptor(), attestation.descriptor(annotations=marks)]
    entries.append({"mediaType": OCI_INDEX, "digest": digest_of(inner), "size": len(inner)})
    index = build_index(entries)
    layout = write_layout(
        tmp_path_factory.mktemp("images") / "multi", {str(n): each for n, each in enumerate([*images, attestation])}
    )
    for document in (inner, index):
        (layout / "blobs/sha256" / digest_of(document).removeprefix("sha256:")).write_bytes(document)
    named = {"mediaType": OCI_INDEX, "digest": digest_of(index), "size": len(index)}
    (layout / "index.json").write_bytes(build_index([named | {"annotations": {"org.opencontainers.image.ref.name": "latest"}}]))
    return layout


def push(source: str, destination: str, options: Options = OPTIONS, **chosen: object) -> Digest:
    with closing(open_source(source, options)) as opened:
        return push_image(opened, Reference.parse(destination), options, **chosen)  # type: ignore[arg-type]


def raw(reference: str) -> bytes:
    return tools.run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{reference}").stdout


def files_of(layout: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (layout / "blobs/sha256").iterdir()}


def copy_back(reference: str, layout: Path) -> dict[str, bytes]:
    """All blobs that skopeo finds below a reference, by digest."""
    tools.run("skopeo", "copy", "--all", "--src-tls-verify=false", f"docker://{reference}", f"oci:{layout}:latest")
    return files_of(layout)


def big_blob(size: int) -> tuple[Descriptor, bytes]:
    data = random.Random(size).randbytes(size)
    return Descriptor(media_types.OCI_LAYER, Digest.of(data), size), data


def push_blob(host: str, blob: tuple[Descriptor, bytes], options: Options = OPTIONS) -> PushStatus:
    descriptor, data = blob
    with RepositoryClient(host, "blobs", options) as client:
        writer = RepositoryWriter(client.primary, options.upload_chunk)
        return writer.push_blob(descriptor, lambda offset: (data[at : at + MIB] for at in range(offset, len(data), MIB)))


def stored(registry: DockerRegistry, blob: tuple[Descriptor, bytes]) -> bool:
    """Whether the registry has these bytes in its file system."""
    digest, data = blob[0].digest, blob[1]
    return (registry.root / f"data/docker/registry/v2/blobs/sha256/{digest.hex[:2]}/{digest.hex}/data").read_bytes() == data


def test_image(registry: DockerRegistry, tmp_path: Path) -> None:
    reference = f"{registry.host}/team/three-layers:1"
    digest = push(f"oci:{THREE_LAYERS}:latest", reference)
    assert digest == json.loads(tools.run("skopeo", "inspect", f"oci:{THREE_LAYERS}:latest").stdout)["Digest"]
    assert digest == json.loads(tools.run("skopeo", "inspect", "--tls-verify=false", f"docker://{reference}").stdout)["Digest"]
    assert Digest.of(raw(reference)) == digest
    assert copy_back(reference, tmp_path / "copy") == files_of(THREE_LAYERS)
    with closing(open_source(reference, OPTIONS)) as pulled, closing(open_source(f"oci:{THREE_LAYERS}")) as original:
        assert pulled.resolve(None) == original.resolve(None)
        for layer in original.resolve(None).layers:
            assert b"".join(pulled.open_blob(layer)) == b"".join(original.open_blob(layer))


def test_index_with_everything_below_it(registry: DockerRegistry, multi_platform: Path) -> None:
    reference = f"{registry.host}/multi:latest"
    digest = push(f"oci:{multi_platform}", reference)
    files = files_of(multi_platform)
    assert raw(reference) == files[digest.hex]
    documents = [data for data in files.values() if b'"schemaVersion"' in data]
    assert len(documents) == 5
    for document in documents:
        assert raw(f"{registry.host}/multi@{digest_of(document)}") == document
    with RepositoryClient(registry.host, "multi", OPTIONS) as client:
        assert all(client.has_blob(Digest(digest_of(data))) for data in files.values() if data not in documents)
    for name in ("linux/amd64", "linux/arm/v7"):
        with closing(open_source(reference, OPTIONS)) as source:
            assert str(source.resolve(Platform.parse(name)).platform) == name


def test_index_that_skopeo_copies_whole(registry: DockerRegistry, tmp_path: Path) -> None:
    images = [build_image([make_tar({"name": name.encode()})], platform=name) for name in ("linux/amd64", "linux/arm64")]
    layout = write_layout(tmp_path / "layout", {"latest": images})
    push(f"oci:{layout}", f"{registry.host}/two:1")
    assert copy_back(f"{registry.host}/two:1", tmp_path / "copy") == files_of(layout)


def test_one_platform(registry: DockerRegistry, tmp_path: Path) -> None:
    images = [build_image([make_tar({"name": name.encode()})], platform=name) for name in ("linux/amd64", "linux/arm64")]
    layout = write_layout(tmp_path / "layout", {"latest": images})
    reference = f"{registry.host}/one:1"
    assert push(f"oci:{layout}", reference, platform=Platform.parse("linux/arm64")) == images[1].digest
    assert raw(reference) == images[1].manifest
    with RepositoryClient(registry.host, "one", OPTIONS) as client:
        assert not client.has_blob(Digest(images[0].image_id))


def test_from_registry_to_registry(registry: DockerRegistry, tmp_path: Path) -> None:
    origin = registry.push(f"oci:{THREE_LAYERS}:latest", "origin:v2s2", "--format=v2s2")
    with docker_registry(tmp_path / "other") as other:
        push(origin, f"{other.host}/copy/of:it")
        assert raw(f"{other.host}/copy/of:it") == raw(origin)
        tools.run("skopeo", "copy", "--src-tls-verify=false", f"docker://{other.host}/copy/of:it", f"dir:{tmp_path}/dir")


def test_connections_are_kept(registry: DockerRegistry) -> None:
    with CuttingProxy(registry.host) as proxy:
        push(f"oci:{THREE_LAYERS}", f"{proxy.host}/kept:1")
        assert proxy.connections <= 1 + BLOBS_AT_ONCE, "the first finds out that it is plain HTTP"


def test_nothing_is_sent_that_is_there(registry: DockerRegistry) -> None:
    reference = f"{registry.host}/again:1"
    events: list[PushEvent] = []
    push(f"oci:{THREE_LAYERS}", reference, progress=events.append)
    assert {event.status for event in events if event.status} == {PushStatus.UPLOADED}
    assert max(event.sent for event in events) == max(event.blob.size for event in events)
    events.clear()
    push(f"oci:{THREE_LAYERS}", f"{registry.host}/again:2", progress=events.append)
    assert [event.status for event in events] == [PushStatus.EXISTS] * 4


def test_mount_sends_no_bytes(registry: DockerRegistry, tmp_path: Path) -> None:
    layer = make_tar({"random": big_blob(5 * MIB)[1]})
    image = build_image([layer], compression="none")
    layout = write_layout(tmp_path / "layout", {"1": image})
    with CuttingProxy(registry.host) as proxy:
        push(f"oci:{layout}", f"{proxy.host}/mounts/origin:1")
        sent = proxy.passed
        assert sent > len(layer)
        events: list[PushEvent] = []
        push(f"{proxy.host}/mounts/origin:1", f"{proxy.host}/mounts/copy:1", progress=events.append)
        push(
            f"oci:{layout}", f"{proxy.host}/mounts/third:1", mount_candidates=["no/such", "mounts/origin"], progress=events.append
        )
        assert [event.status for event in events] == [PushStatus.MOUNTED] * 4
        assert proxy.passed - sent < 40_000
    assert raw(f"{registry.host}/mounts/copy:1") == raw(f"{registry.host}/mounts/third:1") == image.manifest


@pytest.mark.parametrize("size", [0, 1, 4 * MIB, 4 * MIB + 1])
@pytest.mark.parametrize("chunk", [None, 3_000_000])
def test_sizes(registry: DockerRegistry, size: int, chunk: int | None) -> None:
    blob = big_blob(size + (2 if chunk else 0))
    assert push_blob(registry.host, blob, replace(OPTIONS, upload_chunk=chunk)) is PushStatus.UPLOADED
    assert stored(registry, blob)
    assert push_blob(registry.host, blob) is PushStatus.EXISTS


def test_chunks_of_a_byte(registry: DockerRegistry) -> None:
    blob = big_blob(17)
    assert push_blob(registry.host, blob, replace(OPTIONS, upload_chunk=1)) is PushStatus.UPLOADED
    assert stored(registry, blob)


def test_requests_are_those_of_docker(tmp_path: Path) -> None:
    with docker_registry(tmp_path, relative_urls=True) as registry:
        push_blob(registry.host, big_blob(4 * MIB))
        push_blob(registry.host, big_blob(9 * MIB))
        push_blob(registry.host, big_blob(8 * MIB), replace(OPTIONS, upload_chunk=3 * MIB))
        requests = re.findall(r'"(HEAD|POST|PATCH|PUT|GET|DELETE) /v2/blobs/', registry.log)
        whole, chunked = ["HEAD", "POST", "PATCH", "PUT"], ["HEAD", "POST", "PATCH", "PATCH", "PATCH", "PUT"]
        assert requests == ["HEAD", "POST", "PUT", *whole, *chunked]


def test_cut_within_a_patch(registry: DockerRegistry) -> None:
    """docker-registry 2.8 forgets an upload whose connection broke within a PATCH; then all of it goes again."""
    blob = big_blob(60 * MIB)
    with CuttingProxy(registry.host) as proxy:
        proxy.cut_after(25 * MIB)
        assert push_blob(proxy.host, blob) is PushStatus.UPLOADED
        assert proxy.cuts == 1
        assert 0 < proxy.passed - (25 + 60) * MIB < 20_000
    assert stored(registry, blob)


def test_cut_between_chunks(registry: DockerRegistry) -> None:
    """Chunks that docker-registry acknowledged stay there."""
    blob = big_blob(61 * MIB)
    with CuttingProxy(registry.host) as proxy:
        proxy.cut_before("PATCH", 5)
        assert push_blob(proxy.host, blob, replace(OPTIONS, upload_chunk=8 * MIB)) is PushStatus.UPLOADED
        assert proxy.cuts == 1
        assert 0 < proxy.passed - 61 * MIB < 20_000
    assert stored(registry, blob)


def test_cut_before_the_end(registry: DockerRegistry) -> None:
    blob = big_blob(10 * MIB)
    with CuttingProxy(registry.host) as proxy:
        proxy.cut_before("PUT")
        assert push_blob(proxy.host, blob) is PushStatus.UPLOADED
        assert 0 < proxy.passed - 10 * MIB < 20_000
    assert stored(registry, blob)


def test_memory(registry: DockerRegistry) -> None:
    size, piece = 200 * MIB, bytes(MIB)
    digest = hashlib.sha256()
    for _ in range(size // MIB):
        digest.update(piece)
    blob = Descriptor(media_types.OCI_LAYER, Digest(f"sha256:{digest.hexdigest()}"), size)
    with RepositoryClient(registry.host, "big", OPTIONS) as client:
        tracemalloc.start()
        try:
            status = RepositoryWriter(client.primary).push_blob(
                blob, lambda offset: (bytes(MIB) for _ in range(offset, size, MIB))
            )
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert status is PushStatus.UPLOADED
    assert peak < 6 * MIB


def test_tokens(tmp_path: Path) -> None:
    """Tokens of five seconds, over TLS, from a server that leaves out of them what the account may not do."""
    authority = Authority(tmp_path / "ca")
    accounts = {
        USERNAME: Account(PASSWORD, {"team/*": {"pull", "push", "delete"}, "secret/*": set()}),
        "reader": Account("password", {"team/*": {"pull"}}),
    }
    layout = write_layout(tmp_path / "layout", {"1": build_image([make_tar({"random": big_blob(6 * MIB)[1]})])})
    with (
        TokenServer(authority, accounts, lifetime=5) as tokens,
        docker_registry(tmp_path / "registry", tls=authority.server, token_server=tokens) as registry,
    ):
        options = replace(OPTIONS, ca_file=authority.ca_file, credential=Credential(USERNAME, PASSWORD), upload_chunk=500_000)
        digest = push(f"oci:{layout}", f"{registry.host}/team/app:1", options)
        with Connections(options) as connections, closing(open_source(f"{registry.host}/team/app:1", options)) as source:
            copy = Reference.parse(f"{registry.host}/team/copy:1")
            events: list[PushEvent] = []
            assert (
                push_image(source, copy, options, connections, mount_candidates=["secret/app"], progress=events.append) == digest
            )
            assert [event.status for event in events] == [PushStatus.MOUNTED] * 2
        reader = replace(options, credential=Credential("reader", "password"))
        with pytest.raises(DeniedError, match=f"push access denied for {registry.host}/team/app: account 'reader'"):
            push(f"oci:{THREE_LAYERS}", f"{registry.host}/team/app:2", reader)
        with pytest.raises(DeniedError, match="or may require 'docker login'"):
            push(f"oci:{THREE_LAYERS}", f"{registry.host}/team/app:2", replace(options, credential=Credential()))
        with RepositoryClient(registry.host, "team/app", options) as client:
            assert list(client.tags()) == ["1"]


def test_referrers_by_tag(registry: DockerRegistry, tmp_path: Path) -> None:
    """docker-registry 2.8 has no referrers API: the index at the tag of the subject is kept by those who push."""
    push(f"oci:{THREE_LAYERS}", f"{registry.host}/signed:1")
    with RepositoryClient(registry.host, "signed", OPTIONS) as client:
        subject = client.find_manifest("1")
        assert subject is not None
        writer = RepositoryWriter(client.primary)
        signatures = [signature(subject, kind) for kind in ("application/x.sig", "application/x.sbom")]
        for document in [*signatures, signatures[0]]:
            push_parts(writer, document)
            writer.put_manifest(Digest.of(document), document, OCI_MANIFEST)
        found = client.referrers(subject.digest)
        assert [each.digest for each in found] == [Digest.of(document) for document in signatures]
        assert [each.artifact_type for each in found] == ["application/x.sig", "application/x.sbom"]
        assert found[0].annotations == {"made.by": "test"}
        index = json.loads(raw(f"{registry.host}/signed:{subject.digest.replace(':', '-')}"))
        assert [entry["digest"] for entry in index["manifests"]] == [each.digest for each in found]
        writer.delete_manifest(found[0].digest)
        assert [each.artifact_type for each in client.referrers(subject.digest)] == ["application/x.sbom"]
        assert client.find_manifest(found[0].digest) is None


def signature(subject: Descriptor, artifact_type: str) -> bytes:
    empty = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest_of(b"{}"), "size": 2}
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": artifact_type,
            "config": empty,
            "layers": [empty],
            "subject": {"mediaType": subject.media_type, "digest": subject.digest, "size": subject.size},
            "annotations": {"made.by": "test"},
        }
    ).encode()


def push_parts(writer: RepositoryWriter, document: bytes) -> None:
    config = json.loads(document)["config"]
    writer.push_blob(
        Descriptor(config["mediaType"], Digest(config["digest"]), config["size"]), lambda offset: iter([b"{}"[offset:]])
    )


def test_deletes(registry: DockerRegistry) -> None:
    push(f"oci:{THREE_LAYERS}", f"{registry.host}/deleted:1")
    with RepositoryClient(registry.host, "deleted", OPTIONS) as client, closing(open_source(f"oci:{THREE_LAYERS}")) as source:
        writer = RepositoryWriter(client.primary)
        with pytest.raises(UnsupportedError, match="deletes no tags"):
            writer.delete_tag("1")
        root, layer = source.root().digest, source.resolve(None).layers[0].digest
        writer.delete_manifest(root)
        writer.delete_blob(layer)
        assert not client.has_blob(layer)
        assert client.find_manifest("1") is None
        for delete, digest in ((writer.delete_manifest, root), (writer.delete_blob, layer)):
            with pytest.raises(NotFoundError):
                delete(digest)
