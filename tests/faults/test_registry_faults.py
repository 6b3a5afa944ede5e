"""What registries and networks do to a pull: cuts, wrong bytes, refusals, silence."""

from __future__ import annotations

import random
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import pytest
import trustme

from registry_client.blobs import BlobStream
from registry_client.credentials import Credential
from registry_client.errors import (
    CancelledError,
    DeniedError,
    DigestMismatchError,
    MalformedError,
    NotFoundError,
    PlainHttpError,
    RateLimitError,
    RegistryError,
    ServerError,
    SizeMismatchError,
    TlsError,
    UnavailableError,
    UnknownHostError,
    UnreachableError,
)
from registry_client.image import Image
from registry_client.options import Options
from registry_client.platform import Platform
from registry_client.retry import RetryPolicy
from registry_client.server import Connections
from registry_client.source import ImageSource, open_source
from tests.servers.images import OCI_MANIFEST, BuiltImage, make_tar
from tests.servers.registry import ALWAYS, Fault, Registry

AMD64 = Platform.parse("linux/amd64")
QUICK = Options(credential=Credential(), retry=RetryPolicy(tries=4, base=0.001), connect_timeout=2, read_timeout=2)
LAYER = make_tar({"data": random.Random(1).randbytes(1_500_000)})
BLOBS = r"/blobs/|/storage/"


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as registry:
        yield registry


@pytest.fixture
def image(registry: Registry) -> BuiltImage:
    return registry.add_image("app", "1", [LAYER], compression="none")


def pull(registry: Registry, options: Options = QUICK, tag: str = "1") -> tuple[Image, BlobStream, bytes]:
    with closing(open_source(f"{registry.host}/app:{tag}", options)) as source:
        image = source.resolve(AMD64)
        registry.requests.clear()
        stream = source.open_blob(image.layers[0])
        return image, stream, b"".join(stream)


def resolve(registry: Registry, options: Options = QUICK, tag: str = "1") -> Image:
    with closing(open_source(f"{registry.host}/app:{tag}", options)) as source:
        return source.resolve(AMD64)


def resolve_text(text: str) -> Image:
    with closing(open_source(text, QUICK)) as source:
        return source.resolve(AMD64)


def sent(registry: Registry) -> int:
    return sum(request.sent for request in registry.requests if request.status in (200, 206))


def layer_of(image: BuiltImage) -> str:
    """Path of the layer's blob, and not of the configuration's."""
    return image.layer_digests[0]


def test_resumes_at_random_cuts_and_downloads_nothing_twice(registry: Registry, image: BuiltImage) -> None:
    chosen = random.Random(2)
    with closing(open_source(f"{registry.host}/app:1", QUICK)) as source:
        layer = source.resolve(AMD64).layers[0]
        for _ in range(200):
            registry.requests.clear()
            cut = chosen.randrange(len(LAYER))
            registry.inject(BLOBS, Fault(cut_after=cut))
            stream = source.open_blob(layer)
            assert b"".join(stream) == LAYER
            assert stream.retries == 1
            assert sent(registry) == len(LAYER)


def test_resumes_at_random_cuts_over_tls_with_tokens_and_signed_urls(authority: tuple[ssl.SSLContext, Path]) -> None:
    """The token has run out when the connection breaks, and so has the signature of the storage's URL."""
    chosen = random.Random(4)
    with Registry(auth="bearer", tls=authority[0]) as registry:
        registry.add_image("app", "1", [LAYER], compression="none")
        registry.inject("/v2/app/blobs/", Fault(redirect=True), times=ALWAYS)
        options = replace(QUICK, credential=Credential(registry.username, registry.password), ca_file=authority[1])
        with closing(open_source(f"{registry.host}/app:1", options)) as source:
            layer = source.resolve(AMD64).layers[0]
            for _ in range(30):
                registry.requests.clear()
                registry.inject("/storage/", Fault(cut_after=chosen.randrange(len(LAYER))))
                registry.inject("/storage/", Fault(status=403, body=b"<Error><Code>AccessDenied</Code></Error>"))
                stream = source.open_blob(layer)
                first = next(stream, b"")
                registry.revoke_tokens()
                assert first + b"".join(stream) == LAYER
                assert stream.retries == 2
                stored = [request for request in registry.requests if request.server == "storage"]
                assert [request.status for request in stored] == [200, 403, 206]
                assert stored[0].sent + stored[2].sent == len(LAYER)


