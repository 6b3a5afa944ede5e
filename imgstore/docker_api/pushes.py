"""Pushes: ``POST /images/{name}/push``.

Source: moby ``api/server/router/image/image_routes.go``, ``distribution/push.go``, ``distribution/push_v2.go``.
"""

from __future__ import annotations

from collections.abc import Iterator

from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp

from imgstore.answers import PushResult
from imgstore.docker_api.errors import ApiError
from imgstore.docker_api.jobs import Teller
from imgstore.docker_api.platforms import check_platform, decode_platform
from imgstore.docker_api.pulls import labels_of, parse_reference
from imgstore.docker_api.registry_auth import credential_of
from imgstore.docker_api.requests import version_of
from imgstore.docker_api.service import Service, service_of
from imgstore.docker_api.streams import LayerMessages, StreamResponse
from imgstore.errors import ImgstoreError
from imgstore.stop import Stop
from registry_client.credentials import Credential
from registry_client.reference import Reference


async def push_image(request: Request) -> ASGIApp:
    """``POST /images/{name}/push``: sends the image, or all tags of the repository where ``tag`` is empty."""
    service = service_of(request)
    reference = parse_reference(request.path_params["name"], request.query_params.get("tag", ""))
    credential = credential_of(request)
    platform = decode_platform(request.query_params.get("platform")) if version_of(request) >= (1, 46) else None
    if platform is not None:
        image = await service.work(service.store.image, str(reference))
        check_platform(image, reference.familiar, platform)

    def act(teller: Teller, stop: Stop) -> None:
        # As from Docker, even where there is nothing to push: its clients expect the error behind it.
        teller.status(f"The push refers to repository [{reference.name}]")
        if reference.digest is not None:
            raise ApiError(400, "cannot push a digest reference")
        try:
            for pushed in _push(service, reference, credential, teller, stop):
                _tell(teller, pushed)
        except ImgstoreError as error:
            raise type(error)(str(error).replace(reference.name, reference.familiar_name), hint=error.hint) from error
        _publish(service, reference)

    return StreamResponse(service.jobs, act)


def _push(
    service: Service, reference: Reference, credential: Credential | None, teller: Teller, stop: Stop
) -> Iterator[PushResult]:
    messages = LayerMessages(teller)
    store, name = service.store, str(reference)
    if reference.tag is None:
        yield from store.push_all_tags(name, credential=credential, progress=messages, stop=stop)
    else:
        yield store.push(name, credential=credential, progress=messages, stop=stop)


def _tell(teller: Teller, pushed: PushResult) -> None:
    tag = Reference.parse(pushed.reference).tag
    teller.status(f"{tag}: digest: {pushed.digest} size: {pushed.size}")
    teller.send({"progressDetail": {}, "aux": {"Tag": tag, "Digest": pushed.digest, "Size": pushed.size}})


def _publish(service: Service, reference: Reference) -> None:
    labels = {}
    if reference.tag is not None:
        labels = labels_of(service.store.image(str(reference)))
    service.publish("image", "push", reference.familiar, {**labels, "name": reference.familiar_name})


routes = [Route("/images/{name:path}/push", push_image, methods=["POST"])]
