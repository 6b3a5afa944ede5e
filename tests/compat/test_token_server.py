"""Debian's docker-registry takes the tokens of our token server, and skopeo gets them: over TLS with a private authority."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests import tools
from tests.servers.authority import Authority
from tests.servers.docker_registry import DockerRegistry, docker_registry
from tests.servers.faults import Fault
from tests.servers.token_server import ALL, ANONYMOUS, Account, TokenServer

THREE_LAYERS = Path("testdata/three-layers")
ROBOT = "robot$team+ci"
PASSWORD = "pa:$$w0rd"
ACCOUNTS = {
    ROBOT: Account(PASSWORD, {"team/*": ALL}),
    "reader": Account("reader", {"team/*": {"pull"}}),
    ANONYMOUS: Account(None, {"public/*": {"pull"}}),
}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def tokens(authority: Authority) -> Iterator[TokenServer]:
    with TokenServer(authority, ACCOUNTS) as tokens:
        yield tokens


@pytest.fixture
def registry(tmp_path: Path, authority: Authority, tokens: TokenServer) -> Iterator[DockerRegistry]:
    with docker_registry(tmp_path / "registry", tls=authority.server, token_server=tokens) as registry:
        yield registry


def skopeo(*words: str | Path, authority: Authority, check: bool = True) -> tuple[int, str]:
    """Runs skopeo with the authority for all its ``--*cert-dir`` options; returns its exit status and what it wrote."""
    tools.need("skopeo")
    certificates = authority.write_cert_dir(authority.directory / "certs.d", client=authority.client)
    done = tools.run("skopeo", *(str(word).replace("CERTS", str(certificates)) for word in words), check=check)
    return done.returncode, (done.stdout + done.stderr).decode()


def push(registry: DockerRegistry, authority: Authority, name: str, credentials: str, *, check: bool = True) -> tuple[int, str]:
    where = f"docker://{registry.host}/{name}"
    options = ("--preserve-digests", "--dest-cert-dir=CERTS", f"--dest-creds={credentials}")
    return skopeo("copy", *options, f"oci:{THREE_LAYERS}:latest", where, authority=authority, check=check)


def pull(
    registry: DockerRegistry, authority: Authority, name: str, credentials: str, to: Path, *, check: bool = True
) -> tuple[int, str]:
    where = f"docker://{registry.host}/{name}"
    options = ("--src-cert-dir=CERTS", f"--src-creds={credentials}" if credentials else "--src-no-creds")
    return skopeo("copy", *options, where, f"oci:{to}:latest", authority=authority, check=check)


def digests(layout: Path) -> set[str]:
    return {path.name for path in (layout / "blobs/sha256").iterdir()}


@pytest.mark.parametrize(
    ("key_type", "key_header"),
    [(trustme.KeyType.ECDSA, "x5c"), (trustme.KeyType.ECDSA, "kid"), (trustme.KeyType.RSA, "x5c"), (trustme.KeyType.RSA, "kid")],
)
def test_push_and_pull(tmp_path: Path, key_type: trustme.KeyType, key_header: str) -> None:
    authority = Authority(tmp_path / "authority", key_type=key_type)
    with (
        TokenServer(authority, ACCOUNTS, key_header=key_header) as tokens,
        docker_registry(tmp_path / "registry", tls=authority.server, token_server=tokens) as registry,
    ):
        push(registry, authority, "team/app:1", f"{ROBOT}:{PASSWORD}")
        pull(registry, authority, "team/app:1", "reader:reader", tmp_path / "out")
        # docker-registry asks for the mount of a blob from another repository with two scopes.
        push(registry, authority, "team/other:1", f"{ROBOT}:{PASSWORD}")
    assert digests(tmp_path / "out") == digests(THREE_LAYERS)
    assert ("PUT", "/v2/team/app/manifests/1", 201) in registry.requests
    assert {request.status for request in tokens.requests} == {200}
    assert PASSWORD.encode() not in tokens.everything_received(), "Basic is base64"


def test_rights_are_cut_without_a_word(
    registry: DockerRegistry, tokens: TokenServer, authority: Authority, tmp_path: Path
) -> None:
    push(registry, authority, "team/app:1", f"{ROBOT}:{PASSWORD}")
    tokens.requests.clear()
    for status, words in (
        push(registry, authority, "team/new:1", "reader:reader", check=False),
        push(registry, authority, "elsewhere/new:1", f"{ROBOT}:{PASSWORD}", check=False),
        pull(registry, authority, "team/app:1", "", tmp_path / "out", check=False),
    ):
        assert status != 0
        assert "requested access to the resource is denied" in words
    assert {request.status for request in tokens.requests} == {200}, "a token is given, but with fewer rights"


def test_wrong_password(registry: DockerRegistry, tokens: TokenServer, authority: Authority, tmp_path: Path) -> None:
    status, words = pull(registry, authority, "team/app:1", f"{ROBOT}:wrong", tmp_path / "out", check=False)
    assert status != 0
    assert "unauthorized: authentication required" in words
    tokens.wrong_password_is_anonymous = True
    tokens.requests.clear()
    status, words = pull(registry, authority, "team/app:1", f"{ROBOT}:wrong", tmp_path / "out", check=False)
    assert status != 0
    assert {request.status for request in tokens.requests} == {200}


def test_login(registry: DockerRegistry, tokens: TokenServer, authority: Authority, tmp_path: Path) -> None:
    file = tmp_path / "auth.json"
    login = ("login", "--cert-dir=CERTS", f"--authfile={file}", f"--username={ROBOT}")
    assert skopeo(*login, f"--password={PASSWORD}", registry.host, authority=authority)[0] == 0
    assert list(json.loads(file.read_text())["auths"]) == [registry.host]
    assert skopeo(*login, "--password=wrong", registry.host, authority=authority, check=False)[0] != 0


@pytest.mark.parametrize("post_status", [None, 404, 405])
def test_refresh_tokens(
    registry: DockerRegistry, tokens: TokenServer, authority: Authority, tmp_path: Path, post_status: int
) -> None:
    """skopeo sends an identity token as a form, and has no way back from a refusal."""
    tokens.refresh_tokens["identity"] = ROBOT
    tokens.post_status = post_status
    push(registry, authority, "team/app:1", f"{ROBOT}:{PASSWORD}")
    nobody = base64.b64encode(b"00000000-0000-0000-0000-000000000000:").decode()
    (tmp_path / "auth.json").write_text(json.dumps({"auths": {registry.host: {"auth": nobody, "identitytoken": "identity"}}}))
    options = ("--src-cert-dir=CERTS", f"--authfile={tmp_path}/auth.json")
    where = f"docker://{registry.host}/team/app:1"
    status, _ = skopeo("copy", *options, where, f"oci:{tmp_path}/out:latest", authority=authority, check=False)
    assert tokens.requests[-1].method == "POST"
    assert b"grant_type=refresh_token" in tokens.requests[-1].body
    assert (status == 0) == (post_status is None)


def test_the_end_of_a_token_is_its_end(tmp_path: Path, authority: Authority) -> None:
    """docker-registry takes tokens for another minute; ours say that they end a minute earlier."""
    with (
        TokenServer(authority, ACCOUNTS, lifetime=-1) as tokens,
        docker_registry(tmp_path / "registry", tls=authority.server, token_server=tokens) as registry,
    ):
        assert push(registry, authority, "team/app:1", f"{ROBOT}:{PASSWORD}", check=False)[0] != 0
        tokens.lifetime = 5
        push(registry, authority, "team/app:1", f"{ROBOT}:{PASSWORD}")


def test_client_certificate(tmp_path: Path, authority: Authority) -> None:
    tools.need("skopeo")
    with docker_registry(tmp_path / "registry", tls=authority.server, client_ca=authority.ca_file) as registry:
        push(registry, authority, "team/app:1", "nobody:nothing")
        only_ca = authority.write_cert_dir(tmp_path / "certs")
        where = f"docker://{registry.host}/team/app:1"
        refused = tools.run("skopeo", "inspect", f"--cert-dir={only_ca}", where, check=False)
        assert refused.returncode != 0
        assert b"certificate" in refused.stderr


@pytest.mark.parametrize("relative", [False, True])
def test_relative_locations(tmp_path: Path, relative: bool) -> None:
    with docker_registry(tmp_path / "registry", relative_urls=relative) as registry:
        registry.push(f"oci:{THREE_LAYERS}:latest", "app:1")
        started = tools.run("curl", "-sD-", "-XPOST", f"http://{registry.host}/v2/app/blobs/uploads/").stdout.decode()
        assert f"Location: {'' if relative else f'http://{registry.host}'}/v2/app/blobs/uploads/" in started


def ask(
    tokens: TokenServer, method: str, query: str = "", *, form: str | None = None, account: str | None = None
) -> tuple[int, dict[str, Any]]:
    """One request to a token server without TLS; ``account`` is ``name:password``."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"} if form else {}
    if account is not None:
        headers["Authorization"] = "Basic " + base64.b64encode(account.encode()).decode()
    with closing(http.client.HTTPConnection(tokens.host, timeout=20)) as connection:
        connection.request(method, f"/service/token{query}", form, headers)
        response = connection.getresponse()
        body = response.read()
        return response.status, json.loads(body) if body.startswith(b"{") else {}


