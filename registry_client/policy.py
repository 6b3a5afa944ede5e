"""Policy: which registries may be talked to.

The rules of vSphere Integrated Containers: a deny list, and an allow list ("whitelist mode") that, once it has an entry, names all that
is allowed. Names are never resolved: a network in a list matches only registries that are named by an address.
"""

from __future__ import annotations

from dataclasses import dataclass

from registry_client.errors import DeniedError, InvalidError
from registry_client.host_patterns import HostPattern, parse_network
from registry_client.hosts import Host, parse_host
from registry_client.options import Policy


@dataclass(frozen=True, slots=True)
class _Entry:
    hosts: HostPattern
    path: tuple[str, ...]

    def matches(self, host: Host, repository: str) -> bool:
        return self.hosts.matches(host) and tuple(repository.split("/"))[: len(self.path)] == self.path


def check_policy(registry: str, repository: str, policy: Policy) -> None:
    """Does nothing if the repository may be asked for; see `Policy`.

    Repository prefixes count by whole components: ``r.io/team`` holds ``r.io/team/app`` and not ``r.io/teams``. A host without a
    port means any port, ``host:443`` also means ``host``, and Docker Hub is meant by each of its names. An empty ``repository`` (a
    login, a look at the API) is allowed by any entry for the registry and denied by those for the whole of it.

    Raises:
        DeniedError: it may not.
        InvalidError: an entry makes no sense; found even where another entry decides.
    """
    denied = {text: _parse_entry(text, "deny") for text in policy.deny}
    allowed = [_parse_entry(text, "allow") for text in policy.allow]
    host = parse_host(registry)
    if host is None:
        raise InvalidError(f"{registry[:255]!r} is no host")
    for text, entry in denied.items():
        if entry.matches(host, repository):
            raise DeniedError(f"Access denied to unauthorized registry ({registry}): it is on the deny list, as {text!r}")
    if not allowed:
        return
    if repository and any(entry.matches(host, repository) for entry in allowed):
        return
    if not repository and any(entry.hosts.matches(host) for entry in allowed):
        return
    raise DeniedError(f"Access denied to unauthorized registry ({registry}) while VCH is in whitelist mode")


def check_policy_entries(policy: Policy) -> None:
    """Does nothing if all entries make sense.

    Raises:
        InvalidError: names the entry.
    """
    for name in ("deny", "allow"):
        for text in getattr(policy, name):
            _parse_entry(text, name)


def _parse_entry(text: str, name: str) -> _Entry:
    what = f"policy: {name}"
    try:
        if parse_network(text) is not None:
            return _Entry(HostPattern.parse(text, what), ())
    except InvalidError as error:
        raise InvalidError(f"{what}: {error}") from None
    host, slash, path = text.partition("/")
    parts = tuple(path.split("/")) if slash else ()
    if not all(parts) or any(mark in path for mark in "*?[]:@ "):
        raise InvalidError(f"{what}: {text[:255]!r} is no host with the beginning of a repository's name")
    return _Entry(HostPattern.parse(host, what), parts)
