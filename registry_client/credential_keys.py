"""Keys: the names under which files and helpers keep the credentials of a registry.

Docker and podman wrote the same registry in many ways: ``r.io``, ``https://r.io``, ``https://r.io/v1/``, ``r.io:443``; and Docker Hub
has several names. Sources: docker/cli ``cli/config`` (ConvertToHostname, the key of Docker Hub); containers-auth.json(5) (namespaces).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from registry_client.errors import InvalidError
from registry_client.reference import DEFAULT_REGISTRY

DOCKER_HUB_KEY = "https://index.docker.io/v1/"
_DOCKER_HUB_HOSTS = frozenset({DEFAULT_REGISTRY, "index.docker.io", "registry-1.docker.io"})
_SCHEME = re.compile(r"https?://", re.IGNORECASE)
_KEY = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*"
)
_KEY_LENGTH_MAX = 512  # a host name has at most 253 characters, a repository 255


def written_key(registry: str) -> str:
    """The key that docker writes: the host as it was typed, or the URL that stands for Docker Hub.

    Args:
        registry: ``host[:port]``, or with the beginning of a repository, as podman takes it. A URL is cut down to its host.

    Raises:
        InvalidError: names no registry.
    """
    key = _bare(registry)
    if len(key) > _KEY_LENGTH_MAX or _KEY.fullmatch(key) is None:
        shown = registry.rpartition("@")[2][:80]  # what stands before it may be a password
        raise InvalidError(f"registry {shown!r}: not a host, host:port or host/namespace")
    return DOCKER_HUB_KEY if canonical_key(key) == DEFAULT_REGISTRY else key


def canonical_key(key: str) -> str:
    """One spelling for all keys that mean the same: ``host[:port][/namespace]``, the host in lower case and without ``:443``."""
    host, slash, path = _bare(key).partition("/")
    host = host.lower().removesuffix(":443")
    if host in _DOCKER_HUB_HOSTS:
        host = DEFAULT_REGISTRY
    return f"{host}{slash}{path}"


def matching_keys(registry: str, repository: str) -> Iterator[str]:
    """The keys that cover a repository, the most specific first: ``host/team/app``, ``host/team``, ``host``; the host as given."""
    parts = repository.split("/") if repository else []
    for length in range(len(parts), -1, -1):
        yield "/".join([registry, *parts[:length]])


def _bare(key: str) -> str:
    """A key without scheme, without the path of a URL, and without docker's ``/v1/`` or ``/v2/``."""
    bare = _SCHEME.sub("", key, count=1) if _SCHEME.match(key) else key
    if bare != key:
        return bare.partition("/")[0]
    # Without a slash at the end, "r.io/v2" is the namespace v2.
    return re.sub(r"/v[12]/$", "", key).rstrip("/")