@pytest.fixture
def plain(authority: Authority) -> Iterator[TokenServer]:
    with TokenServer(authority, ACCOUNTS, encrypted=False) as tokens:
        yield tokens


GET = "?service=harbor-registry"
FORM = "service=harbor-registry&client_id=test"


def test_scopes_are_cut(plain: TokenServer) -> None:
    scopes = "&scope=repository:team/a:pull,push&scope=repository:team/b:delete+repository:public/c:pull"
    status, answer = ask(plain, "GET", GET + scopes, account="reader:reader")
    assert status == 200
    assert plain.granted(answer["token"]) == {"repository:team/a:pull"}
    status, answer = ask(plain, "GET", GET + scopes)
    assert plain.granted(answer["token"]) == {"repository:public/c:pull"}
    assert plain.granted(answer["token"] + "x") is None
    assert ask(plain, "GET", GET)[0] == 401, "who is nobody and wants nothing has no account"
    assert ask(plain, "GET", "?service=other" + scopes)[0] == 400


def test_answers(plain: TokenServer) -> None:
    plain.lifetime = 5
    answer = ask(plain, "GET", GET, account="reader:reader")[1]
    assert answer.keys() == {"token", "expires_in", "issued_at"}
    assert answer["expires_in"] == 5
    for plain.token_field, plain.says_lifetime, plain.says_issue, keys in (
        ("access_token", True, False, {"access_token", "expires_in"}),
        ("both", False, False, {"token", "access_token"}),
    ):
        assert ask(plain, "GET", GET, account="reader:reader")[1].keys() == keys


