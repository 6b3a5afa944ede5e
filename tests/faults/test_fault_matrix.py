"""The matrix: every fault of ``tests.servers.faults`` at every endpoint, once, twice and always.

What a client must do follows from what a fault is, there:

harmless
    Nothing shows.
passing
    Once and twice the client tries again and succeeds, and no byte of a blob is sent twice but those that were lost on the way; always, it
    gives up after as many tries as it may with one typed error.
final
    One typed error at once: asking again would bring the same.

Whatever happens, no connection, thread or file stays behind, and no error and no message about a try holds a secret or a traceback.
"""

from __future__ import annotations

import json
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from registry_client.client import RepositoryClient
from registry_client.credentials import Credential
from registry_client.digest import Digest
from registry_client.errors import (
    DeniedError,
    DigestMismatchError,
    MalformedError,
    NotFoundError,
    RateLimitError,
    RedirectError,
    RegistryError,
    ServerError,
    SizeMismatchError,
    TooLargeError,
    UnavailableError,
    UnreachableError,
    UnsupportedError,
)
from registry_client.login import check_login
from registry_client.manifest import Descriptor, parse_manifest
from registry_client.options import Options, Places
from registry_client.retry import RetryPolicy
from registry_client.transport import REDIRECTS_MAX
from registry_client.writer import RepositoryWriter
from tests.servers.authority import Authority
from tests.servers.faults import ALWAYS, HARMLESS, LOST_ANSWERS, REFUSED, TEMPORARY, WRONG, Fault
from tests.servers.images import OCI_INDEX, OCI_LAYER, OCI_MANIFEST, BuiltImage, build_index, digest_of
from tests.servers.registry import Registry

SECRETS = ("pa$$:word", "identity-token", "cGEkJDp3b3Jk", "canary")
"""Password, identity token, the end of Basic, the signature of storage URLs."""
TRIES = 4
ERROR_TIME_MAX = 60.0
SILENCE = 0.4
"""Seconds. A busy machine is silent as well, now and then."""
LAYER = random.Random(3).randbytes(6000)
TAGS = [f"v{number}" for number in range(5)]
REFERRER = b'{"schemaVersion":2,"mediaType":"%s","artifactType":"example/sbom","config":%s,"layers":[],"subject":%s}'

_PAST = "Sun, 06 Nov 1994 08:49:37 GMT"
_ZERO = {"429-retry-after-seconds": "0", "429-retry-after-date": _PAST}
FAULTS = {
    # The wait itself is for test_registry_faults: here it would only cost time.
    name: replace(fault, headers={**fault.headers, "Retry-After": _ZERO[name]}) if name in _ZERO else fault
    for name, fault in {**TEMPORARY, **REFUSED, **WRONG, **HARMLESS}.items()
}


@dataclass
class Scene:
    """The registry, and what it has."""

    registry: Registry
    authority: Authority
    image: BuiltImage
    layer: Descriptor
    config: Descriptor
    referrer: str
    said: list[str] = field(default_factory=list)

    def options(self, credential: Credential, *, silence: float) -> Options:
        return Options(
            credential=credential,
            places=Places(),
            ca_file=self.authority.ca_file,
            retry=RetryPolicy(tries=TRIES, base=0.001),
            connect_timeout=5,
            read_timeout=silence,
            on_retry=lambda message, delay: self.said.append(message),
        )


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    authority = Authority(tmp_path_factory.mktemp("authority"))
    with Registry(auth="bearer", tls=authority.server_context()) as registry, pytest.MonkeyPatch.context() as patch:
        patch.setenv("REQUESTS_CA_BUNDLE", str(authority.ca_file))  # the system's authorities take long to read
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
        image = registry.add_image("app", "1", [LAYER], compression="none")
        for tag in TAGS:
            registry.add_manifest("app", tag, image.manifest, image.media_type)
        registry.page_size = 3
        subject = b'{"mediaType":"%s","digest":"%s","size":%d}' % (
            OCI_MANIFEST.encode(),
            image.digest.encode(),
            len(image.manifest),
        )
        config = Descriptor("application/vnd.oci.image.config.v1+json", Digest(image.image_id), len(image.config))
        manifest = REFERRER % (
            OCI_MANIFEST.encode(),
            b'{"mediaType":"application/vnd.oci.empty.v1+json","digest":"%s","size":%d}'
            % (config.digest.encode(), len(image.config)),
            subject,
        )
        referrer = registry.add_manifest("app", None, manifest, OCI_MANIFEST)
        entry = {"mediaType": OCI_MANIFEST, "digest": referrer, "size": len(manifest)}
        registry.add_manifest("app", image.digest.replace(":", "-"), build_index([entry]), OCI_INDEX)
        layer = Descriptor(OCI_LAYER, Digest(image.layer_digests[0]), len(LAYER))
        yield Scene(registry, authority, image, layer, config, referrer)


