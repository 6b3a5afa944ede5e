"""Names of what is on vSphere: directories of datastores, and virtual machines.

``vsphere://[USER@]HOST[:PORT]/DATACENTER/DATASTORE/path`` names all of it. Its components are percent-encoded where they have
characters of other meaning (``%2F`` in a datacenter: that is then its path in the inventory, with the folders above it); spaces may
stay as they are. ``ds://DATASTORE/path`` and vSphere's own ``[DATASTORE] path`` leave the server, and perhaps the datacenter, to a login.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

from imgstore.errors import InvalidError
from imgstore.vsphere.login import VsphereLogin, at_server, format_address, parse_address

SCHEME = "vsphere"

_NO_PASSWORD = "set GOVC_PASSWORD"  # noqa: S105  # the name of a variable

_SAFE = "+,:=@!$&'()*;~"
"""What else than letters, digits and ``-._`` stays as it is in a component of a URL (RFC 3986, 3.3: pchar)."""

_NO_XML = re.compile("[^ -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Letters that no call of the API can hold (XML 1.0, 2.2), and line ends and tabs, which do not come through as they are."""

_DATASTORE_PATH = re.compile(r"\[(?P<datastore>[^\[\]]+)\] ?(?P<path>.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class DatastoreLocation:
    """A directory of a datastore.

    Attributes:
        datacenter: its name, or its path in the inventory; empty: the only one that the server has.
        path: components joined by ``/``; empty for the root of the datastore.
        username: who logs in; empty if the location does not say.
    """

    host: str
    port: int
    datacenter: str
    datastore: str
    path: str
    username: str = ""

    @property
    def url(self) -> str:
        """The whole of it as ``vsphere://``."""
        components = [self.datacenter, self.datastore, *filter(None, self.path.split("/"))]
        return _url(self.username, self.host, self.port, components)

    def login(self, login: VsphereLogin | None) -> VsphereLogin:
        """The login to its server: its own server and user, with all else of ``login``."""
        return at_server(login, self.host, self.port, self.username)

    def is_same(self, other: DatastoreLocation) -> bool:
        """Whether both name one directory, as far as names tell: without a datacenter it is the only one that there is."""
        ours, theirs = ((each.host.casefold(), each.port, each.datastore, each.path) for each in (self, other))
        return ours == theirs and (self.datacenter == other.datacenter or "" in (self.datacenter, other.datacenter))


@dataclass(frozen=True, slots=True)
class VmLocation:
    """A virtual machine.

    Attributes:
        datacenter: its name, or its path in the inventory; empty: the only one that the server has.
        path: its name, or its path below the datacenter's folder ``vm``.
        username: who logs in; empty if the location does not say.
    """

    host: str
    port: int
    datacenter: str
    path: str
    username: str = ""

    @property
    def url(self) -> str:
        """The whole of it as ``vsphere://``."""
        return _url(self.username, self.host, self.port, [self.datacenter, "vm", *self.path.split("/")])

    def login(self, login: VsphereLogin | None) -> VsphereLogin:
        """The login to its server: its own server and user, with all else of ``login``."""
        return at_server(login, self.host, self.port, self.username)


def parse_datastore(text: str, login: VsphereLogin | None = None) -> DatastoreLocation:
    """The directory of a datastore that ``vsphere://``, ``ds://`` or ``[DATASTORE] path`` names.

    Args:
        login: the server and datacenter of a name that does not say them.

    Raises:
        InvalidError: it is no such name, or names no server and ``login`` has none.
    """
    if text.startswith(f"{SCHEME}://"):
        username, host, port, components = _parse_url(text)
        if len(components) < 2 or not components[1]:
            raise InvalidError(f"{text}: names no datastore", hint="vsphere://HOST/DATACENTER/DATASTORE/path")
        datacenter, datastore, *path = components
    else:
        username, host, port, datacenter = _server_of(text, login)
        if text.startswith("ds://"):
            # govc writes ds:///vmfs/volumes/... too, a path on one host: that has no name here
            datastore, *path = _decode(text, text.removeprefix("ds://").split("/"))
        elif found := _DATASTORE_PATH.fullmatch(text):
            datastore, path = found["datastore"], found["path"].split("/")
        else:
            raise InvalidError(f"{text}: is no place on a datastore", hint="vsphere://HOST/DATACENTER/DATASTORE/path")
        if not datastore:
            raise InvalidError(f"{text}: names no datastore")
    _check_name(text, datastore)
    _check_name(text, datacenter)
    return DatastoreLocation(host, port, datacenter, datastore, _path(text, path), username)


def parse_vm(text: str, login: VsphereLogin | None = None) -> VmLocation:
    """The virtual machine that ``vsphere://HOST/DATACENTER/vm/NAME`` names, or a name or path in the inventory, as govc takes them.

    Args:
        login: the server of a name that does not say it, and the datacenter of one without it.

    Raises:
        InvalidError: it is no such name, or names no server and ``login`` has none.
    """
    if text.startswith(f"{SCHEME}://"):
        username, host, port, components = _parse_url(text)
        datacenter, *path = components
        if path[:1] == ["vm"]:
            del path[0]
    else:
        username, host, port, datacenter = _server_of(text, login)
        path = text.split("/")
        if text.startswith("/"):
            if "vm" not in path[2:]:
                raise InvalidError(f"{text}: names no virtual machine", hint="/DATACENTER/vm/NAME")
            at = path.index("vm", 2)
            datacenter, path = "/".join(path[1:at]), path[at + 1 :]
    if not _path(text, path):
        raise InvalidError(f"{text}: names no virtual machine", hint="vsphere://HOST/DATACENTER/vm/NAME")
    _check_name(text, datacenter)
    return VmLocation(host, port, datacenter, _path(text, path), username)


def _server_of(text: str, login: VsphereLogin | None) -> tuple[str, str, int, str]:
    if login is None or not login.host:
        raise InvalidError(f"{text}: names no server", hint="set GOVC_URL, or write vsphere://HOST/DATACENTER/...")
    return login.username, login.host, login.port, login.datacenter


def _parse_url(url: str) -> tuple[str, str, int, list[str]]:
    """The user, host, port and decoded components, at least one."""
    authority, _, path = url.partition("://")[2].partition("/")
    user, _, address = authority.rpartition("@")
    shown = f"{SCHEME}://{address}/{path}"
    if ":" in user:
        raise InvalidError(f"{shown}: a password has no place in a URL", hint=_NO_PASSWORD)
    if "@" in path and ":" in address and not address.startswith("[") and not address.rpartition(":")[2].isdigit():
        behind = path.rpartition("@")[2]
        raise InvalidError(f"{SCHEME}://...@{behind}: what stands before the @ is no user name", hint=_NO_PASSWORD)
    if any(mark in path for mark in "?#"):
        raise InvalidError(f"{shown}: has a ? or #", hint="write %3F for ? and %23 for #")
    host, port = parse_address(address, shown)
    [username] = _decode(shown, [user])
    _check_name(shown, username)
    return username, host, port, _decode(shown, path.split("/"))


def _decode(whole: str, components: list[str]) -> list[str]:
    try:
        return [unquote_to_bytes(component).decode() for component in components]
    except UnicodeError as error:
        raise InvalidError(f"{whole}: is not UTF-8 where its percent-encoding is undone") from error


def _path(whole: str, components: list[str]) -> str:
    """The components without empty ones."""
    kept = [component for component in components if component]
    for component in kept:
        if component in (".", "..") or "/" in component:
            raise InvalidError(f"{whole}: component {component!r} is not a name")
        _check_name(whole, component)
    return "/".join(kept)


def _check_name(whole: str, name: str) -> None:
    if _NO_XML.search(name):
        raise InvalidError(f"{whole}: {name!r} is not a name: it has letters that are no text")


def _url(username: str, host: str, port: int, components: list[str]) -> str:
    user = f"{quote(username, safe='')}@" if username else ""
    encoded = "/".join(quote(component, safe=_SAFE) for component in components)
    return f"{SCHEME}://{user}{format_address(host, port)}/{encoded}"
