"""Against Debian's docker-registry, with images that skopeo put there: what we read is what skopeo and umoci read."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from registry_client.credentials import Credential
from registry_client.digest import Digest
from registry_client.errors import CertificateError, DeniedError, NotFoundError
from registry_client.options import Options
from registry_client.platform import Platform
from registry_client.source import open_source
from tests import tools
from tests.servers.docker_registry import PASSWORD, USERNAME, DockerRegistry, docker_registry
from tests.servers.images import build_image, make_tar, write_layout

AMD64 = Platform.parse("linux/amd64")
ANONYMOUS = Options(credential=Credential())
THREE_LAYERS = Path("testdata/three-layers")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as registry:
        registry.push(f"oci:{THREE_LAYERS}:latest", "team/three-layers:latest")
        yield registry


def test_same_image_from_the_registry_as_from_the_layout(registry: DockerRegistry) -> None:
    with (
        closing(open_source(f"docker://{registry.host}/team/three-layers", ANONYMOUS)) as ours,
        closing(open_source(f"oci:{THREE_LAYERS}:latest")) as layout,
    ):
        image, original = ours.resolve(None), layout.resolve(None)
        assert image.manifest_document is not None
        assert original.manifest_document is not None
        assert image.manifest_document.data == original.manifest_document.data
        assert image.config == original.config
        assert image.layers == original.layers
        for layer in image.layers:
            assert b"".join(ours.open_blob(layer)) == b"".join(layout.open_blob(layer))
            assert b"".join(ours.open_blob(layer, 100)) == b"".join(layout.open_blob(layer, 100))


def test_skopeo_says_the_same(registry: DockerRegistry) -> None:
    reference = f"{registry.host}/team/three-layers:latest"
    said = json.loads(tools.run("skopeo", "inspect", "--tls-verify=false", f"docker://{reference}").stdout)
    with closing(open_source(reference, ANONYMOUS)) as source:
        image = source.resolve(None)
        assert said["Digest"] == image.digest
        assert said["Layers"] == [layer.digest for layer in image.layers]
        assert said["RepoTags"] == source.tags() == ["latest"]
        assert said["Architecture"] == image.platform.architecture
    by_digest = f"{registry.host}/team/three-layers@{said['Digest']}"
    with closing(open_source(by_digest, ANONYMOUS)) as source:
        assert source.resolve(None).config.image_id == image.config.image_id


def test_skopeo_and_umoci_read_our_test_image() -> None:
    tools.need("skopeo", "umoci")
    said = json.loads(tools.run("skopeo", "inspect", f"oci:{THREE_LAYERS}:latest").stdout)
    history = json.loads(tools.run("umoci", "stat", "--json", "--image", f"{THREE_LAYERS}:latest").stdout)["history"]
    with closing(open_source(f"oci:{THREE_LAYERS}")) as source:
        image = source.resolve(None)
    assert said["Digest"] == image.digest
    assert [step["created_by"] for step in history] == [step.created_by for step in image.config.history]
    assert [step["diff_id"] for step in history] == list(image.config.diff_ids)


def test_archives_that_skopeo_writes(registry: DockerRegistry, tmp_path: Path) -> None:
    origin = f"docker://{registry.host}/team/three-layers:latest"
    tools.run("skopeo", "copy", "--src-tls-verify=false", origin, f"oci-archive:{tmp_path}/oci.tar:v1")
    tools.run("skopeo", "copy", "--src-tls-verify=false", origin, f"docker-archive:{tmp_path}/docker.tar:example.com/three:v2")
    with closing(open_source(f"oci:{THREE_LAYERS}")) as source:
        wanted = source.resolve(None)
    with closing(open_source(f"oci-archive:{tmp_path}/oci.tar:v1")) as source:
        assert source.resolve(None).digest == wanted.digest
    with closing(open_source(f"docker-archive:{tmp_path}/docker.tar")) as source:
        image = source.resolve(None)
        assert str(source.reference) == "example.com/three:v2"
        assert image.config.diff_ids == wanted.config.diff_ids
        for layer, diff_id in zip(image.layers, wanted.config.diff_ids, strict=True):
            assert Digest.of(b"".join(source.open_blob(layer))) == layer.digest == diff_id


def test_several_platforms(registry: DockerRegistry, tmp_path: Path) -> None:
    images = [
        build_image([make_tar({"name": name.encode()})], platform=name) for name in ("linux/amd64", "linux/arm64", "linux/arm/v7")
    ]
    write_layout(tmp_path / "layout", {"latest": images})
    reference = registry.push(f"oci:{tmp_path}/layout:latest", "multi:latest", "--all")
    with closing(open_source(reference, ANONYMOUS)) as source:
        for image, name in zip(images, ("amd64", "linux/aarch64", "linux/arm"), strict=True):
            found = source.resolve(Platform.parse(name))
            assert found.config.image_id == image.image_id
            assert found.index_digest not in (None, image.digest)


def test_docker_schema_2(registry: DockerRegistry) -> None:
    reference = registry.push(f"oci:{THREE_LAYERS}:latest", "schema2:latest", "--format=v2s2")
    with closing(open_source(reference, ANONYMOUS)) as source:
        image = source.resolve(None)
        assert image.manifest is not None
        assert image.manifest.media_type == "application/vnd.docker.distribution.manifest.v2+json"
        assert sum(layer.size for layer in image.layers) == sum(len(b"".join(source.open_blob(layer))) for layer in image.layers)


def test_what_is_not_there(registry: DockerRegistry) -> None:
    for name, words in [("team/three-layers:nope", "manifest unknown"), ("nobody/nothing", "not found")]:
        with closing(open_source(f"{registry.host}/{name}", ANONYMOUS)) as source, pytest.raises(NotFoundError, match=words):
            source.resolve(None)
    with (
        closing(open_source(f"{registry.host}/nobody/nothing", ANONYMOUS)) as source,
        pytest.raises(NotFoundError, match="name unknown"),
    ):
        source.tags()


def test_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with docker_registry(tmp_path / "registry", password=True) as registry:
        reference = registry.push(f"oci:{THREE_LAYERS}:latest", "private:1", "--dest-creds", f"{USERNAME}:{PASSWORD}")
        with closing(open_source(reference, ANONYMOUS)) as source, pytest.raises(DeniedError, match="may require 'docker login'"):
            source.resolve(None)
        wrong = replace(ANONYMOUS, credential=Credential(USERNAME, "wrong"))
        with closing(open_source(reference, wrong)) as source, pytest.raises(DeniedError, match="is not accepted"):
            source.resolve(None)
        right = replace(ANONYMOUS, credential=Credential(USERNAME, PASSWORD))
        with closing(open_source(reference, right)) as source:
            assert len(source.resolve(None).layers) == 3
        auth = base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()
        (tmp_path / "auth.json").write_text(json.dumps({"auths": {registry.host: {"auth": auth}}}))
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
        with closing(open_source(reference)) as source:
            assert len(source.resolve(None).layers) == 3


def test_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    pem, key, ca = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "ca.pem"
    pem.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(str(key))
    authority.cert_pem.write_to_path(str(ca))
    assert ssl.create_default_context(cafile=str(ca)).cert_store_stats()["x509_ca"] == 1
    with docker_registry(tmp_path / "registry", tls=(pem, key)) as registry:
        reference = registry.push(f"oci:{THREE_LAYERS}:latest", "secure:1")
        with closing(open_source(reference, ANONYMOUS)) as source, pytest.raises(CertificateError, match="not trusted"):
            source.resolve(None)
        with closing(open_source(reference, replace(ANONYMOUS, ca_file=ca))) as source:
            assert [len(b"".join(source.open_blob(layer))) for layer in source.resolve(None).layers] == [548, 4588, 250]


def test_what_the_registry_said_to_nobody(tmp_path: Path) -> None:
    with docker_registry(tmp_path / "registry", password=True) as registry:
        with closing(open_source(f"{registry.host}/private:1", ANONYMOUS)) as source, pytest.raises(DeniedError) as raised:
            source.resolve(None)
        assert "unauthorized: authentication required" in str(raised.value)
        assert raised.value.codes == ("UNAUTHORIZED",)
