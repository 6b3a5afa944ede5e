"""Proxies of the environment: ``HTTPS_PROXY``, ``HTTP_PROXY`` and ``ALL_PROXY``, with the exceptions in ``NO_PROXY``.

Each may be written in lower case, which wins. Source: what curl and Go's ``httpproxy`` agree on. requests' own reading is not used: to it
``NO_PROXY=example.com`` is an exception for ``notexample.com`` too, and ``example.com:443`` none for ``https://example.com``.
"""

from __future__ import annotations

import ipaddress
import re
import urllib.request
from urllib.parse import urlsplit

from registry_client.hosts import parse_host

_PORTS = {"http": 80, "https": 443}


def find_proxies(url: str) -> dict[str, str]:
    """URLs of the proxies for a request, by scheme (or ``all``), as requests wants them; empty for a host that is an exception."""
    proxies = urllib.request.getproxies_environment()
    return {} if is_exception(url, proxies.pop("no", "")) else proxies


def is_exception(url: str, no_proxy: str) -> bool:
    """Whether ``NO_PROXY`` says that a URL's host is reached without a proxy.

    Args:
        no_proxy: separated by commas or spaces: a domain with all that is below it (``example.com`` or ``.example.com``), an address,
            a network (``10.0.0.0/8``), or ``*`` for all; each but networks with a port or without.
    """
    parts = urlsplit(url)
    name, port = (parts.hostname or "").lower(), parts.port or _PORTS.get(parts.scheme, 0)
    return any(_matches(entry.lower(), name, port) for entry in re.split(r"[\s,]+", no_proxy) if entry)


def _matches(entry: str, name: str, port: int) -> bool:
    if entry == "*":
        return True
    if "/" in entry:
        try:
            return ipaddress.ip_address(name) in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    if entry.count(":") > 1 and not entry.startswith("["):
        entry = f"[{entry}]"
    host = parse_host(entry.removeprefix("*").lstrip("."))
    if host is None or (host.has_port and host.port != port):
        return False
    wanted = host.name.strip("[]")
    return name == wanted or (host.address is None and name.endswith(f".{wanted}"))
