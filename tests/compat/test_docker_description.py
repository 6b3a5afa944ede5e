"""Docker's own OpenAPI descriptions against the endpoint: schemathesis makes requests of them, and judges the answers."""

from __future__ import annotations

import base64
import copy
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from imgstore.store import ImageStore
from registry_client.options import Options, Places, Policy
from tests.servers.endpoint import Endpoint, endpoint
from tests.servers.images import build_image, make_tar, write_docker_archive
from tests.servers.registry import Registry
from tests.tools import missing

ROOT = Path(__file__).parents[2]
DESCRIPTIONS = {
    "1.41": Path("/usr/share/gocode/src/github.com/docker/docker/api/swagger.yaml"),  # Debian: golang-github-docker-docker-dev
    "1.51": Path(os.environ.get("DOCKER_API_DESCRIPTION", ROOT / ".tox/docker-api/v1.51.yaml")),
}
SERVED = [
    "GET /_ping",
    "HEAD /_ping",
    "GET /version",
    "GET /info",
    "POST /auth",
    "GET /system/df",
    "GET /events",
    "GET /images/json",
    "GET /images/{name}/json",
    "GET /images/{name}/history",
    "GET /images/search",
    "GET /distribution/{name}/json",
    "GET /images/{name}/get",
    "GET /images/get",
    "POST /images/create",
    "POST /images/load",
    "POST /images/{name}/tag",
    "POST /images/{name}/push",
    "DELETE /images/{name}",
    "POST /images/prune",
    "GET /containers/json",
    "POST /containers/create",
    "GET /containers/{id}/json",
    "GET /containers/{id}/changes",
    "GET /containers/{id}/export",
    "GET /containers/{id}/archive",
    "HEAD /containers/{id}/archive",
    "PUT /containers/{id}/archive",
    "POST /containers/{id}/rename",
    "DELETE /containers/{id}",
    "POST /containers/prune",
    "POST /commit",
    "GET /volumes",
    "POST /volumes/create",
    "GET /volumes/{name}",
    "DELETE /volumes/{name}",
    "POST /volumes/prune",
    "GET /networks",
    "POST /networks/prune",
    "GET /plugins",
    "POST /build/prune",
]

UNDESCRIBED = {
    401: {"POST /auth"},
    403: {"POST /auth", "POST /images/create", "GET /images/search", "GET /distribution/{name}/json"},  # by policy; "scratch"
    404: {
        *("GET /distribution/{name}/json", "GET /images/{name}/get", "GET /images/get", "GET /images/json"),
        *("GET /containers/json", "POST /volumes/create"),  # a filter, a driver
    },
    503: {"POST /volumes/create"},  # one of a cluster
    500: {"POST /images/create"},  # a body that is no tar, as with dockerd
    501: {"POST /images/create"},  # fromSrc with a URL
}
"""Statuses of errors that the description leaves out. 400 is everywhere in dockerd, and in the description almost nowhere."""

REMOVALS = {"DELETE /images/{name}", "POST /images/prune"}
CONSUMERS = {
    "DELETE /containers/{id}",
    "POST /containers/prune",
    "POST /containers/{id}/rename",
    "POST /containers/create",
    "POST /commit",
}
CONSUMERS |= {"DELETE /volumes/{name}", "POST /volumes/prune"}
"""Before which the container and the volume are made again."""
TARS = {"GET /containers/{id}/export", "GET /containers/{id}/archive"}
STREAMS = {"GET /events", "POST /images/create", "POST /images/load", "POST /images/{name}/push"}
"""Whose answers are JSON objects, one a line."""

EXAMPLES = 24
NOW = "now"


def _may_be_null(*names: str) -> Callable[[dict[str, Any]], None]:
    def amend(properties: dict[str, Any]) -> None:
        for name in names:
            if name in properties:
                properties[name]["x-nullable"] = True

    return amend


def _drop(*values: str) -> Callable[[list[str]], None]:
    def amend(listed: list[str]) -> None:
        listed[:] = [value for value in listed if value not in values]

    return amend


def _amend_host_config(parts: list[dict[str, Any]]) -> None:
    properties = parts[1]["properties"]
    _may_be_null("CapAdd", "CapDrop", "ExtraHosts", "GroupAdd", "Links", "SecurityOpt", "VolumesFrom")(properties)
    properties["Isolation"]["enum"].append("")


_CONFIG = _may_be_null("Cmd", "Entrypoint", "Env", "Labels", "OnBuild", "Volumes")

