from __future__ import annotations

import contextlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import pytest

from registry_client.archive import ArchiveSource, open_archive
from registry_client.blobs import read_blob
from registry_client.digest import Digest
from registry_client.errors import MalformedError, NoMatchingPlatformError, NotFoundError, RegistryError, UnsupportedError
from registry_client.files import ArchiveFiles
from registry_client.platform import Platform
from tests.archives import Members, docker_members, legacy_image, legacy_members, make_archive, merged, symlink, write
from tests.servers.images import BuiltImage, build_image, build_index, digest_of, make_tar, write_archive, write_layout

TARS = [make_tar({"a": b"1"}), make_tar({"b": b"2" * 3000})]
ONE = build_image(TARS)
OTHER = build_image([TARS[0], make_tar({"c": b"3"})])
ARM = build_image(TARS, platform="linux/arm64")
AMD64 = Platform.parse("linux/amd64")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[list[ArchiveSource]]:
    with contextlib.closing(ArchiveFiles(path)) as files:
        yield list(open_archive(PurePath("images.tar"), files))


def read_all(source: ArchiveSource, platform: Platform | None = AMD64) -> tuple[str, list[bytes]]:
    image = source.resolve(platform)
    return str(image.config.image_id), [read_blob(source.open_blob(layer)) for layer in image.layers]


def names(source: ArchiveSource) -> list[str]:
    return [reference.familiar for reference in source.references]


def test_a_docker_archive_of_several_images(tmp_path: Path) -> None:
    members = merged(docker_members(ONE, ["one:1", "one:2", "one:1"]), docker_members(OTHER, None), docker_members(ARM, []))
    with opened(write(tmp_path / "a.tar", members)) as sources:
        assert [names(source) for source in sources] == [["one:1", "one:2"], [], []]
        assert [(image.image_id, list(image.layers)) for image in (ONE, OTHER, ARM)] == [read_all(s, None) for s in sources]
        assert [source.reference and source.reference.familiar for source in sources] == ["one:1", None, None]


def test_manifest_json_comes_before_the_layout(tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "layout", {"latest": OTHER})
    members = {str(path.relative_to(layout)): path.read_bytes() for path in layout.rglob("*") if path.is_file()}
    with opened(write(tmp_path / "a.tar", members | docker_members(ONE, ["one"]))) as (source,):
        assert ONE.image_id == read_all(source)[0]
        assert names(source) == ["one:latest"]


def test_no_image_is_an_archive_too(tmp_path: Path) -> None:
    with opened(write(tmp_path / "a.tar", {"manifest.json": b"[]"})) as sources:
        assert sources == []


def layout_archive(path: Path, entries: Sequence[Mapping[str, Any]], *images: BuiltImage) -> Path:
    members = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": build_index(entries)}
    for image in images:
        members |= {f"blobs/sha256/{digest[7:]}": data for digest, data in [*image.blobs.items(), (image.digest, image.manifest)]}
    return write(path, members)


def test_a_layout_of_several_images(tmp_path: Path) -> None:
    entries = [
        ONE.descriptor(
            annotations={"io.containerd.image.name": "docker.io/library/one:1", "org.opencontainers.image.ref.name": "1"}
        ),
        ONE.descriptor(annotations={"org.opencontainers.image.ref.name": "example.com/one:2"}),
        OTHER.descriptor(annotations={"org.opencontainers.image.ref.name": "latest"}),
        ARM.descriptor(),
    ]
    with opened(layout_archive(tmp_path / "a.tar", entries, ONE, OTHER, ARM)) as sources:
        assert [names(source) for source in sources] == [["one:1", "example.com/one:2"], [], []]
        assert [ONE.image_id, OTHER.image_id, ARM.image_id] == [str(s.resolve(None).config.image_id) for s in sources]


def test_entries_of_one_name_are_platforms_of_one_image(tmp_path: Path) -> None:
    annotations = {"io.containerd.image.name": "docker.io/library/one:1"}
    entries = [ARM.descriptor(annotations=annotations), ONE.descriptor(annotations=annotations)]
    with opened(layout_archive(tmp_path / "a.tar", entries, ONE, ARM)) as (source,):
        assert names(source) == ["one:1"]
        assert [ONE.image_id, ARM.image_id] == [
            str(source.resolve(Platform.parse(p)).config.image_id) for p in ("amd64", "arm64")
        ]
        with pytest.raises(NoMatchingPlatformError):
            source.resolve(Platform.parse("s390x"))


