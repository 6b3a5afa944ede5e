"""References, as docker reads them."""

from __future__ import annotations

import pytest

from registry_client.digest import Digest
from registry_client.errors import InvalidReferenceError
from registry_client.reference import Reference

D = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("alpine", "docker.io/library/alpine:latest", "alpine:latest"),
        ("alpine:3.10", "docker.io/library/alpine:3.10", "alpine:3.10"),
        ("user/app", "docker.io/user/app:latest", "user/app:latest"),
        ("a/b/c", "docker.io/a/b/c:latest", "a/b/c:latest"),
        ("library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
        ("docker.io/alpine", "docker.io/library/alpine:latest", "alpine:latest"),
        ("index.docker.io/library/alpine", "docker.io/library/alpine:latest", "alpine:latest"),
        ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
        ("localhost:5000/app:v1", "localhost:5000/app:v1", "localhost:5000/app:v1"),
        ("127.0.0.1:5000/a/b-c__d.e:V_1.x-y", "127.0.0.1:5000/a/b-c__d.e:V_1.x-y", "127.0.0.1:5000/a/b-c__d.e:V_1.x-y"),
        ("[::1]:5000/app", "[::1]:5000/app:latest", "[::1]:5000/app:latest"),
        ("HOST/app", "HOST/app:latest", "HOST/app:latest"),
        (
            "harbor.example.com/proj/any/depth",
            "harbor.example.com/proj/any/depth:latest",
            "harbor.example.com/proj/any/depth:latest",
        ),
        (f"alpine@{D}", f"docker.io/library/alpine@{D}", f"alpine@{D}"),
        (f"r.io/a:t@{D}", f"r.io/a:t@{D}", f"r.io/a:t@{D}"),
        ("x--y", "docker.io/library/x--y:latest", "x--y:latest"),
    ],
)
def test_parse(text: str, full: str, familiar: str) -> None:
    reference = Reference.parse(text)
    assert full == str(reference)
    assert familiar == reference.familiar
    assert reference == Reference.parse(full) == Reference.parse(familiar)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Alpine", "invalid reference format: repository name must be lowercase"),
        ("r.io/Team/app", "invalid reference format: repository name must be lowercase"),
        ("ab" * 32, "cannot specify 64-byte hexadecimal strings"),
        ("", "must have at least one component"),
        ("r.io/", "must have at least one component"),
        ("-a", "invalid reference format"),
        ("a..b", "invalid reference format"),
        ("a___b", "invalid reference format"),
        ("a//b", "invalid reference format"),
        ("../../etc/passwd", "invalid reference format"),
        ("a:", "invalid reference format"),
        ("a:-x", "invalid reference format"),
        ("a:" + "t" * 129, "invalid reference format"),
        ("a@sha256:abc", "invalid reference format"),
        ("a@sha256:" + "ab" * 31, "invalid reference format: digest"),
        ("a@md5:" + "ab" * 16, "invalid reference format: digest"),
        ("a@sha256:" + "AB" * 32, "invalid reference format: digest"),
        ("a b", "invalid reference format"),
        ("a\n", "invalid reference format"),
        ("https://r.io/a", "invalid reference format"),
        ("ä", "invalid reference format"),
        ("r.io/" + "a" * 251, "must not be more than 255 characters"),
        ("a" * 2000, "invalid reference format"),
    ],
)
def test_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidReferenceError, match=words):
        Reference.parse(text)


def test_longest_name() -> None:
    assert len(Reference.parse("r.io/" + "a" * 250).name) == 255


def test_with_tag_and_digest() -> None:
    reference = Reference.parse("r.io/a:1")
    assert str(reference.with_tag("2")) == "r.io/a:2"
    assert str(reference.with_digest(Digest(D))) == f"r.io/a@{D}"
    with pytest.raises(InvalidReferenceError, match="invalid tag format"):
        reference.with_tag("a/b")
