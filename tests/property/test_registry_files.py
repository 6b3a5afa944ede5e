"""Any bytes in the files that say how to reach registries give endpoints or a typed error."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hypothesis import given
from hypothesis import strategies as st

from registry_client.errors import InvalidError, RegistryError
from registry_client.hosts import parse_host
from registry_client.hosts_toml import parse_hosts
from registry_client.options import Options, Places, Policy
from registry_client.policy import check_policy
from registry_client.reference import Reference
from registry_client.registries_conf import find_registry, parse_registries_conf
from registry_client.registry_table import parse_registry_table
from registry_client.routes import find_endpoints, tls_settings

PATH = Path("/etc/file")
LOCATIONS = [
    "r.io",
    "r.io:5000",
    "*.io",
    "r.io/team",
    "docker.io",
    "docker.io/library",
    "m.io:5000/x",
    "[::1]:5000",
    "10.0.0.0/8",
]
URLS = ["http://r.io", "https://m.io/a/../b", "/v2", "a/b/c", "@", "../..", ":443"]
WORDS = ["pull", "resolve", "digest-only", "tag-only", "all", "3s", "1h"]
TEXTS = st.sampled_from([*LOCATIONS, *URLS, *WORDS])
SCALARS = TEXTS | st.booleans() | st.integers(-5, 5) | st.text(max_size=8)
LISTS = st.lists(SCALARS, max_size=3)


def tables(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Tables with any of these keys, mostly with what belongs there."""
    named = {key.replace("_", "-"): value | SCALARS for key, value in keys.items()}
    return st.fixed_dictionaries({}, optional=named)


MIRRORS = tables(location=TEXTS, insecure=st.booleans(), pull_from_mirror=TEXTS)
CONFIGURED = tables(
    prefix=TEXTS,
    location=TEXTS,
    insecure=st.booleans(),
    blocked=st.booleans(),
    mirror_by_digest_only=st.booleans(),
    mirror=st.lists(MIRRORS, max_size=2),
)
HOSTS = st.fixed_dictionaries(
    {},
    optional={
        "capabilities": LISTS,
        "ca": TEXTS | LISTS,
        "client": TEXTS | LISTS | st.lists(LISTS, max_size=2),
        "skip_verify": st.booleans(),
        "header": st.dictionaries(st.text(max_size=5), TEXTS | LISTS, max_size=2),
        "override_path": st.booleans(),
        "dial_timeout": TEXTS,
    },
)
OWN = tables(
    insecure=st.booleans(), ca=TEXTS, client_certificate=TEXTS, client_key=TEXTS, proxy=TEXTS, mirrors=LISTS, realms=LISTS
)
REGISTRIES_CONF = st.fixed_dictionaries({"registry": st.lists(CONFIGURED, max_size=3)}) | st.fixed_dictionaries(
    {"registries": st.dictionaries(st.sampled_from(["block", "insecure", "search"]), tables(registries=LISTS), max_size=2)}
)
HOSTS_TOML = st.builds(lambda top, hosts: top | {"host": hosts}, HOSTS, st.dictionaries(TEXTS, HOSTS, max_size=3)) | HOSTS
CONFIG = st.fixed_dictionaries(
    {}, optional={"registry": st.dictionaries(TEXTS, OWN, max_size=3), "policy": tables(allow=LISTS, deny=LISTS)}
)
REGISTRIES = st.sampled_from(["r.io", "r.io:443", "r.io:5000", "a.r.io", "docker.io", "localhost:5000", "[::1]:5000", "10.1.2.3"])


def toml(value: Any) -> str:
    """A value as inline TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value).replace("\x7f", "\\u007f")


def document(values: dict[str, Any]) -> bytes:
    return "".join(f"{json.dumps(key)} = {toml(value)}\n" for key, value in values.items()).encode()


@given(st.binary(max_size=200) | REGISTRIES_CONF.map(document), REGISTRIES, st.booleans())
def test_registries_conf(data: bytes, registry: str, is_drop_in: bool) -> None:
    with suppress(RegistryError):
        registries = parse_registries_conf(data, PATH, is_drop_in=is_drop_in)
        found = find_registry(registries, registry, "team/app")
        if found is not None:
            configured, name = found
            for location in (configured.location, *(mirror.location for mirror in configured.mirrors)):
                with suppress(RegistryError):
                    host, repository = configured.rewrite(name, location)
                    assert Reference.parse(f"{host}/{repository}").repository == repository


@given(st.binary(max_size=200) | HOSTS_TOML.map(document))
def test_hosts_toml(data: bytes) -> None:
    with suppress(RegistryError):
        for host in parse_hosts(data, PATH):
            assert not host.api.endswith("/")
            if host.host is not None:
                assert parse_host(host.host) is not None
                parts = urlsplit(f"{host.schemes[0]}://{host.host}{host.api}/")
                assert (parts.netloc, parts.path, parts.query) == (host.host, f"{host.api}/", "")


@given(CONFIG)
def test_our_own_tables(values: dict[str, Any]) -> None:
    with suppress(InvalidError):
        registries, policy = parse_registry_table(values, Path("/etc"), "config")
        with suppress(RegistryError):
            options = Options(places=Places(), registries=registries, policy=policy)
            assert not find_endpoints("r.io", "team/app", options)[-1].is_mirror


@given(st.text(max_size=20) | TEXTS, st.text(max_size=20) | TEXTS)
def test_hosts_and_entries(host: str, entry: str) -> None:
    with suppress(RegistryError):
        check_policy(host, "a", Policy(deny=(entry,)))
    with suppress(RegistryError):
        tls_settings(host, Options(places=Places(certs_d=(PATH,)), insecure_registries=frozenset({entry})))
