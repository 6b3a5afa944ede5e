"""The same registries.conf and certs.d lead skopeo and us to the same servers, in the same order, by the same schemes.

But for the last test no server is needed: skopeo says with ``--debug`` what it is about to do, and a proxy that refuses everything
makes it go on.
"""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from registry_client.errors import DeniedError, MalformedError, RegistryError
from registry_client.options import Options, Places
from registry_client.reference import Reference
from registry_client.routes import find_endpoints, find_primary
from registry_client.source import open_source
from tests import tools
from tests.servers.authority import Authority
from tests.servers.docker_registry import docker_registry
from tests.servers.images import digest_of

NO_PROXY = "http://127.0.0.1:9"
DIGEST = digest_of(b"any")


@dataclass
class Attempt:
    """A server that skopeo tried: ``registry/repository``, the schemes in their order, and the files that it read for TLS."""

    name: str
    schemes: tuple[str, ...] = ()
    files: list[str] = field(default_factory=list)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    (path / ".config/containers/registries.conf.d").mkdir(parents=True)
    return path


def skopeo(home: Path, conf: Path, *command: str) -> tuple[list[Attempt], str]:
    """What skopeo tries, and its last words."""
    tools.need("skopeo")
    proxies = [f"HTTP_PROXY={NO_PROXY}", f"HTTPS_PROXY={NO_PROXY}", "NO_PROXY="]
    done = tools.run(
        "env", f"HOME={home}", *proxies, "skopeo", "--debug", "--registries-conf", conf, *command, check=False
    )  # fmt: skip
    assert done.returncode != 0
    lines = done.stderr.decode().replace('\\"', '"').splitlines()
    attempts: list[Attempt] = []
    for line in lines:
        if found := re.search(r'msg="Trying to access "([^"]+)"', line):
            attempts.append(Attempt(re.sub(r"@.*|:[^:/]*$", "", found[1])))
        elif found := re.search(r'msg="GET (https?)://[^/]+/v2/"', line):
            attempts[-1].schemes += (found[1],)
        elif found := re.search(r'msg=" (?:crt|cert): ([^"]+)"', line):
            attempts[-1].files.append(found[1])
    return attempts, lines[-1]


def ours(home: Path, conf: Path, text: str) -> list[Attempt]:
    containers = home / ".config/containers"
    drop_ins = (Path("/etc/containers/registries.conf.d"), containers / "registries.conf.d")
    certs_d = (containers / "certs.d", Path("/etc/containers/certs.d"), Path("/etc/docker/certs.d"))
    options = Options(places=Places((conf, *drop_ins), certs_d))
    reference = Reference.parse(text)
    by_digest = reference.digest is not None
    endpoints = find_endpoints(reference.registry, reference.repository, options, by_digest=by_digest)
    return [
        Attempt(
            f"{endpoint.registry}/{endpoint.repository}",
            endpoint.schemes,
            [str(path) for path in (*endpoint.tls.ca_files, *(pair[0] for pair in endpoint.tls.client_certificates))],
        )
        for endpoint in endpoints
        if (endpoint.serves_digests if by_digest else endpoint.serves_tags)
    ]