def test_one_connection_serves_the_challenge_the_token_and_the_image(authority: tuple[ssl.SSLContext, Path]) -> None:
    """Handshakes take longer than the short answers that nobody needs to the end."""
    with Registry(auth="bearer", tls=authority[0]) as registry:
        registry.add_image("app", "1", [LAYER])
        options = replace(QUICK, credential=Credential(registry.username, registry.password), ca_file=authority[1])
        with closing(open_source(f"{registry.host}/app:1", options)) as source:
            for layer in source.resolve(AMD64).layers:
                b"".join(source.open_blob(layer))
        assert [request.status for request in registry.requests] == [401, 401, 200, 200, 200, 200]
        assert registry.connections("registry") == 1


def test_an_early_hint_is_not_taken_for_the_answer(registry: Registry, image: BuiltImage) -> None:
    """http.client takes status 103 for the end; what comes behind it would then be the answer to the next request."""
    registry.inject("/manifests/", Fault(interim=(103,)))
    with closing(open_source(f"{registry.host}/app:1", QUICK)) as source:
        with pytest.raises(MalformedError, match="answered 103, which does not end a request"):
            source.resolve(AMD64)
        assert source.resolve(AMD64).digest == image.digest


def test_a_server_of_https_that_hangs_up_is_not_spoken_to_in_the_clear(authority: tuple[ssl.SSLContext, Path]) -> None:
    with Registry(tls=authority[0]) as registry:
        registry.add_image("app", "1", [LAYER])
        registry.inject("^/v2/$", Fault(hang_up=True), times=3)
        resolve(registry, replace(QUICK, ca_file=authority[1]))
        registry.inject("^/v2/$", Fault(hang_up=True), times=ALWAYS)
        with pytest.raises(UnreachableError, match="the connection broke"):
            resolve(registry, replace(QUICK, ca_file=authority[1]))


def test_a_few_bytes_are_no_progress(registry: Registry) -> None:
    """Else a blob that comes by the byte would take for ever, with a connection for each."""
    image = registry.add_image("app", "1", [LAYER], compression="none")
    registry.inject(layer_of(image), Fault(cut_after=100), times=ALWAYS)
    with pytest.raises(UnreachableError, match="unexpected EOF"):
        pull(registry)
    assert len(registry.paths(layer_of(image))) == QUICK.retry.tries


def test_many_cuts_in_one_blob(registry: Registry, image: BuiltImage) -> None:
    registry.inject(layer_of(image), Fault(cut_after=50_000), times=25)
    _, stream, data = pull(registry)
    assert data == LAYER
    assert stream.retries == 25, "the count of failures starts again when bytes arrive"
    assert sent(registry) == len(LAYER)


def test_gives_up_when_no_bytes_arrive(registry: Registry, image: BuiltImage) -> None:
    registry.inject(layer_of(image), Fault(cut_after=70_000))
    registry.inject(layer_of(image), Fault(cut_after=0), times=100)
    with pytest.raises(UnreachableError, match="unexpected EOF"):
        pull(registry)
    assert len(registry.paths(BLOBS)) == 1 + QUICK.retry.tries - 1


def test_resume_where_the_range_is_ignored(registry: Registry, image: BuiltImage) -> None:
    registry.inject(layer_of(image), Fault(cut_after=700_000))
    registry.inject(layer_of(image), Fault(ignore_range=True))
    assert pull(registry)[2] == LAYER


def test_resume_with_chunked_answers(registry: Registry, image: BuiltImage) -> None:
    registry.inject(layer_of(image), Fault(chunked=True, cut_after=700_000))
    registry.inject(layer_of(image), Fault(chunked=True))
    assert pull(registry)[2] == LAYER


def test_resume_behind_a_redirect_asks_the_registry_again(registry: Registry, image: BuiltImage) -> None:
    registry.inject("/v2/app/blobs/" + layer_of(image), Fault(redirect=True), times=10)
    registry.inject("/storage/", Fault(cut_after=10_000))
    registry.inject("/storage/", Fault(status=403, body=b"<Error>expired</Error>"))
    _, stream, data = pull(registry)
    assert data == LAYER
    assert stream.retries == 2
    assert [request.server for request in registry.requests] == ["registry", "storage"] * 3


