"""Routes: which servers are asked for a repository, in what order, and how they are reached."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from registry_client.endpoint import Endpoint, TlsSettings
from registry_client.errors import DeniedError, InvalidError, MalformedError
from registry_client.options import Options, Places, Policy, RegistryOptions
from registry_client.routes import find_endpoints, find_primary, tls_settings

NOWHERE = Places()
BOTH = ("https", "http")


class Files:
    """Places below one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.conf = root / "registries.conf"
        self.places = Places((self.conf,), (root / "certs.d",), (root / "hosts",))

    def hosts(self, registry: str, text: str) -> None:
        path = self.root / "hosts" / registry / "hosts.toml"
        path.parent.mkdir(parents=True)
        path.write_text(text)

    def certs(self, host: str, *names: str) -> Path:
        path = self.root / "certs.d" / host
        path.mkdir(parents=True)
        for name in names:
            (path / name).touch()
        return path

    def options(self, **values: Any) -> Options:
        return Options(places=self.places, **values)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def names(endpoints: tuple[Endpoint, ...]) -> list[str]:
    return [f"{endpoint.host}/{endpoint.repository}" for endpoint in endpoints]


def own(**registries: RegistryOptions) -> Options:
    return Options(places=NOWHERE, registries={name.replace("_", "."): value for name, value in registries.items()})


def test_nothing_is_configured() -> None:
    options = Options(places=NOWHERE)
    assert find_endpoints("r.io:5000", "a", options) == (Endpoint("r.io:5000", "r.io:5000", "a"),)
    assert find_endpoints("docker.io", "library/a", options) == (Endpoint("docker.io", "registry-1.docker.io", "library/a"),)
    assert find_primary("r.io", "a", options) == Endpoint("r.io", "r.io", "a")
    assert tls_settings("elsewhere.io:8443", options) == TlsSettings()


@pytest.mark.parametrize("host", ["localhost", "localhost:5000", "127.0.0.1:5000", "127.9.9.9", "[::1]:5000", "[::1]"])
def test_this_machine_may_speak_http_but_https_is_verified(host: str) -> None:
    (endpoint,) = find_endpoints(host, "a", Options(places=NOWHERE))
    assert endpoint.schemes == BOTH and endpoint.tls.verify


@pytest.mark.parametrize(
    ("entry", "insecure", "secure"),
    [
        ("r.io:5000", ["r.io:5000"], ["r.io", "r.io:5001", "x.r.io:5000"]),
        ("r.io:443", ["r.io", "r.io:443"], ["r.io:5000"]),
        ("r.io", ["r.io", "r.io:5000", "R.io:443"], ["x.r.io"]),
        ("10.0.0.0/8", ["10.1.2.3", "10.1.2.3:5000"], ["11.0.0.1", "ten.example.com"]),
        ("docker.io", ["registry-1.docker.io", "docker.io"], ["r.io"]),
    ],
)
def test_insecure_registries(entry: str, insecure: list[str], secure: list[str]) -> None:
    options = Options(places=NOWHERE, insecure_registries=frozenset({entry}))
    for host in insecure:
        endpoint = find_primary(host, "a", options)
        assert endpoint.schemes == BOTH and not endpoint.tls.verify
        assert not tls_settings(host, options).verify
    for host in secure:
        endpoint = find_primary(host, "a", options)
        assert endpoint.schemes == ("https",) and endpoint.tls.verify


@pytest.mark.parametrize("entry", ["*", "*.io", "http://r.io", "r.io/team", "10.0.0.0/99", ""])
def test_insecure_is_never_for_all(entry: str) -> None:
    with pytest.raises(InvalidError):
        find_primary("r.io", "a", Options(places=NOWHERE, insecure_registries=frozenset({entry})))


def test_own_options(tmp_path: Path) -> None:
    ca, certificate, key = tmp_path / "ca", tmp_path / "cert", tmp_path / "key"
    options = replace(
        own(
            r_io=RegistryOptions(True, ca, certificate, key, "http://proxy:3128", ("m.io:5000/cache", "docker.io/copies", "n.io"))
        ),
        ca_file=tmp_path / "all",
    )
    mirror, copies, plain, primary = find_endpoints("r.io", "team/app", options)
    everywhere = TlsSettings((tmp_path / "all",))
    assert mirror == Endpoint("m.io:5000", "m.io:5000", "cache/team/app", tls=everywhere, is_mirror=True)
    assert copies == Endpoint("docker.io", "registry-1.docker.io", "copies/team/app", tls=everywhere, is_mirror=True)
    assert plain == Endpoint("n.io", "n.io", "team/app", tls=everywhere, is_mirror=True)
    assert primary == Endpoint(
        "r.io",
        "r.io",
        "team/app",
        BOTH,
        TlsSettings((tmp_path / "all", ca), ((certificate, key),), False),
        proxy="http://proxy:3128",
    )
    assert find_primary("r.io", "team/app", options) == primary


