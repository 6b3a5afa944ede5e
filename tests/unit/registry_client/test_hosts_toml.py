"""hosts.toml. That it means the same as for containerd is shown in tests/compat; here are TLS, errors and places."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry_client.endpoint import TlsSettings
from registry_client.errors import MalformedError
from registry_client.hosts_toml import ConfiguredHost, find_hosts, parse_hosts

PATH = Path("/etc/containerd/certs.d/r.io/hosts.toml")
ALL = frozenset({"pull", "resolve", "push", "referrers"})


def parse(text: str) -> tuple[ConfiguredHost, ...]:
    return parse_hosts(text.encode(), PATH)


def test_the_documented_example() -> None:
    pull = frozenset({"pull"})
    assert parse("""
        server = "https://test-default.registry"
        ca = "/etc/path/default"
        [header]
          x-custom-1 = "custom header"
        [host."https://mirror.registry"]
          capabilities = ["pull"]
          ca = "/etc/certs/mirror.pem"
          skip_verify = false
          [host."https://mirror.registry".header]
            x-custom-2 = ["value1", "value2"]
        [host."https://mirror-bak.registry/us"]
          capabilities = ["pull"]
          skip_verify = true
        [host."http://mirror.registry"]
          capabilities = ["pull"]
        [host."https://test-1.registry"]
          capabilities = ["pull", "resolve", "push"]
          ca = ["test-1-ca.pem", "/etc/certs/special.pem"]
          client = [["client.cert", "client.key"],["/etc/certs/client.pem", ""]]
        [host."https://test-2.registry"]
          client = "client.pem"
        [host."https://test-3.registry"]
          client = ["/client-1.pem", "/client-2.pem"]
        [host."https://non-compliant-mirror.registry/v2/upstream"]
          override_path = true
        [host."https://no-prefix.registry"]
          override_path = true
        [host."https://dial-timeout.registry"]
          dial_timeout = "1m1.5s"
        """) == (
        ConfiguredHost(
            "mirror.registry",
            ("https",),
            "/v2",
            pull,
            TlsSettings((Path("/etc/certs/mirror.pem"),)),
            (("x-custom-2", "value1"), ("x-custom-2", "value2")),
        ),
        ConfiguredHost("mirror-bak.registry", ("https",), "/us/v2", pull, TlsSettings(verify=False)),
        ConfiguredHost("mirror.registry", ("http",), "/v2", pull),
        ConfiguredHost(
            "test-1.registry",
            ("https",),
            "/v2",
            ALL - {"referrers"},
            TlsSettings(
                (PATH.parent / "test-1-ca.pem", Path("/etc/certs/special.pem")),
                (
                    (PATH.parent / "client.cert", PATH.parent / "client.key"),
                    (Path("/etc/certs/client.pem"), Path("/etc/certs/client.pem")),
                ),
            ),
        ),
        ConfiguredHost("test-2.registry", ("https",), tls=TlsSettings((), ((PATH.parent / "client.pem",) * 2,))),
        ConfiguredHost(
            "test-3.registry",
            ("https",),
            tls=TlsSettings((), tuple((Path(f"/client-{n}.pem"),) * 2 for n in (1, 2))),  # type: ignore[misc]
        ),
        ConfiguredHost("non-compliant-mirror.registry", ("https",), "/v2/upstream"),
        ConfiguredHost("no-prefix.registry", ("https",), ""),
        ConfiguredHost("dial-timeout.registry", ("https",), connect_timeout=61.5),
        ConfiguredHost(
            "test-default.registry",
            ("https",),
            tls=TlsSettings((Path("/etc/path/default"),)),
            headers=(("x-custom-1", "custom header"),),
        ),
    )


def test_words_on_tls_make_http_try_https_first() -> None:
    # The example "Bypass TLS Verification" of containerd's documentation; containerd does so since 1.7.
    for line in ["skip_verify = true", "skip_verify = false", 'ca = "x"', 'client = "x"']:
        for url, schemes in [
            ("http://10.0.0.1:5000", ("https", "http")),
            ("http://m.io", ("https", "http")),
            ("http://m.io:80", ("http",)),
        ]:
            assert parse(f'[host."{url}"]\n{line}\n')[0].schemes == schemes


def test_an_empty_file_is_the_registry_itself() -> None:
    assert parse("") == (ConfiguredHost(None),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[host", "not valid TOML"),
        ("host = 1", "host: a number, not an object"),
        ('[host]\n"https://m.io" = 1', "host 1: a number, not an object"),
        ('[host."https://m.io"]\ncapabilities = ["fly"]', "host 1: capabilities: 'fly' is unknown"),
        ('[host."https://m.io"]\ncapabilities = "pull"', "host 1: capabilities is a string, not a list"),
        ('[host."https://m.io"]\nskip_verify = "yes"', "host 1: skip_verify is a string"),
        ('[host."https://m.io"]\nca = 1', "host 1: ca is a number"),
        ('[host."https://m.io"]\nca = "a\\u0000b"', "no name of a file"),
        ('[host."https://m.io"]\nclient = [["a"]]', "host 1: client is not a file"),
        ('[host."https://m.io"]\ndial_timeout = "soon"', "host 1: dial_timeout is 'soon'"),
        ('[host."https://m.io"]\ndial_timeout = "2h"', "more than 3600 seconds"),
        ('[host."https://m.io".header]\nx = "a\\r\\nb: c"', "host 1: header: 'x' or its value cannot be sent"),
        ('[host."https://m.io".header]\n"x y" = "a"', "cannot be sent"),
        ('[host."ftp://m.io"]', "ftp://m.io is not http:// or https://"),
        ('[host."https://m.io/a b"]', "has a character that does not belong"),
        ('[host."https://m.io?x=y"]', "more than scheme, host, port and path"),
        ('server = "https://"', "is not http:// or https:// and a host"),
        ('server = "https://m.io:99999"', "is not http:// or https:// and a host"),
        ('server = "https://[::1"', "not a URL"),
        ("server = 1", "server is a number, not a string"),
        ("".join(f'[host."https://m{n}.io"]\n' for n in range(101)), "101 hosts, more than 100"),
    ],
)
def test_errors_name_file_host_and_key(text: str, words: str) -> None:
    with pytest.raises(MalformedError, match=words) as caught:
        parse(text)
    assert str(caught.value).startswith(str(PATH))


def test_errors_hold_no_secrets() -> None:
    for text in ['server = "https://u:canary@m.io"', '[host."https://u:canary@m.io"]', '[header]\nauthorization = "canary\\n"']:
        with pytest.raises(MalformedError) as caught:
            parse(text)
        assert "canary" not in str(caught.value)
    assert "canary" not in repr(parse('[header]\nauthorization = "canary"'))


def write(directory: Path, mirror: str) -> None:
    directory.mkdir(parents=True)
    (directory / "hosts.toml").write_text(f'[host."https://{mirror}"]\n')


def test_places(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    places = [first, second, tmp_path / "missing"]
    assert find_hosts("r.io", places) == ()
    write(first / "_default", "default.io")
    assert find_hosts("r.io", places)[0].host == "default.io"
    write(second / "r.io_443_", "second.io")
    assert find_hosts("r.io", places)[0].host == "second.io"
    write(first / "r.io:443", "first.io")
    assert find_hosts("r.io", places)[0].host == "first.io"
    assert find_hosts("r.io:5000", places)[0].host == "default.io"
    write(second / "registry-1.docker.io", "hub.io")
    assert find_hosts("docker.io", places)[0].host == "hub.io"
    assert find_hosts("a" * 255, places)[0].host == "default.io"


def test_docker_certificates_do_not_hide_the_default_of_another_place(tmp_path: Path) -> None:
    write(tmp_path / "containerd/_default", "default.io")
    (tmp_path / "docker/r.io").mkdir(parents=True)
    assert find_hosts("r.io", [tmp_path / "docker", tmp_path / "containerd"])[0].host == "default.io"
    (tmp_path / "containerd/r.io").mkdir()
    assert find_hosts("r.io", [tmp_path / "docker", tmp_path / "containerd"]) == ()
