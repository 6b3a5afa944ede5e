"""Containers: made, listed, shown, renamed, removed. What would run them is refused, or answered as for one that does not run.

Source: moby ``api/server/router/container``, ``daemon/{create,list,inspect,rename,delete,prune}.go``.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from imgstore.answers import Container, Mount, Volume
from imgstore.container_filters import LIST_FILTERS, PRUNE_FILTERS
from imgstore.docker_api import container_shapes
from imgstore.docker_api.container_requests import NewContainer, WantedVolume, parse_new_container
from imgstore.docker_api.errors import ApiError
from imgstore.docker_api.images import json_response
from imgstore.docker_api.pulls import parse_platform
from imgstore.docker_api.requests import filters_of, flag, json_body, version_of
from imgstore.docker_api.service import Service, service_of
from imgstore.errors import NotFoundError
from imgstore.store import ImageStore

Handler = Callable[[Request], Awaitable[Response]]

_LIMIT = re.compile(r"[+-]?\d{1,18}", re.ASCII)

_RUNS_NOTHING = (
    "imgstore runs no containers: give the disks of this one to a virtual machine, `imgstore attach --print-qemu {name}`"
)


async def create_container(request: Request) -> Response:
    """``POST /containers/create``."""
    service = service_of(request)
    version = version_of(request)
    new = parse_new_container(await json_body(request), version)
    name = request.query_params.get("name") or None
    platform = parse_platform(request.query_params.get("platform", "")) if version >= (1, 41) else None

    def create() -> bytes:
        return msgspec.json.encode({"Id": _create(service, new, name, platform).id, "Warnings": []})

    return Response(await service.work(create), 201, media_type="application/json")


def _create(service: Service, new: NewContainer, name: str | None, platform: str | None) -> Container:
    store = service.store
    if not new.image:
        raise ApiError(400, "No command specified")
    store.image(new.image)  # before a volume is made for it
    mounts = list(new.mounts)
    made: list[Volume] = []
    before = _find_volumes(store, mounts)
    try:
        for wanted in new.wanted_volumes:
            volume = _make_volume(store, wanted)
            mounts[wanted.position] = replace(mounts[wanted.position], volume=volume.name)
            if volume.name not in before:
                made.append(volume)
        container = store.create_container(
            new.image,
            name=name,
            size=new.size,
            read_only=new.read_only,
            mounts=mounts,
            platform=platform,
            config=new.config,
            host_config=new.host_config,
        )
    except BaseException:
        for volume in made:
            store.remove_volume(volume.name, force=True)
        raise
    for volume in _find_volumes(store, container.mounts).values():
        if volume.name not in before:
            service.publish("volume", "create", volume.name, {"driver": volume.driver})
    publish(service, "create", container)
    return container


def _make_volume(store: ImageStore, wanted: WantedVolume) -> Volume:
    try:
        return store.create_volume(
            wanted.name or None, driver=wanted.driver or "local", options=wanted.options, labels=wanted.labels, exist_ok=True
        )
    except NotFoundError as error:  # with 404 the command line would pull the image
        raise ApiError(400, str(error)) from None


async def list_containers(request: Request) -> Response:
    """``GET /containers/json``: without ``all``, ``limit`` or a status those that run, which is none."""
    version = version_of(request)
    filters = filters_of(request, LIST_FILTERS)
    query = request.query_params
    for name in ("before", "since"):
        if given := query.get(name):
            filters[name] = [*filters.get(name, []), given]
    limit = query.get("limit") or "0"
    if not _LIMIT.fullmatch(limit):
        raise ApiError(400, f'strconv.Atoi: parsing "{limit[:100]}": invalid syntax')
    most = int(limit)
    shows_all = flag(request, "all") or most > 0 or any(name in filters for name in ("before", "since", "status"))
    with_sizes = flag(request, "size")

    def answer() -> bytes:
        store = service_of(request).store
        found = store.containers(filters)
        found = (found[:most] if most > 0 else found) if shows_all else []
        return msgspec.json.encode(summaries(store, found, version, with_sizes=with_sizes))

    return json_response(await run_in_threadpool(answer))


def summaries(
    store: ImageStore, containers: Sequence[Container], version: tuple[int, int], *, with_sizes: bool
) -> list[dict[str, object]]:
    """Containers as a list shows them."""
    if not containers:
        return []
    images = {image.id: image for image in store.images()}
    names = {name: image.id for image in images.values() for name in (*image.references, *image.digests)}
    has_mounts = any(container.mounts for container in containers)
    volumes = {volume.name: volume for volume in store.volumes()[0]} if has_mounts else {}
    shown = []
    for container in containers:
        image = images.get(container.image_id)
        size = (0 if image is None else image.size) if with_sizes else None
        name = container_shapes.shown_image(container, images, names)
        shown.append(container_shapes.summarize(container, name, volumes, version, image_size=size))
    return shown


async def inspect_container(request: Request) -> Response:
    """``GET /containers/{name}/json``."""
    version = version_of(request)
    with_size = flag(request, "size")
    name = request.path_params["name"]

    def answer() -> bytes:
        store = service_of(request).store
        container = store.container(name)
        size = None
        if with_size:
            try:
                size = store.image(container.image_id).size
            except NotFoundError:  # removed by force: its layers are still there, but nobody says what they take
                size = 0
        volumes = _find_volumes(store, container.mounts)
        try:
            disks = store.container_disk_paths(container.id)
        except NotFoundError as error:  # 404 would say that there is no such container
            raise ApiError(500, f"container {container.name}: {error}") from error
        return msgspec.json.encode(container_shapes.inspect(container, disks, volumes, store.location, version, image_size=size))

    return json_response(await run_in_threadpool(answer))


async def rename_container(request: Request) -> Response:
    """``POST /containers/{name}/rename``."""
    service = service_of(request)
    name, new = request.path_params["name"], request.query_params.get("name", "")
    if not new:
        raise ApiError(400, "Neither old nor new names may be empty")

    def rename() -> None:
        old = service.store.container(name)
        renamed = service.store.rename_container(old.id, f"/{new.removeprefix('/')}")
        publish(service, "rename", renamed, oldName=f"/{old.name}")

    await run_in_threadpool(rename)
    return Response(status_code=204)


async def remove_container(request: Request) -> Response:
    """``DELETE /containers/{name}``. There is nothing that ``force`` could kill: a disk that a guest has open stays."""
    service = service_of(request)
    name, volumes = request.path_params["name"], flag(request, "v")
    is_link = flag(request, "link")

    def remove() -> None:
        store = service.store
        container = store.container(name)
        if is_link:
            raise ApiError(409, "Conflict, cannot remove the default link name of the container")
        before = _find_volumes(store, container.mounts) if volumes else {}
        store.remove_container(container.id, volumes=volumes)
        left = _find_volumes(store, container.mounts) if volumes else {}
        for volume in before.values():
            if volume.name not in left:
                service.publish("volume", "destroy", volume.name, {"driver": volume.driver})
        publish(service, "destroy", container)

    await service.work(remove)
    return Response(status_code=204)


async def prune_containers(request: Request) -> Response:
    """``POST /containers/prune``."""
    service = service_of(request)
    filters = filters_of(request, PRUNE_FILTERS)

    def prune() -> bytes:
        removed, reclaimed = service.store.prune_containers(filters)
        for container in removed:
            publish(service, "destroy", container)
        service.publish("container", "prune", "", {"reclaimed": str(reclaimed)})
        return msgspec.json.encode({"ContainersDeleted": [container.id for container in removed], "SpaceReclaimed": reclaimed})

    return json_response(await service.work(prune))


def publish(service: Service, action: str, container: Container, **more: str) -> None:
    """Tells what happened to a container, with its labels as Docker has it."""
    attributes = {**more, **container.labels, "image": container.image, "name": container.name}
    service.publish("container", action, container.id, attributes)


def _find_volumes(store: ImageStore, mounts: Iterable[Mount]) -> dict[str, Volume]:
    """The volumes of mounts, by name; without those that are not there."""
    found = {}
    for name in dict.fromkeys(mount.volume for mount in mounts if mount.volume):
        with contextlib.suppress(NotFoundError):
            found[name] = store.volume(name)
    return found


def _refuse(request: Request, container: Container) -> Response:
    raise ApiError(501, _RUNS_NOTHING.format(name=container.name))


def _not_running(request: Request, container: Container) -> Response:
    raise ApiError(409, f"container {container.id} is not running")


def _not_killed(request: Request, container: Container) -> Response:
    asked = request.path_params["name"]
    raise ApiError(409, f"cannot kill container: {asked}: container {container.id} is not running")


def _not_paused(request: Request, container: Container) -> Response:
    raise ApiError(409, f"Container {container.id} is not paused")


def _stopped_already(request: Request, container: Container) -> Response:
    return Response(status_code=304)


def _of_container(answer: Callable[[Request, Container], Response]) -> Handler:
    async def handle(request: Request) -> Response:
        return answer(request, await run_in_threadpool(service_of(request).store.container, request.path_params["name"]))

    return handle


_NOT_RUN: tuple[tuple[str, Sequence[str], Callable[[Request, Container], Response]], ...] = (
    ("POST", ("start", "restart", "wait", "attach", "exec", "update"), _refuse),
    ("GET", ("logs", "stats", "attach/ws"), _refuse),
    ("POST", ("stop",), _stopped_already),
    ("POST", ("kill",), _not_killed),
    ("POST", ("pause", "resize"), _not_running),
    ("POST", ("unpause",), _not_paused),
    ("GET", ("top",), _not_running),
)

routes = [
    Route("/containers/create", create_container, methods=["POST"]),
    Route("/containers/json", list_containers),
    Route("/containers/prune", prune_containers, methods=["POST"]),
    Route("/containers/{name:path}/json", inspect_container),
    Route("/containers/{name:path}/rename", rename_container, methods=["POST"]),
    *(
        Route(f"/containers/{{name:path}}/{verb}", _of_container(answer), methods=[method])
        for method, verbs, answer in _NOT_RUN
        for verb in verbs
    ),
    Route("/containers/{name:path}", remove_container, methods=["DELETE"]),
]