def test_mirrors_have_options_of_their_own() -> None:
    options = own(
        r_io=RegistryOptions(mirrors=("m.io/cache",)),
        **{"m_io/cache": RegistryOptions(insecure=True, proxy=""), "m_io/other": RegistryOptions(proxy="http://wrong")},
    )
    mirror, primary = find_endpoints("r.io", "app", options)
    assert (mirror.schemes, mirror.tls.verify, mirror.proxy) == (BOTH, False, "")
    assert (primary.schemes, primary.tls.verify, primary.proxy) == (("https",), True, None)


def test_the_longest_key_counts() -> None:
    registries = {
        "r.io": RegistryOptions(proxy="host"),
        "r.io/team": RegistryOptions(proxy="team"),
        "r.io:443/team/app": RegistryOptions(proxy="app"),
        "docker.io": RegistryOptions(proxy="hub"),
        "docker.io/library": RegistryOptions(proxy="library"),
        "registry-1.docker.io": RegistryOptions(proxy="typed"),
    }
    options = Options(places=NOWHERE, registries=registries)
    for host, repository, proxy in [
        ("r.io", "x", "host"),
        ("r.io", "teams", "host"),
        ("r.io:443", "team", "team"),
        ("r.io", "team/app", "app"),
        ("r.io", "team/app/deep", "app"),
        ("r.io:5000", "team/app", None),
        ("docker.io", "library/x", "library"),
        ("docker.io", "a/x", "hub"),
        ("registry-1.docker.io", "a/x", "typed"),
    ]:
        assert find_primary(host, repository, options).proxy == proxy


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("https://r.io", RegistryOptions(), "registry 'https://r.io': has a scheme"),
        ("r.io/", RegistryOptions(), "no beginning of a repository's name"),
        ("r.io/a:tag", RegistryOptions(), "no beginning of a repository's name"),
        ("*.io", RegistryOptions(), "is no host"),
        ("r.io", RegistryOptions(mirrors=("http://m.io",)), "mirror 'http://m.io': has a scheme"),
        ("r.io", RegistryOptions(mirrors=("m.io/A",)), "mirror 'm.io/A'"),
        ("r.io", RegistryOptions(realms=("a/b",)), "realm 'a/b' is no host"),
        ("r.io", RegistryOptions(client_key=Path("k")), "a client key without a client certificate"),
    ],
)
def test_own_options_that_make_no_sense(key: str, value: RegistryOptions, words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        find_endpoints("other.io", "a", Options(places=NOWHERE, registries={key: value}))


def test_registries_conf(files: Files) -> None:
    files.conf.write_text(
        '[[registry]]\nprefix = "r.io/team"\nlocation = "moved.io/t"\n'
        '[[registry.mirror]]\nlocation = "m.io:5000/cache"\ninsecure = true\n'
        '[[registry.mirror]]\nlocation = "tags.io"\npull-from-mirror = "tag-only"\n'
        '[[registry.mirror]]\nlocation = "digests.io"\npull-from-mirror = "digest-only"\n'
    )
    mirror = Endpoint("m.io:5000", "m.io:5000", "cache/app", BOTH, TlsSettings(verify=False), is_mirror=True)
    tags = Endpoint("tags.io", "tags.io", "app", is_mirror=True)
    digests = Endpoint("digests.io", "digests.io", "app", serves_tags=False, is_mirror=True)
    primary = Endpoint("moved.io", "moved.io", "t/app")
    assert find_endpoints("r.io", "team/app", files.options()) == (mirror, tags, digests, primary)
    assert find_endpoints("r.io", "team/app", files.options(), by_digest=True) == (mirror, digests, primary)
    assert find_endpoints("r.io", "x", files.options()) == (Endpoint("r.io", "r.io", "x"),)
    assert find_primary("r.io", "team/app", files.options()) == Endpoint("r.io", "r.io", "team/app")


def test_blocked(files: Files) -> None:
    files.conf.write_text(
        '[[registry]]\nlocation = "bad.io"\nblocked = true\n[[registry.mirror]]\nlocation = "m.io"\n'
        '[[registry]]\nprefix = "moved.io"\nlocation = "bad.io"\nblocked = true\n'
        '[[registry]]\nlocation = "r.io"\n[[registry.mirror]]\nlocation = "bad.io/x"\n[[registry.mirror]]\nlocation = "good.io"\n'
        '[[registry]]\nprefix = "bad.io:5000"\nlocation = "bad.io:5000"\n'
    )
    for host in ["bad.io", "bad.io:443", "BAD.io", "moved.io"]:
        with pytest.raises(DeniedError, match=f"registry (bad|moved).io is blocked in {files.conf}"):
            find_endpoints(host, "a", files.options())
        with pytest.raises(DeniedError):
            find_primary(host, "a", files.options(registries={host: RegistryOptions(mirrors=("m.io",))}))
    assert names(find_endpoints("r.io", "a", files.options())) == ["good.io/a", "r.io/a"]
    assert names(find_endpoints("bad.io:5000", "a", files.options())) == ["bad.io:5000/a"]


def test_hosts_toml(files: Files) -> None:
    files.hosts(
        "docker.io",
        'server = "https://registry-1.docker.io"\n'
        '[host."https://public.io/hub"]\ncapabilities = ["pull"]\ndial_timeout = "2s"\nca = "public.crt"\n'
        '[host."http://10.0.0.1:5000"]\n[host."http://10.0.0.1:5000".header]\nx-one = "1"\n'
        '[host."https://docker.io"]\nskip_verify = true\n',
    )
    ca = files.root / "hosts/docker.io/public.crt"
    public, plain, again, hub = find_endpoints("docker.io", "library/a", files.options())
    assert public == Endpoint(
        "public.io",
        "public.io",
        "library/a",
        tls=TlsSettings((ca,)),
        api="/hub/v2",
        namespace="docker.io",
        connect_timeout=2.0,
        serves_tags=False,
        is_mirror=True,
    )
    assert plain == Endpoint(
        "10.0.0.1:5000", "10.0.0.1:5000", "library/a", ("http",), namespace="docker.io", headers=(("x-one", "1"),), is_mirror=True
    )
    assert again == Endpoint("docker.io", "registry-1.docker.io", "library/a", tls=TlsSettings(verify=False), is_mirror=True)
    assert hub == Endpoint("docker.io", "registry-1.docker.io", "library/a")
    assert find_primary("docker.io", "library/a", files.options()) == hub


def test_the_server_of_hosts_toml_takes_pushes_if_it_may(files: Files) -> None:
    files.hosts("r.io", 'server = "https://s.io:8443/base"\n[host."https://m.io"]\n')
    files.hosts("q.io", 'server = "https://s.io"\ncapabilities = ["pull", "resolve"]\n')
    server = find_primary("r.io", "a", files.options())
    assert server == Endpoint("s.io:8443", "s.io:8443", "a", api="/base/v2", namespace="r.io")
    assert find_endpoints("r.io", "a", files.options())[-1] == server
    assert names(find_endpoints("q.io", "a", files.options())) == ["s.io/a"]
    assert find_primary("q.io", "a", files.options()) == Endpoint("q.io", "q.io", "a")


def test_who_beats_whom(files: Files) -> None:
    files.hosts("r.io", '[host."https://from-hosts.io"]\n')
    assert names(find_endpoints("r.io", "a", files.options())) == ["from-hosts.io/a", "r.io/a"]
    files.conf.write_text('[[registry]]\nlocation = "r.io"\n')  # says nothing
    assert names(find_endpoints("r.io", "a", files.options())) == ["from-hosts.io/a", "r.io/a"]
    files.conf.write_text('[[registry]]\nlocation = "r.io"\ninsecure = true\n[[registry.mirror]]\nlocation = "from-conf.io"\n')
    assert names(find_endpoints("r.io", "a", files.options())) == ["from-conf.io/a", "r.io/a"]
    options = files.options(registries={"r.io": RegistryOptions(mirrors=("ours.io",))})
    endpoints = find_endpoints("r.io", "a", options)
    assert names(endpoints) == ["ours.io/a", "r.io/a"]
    assert endpoints[-1].schemes == BOTH  # what we leave open, the file says
    options = files.options(registries={"r.io": RegistryOptions(proxy="")})
    assert names(find_endpoints("r.io", "a", options)) == ["from-conf.io/a", "r.io/a"]


def test_certificates(files: Files) -> None:
    r, m = files.certs("r.io", "ca.crt", "me.cert", "me.key"), files.certs("m.io:5000", "m.crt")
    files.conf.write_text('[[registry]]\nlocation = "r.io"\n[[registry.mirror]]\nlocation = "m.io:5000"\n')
    mirror, primary = find_endpoints("r.io", "a", files.options())
    assert mirror.tls == TlsSettings((m / "m.crt",)) == tls_settings("m.io:5000", files.options())
    assert (
        primary.tls == TlsSettings((r / "ca.crt",), ((r / "me.cert", r / "me.key"),)) == tls_settings("r.io:443", files.options())
    )


def test_a_chosen_directory_is_for_the_registry_alone(files: Files) -> None:
    chosen, r, m = files.certs("chosen", "ca.crt"), files.certs("r.io", "r.crt"), files.certs("m.io", "m.crt")
    options = files.options(cert_dir=chosen, registries={"r.io": RegistryOptions(mirrors=("m.io",))})
    mirror, primary = find_endpoints("r.io", "a", options)
    assert (mirror.tls.ca_files, primary.tls.ca_files) == ((m / "m.crt",), (chosen / "ca.crt",))
    assert find_primary("r.io:443", "", options).tls.ca_files == (chosen / "ca.crt",)
    assert tls_settings("r.io", options).ca_files == (r / "r.crt",)
    with pytest.raises(InvalidError, match="missing"):
        find_primary("r.io", "a", files.options(cert_dir=files.root / "missing"))


def test_own_client_certificates_are_shown_in_the_place_of_others(files: Files) -> None:
    files.certs("r.io", "me.cert", "me.key")
    files.hosts("q.io", 'client = "theirs.pem"\n')
    theirs, pem = files.root / "hosts/q.io/theirs.pem", files.root / "own.pem"
    options = files.options(registries={"r.io": RegistryOptions(client_certificate=pem)})
    assert find_primary("r.io", "a", options).tls.client_certificates == ((pem, pem),)
    assert find_primary("q.io", "a", options).tls.client_certificates == ((theirs, theirs),)


def test_policy(files: Files) -> None:
    mirrored = {"r.io": RegistryOptions(mirrors=("m.io/cache", "bad.io"))}
    options = files.options(registries=mirrored, policy=Policy(deny=("bad.io",)))
    assert names(find_endpoints("r.io", "a", options)) == ["m.io/cache/a", "r.io/a"]
    options = files.options(registries=mirrored, policy=Policy(allow=("r.io", "m.io/other")))
    assert names(find_endpoints("r.io", "a", options)) == ["r.io/a"]
    with pytest.raises(DeniedError, match=r"\(docker.io\) while VCH is in whitelist mode"):
        find_endpoints("docker.io", "library/a", options)
    files.conf.write_text('[[registry]]\nprefix = "r.io"\nlocation = "bad.io"\n')
    with pytest.raises(DeniedError, match=r"\(bad.io\): it is on the deny list"):
        find_endpoints("r.io", "a", files.options(policy=Policy(deny=("bad.io",))))
    files.hosts("q.io", 'server = "https://bad.io"\n')
    for find in (find_endpoints, find_primary):
        with pytest.raises(DeniedError, match=r"\(bad.io\): it is on the deny list"):
            find("q.io", "a", files.options(policy=Policy(deny=("bad.io",))))


def test_broken_files(files: Files) -> None:
    files.conf.write_text("[[")
    for find in (find_endpoints, find_primary):
        with pytest.raises(MalformedError, match=r"registries\.conf"):
            find("r.io", "a", files.options())
    files.conf.write_text("")
    files.hosts("r.io", "[[")
    with pytest.raises(MalformedError, match=r"r\.io/hosts\.toml"):
        find_endpoints("r.io", "a", files.options())
    assert names(find_endpoints("other.io", "a", files.options())) == ["other.io/a"]


def test_secrets_are_not_printed(files: Files) -> None:
    files.hosts("r.io", '[header]\nauthorization = "Basic canary"\n')
    options = files.options(registries={"r.io": RegistryOptions(proxy="http://u:canary@proxy:1")})
    (endpoint,) = find_endpoints("r.io", "a", options)
    assert endpoint.proxy and endpoint.headers and "canary" not in repr(endpoint)


def test_usual_places(tmp_path: Path) -> None:
    user, system = tmp_path / ".config/containers", Path("/etc/containers")
    environment = {"HOME": str(tmp_path)}
    both = (system / "registries.conf.d", user / "registries.conf.d")
    assert Places.usual(environment).registries_conf == (system / "registries.conf", *both)
    assert Places.usual(environment | {"CONTAINERS_REGISTRIES_CONF": "/x"}).registries_conf == (Path("/x"), *both)
    user.mkdir(parents=True)
    (user / "registries.conf").touch()
    assert Places.usual(environment).registries_conf == (user / "registries.conf", user / "registries.conf.d")
    assert Places.usual(environment).certs_d == (user / "certs.d", system / "certs.d", Path("/etc/docker/certs.d"))