CONFIGURATIONS = {
    "empty": "",
    "mirrors": """
        [[registry]]
        prefix = "r.invalid"
        location = "r.invalid"
        [[registry.mirror]]
        location = "m1.invalid:5000/cache/r"
        [[registry.mirror]]
        location = "m2.invalid"
        insecure = true
        """,
    "location": """
        [[registry]]
        prefix = "r.invalid/team"
        location = "new.invalid:8443/old/team/"
        insecure = true
        [[registry]]
        prefix = "r.invalid/team/app"
        location = "app.invalid/moved"
        [[registry]]
        location = "r.invalid"
        insecure = true
        """,
    "hub": """
        unqualified-search-registries = ["quay.invalid"]
        short-name-mode = "enforcing"
        credential-helpers = ["containers-auth.json"]
        [aliases]
        "app" = "quay.invalid/app"
        [[registry]]
        prefix = "docker.io/library"
        location = "m.invalid/hub"
        [[registry]]
        prefix = "docker.io"
        location = "docker.io"
        [[registry.mirror]]
        location = "mirror.invalid"
        """,
    "by digest alone": """
        [[registry]]
        location = "r.invalid"
        mirror-by-digest-only = true
        [[registry.mirror]]
        location = "m.invalid/a"
        """,
    "pull from mirror": """
        [[registry]]
        location = "r.invalid"
        [[registry.mirror]]
        location = "tags.invalid"
        pull-from-mirror = "tag-only"
        [[registry.mirror]]
        location = "digests.invalid"
        pull-from-mirror = "digest-only"
        [[registry.mirror]]
        location = "all.invalid"
        pull-from-mirror = "all"
        """,
    "subdomains": """
        [[registry]]
        prefix = "*.invalid"
        [[registry.mirror]]
        location = "m.invalid:5000/sub"
        [[registry]]
        prefix = "*.b.invalid"
        location = "c.invalid/b"
        insecure = true
        """,
    "the first of a prefix counts": """
        [[registry]]
        prefix = "r.invalid"
        location = "one.invalid"
        [[registry]]
        prefix = "r.invalid"
        location = "two.invalid"
        """,
    "names in capitals": """
        [[Registry]]
        Location = "r.invalid"
        INSECURE = true
        """,
    "unknown keys": """
        colour = "green"
        [[registry]]
        location = "r.invalid"
        insecure = true
        colour = 2024-01-01
        """,
    "blocked": '[[registry]]\nlocation = "r.invalid/team"\nblocked = true\n',
    "version 1": """
        [registries.search]
        registries = ["docker.io"]
        [registries.insecure]
        registries = ["r.invalid", "new.invalid:5000"]
        [registries.block]
        registries = ["a.b.invalid"]
        """,
    "versions mixed": '[registries.insecure]\nregistries = ["r.invalid"]\n[[registry]]\nlocation = "x.invalid"\n',
    "scheme": '[[registry]]\nlocation = "https://r.invalid"\n',
    "no location": '[[registry]]\nprefix = "r.invalid"\n',
    "nothing": "[[registry]]\ninsecure = true\n",
    "wildcard with a path": '[[registry]]\nprefix = "*.invalid/team"\nlocation = "r.invalid"\n',
    "wrong type": '[[registry]]\nlocation = "r.invalid"\ninsecure = "yes"\n',
    "mirror without location": '[[registry]]\nlocation = "r.invalid"\n[[registry.mirror]]\ninsecure = true\n',
    "unknown pull-from-mirror": (
        '[[registry]]\nlocation = "r.invalid"\n[[registry.mirror]]\nlocation = "m.invalid"\npull-from-mirror = "sometimes"\n'
    ),
    "pull-from-mirror twice": (
        '[[registry]]\nlocation = "r.invalid"\nmirror-by-digest-only = true\n'
        '[[registry.mirror]]\nlocation = "m.invalid"\npull-from-mirror = "all"\n'
    ),
    "pull-from-mirror of a registry": '[[registry]]\nlocation = "r.invalid"\npull-from-mirror = "all"\n',
    "insecure and not": (
        '[[registry]]\nprefix = "a.invalid"\nlocation = "r.invalid"\ninsecure = true\n[[registry]]\nlocation = "r.invalid"\n'
    ),
    "broken": "[[registry]\n",
    "rewritten to nothing": '[[registry]]\nprefix = "r.invalid/team/app"\nlocation = "new.invalid"\n',
    "rewritten to a short name": '[[registry]]\nprefix = "r.invalid/team"\nlocation = "docker.io"\n',
}
REFERENCES = [
    "r.invalid/team/app:1",
    f"r.invalid/team/app@{DIGEST}",
    "r.invalid/teams:1",
    "r.invalid:5000/team/app:1",
    "a.b.invalid:8443/x/y:1",
    "b.invalid.example.invalid/x:1",
    "docker.io/library/app:1",
    "docker.io/team/app:1",
]


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_skopeo_goes_the_same_way(name: str, home: Path, tmp_path: Path) -> None:
    conf = tmp_path / "registries.conf"
    conf.write_text(CONFIGURATIONS[name])
    for reference in REFERENCES:
        theirs, words = skopeo(home, conf, "inspect", "--raw", f"docker://{reference}")
        if any(attempt.schemes for attempt in theirs):
            assert ours(home, conf, reference) == theirs, reference
        else:
            with pytest.raises((DeniedError, MalformedError)) as caught:
                ours(home, conf, reference)
            assert str(conf) in str(caught.value)
            assert isinstance(caught.value, DeniedError) == ("is blocked in" in words)


def test_drop_ins(home: Path, tmp_path: Path) -> None:
    conf, directory = tmp_path / "registries.conf", home / ".config/containers/registries.conf.d"
    conf.write_text(
        '[[registry]]\nlocation = "r.invalid"\ninsecure = true\n[[registry]]\nlocation = "b.invalid"\ninsecure = true\n'
    )
    (directory / "20.conf").write_text('[[registry]]\nprefix = "r.invalid"\nlocation = "second.invalid"\n')
    (directory / "10.conf").write_text('[[registry]]\nprefix = "r.invalid"\nlocation = "first.invalid"\ninsecure = true\n')
    (directory / "30.config").write_text("[[[ not read")
    (directory / "sub.conf").mkdir()
    (directory / "sub.conf/40.conf").write_text("[[[ not read")
    for reference in ["r.invalid/app:1", "b.invalid/app:1"]:
        assert ours(home, conf, reference) == skopeo(home, conf, "inspect", f"docker://{reference}")[0]
    assert [attempt.name for attempt in ours(home, conf, "r.invalid/app:1")] == ["second.invalid/app"]
    (directory / "50.conf").write_text('[registries.insecure]\nregistries = ["r.invalid"]\n')
    assert "must be in v2 format" in skopeo(home, conf, "inspect", "docker://r.invalid/app:1")[1]
    with pytest.raises(MalformedError, match=r"50\.conf"):
        ours(home, conf, "r.invalid/app:1")


