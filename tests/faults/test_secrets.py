"""Secrets stay where they belong: sessions with a marked secret of each kind, and then a look at every byte that any server received, every
record that any logger wrote, and every word that was told to the user."""

from __future__ import annotations

import base64
import logging
import random
import re
import ssl
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from registry_client.client import RepositoryClient
from registry_client.credentials import Credential
from registry_client.errors import DeniedError, RedirectError, RegistryError
from registry_client.login import check_login
from registry_client.options import Options, Places, RegistryOptions
from registry_client.platform import Platform
from registry_client.push import push_image
from registry_client.reference import Reference
from registry_client.retry import RetryPolicy
from registry_client.server import Connections
from registry_client.source import open_source
from tests.command_line import ROOT, CommandLine
from tests.servers.authority import Authority
from tests.servers.faults import ALWAYS, FAULTS
from tests.servers.http_server import Service
from tests.servers.images import BuiltImage, make_tar
from tests.servers.proxy import Proxy
from tests.servers.registry import Fault, Registry
from tests.servers.token_server import ALL, PATH, Account, TokenServer

AMD64 = Platform.parse("linux/amd64")
LAYER = make_tar({"data": random.Random(5).randbytes(40_000)})
HARBOR, TOKENS, STORAGE, MIRROR = ("harbor.example.com", "login.example.com", "storage.example.com", "mirror.example.com")
ROBOT = "robot$team+ci"
PASSWORD = "canary-pass:wörd$1"
IDENTITY_TOKEN = "canary-identity-token"
REGISTRY_TOKEN = "canary-registry-token"
PROXY_USER, PROXY_PASSWORD = "proxy-user", "canary-proxy-password"
MIRROR_HEADER = "canary-mirror-header"
SIGNATURE = "signature=canary"


