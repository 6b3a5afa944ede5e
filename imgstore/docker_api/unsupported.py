"""What an imgstore does not do: the empty answers, the 404s and the 501s that let Docker's clients go on, or say what to do instead.

``docker inspect NAME`` asks for a container, an image, a network, a volume and a plugin of that name, as long as the answer is 404;
``docker system prune`` prunes them all, and stops at the first error. What would run a container is with the containers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from imgstore.docker_api.errors import ApiError
from imgstore.docker_api.requests import filters_of

Handler = Callable[[Request], Awaitable[Response]]

_LABELS = frozenset({"label", "label!"})
_NETWORKS = frozenset({"dangling", "driver", "id", "label", "name", "scope", "type"})
_BUILDS = frozenset({"description", "id", "inuse", "label", "parent", "private", "shared", "type", "unused-for", "until"})

# Lists and prunes with the filters that Docker knows there (moby daemon/network/filter.go, daemon/prune.go).
_EMPTY: tuple[tuple[str, str, object, frozenset[str]], ...] = (
    ("GET", "/networks", [], _NETWORKS),
    ("GET", "/networks/", [], _NETWORKS),  # Docker has both, and some clients ask for this one
    ("GET", "/plugins", [], frozenset({"capability", "enabled"})),
    ("POST", "/networks/prune", {"NetworksDeleted": []}, _LABELS | {"until"}),
    ("POST", "/build/prune", {"CachesDeleted": [], "SpaceReclaimed": 0}, _BUILDS),
)

# Where there is nothing, nothing can be found. Words of moby: daemon/errors.go, daemon/network.go, plugin/errors.go.
_MISSING: tuple[tuple[str, str, str], ...] = (
    ("GET", "/exec/{name}/json", "No such exec instance: {name}"),
    ("POST", "/exec/{name}/start", "No such exec instance: {name}"),
    ("POST", "/exec/{name}/resize", "No such exec instance: {name}"),
    ("GET", "/networks/{name:path}", "network {name} not found"),
    ("DELETE", "/networks/{name:path}", "network {name} not found"),
    ("GET", "/plugins/{name:path}/json", 'plugin "{name}" not found'),
    ("DELETE", "/plugins/{name:path}", 'plugin "{name}" not found'),
)

_NO_CHECKPOINTS = "imgstore runs no containers, so there is nothing of theirs to freeze"
_NO_CLUSTER_VOLUMES = "volumes are not changed: `imgstore volume grow` gives one a larger disk"
_NO_NETWORKS = "imgstore has no networks: the platform that runs the virtual machines connects them"
_NO_BUILD = "imgstore does not build images: build and push with another engine, then pull"
_NO_PLUGINS = "imgstore has no plugins; what it can do is built in"
_NO_SWARM = "imgstore is no cluster; every node can have a store of its own"

_REFUSED: tuple[tuple[Sequence[str], Sequence[str], str], ...] = (
    (("POST",), ("/build", "/build/cancel", "/session", "/grpc"), _NO_BUILD),
    (("GET", "POST", "DELETE"), ("/containers/{name:path}/checkpoints",), _NO_CHECKPOINTS),
    (("PUT",), ("/volumes/{name:path}",), _NO_CLUSTER_VOLUMES),
    (("POST",), ("/networks/create", "/networks/{name:path}/connect", "/networks/{name:path}/disconnect"), _NO_NETWORKS),
    (("GET",), ("/plugins/privileges",), _NO_PLUGINS),
    (("POST",), ("/plugins/pull", "/plugins/create"), _NO_PLUGINS),
    (("POST",), tuple(f"/plugins/{{name:path}}/{verb}" for verb in ("enable", "disable", "push", "upgrade", "set")), _NO_PLUGINS),
    (("POST",), tuple(f"/swarm/{verb}" for verb in ("init", "join", "leave", "update", "unlock")), _NO_SWARM),
)

_SWARM = ("/swarm", "/swarm/unlockkey", "/services", "/nodes", "/tasks", "/secrets", "/configs")
_NO_MANAGER = f"This node is not a swarm manager. {_NO_SWARM}"
"""Begins with the words by which clients know."""


def _answer_empty(value: object, known: frozenset[str]) -> Handler:
    async def answer(request: Request) -> Response:
        filters_of(request, known)
        return JSONResponse(value)

    return answer


def _answer_missing(words: str) -> Handler:
    async def answer(request: Request) -> Response:
        raise ApiError(404, words.format(name=request.path_params["name"]))

    return answer


def _refuse(status: int, words: str) -> Handler:
    async def answer(request: Request) -> Response:
        raise ApiError(status, words)

    return answer


routes = [
    *(Route(path, _answer_empty(value, known), methods=[method]) for method, path, value, known in _EMPTY),
    *(Route(path, _answer_missing(words), methods=[method]) for method, path, words in _MISSING),
    *(Route(path, _refuse(501, words), methods=list(methods)) for methods, paths, words in _REFUSED for path in paths),
    *(Route(path, _refuse(503, _NO_MANAGER)) for path in _SWARM),
    *(Route(f"{path}/{{name:path}}", _refuse(503, _NO_MANAGER), methods=["GET", "POST", "DELETE"]) for path in _SWARM[2:]),
]
