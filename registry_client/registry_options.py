"""Which of the caller's RegistryOptions count for a repository, and whether they make sense."""

from __future__ import annotations

from collections.abc import Mapping

from registry_client.errors import InvalidError, InvalidReferenceError
from registry_client.hosts import parse_host, same_host
from registry_client.options import RegistryOptions
from registry_client.reference import Reference

_DEFAULTS = RegistryOptions()


def find_registry_options(registry: str, repository: str, registries: Mapping[str, RegistryOptions]) -> RegistryOptions:
    """What the longest key says that the repository's name begins with; the defaults if there is none.

    Keys are ``host[:port][/path]``; paths count by whole components, ``host`` is ``host:443``, and Docker Hub has all of its names.

    Raises:
        InvalidError: a key is none.
    """
    found, rank = _DEFAULTS, (-1, False)
    for key, value in registries.items():
        host, path = split_location(key, f"registry {key!r}")
        if same_host(host, registry) and (not path or f"{repository}/".startswith(f"{path}/")):
            # Of keys that differ only in the spelling of the host, the one that was typed counts.
            new_rank = len(path), host == registry
            if new_rank > rank:
                found, rank = value, new_rank
    return found


def check_registries(registries: Mapping[str, RegistryOptions]) -> None:
    """Does nothing if all keys and values make sense.

    Raises:
        InvalidError: names the key.
    """
    for key, value in registries.items():
        what = f"registry {key!r}"
        split_location(key, what)
        for mirror in value.mirrors:
            split_location(mirror, f"{what}: mirror {mirror[:300]!r}")
        for realm in value.realms:
            if parse_host(realm) is None:
                raise InvalidError(f"{what}: realm {realm[:255]!r} is no host")
        if value.client_key is not None and value.client_certificate is None:
            raise InvalidError(f"{what}: a client key without a client certificate")


def split_location(text: str, what: str) -> tuple[str, str]:
    """Host and path of ``host[:port][/path]``; the path is empty if there is none.

    Args:
        what: where it stands, for messages.

    Raises:
        InvalidError: it is none.
    """
    if "://" in text:
        raise InvalidError(f"{what}: has a scheme, which does not belong there")
    host, slash, path = text.partition("/")
    if parse_host(host) is None:
        raise InvalidError(f"{what}: {host[:255]!r} is no host")
    name = f"registry.invalid/{path}"  # any registry does for a look at the path
    try:
        is_path = not slash or Reference.parse(name).name == name
    except InvalidReferenceError:
        is_path = False
    if not is_path:
        raise InvalidError(f"{what}: {path[:255]!r} is no beginning of a repository's name")
    return host, path
