"""Hosts: what the text ``host[:port]`` means, without asking anybody.

Nothing here resolves a name: what a name server says must not decide whom we trust (HTTP in the clear, no certificates).
"""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass

DOCKER_HUB = "docker.io"
DOCKER_HUB_API = "registry-1.docker.io"
DOCKER_HUB_NAMES = (DOCKER_HUB, DOCKER_HUB_API, "index.docker.io")
HTTPS_PORT = 443
PORT_MAX = 65535

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Wider than the grammar of references (a realm's host may hold "_"), and still safe as the name of a file.
_HOST = re.compile(r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?\.?|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,64}))?")
_LENGTH_MAX = 255
_LEGACY_ADDRESS = re.compile(r"[0-9][0-9A-Fa-fxX.]{0,63}")


@dataclass(frozen=True, slots=True)
class Host:
    """A host and a port, made comparable.

    Attributes:
        name: in lower case, without the dot that may end it; an IPv6 address in its shortest form and in brackets.
        port: 443 where none was given, which is what a registry's name means.
        has_port: one was given.
    """

    name: str
    port: int
    has_port: bool

    @property
    def is_docker_hub(self) -> bool:
        """One of Docker Hub's names, at the usual port."""
        return self.name in DOCKER_HUB_NAMES and self.port == HTTPS_PORT

    @property
    def address(self) -> Address | None:
        """The address, if the name is one literally."""
        return _find_address(self.name)


def parse_host(text: str) -> Host | None:
    """Reads ``host`` or ``host:port``; None if it is neither."""
    found = _HOST.fullmatch(text) if len(text) <= _LENGTH_MAX else None
    if found is None:
        return None
    name = found["name"].lower().removesuffix(".")
    if name.startswith("["):
        try:
            name = f"[{ipaddress.IPv6Address(name[1:-1])}]"
        except ValueError:
            return None
    port = found["port"]
    return Host(name, HTTPS_PORT if port is None else int(port), port is not None)


def same_host(one: str, other: str) -> bool:
    """Whether two texts name the same host and port: ``host`` is ``host:443``, and all names of Docker Hub are one."""
    first, second = parse_host(one), parse_host(other)
    if first is None or second is None:
        return False
    if first.is_docker_hub and second.is_docker_hub:
        return True
    return (first.name, first.port) == (second.name, second.port)


def list_spellings(text: str) -> tuple[str, ...]:
    """All texts for the same host, as it was typed first: with and without ``:443``, and every name of Docker Hub."""
    host = parse_host(text)
    if host is None:
        return ()
    if host.is_docker_hub:
        names: tuple[str, ...] = (host.name, *DOCKER_HUB_NAMES)
    else:
        names = (host.name,)
    spelled = [text, text.lower()]
    for name in names:
        if host.port == HTTPS_PORT:
            spelled += [f"{name}:{HTTPS_PORT}", name] if host.has_port else [name, f"{name}:{HTTPS_PORT}"]
        else:
            spelled.append(f"{name}:{host.port}")
    return tuple(dict.fromkeys(spelled))


def name_registry(text: str) -> str:
    """What credentials for a host are looked up for: ``docker.io`` for each name of Docker Hub, else the text itself."""
    host = parse_host(text)
    return DOCKER_HUB if host is not None and host.is_docker_hub else text


def locate_registry(text: str) -> str:
    """Where a registry answers: ``registry-1.docker.io`` for each name of Docker Hub, else the text itself."""
    host = parse_host(text)
    return DOCKER_HUB_API if host is not None and host.is_docker_hub else text


def is_loopback(name: str) -> bool:
    """Whether a host (without port) as it was typed is this machine: ``localhost``, ``127.0.0.0/8``, ``::1``."""
    if name.lower() == "localhost":
        return True
    address = _find_address(name)
    return address is not None and address.is_loopback


def is_link_local(name: str) -> bool:
    """Whether the host is a literal address of the link, where clouds keep their metadata (``169.254.169.254``)."""
    address = _find_address(name)
    return address is not None and (address.is_link_local or address.is_unspecified)


def is_internal(name: str) -> bool:
    """Whether the host is this machine, or a literal address of a network that is not the Internet."""
    address = _find_address(name)
    return is_loopback(name) or (address is not None and (address.is_private or address.is_link_local or address.is_unspecified))


def _find_address(name: str) -> Address | None:
    """The address that a name is literally, in any form that the system takes for one: ``10.1`` and ``0xa000001`` are 10.0.0.1."""
    try:
        address: Address = ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        if _LEGACY_ADDRESS.fullmatch(name) is None:
            return None
        try:
            address = ipaddress.IPv4Address(socket.inet_aton(name))
        except OSError:
            return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
