"""Images: listed, shown, named, removed."""

from __future__ import annotations

from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from imgstore.answers import Image
from imgstore.docker_api.service import service_of


async def list_images(request: Request) -> Response:
    """``GET /images/json``."""
    images = await run_in_threadpool(service_of(request).store.images)
    return JSONResponse([_summary(image) for image in images])


def _summary(image: Image) -> dict[str, Any]:
    created = 0 if image.created is None else int(image.created.timestamp())
    return {
        "Id": image.id,
        "ParentId": "",
        "RepoTags": list(image.references),
        "RepoDigests": list(image.digests),
        "Created": created,
        "Size": image.size,
        "SharedSize": -1,
        "Labels": (image.config.get("config") or {}).get("Labels"),
        "Containers": -1,
    }


routes = [Route("/images/json", list_images)]