AMENDMENTS: dict[tuple[str, ...], Callable[[Any], None]] = {
    # Empty lists and maps of Go are null in dockerd's answers.
    ("definitions", "ImageSummary", "properties"): _may_be_null("Labels"),
    ("definitions", "ContainerConfig", "properties"): _CONFIG,
    ("definitions", "ImageConfig", "properties"): _CONFIG,
    ("definitions", "Resources", "properties"): _may_be_null("DeviceCgroupRules", "DeviceRequests", "MemorySwappiness"),
    ("definitions", "HostConfig", "allOf"): _amend_host_config,
    ("definitions", "Volume", "properties"): _may_be_null("Labels", "Options"),
    ("definitions", "EndpointSettings", "properties"): _may_be_null("Aliases", "DNSNames", "Links"),
    ("paths", "/images/{name}/history", "get", "responses", "200", "schema", "items", "properties"): _may_be_null("Tags"),
    ("paths", "/images/prune", "post", "responses", "200", "schema", "properties"): _may_be_null("ImagesDeleted"),
    ("paths", "/system/df", "get", "responses", "200", "schema", "properties"): _may_be_null(
        "Images", "Containers", "Volumes", "BuildCache"
    ),
    # dockerd leaves it out since version 26 if it is empty.
    ("definitions", "Image", "required"): _drop("Container"),
    # dockerd says "" on Linux; the newer description allows it.
    ("definitions", "SystemInfo", "properties", "Isolation"): lambda isolation: isolation.update(
        enum=["", "default", "hyperv", "process"]
    ),
    # The older description has them in a list in the list; they are judged where they are listed by themselves.
    ("paths", "/system/df", "get", "responses", "200", "schema", "properties", "Containers"): lambda containers: (
        containers.update(items={"type": "object"})
    ),
    # In Go's client it is any value.
    ("definitions", "Volume", "properties", "Status"): lambda status: status.pop("additionalProperties"),
    # Which the command line sends; the newer description has it.
    ("definitions", "RestartPolicy", "properties", "Name"): lambda name: name.update(enum=[*name["enum"], "no"]),
    # There is no such field, neither in dockerd nor among the properties.
    ("definitions", "ImageManifestSummary", "properties", "ImageData", "required"): _drop("UnpackedSize"),
}
"""Where dockerd itself does not answer as described, and we as it does."""


schemathesis.serializer.alias("application/x-tar", "application/octet-stream")


@dataclass(frozen=True)
class Surroundings:
    """An endpoint, and what makes sense to ask it.

    Attributes:
        archive: has the images that the endpoint has.
        registry: the only one that may be asked.
        values: for each parameter some that mean something.
    """

    api: Endpoint
    archive: bytes
    registry: str
    values: dict[str, list[Any]]


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Surroundings]:
    directory = tmp_path_factory.mktemp("described")
    layers = [make_tar({"etc/motd": b"hello"}), make_tar({"etc/.wh.motd": b""})]
    with Registry() as registry:
        image = registry.add_image("team/app", "1", layers, config={"config": {"Labels": {"a": "b"}, "Env": ["A=b"]}})
        name = f"{registry.host}/team/app"
        archive = write_docker_archive(
            directory / "a.tar", {f"{name}:1": image, "app:1": image, "base:1": build_image(layers[:1])}
        )
        login = base64.urlsafe_b64encode(json.dumps({"username": "u", "password": "p"}).encode()).decode()
        values: dict[str, list[Any]] = {
            "name": ["app:1", "vol", "free", image.image_id, image.image_id[7:19], f"{name}:1", name, "app"],
            "names": [["app:1"], ["base:1", image.image_id], ["nosuch"]],
            "fromImage": [name, f"{name}:1", f"{name}@{image.digest}", f"{registry.host}/none"],
            "fromSrc": ["-"],
            "repo": ["new", "new:2", name],
            "tag": ["1", "2", image.digest],
            "term": [f"{registry.host}/app"],
            "filters": [
                json.dumps({key: values})
                for key, values in {
                    "dangling": {"true": True},
                    "label": ["a"],
                    "reference": ["app"],
                    "until": ["1h"],
                    "before": ["app:1"],
                    "type": ["image"],
                    "bogus": ["x"],
                    "status": ["created"],
                    "volume": ["vol"],
                    "name": ["web"],
                    "all": ["true"],
                }.items()
            ],
            "platform": ["linux/amd64", json.dumps({"os": "linux", "architecture": "amd64"})],
            "changes": [["ENV A=b"], ["FOO"]],
            "id": ["web", "/web"],
            "container": ["web"],
            "path": ["/etc", "/etc/motd", "/nosuch", "/etc/motd/x"],
            "limit": [1, -1],
            "type": [["image"], ["container", "volume"]],
            "since": ["1", "1h"],
            "X-Registry-Auth": [login],
        }
        options = Options(policy=Policy(allow=(registry.host,)), places=Places())
        with ImageStore.open(str(directory / "store"), registries=options) as store, endpoint(store) as api:
            assert api.post("/images/load", archive.read_bytes()).status == 200
            _make_again(api)
            yield Surroundings(api, archive.read_bytes(), registry.host, values)


def _make_again(api: Endpoint) -> None:
    """The container ``web``, which has the volume ``vol``."""
    made = {"Image": "app:1", "Cmd": ["run"], "HostConfig": {"Binds": ["vol:/v"], "Mounts": [{"Type": "volume", "Target": "/m"}]}}
    assert api.post("/containers/create?name=web", made).status in (201, 409)
    assert api.post("/volumes/create", {"Name": "free"}).status == 201


