"""Host patterns: how policies and lists of insecure registries name hosts."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

from registry_client.errors import InvalidError
from registry_client.hosts import DOCKER_HUB_NAMES, PORT_MAX, Host, parse_host

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_GLOB = re.compile(r"(?P<name>[A-Za-z0-9*?](?:[A-Za-z0-9._*?-]*[A-Za-z0-9*?])?)(?::(?P<port>[0-9]{1,5}|\*))?")
_LENGTH_MAX = 255


@dataclass(frozen=True, slots=True)
class HostPattern:
    """Matches hosts by name and port, or by the address that their name is.

    Attributes:
        glob: of names, with ``*`` (dots too) and ``?``, in lower case; empty if it is a network.
        port: or None for any.
        network: matches addresses alone, never names: what they resolve to is not asked.
    """

    glob: str
    port: int | None
    network: Network | None = None

    @classmethod
    def parse(cls, text: str, what: str) -> HostPattern:
        """Reads ``host``, ``host:port``, ``*.example.com``, ``[::1]:5000`` or ``10.0.0.0/8``.

        Args:
            what: where it stands, for messages.

        Raises:
            InvalidError: it is none of them.
        """
        network = parse_network(text)
        if network is not None:
            return cls("", None, network)
        host = parse_host(text)
        if host is not None and host.port <= PORT_MAX:
            return cls(host.name, host.port if host.has_port else None)
        found = _GLOB.fullmatch(text) if len(text) <= _LENGTH_MAX else None
        port = None if found is None or found["port"] in (None, "*") else int(found["port"])
        if found is None or (port is not None and port > PORT_MAX):
            raise InvalidError(f"{what}: {text[:_LENGTH_MAX]!r} is no host, no pattern of hosts and no network")
        return cls(found["name"].lower(), port)

    def matches(self, host: Host) -> bool:
        """Whether the host is meant; Docker Hub by each of its names."""
        address = host.address
        if self.network is not None:
            return address is not None and address in self.network
        if self.port is not None and self.port != host.port:
            return False
        names = {host.name}
        if host.is_docker_hub:
            names.update(DOCKER_HUB_NAMES)
        if address is not None:
            names.add(f"[{address}]" if address.version == 6 else str(address))
        return any(fnmatchcase(name, self.glob) if self.is_glob else name == self.glob for name in names)

    @property
    def is_glob(self) -> bool:
        """Any name that fits is meant, not one alone."""
        # The brackets of an IPv6 address are none of fnmatch's.
        return "*" in self.glob or "?" in self.glob


def parse_network(text: str) -> Network | None:
    """A network in CIDR notation; None if the text is none. Bits behind the prefix are dropped, as docker does.

    Raises:
        InvalidError: it was meant to be one: ``10.0.0.0/33``.
    """
    address, slash, length = text.partition("/")
    if not slash or len(text) > _LENGTH_MAX:
        return None
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        pass
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return None
    if length.isdecimal():
        raise InvalidError(f"{text!r} is no network: the prefix has {length} bits")
    return None
