"""hosts.toml: where containerd (and docker with containerd's image store) finds a registry and its mirrors.

Sources: containerd ``docs/hosts.md`` and ``core/remotes/docker/config/hosts.go``. Unlike containerd, which logs a broken file and goes on
as if it were not there, we refuse it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from registry_client.endpoint import HTTP, HTTPS, TlsSettings
from registry_client.errors import DeniedError, MalformedError
from registry_client.hosts import list_spellings, parse_host
from registry_client.strict_json import Fields
from registry_client.strict_toml import fold, parse_toml, read_file

FILE_NAME = "hosts.toml"
DEFAULT_DIRECTORY = "_default"
HOSTS_MAX = 100
FILES_MAX = 100
HEADERS_MAX = 100
DIAL_TIMEOUT_MAX = 3600.0

_NOTHING_SAID = TlsSettings()
_CAPABILITIES = frozenset({"pull", "resolve", "push", "referrers"})
_PATH = re.compile(r"(?:/[A-Za-z0-9._~%@:+!$&'()*,;=-]+)*")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_HEADER_VALUE = re.compile(r"[\x20-\x7e\x80-\xff\t]*")
_DURATION = re.compile(r"\+?(?:[0-9]{1,9}(?:\.[0-9]{0,9})?(?:ns|us|µs|μs|ms|s|m|h))+")
_DURATION_PART = re.compile(r"([0-9.]+)(ns|us|µs|μs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class ConfiguredHost:
    """A ``[host."…"]``, or what the top of the file says of the registry itself.

    Attributes:
        host: ``host[:port]``; None: no server is named, so it is the registry itself.
        schemes: empty if there is no host.
        api: path of the API's root.
        connect_timeout: seconds, or None.
    """

    host: str | None
    schemes: tuple[str, ...] = ()
    api: str = "/v2"
    capabilities: frozenset[str] = _CAPABILITIES
    tls: TlsSettings = _NOTHING_SAID
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    connect_timeout: float | None = None


def find_hosts(registry: str, directories: Sequence[Path]) -> tuple[ConfiguredHost, ...]:
    """What the file for a registry says: mirrors in their order, and the registry or its ``server`` last; empty if there is no file.

    The directory of the registry is called ``host_port_``, ``host:port`` or ``host``; the file of a directory ``_default`` counts
    where there is none for the registry.

    Raises:
        MalformedError: the file is broken.
        DeniedError: it may not be read.
    """
    names = tuple(dict.fromkeys(name for spelled in list_spellings(registry) for name in _directory_names(spelled)))
    defaults: list[Path] = []
    for directory in directories:
        own = next((directory / name for name in names if _is_directory(directory / name)), None)
        found = None if own is None else read_file(own / FILE_NAME)
        if own is not None and found is not None:
            return parse_hosts(found, own / FILE_NAME)
        if own is None:
            defaults.append(directory / DEFAULT_DIRECTORY / FILE_NAME)
    for path in defaults:
        found = read_file(path)
        if found is not None:
            return parse_hosts(found, path)
    return ()


def parse_hosts(data: bytes, path: Path) -> tuple[ConfiguredHost, ...]:
    """Reads a file: its hosts in their order, and its top last.

    Args:
        path: its name; relative paths in it begin at its directory.

    Raises:
        MalformedError: it is broken: names the host and the key.
    """
    fields = parse_toml(data, str(path))
    hosts: list[ConfiguredHost] = []
    if "host" in fields:
        tables = fields.nested("host")
        if len(tables.values) > HOSTS_MAX:
            raise MalformedError(f"{path}: {len(tables.values)} hosts, more than {HOSTS_MAX}")
        for number, (url, table) in enumerate(tables.values.items(), 1):
            what = f"{path}: host {number}"
            hosts.append(_parse_host(url, fold(Fields(table, what)), path.parent))
    return (*hosts, _parse_host(fields.string("server", ""), fields, path.parent))


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except PermissionError as error:
        raise DeniedError(f"{path}: {error.strerror}") from None
    except OSError:  # a name too long for a file
        return False


def _directory_names(host: str) -> Iterator[str]:
    name, colon, port = host.rpartition(":")
    if colon and port.isdecimal():
        yield f"{name}_{port}_"
    yield host


def _parse_host(url: str, fields: Fields, directory: Path) -> ConfiguredHost:
    tls = TlsSettings(
        ca_files=tuple(_locate(name, fields, directory) for name in _list_strings(fields, "ca")),
        client_certificates=tuple(_parse_client(fields, directory)),
        verify=not fields.boolean("skip_verify"),
    )
    configured = ConfiguredHost(
        host=None,
        capabilities=_parse_capabilities(fields),
        tls=tls,
        headers=_parse_headers(fields),
        connect_timeout=_parse_timeout(fields),
    )
    if not url:
        return configured
    parts = _split_url(url, fields.what)
    # containerd takes any word on TLS for a wish to have it, where the port leaves that open.
    wants_tls = parts.scheme == HTTP and parts.port != 80 and any(key in fields for key in ("ca", "client", "skip_verify"))
    schemes = (HTTPS, HTTP) if wants_tls else (parts.scheme,)
    return replace(configured, host=parts.netloc, schemes=schemes, api=_parse_path(parts.path, fields))


def _split_url(url: str, what: str) -> SplitResult:
    # Only these words of the URL are safe to show: it may hold a password.
    try:
        parts = urlsplit(url if "://" in url else f"https://{url}")
        host = parse_host(parts.netloc)
    except ValueError:
        raise MalformedError(f"{what}: not a URL") from None
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise MalformedError(f"{what}: the URL has more than scheme, host, port and path")
    if parts.scheme not in (HTTP, HTTPS) or host is None or host.port > 65535:
        raise MalformedError(f"{what}: {parts.scheme[:16]}://{parts.netloc[:255]} is not http:// or https:// and a host")
    return parts


def _parse_path(path: str, fields: Fields) -> str:
    path = posixpath.normpath(f"/{path.lstrip('/')}").rstrip("/")
    if _PATH.fullmatch(path) is None:
        raise MalformedError(f"{fields.what}: the path {path[:128]!r} has a character that does not belong in a URL")
    if fields.boolean("override_path") or path.endswith("/v2"):
        return path
    return f"{path}/v2"


def _parse_capabilities(fields: Fields) -> frozenset[str]:
    chosen = frozenset(text.lower() for text in fields.strings("capabilities", maximum=16))
    if unknown := sorted(chosen - _CAPABILITIES):
        raise MalformedError(f"{fields.what}: capabilities: {unknown[0][:64]!r} is unknown")
    return chosen or _CAPABILITIES


def _list_strings(fields: Fields, key: str) -> list[str]:
    """One string, or a list of them."""
    if isinstance(fields.values.get(key), str):
        return [fields.string(key)]
    return fields.strings(key, maximum=FILES_MAX)


def _parse_client(fields: Fields, directory: Path) -> Iterator[tuple[Path, Path]]:
    """Pairs of certificate and key; one name, or an empty second one, is a file with both."""
    values = fields.values.get("client")
    for value in [values] if isinstance(values, str) else fields.items("client", maximum=FILES_MAX):
        pair = [value, ""] if isinstance(value, str) else value
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(name, str) for name in pair):
            raise MalformedError(f"{fields.what}: client is not a file, a list of files, or a list of [certificate, key]")
        certificate, key = pair
        yield _locate(certificate, fields, directory), _locate(key or certificate, fields, directory)


def _locate(name: str, fields: Fields, directory: Path) -> Path:
    if not name or "\0" in name:
        raise MalformedError(f"{fields.what}: {name[:64]!r} is no name of a file")
    return directory / name


def _parse_headers(fields: Fields) -> tuple[tuple[str, str], ...]:
    if "header" not in fields:
        return ()
    table = fields.nested("header")
    headers = [(name, value) for name in table.values for value in _list_strings(table, name)]
    if len(headers) > HEADERS_MAX:
        raise MalformedError(f"{table.what}: {len(headers)} headers, more than {HEADERS_MAX}")
    for name, value in headers:
        # The value may be a secret.
        if _HEADER_NAME.fullmatch(name) is None or _HEADER_VALUE.fullmatch(value) is None:
            raise MalformedError(f"{table.what}: {name[:128]!r} or its value cannot be sent")
    return tuple(headers)


def _parse_timeout(fields: Fields) -> float | None:
    """Go's duration (``1m30s``) in seconds; None for zero, which means no limit of its own."""
    text = fields.string("dial_timeout", "")
    if text in ("", "0"):
        return None
    if _DURATION.fullmatch(text) is None:
        raise MalformedError(f"{fields.what}: dial_timeout is {text[:64]!r}, not a duration like 3s")
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(text))
    if seconds > DIAL_TIMEOUT_MAX:
        raise MalformedError(f"{fields.what}: dial_timeout is {text[:64]!r}, more than {DIAL_TIMEOUT_MAX:.0f} seconds")
    return seconds or None
