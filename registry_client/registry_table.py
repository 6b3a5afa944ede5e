"""Our own configuration of registries, as it stands in a TOML file::

[registry."harbor.example.com"]
ca = "harbor.crt"
client-certificate = "me.crt"
client-key = "me.key"
proxy = "http://proxy.example.com:3128"     # "" for none
mirrors = ["mirror.example.com:5000/harbor"]
realms = ["login.example.com"]
insecure = false

[policy]
allow = ["harbor.example.com", "*.corp.example.com", "10.0.0.0/8"]
deny = ["harbor.example.com/untrusted"]
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from registry_client.errors import InvalidError, MalformedError
from registry_client.options import Policy, RegistryOptions
from registry_client.policy import check_policy_entries
from registry_client.registry_options import check_registries
from registry_client.strict_json import Fields

REGISTRIES_MAX = 10_000
LIST_MAX = 10_000

_REGISTRY_KEYS = frozenset({"insecure", "ca", "client-certificate", "client-key", "proxy", "mirrors", "realms"})
_POLICY_KEYS = frozenset({"allow", "deny"})
_PROXY_SCHEMES = frozenset({"http", "https", "socks5", "socks5h"})


def parse_registry_table(tables: Mapping[str, object], directory: Path, what: str) -> tuple[dict[str, RegistryOptions], Policy]:
    """Reads the tables ``registry`` and ``policy``; other tables are not looked at.

    Args:
        tables: the decoded file.
        directory: where relative paths begin.
        what: name of the file, for messages.

    Raises:
        InvalidError: an unknown key, a wrong type, or a value that makes no sense; names the table and the key.
    """
    fields = Fields(dict(tables), what)
    try:
        registries = _parse_registries(fields, directory) if "registry" in fields else {}
        policy = _parse_policy(fields.nested("policy")) if "policy" in fields else Policy()
        check_registries(registries)
        check_policy_entries(policy)
    except MalformedError as error:
        raise InvalidError(str(error)) from None
    except InvalidError as error:
        raise InvalidError(f"{what}: {error}") from None
    return registries, policy


def _parse_registries(fields: Fields, directory: Path) -> dict[str, RegistryOptions]:
    tables = fields.nested("registry").values
    if len(tables) > REGISTRIES_MAX:
        raise MalformedError(f"{fields.what}: {len(tables)} registries, more than {REGISTRIES_MAX}")
    return {
        name: _parse_registry(Fields(table, f'{fields.what}: [registry."{name}"]'), directory) for name, table in tables.items()
    }


def _parse_registry(table: Fields, directory: Path) -> RegistryOptions:
    _refuse_unknown(table, _REGISTRY_KEYS)
    proxy = table.string("proxy", "") if "proxy" in table else None
    if proxy and not _is_proxy(proxy):
        # It may hold a password, so it is not shown.
        raise MalformedError(f"{table.what}: proxy is no URL of a proxy (http://host:port)")
    return RegistryOptions(
        insecure=table.boolean("insecure"),
        ca_file=_path(table, "ca", directory),
        client_certificate=_path(table, "client-certificate", directory),
        client_key=_path(table, "client-key", directory),
        proxy=proxy,
        mirrors=tuple(table.strings("mirrors", maximum=LIST_MAX)),
        realms=tuple(table.strings("realms", maximum=LIST_MAX)),
    )


def _parse_policy(table: Fields) -> Policy:
    _refuse_unknown(table, _POLICY_KEYS)
    return Policy(
        allow=tuple(table.strings("allow", maximum=LIST_MAX)),
        deny=tuple(table.strings("deny", maximum=LIST_MAX)),
    )


def _refuse_unknown(table: Fields, known: frozenset[str]) -> None:
    for key in table.values:
        if key not in known:
            raise MalformedError(f"{table.what}: {key[:64]!r} is unknown; known are {', '.join(sorted(known))}")


def _path(table: Fields, key: str, directory: Path) -> Path | None:
    if key not in table:
        return None
    text = table.string(key)
    if not text or "\0" in text:
        raise MalformedError(f"{table.what}: {key}: {text[:64]!r} is no name of a file")
    return directory / text


def _is_proxy(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in _PROXY_SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
