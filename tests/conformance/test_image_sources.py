"""One suite for all image sources: registries, layouts and archives give the same image."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from registry_client.credentials import Credential
from registry_client.digest import Digest
from registry_client.errors import (
    DigestMismatchError,
    InvalidError,
    MalformedError,
    NoMatchingPlatformError,
    NotFoundError,
    SizeMismatchError,
    UnsupportedError,
)
from registry_client.manifest import Descriptor
from registry_client.options import Options, Places
from registry_client.platform import Platform
from registry_client.push import push_image
from registry_client.reference import Reference
from registry_client.source import ImageSource, open_source
from tests.servers.docker_registry import docker_registry
from tests.servers.images import OCI_CONFIG, BuiltImage, build_image, make_tar, write_archive, write_docker_archive, write_layout
from tests.servers.registry import Registry

NOBODY = Options(credential=Credential(), places=Places())
AMD64 = Platform.parse("linux/amd64")
LAYERS = [make_tar({"etc/motd": b"hello\n"}), make_tar({"big": bytes(range(256)) * 12_000}), make_tar({})]
OTHER_LAYERS = [LAYERS[0], make_tar({"other": b"x"})]


@dataclass
class Place:
    """Where the images of one test lie: ``one`` with LAYERS, ``other`` with OTHER_LAYERS."""

    one: BuiltImage
    open: Callable[[str], ImageSource]
    has_manifests: bool = True


@pytest.fixture(
    params=[
        "registry",
        "docker-registry",
        "oci",
        "oci-archive",
        "docker-archive",
        "docker-archive gzip",
        "docker-archive of gzip",
    ]
)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    one = build_image(LAYERS)
    images = {"one": one, "other": build_image(OTHER_LAYERS)}
    if request.param == "registry":
        with Registry() as registry:
            for tag, image in images.items():
                registry.add_built("team/app", tag, image)
            yield Place(one, lambda tag: open_source(f"docker://{registry.host}/team/app:{tag}"))
    elif request.param == "docker-registry":
        layout = write_layout(tmp_path / "layout", images)
        with docker_registry(tmp_path / "registry") as served:
            name = f"{served.host}/team/app"
            for tag in images:
                with closing(open_source(f"oci:{layout}:{tag}")) as source:
                    push_image(source, Reference.parse(f"{name}:{tag}"), NOBODY)
            yield Place(one, lambda tag: open_source(f"docker://{name}:{tag}", NOBODY))
    elif request.param.startswith("oci"):
        layout = write_layout(tmp_path / "layout", images)
        if request.param == "oci":
            yield Place(one, lambda tag: open_source(f"oci:{layout}:{tag}"))
        else:
            archive = write_archive(tmp_path / "archive.tar", layout)
            yield Place(one, lambda tag: open_source(f"oci-archive:{archive}:{tag}"))
    else:
        compression = "gzip" if request.param.endswith("of gzip") else "none"
        named = {f"example.com/team/app:{tag}": image for tag, image in images.items()}
        archive = write_docker_archive(tmp_path / "archive.tar", named, compression=compression)
        if request.param == "docker-archive gzip":
            packed = tmp_path / "archive.tar.gz"
            packed.write_bytes(gzip.compress(archive.read_bytes()))
            archive = packed
        yield Place(one, lambda tag: open_source(f"docker-archive:{archive}:example.com/team/app:{tag}"), has_manifests=False)


def test_resolve_gives_the_configuration_and_the_layers(place: Place) -> None:
    with closing(place.open("one")) as source:
        image = source.resolve(AMD64)
    assert image.config.raw == place.one.config
    assert image.config.image_id == place.one.image_id
    assert image.platform == AMD64
    assert list(image.config.diff_ids) == place.one.diff_ids
    assert len(image.layers) == len(LAYERS)
    assert image.index_digest is None
    if place.has_manifests:
        assert image.manifest_document is not None
        assert image.manifest_document.data == place.one.manifest
        assert image.digest == place.one.digest
        assert [layer.digest for layer in image.layers] == place.one.layer_digests
    else:
        assert image.digest is image.manifest is image.manifest_document is None


def test_root_is_the_document_that_the_name_stands_for(place: Place) -> None:
    with closing(place.open("one")) as source:
        if not place.has_manifests:
            with pytest.raises(UnsupportedError):
                source.root()
            assert source.digest() is None
            return
        root = source.root()
        assert root.data == place.one.manifest
        assert root.media_type == place.one.media_type
        assert root.digest == place.one.digest == source.digest()


def test_read_gives_documents_whole_and_checked(place: Place) -> None:
    config = Descriptor(OCI_CONFIG, Digest(place.one.image_id), len(place.one.config))
    manifest = Descriptor(place.one.media_type, Digest(place.one.digest), len(place.one.manifest))
    with closing(place.open("one")) as source:
        source.resolve(AMD64)
        assert source.read(config) == place.one.config
        if place.has_manifests:
            assert source.read(manifest) == place.one.manifest
            with pytest.raises(SizeMismatchError):
                source.read(replace(manifest, size=manifest.size + 1))
        with pytest.raises(SizeMismatchError):
            source.read(replace(config, size=config.size + 1))
        with pytest.raises(NotFoundError):
            source.read(replace(config, digest=Digest.of(b"no such document")))
        with pytest.raises(MalformedError, match="4194304"):
            source.read(replace(config, size=5 << 20))


def test_blobs_hold_the_layers(place: Place) -> None:
    with closing(place.open("one")) as source:
        image = source.resolve(None if place.one.platform == str(Platform.host()) else AMD64)
        for descriptor, tar in zip(image.layers, LAYERS, strict=True):
            with closing(source.open_blob(descriptor)) as stream:
                pieces = list(stream)
            data = b"".join(pieces)
            assert descriptor.size == len(data) == stream.position
            assert descriptor.digest == Digest.of(data)
            assert tar == (gzip.decompress(data) if "gzip" in descriptor.media_type else data)
            assert all(0 < len(piece) <= 1 << 20 for piece in pieces)
            assert stream.retries == 0


def test_blob_from_an_offset(place: Place) -> None:
    with closing(place.open("one")) as source:
        descriptor = source.resolve(AMD64).layers[1]
        whole = b"".join(source.open_blob(descriptor))
        for offset in (1, descriptor.size // 2, descriptor.size - 1, descriptor.size):
            assert whole[offset:] == b"".join(source.open_blob(descriptor, offset))
        with pytest.raises(ValueError, match="outside of blob"):
            source.open_blob(descriptor, descriptor.size + 1)


def test_reference_and_tags(place: Place) -> None:
    with closing(place.open("one")) as source:
        assert source.reference is not None
        assert source.reference.tag == "one"
        assert source.tags() == ["one", "other"]


def test_images_of_one_source_are_kept_apart(place: Place) -> None:
    with closing(place.open("other")) as source:
        assert len(source.resolve(AMD64).layers) == len(OTHER_LAYERS)


def test_a_tag_that_is_not_there(place: Place) -> None:
    with pytest.raises(NotFoundError, match="missing"), closing(place.open("missing")) as source:
        source.resolve(None)


def test_a_platform_that_is_not_there(place: Place) -> None:
    with closing(place.open("one")) as source, pytest.raises(NoMatchingPlatformError, match=r"linux/amd64.*linux/s390x"):
        source.resolve(Platform.parse("linux/s390x"))


def test_a_blob_that_is_not_there(place: Place) -> None:
    with closing(place.open("one")) as source, pytest.raises(NotFoundError):
        list(source.open_blob(Descriptor("", Digest.of(b"no such blob"), 12)))


def test_two_streams_at_once(place: Place) -> None:
    with closing(place.open("one")) as source:
        first, second, _ = source.resolve(AMD64).layers
        streams = [source.open_blob(layer) for layer in (second, first, second)]
        pieces = [next(stream) for stream in streams]
        for stream, piece, layer in zip(streams, pieces, (second, first, second), strict=True):
            assert layer.size == len(piece) + sum(map(len, stream))


def test_wrong_size_is_told_from_wrong_bytes(tmp_path: Path) -> None:
    image = build_image([make_tar({"a": b"a" * 3_000_000})], compression="none")
    layout = write_layout(tmp_path / "layout", {"latest": image})
    blob = layout / "blobs/sha256" / image.layer_digests[0][7:]
    good = blob.read_bytes()
    with closing(open_source(f"oci:{layout}")) as source:
        descriptor = source.resolve(AMD64).layers[0]
        for bad, error, words in [
            (good[:-1], SizeMismatchError, "its descriptor says"),
            (good + b"x", SizeMismatchError, "its descriptor says"),
            (b"x" + good[1:], DigestMismatchError, "digest sha256:"),
        ]:
            blob.write_bytes(bad)
            received = bytearray()
            stream = source.open_blob(descriptor)
            with pytest.raises(error, match=words):
                for piece in stream:
                    received += piece
            assert len(received) < descriptor.size, "the last piece must not come before the check"
            assert list(stream) == []


def test_index_of_a_layout(tmp_path: Path) -> None:
    images = [
        build_image([make_tar({"name": name.encode()})], platform=name) for name in ("linux/amd64", "linux/arm/v6", "linux/arm64")
    ]
    layout = write_layout(tmp_path / "layout", {"latest": images})
    with closing(open_source(f"oci:{layout}:latest")) as source:
        for wanted, number in [("linux/amd64", 0), ("linux/arm/v7", 1), ("linux/arm64/v8", 2)]:
            image = source.resolve(Platform.parse(wanted))
            assert image.config.image_id == images[number].image_id
            assert image.index_digest == image.digest != images[number].digest
        with pytest.raises(NoMatchingPlatformError, match="no matching manifest for linux/s390x in the manifest list entries"):
            source.resolve(Platform.parse("s390x"))


def test_several_images_need_a_choice(tmp_path: Path) -> None:
    images = {"one": build_image(LAYERS), "two": build_image(OTHER_LAYERS)}
    layout = write_layout(tmp_path / "layout", images)
    archive = write_docker_archive(tmp_path / "a.tar", images)
    with pytest.raises(InvalidError, match="say which: one, two"):
        open_source(f"oci:{layout}")
    with pytest.raises(InvalidError, match="say which: one:latest, two:latest"):
        open_source(f"docker-archive:{archive}")
    with closing(open_source(f"docker-archive:{archive}:@1")) as source:
        assert str(source.reference) == "docker.io/library/two:latest"
        assert source.resolve(None).config.image_id == images["two"].image_id
    with pytest.raises(NotFoundError, match="holds 2"):
        open_source(f"docker-archive:{archive}:@2")


@pytest.mark.parametrize("text", ["oci:{}", "oci-archive:{}", "docker-archive:{}"])
def test_what_is_not_there(text: str, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such"):
        open_source(text.format(tmp_path / "missing"))
    with pytest.raises(InvalidError, match="needs the name"):
        open_source(text.format(""))


def test_what_is_something_else(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="not an OCI image layout"):
        open_source(f"oci:{tmp_path}")
    file = tmp_path / "file"
    file.write_bytes(b"no tar at all" * 100)
    with pytest.raises(MalformedError, match=r"no tar header at byte 0|where a number should be"):
        open_source(f"oci-archive:{file}")
    with tarfile.open(file, "w") as tar:
        tar.addfile(tarfile.TarInfo("empty"))
    with pytest.raises(NotFoundError, match="not a docker-archive"):
        open_source(f"docker-archive:{file}")
    with pytest.raises(InvalidError, match="not a regular file"):
        open_source(f"docker-archive:{tmp_path}")


def test_options_are_not_needed_for_files(tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "layout", {"latest": build_image(LAYERS, compression="zstd")})
    with closing(open_source(f"oci:{layout}", Options())) as source:
        assert source.resolve(AMD64).layers[0].media_type.endswith("+zstd")
        assert str(source.reference) == "docker.io/library/layout:latest"
