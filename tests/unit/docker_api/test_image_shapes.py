from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from imgstore.answers import HistoryItem, Image, Layer
from imgstore.docker_api.errors import ApiError
from imgstore.docker_api.image_shapes import format_time, inspect, show_history, summarize
from imgstore.docker_api.images import name_of
from imgstore.docker_api.platforms import check_platform, decode_platform, decode_platforms
from imgstore.errors import InvalidError
from registry_client.platform import Platform

CONFIG: dict[str, Any] = {
    "os": "linux",
    "architecture": "arm",
    "variant": "v7",
    "os.version": "6",
    "created": "2024-05-01T12:00:00.100000000+02:00",
    "author": "me",
    "docker_version": "20.10",
    "container": "c0ffee",
    "container_config": {"Cmd": ["/bin/sh", "-c", "#(nop)"]},
    "config": {
        "Cmd": ["sh"],
        "Env": None,
        "Labels": {"a": "b"},
        "User": "",
        "WorkingDir": "/w",
        "StopSignal": "SIGINT",
        "Volumes": "odd",
    },
    "history": [{"comment": "first"}, {"comment": "last"}],
}
MANIFEST = b'{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json"}'

IMAGE = Image(
    id="sha256:" + "1" * 64,
    references=("app:1",),
    digests=("app@sha256:" + "2" * 64,),
    created=datetime(2024, 5, 1, 10, 0, 0, 100000, UTC),
    os="linux",
    architecture="arm",
    variant="v7",
    size=1000,
    layers=(Layer("sha256:" + "3" * 64, "sha256:" + "4" * 64, None, "/s/disks/3.vmdk", 1000),),
    disks=("/s/disks/scratch.vmdk", "/s/disks/3.vmdk"),
    labels={"a": "b"},
    parent=None,
    tagged=None,
    manifest_digest="sha256:" + "2" * 64,
    manifest_bytes=MANIFEST,
    config_bytes=json.dumps(CONFIG).encode(),
)
NAMELESS = replace(IMAGE, references=(), digests=(), labels={}, created=None, manifest_digest=None, manifest_bytes=b"")
DESCRIPTOR = {
    "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
    "digest": "sha256:" + "2" * 64,
    "size": len(MANIFEST),
}


def test_summary() -> None:
    assert summarize(IMAGE, (1, 46)) == {
        "Id": IMAGE.id,
        "ParentId": "",
        "RepoTags": ["app:1"],
        "RepoDigests": ["app@sha256:" + "2" * 64],
        "Created": 1714557600,
        "Size": 1000,
        "SharedSize": -1,
        "Labels": {"a": "b"},
        "Containers": -1,
    }
    assert summarize(IMAGE, (1, 43))["VirtualSize"] == 1000
    assert "Manifests" not in summarize(IMAGE, (1, 47)) and "Descriptor" not in summarize(IMAGE, (1, 47))
    assert summarize(IMAGE, (1, 48))["Descriptor"] == DESCRIPTOR


def test_summary_without_a_name() -> None:
    old, new = summarize(NAMELESS, (1, 42)), summarize(replace(NAMELESS, parent=IMAGE.id), (1, 51), shared_size=7, manifests=True)
    assert (old["RepoTags"], old["RepoDigests"], old["Labels"], old["Created"]) == (["<none>:<none>"], ["<none>@<none>"], None, 0)
    assert (new["RepoTags"], new["RepoDigests"], new["ParentId"], new["SharedSize"]) == ([], [], IMAGE.id, 7)
    assert not {"VirtualSize", "Manifests", "Descriptor"} & new.keys()


def test_manifests() -> None:
    platform = {"architecture": "arm", "os": "linux", "variant": "v7"}
    content = len(MANIFEST) + len(IMAGE.config_bytes)
    assert summarize(IMAGE, (1, 48), manifests=True)["Manifests"] == [
        {
            "ID": "sha256:" + "2" * 64,
            "Descriptor": DESCRIPTOR | {"platform": platform},
            "Available": True,
            "Size": {"Content": content, "Total": content + 1000},
            "Kind": "image",
            "ImageData": {"Platform": platform, "Size": {"Unpacked": 1000}, "Containers": []},
        }
    ]


def test_inspect() -> None:
    assert inspect(IMAGE, (1, 51), "/s") == {
        "Id": IMAGE.id,
        "RepoTags": ["app:1"],
        "RepoDigests": ["app@sha256:" + "2" * 64],
        "Parent": "",
        "Comment": "last",
        "Created": "2024-05-01T12:00:00.1+02:00",
        "DockerVersion": "20.10",
        "Author": "me",
        "Config": {
            "Cmd": ["sh"],
            "Entrypoint": None,
            "Env": None,
            "Labels": {"a": "b"},
            "OnBuild": None,
            "StopSignal": "SIGINT",
            "User": "",
            "Volumes": None,
            "WorkingDir": "/w",
        },
        "Architecture": "arm",
        "Variant": "v7",
        "Os": "linux",
        "OsVersion": "6",
        "Size": 1000,
        "GraphDriver": {
            "Name": "vmdk",
            "Data": {"TopVMDK": "/s/disks/3.vmdk", "Chain": "/s/disks/scratch.vmdk:/s/disks/3.vmdk", "Datastore": "/s"},
        },
        "RootFS": {"Type": "layers", "Layers": ["sha256:" + "4" * 64]},
        "Metadata": {"LastTagTime": "0001-01-01T00:00:00Z"},
        "Descriptor": DESCRIPTOR,
    }