@pytest.mark.parametrize(
    "value", ["bytes 5-9/1", "bytes 0-9/10", "items 1-2/3", "bytes 70001-{last}/{size}", "bytes 70000-{last}/1"]
)
def test_a_wrong_content_range_is_an_error(registry: Registry, image: BuiltImage, value: str) -> None:
    registry.inject(layer_of(image), Fault(cut_after=70_000))
    registry.inject(
        layer_of(image), Fault(headers={"Content-Range": value.format(size=len(LAYER), last=len(LAYER) - 1)}), times=9
    )
    with pytest.raises((MalformedError, SizeMismatchError), match=r"bytes|Content-Range"):
        pull(registry)


def test_wrong_bytes(registry: Registry, image: BuiltImage) -> None:
    received = bytearray()
    registry.inject(layer_of(image), Fault(damage_at=1000))
    with closing(open_source(f"{registry.host}/app:1", QUICK)) as source:
        stream = source.open_blob(source.resolve(AMD64).layers[0])
        with pytest.raises(DigestMismatchError, match=f"blob {layer_of(image)}: the {len(LAYER)} bytes received have digest"):
            for piece in stream:
                received += piece
    assert 0 < len(received) < len(LAYER), "the last piece must not come before the check"


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("fault", [Fault(append=b"x"), Fault(append=b"x" * 2_000_000)])
def test_long_blobs(registry: Registry, image: BuiltImage, fault: Fault, chunked: bool) -> None:
    registry.inject(layer_of(image), replace(fault, chunked=chunked), times=9)
    with pytest.raises(SizeMismatchError):
        pull(registry)


def test_short_blobs(registry: Registry, image: BuiltImage) -> None:
    registry.inject(layer_of(image), Fault(drop=1))
    with pytest.raises(SizeMismatchError, match=f"{len(LAYER) - 1} bytes, its descriptor says {len(LAYER)}"):
        pull(registry)


def test_wrong_bytes_of_manifests_and_configurations(registry: Registry) -> None:
    image = registry.add_image("app", "1", [LAYER], compression="none")
    registry.inject(image.image_id, Fault(damage_at=3))
    with pytest.raises(DigestMismatchError):
        resolve(registry)
    index = registry.add_index("app", "index", [image])
    registry.inject(image.digest, Fault(damage_at=3))
    with pytest.raises(DigestMismatchError):
        resolve(registry, tag="index")
    registry.manifests["app", index] = b"{}", OCI_MANIFEST
    with pytest.raises(DigestMismatchError), closing(open_source(f"{registry.host}/app@{index}", QUICK)) as source:
        source.resolve(AMD64)
    registry.inject("/manifests/1", Fault(headers={"Docker-Content-Digest": "sha256:" + 64 * "0"}))
    with pytest.raises(DigestMismatchError, match="the registry says"):
        resolve(registry)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("path", ["/manifests/", "/blobs/"])
def test_temporary_statuses_are_tried_again(registry: Registry, image: BuiltImage, status: int, path: str) -> None:
    said: list[str] = []
    registry.inject(path, Fault(status=status, body=b"<html>no</html>"), times=2)
    resolve(registry, replace(QUICK, on_retry=lambda message, delay: said.append(message)))
    assert len(said) == 2
    assert str(status) in said[0]


def test_temporary_statuses_that_stay(registry: Registry, image: BuiltImage) -> None:
    registry.inject("/manifests/", Fault(status=503, headers={"Retry-After": "0"}), times=99)
    with pytest.raises(ServerError) as raised:
        resolve(registry)
    assert raised.value.status == 503
    assert raised.value.retry_after == 0
    assert raised.value.temporary
    assert len(registry.paths("/manifests/")) == QUICK.retry.tries


@pytest.mark.parametrize("status", [400, 403, 410, 412, 501])
def test_final_statuses_are_not_tried_again(registry: Registry, image: BuiltImage, status: int) -> None:
    registry.inject("/manifests/", Fault(status=status), times=99)
    with pytest.raises(RegistryError, match=str(status)):
        resolve(registry)
    assert len(registry.paths("/manifests/")) == 1


def test_retry_after_is_honoured(registry: Registry, image: BuiltImage) -> None:
    delays: list[float] = []
    registry.inject("/manifests/", Fault(status=429, headers={"Retry-After": "1"}))
    resolve(registry, replace(QUICK, on_retry=lambda message, delay: delays.append(delay)))
    assert delays == [1.0]
    registry.inject(
        "/manifests/", Fault(status=429, headers={"Retry-After": formatdate(time.time() + 1000, usegmt=True)}), times=9
    )
    with pytest.raises(RateLimitError) as raised:
        resolve(registry, replace(QUICK, retry=RetryPolicy(tries=1)))
    assert raised.value.retry_after == pytest.approx(1000, abs=5)


