"""Mirrors, however they are configured: asked in their order, given up when they fail, and trusted with nothing that is the registry's."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from registry_client import server
from registry_client.client import RepositoryClient
from registry_client.credentials import Credential
from registry_client.errors import DigestMismatchError, NotFoundError, ServerError, UnreachableError
from registry_client.options import Options, Places, Policy, RegistryOptions
from registry_client.platform import Platform
from registry_client.retry import RetryPolicy
from registry_client.server import Connections
from registry_client.source import open_source
from tests.servers.faults import ALWAYS
from tests.servers.images import BuiltImage
from tests.servers.registry import Fault, Registry

AMD64 = Platform.parse("linux/amd64")
LAYER = random.Random(9).randbytes(300_000)
PASSWORD = "canary-password"


@dataclass
class Mirrored:
    """A registry with two mirrors, all of which have the same image."""

    registry: Registry
    mirrors: list[Registry]
    image: BuiltImage
    options: Options
    said: list[str] = field(default_factory=list)

    @property
    def names(self) -> dict[str, str]:
        return {self.mirrors[0].host: "first", self.mirrors[1].host: "second", self.registry.host: "registry"}

    def asked(self, pattern: str) -> list[str]:
        """Which servers were asked, one after the other within each."""
        return [
            name
            for place, name in zip([*self.mirrors, self.registry], self.names.values(), strict=True)
            for _ in place.paths(pattern)
        ]

    def forget(self) -> None:
        for place in [*self.mirrors, self.registry]:
            place.requests.clear()
        self.said.clear()

    def pull(self, connections: Connections | None = None) -> bytes:
        with closing(open_source(f"{self.registry.host}/team/app:1", self.options, connections)) as source:
            image = source.resolve(AMD64)
            assert image.digest == self.image.digest
            return b"".join(source.open_blob(image.layers[0]))


def by_own_options(directory: Path, registry: str, mirrors: list[str]) -> Options:
    return Options(registries={registry: RegistryOptions(mirrors=tuple(mirrors))}, places=Places())


def by_registries_conf(directory: Path, registry: str, mirrors: list[str]) -> Options:
    tables = [f'[[registry]]\nlocation = "{registry}"\ninsecure = true\n']
    tables += [f'[[registry.mirror]]\nlocation = "{mirror}"\ninsecure = true\n' for mirror in mirrors]
    (directory / "registries.conf").write_text("".join(tables))
    return Options(places=Places(registries_conf=(directory / "registries.conf",)))


def by_hosts_toml(directory: Path, registry: str, mirrors: list[str]) -> Options:
    (directory / registry).mkdir()
    tables = [f'[host."http://{mirror}"]\ncapabilities = ["pull", "resolve"]\n' for mirror in mirrors]
    (directory / registry / "hosts.toml").write_text(f'server = "http://{registry}"\n' + "".join(tables))
    return Options(places=Places(hosts_toml=(directory,)))


Configure = Callable[[Path, str, list[str]], Options]


@pytest.fixture(params=[by_own_options, by_registries_conf, by_hosts_toml], ids=["own options", "registries.conf", "hosts.toml"])
def configure(request: pytest.FixtureRequest) -> Configure:
    chosen: Configure = request.param
    return chosen


@pytest.fixture
def mirrored(configure: Configure, tmp_path: Path) -> Iterator[Mirrored]:
    with ExitStack() as stack:
        registry = stack.enter_context(Registry(auth="basic", password=PASSWORD))
        mirrors = [stack.enter_context(Registry()) for _ in range(2)]
        for place in (registry, *mirrors):
            image = place.add_image("team/app", "1", [LAYER], compression="none")
        options = configure(tmp_path, registry.host, [mirror.host for mirror in mirrors])
        mirrored = Mirrored(registry, mirrors, image, options)
        mirrored.options = replace(
            options,
            credential=Credential(registry.username, PASSWORD),
            retry=RetryPolicy(tries=3, base=0.001),
            connect_timeout=2,
            read_timeout=2,
            on_fallback=mirrored.said.append,
        )
        yield mirrored


def test_the_first_mirror_is_asked_alone(mirrored: Mirrored) -> None:
    assert mirrored.pull() == LAYER
    assert set(mirrored.asked("")) == {"first"}
    assert mirrored.said == []


FAILURES = {
    "404": (Fault(status=404), 1),
    "401": (Fault(status=401, headers={"WWW-Authenticate": 'Basic realm="mirror"'}), 1),
    "403": (Fault(status=403), 1),
    "429": (Fault(status=429, headers={"Retry-After": "0"}), 2),
    "500": (Fault(status=500), 2),
    "hang-up": (Fault(hang_up=True), 2),
    "other digest": (Fault(headers={"Docker-Content-Digest": "sha256:" + 64 * "1"}), 1),
    "redirect-loop": (Fault(status=302, headers={"Location": "{path}"}), 6),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_what_fails_is_asked_of_the_next(mirrored: Mirrored, failure: str) -> None:
    """A mirror gets one more try for bad luck, and the order is kept; what it fails at is said."""
    fault, tries = FAILURES[failure]
    mirrored.mirrors[0].inject("/manifests/", fault, times=ALWAYS)
    assert mirrored.pull() == LAYER
    assert mirrored.asked("/manifests/") == ["first"] * tries + ["second"]
    assert len(mirrored.said) == 1
    assert mirrored.said[0].startswith(f"{mirrored.mirrors[0].host}: ")
    assert mirrored.said[0].endswith(f"; asking {mirrored.mirrors[1].host}")


def test_bytes_that_are_not_those_of_the_digest(mirrored: Mirrored) -> None:
    mirrored.mirrors[0].manifests["team/app", mirrored.image.digest] = b"{}", mirrored.image.media_type
    with RepositoryClient(mirrored.registry.host, "team/app", mirrored.options) as client:
        assert client.manifest(mirrored.image.digest).data == mirrored.image.manifest
    assert mirrored.asked("/manifests/") == ["first", "second"]
    assert "the 2 bytes received have sha256:" in mirrored.said[0]


def test_a_mirror_that_is_not_there(mirrored: Mirrored) -> None:
    mirrored.mirrors[0]._listeners[0].stop()
    assert mirrored.pull() == LAYER
    assert set(mirrored.asked("/manifests/")) == {"second"}
    assert "connection refused" in mirrored.said[0]
    assert len(mirrored.said) == 1, "it is left alone for the rest of the pull"


def test_a_cut_in_the_middle_goes_on_at_the_next_place(mirrored: Mirrored) -> None:
    """From the byte where it broke: what the first mirror gave is kept."""
    layer = f"/blobs/{mirrored.image.layer_digests[0]}"
    mirrored.mirrors[0].inject(layer, Fault(cut_after=100_000))
    mirrored.mirrors[0].inject(layer, Fault(status=500), times=ALWAYS)
    mirrored.mirrors[1].inject(layer, Fault(cut_after=50_000))
    mirrored.mirrors[1].inject(layer, Fault(status=404), times=ALWAYS)
    assert mirrored.pull() == LAYER
    assert mirrored.asked(layer)[-1] == "registry"
    ranges = [
        request.headers.get("Range")
        for place in [*mirrored.mirrors, mirrored.registry]
        for request in place.requests
        if layer in request.path and request.status in (200, 206)
    ]
    assert ranges == [None, "bytes=100000-", "bytes=150000-"]
    sent = sum(
        request.sent
        for place in [*mirrored.mirrors, mirrored.registry]
        for request in place.requests
        if layer in request.path and request.status in (200, 206)
    )
    assert sent == len(LAYER)
    assert len(mirrored.said) == 2


def test_wrong_bytes_of_a_blob_are_an_error(mirrored: Mirrored) -> None:
    """They are known at the end only, when most of them are handed out."""
    mirrored.mirrors[0].inject(f"/blobs/{mirrored.image.layer_digests[0]}", Fault(damage_at=5))
    with pytest.raises(DigestMismatchError):
        mirrored.pull()


def test_a_dead_mirror_rests(mirrored: Mirrored, monkeypatch: pytest.MonkeyPatch) -> None:
    mirrored.mirrors[0].inject("/manifests/", Fault(status=503), times=2)
    with Connections(mirrored.options) as connections:
        mirrored.pull(connections)
        assert mirrored.asked("/manifests/") == ["first", "first", "second"]
        mirrored.forget()
        mirrored.pull(connections)
        assert set(mirrored.asked("")) == {"second"}
        assert mirrored.said == []
        later = time.monotonic() + server.REST
        monkeypatch.setattr(time, "monotonic", lambda: later)
        mirrored.forget()
        mirrored.pull(connections)
        assert set(mirrored.asked("")) == {"first"}


def test_a_mirror_without_the_image_does_not_rest(mirrored: Mirrored) -> None:
    mirrored.mirrors[0].inject("/manifests/", Fault(status=404))
    with Connections(mirrored.options) as connections:
        mirrored.pull(connections)
        mirrored.forget()
        mirrored.pull(connections)
        assert set(mirrored.asked("")) == {"first"}


def test_all_mirrors_dead_gives_the_error_of_the_registry(mirrored: Mirrored) -> None:
    for mirror in mirrored.mirrors:
        mirror.inject("/manifests/", Fault(hang_up=True), times=ALWAYS)
    fault = mirrored.registry.inject("/manifests/", Fault(status=502, body=b"<html>"), times=ALWAYS, method="GET")
    with pytest.raises(ServerError) as raised:
        mirrored.pull()
    assert mirrored.registry.host in raised.value.request
    assert fault.hits == 3, "the registry itself gets all tries"
    assert len(mirrored.said) == 2


def test_what_the_registry_does_not_have_either(mirrored: Mirrored) -> None:
    options = mirrored.options
    with closing(open_source(f"{mirrored.registry.host}/team/app:2", options)) as source, pytest.raises(NotFoundError) as raised:
        source.resolve(AMD64)
    assert f"manifest for {mirrored.registry.host}/team/app:2 not found" in str(raised.value)
    assert len(mirrored.said) == 2


def test_credentials_of_the_registry_stay_with_it(mirrored: Mirrored) -> None:
    """Also where a mirror asks for some, and the name of the account is the same."""
    for mirror in mirrored.mirrors:
        mirror.auth = "basic"
    assert mirrored.pull() == LAYER
    assert set(mirrored.asked("/manifests/")) == {"first", "second", "registry"}
    for mirror in mirrored.mirrors:
        assert b"authorization" not in mirror.everything_received().lower()
    assert b"Authorization: Basic" in mirrored.registry.everything_received()


def test_a_mirror_has_credentials_of_its_own(mirrored: Mirrored, tmp_path: Path) -> None:
    mirror = mirrored.mirrors[0]
    mirror.auth = "bearer"
    authfile = tmp_path / "auth.json"
    basic = Credential(mirror.username, mirror.password).basic.removeprefix("Basic ")
    authfile.write_text(f'{{"auths": {{"{mirror.host}": {{"auth": "{basic}"}}}}}}')
    mirrored.options = replace(mirrored.options, authfile=authfile)
    assert mirrored.pull() == LAYER
    assert set(mirrored.asked("/manifests/")) == {"first"}
    assert mirrored.said == []


def test_a_policy_holds_for_mirrors(mirrored: Mirrored) -> None:
    mirrored.options = replace(mirrored.options, policy=Policy(deny=(mirrored.mirrors[0].host,)))
    assert mirrored.pull() == LAYER
    assert set(mirrored.asked("")) == {"second"}


def test_lists_and_heads_are_asked_of_mirrors_too(mirrored: Mirrored) -> None:
    mirrored.mirrors[0].inject("", Fault(status=500), times=ALWAYS)
    with RepositoryClient(mirrored.registry.host, "team/app", mirrored.options) as client:
        assert list(client.tags()) == ["1"]
        found = client.find_manifest("1")
    assert found is not None
    assert found.digest == mirrored.image.digest
    assert mirrored.asked("/tags/") == ["first", "first", "second"]


def test_namespace_is_told_to_hosts_of_hosts_toml_alone(mirrored: Mirrored, configure: Configure) -> None:
    mirrored.pull()
    told = [path for path in mirrored.mirrors[0].paths("/(manifests|blobs)/") if "ns=" in path]
    expected = f"ns={mirrored.registry.host.replace(':', '%3A')}"
    if configure is by_hosts_toml:
        assert told == mirrored.mirrors[0].paths("/(manifests|blobs)/")
        assert all(expected in path for path in told)
    else:
        assert told == []


@pytest.fixture
def trio() -> Iterator[tuple[Registry, Registry, BuiltImage]]:
    with Registry() as registry, Registry() as mirror:
        image = registry.add_image("team/app", "1", [LAYER], compression="none")
        mirror.add_built("team/app", "1", image)
        yield registry, mirror, image


@pytest.mark.parametrize(
    ("serves", "by_tag", "by_digest"), [("digest-only", False, True), ("tag-only", True, False), ("all", True, True)]
)
def test_mirrors_for_tags_or_digests_alone(
    trio: tuple[Registry, Registry, BuiltImage], tmp_path: Path, serves: str, by_tag: bool, by_digest: bool
) -> None:
    registry, mirror, image = trio
    file = tmp_path / "registries.conf"
    file.write_text(
        f'[[registry]]\nlocation = "{registry.host}"\ninsecure = true\n'
        f'[[registry.mirror]]\nlocation = "{mirror.host}"\ninsecure = true\npull-from-mirror = "{serves}"\n'
    )
    options = Options(credential=Credential(), places=Places(registries_conf=(file,)))
    for text, used in ((f"{registry.host}/team/app:1", by_tag), (f"{registry.host}/team/app@{image.digest}", by_digest)):
        mirror.requests.clear()
        with closing(open_source(text, options)) as source:
            assert source.resolve(AMD64).digest == image.digest
        assert bool(mirror.paths("/manifests/")) is used


def test_a_mirror_below_another_path(trio: tuple[Registry, Registry, BuiltImage], tmp_path: Path) -> None:
    registry, mirror, image = trio
    mirror.add_built("proxy/hub/team/app", "1", image)
    options = Options(
        credential=Credential(),
        places=Places(),
        registries={registry.host: RegistryOptions(mirrors=(f"{mirror.host}/proxy/hub",))},
    )
    with closing(open_source(f"{registry.host}/team/app:1", options)) as source:
        assert source.resolve(AMD64).digest == image.digest
    assert mirror.paths("/manifests/") == ["/v2/proxy/hub/team/app/manifests/1"]
    assert registry.requests == []


def test_a_registry_that_is_gone_behind_a_mirror(trio: tuple[Registry, Registry, BuiltImage]) -> None:
    """An air-gapped site: nobody but the mirror is there, and that is enough."""
    _, mirror, image = trio
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{unused.getsockname()[1]}"
        options = Options(credential=Credential(), places=Places(), registries={host: RegistryOptions(mirrors=(mirror.host,))})
        with closing(open_source(f"{host}/team/app:1", options)) as source:
            assert source.resolve(AMD64).digest == image.digest
        with closing(open_source(f"{host}/team/app:2", options)) as source, pytest.raises(UnreachableError, match="refused"):
            source.resolve(AMD64)


def test_a_tag_that_a_mirror_has_not_got(mirrored: Mirrored) -> None:
    """That a mirror knows nothing of it does not mean that there is nothing."""
    mirrored.registry.add_manifest("team/app", "2", mirrored.image.manifest, mirrored.image.media_type)
    with RepositoryClient(mirrored.registry.host, "team/app", mirrored.options) as client:
        found = client.find_manifest("2")
        assert found is not None
        assert found.digest == mirrored.image.digest
        assert client.find_manifest("3") is None