Act = Callable[[Scene, RepositoryClient], object]


@dataclass(frozen=True)
class Row:
    """An endpoint.

    Attributes:
        pattern, method: requests that the faults strike.
        act: what is done.
        wanted: what it gives where nothing goes wrong.
        spared: so many requests are answered well before the first fault.
        fresh: the client has sent nothing before; else it has a token.
    """

    pattern: str
    act: Act
    wanted: Callable[[Scene], object]
    method: str = "GET"
    spared: int = 0
    fresh: bool = False
    identity_token: bool = False
    redirects: bool = False


def read_tag(scene: Scene, client: RepositoryClient) -> object:
    return read_manifest(client, "1")


def read_digest(scene: Scene, client: RepositoryClient) -> object:
    return read_manifest(client, scene.image.digest)


def read_manifest(client: RepositoryClient, tag_or_digest: str) -> bytes:
    document = client.manifest(tag_or_digest)
    parse_manifest(document.data, document.media_type, "manifest")
    return document.data


def find_manifest(scene: Scene, client: RepositoryClient) -> object:
    """A lie in the headers of a HEAD cannot be told, so only that there is an answer counts."""
    if client.find_manifest("1") is None:
        raise NotFoundError("nothing")
    return True


def read_config(scene: Scene, client: RepositoryClient) -> object:
    return b"".join(client.open_blob(scene.config))


def read_layer(scene: Scene, client: RepositoryClient) -> object:
    return b"".join(client.open_blob(scene.layer))


def log_in(scene: Scene, client: RepositoryClient) -> object:
    credential = Credential(scene.registry.username, scene.registry.password)
    return check_login(scene.registry.host, credential, client._options).username


def list_referrers(scene: Scene, client: RepositoryClient) -> object:
    return [entry.digest for entry in client.referrers(Digest(scene.image.digest))]


def manifest_data(scene: Scene) -> object:
    return scene.image.manifest


def layer_data(scene: Scene) -> object:
    return LAYER


ROWS = {
    "probe": Row("^/v2/$", read_tag, manifest_data, fresh=True),
    # Spared are the probe, and the request that is answered with the challenge.
    "login": Row("^/v2/$", log_in, lambda scene: scene.registry.username, fresh=True, spared=2),
    "token": Row("^/token", read_tag, manifest_data, fresh=True),
    "token-post": Row("^/token", read_tag, manifest_data, method="POST", fresh=True, identity_token=True),
    "manifest-by-tag": Row("/manifests/1$", read_tag, manifest_data),
    "manifest-by-digest": Row("/manifests/sha256:", read_digest, manifest_data),
    "manifest-head": Row("/manifests/1$", find_manifest, lambda scene: True, method="HEAD"),
    "config": Row("/blobs/", read_config, lambda scene: scene.image.config),
    "layer": Row("/blobs/", read_layer, layer_data),
    "storage": Row("^/storage/", read_layer, layer_data, redirects=True),
    "tags": Row("/tags/list.*last=", lambda scene, client: list(client.tags()), lambda scene: sorted(["1", *TAGS])),
    "referrers": Row("/referrers/", list_referrers, lambda scene: [scene.referrer]),
}
BLOBS = {"config", "layer", "storage"}


@dataclass(frozen=True)
class Expected:
    """What a fault leads to.

    Attributes:
        error: the kind; None for a harmless fault.
        passes: once and twice the client overcomes it.
        hits: requests that it strikes until the client gives up, if it strikes always.
    """

    error: type[RegistryError] | None = None
    passes: bool = False
    hits: int = 1