@dataclass
class World:
    """All servers, by their names behind one proxy, so that nothing but TLS names and ports tells them apart."""

    directory: Path
    authority: Authority
    registry: Registry
    tokens: TokenServer
    mirror: Registry
    proxy: Proxy
    image: BuiltImage
    said: list[str] = field(default_factory=list)

    @property
    def proxy_url(self) -> str:
        return f"http://{PROXY_USER}:{PROXY_PASSWORD}@{self.proxy.host}"

    def options(self, credential: Credential) -> Options:
        certificate, key = self.authority.client
        return Options(
            credential=credential,
            places=Places(hosts_toml=(self.directory / "hosts",)),
            ca_file=self.authority.ca_file,
            registries={HARBOR: RegistryOptions(client_certificate=certificate, client_key=key)},
            retry=RetryPolicy(tries=3, base=0.001),
            connect_timeout=5,
            read_timeout=5,
            on_retry=lambda message, delay: self.said.append(message),
            on_fallback=self.said.append,
        )

    def received(self) -> dict[str, bytes]:
        """What came in, by the host that received it."""
        return {
            "registry": self.registry.everything_received("registry"),
            "storage": self.registry.everything_received("storage"),
            "tokens": self.tokens.everything_received(),
            "mirror": self.mirror.everything_received(),
            "proxy": b"\n".join(
                f"{request.method} {request.path} {dict(request.headers)}".encode() for request in self.proxy.requests
            ),
        }

    def bearer_tokens(self) -> set[str]:
        """Those that the token server gave out, as they came to the registry."""
        found = re.findall(rb"Bearer ([A-Za-z0-9._-]+)", self.registry.everything_received("registry"))
        return {token.decode() for token in found if token.count(b".") == 2}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    authority = Authority(tmp_path / "authority")
    certificate = authority.issue("all", HARBOR, TOKENS, STORAGE, MIRROR, "127.0.0.1", "localhost")
    accounts = {ROBOT: Account(PASSWORD, {"team/*": ALL})}
    with ExitStack() as stack:
        tokens = TokenServer(authority, accounts)
        tokens.tls = authority.server_context(certificate)
        tokens.refresh_tokens[IDENTITY_TOKEN] = ROBOT
        tokens.realm = f"https://{TOKENS}{PATH}"
        stack.enter_context(tokens)
        demanding = authority.server_context(certificate, client_ca=authority.ca_file)
        registry = stack.enter_context(Registry(auth="bearer", token_server=tokens, tls=demanding))
        mirror = stack.enter_context(Registry(tls=authority.server_context(certificate)))
        image = registry.add_image("team/app", "1", [LAYER], compression="none")
        names = {
            f"{HARBOR}:443": registry.host,
            f"{TOKENS}:443": tokens.host,
            f"{STORAGE}:443": registry.storage_host,
            f"{MIRROR}:443": mirror.host,
        }
        registry.storage_host = STORAGE
        # The storage server shares the registry's context; it is content with any client, as storage is.
        demanding.verify_mode = ssl.CERT_OPTIONAL
        proxy = stack.enter_context(Proxy(credentials=(PROXY_USER, PROXY_PASSWORD), names=names))
        world = World(tmp_path, authority, registry, tokens, mirror, proxy, image)
        (tmp_path / "hosts" / HARBOR).mkdir(parents=True)
        (tmp_path / "hosts" / HARBOR / "hosts.toml").write_text(
            f'[host."https://{MIRROR}"]\ncapabilities = ["pull", "resolve"]\n'
            f'[host."https://{MIRROR}".header]\nx-mirror-key = "{MIRROR_HEADER}"\n'
        )
        for name in ("NO_PROXY", "no_proxy", "https_proxy", "ALL_PROXY", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HTTPS_PROXY", world.proxy_url)
        yield world


def forms(*secrets: str) -> list[bytes]:
    """A secret as it may stand on the wire or in a log."""
    plain = [secret.encode() for secret in secrets]
    return [*plain, *(quote(secret, safe="").encode() for secret in secrets), *(base64.b64encode(each) for each in plain)]


def secrets_of(world: World) -> dict[str, tuple[list[bytes], set[str]]]:
    """Forms of each secret, and who may see it."""
    basic = base64.b64encode(f"{ROBOT}:{PASSWORD}".encode())
    proxy_basic = base64.b64encode(f"{PROXY_USER}:{PROXY_PASSWORD}".encode())
    key_lines = world.authority.client[1].read_bytes().splitlines()[1:-1]
    return {
        "password": ([*forms(PASSWORD), basic], {"tokens"}),
        "identity token": (forms(IDENTITY_TOKEN), {"tokens"}),
        "bearer tokens": ([token.encode() for token in world.bearer_tokens()], {"registry"}),
        "registry token": (forms(REGISTRY_TOKEN), {"registry"}),
        "proxy password": ([*forms(PROXY_PASSWORD), proxy_basic], {"proxy"}),
        "mirror's header": (forms(MIRROR_HEADER), {"mirror"}),
        "signature": ([SIGNATURE.encode()], {"storage"}),
        "client key": (key_lines, set()),
    }


def assert_kept(world: World, told: str, used: set[str]) -> None:
    """Every secret that was used came where it belongs; none came elsewhere, and none was told."""
    received = world.received()
    for name, (texts, belongs) in secrets_of(world).items():
        for place, data in received.items():
            seen = any(text in data for text in texts)
            assert not seen or place in belongs, f"{name} came to {place}"
            assert seen or place not in belongs or name not in used, f"{name} did not come to {place}: the test tests nothing"
        told_by = [line for line in told.splitlines() if any(text.decode() in line for text in texts)]
        assert told_by == [], f"{name} was told"


def pull(world: World, credential: Credential) -> bytes:
    with closing(open_source(f"{HARBOR}/team/app:1", world.options(credential))) as source:
        return b"".join(source.open_blob(source.resolve(AMD64).layers[0]))


def words_of(error: RegistryError) -> str:
    """All that an error can tell to who logs it, with the traceback and what it was made from."""
    return "\n".join([*traceback.format_exception(error), repr(error), repr(error.args), repr(vars(error))])


USED = {"password", "bearer tokens", "proxy password", "mirror's header", "signature"}


@pytest.fixture
def records(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


def test_pulls(world: World, records: pytest.LogCaptureFixture) -> None:
    world.registry.inject("/blobs/", Fault(redirect=True), times=ALWAYS)
    world.registry.inject("/storage/", Fault(cut_after=10_000))
    assert pull(world, Credential(ROBOT, PASSWORD)) == LAYER
    assert pull(world, Credential(identity_token=IDENTITY_TOKEN)) == LAYER
    assert_kept(
        world, records.text + "\n".join(world.said) + repr(world.options(Credential(ROBOT, PASSWORD))), USED | {"identity token"}
    )
    assert "mirror.example.com" in "\n".join(world.said), "the mirror was asked"
    assert "DEBUG" in records.text


def test_a_token_that_is_given(world: World, records: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DeniedError) as raised:
        pull(world, Credential(registry_token=REGISTRY_TOKEN))
    assert_kept(world, records.text + words_of(raised.value), {"registry token", "proxy password"})


def test_logins(world: World, records: pytest.LogCaptureFixture) -> None:
    kept = check_login(HARBOR, Credential(ROBOT, PASSWORD), world.options(Credential()))
    assert kept.identity_token
    with pytest.raises(DeniedError) as raised:
        check_login(HARBOR, Credential(ROBOT, PASSWORD + "x"), world.options(Credential()))
    assert_kept(world, records.text + words_of(raised.value) + repr(kept), {"password", "proxy password"})


def test_a_push(world: World, records: pytest.LogCaptureFixture) -> None:
    options = world.options(Credential(ROBOT, PASSWORD))
    world.registry.uploads.location = "storage"
    with closing(open_source(f"oci:{ROOT}/testdata/three-layers")) as source, Connections(options) as connections:
        push_image(source, Reference.parse(f"{HARBOR}/team/pushed:1"), options, connections)
    assert "POST" in {request.method for request in world.registry.requests}
    assert {"PUT"} <= {request.method for request in world.registry.requests if request.server == "storage"}
    assert_kept(world, records.text, {"password", "bearer tokens", "proxy password"})


@pytest.mark.parametrize("where", ["^/v2/team/app/manifests/", "^/v2/team/app/blobs/", "^/storage/", "token"])
def test_whatever_fails(world: World, where: str, records: pytest.LogCaptureFixture) -> None:
    """Every fault, everywhere."""
    told = []
    service: Service = world.tokens if where == "token" else world.registry
    for name, fault in FAULTS.items():
        if fault.stall or fault.delay > 1 or "retry-after" in name:
            continue
        world.registry.clear_faults()
        service.clear_faults()
        service.inject(where, fault, times=ALWAYS)
        world.registry.inject("/blobs/", Fault(redirect=True), times=ALWAYS)
        try:
            pull(world, Credential(ROBOT, PASSWORD))
        except RegistryError as error:
            told.append(words_of(error))
    assert len(told) > 30
    assert_kept(world, records.text + "\n".join([*told, *world.said]), {"password", "proxy password", "mirror's header"})


def run_cli(world: World, *words: str, password: str = PASSWORD) -> tuple[int, str]:
    configuration = world.directory / "config.toml"
    certificate, key = world.authority.client
    configuration.write_text(
        f'[registry."{HARBOR}"]\nca = "{world.authority.ca_file}"\nmirrors = ["{MIRROR}"]\n'
        f'client-certificate = "{certificate}"\nclient-key = "{key}"\n'
        f'[registry."{MIRROR}"]\nca = "{world.authority.ca_file}"\n'
    )
    environment = CommandLine(world.directory / "store").environment | {
        "HTTPS_PROXY": world.proxy_url,
        "IMGSTORE_CONFIG": str(configuration),
        "IMGSTORE_CREDS": f"{ROBOT}:{password}",
    }
    done = subprocess.run(
        [sys.executable, "-m", "imgstore", *words], capture_output=True, stdin=subprocess.DEVNULL, env=environment, cwd=ROOT
    )
    return done.returncode, (done.stdout + done.stderr).decode()


def test_the_command_line(world: World) -> None:
    world.registry.inject("/blobs/", Fault(redirect=True), times=ALWAYS)
    world.registry.inject("/storage/", Fault(cut_after=10_000))
    code, told = run_cli(world, "--debug", "pull", "--platform", "linux/amd64", f"{HARBOR}/team/app:1")
    assert code == 0, told
    assert "GET https://harbor.example.com/v2/team/app/manifests/1: 200" in told, "the log is on"
    world.registry.inject("/storage/", Fault(hang_up=True), times=ALWAYS)
    world.registry.add_image("team/app", "2", [LAYER + bytes(512)], compression="none")
    code, failed = run_cli(world, "--debug", "pull", "--platform", "linux/amd64", f"{HARBOR}/team/app:2")
    assert code == 6, failed
    assert "Traceback" in failed, "--debug was given"
    code, denied = run_cli(world, "--debug", "tags", f"{HARBOR}/team/app", password=PASSWORD + "x")
    assert code == 5, denied
    assert_kept(world, told + failed + denied, {"password", "bearer tokens", "proxy password", "signature"})


def authorizations(service: Service, host: str) -> list[str]:
    """Authorization of the requests that came by this name."""
    return [
        value
        for request in service.requests
        if request.headers.get("Host", request.headers.get("host")) == host
        for name, value in request.headers.items()
        if name.lower() in ("authorization", "cookie", "proxy-authorization")
    ]


@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_redirects_to_another_name_or_port_of_the_same_machine(auth: str, tmp_path: Path) -> None:
    """``localhost`` and ``127.0.0.1`` are two hosts, and so are two ports of one."""
    with Registry(auth=auth) as registry:
        image = registry.add_image("app", "1", [LAYER])
        by_name = registry.host.replace("127.0.0.1", "localhost")
        for target in (by_name, registry.storage_host):
            registry.clear_faults()
            location = {"Location": f"http://{target}/storage/{image.layer_digests[0]}"}
            registry.inject("/v2/app/blobs/", Fault(status=307, headers=location), times=ALWAYS)
            options = Options(
                credential=Credential(registry.username, registry.password), places=Places(), retry=RetryPolicy(tries=1)
            )
            with RepositoryClient(registry.host, "app", options) as client:
                client.manifest("1")
                with pytest.raises(RegistryError), closing(open_source(f"{registry.host}/app:1", options)) as source:
                    source.resolve(AMD64)
            assert authorizations(registry, registry.host)
            assert [request for request in registry.requests if request.headers["Host"] == target]
            assert authorizations(registry, target) == []


@pytest.mark.parametrize(
    "realm",
    [
        f"http://{TOKENS}/token",
        "http://harbor.example.com/token",
        "https://127.0.0.1/token",
        "https://localhost/token",
        "https://10.1.2.3/token",
        "https://192.168.0.1:8443/token",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/token",
        "https://[fe80::1]/token",
        "https://[::ffff:10.0.0.1]/token",
        "https://2130706433/token",
        "https://0x7f.1/token",
        "https://0/token",
        "file:///etc/passwd",
        "gopher://login.example.com/token",
        "//login.example.com/token",
        "",
    ],
)
def test_realms_to_which_nothing_goes(world: World, realm: str) -> None:
    world.registry.realm = realm
    with pytest.raises(DeniedError, match="no credentials are sent there"):
        pull(world, Credential(ROBOT, PASSWORD))
    assert set(world.proxy.targets) <= {f"{HARBOR}:443", f"{MIRROR}:443"}
    assert world.tokens.everything_received() == b""


def test_a_realm_inside_that_is_allowed(world: World) -> None:
    world.registry.realm = f"https://{world.tokens.host}{PATH}"
    with pytest.raises(DeniedError, match="is an address of an internal network"):
        pull(world, Credential(ROBOT, PASSWORD))
    options = world.options(Credential(ROBOT, PASSWORD))
    allowed = replace(options.registries[HARBOR], realms=(world.tokens.host,))
    with closing(open_source(f"{HARBOR}/team/app:1", replace(options, registries={HARBOR: allowed}))) as source:
        assert source.resolve(AMD64).digest == world.image.digest


@pytest.mark.parametrize("credential", [Credential(ROBOT, PASSWORD), Credential(identity_token=IDENTITY_TOKEN)])
@pytest.mark.parametrize("target", [f"https://{STORAGE}/token", "https://127.0.0.1:1/token", f"http://{TOKENS}/token"])
def test_token_requests_are_not_redirected_elsewhere(world: World, credential: Credential, target: str) -> None:
    world.tokens.inject(PATH, Fault(status=307, headers={"Location": target}), times=ALWAYS)
    with pytest.raises(RedirectError) as raised:
        pull(world, credential)
    assert f"{STORAGE}:443" not in world.proxy.targets
    assert_kept(world, words_of(raised.value), set())


@pytest.mark.parametrize(
    "target",
    [
        "http://harbor.example.com/v2/",
        "https://127.0.0.1:{port}/x",
        "https://localhost/x",
        "https://169.254.169.254/x",
        "https://u:p@[::1]/x",
    ],
)
def test_redirects_that_are_not_followed(world: World, target: str) -> None:
    port = urlsplit(f"//{world.tokens.host}").port
    world.registry.inject("/manifests/", Fault(status=302, headers={"Location": target.format(port=port)}), times=ALWAYS)
    with pytest.raises(RedirectError):
        pull(world, Credential(ROBOT, PASSWORD))
    assert set(world.proxy.targets) <= {f"{HARBOR}:443", f"{MIRROR}:443", f"{TOKENS}:443"}
