"""What the body of a creation says: mounts, sizes, what is kept, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from imgstore.answers import Mount
from imgstore.docker_api.container_requests import NewContainer, parse_bind, parse_new_container
from imgstore.docker_api.errors import ApiError

NEWEST = (1, 51)
NOT_ABSOLUTE = "invalid mount path: 'x' mount path must be absolute"


def parse(host_config: dict[str, Any] | None = None, version: tuple[int, int] = NEWEST, **config: Any) -> NewContainer:
    return parse_new_container({"Image": "app", **config, "HostConfig": host_config}, version)


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("/x", Mount("", "/x")),
        ("vol:/x", Mount("vol", "/x")),
        ("vol:/x:", Mount("vol", "/x")),
        ("vol:/x:rw", Mount("vol", "/x")),
        ("vol:/x:ro", Mount("vol", "/x", read_only=True)),
        ("vol:/x:z,ro,nocopy", Mount("vol", "/x", read_only=True, no_copy=True)),
        ("vol:/x:rshared", Mount("vol", "/x")),
    ],
)
def test_binds(text: str, mount: Mount) -> None:
    assert parse_bind(text) == mount


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "volume bind input is invalid: -v "),
        (":/x", "volume bind input is invalid: -v :/x"),
        ("vol:ro", "volume bind input is invalid: -v vol:ro"),
        ("a:b:c:d", "volume bind input is invalid: -v a:b:c:d"),
        ("/host:/x", "mounting directories as a data volume is not supported."),
        ("/host:/x:ro", "mounting directories as a data volume is not supported."),
        ("vol:/x:rx", "invalid mode: rx"),
        ("vol:/x:ro,ro", "invalid mode: ro,ro"),
        ("vol:/x:z,Z", "invalid mode: z,Z"),
        ("vol:x", "invalid volume specification: 'vol:x': invalid mount config for type \"volume\": " + NOT_ABSOLUTE),
    ],
)
def test_binds_that_are_none(text: str, words: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_bind(text)
    assert (caught.value.status, str(caught.value)) == (400, words)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("40g", 40 << 30), ("40 GB", 40 << 30), ("1.5GiB", 3 << 29), ("10m", 10 << 20), ("2T", 2 << 40), ("512b", 512)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse({"StorageOpt": {"size": text}}).size == size


def test_mounts() -> None:
    new = parse(
        {
            "Binds": ["one:/1:ro"],
            "VolumeDriver": "vsphere",
            "Mounts": [
                {"Type": "tmpfs", "Target": "/t"},
                {"Type": "volume", "Source": "two", "Target": "/2", "ReadOnly": True, "VolumeOptions": {"NoCopy": True}},
                {
                    "Type": "volume",
                    "Target": "/3",
                    "VolumeOptions": {"Labels": {"a": "b"}, "DriverConfig": {"Name": "local", "Options": {"Capacity": "5"}}},
                },
            ],
        }
    )
    assert new.mounts == (Mount("one", "/1", read_only=True), Mount("two", "/2", read_only=True, no_copy=True), Mount("", "/3"))
    assert [(each.position, each.name, each.driver, each.options, each.labels) for each in new.wanted_volumes] == [
        (0, "one", "vsphere", {}, {}),
        (2, "", "local", {"Capacity": "5"}, {"a": "b"}),
    ]
    assert new.host_config["Mounts"][0] == {"Type": "tmpfs", "Target": "/t"}, "kept for the platform"


@pytest.mark.parametrize(
    ("mount", "status", "words"),
    [
        ({"Type": "bind", "Source": "/", "Target": "/x"}, 400, "mounting directories as a data volume is not supported."),
        ({"Type": "volume"}, 400, 'invalid mount config for type "volume": field Target must not be empty'),
        ({"Type": "image", "Target": "/x"}, 400, 'invalid mount config for type "image": mount type unknown'),
        ({"Type": "tmpfs", "Source": "s", "Target": "/x"}, 400, "field Source must not be specified"),
        ({"Type": "volume", "Source": "v", "Target": "/x", "VolumeOptions": {"Subpath": "s"}}, 501, "only all of it"),
    ],
)
def test_mounts_that_are_none(mount: dict[str, Any], status: int, words: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse({"Mounts": [mount]})
    assert (caught.value.status, words in str(caught.value)) == (status, True), str(caught.value)


def test_what_is_kept() -> None:
    """As it came, unknown fields too; null is the same as nothing, but where a key counts."""
    new = parse(
        {"Memory": 5, "Future": [1, None], "Dns": None, "PortBindings": {"80/tcp": None}, "RestartPolicy": {"Name": None}},
        Cmd="run",
        ExposedPorts={"80/tcp": None},
        Env=None,
        Unknown={"a": None, "b": 1},
    )
    assert new.host_config == {"Memory": 5, "Future": [1, None], "PortBindings": {"80/tcp": []}, "RestartPolicy": {}}
    assert new.config == {"Image": "app", "Cmd": "run", "ExposedPorts": {"80/tcp": {}}, "Unknown": {"b": 1}}
    assert "AutoRemove" not in parse({"AutoRemove": True}, (1, 24)).host_config
    assert parse({"AutoRemove": True}, (1, 25)).host_config["AutoRemove"]


def test_networks_are_kept_with_the_host_configuration() -> None:
    body = {"Image": "app", "NetworkingConfig": {"EndpointsConfig": {"net": {"Aliases": ["a"], "Links": None}}}}
    assert parse_new_container(body, NEWEST).host_config == {"NetworkingConfig": {"EndpointsConfig": {"net": {"Aliases": ["a"]}}}}