def test_an_index_below_the_index(tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "layout", {"example.com/one:1": [ARM, ONE]})
    with opened(write_archive(tmp_path / "a.tar", layout)) as (source,):
        assert names(source) == ["example.com/one:1"]
        assert ONE.image_id == str(source.resolve(AMD64).config.image_id)


def test_an_image_of_another_platform(tmp_path: Path) -> None:
    with opened(write(tmp_path / "a.tar", docker_members(ARM, None))) as (source,), pytest.raises(NoMatchingPlatformError):
        source.resolve(AMD64)


def test_an_old_archive(tmp_path: Path) -> None:
    first = legacy_image(TARS, docker_version="1.9.1")
    second = [first[0], ("f" * 64, {**first[1][1], "parent": first[0][0]}, TARS[1])]
    members = legacy_members([*first, second[1]], {"one": {"1": first[1][0], "2": first[1][0]}, "host/base": {"x": first[0][0]}})
    with opened(write(tmp_path / "a.tar", members)) as sources:
        assert [names(source) for source in sources] == [["one:1", "one:2"], ["host/base:x"], []]
        assert [TARS, TARS[:1], TARS] == [read_all(source)[1] for source in sources]
        config = sources[0].resolve(None).config
        assert [digest_of(tar) for tar in TARS] == list(config.diff_ids)
        assert [step.created_by for step in config.history] == ["/bin/sh -c #(nop) <step> 0", "/bin/sh -c #(nop) <step> 1"]
        assert {"parent", "id", "Size"}.isdisjoint(config.values)
        assert b"#(nop) \\u003cstep\\u003e 0" in config.raw


def test_an_old_archive_without_names_and_with_links(tmp_path: Path) -> None:
    layers = legacy_image([TARS[0], TARS[0]], docker_version="1.9.1")
    members = [(name, data) for name, data in legacy_members(layers, None).items() if name != f"{layers[1][0]}/layer.tar"]
    archive = write(tmp_path / "a.tar", [*members, (f"{layers[1][0]}/layer.tar", symlink(f"../{layers[0][0]}/layer.tar"))])
    with opened(archive) as (source,):
        assert (source.reference, names(source)) == (None, [])
        assert [TARS[0], TARS[0]] == read_all(source)[1]


def test_an_open_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", docker_members(ONE, ["one"]))
    with path.open("rb") as file:
        files = ArchiveFiles(PurePath("standard input"), file=file)
    with contextlib.closing(files):
        (source,) = open_archive(PurePath("standard input"), files)
        assert (ONE.image_id, list(ONE.layers)) == read_all(source)


def without(members: Mapping[str, bytes], *endings: str) -> dict[str, bytes]:
    return {name: data for name, data in members.items() if not name.endswith(endings)}


ONE_MEMBERS = docker_members(ONE, ["one"])
LEGACY = legacy_image(TARS, docker_version="1.9.1")
CIRCLE = [(LEGACY[0][0], LEGACY[0][1] | {"parent": LEGACY[1][0]}, TARS[0]), LEGACY[1]]