def _read(version: str) -> Any:
    """A description, corrected by `AMENDMENTS`."""
    path = DESCRIPTIONS[version]
    if not path.exists():
        missing(f"Docker's description of its API {version} ({path})")
    raw = json.loads(json.dumps(yaml.load(path.read_bytes(), yaml.CSafeLoader), default=str))  # statuses and dates as text
    for place, amend in AMENDMENTS.items():
        found: Any = raw
        for step in place:
            found = found.get(step, {})
        if found:
            amend(found)
    return schemathesis.openapi.from_dict(raw)


@pytest.fixture(scope="module")
def description(request: pytest.FixtureRequest) -> Any:
    return _read(request.param)


@pytest.mark.parametrize("label", SERVED)
@pytest.mark.parametrize("description", DESCRIPTIONS, indirect=True)
def test_answers_are_as_described(description: Any, surroundings: Surroundings, label: str) -> None:
    method, path = label.split()
    operation = description[path][method]
    base_url = f"http://127.0.0.1:{surroundings.api.port}{description.base_path.rstrip('/')}"

    @settings(
        max_examples=EXAMPLES if path.startswith(("/images/", "/containers/", "/commit", "/volumes/")) else EXAMPLES // 3,
        phases=[Phase.generate],
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(requests_of(operation, surroundings))
    def check(case: Any) -> None:
        if label in REMOVALS:
            surroundings.api.post("/images/load", surroundings.archive)
        if label in CONSUMERS:
            _make_again(surroundings.api)
        if case.query.get("until") == NOW:
            case.query["until"] = str(time.time())
        judge(case, case.call(base_url=base_url), label)

    check()


def test_every_path_is_answered(surroundings: Surroundings) -> None:
    """With what we do, or with words of our own or of Docker's that say that we do not."""
    unknown = []
    for result in _read("1.51").get_all_operations():
        operation = result.ok()
        if operation.path == "/events" or operation.label in REMOVALS:
            continue
        answer = surroundings.api.request(operation.method.upper(), re.sub(r"\{\w+\}", "nosuch", operation.path))
        if b"page not found" in answer.body:
            unknown.append(operation.label)
    assert unknown == []


def requests_of(operation: Any, surroundings: Surroundings) -> SearchStrategy[Any]:
    """Requests that the description allows and others that it does not, some with values that mean something to this endpoint."""
    modes = [schemathesis.GenerationMode.POSITIVE]
    if list(operation.iter_parameters()):
        modes.append(schemathesis.GenerationMode.NEGATIVE)

    @st.composite
    def draw_request(draw: st.DrawFn) -> Any:
        case = draw(st.one_of([operation.as_strategy(generation_mode=mode) for mode in modes]))
        for parameter in operation.iter_parameters():
            container = {"path": case.path_parameters, "query": case.query, "header": case.headers}.get(parameter.location.value)
            if container is not None and parameter.name in surroundings.values and draw(st.booleans()):
                container[parameter.name] = draw(st.sampled_from(surroundings.values[parameter.name]))
        if operation.path == "/events":
            case.query["until"] = draw(st.sampled_from([NOW, "1700000000"]))  # else they go on
        if operation.path in ("/images/load", "/images/create") and draw(st.booleans()):
            case.body = surroundings.archive
        if operation.path == "/containers/{id}/archive" and operation.method == "put" and draw(st.booleans()):
            case.body = make_tar({"new": b"new"})
        if operation.path == "/containers/create" and isinstance(case.body, dict) and draw(st.booleans()):
            case.body = (
                {**case.body, "Image": "app:1", "HostConfig": {}} if draw(st.booleans()) else {**case.body, "Image": "app:1"}
            )
        if operation.path == "/auth" and draw(st.booleans()):
            case.body = {"username": "u", "password": "p", "serveraddress": surroundings.registry}
        return case

    return draw_request()


def judge(case: Any, answer: Any, label: str) -> None:
    described = {int(status) for status in case.operation.responses.status_codes} - {500}
    status = answer.status_code
    assert status in {*described, 400} or label in UNDESCRIBED.get(status, ()), (status, answer.content, case)
    if status >= 400:
        assert answer.headers["content-type"] == ["application/json"]
        assert case.operation.method == "head" or answer.json()["message"], answer.content
        return
    if label in TARS:
        assert answer.headers["content-type"] == ["application/x-tar"]
        return
    if answer.content:
        case.validate_response(answer, checks=[content_type_conformance])
    if label not in STREAMS:
        case.validate_response(answer, checks=[response_schema_conformance])
        return
    for line in answer.content.splitlines():
        assert isinstance(json.loads(line), dict)
        one = copy.copy(answer)
        one.content = line
        case.validate_response(one, checks=[response_schema_conformance])
