"""VsphereLogin: a server of the vSphere API, and how it is reached."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from imgstore.errors import InvalidError

PORT = 443

_HOST = re.compile(r"[\w.-]+")
_ADDRESS = re.compile(r"[0-9A-Fa-f:.]+(%[\w.-]+)?")
"""Of version 6, perhaps with a zone (RFC 4007, 11.2). No other letters: what stands behind them would go to another server."""


@dataclass(frozen=True, slots=True)
class VsphereLogin:
    """A vCenter or an ESXi host, and who logs in there.

    Attributes:
        host: its name or address; an IPv6 address without brackets.
        username: such as ``administrator@vsphere.local``.
        password: never shown, nor in errors or logs.
        insecure: take its certificate whatever it says, as ``GOVC_INSECURE`` does.
        ca_file: PEM file of the authorities to trust in place of the system's; several are separated by ``:``, as govc has it.
        datacenter: where a location names none; empty: the only one that the server has.
    """

    host: str
    port: int = PORT
    username: str = ""
    password: str = field(default="", repr=False)
    insecure: bool = False
    ca_file: str = ""
    datacenter: str = ""

    @property
    def address(self) -> str:
        """The server as URLs have it: ``host``, with its port unless that is 443."""
        return format_address(self.host, self.port)


def at_server(login: VsphereLogin | None, host: str, port: int, username: str) -> VsphereLogin:
    """The login, but at this server, and of this user if one is named."""
    if login is None:
        return VsphereLogin(host, port, username)
    return replace(login, host=host, port=port, username=username or login.username)


def format_address(host: str, port: int) -> str:
    """``host`` or ``host:port`` as URLs have it."""
    shown = f"[{host}]" if ":" in host else host
    return shown if port == PORT else f"{shown}:{port}"


def parse_address(text: str, whole: str) -> tuple[str, int]:
    """The host and port of ``host``, ``host:port``, ``[v6]`` or ``[v6]:port``.

    Args:
        whole: what ``text`` is a part of, for errors.

    Raises:
        InvalidError: it is none of these.
    """
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise InvalidError(f"{whole}: {text!r} is no host with a port")
        separator, digits = rest[:1], rest[1:]
    else:
        host, separator, digits = text.partition(":")
    if not host:
        raise InvalidError(f"{whole}: has no host")
    if not (_ADDRESS if text.startswith("[") else _HOST).fullmatch(host):
        raise InvalidError(f"{whole}: {host!r} is no host")
    if not separator:
        return host, PORT
    if not (digits.isascii() and digits.isdigit()) or not 0 < int(digits[:6]) < 1 << 16:
        raise InvalidError(f"{whole}: port {digits!r} is not a number from 1 to 65535")
    return host, int(digits)
