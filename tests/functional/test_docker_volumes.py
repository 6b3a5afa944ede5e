"""Volumes through Docker's own clients: the command line and docker-py. ``tests/compat`` compares with dockerd."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import docker.errors
import pytest

from imgstore.store import ImageStore
from tests.servers.endpoint import Endpoint, endpoint


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ImageStore]:
    with ImageStore.open(str(tmp_path / "store")) as opened:
        yield opened


@pytest.fixture
def api(store: ImageStore) -> Iterator[Endpoint]:
    with endpoint(store) as served:
        yield served


def events(api: Endpoint) -> list[tuple[str, str, dict[str, str]]]:
    assert api.service is not None
    return [(event.action, event.id, dict(event.attributes)) for event in api.service.events.past()]


def test_create_and_inspect(api: Endpoint, store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "fast").mkdir()
    store.add_volume_store("fast", str(tmp_path / "fast"))
    words = ["--driver", "vsphere", "--opt", "VolumeStore=fast", "--opt", "capacity=2GB", "--label", "a=b"]
    assert api.docker_text("volume", "create", *words, "vol") == "vol\n"
    (shown,) = json.loads(api.docker_text("volume", "inspect", "vol"))
    assert Path(shown["Mountpoint"]).is_file() and Path(shown["Mountpoint"]).is_relative_to(tmp_path / "fast")
    assert shown.pop("CreatedAt")
    assert shown == {
        "Name": "vol",
        "Driver": "vsphere",
        "Labels": {"a": "b"},
        "Options": {"VolumeStore": "fast", "capacity": "2GB"},
        "Scope": "local",
        "Mountpoint": store.volume("vol").disk,
        "Status": {
            "Capacity": store.volume("vol").capacity,
            "Disk": store.volume("vol").disk,
            "Format": "vmdk",
            "Image": "",
            "Snapshots": [],
            "VolumeStore": "fast",
        },
    }
    assert json.loads(api.docker_text("inspect", "vol"))[0]["Name"] == "vol", "inspect finds it among all kinds"


def test_create_finds_what_is_there(api: Endpoint, store: ImageStore) -> None:
    for options in ({}, {"Capacity": "5GB"}):
        answer = api.post("/volumes/create", {"Name": "vol", "Driver": "local", "DriverOpts": options})
        assert (answer.status, answer.json["Status"]["Capacity"]) == (201, 1 << 30)
    assert [event[:2] for event in events(api)] == [("create", "vol")]
    answer = api.post("/volumes/create", {"Name": "", "Driver": "", "DriverOpts": None, "Labels": None})
    assert answer.json["Labels"] == {"com.docker.volume.anonymous": ""} and len(answer.json["Name"]) == 64
    assert len(store.volumes()[0]) == 2


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "invalid JSON: got EOF while reading request body"),
        ([], 400, "invalid JSON: Expected `object`, got `array`"),
        ({"Name": 5}, 400, "invalid JSON: Expected `str | null`, got `int` - at `$.Name`"),
        ({"Name": "a/b"}, 400, 'volume name "a/b" includes invalid characters, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed'),
        ({"Name": "v", "Driver": "nfs"}, 404, "error looking up volume plugin nfs: plugin not found"),
        ({"Name": "v", "DriverOpts": {"size": "5"}}, 400, "bad driver value - size is not a supported option"),
        ({"Name": "v", "DriverOpts": {"CAPACITY": "0"}}, 400, "bad driver value - Invalid size: 0"),
        ({"Name": "v", "DriverOpts": {"Capacity": "5 apples"}}, 400, "bad driver value - invalid size: '5 apples'"),
        ({"Name": "v", "DriverOpts": {"VolumeStore": "nosuch"}}, 404, "No volume store named (nosuch) exists"),
        ({"Name": "v", "ClusterVolumeSpec": {}}, 503, "This node is not a swarm manager"),
    ],
)
def test_what_cannot_be_made(api: Endpoint, store: ImageStore, body: object, status: int, words: str) -> None:
    answer = api.post("/volumes/create", body)
    assert (answer.status, words in answer.message) == (status, True), answer.message
    assert (store.volumes()[0], events(api)) == ([], [])


def test_list(api: Endpoint) -> None:
    for name, driver, label in (("one", "local", "a=b"), ("two", "vsphere", "a=c")):
        api.docker_text("volume", "create", "--driver", driver, "--label", label, name)
    for filters, expected in (
        ({}, ["one", "two"]),
        ({"name": ["wo"]}, ["two"]),
        ({"driver": ["local"]}, ["one"]),
        ({"label": ["a=c"]}, ["two"]),
        ({"label": ["a"], "dangling": ["1"]}, ["one", "two"]),
        ({"dangling": ["false"]}, []),
    ):
        shown = api.get(f"/volumes?filters={quote(json.dumps(filters))}").json
        assert (sorted(volume["Name"] for volume in shown["Volumes"]), shown["Warnings"]) == (expected, [])
    for filters in ({"bogus": ["x"]}, {"dangling": ["maybe"]}):
        answer = api.get(f"/volumes?filters={quote(json.dumps(filters))}")
        assert answer.status == 400 and answer.message.startswith("invalid filter '")


def test_a_volume_store_that_is_gone_hides_no_other(api: Endpoint, store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "away").mkdir()
    store.add_volume_store("away", str(tmp_path / "away"))
    store.create_volume("here")
    store.create_volume("there", options={"VolumeStore": "away"})
    shutil.rmtree(tmp_path / "away")
    shown = api.get("/volumes").json
    assert [volume["Name"] for volume in shown["Volumes"]] == ["here"]
    assert len(shown["Warnings"]) == 1 and "away" in shown["Warnings"][0]
    assert api.docker_text("volume", "ls", "-q") == "here\n"


def test_remove(api: Endpoint, store: ImageStore) -> None:
    store.create_volume("vol")
    assert api.docker_text("volume", "rm", "vol") == "vol\n"
    assert [event[:2] for event in events(api)] == [("destroy", "vol")]
    for query, status in (("", 404), ("?force=1", 204)):
        assert api.delete(f"/volumes/vol{query}").status == status
    assert api.delete("/volumes/vol").message == api.get("/volumes/vol").message == "get vol: no such volume"
    assert len(events(api)) == 1


@pytest.mark.parametrize(
    ("version", "filters", "left"),
    [
        ("v1.51", {}, ["kept", "named"]),
        ("v1.41", {}, []),
        ("v1.51", {"all": ["true"]}, []),
        ("v1.51", {"all": ["1"], "label!": ["keep"]}, ["kept"]),
    ],
)
def test_prune(api: Endpoint, store: ImageStore, version: str, filters: dict[str, list[str]], left: list[str]) -> None:
    sizes = [
        store.create_volume(name, labels=labels).size for name, labels in ((None, {}), ("named", {}), ("kept", {"keep": ""}))
    ]
    answer = api.post(f"/{version}/volumes/prune?filters={quote(json.dumps(filters))}")
    assert sorted(volume.name for volume in store.volumes()[0]) == left
    assert len(answer.json["VolumesDeleted"]) == 3 - len(left)
    assert answer.json["SpaceReclaimed"] == sum(sizes[: 3 - len(left)])
    assert [action for action, _, _ in events(api)] == ["destroy"] * (3 - len(left)) + ["prune"]


def test_with_docker_py(api: Endpoint) -> None:
    with api.client() as client:
        volume = client.volumes.create("vol", driver="local", driver_opts={"Capacity": "100"}, labels={"a": "b"})
        assert (volume.name, volume.attrs["Driver"], volume.attrs["Labels"]) == ("vol", "local", {"a": "b"})
        assert [each.name for each in client.volumes.list(filters={"label": "a"})] == ["vol"]
        assert client.volumes.get("vol").attrs["Status"]["Capacity"] == 100 << 20
        assert [each["Name"] for each in client.df()["Volumes"]] == ["vol"]
        volume.remove()
        with pytest.raises(docker.errors.NotFound, match="get vol: no such volume"):
            client.volumes.get("vol")
        assert client.volumes.prune(filters={"all": "true"})["SpaceReclaimed"] == 0
