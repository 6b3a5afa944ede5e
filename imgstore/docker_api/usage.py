"""What takes space: ``docker system df``. There is no build cache here.

Source: moby ``api/server/router/system/system_routes.go`` (getDiskUsage), ``daemon/disk_usage.go``.
"""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from imgstore.docker_api.containers import summaries
from imgstore.docker_api.errors import ApiError
from imgstore.docker_api.image_shapes import summarize
from imgstore.docker_api.images import json_response
from imgstore.docker_api.requests import version_of
from imgstore.docker_api.service import service_of
from imgstore.docker_api.volumes import show_volume

_TYPES = {"image": "Images", "container": "Containers", "volume": "Volumes", "build-cache": "BuildCache"}


async def show_usage(request: Request) -> Response:
    """``GET /system/df``: ``LayersSize`` counts every file of every layer once, in blocks of the file system."""
    version = version_of(request)
    types = request.query_params.getlist("type") if version >= (1, 42) else []
    for type in types:
        if type not in _TYPES:
            raise ApiError(400, f"unknown object type: {type[:200]}")

    def answer() -> bytes:
        store = service_of(request).store
        shown: dict[str, Any] = {"LayersSize": 0}
        shown |= {name: [] if not types or type in types else None for type, name in _TYPES.items()}
        if shown["Images"] is not None:
            usage = store.usage()
            shared = {image.id: image.shared for image in usage.images}
            shown["LayersSize"] = usage.disk_bytes
            shown["Images"] = [
                summarize(image, version, shared_size=shared.get(image.id, 0), containers=image.containers)
                for image in store.images(intermediate=False)
            ]
        if shown["Containers"] is not None:
            shown["Containers"] = summaries(store, store.containers(), version, with_sizes=True)
        if shown["Volumes"] is not None:
            shown["Volumes"] = [show_volume(volume, with_usage=True) for volume in store.volumes()[0]]
        if version < (1, 42):
            shown["BuilderSize"] = 0
        return msgspec.json.encode(shown)

    return json_response(await service_of(request).work(answer))


routes = [Route("/system/df", show_usage)]
