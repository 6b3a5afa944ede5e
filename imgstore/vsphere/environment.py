"""What govc's variables say: the server, who logs in, and the datacenter. Pure: only ``imgstore.cli`` reads the real environment.

Source: govmomi, ``govc/README.md``, and ``govc/flags/client.go`` for what each may hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import unquote

from imgstore.errors import InvalidError
from imgstore.vsphere.locations import DatastoreLocation, VmLocation
from imgstore.vsphere.login import VsphereLogin, parse_address

URL = "GOVC_URL"
USERNAME = "GOVC_USERNAME"
PASSWORD = "GOVC_PASSWORD"  # noqa: S105  # the name of a variable
INSECURE = "GOVC_INSECURE"
CA_CERTS = "GOVC_TLS_CA_CERTS"
DATACENTER = "GOVC_DATACENTER"

_TRUE = ("1", "t", "true")
_FALSE = ("", "0", "f", "false")


def read_login(environment: Mapping[str, str]) -> VsphereLogin:
    """The login of the variables; its host is empty without ``GOVC_URL``.

    ``GOVC_USERNAME`` and ``GOVC_PASSWORD`` come before a user and a password in ``GOVC_URL``.

    Raises:
        InvalidError: a variable makes no sense; the message never has its value where that may hold a password.
    """
    login = _parse_url(environment.get(URL, ""))
    insecure = environment.get(INSECURE, "").lower()
    if insecure not in _TRUE + _FALSE:
        raise InvalidError(f"{INSECURE}: {insecure!r} is neither true nor false")
    return replace(
        login,
        username=environment.get(USERNAME) or login.username,
        password=environment.get(PASSWORD) or login.password,
        insecure=insecure in _TRUE,
        ca_file=environment.get(CA_CERTS, ""),
        datacenter=environment.get(DATACENTER, "").removeprefix("/"),
    )


def login_for(location: DatastoreLocation | VmLocation, environment: Mapping[str, str]) -> VsphereLogin:
    """The login to a location's server. A user and a password in ``GOVC_URL`` are those of that server, and go to no other.

    Raises:
        InvalidError: as `read_login`.
    """
    login = read_login(environment)
    if (login.host.casefold(), login.port) != (location.host.casefold(), location.port):
        login = replace(login, username=environment.get(USERNAME, ""), password=environment.get(PASSWORD, ""))
    return location.login(login)


def _parse_url(url: str) -> VsphereLogin:
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "https", url
    if scheme != "https":
        shown = f"scheme {scheme!r}: " if scheme.isalpha() else ""
        raise InvalidError(f"{URL}: {shown}vSphere is reached by https only")
    authority, _, path = rest.partition("/")
    if "@" in path:
        raise InvalidError(f"{URL}: has an @ behind a /", hint="in a user name or a password, write %2F for /")
    user, _, address = authority.rpartition("@")
    username, _, password = user.partition(":")
    if not address:
        if authority or separator:
            raise InvalidError(f"{URL}: has no host")
        return VsphereLogin("")
    host, port = parse_address(address, URL)
    return VsphereLogin(host, port, unquote(username), unquote(password))
