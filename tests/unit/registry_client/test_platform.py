"""Platforms: spellings, and which can run which."""

from __future__ import annotations

import pytest

from registry_client.errors import InvalidPlatformError
from registry_client.platform import Platform, choose


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("linux/x86_64", "linux/amd64"),
        ("Linux/AMD64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/i386", "linux/386"),
        ("arm64", "linux/arm64"),
        ("s390x", "linux/s390x"),
        ("windows/amd64", "windows/amd64"),
    ],
)
def test_parse(text: str, normal: str) -> None:
    assert normal == str(Platform.parse(text))


@pytest.mark.parametrize("text", ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux/am d64", "linux/" + "x" * 65])
def test_refused(text: str) -> None:
    with pytest.raises(InvalidPlatformError, match="platform"):
        Platform.parse(text)


@pytest.mark.parametrize(
    ("wanted", "offered", "best"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], 1),
        ("linux/amd64", ["linux/amd64/v2", "linux/386"], 1),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], 1),
        ("linux/arm64", ["linux/arm/v6", "linux/arm/v7", "linux/arm64/v8"], 2),
        ("linux/arm64", ["linux/arm/v6", "linux/arm/v7"], 1),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6"], 1),
        ("linux/arm/v6", ["linux/arm/v7"], None),
        ("linux/arm/v7", ["linux/arm64"], None),
        ("linux/amd64", ["windows/amd64", "linux/ppc64le"], None),
        ("linux/amd64", ["linux/amd64", "linux/amd64"], 0),
        ("linux/amd64", [], None),
    ],
)
def test_choose(wanted: str, offered: list[str], best: int | None) -> None:
    assert best == choose(Platform.parse(wanted), [Platform.parse(text) for text in offered])


def test_agreement_leaves_out_what_is_not_said() -> None:
    assert Platform("linux", "arm", "v7").agrees_with(Platform("linux", "arm"))
    assert not Platform("linux", "arm", "v7").agrees_with(Platform("linux", "arm", "v6"))
    assert not Platform("linux", "arm").agrees_with(Platform("linux", "arm64"))


def test_host_is_linux() -> None:
    assert Platform.host().os == "linux"
    assert Platform.host() == Platform.parse(str(Platform.host()))