def passing(error: type[RegistryError]) -> Expected:
    return Expected(error, passes=True, hits=TRIES)


HARMLESS_HERE = Expected()
UNREACHABLE = passing(UnreachableError)

_USUAL: dict[str, Expected] = {
    **dict.fromkeys(TEMPORARY, UNREACHABLE),
    **{name: passing(ServerError) for name in TEMPORARY if name[:3] in ("408", "500", "502", "503", "504")},
    **{name: passing(RateLimitError) for name in TEMPORARY if name.startswith("429")},
    "400-too-many-requests": passing(RateLimitError),
    "400-unavailable": passing(UnavailableError),
    "500": passing(UnavailableError),
    "503-unavailable": passing(UnavailableError),
    "500-upstream-login": passing(UnavailableError),
    "400": Expected(ServerError),
    "403": Expected(DeniedError),
    "404-upstream-login": Expected(NotFoundError),
    "404-html": Expected(NotFoundError),
    "405": Expected(UnsupportedError),
    "412-policy": Expected(DeniedError),
    "413-html": Expected(TooLargeError),
    "501": Expected(ServerError),
    **dict.fromkeys(WRONG, Expected(MalformedError)),
    "wrong-digest-header": HARMLESS_HERE,
    "huge-error": Expected(ServerError),
    "redirect-loop": Expected(RedirectError, passes=True, hits=REDIRECTS_MAX + 1),
    "redirect-to-plain-http": Expected(RedirectError),
    "redirect-to-file": Expected(RedirectError),
    "redirect-to-nowhere": Expected(ServerError),
    # Not HTTP at all: it may be something on the way, and asking again costs little.
    **dict.fromkeys(
        (
            "content-length-too-long",
            "malformed-status-line",
            "not-http",
            "binary-garbage",
            "malformed-headers",
            "endless-header",
            "thousand-headers",
            "negative-content-length",
            "two-content-lengths",
            "malformed-chunk",
        ),
        UNREACHABLE,
    ),
    **dict.fromkeys([*HARMLESS, "continue-unasked"], HARMLESS_HERE),
}

_OF_BODIES = (
    "cut-body",
    "cut-chunked-body",
    "reset-in-body",
    "stall-in-body",
    "content-length-too-long",
    "content-length-too-short",
    "damaged-body",
    "body-too-short",
    "body-too-long",
    "huge-body",
    "garbage-json",
    "html-page",
    "empty-200",
    "gzip-unasked",
    "malformed-chunk",
    "malformed-headers",
    "cut-headers",
    "cut-before-body",
)
"""What does nothing to who does not read the body."""

_OF_STATUSES = [name for name in FAULTS if name[:3].isdigit()]


def _exceptions(row: str) -> dict[str, Expected]:
    """Where an endpoint makes a fault something else."""
    bodiless = dict.fromkeys(_OF_BODIES, HARMLESS_HERE)
    # The codes that make other statuses temporary are in the body.
    of_head = {
        "400-too-many-requests": Expected(ServerError),
        "400-unavailable": Expected(ServerError),
        "500": passing(ServerError),
        "503-unavailable": passing(ServerError),
        "500-upstream-login": passing(ServerError),
    }
    blob = {
        **dict.fromkeys(
            ("content-length-too-long", "content-length-too-short", "body-too-short", "body-too-long", "huge-body"),
            Expected(SizeMismatchError),
        ),
        **dict.fromkeys(("garbage-json", "html-page", "empty-200", "gzip-unasked"), Expected(SizeMismatchError)),
        "damaged-body": Expected(DigestMismatchError),
    }
    named = dict.fromkeys(
        ("wrong-digest-header", "damaged-body", "body-too-short", "body-too-long", "content-length-too-short"),
        Expected(DigestMismatchError),
    )
    by_digest = dict.fromkeys(("garbage-json", "html-page", "empty-200"), Expected(DigestMismatchError))
    not_there = {name: passing(UnavailableError) for name in ("404-upstream-login", "404-html")}
    get_instead = {name: Expected(DeniedError) for name in ("404-upstream-login", "404-html", "405")}
    unmoved = {"redirect-loop": Expected(RedirectError)}  # a form is not sent elsewhere
    led_once = {"redirect-loop": Expected(RedirectError, passes=True, hits=REDIRECTS_MAX)}
    redirects = dict.fromkeys(("redirect-loop", "redirect-to-plain-http", "redirect-to-file"), HARMLESS_HERE)
    return {
        # Any answer says which scheme it is.
        "probe": {
            **dict.fromkeys(_OF_STATUSES, HARMLESS_HERE),
            **bodiless,
            **redirects,
            "huge-error": HARMLESS_HERE,
            "redirect-to-nowhere": HARMLESS_HERE,
        },
        "login": bodiless,
        # Harbor answers so to those who log in too often.
        "token": not_there,
        # A token server that knows only GET; there the identity token cannot be shown.
        "token-post": get_instead | unmoved,
        "manifest-by-tag": named,
        "manifest-by-digest": named | by_digest,
        "manifest-head": {**bodiless, **of_head},
        "config": blob,
        "layer": blob,
        # A signed URL that has run out: the registry is asked for another.
        "storage": {**blob, **led_once, "403": passing(UnavailableError)},
        # No such API: the tag that stands in for it is read.
        "referrers": dict.fromkeys(("404-upstream-login", "404-html"), HARMLESS_HERE),
    }.get(row, {})


