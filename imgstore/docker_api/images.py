"""Images: listed, shown, named, removed."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from imgstore.answers import HistoryItem, Image, Removal
from imgstore.docker_api import image_shapes
from imgstore.docker_api.errors import ApiError
from imgstore.docker_api.platforms import check_platform, decode_platform, decode_platforms
from imgstore.docker_api.requests import filters_of, flag, version_of
from imgstore.docker_api.service import Service, service_of
from imgstore.errors import NotFoundError
from imgstore.image_filters import LIST_FILTERS, PRUNE_FILTERS
from imgstore.images import parse_reference
from imgstore.store import ImageStore
from registry_client.errors import InvalidReferenceError
from registry_client.platform import Platform


async def list_images(request: Request) -> Response:
    """``GET /images/json``."""
    version = version_of(request)
    filters = filters_of(request, LIST_FILTERS)
    if version < (1, 41) and (pattern := request.query_params.get("filter")):
        filters["reference"] = [*filters.get("reference", []), pattern]
    intermediate = flag(request, "all")
    with_shared_size = version >= (1, 42) and flag(request, "shared-size")
    manifests = version >= (1, 47) and flag(request, "manifests")

    def answer() -> bytes:
        store = service_of(request).store
        images = store.images(filters, intermediate=intermediate)
        shared = {usage.id: usage.shared for usage in store.usage().images} if with_shared_size else {}
        unknown = 0 if with_shared_size else -1  # the image was removed between the two
        return msgspec.json.encode(
            [
                image_shapes.summarize(
                    image,
                    version,
                    shared_size=shared.get(image.id, unknown),
                    containers=image.containers if version >= (1, 51) else -1,
                    manifests=manifests,
                )
                for image in images
            ]
        )

    return json_response(await run_in_threadpool(answer))


async def inspect_image(request: Request) -> Response:
    """``GET /images/{name}/json``."""
    version = version_of(request)
    manifests = version >= (1, 48) and flag(request, "manifests")
    platform = decode_platform(request.query_params.get("platform")) if version >= (1, 49) else None
    if manifests and platform is not None:
        raise ApiError(400, "conflicting options: manifests and platform options cannot both be set")
    name = request.path_params["name"]

    def answer() -> bytes:
        store = service_of(request).store
        image = _find(store, name, platform)
        return msgspec.json.encode(image_shapes.inspect(image, version, store.location, manifests=manifests))

    return json_response(await run_in_threadpool(answer))


async def show_history(request: Request) -> Response:
    """``GET /images/{name}/history``."""
    platform = decode_platform(request.query_params.get("platform")) if version_of(request) >= (1, 48) else None
    name = request.path_params["name"]

    def answer() -> bytes:
        store = service_of(request).store
        image = _find(store, name, platform)
        items: list[HistoryItem] = store.history(image.id)
        return msgspec.json.encode(image_shapes.show_history(items, _lineage(store, image, len(items))))

    return json_response(await run_in_threadpool(answer))


async def tag_image(request: Request) -> Response:
    """``POST /images/{name}/tag``."""
    service = service_of(request)
    name = request.path_params["name"]
    new = name_of(request.query_params.get("repo", ""), request.query_params.get("tag", ""))

    def tag() -> None:
        image = service.store.image(name)
        service.store.tag(image.id, new)
        publish(service, "tag", image, parse_reference(new).familiar)

    await run_in_threadpool(tag)
    return Response(status_code=201)


async def remove_image(request: Request) -> Response:
    """``DELETE /images/{name}``."""
    service = service_of(request)
    name = request.path_params["name"]
    if not name.strip():
        raise ApiError(400, "image name cannot be blank")
    force, keep_parents = flag(request, "force"), flag(request, "noprune")
    platforms = decode_platforms(request.query_params.getlist("platforms")) if version_of(request) >= (1, 50) else []
    if len(platforms) > 1:
        raise ApiError(400, "multiple platforms are not supported")

    def remove() -> bytes:
        if platforms:
            _find(service.store, name, platforms[0])
        removal = service.store.remove(name, force=force, keep_parents=keep_parents)
        publish_removal(service, removal)
        return msgspec.json.encode(show_removals([removal]))

    return json_response(await run_in_threadpool(remove))


async def prune_images(request: Request) -> Response:
    """``POST /images/prune``."""
    service = service_of(request)
    filters = filters_of(request, PRUNE_FILTERS)

    def prune() -> bytes:
        report = service.store.prune(filters)
        for removal in report.removals:
            publish_removal(service, removal)
        service.publish("image", "prune", "", {"reclaimed": str(report.reclaimed)})
        return msgspec.json.encode({"ImagesDeleted": show_removals(report.removals) or None, "SpaceReclaimed": report.reclaimed})

    return json_response(await service.work(prune))


def json_response(body: bytes) -> Response:
    """An answer that is JSON already."""
    return Response(body, media_type="application/json")


def name_of(repository: str, tag: str) -> str:
    """The name that the parameters ``repo`` and ``tag`` make; without a tag in either it is ``latest``.

    Source: moby ``httputils.RepoTagReference``.

    Raises:
        InvalidError, ApiError: 400; they make none, or one with a digest.
    """
    reference = parse_reference(repository)
    if reference.digest is not None:
        raise ApiError(400, "cannot import digest reference")
    if reference.familiar_name == "sha256":
        raise ApiError(400, "refusing to create an ambiguous tag using digest algorithm as name")
    if tag:
        try:
            reference = reference.with_tag(tag)
        except InvalidReferenceError as error:
            raise ApiError(400, str(error)) from None
    return str(reference)


def publish(service: Service, action: str, image: Image, name: str) -> None:
    """Tells what happened to an image, with its labels as Docker has it."""
    service.publish("image", action, image.id, {**image.labels, "name": name})


def publish_removal(service: Service, removal: Removal) -> None:
    """Tells what a removal did."""
    image = removal.image
    if image is None:
        return
    # The digests that go with the last tag of their repository are not told of.
    for _ in removal.untagged[:1] if removal.by_name else removal.untagged:
        publish(service, "untag", image, image.id)
    for id in removal.deleted[: removal.images]:
        service.publish("image", "delete", id, {"name": id})


def show_removals(removals: Iterable[Removal]) -> list[dict[str, str]]:
    """What is gone, in the order in which it went: ImageDeleteResponseItem."""
    shown = []
    for removal in removals:
        shown += [{"Untagged": name} for name in removal.untagged]
        shown += [{"Deleted": id} for id in removal.deleted]
    return shown


def _find(store: ImageStore, name: str, platform: Platform | None) -> Image:
    image = store.image(name)
    check_platform(image, name, platform)
    return image


def _lineage(store: ImageStore, image: Image, length: int) -> list[Image]:
    """The image and those that it was made from, at most ``length``, as far as they are here."""
    found = [image]
    while len(found) < length and found[-1].parent is not None:
        try:
            found.append(store.image(found[-1].parent))
        except NotFoundError:
            break
    return found


routes = [
    Route("/images/json", list_images),
    Route("/images/prune", prune_images, methods=["POST"]),
    Route("/images/{name:path}/json", inspect_image),
    Route("/images/{name:path}/history", show_history),
    Route("/images/{name:path}/tag", tag_image, methods=["POST"]),
    Route("/images/{name:path}", remove_image, methods=["DELETE"]),
]
