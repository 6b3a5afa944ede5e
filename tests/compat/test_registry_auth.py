"""Who may read from Debian's docker-registry, and how we say who we are: passwords, certificates, tokens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from registry_client.client import RepositoryClient
from registry_client.credentials import Credential
from registry_client.errors import CertificateError, DeniedError
from registry_client.login import check_login
from registry_client.options import Options, Places, RegistryOptions
from registry_client.push import push_image
from registry_client.reference import Reference
from registry_client.server import Connections
from registry_client.source import open_source
from tests.servers.authority import Authority
from tests.servers.docker_registry import PASSWORD, USERNAME, DockerRegistry, docker_registry
from tests.servers.token_server import ALL, ANONYMOUS, Account, TokenServer

THREE_LAYERS = Path("testdata/three-layers")
ROBOT, SECRET = "robot$team+ci", "pa:$$w0rd"
ACCOUNTS = {
    ROBOT: Account(SECRET, {"team/*": ALL}),
    "reader": Account("reader", {"team/*": {"pull"}}),
    ANONYMOUS: Account(None, {"team/public": {"pull"}}),
}
NOBODY = Options(credential=Credential(), places=Places())


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def robot(authority: Authority) -> Options:
    return replace(NOBODY, credential=Credential(ROBOT, SECRET), ca_file=authority.ca_file)


def push(registry: DockerRegistry, name: str, options: Options) -> None:
    with closing(open_source(f"oci:{THREE_LAYERS}")) as source:
        push_image(source, Reference.parse(f"{registry.host}/{name}"), options)


def pull(registry: DockerRegistry, name: str, options: Options, *, pause: float = 0.0) -> list[int]:
    """Sizes of the layers, as they were read, with a pause before each."""
    with closing(open_source(f"{registry.host}/{name}", options)) as source:
        sizes = []
        for layer in source.resolve(None).layers:
            time.sleep(pause)
            sizes.append(len(b"".join(source.open_blob(layer))))
        return sizes


SIZES = [548, 4588, 250]


class TestPasswords:
    @pytest.fixture
    def registry(self, tmp_path: Path, authority: Authority) -> Iterator[DockerRegistry]:
        with docker_registry(tmp_path / "registry", password=True, tls=authority.server) as registry:
            yield registry

    def test_push_and_pull(self, registry: DockerRegistry, authority: Authority) -> None:
        options = replace(NOBODY, credential=Credential(USERNAME, PASSWORD), ca_file=authority.ca_file)
        push(registry, "team/app:1", options)
        assert pull(registry, "team/app:1", options) == SIZES

    def test_login(self, registry: DockerRegistry, authority: Authority) -> None:
        options = replace(NOBODY, ca_file=authority.ca_file)
        good = Credential(USERNAME, PASSWORD)
        assert check_login(registry.host, good, options) == good
        with pytest.raises(DeniedError, match=f"login to {registry.host} failed"):
            check_login(registry.host, Credential(USERNAME, "wrong"), options)

    def test_refusals_name_the_repository_and_the_account(self, registry: DockerRegistry, authority: Authority) -> None:
        options = replace(NOBODY, ca_file=authority.ca_file)
        with pytest.raises(DeniedError, match=f"access denied for {registry.host}/team/app, .* may require 'docker login'"):
            pull(registry, "team/app:1", options)
        with pytest.raises(DeniedError, match=r"account 'robot\$project\+puller' is not accepted"):
            pull(registry, "team/app:1", replace(options, credential=Credential(USERNAME, "wrong")))


class TestCertificates:
    @pytest.fixture
    def registry(self, tmp_path: Path, authority: Authority) -> Iterator[DockerRegistry]:
        with docker_registry(tmp_path / "registry", tls=authority.server, client_ca=authority.ca_file) as registry:
            yield registry

    def test_all_places_for_them(self, registry: DockerRegistry, authority: Authority, tmp_path: Path) -> None:
        certs_d = tmp_path / "certs.d"
        authority.write_cert_dir(certs_d / registry.host, client=authority.client)
        push(registry, "team/app:1", replace(NOBODY, places=Places(certs_d=(certs_d,))))
        certificate, key = authority.client
        own = RegistryOptions(ca_file=authority.ca_file, client_certificate=certificate, client_key=key)
        for options in (
            replace(NOBODY, places=Places(certs_d=(certs_d,))),
            replace(NOBODY, cert_dir=certs_d / registry.host),
            replace(NOBODY, registries={registry.host: own}),
        ):
            assert pull(registry, "team/app:1", options) == SIZES

    def test_without_one(self, registry: DockerRegistry, authority: Authority) -> None:
        with pytest.raises(CertificateError, match=r"TLS handshake failed: .*certificate"):
            pull(registry, "team/app:1", replace(NOBODY, ca_file=authority.ca_file))

    def test_with_a_stranger_s(self, registry: DockerRegistry, authority: Authority, tmp_path: Path) -> None:
        certificate, key = Authority(tmp_path / "stranger").client
        own = RegistryOptions(ca_file=authority.ca_file, client_certificate=certificate, client_key=key)
        with pytest.raises(CertificateError, match=r"TLS handshake failed: .*certificate"):
            pull(registry, "team/app:1", replace(NOBODY, registries={registry.host: own}))

    def test_a_registry_of_an_unknown_authority(self, registry: DockerRegistry, tmp_path: Path) -> None:
        options = replace(NOBODY, ca_file=Authority(tmp_path / "stranger").ca_file)
        with pytest.raises(CertificateError, match=f"registry {registry.host}: certificate not trusted"):
            pull(registry, "team/app:1", options)

    def test_the_environment_does_not_change_what_we_were_told(
        self, registry: DockerRegistry, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stranger = Authority(tmp_path / "stranger").ca_file
        (tmp_path / ".netrc").write_text("machine 127.0.0.1 login somebody password else\n")
        for name, value in {
            "REQUESTS_CA_BUNDLE": str(stranger),
            "HOME": str(tmp_path),
            "NETRC": str(tmp_path / ".netrc"),
        }.items():
            monkeypatch.setenv(name, value)
        certificate, key = authority.client
        own = RegistryOptions(ca_file=authority.ca_file, client_certificate=certificate, client_key=key)
        push(registry, "team/app:1", replace(NOBODY, registries={registry.host: own}))
        assert pull(registry, "team/app:1", replace(NOBODY, registries={registry.host: own})) == SIZES


class TestTokens:
    @pytest.fixture
    def tokens(self, authority: Authority) -> Iterator[TokenServer]:
        with TokenServer(authority, ACCOUNTS) as tokens:
            yield tokens

    @pytest.fixture
    def registry(self, tmp_path: Path, authority: Authority, tokens: TokenServer) -> Iterator[DockerRegistry]:
        with docker_registry(tmp_path / "registry", tls=authority.server, token_server=tokens) as registry:
            yield registry

    def test_one_token_for_a_pull_and_one_for_a_push(self, registry: DockerRegistry, tokens: TokenServer, robot: Options) -> None:
        push(registry, "team/app:1", robot)
        assert len(tokens.requests) == 1
        assert pull(registry, "team/app:1", robot) == SIZES
        assert len(tokens.requests) == 2

    def test_shared_connections_share_tokens(self, registry: DockerRegistry, tokens: TokenServer, robot: Options) -> None:
        push(registry, "team/app:1", robot)
        tokens.requests.clear()
        with Connections(robot) as connections:
            for _ in range(3):
                with RepositoryClient(registry.host, "team/app", robot, connections) as client:
                    assert list(client.tags()) == ["1"]
        assert len(tokens.requests) == 1

    @pytest.mark.parametrize("says_lifetime", [True, False])
    def test_tokens_that_end_in_the_middle_of_a_pull(
        self, registry: DockerRegistry, tokens: TokenServer, robot: Options, says_lifetime: bool
    ) -> None:
        """Those that say so are renewed in time; the others cost a 401."""
        push(registry, "team/app:1", robot)
        tokens.lifetime, tokens.says_lifetime = 2.0, says_lifetime
        tokens.requests.clear()
        assert pull(registry, "team/app:1", robot, pause=2.5) == SIZES
        assert len(tokens.requests) >= 3

    @pytest.mark.parametrize("token_field", ["token", "access_token", "both"])
    def test_forms_of_the_answer(self, registry: DockerRegistry, tokens: TokenServer, robot: Options, token_field: str) -> None:
        tokens.token_field, tokens.says_lifetime, tokens.says_issue = token_field, False, False
        push(registry, "team/app:1", robot)
        assert pull(registry, "team/app:1", robot) == SIZES

    def test_everybody_may_read_what_is_public(self, registry: DockerRegistry, robot: Options) -> None:
        push(registry, "team/public:1", robot)
        nobody = replace(robot, credential=Credential())
        assert pull(registry, "team/public:1", nobody) == SIZES
        with pytest.raises(DeniedError, match="may require 'docker login'"):
            pull(registry, "team/app:1", nobody)

    def test_rights_that_are_cut_silently(self, registry: DockerRegistry, tokens: TokenServer, robot: Options) -> None:
        """As Harbor does: there is a token, and the request with it is refused. That is final."""
        reader = replace(robot, credential=Credential("reader", "reader"))
        with pytest.raises(DeniedError, match=f"push access denied for {registry.host}/team/app: account 'reader'"):
            push(registry, "team/app:1", reader)
        tokens.requests.clear()
        with pytest.raises(DeniedError, match=rf"pull access denied for {registry.host}/other/app: account 'robot\$team\+ci'"):
            pull(registry, "other/app:1", robot)
        assert len(tokens.requests) == 1, "a fresh token was refused: another one would be, too"

    def test_a_wrong_password(self, registry: DockerRegistry, robot: Options) -> None:
        wrong = replace(robot, credential=Credential(ROBOT, "wrong"))
        with pytest.raises(DeniedError, match=rf"account 'robot\$team\+ci' is not accepted .*{registry.host}"):
            pull(registry, "team/app:1", wrong)
        with pytest.raises(DeniedError, match=f"login to {registry.host} failed"):
            check_login(registry.host, Credential(ROBOT, "wrong"), robot)

    @pytest.mark.parametrize("rotates", [False, True])
    def test_login_gives_an_identity_token(
        self, registry: DockerRegistry, tokens: TokenServer, robot: Options, rotates: bool
    ) -> None:
        tokens.rotates = rotates
        kept = check_login(registry.host, Credential(ROBOT, SECRET), robot)
        assert kept.identity_token in tokens.refresh_tokens
        assert not kept.password
        with_token = replace(robot, credential=kept)
        with Connections(with_token) as connections, closing(open_source(f"oci:{THREE_LAYERS}")) as source:
            # Several tokens of one login: who rotates wants the newest each time.
            for name in ("one", "two", "three"):
                push_image(source, Reference.parse(f"{registry.host}/team/{name}:1"), with_token, connections)
        assert {request.method for request in tokens.requests[1:]} == {"POST"}

    @pytest.mark.parametrize("status", [404, 405])
    def test_a_token_server_that_knows_no_post(
        self, registry: DockerRegistry, tokens: TokenServer, robot: Options, status: int
    ) -> None:
        tokens.post_status = status
        tokens.refresh_tokens["refresh"] = ROBOT
        push(registry, "team/public:1", robot)
        # There is nothing else to show: it gets what everybody gets.
        identity = replace(robot, credential=Credential(ROBOT, identity_token="refresh"))
        with pytest.raises(DeniedError):
            pull(registry, "team/public:1", identity)
        both = replace(robot, credential=Credential(ROBOT, SECRET, identity_token="refresh"))
        assert pull(registry, "team/public:1", both) == SIZES

    def test_a_token_that_is_ready(self, registry: DockerRegistry, tokens: TokenServer, robot: Options) -> None:
        push(registry, "team/app:1", robot)
        token = tokens.sign("anybody", [{"type": "repository", "name": "team/app", "actions": ["pull"]}])
        tokens.requests.clear()
        assert pull(registry, "team/app:1", replace(robot, credential=Credential(registry_token=token))) == SIZES
        assert tokens.requests == []
