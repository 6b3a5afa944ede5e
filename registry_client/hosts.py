"""Hosts as they are typed: which of them are this machine, and which are on no public network. Never asks a resolver."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether the host is this machine: ``localhost``, ``127.0.0.0/8``, ``::1``."""
    if host.lower() == "localhost":
        return True
    address = _address(host)
    return address is not None and address.is_loopback


def is_link_local(host: str) -> bool:
    """Whether the host is a literal address of the link, where clouds keep their metadata (``169.254.169.254``)."""
    address = _address(host)
    return address is not None and (address.is_link_local or address.is_unspecified)


def is_internal(host: str) -> bool:
    """Whether the host is this machine, or a literal address of a network that is not the Internet."""
    address = _address(host)
    return is_loopback(host) or (address is not None and (address.is_private or address.is_link_local or address.is_unspecified))


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None