def test_temporary_codes_at_other_statuses(registry: Registry, image: BuiltImage) -> None:
    body = b'{"errors": [{"code": "TOOMANYREQUESTS", "message": "too many requests to upstream registry"}]}'
    registry.inject("/manifests/", Fault(status=400, body=body))
    assert resolve(registry).digest == image.digest


def test_policy_violation_shows_its_message(registry: Registry, image: BuiltImage) -> None:
    body = b'{"errors": [{"code": "PROJECTPOLICYVIOLATION", "message": "current image with 9 vulnerabilities cannot be pulled"}]}'
    registry.inject("/manifests/", Fault(status=412, body=body))
    with pytest.raises(DeniedError, match="9 vulnerabilities") as raised:
        resolve(registry)
    assert raised.value.codes == ("PROJECTPOLICYVIOLATION",)


def test_hang_up_before_the_answer(registry: Registry, image: BuiltImage) -> None:
    registry.inject("/manifests/", Fault(hang_up=True), times=2)
    assert resolve(registry).digest == image.digest


def test_silence(registry: Registry, image: BuiltImage) -> None:
    registry.inject("/manifests/", Fault(delay=0.6), times=1)
    assert resolve(registry, replace(QUICK, read_timeout=0.2)).digest == image.digest


def test_no_such_repository_tag_or_registry(registry: Registry, image: BuiltImage) -> None:
    with pytest.raises(NotFoundError, match=f"manifest for {registry.host}/app:2 not found: manifest unknown") as raised:
        resolve(registry, tag="2")
    assert raised.value.codes == ("MANIFEST_UNKNOWN",)
    with pytest.raises(NotFoundError, match=f"repository {registry.host}/nope not found: name unknown"):
        resolve_text(f"{registry.host}/nope")
    with pytest.raises(UnknownHostError, match=r"registry registry\.invalid: no such host"):
        resolve_text("registry.invalid/app")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(UnreachableError, match=f"registry {host}: connection refused"):
            resolve_text(f"{host}/app")


def test_huge_documents_are_not_read(registry: Registry, image: BuiltImage) -> None:
    registry.add_manifest("app", "huge", b" " * (5 << 20), OCI_MANIFEST)
    with pytest.raises(MalformedError, match="more than 4194304 bytes"):
        resolve(registry, tag="huge")
    registry.inject("/manifests/1", Fault(status=404, body=b"x" * (1 << 20)))
    with pytest.raises(NotFoundError):
        resolve(registry)


def test_encoded_bodies_are_refused(registry: Registry, image: BuiltImage) -> None:
    registry.inject("/manifests/", Fault(headers={"Content-Encoding": "gzip"}))
    with pytest.raises(MalformedError, match="Content-Encoding 'gzip'"):
        resolve(registry)


def test_redirects_that_are_not_followed(registry: Registry, image: BuiltImage) -> None:
    registry.inject("/blobs/", Fault(status=302, headers={"Location": "file:///etc/passwd"}))
    with pytest.raises(RegistryError, match="not HTTP"):
        resolve(registry)
    registry.inject("/blobs/", Fault(status=302, headers={"Location": "/v2/app/blobs/again"}), times=99)
    with pytest.raises(RegistryError, match="more than 5 redirects"):
        resolve(registry)


def test_cancel_ends_a_stream_that_waits(registry: Registry, image: BuiltImage) -> None:
    registry.inject(layer_of(image), Fault(cut_after=0, stall=20))
    with closing(open_source(f"{registry.host}/app:1", replace(QUICK, read_timeout=30))) as source:
        stream = source.open_blob(source.resolve(AMD64).layers[0])
        threading.Timer(0.1, stream.cancel).start()
        with pytest.raises(CancelledError, match="cancelled at byte 0"):
            list(stream)


def test_cancel_ends_the_wait_for_the_next_try(registry: Registry, image: BuiltImage) -> None:
    registry.inject(layer_of(image), Fault(status=503, headers={"Retry-After": "50"}))
    streams: list[BlobStream] = []
    options = replace(QUICK, on_retry=lambda message, delay: threading.Timer(0.05, streams[0].cancel).start())
    with closing(open_source(f"{registry.host}/app:1", options)) as source:
        streams.append(source.open_blob(source.resolve(AMD64).layers[0]))
        with pytest.raises(CancelledError):
            list(streams[0])