def test_forms(plain: TokenServer) -> None:
    password = f"{FORM}&grant_type=password&username=reader&password=reader&scope=repository:team/a:pull,push"
    status, answer = ask(plain, "POST", form=password)
    assert (status, answer["scope"]) == (200, "repository:team/a:pull")
    assert "refresh_token" not in answer
    refresh_token = ask(plain, "POST", form=f"{password}&access_type=offline")[1]["refresh_token"]
    refresh = f"{FORM}&grant_type=refresh_token&refresh_token={refresh_token}&scope=repository:team/a:pull"
    answer = ask(plain, "POST", form=refresh)[1]
    assert plain.granted(answer["access_token"]) == {"repository:team/a:pull"}
    assert answer["refresh_token"] == refresh_token
    plain.rotates = True
    assert ask(plain, "POST", form=refresh)[1]["refresh_token"] != refresh_token
    assert ask(plain, "POST", form=refresh)[0] == 401, "it was used"
    assert "refresh_token" in ask(plain, "GET", f"{GET}&offline_token=true", account="reader:reader")[1]
    assert ask(plain, "POST", form=f"{FORM}&grant_type=password&username=reader&password=wrong")[0] == 401
    assert ask(plain, "POST", form="grant_type=password&username=reader&password=reader")[0] == 400
    plain.post_status = 405
    assert ask(plain, "POST", form=password)[0] == 405


def test_faults_of_a_token_server(plain: TokenServer) -> None:
    plain.inject("/service/token", Fault(status=503))
    assert [ask(plain, "GET", GET, account="reader:reader")[0] for _ in range(2)] == [503, 200]
