"""What registries are asked without a pull: ``docker search``, and what a name stands for.

Source: moby ``api/server/router/image/image_routes.go`` (getImagesSearch), ``api/server/router/distribution``.
"""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from imgstore.docker_api.errors import ApiError
from imgstore.docker_api.images import json_response
from imgstore.docker_api.registry_auth import credential_of
from imgstore.docker_api.requests import filters_of
from imgstore.docker_api.service import service_of
from imgstore.inquiries import SEARCH_FILTERS
from registry_client.platform import Platform
from registry_client.search import LIMIT_DEFAULT

_LIMIT_LENGTH_MAX = 9


async def search_images(request: Request) -> Response:
    """``GET /images/search``."""
    service = service_of(request)
    text = request.query_params.get("limit", "")
    if text and not (text.isascii() and text.isdigit() and len(text) <= _LIMIT_LENGTH_MAX):
        raise ApiError(400, "invalid limit specified")
    found = await service.work(
        service.store.search,
        request.query_params.get("term", ""),
        filters_of(request, SEARCH_FILTERS),
        limit=int(text or 0) or LIMIT_DEFAULT,
        credential=credential_of(request),
    )
    shown = [
        {
            "name": repository.name,
            "description": repository.description,
            "star_count": repository.stars,
            "is_official": repository.is_official,
            "is_automated": False,
        }
        for repository in found
    ]
    return json_response(msgspec.json.encode(shown))


async def describe_remote(request: Request) -> Response:
    """``GET /distribution/{name}/json``."""
    service = service_of(request)
    found = await service.work(service.store.describe_remote, request.path_params["name"], credential=credential_of(request))
    descriptor = {"mediaType": found.media_type, "digest": found.digest, "size": found.size}
    platforms = [_show_platform(platform) for platform in found.platforms]
    return json_response(msgspec.json.encode({"Descriptor": descriptor, "Platforms": platforms}))


def _show_platform(platform: Platform) -> dict[str, str]:
    shown = {"architecture": platform.architecture, "os": platform.os}
    shown |= {"variant": platform.variant} if platform.variant else {}
    return shown | ({"os.version": platform.os_version} if platform.os_version else {})


routes = [Route("/images/search", search_images), Route("/distribution/{name:path}/json", describe_remote)]
