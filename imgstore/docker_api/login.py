"""``POST /auth``: does a registry take this login? The client keeps it, the service does not.

Source: moby ``registry/service.go`` and ``registry/auth.go``.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from imgstore.docker_api.errors import ApiError
from imgstore.docker_api.requests import json_body
from imgstore.docker_api.service import service_of
from imgstore.errors import DeniedError
from registry_client.credentials import Credential
from registry_client.errors import InvalidReferenceError
from registry_client.hosts import DOCKER_HUB, name_registry, parse_host, same_host
from registry_client.reference import Reference


async def log_in(request: Request) -> Response:
    """Asks the registry; 401 with its words if it does not take the login."""
    given = await json_body(request)
    if not isinstance(given, dict):
        raise ApiError(400, "invalid login: is no object")
    username, password, token, address = (
        _text(given, name) for name in ("username", "password", "identitytoken", "serveraddress")
    )
    if not token and _text(given, "auth") and not username:
        raise ApiError(400, "invalid login: username and password are asked for, not auth")
    credential = Credential(username, "" if token else password, identity_token=token)
    service = service_of(request)
    try:
        kept = await service.work(service.store.check_login, parse_server_address(address), credential)
    except DeniedError as error:
        raise ApiError(401, str(error)) from error
    return JSONResponse({"Status": "Login Succeeded", "IdentityToken": kept.identity_token})


def parse_server_address(address: str) -> str:
    """The registry as references name it.

    Args:
        address: a host, or host:port; a scheme and a path, as in ``https://index.docker.io/v1/``, are left out. Empty: Docker Hub.

    Raises:
        ApiError: 400; no reference can begin with it.
    """
    host = address.removeprefix("https://").removeprefix("http://").partition("/")[0] or DOCKER_HUB
    if parse_host(host) is None:
        raise ApiError(400, f"server address {host.rpartition('@')[2][:300]!r}: is no host")
    try:
        found = Reference.parse(f"{host}/x/y").registry
    except InvalidReferenceError:
        raise ApiError(400, f"server address {host!r}: is no host of a registry") from None
    if not same_host(found, host):
        # The password would go to Docker Hub.
        raise ApiError(400, f"server address {host!r}: has no dot and no port, so references take it for a part of Docker Hub")
    return name_registry(found)


def _text(given: dict[str, Any], name: str) -> str:
    value = given.get(name) or ""
    if not isinstance(value, str):
        raise ApiError(400, f"invalid login: {name} is no text")
    return value


routes = [Route("/auth", log_in, methods=["POST"])]
