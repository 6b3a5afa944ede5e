"""Against Debian's docker-registry: every way of saying who we are, and of reaching it."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from registry_client.blobs import read_blob
from registry_client.credentials import Credential
from registry_client.errors import CertificateError, DeniedError, RegistryError, TlsError, UnreachableError
from registry_client.image import Image
from registry_client.login import check_login
from registry_client.options import Options, Places, RegistryOptions
from registry_client.push import push_image
from registry_client.reference import Reference
from registry_client.retry import RetryPolicy
from registry_client.server import Connections
from registry_client.source import open_source
from tests.servers.authority import Authority
from tests.servers.docker_registry import PASSWORD, USERNAME, DockerRegistry, docker_registry
from tests.servers.proxy import Proxy
from tests.servers.token_server import ALL, ANONYMOUS, Account, TokenServer

THREE_LAYERS = "oci:testdata/three-layers"
ROBOT, READER = "robot$team+ci", "robot$team+reader"
SECRET = "pa:$$w0rd"
ACCOUNTS = {
    ROBOT: Account(SECRET, {"team/*": ALL}),
    READER: Account(SECRET, {"team/app": {"pull"}}),
    ANONYMOUS: Account(None, {"public/*": {"pull"}}),
}
RIGHT = Credential(USERNAME, PASSWORD)
NOBODY = Options(credential=Credential(), places=Places(), retry=RetryPolicy(tries=2, base=0.001))
NAME = "harbor.example.com"
PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXY_VARIABLES, *map(str.lower, PROXY_VARIABLES), "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def push(name: str, options: Options) -> None:
    with closing(open_source(THREE_LAYERS)) as source:
        push_image(source, Reference.parse(name), options)


def pull(name: str, options: Options) -> Image:
    """All of an image; its bytes are checked on the way."""
    with closing(open_source(name, options)) as source:
        image = source.resolve(None)
        for layer in image.layers:
            read_blob(source.open_blob(layer))
        return image


def test_anonymous(tmp_path: Path) -> None:
    """A registry that asks nobody takes every login, and sees none."""
    with docker_registry(tmp_path / "registry") as registry:
        push(f"{registry.host}/team/app:1", NOBODY)
        assert len(pull(f"{registry.host}/team/app:1", replace(NOBODY, credential=RIGHT)).layers) == 3
        assert check_login(registry.host, RIGHT, NOBODY) == RIGHT


@pytest.fixture(scope="module")
def password_registry(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[DockerRegistry]:
    with docker_registry(tmp_path_factory.mktemp("registry"), password=True, tls=authority.server) as registry:
        push(f"{registry.host}/team/app:1", replace(NOBODY, credential=RIGHT, ca_file=authority.ca_file))
        yield registry


@pytest.fixture(scope="module")
def certificate_registry(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[DockerRegistry]:
    root = tmp_path_factory.mktemp("registry")
    with docker_registry(root, tls=authority.server, client_ca=authority.ca_file) as registry:
        yield registry


@pytest.fixture(scope="module")
def named_registry(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[DockerRegistry]:
    certificate = authority.issue("named", NAME, "127.0.0.1")
    with docker_registry(tmp_path_factory.mktemp("registry"), password=True, tls=certificate) as registry:
        push(f"{registry.host}/team/app:1", replace(NOBODY, credential=RIGHT, ca_file=authority.ca_file))
        yield registry


class TestPasswordsOverTls:
    @pytest.fixture
    def registry(self, password_registry: DockerRegistry) -> DockerRegistry:
        return password_registry

    @pytest.mark.parametrize("way", ["ca_file", "cert_dir", "certs.d", "RegistryOptions"])
    def test_ways_to_name_the_authority(self, registry: DockerRegistry, authority: Authority, tmp_path: Path, way: str) -> None:
        authority.write_cert_dir(tmp_path / "certs.d" / registry.host)
        options = {
            "ca_file": replace(NOBODY, ca_file=authority.ca_file),
            "cert_dir": replace(NOBODY, cert_dir=tmp_path / "certs.d" / registry.host),
            "certs.d": replace(NOBODY, places=Places(certs_d=(tmp_path / "certs.d",))),
            "RegistryOptions": replace(NOBODY, registries={registry.host: RegistryOptions(ca_file=authority.ca_file)}),
        }[way]
        assert len(pull(f"{registry.host}/team/app:1", replace(options, credential=RIGHT)).layers) == 3
        assert check_login(registry.host, RIGHT, options) == RIGHT
        with pytest.raises(DeniedError, match=f"login to {registry.host} failed: "):
            check_login(registry.host, Credential(USERNAME, "wrong"), options)

    def test_another_authority(self, registry: DockerRegistry, tmp_path: Path) -> None:
        other = Authority(tmp_path)
        for options in (NOBODY, replace(NOBODY, ca_file=other.ca_file)):
            with pytest.raises(CertificateError, match=f"registry {registry.host}: certificate not trusted: ") as raised:
                pull(f"{registry.host}/team/app:1", replace(options, credential=RIGHT))
            assert PASSWORD not in str(raised.value)
        assert "http: TLS handshake error" in registry.log

    def test_any_certificate_will_do(self, registry: DockerRegistry, recwarn: pytest.WarningsRecorder) -> None:
        with pytest.warns(match="Unverified HTTPS request"):
            pull(f"{registry.host}/team/app:1", replace(NOBODY, credential=RIGHT, insecure_registries=frozenset({registry.host})))

    def test_the_environment_changes_nothing(
        self, registry: DockerRegistry, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """netrc with another password, and bundles of another authority: what we were told counts."""
        netrc = tmp_path / ".netrc"
        netrc.write_text("default login canary password canary\n")
        netrc.chmod(0o600)
        monkeypatch.setenv("NETRC", str(netrc))
        monkeypatch.setenv("HOME", str(tmp_path))
        other = Authority(tmp_path / "other")
        options = replace(NOBODY, credential=RIGHT, ca_file=authority.ca_file)
        for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
            with monkeypatch.context() as patch:
                patch.setenv(name, str(other.ca_file))
                assert len(pull(f"{registry.host}/team/app:1", options).layers) == 3
                with pytest.raises(CertificateError):
                    pull(f"{registry.host}/team/app:1", replace(options, ca_file=None))
        with pytest.raises(DeniedError, match="may require 'docker login'"):
            pull(f"{registry.host}/team/app:1", replace(options, credential=Credential()))


class TestClientCertificates:
    @pytest.fixture
    def registry(self, certificate_registry: DockerRegistry) -> DockerRegistry:
        return certificate_registry

    def test_with(self, registry: DockerRegistry, authority: Authority, tmp_path: Path) -> None:
        certificate, key = authority.client
        named = RegistryOptions(ca_file=authority.ca_file, client_certificate=certificate, client_key=key)
        push(f"{registry.host}/team/app:1", replace(NOBODY, registries={registry.host: named}))
        authority.write_cert_dir(tmp_path / registry.host, client=authority.client)
        for options in (
            replace(NOBODY, places=Places(certs_d=(tmp_path,))),
            replace(NOBODY, cert_dir=tmp_path / registry.host),
        ):
            assert len(pull(f"{registry.host}/team/app:1", options).layers) == 3
            assert check_login(registry.host, RIGHT, options) == RIGHT

    def test_without(self, registry: DockerRegistry, authority: Authority) -> None:
        with pytest.raises(
            TlsError, match=f"registry {registry.host}: TLS handshake failed: .*(certificate required|bad certificate)"
        ):
            pull(f"{registry.host}/team/app:1", replace(NOBODY, ca_file=authority.ca_file))

    def test_wrong(self, registry: DockerRegistry, authority: Authority, tmp_path: Path) -> None:
        certificate, key = Authority(tmp_path).client
        named = RegistryOptions(ca_file=authority.ca_file, client_certificate=certificate, client_key=key)
        with pytest.raises(TlsError, match=f"registry {registry.host}: "):
            pull(f"{registry.host}/team/app:1", replace(NOBODY, registries={registry.host: named}))


class TestTokens:
    """A token server and a registry, both over TLS with a private authority, that agree on nothing but its certificates."""

    @pytest.fixture
    def tokens(self, authority: Authority) -> Iterator[TokenServer]:
        with TokenServer(authority, ACCOUNTS) as tokens:
            yield tokens

    @pytest.fixture
    def registry(self, tmp_path: Path, authority: Authority, tokens: TokenServer) -> Iterator[DockerRegistry]:
        with docker_registry(tmp_path / "registry", tls=authority.server, token_server=tokens) as registry:
            yield registry

    def options(self, authority: Authority, name: str = ROBOT, password: str = SECRET) -> Options:
        return replace(NOBODY, credential=Credential(name, password) if name else Credential(), ca_file=authority.ca_file)

    @pytest.mark.parametrize("field", ["token", "access_token", "both"])
    @pytest.mark.parametrize("says_lifetime", [True, False])
    def test_push_and_pull(
        self, registry: DockerRegistry, tokens: TokenServer, authority: Authority, field: str, says_lifetime: bool
    ) -> None:
        tokens.token_field, tokens.says_lifetime, tokens.says_issue = field, says_lifetime, says_lifetime
        push(f"{registry.host}/team/app:1", self.options(authority))
        assert len(pull(f"{registry.host}/team/app:1", self.options(authority, READER)).layers) == 3
        assert len(tokens.requests) <= 3, "one token for pulls, one for pushes, and one for the reader"

    def test_tokens_of_five_seconds_run_out_within_a_pull(
        self, registry: DockerRegistry, tokens: TokenServer, authority: Authority
    ) -> None:
        """docker-registry takes a token for a minute after its end, so the server says that they end a minute earlier."""
        push(f"{registry.host}/team/app:1", self.options(authority))
        tokens.lifetime = 5
        tokens.requests.clear()
        with closing(open_source(f"{registry.host}/team/app:1", self.options(authority))) as source:
            image = source.resolve(None)
            begun = time.monotonic()
            while time.monotonic() - begun < 7:
                for layer in image.layers:
                    read_blob(source.open_blob(layer))
                time.sleep(0.2)
        assert 2 <= len(tokens.requests) <= 4, "a new one in good time, and not more often"

    def test_a_token_that_ended_earlier_than_it_said(
        self, registry: DockerRegistry, tokens: TokenServer, authority: Authority
    ) -> None:
        push(f"{registry.host}/team/app:1", self.options(authority))
        with closing(open_source(f"{registry.host}/team/app:1", self.options(authority))) as source:
            tokens.leeway = 60 + tokens.lifetime - 5  # valid for another five seconds
            image = source.resolve(None)
            tokens.leeway = 60
            time.sleep(6.1)
            seen = len(registry.requests)
            for layer in image.layers:
                read_blob(source.open_blob(layer))
        assert [status for _, _, status in registry.requests[seen:]].count(401) == 1

    def test_scopes_that_are_cut(self, registry: DockerRegistry, tokens: TokenServer, authority: Authority) -> None:
        """As Harbor does: a token is given, and then the registry says 401."""
        push(f"{registry.host}/team/other:1", self.options(authority))
        tokens.requests.clear()
        with pytest.raises(DeniedError) as raised:
            pull(f"{registry.host}/team/other:1", self.options(authority, READER))
        assert f"pull access denied for {registry.host}/team/other: account {READER!r} is not accepted or may not pull" in str(
            raised.value
        )
        assert [request.status for request in tokens.requests] == [200]
        with pytest.raises(DeniedError, match=re.escape(f"push access denied for {registry.host}/team/app: account {READER!r}")):
            push(f"{registry.host}/team/app:2", self.options(authority, READER))

    def test_wrong_password(self, registry: DockerRegistry, tokens: TokenServer, authority: Authority) -> None:
        for anonymous in (False, True):
            tokens.wrong_password_is_anonymous = anonymous
            with pytest.raises(DeniedError, match=re.escape(f"account {ROBOT!r} is not accepted")):
                pull(f"{registry.host}/team/app:1", self.options(authority, ROBOT, "wrong"))

    def test_without_a_login(self, registry: DockerRegistry, tokens: TokenServer, authority: Authority) -> None:
        tokens.accounts["publisher"] = Account("publisher", {"public/*": ALL})
        push(f"{registry.host}/public/app:1", self.options(authority, "publisher", "publisher"))
        assert len(pull(f"{registry.host}/public/app:1", self.options(authority, "")).layers) == 3
        with pytest.raises(DeniedError, match="repository does not exist or may require 'docker login'"):
            pull(f"{registry.host}/team/app:1", self.options(authority, ""))

    def test_logins(self, registry: DockerRegistry, tokens: TokenServer, authority: Authority) -> None:
        kept = check_login(registry.host, Credential(ROBOT, SECRET), self.options(authority, ""))
        assert kept.identity_token
        assert not kept.password
        push(f"{registry.host}/team/app:1", replace(self.options(authority), credential=kept))
        assert {request.method for request in tokens.requests} == {"GET", "POST"}
        for name, password in ((ROBOT, "wrong"), ("nobody", SECRET)):
            with pytest.raises(DeniedError, match=f"login to {registry.host} failed: "):
                check_login(registry.host, Credential(name, password), self.options(authority, ""))

    def test_refresh_tokens_that_are_good_for_one_use(
        self, registry: DockerRegistry, tokens: TokenServer, authority: Authority
    ) -> None:
        tokens.rotates = True
        tokens.refresh_tokens["first"] = ROBOT
        options = replace(self.options(authority), credential=Credential(identity_token="first"))
        with Connections(options) as connections:
            for name in ("team/app", "team/second", "team/third"):
                with closing(open_source(THREE_LAYERS)) as source:
                    push_image(source, Reference.parse(f"{registry.host}/{name}:1"), options, connections)
        assert {request.method for request in tokens.requests} == {"POST"}
        assert {request.status for request in tokens.requests} == {200}
        assert "first" not in tokens.refresh_tokens

    @pytest.mark.parametrize("status", [404, 405])
    def test_a_token_server_that_knows_only_get(
        self, registry: DockerRegistry, tokens: TokenServer, authority: Authority, status: int
    ) -> None:
        tokens.post_status = status
        credential = Credential(ROBOT, SECRET, identity_token="unused")
        push(f"{registry.host}/team/app:1", replace(self.options(authority), credential=credential))
        assert [request.method for request in tokens.requests][:2] == ["POST", "GET"]

    def test_a_token_that_is_given(self, registry: DockerRegistry, tokens: TokenServer, authority: Authority) -> None:
        push(f"{registry.host}/team/app:1", self.options(authority))
        tokens.requests.clear()
        token = tokens.sign(ROBOT, [{"type": "repository", "name": "team/app", "actions": ["pull"]}])
        options = replace(self.options(authority), credential=Credential(registry_token=token))
        assert len(pull(f"{registry.host}/team/app:1", options).layers) == 3
        assert tokens.requests == []


class TestProxies:
    """Names that no name server knows lead through the proxy to a registry on this machine."""

    @pytest.fixture
    def registry(self, named_registry: DockerRegistry) -> DockerRegistry:
        return named_registry

    @pytest.fixture
    def proxy(self, registry: DockerRegistry) -> Iterator[Proxy]:
        with Proxy(names={f"{NAME}:443": registry.host, f"{NAME}:8443": registry.host}) as proxy:
            yield proxy

    @pytest.fixture
    def options(self, authority: Authority) -> Options:
        return replace(NOBODY, credential=RIGHT, ca_file=authority.ca_file)

    @pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
    def test_of_the_environment(self, proxy: Proxy, options: Options, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(variable, proxy.url)
        assert len(pull(f"{NAME}/team/app:1", options).layers) == 3
        assert set(proxy.targets) == {f"{NAME}:443"}

    def test_of_the_registry(self, proxy: Proxy, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
        chosen = replace(options, registries={NAME: RegistryOptions(proxy=proxy.url)})
        assert len(pull(f"{NAME}/team/app:1", chosen).layers) == 3
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        proxy.targets.clear()
        with pytest.raises(RegistryError, match="no such host"):
            pull(f"{NAME}/team/app:1", replace(options, registries={NAME: RegistryOptions(proxy="")}))
        assert proxy.targets == []

    @pytest.mark.parametrize("value", [NAME, "example.com", ".example.com", "*", f"{NAME}:443", "other.test, .example.com"])
    def test_exceptions(self, proxy: Proxy, options: Options, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", value)
        with pytest.raises(RegistryError, match="no such host"):
            pull(f"{NAME}/team/app:1", options)
        assert proxy.targets == []
        monkeypatch.setenv("NO_PROXY", "other.test,a.harbor.example.com,arbor.example.com,10.0.0.0/8")
        assert len(pull(f"{NAME}/team/app:1", options).layers) == 3

    def test_networks(self, proxy: Proxy, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
        """An address of TEST-NET-1, where nobody is: with an exception for it nothing answers, else the proxy does."""
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        proxy.names["192.0.2.7:443"] = "127.0.0.1:1"
        quick = replace(options, connect_timeout=0.3, retry=RetryPolicy(tries=1))
        with pytest.raises(UnreachableError, match="the proxy does not let us through"):
            pull("192.0.2.7/team/app:1", quick)
        proxy.targets.clear()
        monkeypatch.setenv("NO_PROXY", "192.0.2.0/24")
        with pytest.raises(UnreachableError):
            pull("192.0.2.7/team/app:1", quick)
        assert proxy.targets == []

    def test_this_machine_needs_none(self, registry: DockerRegistry, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
        for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(variable, "http://127.0.0.1:1")
        assert len(pull(f"{registry.host}/team/app:1", options).layers) == 3

    def test_with_a_password(self, proxy: Proxy, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
        proxy.credentials = ("me", "pa:ss@word")
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:pa%3Ass%40word@{proxy.host}")
        assert len(pull(f"{NAME}/team/app:1", options).layers) == 3
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:canary@{proxy.host}")
        with pytest.raises(UnreachableError, match="the proxy does not let us through") as raised:
            pull(f"{NAME}/team/app:1", options)
        assert "canary" not in str(raised.value)

    @pytest.mark.parametrize(("typed", "filed"), [(NAME, f"{NAME}:443"), (f"{NAME}:443", NAME)])
    def test_a_host_with_and_without_its_port(
        self, proxy: Proxy, options: Options, authority: Authority, tmp_path: Path, typed: str, filed: str
    ) -> None:
        """Certificates and logins that are filed for one count for the other; those of another port do not."""
        authority.write_cert_dir(tmp_path / "certs.d" / filed)
        basic = base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()
        (tmp_path / "auth.json").write_text(json.dumps({"auths": {filed: {"auth": basic}}}))
        found = replace(
            options,
            credential=None,
            authfile=tmp_path / "auth.json",
            ca_file=None,
            places=Places(certs_d=(tmp_path / "certs.d",)),
            registries={host: RegistryOptions(proxy=proxy.url) for host in (NAME, f"{NAME}:8443")},
        )
        assert len(pull(f"{typed}/team/app:1", found).layers) == 3
        with pytest.raises(CertificateError):
            pull(f"{NAME}:8443/team/app:1", found)
        with pytest.raises(DeniedError, match="may require 'docker login'"):
            pull(f"{NAME}:8443/team/app:1", replace(found, ca_file=authority.ca_file))
