"""Files of containers: ``docker cp`` out of them and into them, ``docker diff`` and ``docker export``.

Source: moby ``api/server/router/container/copy.go``, ``daemon/archive.go``, ``daemon/{changes,export}.go``.
"""

from __future__ import annotations

import io
from urllib.parse import parse_qsl

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from imgstore.docker_api.bodies import BodyReader
from imgstore.docker_api.container_shapes import encode_path_status
from imgstore.docker_api.containers import publish
from imgstore.docker_api.errors import ApiError
from imgstore.docker_api.images import json_response
from imgstore.docker_api.requests import flag
from imgstore.docker_api.service import service_of
from imgstore.docker_api.tar_response import TarResponse
from imgstore.layers.tar_header import TarError
from imgstore.stop import Stop

_STATUS = "X-Docker-Container-Path-Stat"


async def get_archive(request: Request) -> ASGIApp:
    """``GET /containers/{name}/archive``: a tar of what is at ``path``; ``HEAD`` only tells what it is."""
    service = service_of(request)
    name, path = request.path_params["name"], _path(request)
    store = service.store
    if request.method == "HEAD":
        status = await service.work(store.container_status, name, path)
        return Response(headers={_STATUS: encode_path_status(status)})
    container = await service.work(store.container, name)
    status, pieces = await service.work(store.copy_from_container, name, path)
    publish(service, "archive-path", container)
    return TarResponse(service, pieces, headers={_STATUS: encode_path_status(status)})


async def put_archive(request: Request) -> Response:
    """``PUT /containers/{name}/archive``: unpacks the tar in the body at ``path``, as it comes; all of it, or nothing."""
    service = service_of(request)
    name, path = request.path_params["name"], _path(request)
    keep_directories, owner_of_user = flag(request, "noOverwriteDirNonDir"), flag(request, "copyUIDGID")
    stop = Stop()
    body = BodyReader(request)

    def copy() -> None:
        container = service.store.container(name)
        try:
            service.store.copy_to_container(
                name, path, io.BufferedReader(body), keep_directories=keep_directories, owner_of_user=owner_of_user, stop=stop
            )
        except TarError as error:
            raise ApiError(400, str(error)) from None
        publish(service, "extract-to-dir", container)

    try:
        await service.work(copy)
    finally:  # for a thread that outlives the request
        stop.set()
        body.end()
    return Response()


async def list_changes(request: Request) -> Response:
    """``GET /containers/{name}/changes``."""
    service = service_of(request)

    def answer() -> bytes:
        differences = service.store.diff_container(request.path_params["name"])
        return msgspec.json.encode(
            [{"Path": "/" + each.path.decode(errors="replace"), "Kind": int(each.kind)} for each in differences]
        )

    return json_response(await service.work(answer))


async def export_container(request: Request) -> ASGIApp:
    """``GET /containers/{name}/export``: a tar of all files of its own disk; volumes are not in it."""
    service = service_of(request)
    container = await service.work(service.store.container, request.path_params["name"])
    pieces = await service.work(service.store.export_container, container.id)
    publish(service, "export", container)
    return TarResponse(service, pieces)


def _path(request: Request) -> bytes:
    """The path as the client has it: bytes, which need not be text."""
    query: str = request.scope["query_string"].decode(errors="surrogateescape")
    path = dict(parse_qsl(query, errors="surrogateescape")).get("path", "")
    if not path:
        raise ApiError(400, "bad parameter: path cannot be empty")
    return path.encode(errors="surrogateescape")


routes = [
    Route("/containers/{name:path}/archive", get_archive),
    Route("/containers/{name:path}/archive", put_archive, methods=["PUT"]),
    Route("/containers/{name:path}/changes", list_changes),
    Route("/containers/{name:path}/export", export_container),
]