def test_pushes_and_lists_of_tags_are_not_rewritten(home: Path, tmp_path: Path) -> None:
    conf = tmp_path / "registries.conf"
    conf.write_text(CONFIGURATIONS["location"])
    tools.need("skopeo")
    environment = [f"HOME={home}", f"HTTP_PROXY={NO_PROXY}", f"HTTPS_PROXY={NO_PROXY}"]
    done = tools.run(
        "env", *environment, "skopeo", "--debug", "--registries-conf", conf, "list-tags", "docker://r.invalid/team/app", check=False
    )  # fmt: skip
    theirs = re.findall(r"msg=\"GET (https?)://([^/]+)/v2/\"", done.stderr.decode())
    primary = find_primary("r.invalid", "team/app", Options(places=Places((conf,))))
    assert [(scheme, primary.host) for scheme in primary.schemes] == theirs


def write_all(directory: Path, *names: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        (directory / name).touch()


def test_certificates(home: Path, tmp_path: Path) -> None:
    conf, certs_d = tmp_path / "registries.conf", home / ".config/containers/certs.d"
    conf.write_text('[[registry]]\nlocation = "r.invalid"\n[[registry.mirror]]\nlocation = "m.invalid:5000/x"\n')
    write_all(certs_d / "r.invalid", "b.crt", "a.crt", "README", "c.crt.old")
    write_all(certs_d / "m.invalid:5000", "m.crt")
    write_all(certs_d / "m.invalid", "not-this.crt")
    write_all(certs_d / "docker.io", "hub.crt")
    for reference in ["r.invalid/app:1", "m.invalid/app:1", "m.invalid:5000/app:1", "docker.io/team/app:1"]:
        theirs = skopeo(home, conf, "inspect", f"docker://{reference}")[0]
        assert ours(home, conf, reference) == theirs
    assert [len(attempt.files) for attempt in ours(home, conf, "r.invalid/app:1")] == [1, 2]


@pytest.mark.parametrize(("name", "words"), [("me.cert", "missing key me.key"), ("me.key", "missing client certificate me.cert")])
def test_half_a_pair(name: str, words: str, home: Path, tmp_path: Path) -> None:
    conf = tmp_path / "registries.conf"
    conf.touch()
    write_all(home / ".config/containers/certs.d/r.invalid", name)
    assert words in skopeo(home, conf, "inspect", "docker://r.invalid/app:1")[1]
    with pytest.raises(RegistryError, match=words):
        ours(home, conf, "r.invalid/app:1")


def test_both_pull_through_a_mirror_that_asks_for_certificates(home: Path, tmp_path: Path) -> None:
    authority, conf = Authority(tmp_path / "authority"), tmp_path / "registries.conf"
    containers = home / ".config/containers"
    options = Options(places=Places((conf,), (containers / "certs.d",)))
    with docker_registry(tmp_path / "registry", tls=authority.server, client_ca=authority.ca_file) as registry:
        conf.write_text(
            '[[registry]]\nprefix = "r.invalid/team"\nlocation = "r.invalid/team"\n'
            f'[[registry.mirror]]\nlocation = "{registry.host}/copies/of"\n'
        )
        certificates = containers / "certs.d" / registry.host
        certificates.mkdir(parents=True)
        with closing(open_source("r.invalid/team/app:1", options=options)) as source, pytest.raises(RegistryError):
            source.resolve(None)
        (certificates / "ca.crt").write_bytes(authority.ca_file.read_bytes())
        for path, name in zip(authority.client, ["me.cert", "me.key"], strict=True):
            (certificates / name).write_bytes(path.read_bytes())
        words = ["env", f"HOME={home}", "skopeo", "--registries-conf", conf]
        copy = f"docker://{registry.host}/copies/of/app:1"
        tools.run(*words, "copy", "oci:testdata/three-layers:latest", copy)
        manifest = tools.run(*words, "inspect", "--raw", "docker://r.invalid/team/app:1").stdout
        with closing(open_source("r.invalid/team/app:1", options=options)) as source:
            image = source.resolve(None)
            assert image.manifest_document is not None and image.manifest_document.data == manifest