def expect(row: str, fault: str) -> Expected:
    """The one place that says what is right."""
    return _exceptions(row).get(fault) or _USUAL[fault]


TIMES = {"once": 1, "twice": 2, "always": ALWAYS}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("row", ROWS)
def test_matrix(scene: Scene, row: str, fault: str) -> None:
    registry, described = scene.registry, ROWS[row]
    files, threads = open_files(), threading.active_count()
    registry.clear_faults()
    credential = Credential(registry.username, registry.password)
    if described.identity_token:
        credential = Credential(identity_token=registry.identity_token)
    options = scene.options(credential, silence=SILENCE if is_slow(FAULTS[fault]) else 10.0)
    clients = [RepositoryClient(registry.host, "app", options) for _ in range(3 if described.fresh else 1)]
    if not described.fresh:
        clients = [*clients] * 3
        clients[0].manifest("v1")
    errors: list[RegistryError | None] = []  # what their tracebacks hold must not matter
    for (often, times), client in zip(TIMES.items(), clients, strict=True):
        cell = f"{fault} at {row}, {often}"
        errors.append(check_cell(scene, client, described, FAULTS[fault], times, expect(row, fault), cell))
    for client in clients:
        client.close()
    wait_until(lambda: open_files() <= files, f"{fault} at {row}")
    wait_until(lambda: threading.active_count() <= threads, f"{fault} at {row}")
    assert list(Path(tempfile.gettempdir()).iterdir()) == []


def is_slow(fault: Fault) -> bool:
    return fault.stall > SILENCE or fault.delay > SILENCE


def check_cell(
    scene: Scene, client: RepositoryClient, row: Row, fault: Fault, times: int, expected: Expected, cell: str
) -> RegistryError | None:
    registry = scene.registry
    registry.clear_faults()
    registry.requests.clear()
    scene.said.clear()
    if row.spared:
        registry.inject(row.pattern, Fault(), times=row.spared)
    injected = registry.inject(row.pattern, fault, times=times, method=row.method)
    if row.redirects:
        registry.inject("/blobs/", Fault(redirect=True), times=ALWAYS)
    started = time.monotonic()
    error: RegistryError | None = None
    try:
        result = row.act(scene, client)
    except RegistryError as raised:
        error = raised
    assert time.monotonic() - started < ERROR_TIME_MAX, cell
    assert injected.hits > 0, f"{cell}: nothing was struck"
    if expected.error is not None and (times == ALWAYS or not expected.passes):
        assert error is not None, f"{cell}: no error, {result!r:.80}"
        assert type(error) is expected.error, f"{cell}: {error!r}"
        # Of those that wait in vain, one may have been spent on a request before.
        assert injected.hits == expected.hits or (is_slow(fault) and injected.hits < expected.hits), f"{cell}: {error!r}"
        assert error.temporary is (expected.passes and expected.error is not RedirectError), cell
    else:
        assert error is None, f"{cell}: {error!r}, {scene.said}"
        assert result == row.wanted(scene), cell
        if row in (ROWS["layer"], ROWS["storage"]):
            check_amount(registry, fault, injected.hits, cell)
    said = "\n".join([*scene.said, *([str(error), repr(error), repr(error.args), repr(vars(error))] if error else [])])
    assert not [secret for secret in SECRETS if secret in said], f"{cell}: {said}"
    assert "Traceback" not in said, cell
    return error


