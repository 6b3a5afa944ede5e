"""The list of images that is to be seeded: what it may say, and where what it may not say stands."""

from __future__ import annotations

import pytest

from imgstore.errors import InvalidError
from imgstore.seed_files import LIMIT, SeedImage, parse_seed_file

DIGEST = "sha256:" + "a" * 64


def parse(text: str) -> list[SeedImage]:
    return parse_seed_file(text.encode(), "images.yaml")


def names(text: str) -> list[str]:
    return [image.reference for image in parse(text)]


def test_references_alone() -> None:
    assert names("images: [alpine, 'docker.io/library/alpine:3.20', docker://harbor.example/app:1]") == [
        "alpine",
        "docker.io/library/alpine:3.20",
        "docker://harbor.example/app:1",
    ]


def test_an_image_with_more_words() -> None:
    text = """\
images:
  - name: harbor.example/app
    tags: [1, 3.10, yes, sha256:{}]
    platform: aarch64
  - name: alpine:3.20
    platform: linux/arm/v7
""".format("a" * 64)
    assert parse(text) == [
        SeedImage("harbor.example/app:1", "linux/arm64", line=3),
        SeedImage("harbor.example/app:3.10", "linux/arm64", line=3),
        SeedImage("harbor.example/app:yes", "linux/arm64", line=3),
        SeedImage(f"harbor.example/app@{DIGEST}", "linux/arm64", line=3),
        SeedImage("alpine:3.20", "linux/arm/v7", line=5),
    ]


def test_what_skopeo_sync_reads() -> None:
    text = """\
registry.example.com:
  images:
    busybox: []
    team/redis:
      - "1.0"
      - "sha256:{}"
localhost:5000:
  images: {{app: [latest]}}
""".format("a" * 64)
    assert parse(text) == [
        SeedImage("registry.example.com/busybox", all_tags=True, line=3),
        SeedImage("registry.example.com/team/redis:1.0", line=5),
        SeedImage(f"registry.example.com/team/redis@{DIGEST}", line=6),
        SeedImage("localhost:5000/app:latest", line=8),
    ]


def test_layouts_on_this_machine() -> None:
    assert names("images: ['oci:dir:1', 'docker-archive:a.tar']") == ["oci:dir:1", "docker-archive:a.tar"]


def test_json_is_yaml() -> None:
    assert names('{"images": ["alpine:3"]}') == ["alpine:3"]


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("", None, "is empty"),
        ("# nothing\n", None, "is empty"),
        ("images: []", 1, "lists no image"),
        ("- alpine", 1, "the file: must have keys with values"),
        ("images:\n  - alpine\n  - [x]", 3, "an image: must have keys with values"),
        ("images: alpine", 1, "'images': must be a list"),
        ("images:\n  - ''", 2, "invalid reference format"),
        ("images:\n  - Alpine", 2, "must be lowercase"),
        ("images:\n  - alpine\n  - docker.io/library/alpine:latest", 3, "is listed twice, first in line 2"),
        ("images:\n  - alpine\n  - " + 5000 * "a", 3, "a word of 5000 letters"),
        ("images:\n  - name: alpine\n    tag: 3", 3, "unknown key 'tag'"),
        ("images:\n  - tags: [3]", 2, "without 'name'"),
        ("images:\n  - name: alpine:3\n    tags: [4]", 3, "has a tag or digest beside its list of tags"),
        ("images:\n  - name: alpine\n    tags: [[3]]", 3, "a tag of alpine is not a word"),
        ("images:\n  - name: alpine\n    tags: 3", 3, "must be a list"),
        ("images:\n  - name: alpine\n    tags: ['a b']", 3, "invalid reference format"),
        ("images:\n  - name: alpine\n    platform: a/b/c/d", 3, "not os/architecture"),
        ("images: [a]\nimages: [b]", 2, "key 'images' stands here twice, first in line 1"),
        ("images: [a]\npictures: [b]", 2, "unknown key 'pictures'"),
        ("images: &all [alpine]\nharbor.example: *all", 1, "anchors and aliases"),
        ("images: *all", 1, "anchors and aliases"),
        ("images: [!!python/object/apply:os.system ['true']]", 1, "types are not for this file"),
        ("images: [a]\n---\nimages: [b]", 2, "a second document"),
        ("images:\n\t- a", 2, "no YAML: found character '\\t'"),
        ("images: [a", 1, "no YAML"),
        ("? [a]\n: b", 1, "a key is not a word"),
        ("images: " + "[" * 5000, 1, "more than 8 levels"),
        ("harbor.example:\n  images: {a: []}\n  tls-verify: false", 3, "'tls-verify' is not for this file"),
        ("harbor.example:\n  images: {a: []}\n  other: 1", 3, "unknown key 'other'"),
        ("harbor.example:\n  images: {a: }", 2, "the tags of harbor.example/a: must be a list"),
    ],
)
def test_what_is_refused(text: str, line: int | None, problem: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse(text)
    assert str(caught.value).startswith("images.yaml: " if line is None else f"images.yaml, line {line}: ")
    assert problem in str(caught.value)


def test_bytes_that_are_no_text() -> None:
    numbers = (b'images: ["\\U00110000"]', b'images: ["\\UFFFFFFFF"]', b"%YAML 1." + 5000 * b"9")
    for data in (b"images: [\xff\xfe\xfa]", b"images: [a\x00b]", *numbers):
        with pytest.raises(InvalidError, match="no YAML"):
            parse_seed_file(data, "images.yaml")


def test_a_long_file() -> None:
    with pytest.raises(InvalidError, match=f"is longer than {LIMIT} bytes"):
        parse_seed_file(bytes(LIMIT + 1), "images.yaml")


def test_what_to_do_instead() -> None:
    with pytest.raises(InvalidError) as caught:
        parse("harbor.example: {credentials: {username: a}}")
    assert caught.value.hint == "log in with: imgstore login"
