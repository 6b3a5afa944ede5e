"""Pulls: ``POST /images/create?fromImage=``. Clients that want the same image at the same time share one pull.

Source: moby ``api/server/router/image/image_routes.go``, ``distribution/pull_v2.go``, ``distribution/errors.go``.
"""

from __future__ import annotations

import re
import threading

from starlette.requests import Request
from starlette.types import ASGIApp

from imgstore.answers import Image, PullResult, PullStatus
from imgstore.docker_api.errors import ApiError
from imgstore.docker_api.jobs import Teller
from imgstore.docker_api.registry_auth import credential_of
from imgstore.docker_api.service import Service, service_of
from imgstore.docker_api.streams import LayerMessages, StreamResponse
from imgstore.errors import ImgstoreError
from imgstore.progress import ProgressEvent
from imgstore.stop import Stop
from registry_client import errors as registry_errors
from registry_client.credentials import Credential
from registry_client.digest import Digest
from registry_client.platform import Platform
from registry_client.reference import Reference

_NO_LOGIN = "repository does not exist or may require 'docker login'"
_RESERVED = "scratch"
_DIGEST = re.compile(r"sha\d+:")


async def pull_image(request: Request) -> ASGIApp:
    """``POST /images/create?fromImage=``."""
    name = request.query_params["fromImage"]
    service = service_of(request)
    reference = parse_reference(name.removesuffix(":"), request.query_params.get("tag", ""))
    if reference.familiar_name == _RESERVED:
        raise ApiError(403, f"'{_RESERVED}' is a reserved name")
    platform = parse_platform(request.query_params.get("platform", ""))
    credential = credential_of(request)

    def act(teller: Teller, stop: Stop) -> None:
        _Pull(service, platform, credential, teller, stop).run(reference)

    return StreamResponse(service.jobs, act, key=("pull", reference, platform, credential))


def parse_reference(name: str, tag: str) -> Reference:
    """What ``name`` and ``tag`` (which may be a digest) name together; without a tag anywhere, a Reference that has none.

    Raises:
        ApiError: 400, in Docker's words.
    """
    try:
        reference = Reference.parse(name)
        if not tag:
            return reference if set(":@") & set(name.rpartition("/")[2]) else reference.without_tag()
        return reference.with_digest(Digest(tag)) if _DIGEST.match(tag) else reference.with_tag(tag)
    except registry_errors.InvalidDigestError:
        raise ApiError(400, "invalid tag format") from None
    except registry_errors.InvalidReferenceError as error:
        raise ApiError(400, str(error)) from None


def parse_platform(text: str) -> str | None:
    """A platform in one spelling, ``os/architecture[/variant]``; None for no text.

    Raises:
        ApiError: 400; it is none.
    """
    try:
        return str(Platform.parse(text)) if text else None
    except registry_errors.InvalidPlatformError as error:
        raise ApiError(400, f"{error}: invalid argument") from None


class _Pull:
    """One pull, or one of all tags of a repository, as it is told to clients."""

    def __init__(
        self,
        service: Service,
        platform: str | None,
        credential: Credential | None,
        teller: Teller,
        stop: Stop,
    ) -> None:
        self._service = service
        self._platform = platform
        self._credential = credential
        self._teller = teller
        self._stop = stop

    def run(self, reference: Reference) -> None:
        """Pulls what the reference names; without a tag, all of the repository's."""
        try:
            if reference.tag is None and reference.digest is None:
                tags = self._service.store.list_tags(reference.name, credential=self._credential, stop=self._stop)
                results = [self._pull(reference.with_tag(tag)) for tag in tags]
            else:
                results = [self._pull(reference)]
        except ImgstoreError as error:
            raise docker_error(error, reference) from error
        is_new = any(result.status is PullStatus.DOWNLOADED for result in results)
        words = "Downloaded newer image" if is_new else "Image is up to date"
        self._teller.status(f"Status: {words} for {reference.familiar}")
        labels = labels_of(results[0].image) if len(results) == 1 else {}
        self._service.publish("image", "pull", reference.familiar, {**labels, "name": reference.familiar_name})

    def _pull(self, reference: Reference) -> PullResult:
        messages = LayerMessages(self._teller)
        guard = threading.Lock()
        begun = False

        def begin() -> None:
            nonlocal begun
            with guard:
                if not begun:
                    begun = True
                    self._teller.status(f"Pulling from {reference.repository}", id=reference.tag or str(reference))

        def show(event: ProgressEvent) -> None:
            if event.layer:
                begin()
            messages(event)

        try:
            result = self._service.store.pull(
                str(reference), platform=self._platform, credential=self._credential, progress=show, stop=self._stop
            )
        except ImgstoreError as error:
            if isinstance(error.__cause__, registry_errors.NoMatchingPlatformError):
                begin()
            raise
        begin()
        self._teller.status(f"Digest: {result.digest}")
        return result


def labels_of(image: Image) -> dict[str, str]:
    """The labels of an image, which its events bear."""
    labels = (image.config.get("config") or {}).get("Labels")
    return {str(name): str(value) for name, value in labels.items()} if isinstance(labels, dict) else {}


def docker_error(error: ImgstoreError, reference: Reference) -> Exception:
    """What a pull failed with, with the status and in the words that clients of Docker look for."""
    cause = error.__cause__
    name = reference.familiar_name
    words = str(error).replace(reference.name, name)
    if isinstance(cause, registry_errors.NoMatchingPlatformError):
        words = words.removeprefix(f"{reference.familiar}: ")
        return ApiError(404, words.replace("image was found, but", f"image with reference {reference.familiar} was found but"))
    if isinstance(cause, registry_errors.DeniedError) and cause.registry:
        said = words.removeprefix(f"pull access denied for {name}").lstrip(":, ")
        if said.startswith(_NO_LOGIN):
            return ApiError(404, words)
        if cause.status == 401 and "DENIED" not in cause.codes:
            return ApiError(401, f"unauthorized: {said}")
        return ApiError(404, f"pull access denied for {name}, {_NO_LOGIN}: {said}")
    return type(error)(words, hint=error.hint)
