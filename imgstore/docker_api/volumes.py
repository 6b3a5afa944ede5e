"""Volumes: made, listed, shown, removed.

Source: moby ``api/server/router/volume``, ``volume/service``, ``daemon/prune.go``; what a volume can be asked to be, and the words
when it cannot: vSphere Integrated Containers.
"""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from imgstore.answers import Volume
from imgstore.docker_api.container_shapes import show_time
from imgstore.docker_api.errors import ApiError
from imgstore.docker_api.images import json_response
from imgstore.docker_api.requests import filters_of, flag, json_body, version_of
from imgstore.docker_api.service import Service, service_of
from imgstore.errors import NotFoundError
from imgstore.structs import prepare
from imgstore.volume_filters import LIST_FILTERS, PRUNE_FILTERS

Json = dict[str, Any]


class _Wanted(msgspec.Struct, rename="pascal"):
    name: str | None = None
    driver: str | None = None
    driver_opts: dict[str, str] | None = None
    labels: dict[str, str] | None = None
    cluster_volume_spec: dict[str, Any] | None = None


prepare(_Wanted)


async def create_volume(request: Request) -> Response:
    """``POST /volumes/create``: makes the volume, or finds the one that has the name."""
    service = service_of(request)
    body = await json_body(request)
    if body is None:
        raise ApiError(400, "invalid JSON: got EOF while reading request body")
    try:
        wanted = msgspec.convert(body, _Wanted)
    except msgspec.ValidationError as error:
        raise ApiError(400, f"invalid JSON: {error}") from None
    if wanted.cluster_volume_spec is not None:
        raise ApiError(503, "This node is not a swarm manager: volumes of a cluster need one")

    def create() -> bytes:
        existed = bool(wanted.name) and _exists(service, wanted.name or "")
        volume = service.store.create_volume(
            wanted.name or None,
            driver=wanted.driver or "local",
            options=wanted.driver_opts or {},
            labels=wanted.labels or {},
            exist_ok=True,
        )
        if not existed:
            _publish(service, "create", volume)
        return msgspec.json.encode(show_volume(volume))

    return Response(await service.work(create), 201, media_type="application/json")


async def list_volumes(request: Request) -> Response:
    """``GET /volumes``; what a volume store that cannot be read hides is told among the warnings."""
    service = service_of(request)
    filters = filters_of(request, LIST_FILTERS)

    def answer() -> bytes:
        volumes, warnings = service.store.volumes(filters)
        return msgspec.json.encode({"Volumes": [show_volume(volume) for volume in volumes], "Warnings": warnings})

    return json_response(await run_in_threadpool(answer))


async def inspect_volume(request: Request) -> Response:
    """``GET /volumes/{name}``."""
    service = service_of(request)
    name = request.path_params["name"]

    def answer() -> bytes:
        try:
            return msgspec.json.encode(show_volume(service.store.volume(name)))
        except NotFoundError:
            raise ApiError(404, f"get {name}: no such volume") from None

    return json_response(await run_in_threadpool(answer))


async def remove_volume(request: Request) -> Response:
    """``DELETE /volumes/{name}``."""
    service = service_of(request)
    name, force = request.path_params["name"], flag(request, "force")

    def remove() -> None:
        try:
            volume = service.store.volume(name)
        except NotFoundError:
            if force:
                return
            raise ApiError(404, f"get {name}: no such volume") from None
        service.store.remove_volume(name, force=force)
        _publish(service, "destroy", volume)

    await service.work(remove)
    return Response(status_code=204)


async def prune_volumes(request: Request) -> Response:
    """``POST /volumes/prune``: of anonymous volumes only, unless ``all`` says otherwise; clients before 1.42 expect all."""
    service = service_of(request)
    filters = filters_of(request, PRUNE_FILTERS)
    if version_of(request) < (1, 42):
        filters["all"] = ["true"]

    def prune() -> bytes:
        before = {volume.name: volume for volume in service.store.volumes()[0]}
        report = service.store.prune_volumes(filters)
        for name in report.names:
            if name in before:
                _publish(service, "destroy", before[name])
        service.publish("volume", "prune", "", {"reclaimed": str(report.reclaimed)})
        return msgspec.json.encode({"VolumesDeleted": report.names, "SpaceReclaimed": report.reclaimed})

    return json_response(await service.work(prune))


def show_volume(volume: Volume, *, with_usage: bool = False) -> Json:
    """A Volume as clients read it: ``Mountpoint`` is its disk, which a virtual machine gets."""
    shown: Json = {
        "CreatedAt": show_time(volume.created),
        "Driver": volume.driver,
        "Labels": dict(volume.labels) or None,
        "Mountpoint": volume.disk,
        "Name": volume.name,
        "Options": dict(volume.options) or None,
        "Scope": "local",
        "Status": {
            "Capacity": volume.capacity,
            "Disk": volume.disk,
            "Format": "vmdk",
            "Image": volume.image,
            "Snapshots": [snapshot.name for snapshot in volume.snapshots],
            "VolumeStore": volume.store,
        },
    }
    if with_usage:
        shown["UsageData"] = {"RefCount": len(volume.used_by), "Size": volume.size}
    return shown


def _exists(service: Service, name: str) -> bool:
    try:
        service.store.volume(name)
    except NotFoundError:
        return False
    return True


def _publish(service: Service, action: str, volume: Volume) -> None:
    service.publish("volume", action, volume.name, {"driver": volume.driver})


routes = [
    Route("/volumes", list_volumes),
    Route("/volumes/create", create_volume, methods=["POST"]),
    Route("/volumes/prune", prune_volumes, methods=["POST"]),
    Route("/volumes/{name:path}", inspect_volume),
    Route("/volumes/{name:path}", remove_volume, methods=["DELETE"]),
]
