"""Commits: ``POST /commit`` makes an image of a container.

Source: moby ``api/server/router/container/container_routes.go`` (postCommit), ``daemon/commit.go``.
"""

from __future__ import annotations

import anyio
import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from imgstore.answers import Image
from imgstore.docker_api.container_configs import check_run_config
from imgstore.docker_api.containers import publish
from imgstore.docker_api.images import name_of
from imgstore.docker_api.images import publish as publish_image
from imgstore.docker_api.requests import json_body
from imgstore.docker_api.service import service_of
from imgstore.docker_api.streams import watch_client
from imgstore.images import parse_reference
from imgstore.instructions import apply_changes
from imgstore.stop import Stop


async def commit_container(request: Request) -> Response:
    """``POST /commit``. There is nothing to ``pause``. A client that hangs up leaves no image."""
    service = service_of(request)
    query = request.query_params
    body = await json_body(request)
    config = None if body is None else check_run_config(body)
    reference = name_of(query["repo"], query.get("tag", "")) if query.get("repo") else None
    changes = query.getlist("changes")
    apply_changes({}, changes)
    stop = Stop()

    def commit() -> Image:
        container = service.store.container(query.get("container", ""))
        image = service.store.commit_container(
            container.id,
            reference=reference,
            message=query.get("comment", ""),
            author=query.get("author", ""),
            changes=changes,
            config=config,
            stop=stop,
        )
        name = "" if reference is None else parse_reference(reference).familiar
        if name:
            publish_image(service, "tag", image, name)
        publish(service, "commit", container, comment=query.get("comment", ""), imageID=image.id, imageRef=name)
        return image

    image: Image | None = None
    error: Exception | None = None
    async with anyio.create_task_group() as group:
        group.start_soon(watch_client, request.receive, group.cancel_scope)
        try:
            image = await service.work(commit)
        except Exception as raised:  # a task group would wrap it
            error = raised
        finally:
            stop.set()
        group.cancel_scope.cancel()
    if error is not None:
        raise error
    if image is None:
        raise ClientDisconnect
    return Response(msgspec.json.encode({"Id": image.id}), 201, media_type="application/json")


routes = [Route("/commit", commit_container, methods=["POST"])]