def test_inspect_in_older_versions() -> None:
    assert inspect(IMAGE, (1, 49), "/s")["Config"]["Hostname"] == ""
    assert "Hostname" not in inspect(IMAGE, (1, 50), "/s")["Config"]
    assert "ContainerConfig" not in inspect(IMAGE, (1, 45), "/s")
    old = inspect(IMAGE, (1, 44), "/s")
    assert (old["Container"], old["ContainerConfig"]["Cmd"]) == ("c0ffee", ["/bin/sh", "-c", "#(nop)"])
    assert "VirtualSize" not in old and inspect(IMAGE, (1, 43), "/s")["VirtualSize"] == 1000
    assert "Descriptor" not in inspect(IMAGE, (1, 47), "/s")


def test_inspect_of_an_image_that_says_little() -> None:
    bare = replace(NAMELESS, config_bytes=b'{"os":"linux","architecture":"amd64"}', layers=(), disks=("scratch",))
    shown = inspect(bare, (1, 51), "mem://")
    assert (shown["Comment"], shown["RootFS"], shown["GraphDriver"]["Data"]["TopVMDK"]) == ("", {"Type": "layers"}, "scratch")
    assert not {"Created", "Variant", "OsVersion", "Descriptor"} & shown.keys()
    assert inspect(bare, (1, 43), "mem://")["Created"] == "0001-01-01T00:00:00Z"
    tagged = inspect(replace(bare, tagged=datetime(2024, 5, 1, 12, 0, 0, 120000, UTC)), (1, 51), "mem://")
    assert tagged["Metadata"]["LastTagTime"] == "2024-05-01T12:00:00.12Z"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("2024-05-01T12:00:00Z", "2024-05-01T12:00:00Z"),
        ("2024-05-01t12:00:00.000z", "2024-05-01T12:00:00Z"),
        ("2024-05-01T12:00:00.123456789+00:00", "2024-05-01T12:00:00.123456789Z"),
        ("2024-05-01T12:00:00.10-07:00", "2024-05-01T12:00:00.1-07:00"),
        ("yesterday", ""),
        (None, ""),
        (17, ""),
    ],
)
def test_times(text: object, expected: str) -> None:
    assert expected == format_time(text)


def test_history() -> None:
    items = [HistoryItem(None, "top", 5, "note", False, "c"), HistoryItem(IMAGE.created, "middle", 0, "", True, None)]
    items.append(HistoryItem(IMAGE.created, "bottom", 7, "", False, "d"))
    first, second, third = show_history(items, [IMAGE, NAMELESS])
    assert first == {"Id": IMAGE.id, "Created": 0, "CreatedBy": "top", "Tags": ["app:1"], "Size": 5, "Comment": "note"}
    assert (second["Id"], second["Tags"], second["Created"]) == (NAMELESS.id, None, 1714557600)
    assert (third["Id"], third["Tags"], third["Size"]) == ("<missing>", None, 7)


@pytest.mark.parametrize(
    "text, message",
    [
        ("linux/arm64", "failed to parse platform"),
        ("[]", "failed to parse platform"),
        ('{"os":1}', "failed to parse platform"),
        ("[" * 5000, "failed to parse platform"),
        ('{"os":"linux"}', "both OS and Architecture must be provided"),
        ('{"variant":"v7"}', "optional platform fields provided, but OS and Architecture are missing"),
    ],
)
def test_what_is_no_platform(text: str, message: str) -> None:
    with pytest.raises(ApiError, match=message) as caught:
        decode_platform(text)
    assert caught.value.status == 400


def test_platforms() -> None:
    arm = '{"os":"linux","architecture":"arm","variant":"v7"}'
    assert decode_platforms([arm, '{"os":"Linux","architecture":"x86_64"}']) == [
        Platform("linux", "arm", "v7"),
        Platform("linux", "amd64"),
    ]
    assert decode_platform(None) is None and decode_platform("") is None
    check_platform(IMAGE, "app", None)
    check_platform(IMAGE, "app", decode_platform(arm))
    check_platform(IMAGE, "app", Platform("linux", "arm64"))  # which runs it, too
    with pytest.raises(
        ApiError, match=r"^image with reference app was found but does not provide the specified platform .linux/amd64.$"
    ):
        check_platform(IMAGE, "app", Platform("linux", "amd64"))


@pytest.mark.parametrize(
    "repository, tag, expected",
    [
        ("app", "", "docker.io/library/app:latest"),
        ("app:1", "", "docker.io/library/app:1"),
        ("app:1", "2", "docker.io/library/app:2"),
        ("localhost:5000/p/x", "v1", "localhost:5000/p/x:v1"),
    ],
)
def test_names(repository: str, tag: str, expected: str) -> None:
    assert expected == name_of(repository, tag)


@pytest.mark.parametrize(
    "repository, tag, message",
    [
        ("", "", "invalid reference format"),
        ("UPPER", "", "repository name must be lowercase"),
        ("app", "a b", "invalid tag format"),
        ("app@sha256:" + "0" * 64, "", "cannot import digest reference"),
        ("sha256", "1", "refusing to create an ambiguous tag using digest algorithm as name"),
    ],
)
def test_what_is_no_name(repository: str, tag: str, message: str) -> None:
    with pytest.raises((ApiError, InvalidError), match=message):
        name_of(repository, tag)
