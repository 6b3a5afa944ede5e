from __future__ import annotations

import pytest

from imgstore.answers import Mount
from imgstore.errors import InvalidError
from imgstore.mounts import parse_bind, plan_mounts


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("data:/data", Mount("data", "/data")),
        ("data:/data:ro", Mount("data", "/data", read_only=True)),
        ("data:/data:rw,nocopy", Mount("data", "/data", no_copy=True)),
        ("data:/data:Z", Mount("data", "/data")),
        ("/data", Mount("", "/data")),
    ],
)
def test_binds(text: str, mount: Mount) -> None:
    assert mount == parse_bind(text)


@pytest.mark.parametrize("text", ["/host:/data", "./here:/data", "~/here:/data:ro"])
def test_no_directories_of_the_host(text: str) -> None:
    with pytest.raises(InvalidError, match=r"^mounting directories as a data volume is not supported\.$"):
        parse_bind(text)


@pytest.mark.parametrize(
    "text", ["", ":", "data:", "data:data", ":/data", "data", "data:/data:x", "data:/data:ro,rw", "data:/a:ro:x"]
)
def test_malformed_binds(text: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_bind(text)
    assert str(caught.value) == f"volume bind input is invalid: -v {text}"


def test_the_image_s_volumes_come_where_nothing_else_is() -> None:
    planned = plan_mounts([Mount("v", "/a/../data//"), Mount("w", "/b")], ["/data", "logs/", "//x/."])
    assert planned == [Mount("v", "/data"), Mount("w", "/b"), Mount("", "/x"), Mount("", "/logs")]


@pytest.mark.parametrize(
    ("destinations", "words"),
    [
        (["/a", "/b/../a/"], "Duplicate mount point: /a"),
        (["/"], "invalid specification: destination can't be '/'"),
        (["/a/.."], "invalid specification: destination can't be '/'"),
        (["a"], "invalid mount config for type \"volume\": invalid mount path: 'a' mount path must be absolute"),
        ([""], 'invalid mount config for type "volume": field Target must not be empty'),
    ],
)
def test_places_that_are_none(destinations: list[str], words: str) -> None:
    with pytest.raises(InvalidError) as caught:
        plan_mounts([Mount("v", destination) for destination in destinations], ())
    assert words == str(caught.value)