def check_amount(registry: Registry, fault: Fault, hits: int, cell: str) -> None:
    """No byte of the layer was sent twice, but those that were lost with a connection."""
    sent = sum(request.sent for request in registry.requests if request.status in (200, 206) and "sha256" in request.path)
    lost = hits * len(LAYER) // 2 if fault.reset else 0
    assert len(LAYER) <= sent <= len(LAYER) + lost, f"{cell}: {sent} bytes of {len(LAYER)}"


WRITES = {
    "blob-head": ("HEAD", "/blobs/sha"),
    "upload-start": ("POST", "/blobs/uploads/"),
    "upload-chunk": ("PATCH", "uploads/"),
    "upload-end": ("PUT", "uploads/"),
    "manifest-put": ("PUT", "/manifests/"),
}


@pytest.mark.parametrize("fault", {**FAULTS, **LOST_ANSWERS})
@pytest.mark.parametrize("write", WRITES)
def test_writes(scene: Scene, write: str, fault: str) -> None:
    """A write that says that it is done is done; what passes is overcome, all else is one typed error; and nothing wrong is kept."""
    registry, struck = scene.registry, {**FAULTS, **LOST_ANSWERS}[fault]
    method, pattern = WRITES[write]
    files, threads = open_files(), threading.active_count()
    silence = SILENCE if is_slow(struck) else 10.0
    options = scene.options(Credential(registry.username, registry.password), silence=silence)
    registry.clear_faults()
    client = RepositoryClient(registry.host, "written", options)
    push(RepositoryWriter(client.primary), b"first")  # a challenge is answered, and a token is there
    for often, times in TIMES.items():
        cell = f"{fault} at {write}, {often}"
        data = f"{cell} of {time.monotonic_ns()}".encode() * 10
        # A whole body in one PUT, or pieces of it in PATCHes.
        chunk = len(data) // 2 + 1 if write == "upload-chunk" else None
        registry.clear_faults()
        scene.said.clear()
        injected = registry.inject(pattern, struck, times=times, method=method)
        error: RegistryError | None = None
        try:
            push(RepositoryWriter(client.primary, chunk), data)
        except RegistryError as raised:
            error = raised
        registry.clear_faults()
        assert injected.hits > 0, f"{cell}: nothing was struck"
        passes = fault in TEMPORARY or fault in LOST_ANSWERS or fault in HARMLESS
        if fault in HARMLESS or (passes and times < TRIES and not (method == "HEAD" and fault.startswith("400"))):
            assert error is None, f"{cell}: {error!r}, {scene.said}"
        elif times == ALWAYS and fault in TEMPORARY and struck.in_place:
            assert error is not None, cell
        if error is None:
            assert registry.blob("written", digest_of(data)) == data, cell
            assert registry.manifests["written", "latest"][0] == manifest_of(data), cell
        for digest in registry.holdings.get("written", ()):
            assert digest_of(registry.blobs[digest]) == digest, cell
        said = "\n".join([*scene.said, *([str(error), repr(error.args), repr(vars(error))] if error else [])])
        assert not [secret for secret in SECRETS if secret in said], f"{cell}: {said}"
    client.close()
    wait_until(lambda: open_files() <= files, f"{fault} at {write}")
    wait_until(lambda: threading.active_count() <= threads, f"{fault} at {write}")


def push(writer: RepositoryWriter, data: bytes) -> None:
    writer.push_blob(Descriptor(OCI_LAYER, Digest.of(data), len(data)), lambda offset: iter([data[offset:]]))
    writer.put_manifest("latest", manifest_of(data), OCI_MANIFEST)


def manifest_of(data: bytes) -> bytes:
    blob = {"mediaType": OCI_LAYER, "digest": digest_of(data), "size": len(data)}
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": blob, "layers": [blob]}).encode()


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 5.0
    while not true():
        assert time.monotonic() < deadline, f"{what}: left behind: {threading.enumerate()}, {open_files()} files"
        time.sleep(0.002)
