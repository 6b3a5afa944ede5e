"""Who may ask: web pages may not, whatever name of this machine they go by.

A browser sends requests to ``127.0.0.1`` on behalf of any page, and DNS can give an address of ours to a name of theirs (DNS rebinding).
Both show in the headers. Who may open the Unix socket, and whose certificate is good, others have checked before.
"""

from __future__ import annotations

import ipaddress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from imgstore.docker_api.errors import error_response


class Guard:
    """Answers 403 to requests that a web page made, and to those for a host that is none of ours.

    Args:
        allowed_hosts: names that the Host header may have beside addresses and ``localhost``, in lower case.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: frozenset[str]) -> None:
        self._app = app
        self._allowed_hosts = allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reason = self._objection(scope, Headers(scope=scope)) if scope["type"] == "http" else None
        app = self._app if reason is None else error_response(403, reason)
        await app(scope, receive, send)

    def _objection(self, scope: Scope, headers: Headers) -> str | None:
        if "origin" in headers or headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return "requests of web pages are not answered"
        # No page reaches a Unix socket, where clients send what they like. With TLS the client has checked the name, our certificate.
        if scope["scheme"] == "https" or scope["server"] is None or scope["server"][1] is None:
            return None
        names = headers.getlist("host")
        if len(names) == 1 and is_own_host(names[0], self._allowed_hosts):
            return None
        return f"the Host header names {', '.join(map(repr, names)) or 'nothing'}, which this endpoint is not; --allowed-host allows a name"


def is_own_host(header: str, allowed_hosts: frozenset[str]) -> bool:
    """Whether a Host header is an address, ``localhost``, or among ``allowed_hosts``; the port does not matter.

    Nobody but us decides what an address or ``localhost`` means, so none of these can be rebound.
    """
    host, bracket, port = header.rpartition("]") if header.startswith("[") else ("", "", header)
    if bracket:
        return (not port or port.startswith(":")) and _is_address(host.removeprefix("["))
    name = header.partition(":")[0].lower().removesuffix(".")
    return name == "localhost" or name in allowed_hosts or _is_address(name)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
