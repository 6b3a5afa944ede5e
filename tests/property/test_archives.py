"""Archives of any images go out and in unchanged; any damage of one, and any text for an instruction, is a value or a typed error."""

from __future__ import annotations

import io
import os
from contextlib import closing, suppress
from pathlib import PurePath

from hypothesis import given, settings
from hypothesis import strategies as st

from imgstore import ImageStore, InvalidError
from imgstore.instructions import apply_changes
from imgstore.shell_words import expand_word, expand_words
from registry_client.archive import open_archive
from registry_client.blobs import read_blob
from registry_client.errors import RegistryError
from registry_client.files import ArchiveFiles
from tests.archives import docker_members, legacy_image, legacy_members, make_archive, merged
from tests.servers.images import build_image, build_index, make_tar

TARS = [make_tar({"a": b"1"}), make_tar({"b/c": b"2" * 700}), make_tar({"d": b""}), make_tar({})]
NAMES = ["a", "b:1", "b:2", "localhost:5000/team/c:v", "docker.io/d/e:latest"]
LAYERS_OF_IMAGE = st.lists(st.sampled_from(TARS), max_size=3).map(tuple)
IMAGES = st.dictionaries(LAYERS_OF_IMAGE, st.sets(st.sampled_from(NAMES), max_size=2), min_size=1, max_size=3)


@settings(max_examples=25, deadline=None)
@given(IMAGES)
def test_what_is_loaded_is_saved(images: dict[tuple[bytes, ...], set[str]]) -> None:
    archive = make_archive(merged(*(docker_members(build_image(layers), sorted(names)) for layers, names in images.items())))
    with ImageStore.open("mem://") as first, ImageStore.open("mem://") as second:
        loaded = list(first.load(io.BytesIO(archive)))
        assert [build_image(layers).image_id for layers in images] == [image.image.id for image in loaded]
        names = [name for image in first.images() for name in image.references] + [image.image.id for image in loaded]
        saved = b"".join(first.save(names))
        again = list(second.load(io.BytesIO(saved)))
        assert saved == b"".join(second.save(names))
        assert {image.id: image.references for image in first.images()} == {
            image.id: image.references for image in second.images()
        }
        assert {image.image.id for image in loaded} == {image.image.id for image in again}


ONE = build_image(TARS[:2])
LAYERS = legacy_image(TARS[:2], docker_version="1.6.0")
LAYOUT = {
    "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
    "index.json": build_index([ONE.descriptor(annotations={"io.containerd.image.name": "docker.io/library/a:1"})]),
    **{f"blobs/sha256/{digest[7:]}": data for digest, data in [*ONE.blobs.items(), (ONE.digest, ONE.manifest)]},
}
ARCHIVES = [
    make_archive(docker_members(ONE, ["a"])),
    make_archive(legacy_members(LAYERS, {"a": {"b": LAYERS[1][0]}})),
    make_archive(LAYOUT),
]


@given(st.data())
def test_any_damage_of_an_archive(data: st.DataObject) -> None:
    archive = bytearray(data.draw(st.sampled_from(ARCHIVES)))
    for _ in range(data.draw(st.integers(0, 3))):
        piece = data.draw(st.binary(min_size=1, max_size=8))
        offset = data.draw(st.integers(0, len(archive) - len(piece)))
        archive[offset : offset + len(piece)] = piece
    fd = os.memfd_create("archive")
    with os.fdopen(fd, "wb") as file, suppress(RegistryError):
        file.write(archive[: data.draw(st.integers(1, len(archive)))])
        file.flush()
        with closing(ArchiveFiles(PurePath("a.tar"), file=file)) as files:
            for source in open_archive(PurePath("a.tar"), files):
                image = source.resolve(None)
                for layer in image.layers:
                    read_blob(source.open_blob(layer))


WORDS = st.text(alphabet="ab =$\\'\"{}:-+?#/.,[]\n\t80é", max_size=40)
INSTRUCTIONS = [
    "CMD",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "HEALTHCHECK",
    "LABEL",
    "ONBUILD",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
]


@given(st.lists(st.builds("{} {}".format, st.sampled_from(INSTRUCTIONS), WORDS | st.text(max_size=20)), max_size=3))
def test_any_instruction(changes: list[str]) -> None:
    with suppress(InvalidError):
        apply_changes({"Env": ["a=1"], "WorkingDir": "/w"}, changes)


@given(WORDS, st.dictionaries(st.sampled_from("ab8"), WORDS, max_size=3))
def test_any_words(text: str, variables: dict[str, str]) -> None:
    with suppress(InvalidError):
        words = expand_words(text, variables)
        assert "".join("".join(words).split()) == "".join(expand_word(text, variables).split())


@given(st.text(max_size=40))
def test_quoted_text_stays_as_it_is(text: str) -> None:
    quoted = "'" + text.replace("'", "'\\''") + "'"
    assert text == expand_word(quoted, {})
    assert ([text] if text else []) == expand_words(quoted, {})
    assert [f"a={text}"] == apply_changes({}, [f"ENV a={quoted}"])["Env"] if text.isprintable() else True
