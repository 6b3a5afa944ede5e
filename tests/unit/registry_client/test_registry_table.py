"""Our own tables of registries."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from registry_client.errors import InvalidError
from registry_client.options import Policy, RegistryOptions
from registry_client.registry_table import parse_registry_table

HOME = Path("/etc/imgstore")


def parse(text: str) -> tuple[dict[str, RegistryOptions], Policy]:
    return parse_registry_table(tomllib.loads(text), HOME, "config.toml")


def test_all_keys() -> None:
    assert parse("""
        [registry."harbor.example.com"]
        insecure = true
        ca = "harbor.crt"
        client-certificate = "/me.crt"
        client-key = "me.key"
        proxy = "http://user:password@proxy.example.com:3128"
        mirrors = ["m.example.com:5000/cache", "n.example.com"]
        realms = ["login.example.com", "10.0.0.1:8443"]
        [registry."docker.io/library"]
        proxy = ""
        [registry."r.io"]
        [policy]
        allow = ["*.example.com", "10.0.0.0/8"]
        deny = ["harbor.example.com/untrusted"]
        [another]
        table = "is somebody else's"
        """) == (
        {
            "harbor.example.com": RegistryOptions(
                True,
                HOME / "harbor.crt",
                Path("/me.crt"),
                HOME / "me.key",
                "http://user:password@proxy.example.com:3128",
                ("m.example.com:5000/cache", "n.example.com"),
                ("login.example.com", "10.0.0.1:8443"),
            ),
            "docker.io/library": RegistryOptions(proxy=""),
            "r.io": RegistryOptions(),
        },
        Policy(("*.example.com", "10.0.0.0/8"), ("harbor.example.com/untrusted",)),
    )
    assert parse("") == ({}, Policy())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[registry."r.io"]\ncolour = 1', r'config.toml: \[registry."r.io"\]: \'colour\' is unknown; known are ca, client-cert'),
        ('[registry."r.io"]\ninsecure = "yes"', r'\[registry."r.io"\]: insecure is a string, not a boolean'),
        ('[registry."r.io"]\nmirrors = "m.io"', "mirrors is a string, not a list"),
        ('[registry."r.io"]\nmirrors = [1]', r"mirrors\[0\] is a number, not a string"),
        ('[registry."r.io"]\nmirrors = ["https://m.io"]', "config.toml: registry 'r.io': mirror 'https://m.io': has a scheme"),
        ('[registry."r.io"]\nca = ""', "ca: '' is no name of a file"),
        ('[registry."r.io"]\nclient-key = "k"', "a client key without a client certificate"),
        ('[registry."r.io"]\nrealms = ["a b"]', "realm 'a b' is no host"),
        ('[registry."*"]', r"config.toml: registry '\*': '\*' is no host"),
        ("registry = 1", "registry: a number, not an object"),
        ('registry = {"r.io" = 1}', r'\[registry."r.io"\]: a number, not an object'),
        ("[policy]\nallows = []", "policy: 'allows' is unknown; known are allow, deny"),
        ("[policy]\nallow = [2024-01-01]", r"policy: allow\[0\] is a date, not a string"),
        ('[policy]\ndeny = ["10.0.0.0/33"]', "config.toml: policy: deny: '10.0.0.0/33' is no network"),
    ],
)
def test_errors_name_table_and_key(text: str, words: str) -> None:
    with pytest.raises(InvalidError, match=words) as caught:
        parse(text)
    assert str(caught.value).startswith("config.toml: ")


@pytest.mark.parametrize("proxy", ["proxy:3128", "ftp://u:canary@p", "http://:3128", "http://u:canary@p:port"])
def test_a_proxy_that_is_none_is_not_printed(proxy: str) -> None:
    with pytest.raises(InvalidError, match="proxy is no URL of a proxy") as caught:
        parse(f'[registry."r.io"]\nproxy = "{proxy}"')
    assert proxy not in str(caught.value)