@pytest.mark.parametrize(
    ("members", "kind", "words"),
    [
        ({"a": b"x"}, NotFoundError, "holds no images"),
        ({"manifest.json": b"null"}, MalformedError, "invalid manifest, manifest cannot be null"),
        ({"manifest.json": b"{}"}, MalformedError, "images is an object, not a list"),
        ({"manifest.json": b"[1]"}, MalformedError, "a number, not an object"),
        ({"manifest.json": b'[{"Config":"x"'}, MalformedError, "not valid JSON"),
        ({"manifest.json": b"[" + b" " * (1 << 20) + b"]"}, MalformedError, "1048578 bytes, more than 1048576"),
        ({"manifest.json": json.dumps([{"Config": "c"}] * 1001).encode()}, MalformedError, "1001 elements, more than 1000"),
        (docker_members(ONE, ["one:1@" + ONE.digest]), MalformedError, "invalid tag 'one:1@sha256:.*it has a digest"),
        (docker_members(ONE, ["One"]), MalformedError, "must be lowercase"),
        (docker_members(ONE, None, Layers=[]), MalformedError, "manifest.json has 0 layers, the configuration 2 diff ids"),
        (docker_members(ONE, None, Layers=["../x", "y"]), MalformedError, "leads out of the archive"),
        (docker_members(ONE, None, Config="../../etc/passwd"), MalformedError, "leads out of the archive"),
        (docker_members(ONE, None, Config="/etc/passwd"), NotFoundError, "has no file"),
        (docker_members(ONE, None, Config="manifest.json"), MalformedError, "an array, not an object|a list"),
        (docker_members(ONE, None, Config=7), MalformedError, "Config is a number"),
        (without(ONE_MEMBERS, ONE.image_id[7:]), NotFoundError, "has no file"),
        (without(ONE_MEMBERS, ONE.diff_ids[1][7:]), NotFoundError, "has no file"),
        (ONE_MEMBERS | {f"blobs/sha256/{ONE.image_id[7:]}": OTHER.config}, MalformedError, "has digest sha256"),
        (ONE_MEMBERS | {f"blobs/sha256/{ONE.diff_ids[0][7:]}": b"x" * 512}, RegistryError, "have digest sha256"),
        ({"oci-layout": b"{}"}, MalformedError, "imageLayoutVersion"),
        ({"oci-layout": b'{"imageLayoutVersion":"2"}'}, UnsupportedError, "layout of version '2'"),
        ({"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}, NotFoundError, "index.json"),
        (legacy_members(CIRCLE, {"a": {"b": LEGACY[0][0]}}), MalformedError, "more than 1000 layers, or on itself"),
        (legacy_members(LEGACY[1:], None), NotFoundError, "has no file"),
        (legacy_members(LEGACY, {"a": {"b": "0"}}), MalformedError, "invalid target ID: 0"),
        (legacy_members(LEGACY, {"A": {"b": LEGACY[0][0]}}), MalformedError, "must be lowercase"),
        (without(legacy_members(LEGACY, None), "layer.tar"), NotFoundError, "has no file"),
        ({"repositories": b"[]"}, MalformedError, "not an object"),
        ({"x/json": b"{}", "x/layer.tar": TARS[0]}, MalformedError, "os is missing"),
        ({"x/json": b'{"created":"yesterday"}', "x/layer.tar": TARS[0]}, MalformedError, "which is no time"),
        ({"x/json": b'{"parent":1}', "x/layer.tar": TARS[0]}, MalformedError, "parent is a number"),
    ],
)
def test_a_broken_archive(tmp_path: Path, members: Members, kind: type[RegistryError], words: str) -> None:
    path = write(tmp_path / "a.tar", members)
    with pytest.raises(kind, match=words), opened(path) as sources:
        for source in sources:
            read_all(source, None)


@pytest.mark.parametrize("target", ["../../etc/passwd", "/etc/passwd", "layer.tar", "nowhere"])
def test_links_of_layers_stay_in_the_archive(tmp_path: Path, target: str) -> None:
    members = docker_members(ONE, None, Layers=["x/layer.tar"] * 2)
    path = write(tmp_path / "a.tar", [*members.items(), ("x/layer.tar", symlink(target))])
    with pytest.raises((MalformedError, NotFoundError)), opened(path) as (source,):
        read_all(source)


def test_of_a_member_that_comes_twice_the_last_one_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", [*docker_members(OTHER, None).items(), *docker_members(ONE, ["one"]).items()])
    with opened(path) as (source,):
        assert ONE.image_id == read_all(source)[0]


def test_an_archive_that_is_cut_off(tmp_path: Path) -> None:
    data = make_archive(docker_members(ONE, ["one"]))
    for length in (1, 511, 700, 1536, len(data) // 2):
        path = tmp_path / "cut.tar"
        path.write_bytes(data[:length])
        with pytest.raises(RegistryError), opened(path) as sources:
            read_all(sources[0])


def test_too_many_members(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(20_001):
            tar.addfile(tarfile.TarInfo(str(number)))
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    with pytest.raises(MalformedError, match="more than 20000 members"):
        ArchiveFiles(tmp_path / "a.tar")


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(MalformedError, match="more than 4096"):
        ArchiveFiles(write(tmp_path / "a.tar", {"n" * 5000: b""}))


def test_the_digest_of_what_is_read_is_checked(tmp_path: Path) -> None:
    with opened(write(tmp_path / "a.tar", docker_members(ONE, None))) as (source,):
        image = source.resolve(None)
        assert [Digest(digest) for digest in ONE.diff_ids] == [layer.digest for layer in image.layers]
        assert image.manifest is None and source.digest() is None
