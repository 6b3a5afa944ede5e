"""Archives: images as tar files, out and in; and tar files that become images.

Source: moby ``api/server/router/image/image_routes.go``, ``image/tarexport``, ``daemon/images/image_import.go``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import BinaryIO

from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp

from imgstore.answers import Image
from imgstore.docker_api.errors import ApiError
from imgstore.docker_api.jobs import Teller
from imgstore.docker_api.platforms import decode_platform
from imgstore.docker_api.pulls import labels_of, parse_platform, parse_reference, pull_image
from imgstore.docker_api.requests import flag, version_of
from imgstore.docker_api.service import Service, service_of
from imgstore.docker_api.spools import spool_body
from imgstore.docker_api.streams import Pace, StreamResponse
from imgstore.docker_api.tar_response import TarResponse
from imgstore.errors import ImgstoreError
from imgstore.instructions import apply_changes
from imgstore.progress import ProgressEvent, State
from imgstore.stop import Stop


async def save_images(request: Request) -> ASGIApp:
    """``GET /images/get?names=`` and ``GET /images/{name}/get``: a tar of the images."""
    service = service_of(request)
    name = request.path_params.get("name")
    names = request.query_params.getlist("names") if name is None else [name]
    pieces = await service.work(service.store.save, names, platform=_platform(request))

    def tell() -> None:
        for image in _images(service, names):
            service.publish("image", "save", image.id, {**labels_of(image), "name": image.id})

    return TarResponse(service, pieces, on_end=tell)


def _images(service: Service, names: Iterable[str]) -> list[Image]:
    found = {}
    for name in names:
        with contextlib.suppress(ImgstoreError):  # a repository without the tag "latest", or gone meanwhile
            image = service.store.image(name)
            found[image.id] = image
    return list(found.values())


async def load_images(request: Request) -> ASGIApp:
    """``POST /images/load``: the images of the archive in the body. Its errors are in the stream always, as Docker's are."""
    service = service_of(request)
    platform = _platform(request)
    quiet = flag(request, "quiet", default=True)
    archive = await _spool(request, service)

    def act(teller: Teller, stop: Stop) -> None:
        messages = _LoadMessages(teller, quiet=quiet)
        with archive:
            for loaded in service.store.load(archive, platform=platform, progress=messages, stop=stop):
                image = loaded.image
                for name in loaded.references:
                    teller.send({"stream": f"Loaded image: {name}\n"})
                if not loaded.references:
                    teller.send({"stream": f"Loaded image ID: {image.id}\n"})
                service.publish("image", "load", image.id, {**labels_of(image), "name": image.id})

    return StreamResponse(service.jobs, act, unused=archive.close, always_ok=True)


class _LoadMessages:
    """Tells how far the layers of an archive are, unless that is not wanted; and what became of names that moved."""

    def __init__(self, teller: Teller, *, quiet: bool) -> None:
        self._teller = teller
        self._quiet = quiet
        self._pace = Pace()

    def __call__(self, event: ProgressEvent) -> None:
        if event.state is None and event.message:
            self._teller.send({"stream": f"{event.message}\n"})
        elif event.state is State.CONVERTING and not self._quiet and self._pace.allows(event):
            self._teller.layer_progress(event.layer, "Loading layer", event.current, event.total)


async def create_image(request: Request) -> ASGIApp:
    """``POST /images/create``: pulls ``fromImage``, or imports ``fromSrc``."""
    if request.query_params.get("fromImage"):
        return await pull_image(request)
    return await import_image(request)


async def import_image(request: Request) -> ASGIApp:
    """``POST /images/create?fromSrc=-``: an image of one layer out of the tar in the body."""
    service = service_of(request)
    query = request.query_params
    source = query.get("fromSrc", "")
    if not source:
        raise ApiError(400, "neither fromImage nor fromSrc says where the image is to come from")
    if source != "-":
        raise ApiError(501, f"imgstore does not download tar files: curl -fL {source[:200]} | docker import - NAME")
    name = _name(query.get("repo", ""), query.get("tag", ""))
    platform = parse_platform(query.get("platform", ""))
    changes = query.getlist("changes")
    apply_changes({}, changes)  # before the client sends all of its body
    body = await _spool(request, service)

    def act(teller: Teller, stop: Stop) -> None:
        with body:
            image = service.store.import_image(
                body, reference=name, changes=changes, message=query.get("message", ""), platform=platform, stop=stop
            )
        if name is not None:
            service.publish("image", "tag", image.id, {**labels_of(image), "name": name})
        service.publish("image", "import", image.id, {**labels_of(image), "name": image.id})
        teller.status(image.id)

    return StreamResponse(service.jobs, act, unused=body.close)


async def _spool(request: Request, service: Service) -> BinaryIO:
    info = await service.work(service.store.info)
    return await spool_body(request, info.directory)


def _name(repository: str, tag: str) -> str | None:
    if not repository:
        return None
    reference = parse_reference(repository, tag)
    if reference.digest is not None:
        raise ApiError(400, "cannot import digest reference")
    return (reference if reference.tag is not None else reference.with_tag("latest")).familiar


def _platform(request: Request) -> str | None:
    platform = decode_platform(request.query_params.get("platform")) if version_of(request) >= (1, 48) else None
    return None if platform is None else str(platform)


routes = [
    Route("/images/create", create_image, methods=["POST"]),
    Route("/images/load", load_images, methods=["POST"]),
    Route("/images/get", save_images),
    Route("/images/{name:path}/get", save_images),
]