def secret_source(registry: Registry, options: Options = QUICK) -> ImageSource:
    credential = Credential(registry.username, registry.password)
    return open_source(f"{registry.host}/app:1", replace(options, credential=credential))


@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_authorization_goes_to_the_registry_alone(auth: str) -> None:
    with Registry(auth=auth) as registry:
        image = registry.add_image("app", "1", [LAYER])
        registry.inject("/v2/app/blobs/", Fault(redirect=True), times=9)
        with closing(secret_source(registry)) as source:
            assert source.resolve(AMD64).digest == image.digest
            b"".join(source.open_blob(source.resolve(AMD64).layers[0]))
        to_storage = [request for request in registry.requests if request.server == "storage"]
        assert to_storage
        assert all("authorization" not in {name.lower() for name in request.headers} for request in to_storage)


@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_wrong_password(auth: str) -> None:
    with Registry(auth=auth) as registry:
        registry.add_image("app", "1", [LAYER])
        options = replace(QUICK, credential=Credential("robot$x", "canary-secret"))
        with closing(open_source(f"{registry.host}/app:1", options)) as source, pytest.raises(DeniedError) as raised:
            source.resolve(AMD64)
        assert "account 'robot$x' is not accepted" in str(raised.value)
        assert "canary-secret" not in repr(raised.value) + repr(options)
        with (
            closing(open_source(f"{registry.host}/app:1", QUICK)) as source,
            pytest.raises(DeniedError, match="may require 'docker login'"),
        ):
            source.resolve(AMD64)
        assert len(registry.paths("/manifests/")) <= 4


def test_refusal_after_a_fresh_token_names_repository_and_account() -> None:
    with Registry(auth="bearer") as registry:
        registry.add_image("app", "1", [LAYER])
        registry.inject(
            "/manifests/",
            Fault(status=401, headers={"WWW-Authenticate": f'Bearer realm="http://{registry.host}/token"'}),
            times=9,
        )
        with closing(secret_source(registry)) as source, pytest.raises(DeniedError) as raised:
            source.resolve(AMD64)
        assert f"pull access denied for {registry.host}/app: account {registry.username!r}" in str(raised.value)
        assert len(registry.paths("/token")) == 1
        assert len(registry.paths("/manifests/")) == 2


@pytest.mark.parametrize("token_field", ["token", "access_token"])
def test_one_token_serves_many_requests(token_field: str) -> None:
    with Registry(auth="bearer", token_field=token_field, token_lifetime=None, anonymous_pull=True) as registry:
        image = registry.add_image("app", "1", [LAYER], compression="none")
        with closing(open_source(f"{registry.host}/app:1", QUICK)) as source:
            layer = source.resolve(AMD64).layers[0]
            streams = [source.open_blob(layer) for _ in range(8)]
            threads = [threading.Thread(target=lambda stream=stream: b"".join(stream)) for stream in streams]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert all(stream.position == len(LAYER) for stream in streams)
        assert registry.paths("/token") == ["/token?service=registry.test&scope=repository%3Aapp%3Apull"]
        assert len(registry.paths(layer_of(image))) == 8


def test_token_that_runs_out_in_the_middle_of_a_pull() -> None:
    with Registry(auth="bearer") as registry:
        image = registry.add_image("app", "1", [LAYER], compression="none")
        registry.inject(layer_of(image), Fault(cut_after=50_000))
        with closing(secret_source(registry)) as source:
            stream = source.open_blob(source.resolve(AMD64).layers[0])
            first = next(stream)
            registry.revoke_tokens()
            assert first + b"".join(stream) == LAYER
        assert len(registry.paths("/token")) == 2


def test_token_is_renewed_before_it_runs_out() -> None:
    with Registry(auth="bearer", token_lifetime=1.0) as registry:
        registry.add_image("app", "1", [LAYER])
        with closing(secret_source(registry)) as source:
            source.resolve(AMD64)
            time.sleep(0.85)
            registry.requests.clear()
            source.resolve(AMD64)
        assert {request.status for request in registry.requests} == {200}, "no request was refused for an old token"
        assert registry.paths("/token")


