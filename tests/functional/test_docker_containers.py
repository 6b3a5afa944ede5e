"""Containers through Docker's own clients: the command line and docker-py. ``tests/compat`` compares with dockerd."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import docker.errors
import pytest
from docker.types import LogConfig, Mount

from imgstore.store import ImageStore
from tests.servers.endpoint import Answer, Endpoint, endpoint
from tests.servers.images import build_image, make_tar, write_docker_archive
from tests.servers.registry import Registry

LAYERS = [make_tar({"etc/motd": b"hello\n", "data/seed": b"seed"})]
CONFIG = {"Cmd": ["run"], "Env": ["A=b"], "Labels": {"of": "image"}, "Volumes": {"/data": {}}}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageStore]:
    directory = tmp_path_factory.mktemp("containers")
    archive = write_docker_archive(directory / "a.tar", {"app:1": build_image(LAYERS, config={"config": CONFIG})})
    with ImageStore.open(str(directory / "store")) as opened:
        with archive.open("rb") as body:
            list(opened.load(body))
        yield opened


@pytest.fixture(scope="module")
def endpoint_of_all(store: ImageStore) -> Iterator[Endpoint]:
    with endpoint(store) as served:
        yield served


@pytest.fixture
def api(endpoint_of_all: Endpoint, store: ImageStore) -> Iterator[Endpoint]:
    """The endpoint; containers and volumes go with the test."""
    yield endpoint_of_all
    for container in store.containers():
        store.remove_container(container.id, volumes=True)
    for volume in store.volumes()[0]:
        store.remove_volume(volume.name)


def create(api: Endpoint, body: object, query: str = "", version: str = "v1.51") -> Answer:
    return api.post(f"/{version}/containers/create?{query}", body)


def inspect(api: Endpoint, name: str, query: str = "", version: str = "v1.51") -> Any:
    answer = api.get(f"/{version}/containers/{name}/json?{query}")
    assert answer.status == 200, answer.body
    return answer.json


def events(api: Endpoint) -> list[tuple[str, str, str]]:
    assert api.service is not None
    return [(event.type, event.action, event.attributes.get("name", event.id)) for event in api.service.events.past()]


class TestCreate:
    def test_with_volumes_of_every_kind(self, api: Endpoint, store: ImageStore) -> None:
        words = ["-v", "vol:/v:ro", "-v", "/anonymous", "--mount", "type=volume,src=other,dst=/o,volume-opt=Capacity=128"]
        id = api.docker_text("create", "--name", "web", "--read-only", *words, "app:1").strip()
        made = store.container("web")
        assert (made.id, made.read_only) == (id, True)
        assert {
            mount.destination: (mount.volume, mount.read_only) for mount in made.mounts if mount.destination in ("/v", "/o")
        } == {
            "/v": ("vol", True),
            "/o": ("other", False),
        }
        volumes = {volume.name: volume for volume in store.volumes()[0]}
        assert volumes["other"].capacity == 128 << 20
        assert sorted(volume.anonymous for volume in volumes.values()) == [False, False, True, True]
        shown = inspect(api, "web")
        assert {mount["Source"] for mount in shown["Mounts"]} == {volume.disk for volume in volumes.values()}
        assert shown["GraphDriver"]["Data"] == {
            "TopVMDK": made.disk,
            "Chain": ":".join(store.container_disk_paths("web")),
            "Datastore": store.location,
            "Capacity": str(made.capacity),
        }
        assert b"seed" in api.docker("cp", "web:/data/seed", "-").stdout, "what the image has there is in the new volume"
        assert events(api)[-6:-1] == [
            *(("volume", "create", mount.volume) for mount in made.mounts),
            ("container", "create", "web"),
        ]

    def test_all_that_the_command_line_can_say_is_kept(self, api: Endpoint) -> None:
        """And shown as it was said; what nobody said is as dockerd has it."""
        api.docker_text(
            *(
                "create",
                "--name",
                "all",
                "-h",
                "host",
                "-u",
                "1:2",
                "-w",
                "/w",
                "-e",
                "X=y",
                "-l",
                "a=b",
                "--init",
                "--entrypoint",
                "e",
            ),
            *(
                "-p",
                "127.0.0.1:8080:80/udp",
                "--expose",
                "81",
                "--restart",
                "on-failure:3",
                "-m",
                "64m",
                "--cpus",
                "1.5",
                "--pid",
                "host",
            ),
            *(
                "--cap-add",
                "NET_ADMIN",
                "--cap-drop",
                "ALL",
                "--dns",
                "1.1.1.1",
                "--add-host",
                "h:1.2.3.4",
                "--ulimit",
                "nofile=1:2",
            ),
            *("--tmpfs", "/t:size=1m", "--device", "/dev/null:/d:r", "--sysctl", "net.x=1", "--security-opt", "label=disable"),
            *(
                "--log-driver",
                "syslog",
                "--log-opt",
                "a=b",
                "--network",
                "net1",
                "--network-alias",
                "al",
                "--ip",
                "10.0.0.7",
            ),
            *(
                "--health-cmd",
                "true",
                "--health-interval",
                "5s",
                "--stop-signal",
                "INT",
                "--stop-timeout",
                "9",
                "--annotation",
                "n=o",
            ),
            *(
                "--gpus",
                "all",
                "--blkio-weight-device",
                "/dev/x:300",
                "--device-read-bps",
                "/dev/x:1mb",
                "--shm-size",
                "1g",
                "app:1",
                "one",
            ),
        )
        (shown,) = json.loads(api.docker_text("inspect", "all"))
        host = shown["HostConfig"]
        assert (shown["Path"], shown["Args"], shown["Config"]["Hostname"], shown["Config"]["User"]) == (
            "e",
            ["one"],
            "host",
            "1:2",
        )
        assert host["PortBindings"] == {"80/udp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}]}
        assert set(shown["Config"]["ExposedPorts"]) == {"80/udp", "81/tcp"}
        assert host["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 3}
        assert (host["Memory"], host["NanoCpus"], host["PidMode"], host["ShmSize"]) == (64 << 20, 1_500_000_000, "host", 1 << 30)
        assert (host["CapAdd"], host["CapDrop"], host["Dns"]) == (["CAP_NET_ADMIN"], ["ALL"], ["1.1.1.1"])
        assert host["Devices"] == [{"PathOnHost": "/dev/null", "PathInContainer": "/d", "CgroupPermissions": "r"}]
        assert (host["Tmpfs"], host["Sysctls"], host["Annotations"]) == ({"/t": "size=1m"}, {"net.x": "1"}, {"n": "o"})
        assert host["LogConfig"] == {"Type": "syslog", "Config": {"a": "b"}}
        assert (host["IpcMode"], host["CgroupnsMode"], host["MemorySwappiness"]) == ("private", "private", None)
        (network,) = shown["NetworkSettings"]["Networks"].items()
        assert (network[0], network[1]["Aliases"], network[1]["IPAMConfig"]) == ("net1", ["al"], {"IPv4Address": "10.0.0.7"})
        assert shown["Config"]["Healthcheck"] == {"Test": ["CMD-SHELL", "true"], "Interval": 5 * 10**9}
        assert (shown["Config"]["StopSignal"], shown["Config"]["StopTimeout"]) == ("INT", 9)
        assert shown["State"]["Status"] == "created"

    def test_pulls_what_is_missing(self, tmp_path: Path) -> None:
        with Registry() as registry, ImageStore.open(str(tmp_path / "store")) as store, endpoint(store) as api:
            registry.add_image("app", "1", LAYERS, config={"config": CONFIG})
            done = api.docker("create", "--name", "web", f"{registry.host}/app:1")
            assert done.returncode == 0, done.stderr
            assert b"Unable to find image" in done.stderr and b"Pull complete" in done.stderr
            assert store.container("web").image == f"{registry.host}/app:1"

    def test_a_larger_disk(self, api: Endpoint, store: ImageStore) -> None:
        api.docker_text("create", "--name", "large", "--storage-opt", "size=40.5G", "app:1")
        assert store.container("large").capacity == 81 << 29
        for size, words in (("1G", "cannot be smaller"), ("big", "invalid size: 'big'"), ("-1", "invalid size: '-1'")):
            answer = create(api, {"Image": "app:1", "HostConfig": {"StorageOpt": {"size": size}}})
            assert (answer.status, words in answer.message) == (400, True), answer.message

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            (b"", "Config cannot be empty in order to create a container"),
            ([], "invalid JSON: Expected `object`, got `list`"),
            ({"Image": 5}, "invalid JSON: Config.Image: Expected `str`, got `int`"),
            ({}, "No command specified"),
            ({"Image": "app:1", "HostConfig": []}, "invalid JSON: HostConfig: Expected `object`, got `list`"),
            ({"Image": "app:1", "HostConfig": {"Memory": 1 << 63}}, "invalid JSON: HostConfig.Memory"),
            ({"Image": "app:1", "HostConfig": {"Mounts": [{"Type": 1}]}}, "invalid JSON: HostConfig.Mounts"),
            (
                {"Image": "app:1", "NetworkingConfig": {"EndpointsConfig": {"n": {"Links": "x"}}}},
                "invalid JSON: NetworkingConfig",
            ),
            ({"Image": "app:1", "HostConfig": {"Binds": ["/a:/b"]}}, "mounting directories as a data volume is not supported."),
            ({"Image": "app:1", "HostConfig": {"Binds": ["a:b:c:d"]}}, "volume bind input is invalid: -v a:b:c:d"),
            ({"Image": "app:1", "HostConfig": {"Binds": ["a:ro"]}}, "volume bind input is invalid: -v a:ro"),
            ({"Image": "app:1", "HostConfig": {"Binds": ["a:/b:ro,rw"]}}, "invalid mode: ro,rw"),
            ({"Image": "app:1", "HostConfig": {"Binds": ["a:/b", "c:/b/"]}}, "Duplicate mount point: /b"),
            ({"Image": "app:1", "HostConfig": {"Binds": ["a:/"]}}, "invalid specification: destination can't be '/'"),
            (
                {"Image": "app:1", "HostConfig": {"Binds": ["va:/b"], "VolumeDriver": "nfs"}},
                "error looking up volume plugin nfs: plugin not found",
            ),
            (
                {"Image": "app:1", "HostConfig": {"Mounts": [{"Type": "volume", "Target": "/x", "ReadOnly": True}]}},
                "must not set ReadOnly mode when using anonymous volumes",
            ),
            ({"Image": "app:1", "HostConfig": {"StorageOpt": {"inodes": "5"}}}, "Unknown option inodes"),
        ],
    )
    def test_what_makes_no_sense(self, api: Endpoint, store: ImageStore, body: object, words: str) -> None:
        answer = create(api, body)
        assert (answer.status, words in answer.message) == (400, True), answer.message
        assert (store.containers(), store.volumes()[0]) == ([], [])

    def test_what_fails_takes_its_volumes_along(self, api: Endpoint, store: ImageStore) -> None:
        store.create_volume("there")
        mounts = [
            {"Type": "volume", "Source": name, "Target": f"/{name}", "VolumeOptions": {"Labels": {"a": "b"}}}
            for name in ("there", "new")
        ]
        answer = create(api, {"Image": "app:1", "WorkingDir": "relative", "HostConfig": {"Mounts": mounts}})
        assert (answer.status, [volume.name for volume in store.volumes()[0]]) == (400, ["there"])

    def test_a_platform_that_the_image_is_not_for(self, api: Endpoint) -> None:
        answer = create(api, {"Image": "app:1"}, "platform=linux/arm64")
        assert (answer.status, "was found but does not match the specified platform" in answer.message) == (404, True)
        assert create(api, {"Image": "app:1"}, "platform=linux/arm64", "v1.40").status == 201  # which does not know the parameter
        assert create(api, {"Image": "app:1"}, "platform=%21").status == 400

    def test_of_ten_that_want_one_name_one_gets_it(self, api: Endpoint) -> None:
        answers: list[Answer] = []
        threads = [
            threading.Thread(target=lambda: answers.append(create(api, {"Image": "app:1"}, "name=one"))) for _ in range(10)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answer.status for answer in answers) == [201] + [409] * 9
        id = next(answer.json["Id"] for answer in answers if answer.status == 201)
        words = f'Conflict. The container name "/one" is already in use by container "{id}".'
        assert all(answer.message.startswith(words) for answer in answers if answer.status == 409)


class TestListAndInspect:
    def test_sizes(self, api: Endpoint, store: ImageStore) -> None:
        create(api, {"Image": "app:1"}, "name=web")
        (shown,) = api.get("/containers/json?all=1&size=1").json
        made, image = store.container("web"), store.image("app:1")
        assert (shown["SizeRw"], shown["SizeRootFs"]) == (made.size_rw, made.size_rw + image.size)
        assert "SizeRw" not in api.get("/containers/json?all=1").json[0] and "SizeRw" not in inspect(api, "web")
        assert inspect(api, "web", "size=true")["SizeRw"] == made.size_rw

    def test_which_are_listed(self, api: Endpoint) -> None:
        for name in ("c1", "c2", "c3"):
            create(api, {"Image": "app:1", "Labels": {"n": name}}, f"name={name}")

        def names(query: str) -> list[str]:
            return [shown["Names"][0] for shown in api.get(f"/containers/json?{query}").json]

        assert names("") == names("all=0&limit=-1") == names("filters=" + quote('{"label": ["n"]}')) == []
        assert names("all=1") == ["/c3", "/c2", "/c1"]
        assert names("limit=2") == ["/c3", "/c2"]
        assert names("before=c3") == ["/c2", "/c1"] and names("since=c2") == ["/c3"]
        assert names("filters=" + quote('{"status": {"created": true}, "label": {"n=c1": true}}')) == ["/c1"]
        assert api.get("/containers/json?limit=x").status == 400
        assert api.get("/containers/json?all=1&filters=%7B%22before%22%3A%5B%22nosuch%22%5D%7D").status == 404

    def test_fields_by_version(self, api: Endpoint) -> None:
        create(api, {"Image": "app:1", "HostConfig": {"Annotations": {"a": "b"}}}, "name=web")
        assert "KernelMemory" in inspect(api, "web", version="v1.41")["HostConfig"]
        assert "KernelMemory" not in inspect(api, "web", version="v1.42")["HostConfig"]
        assert "Annotations" not in inspect(api, "web", version="v1.42")["HostConfig"]
        for version, expected in (
            ("v1.45", {"NetworkMode": "bridge"}),
            ("v1.46", {"NetworkMode": "bridge", "Annotations": {"a": "b"}}),
        ):
            assert api.get(f"/{version}/containers/json?all=1").json[0]["HostConfig"] == expected
        assert "AutoRemove" not in json.dumps(
            create(api, {"Image": "app:1", "HostConfig": {"AutoRemove": True}}, version="v1.24").json
        )

    def test_the_name_of_an_image_that_is_another_one_s_now(self, api: Endpoint, store: ImageStore) -> None:
        image = store.image("app:1")
        create(api, {"Image": "app:1"}, "name=by-name")
        create(api, {"Image": image.id[7:19]}, "name=by-id")
        store.tag(image.id, "kept:1")
        store.remove("app:1")
        try:
            shown = {each["Names"][0]: each["Image"] for each in api.get("/containers/json?all=1").json}
            assert shown == {"/by-name": image.id, "/by-id": image.id[7:19]}
        finally:
            store.tag(image.id, "app:1")
            store.remove("kept:1")

    def test_a_disk_that_is_missing(self, api: Endpoint, store: ImageStore) -> None:
        create(api, {"Image": "app:1"}, "name=web")
        Path(store.container("web").disk).unlink()
        answer = api.get("/containers/web/json")
        assert (answer.status, answer.message.startswith("container web: ")) == (500, True), answer.message
        assert len(api.get("/containers/json?all=1&size=1").json) == 1
        assert api.docker_text("rm", "web") == "web\n"


class TestRemove:
    def test_with_and_without_anonymous_volumes(self, api: Endpoint, store: ImageStore) -> None:
        for name, options in (("c1", []), ("c2", ["-v"])):
            api.docker_text("create", "--name", name, "-v", "named:/n", "app:1")
            assert api.docker_text("rm", *options, name) == f"{name}\n"
        assert sorted(volume.anonymous for volume in store.volumes()[0]) == [False, True]
        assert [event[:2] for event in events(api)[-2:]] == [("volume", "destroy"), ("container", "destroy")]

    def test_a_link_is_none(self, api: Endpoint) -> None:
        create(api, {"Image": "app:1"}, "name=web")
        answer = api.delete("/containers/web?link=1")
        assert (answer.status, answer.message) == (409, "Conflict, cannot remove the default link name of the container")

    def test_images_with_containers(self, api: Endpoint, store: ImageStore) -> None:
        create(api, {"Image": "app:1"}, "name=web")
        image = store.image("app:1")
        short = store.container("web").id[:12]
        answer = api.delete("/images/app:1")
        words = f'reference "app:1" (must force) - container {short} is using its referenced image {image.id[7:19]}'
        assert (answer.status, answer.message) == (409, f"conflict: unable to remove repository {words}")
        answer = api.delete(f"/images/{image.id}")
        words = f"conflict: unable to delete {image.id[7:19]} (must be forced) - image is being used by stopped container {short}"
        assert (answer.status, answer.message) == (409, words)
        assert api.get("/v1.51/images/json").json[0]["Containers"] == 1
        assert api.post("/images/prune?filters=" + quote('{"dangling": ["false"]}')).json["ImagesDeleted"] is None

    def test_prune(self, api: Endpoint) -> None:
        for name in ("c1", "c2"):
            create(api, {"Image": "app:1", "Labels": {"n": name}}, f"name={name}")
        first = api.post("/containers/prune?filters=" + quote('{"label": ["n=c1"]}')).json
        assert len(first["ContainersDeleted"]) == 1 and first["SpaceReclaimed"] > 0
        assert [shown["Names"] for shown in api.get("/containers/json?all=1").json] == [["/c2"]]
        assert api.post("/containers/prune?filters=" + quote('{"until": ["yesterday"]}')).status == 400
        assert api.docker_text("system", "prune", "-f", "--volumes").count("Deleted Containers:\n") == 1
        assert [event[:2] for event in events(api) if event[1] in ("destroy", "prune")][-6:-3] == [
            ("container", "destroy"),
            ("container", "prune"),
            ("volume", "destroy"),
        ]


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("start web", 1, "to a virtual machine, `imgstore attach --print-qemu web`"),
        ("restart web", 1, "imgstore runs no containers"),
        ("exec web true", 1, "imgstore runs no containers"),
        ("logs web", 1, "imgstore runs no containers"),
        ("stats --no-stream web", 1, "imgstore runs no containers"),
        ("wait web", 1, "imgstore runs no containers"),
        ("stop web", 0, ""),
        ("kill web", 1, "is not running"),
        ("pause web", 1, "is not running"),
        ("unpause web", 1, "is not paused"),
        ("top web", 1, "is not running"),
        ("run -d app:1", 125, "imgstore runs no containers"),
        ("run app:1", 1, "unable to upgrade to tcp, received 501"),
    ],
)
def test_what_would_run_it(api: Endpoint, command: str, code: int, words: str) -> None:
    create(api, {"Image": "app:1"}, "name=web")
    done = api.docker(*command.split())
    assert (done.returncode, words in done.stderr.decode()) == (code, True), done.stderr


def test_info_and_df(api: Endpoint, store: ImageStore) -> None:
    api.docker_text("create", "--name", "web", "-v", "vol:/v", "app:1")
    store.set_quota(1 << 40)
    shown = json.loads(api.docker_text("info", "--format", "json"))
    store.set_quota(None)
    assert (shown["Containers"], shown["ContainersStopped"], shown["ContainersRunning"]) == (1, 1, 0)
    assert shown["Plugins"]["Volume"] == ["local", "vsphere"]
    assert dict(shown["DriverStatus"])["VCH storage limit"] == "1024GiB"
    assert not any("torage limit" in name for name, _ in api.get("/info").json["DriverStatus"])
    answer = api.get("/v1.51/system/df").json
    assert [each["SizeRw"] for each in answer["Containers"]] == [store.container("web").size_rw]
    assert {each["Name"]: each["UsageData"] for each in answer["Volumes"]} == {
        volume.name: {"RefCount": 1, "Size": volume.size} for volume in store.volumes()[0]
    }
    assert [image["Containers"] for image in answer["Images"]] == [1]
    only = api.get("/v1.51/system/df?type=volume").json
    assert (only["Images"], only["Containers"], len(only["Volumes"])) == (None, None, 2)


def test_with_docker_py(api: Endpoint) -> None:
    with api.client() as client:
        container = client.containers.create(
            "app:1",
            ["one", "two words"],
            name="py",
            environment={"X": "y"},
            labels=["a"],
            mounts=[Mount("/m", "vol"), Mount("/t", None, type="tmpfs")],
            log_config=LogConfig(type="json-file"),
            ports={"80/tcp": 8080},
            mem_limit="64m",
        )
        assert (container.name, container.status, container.labels) == ("py", "created", {"of": "image", "a": ""})
        assert container.image.tags == ["app:1"]
        assert container.attrs["Args"] == ["two words"] and "X=y" in container.attrs["Config"]["Env"]
        assert [each.name for each in client.containers.list(all=True, filters={"label": "a"})] == ["py"]
        assert client.containers.list() == []
        container.rename("py2")
        container.reload()
        assert container.name == "py2"
        assert container.diff() == []
        with pytest.raises(docker.errors.APIError, match="imgstore runs no containers"):
            container.start()
        container.stop()
        with pytest.raises(docker.errors.APIError, match="409"):
            container.kill()
        with pytest.raises(docker.errors.APIError, match="409"):
            client.containers.create("app:1", name="py2")
        with pytest.raises(docker.errors.ImageNotFound):
            client.containers.create("nosuch:1")
        container.remove(v=True)
        with pytest.raises(docker.errors.NotFound, match="No such container: py2"):
            client.containers.get("py2")
        assert client.containers.prune() == {"ContainersDeleted": [], "SpaceReclaimed": 0}
