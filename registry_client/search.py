"""Search: the repositories of a registry whose name has a word in it.

Docker Hub, Quay and others answer ``GET /v1/search``. The distribution-spec has no search, but many registries list what they have, so
where there is no ``/v1/search`` the list is looked through here.

Source: moby ``registry/search.go`` and ``search_session.go``; distribution ``docs/spec/api.md``, "Listing Repositories".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from urllib.parse import urlencode

from registry_client.answers import next_page
from registry_client.errors import DeniedError, InvalidError, MalformedError, NotFoundError, UnsupportedError
from registry_client.hosts import DOCKER_HUB
from registry_client.options import Options
from registry_client.repository import Action, Answer, RemoteRepository
from registry_client.routes import find_primary
from registry_client.server import Connections
from registry_client.strict_json import Fields, parse_object
from registry_client.transport import read_body

LIMIT_DEFAULT = 25
LIMIT_MAX = 100

_HUB_SEARCH = "index.docker.io"
_SIZE_MAX = 4 << 20
_RESULTS_MAX = 10_000
_PAGES_MAX = 100
_PAGE_SIZE = 1000
_NONE_HERE = (NotFoundError, UnsupportedError, MalformedError)
"""What a registry without a search says: 404, 405, or the start page of its user interface."""


@dataclass(frozen=True, slots=True)
class FoundRepository:
    """A repository that was found.

    Attributes:
        name: as the registry has it, without the registry: ``library/busybox`` is ``busybox`` on Docker Hub.
        description: in the words of its owner; may be empty.
        stars: how many users marked it.
        is_official: Docker Hub's own.
    """

    name: str
    description: str = ""
    stars: int = 0
    is_official: bool = False


def split_term(term: str) -> tuple[str, str]:
    """The registry to ask, and what for: ``harbor.example/app`` is ``app`` at ``harbor.example``, ``app`` is at Docker Hub.

    Raises:
        InvalidError: there is a scheme in it, or nothing to look for.
    """
    if term.startswith(("http://", "https://")):
        raise InvalidError(f"invalid repository name: repository name ({term[:200]}) should not have a scheme")
    first, slash, rest = term.partition("/")
    if not slash or not (set(".:") & set(first) or first == "localhost"):
        first, rest = DOCKER_HUB, term
    if first in (DOCKER_HUB, _HUB_SEARCH):
        first, rest = DOCKER_HUB, rest.removeprefix("library/")
    if not rest:
        raise InvalidError(f"search {term[:200]!r}: says nothing to look for")
    return first, rest


def search(
    registry: str, word: str, options: Options, connections: Connections, *, limit: int = LIMIT_DEFAULT
) -> list[FoundRepository]:
    """Asks the registry itself, never a mirror.

    Args:
        registry, word: as `split_term` gives them.
        limit: how many at most, up to LIMIT_MAX.

    Raises:
        UnsupportedError: it has neither a search nor a list of its repositories for us.
        DeniedError, UnavailableError, InvalidError: it does not let us look, or does not answer; or the limit makes no sense.
    """
    if not 1 <= limit <= LIMIT_MAX:
        raise InvalidError(f"limit {limit} is outside the range of [1, {LIMIT_MAX}]")
    endpoint = find_primary(registry, "", options)
    if registry == DOCKER_HUB:
        endpoint = replace(endpoint, host=_HUB_SEARCH)
    remote = RemoteRepository(endpoint, registry, connections, options)
    try:
        return _search(remote, word, limit)
    except _NONE_HERE:
        if registry == DOCKER_HUB:
            raise
    try:
        return _look_through(remote, word, limit)
    except (DeniedError, *_NONE_HERE) as error:
        raise UnsupportedError(f"{registry}: has no search, and no list of its repositories for us: {error}") from error


def _search(remote: RemoteRepository, word: str, limit: int) -> list[FoundRepository]:
    what = f"search of {remote.name}"
    url = f"{remote.server.base}/v1/search?{urlencode({'q': word, 'n': limit})}"
    data = read_body(remote.request("GET", url, what, action=Action.SEARCH).response, _SIZE_MAX, what)
    return [_repository(entry) for entry in parse_object(data, what).objects("results", maximum=_RESULTS_MAX)][:limit]


def _repository(entry: Fields) -> FoundRepository:
    stars = entry.integer("star_count") if "star_count" in entry else 0
    return FoundRepository(entry.string("name"), entry.string("description", ""), stars, entry.boolean("is_official"))


def _look_through(remote: RemoteRepository, word: str, limit: int) -> list[FoundRepository]:
    what = f"list of repositories of {remote.name}"
    url: str | None = f"{remote.server.base}{remote.endpoint.api}/_catalog?n={_PAGE_SIZE}"
    found: list[FoundRepository] = []
    for _ in range(_PAGES_MAX):
        if url is None or len(found) >= limit:
            return found[:limit]
        answer: Answer = remote.request("GET", url, what, action=Action.CATALOG)
        data = read_body(answer.response, _SIZE_MAX, what)
        names = parse_object(data, what).strings("repositories", maximum=_RESULTS_MAX)
        found += [FoundRepository(name) for name in names if word.lower() in name]
        url = next_page(answer.response, answer.url)
    return found[:limit]