def test_identity_token() -> None:
    with Registry(auth="bearer") as registry:
        image = registry.add_image("app", "1", [LAYER])
        options = replace(QUICK, credential=Credential(identity_token=registry.identity_token))
        with closing(open_source(f"{registry.host}/app:1", options)) as source:
            assert source.resolve(AMD64).digest == image.digest
        request = next(request for request in registry.requests if request.path == "/token")
        assert request.method == "POST"
        assert b"grant_type=refresh_token" in request.body


@pytest.mark.parametrize("realm", ["http://example.com/token", "ftp://127.0.0.1/token", "", "https:///x"])
def test_realms_that_get_no_password(realm: str) -> None:
    with Registry(auth="bearer") as registry:
        registry.add_image("app", "1", [LAYER])
        registry.realm = realm
        with closing(secret_source(registry)) as source, pytest.raises(DeniedError, match="no credentials are sent there"):
            source.resolve(AMD64)


def test_environment_does_not_change_what_is_sent(
    registry: Registry, image: BuiltImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login canary password canary\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    pull(registry)
    assert all("authorization" not in {name.lower() for name in request.headers} for request in registry.requests)


def test_proxy_of_the_environment_is_used_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(
        UnreachableError, match=r"registry registry\.invalid: the proxy does not let us through \(connection refused\)"
    ):
        resolve_text("registry.invalid/app")


@pytest.fixture
def authority(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return context, tmp_path / "ca.pem"


def test_tls_with_a_private_authority(authority: tuple[ssl.SSLContext, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with Registry(tls=authority[0]) as registry:
        image = registry.add_image("app", "1", [LAYER], compression="none")
        with pytest.raises(TlsError, match=r"certificate not trusted: .*issuer"):
            resolve(registry)
        assert pull(registry, replace(QUICK, ca_file=authority[1]))[0].digest == image.digest
        for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
            with monkeypatch.context() as patch:
                for other in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
                    patch.delenv(other, raising=False)
                patch.setenv(name, str(authority[1]))
                assert resolve(registry).digest == image.digest


def test_no_redirect_from_https_to_http(authority: tuple[ssl.SSLContext, Path]) -> None:
    with Registry(tls=authority[0]) as registry:
        registry.add_image("app", "1", [LAYER])
        registry.inject("/blobs/", Fault(status=302, headers={"Location": f"http://{registry.host}/x"}))
        with pytest.raises(RegistryError, match="from HTTPS to plain HTTP"):
            resolve(registry, replace(QUICK, ca_file=authority[1]))


def test_http_where_https_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is no literal loopback address never falls back to plain HTTP, wherever it leads."""
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **named: real("127.0.0.1" if host == "registry.test" else host, *rest, **named)
    )
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with suppress(OSError):  # the end
                while True:
                    connection, _ = server.accept()
                    connection.recv(10_000)
                    connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n")
                    connection.close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(PlainHttpError, match="server gave HTTP response to HTTPS client") as raised:
            resolve_text(f"registry.test:{server.getsockname()[1]}/app")
        assert isinstance(raised.value, UnavailableError)
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_tags_are_listed_page_by_page(registry: Registry) -> None:
    for number in range(7):
        registry.add_image("app", f"v{number}", [b""])
    registry.add_image("app", f"sha256-{'0' * 64}.sig", [b""])
    registry.page_size = 3
    with closing(open_source(f"{registry.host}/app", QUICK)) as source:
        assert source.tags() == [f"v{number}" for number in range(7)]
    assert len(registry.paths("tags/list")) == 3
    registry.inject("tags/list", Fault(headers={"Link": '<http://elsewhere.test/v2/>; rel="next"'}))
    with closing(open_source(f"{registry.host}/app", QUICK)) as source, pytest.raises(MalformedError, match="another server"):
        source.tags()


def test_a_refresh_token_that_nobody_asked_for_replaces_no_password() -> None:
    with Registry(auth="bearer") as registry:
        registry.add_image("app", "1", [LAYER])
        registry.inject("/token", Fault(status=200, body=b'{"token": "useless", "refresh_token": "unasked"}'))
        options = replace(QUICK, credential=Credential(registry.username, registry.password))
        with Connections(options) as connections:
            with closing(open_source(f"{registry.host}/app:1", options, connections)) as source, pytest.raises(DeniedError):
                source.resolve(AMD64)
            with closing(open_source(f"{registry.host}/app:1", options, connections)) as source:
                source.resolve(AMD64)
        assert {request.method for request in registry.requests if request.path.startswith("/token")} == {"GET"}
