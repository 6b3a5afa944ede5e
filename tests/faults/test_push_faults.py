"""What registries, proxies and networks do to a push: cuts, lost answers, refusals, uploads that are forgotten."""

from __future__ import annotations

import itertools
import json
import random
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from registry_client import media_types
from registry_client.client import RepositoryClient
from registry_client.credentials import Credential
from registry_client.digest import Digest
from registry_client.errors import (
    CancelledError,
    DeniedError,
    DigestMismatchError,
    MalformedError,
    NotFoundError,
    RegistryError,
    ServerError,
    SizeMismatchError,
    TooLargeError,
    UnavailableError,
    UnreachableError,
    UnsupportedError,
)
from registry_client.manifest import Descriptor
from registry_client.options import Options
from registry_client.push import BLOBS_AT_ONCE, push_image
from registry_client.reference import Reference
from registry_client.retry import RetryPolicy
from registry_client.source import open_source
from registry_client.uploads import PushStatus
from registry_client.writer import RepositoryWriter
from tests.servers.authority import Authority
from tests.servers.cutting_proxy import CuttingProxy
from tests.servers.faults import ENDPOINTS, LOST_ANSWERS, REFUSED, TEMPORARY, Injected
from tests.servers.images import OCI_INDEX, OCI_MANIFEST, build_image, digest_of, make_tar, write_docker_archive, write_layout
from tests.servers.registry import ALWAYS, Fault, Registry

QUICK = Options(credential=Credential(), retry=RetryPolicy(tries=4, base=0.001), connect_timeout=2, read_timeout=2)
MIB = 1 << 20
SMALL, BIG = (random.Random(size).randbytes(size) for size in (100_000, 5_000_000))
SERVER_ERROR = Fault(status=503)
LOCATIONS = ("absolute", "relative", "opaque", "storage")
THREE_LAYERS = Path("testdata/three-layers")


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as registry:
        yield registry


def describe(data: bytes) -> Descriptor:
    return Descriptor(media_types.OCI_LAYER, Digest.of(data), len(data))


def push(
    registry: Registry, data: bytes, options: Options = QUICK, *, mount_from: tuple[str, ...] = (), real: bytes | None = None
) -> PushStatus:
    """Pushes a blob; what its source gives is ``real``, if that is not the same."""
    given = data if real is None else real
    with RepositoryClient(registry.host, "app", options) as client:
        writer = RepositoryWriter(client.primary, options.upload_chunk)
        return writer.push_blob(
            describe(data),
            lambda offset: (given[at : at + 300_000] for at in range(offset, len(given), 300_000)),
            mount_from=mount_from,
        )


def quick(fault: Fault) -> Fault:
    """The same, for tests in a hurry."""
    soon = {"Retry-After": "0"} if "Retry-After" in fault.headers else fault.headers
    return replace(fault, delay=min(fault.delay, 0.3), stall=min(fault.stall, 0.3), headers=soon)


def stored(registry: Registry, data: bytes) -> bool:
    return registry.blob("app", digest_of(data)) == data


def sent(registry: Registry) -> int:
    """Bytes of bodies that the registry took."""
    return sum(len(request.body) for request in registry.requests if request.status in (201, 202, 0))


def methods(registry: Registry) -> list[str]:
    return [request.method for request in registry.requests]


@pytest.mark.parametrize("location", LOCATIONS)
@pytest.mark.parametrize("data", [SMALL, BIG, b""])
@pytest.mark.parametrize("auth", ["none", "basic", "bearer"])
def test_locations(location: str, data: bytes, auth: str) -> None:
    with Registry(auth=auth) as registry:
        registry.uploads.location = location
        options = replace(QUICK, credential=Credential(registry.username, registry.password) if auth != "none" else Credential())
        assert push(registry, data, options) is PushStatus.UPLOADED
        assert stored(registry, data)
        assert push(registry, data, options) is PushStatus.EXISTS
        elsewhere = [request for request in registry.requests if request.server == "storage"]
        assert bool(elsewhere) == (location == "storage")
        assert not any("authorization" in {name.lower() for name in request.headers} for request in elsewhere)
        assert not registry.uploads.unfinished


@pytest.mark.parametrize("location", ["relative", "opaque"])
def test_resumes_at_random_cuts_and_sends_nothing_twice(registry: Registry, location: str) -> None:
    registry.uploads.location = location
    chosen = random.Random(2)
    for number in range(40):
        data = BIG[number:]
        registry.requests.clear()
        registry.inject("uploads/", Fault(hang_up=True, after=True, cut_request=chosen.randrange(2, len(data))), method="PATCH")
        assert push(registry, data) is PushStatus.UPLOADED
        assert stored(registry, data)
        assert methods(registry) == ["HEAD", "POST", "PATCH", "GET", "PATCH", "PUT"]
        assert sent(registry) == len(data)


@pytest.mark.parametrize("chunk", [None, 700_000])
def test_many_cuts_in_one_blob(registry: Registry, chunk: int | None) -> None:
    struck = registry.inject("uploads/", Fault(hang_up=True, after=True, cut_request=150_000), times=25, method="PATCH")
    assert push(registry, BIG, replace(QUICK, upload_chunk=chunk)) is PushStatus.UPLOADED
    assert struck.hits == 25, "the count of failures starts again when bytes arrive"
    assert stored(registry, BIG)
    assert sent(registry) == len(BIG)


def test_gives_up_when_no_bytes_arrive(registry: Registry) -> None:
    registry.inject("uploads/", Fault(hang_up=True, after=True, cut_request=70_000), method="PATCH")
    registry.inject("uploads/", Fault(hang_up=True, cut_request=1), times=ALWAYS, method="PATCH")
    with pytest.raises(UnreachableError, match="connection broke"):
        push(registry, BIG)
    assert methods(registry).count("PATCH") == 1 + QUICK.retry.tries
    assert methods(registry)[-1] == "DELETE"
    assert not registry.uploads.unfinished


def test_an_upload_that_is_forgotten_again_and_again_ends(registry: Registry) -> None:
    """Acknowledged bytes are progress once, and not each time that they are sent."""
    registry.inject("uploads/", Fault(hang_up=True, after=True, cut_request=100_000), times=ALWAYS, method="PATCH")
    registry.inject("uploads/", Fault(status=404), times=ALWAYS, method="GET")
    with pytest.raises(RegistryError):
        push(registry, BIG)
    assert methods(registry).count("POST") <= QUICK.retry.tries


def passing_faults() -> Iterator[tuple[str, str]]:
    """Step of an upload, and name of a fault."""
    for step in ("blob-head", "upload-start", "upload-chunk", "upload-status", "upload-end"):
        for name, fault in (TEMPORARY | dict(LOST_ANSWERS)).items():
            # That 4xx means "later" is in its body, and the answer to a HEAD has none.
            if step != "blob-head" or fault.status not in (400, 403):
                yield step, name


@pytest.mark.parametrize("data", [SMALL, BIG])
@pytest.mark.parametrize(("step", "name"), list(passing_faults()))
def test_once_or_twice(registry: Registry, data: bytes, step: str, name: str) -> None:
    fault = quick((TEMPORARY | dict(LOST_ANSWERS))[name])
    method, pattern = ENDPOINTS[step]
    registry.inject("uploads/", Fault(hang_up=True, after=True, cut_request=20_000), method="PATCH")  # so the state is asked for
    struck = registry.inject(pattern, fault, times=2, method=method)
    assert push(registry, data, replace(QUICK, read_timeout=0.2)) is PushStatus.UPLOADED
    assert stored(registry, data)
    assert struck.hits > 0 or (data == SMALL and step in ("upload-chunk", "upload-status"))


@pytest.mark.parametrize("step", ["upload-start", "upload-chunk", "upload-end", "blob-head"])
def test_always(registry: Registry, step: str) -> None:
    method, pattern = ENDPOINTS[step]
    struck = registry.inject(pattern, SERVER_ERROR, times=ALWAYS, method=method)
    with pytest.raises(ServerError, match=f"blob {digest_of(BIG)} of {registry.host}/app: status 503"):
        push(registry, BIG)
    assert struck.hits == QUICK.retry.tries
    assert not stored(registry, BIG)
    assert not registry.uploads.unfinished


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("step", ["upload-start", "blob-head", "manifest-put"])
def test_refusals_are_final(registry: Registry, step: str, name: str) -> None:
    method, pattern = ENDPOINTS[step]
    struck = registry.inject(pattern, REFUSED[name], times=ALWAYS, method=method)
    if step == "blob-head" and name.startswith("404"):
        assert push(registry, SMALL) is PushStatus.UPLOADED  # not there: that is no refusal
        return
    wanted = {"403": DeniedError, "412-policy": DeniedError, "405": UnsupportedError, "413-html": TooLargeError}
    with pytest.raises(wanted.get(name, RegistryError)), RepositoryClient(registry.host, "app", QUICK) as client:
        if step == "manifest-put":
            RepositoryWriter(client.primary).put_manifest("1", b'{"schemaVersion": 2, "manifests": []}', OCI_INDEX)
        else:
            push(registry, SMALL)
    assert struck.hits == 1


def test_a_lost_commit_is_found(registry: Registry) -> None:
    registry.inject("uploads/", Fault(hang_up=True, after=True), method="PUT")
    assert push(registry, BIG) is PushStatus.UPLOADED
    assert methods(registry) == ["HEAD", "POST", "PATCH", "PUT", "HEAD"]


def test_a_commit_that_came_to_nothing_is_sent_again(registry: Registry) -> None:
    registry.inject("uploads/", Fault(hang_up=True), method="PUT")
    assert push(registry, BIG) is PushStatus.UPLOADED
    assert methods(registry) == ["HEAD", "POST", "PATCH", "PUT", "HEAD", "GET", "PUT"]


@pytest.mark.parametrize("status", [404, 416])
def test_an_upload_in_another_state_than_thought(registry: Registry, status: int) -> None:
    """404: it is gone, and begun again. 416: it is asked where it is, and nothing is sent twice."""
    registry.inject("uploads/", Fault(status=status), method="PATCH")
    assert push(registry, BIG, replace(QUICK, upload_chunk=2_000_000)) is PushStatus.UPLOADED
    again = ["POST", "PATCH"] if status == 404 else ["GET", "DELETE", "POST", "PATCH"]
    assert methods(registry) == ["HEAD", "POST", "PATCH", *again, "PATCH", "PATCH", "PUT"]


def test_a_lost_answer_to_a_chunk(registry: Registry) -> None:
    registry.inject("uploads/", Fault(hang_up=True, after=True), times=2, method="PATCH")
    assert push(registry, BIG, replace(QUICK, upload_chunk=2_000_000)) is PushStatus.UPLOADED
    assert sent(registry) == len(BIG)
    assert Counter(methods(registry))["PATCH"] == 3


def test_one_byte_or_none(registry: Registry) -> None:
    """``Range: 0-0`` is what docker-registry says for both, so such an upload is begun again."""
    registry.inject("uploads/", Fault(hang_up=True, after=True, cut_request=1), method="PATCH")
    assert push(registry, BIG) is PushStatus.UPLOADED
    assert methods(registry) == ["HEAD", "POST", "PATCH", "GET", "DELETE", "POST", "PATCH", "PUT"]


def test_least_size_of_chunks(registry: Registry) -> None:
    registry.uploads.chunk_size_min = 2_000_000
    assert push(registry, BIG, replace(QUICK, upload_chunk=1_000_000)) is PushStatus.UPLOADED
    chunks = [request for request in registry.requests if request.method == "PATCH"]
    assert [len(request.body) for request in chunks] == [2_000_000, 2_000_000, 1_000_000]
    ranges = [request.headers["Content-Range"] for request in chunks]
    assert ranges == ["0-1999999", "2000000-3999999", "4000000-4999999"]


@pytest.mark.parametrize("data", [BIG, BIG[:3_000_000]])
def test_a_proxy_that_takes_a_mebibyte(registry: Registry, data: bytes) -> None:
    """nginx answers 413 before it has read the body, whatever the registry behind it would take."""
    with RepositoryClient(registry.host, "app", QUICK) as client:
        writer = RepositoryWriter(client.primary)
        for number in range(2):
            registry.requests.clear()
            limited = data[number:]
            refusals = 2 * (len(limited) > 4 * MIB) + (len(limited) <= 4 * MIB) if number == 0 else 0
            method = "PATCH" if len(limited) > 4 * MIB else "PUT"
            struck = registry.inject("uploads/", Fault(status=413, cut_request=0), times=refusals, method=method)
            assert writer.push_blob(describe(limited), lambda offset, each=limited: iter([each[offset:]])) is PushStatus.UPLOADED
            assert stored(registry, limited)
            assert struck.hits == refusals
            taken = [len(request.body) for request in registry.requests if request.status in (201, 202)]
            assert max(taken) == MIB, "and the next blob is not tried in one piece"


def test_not_even_a_mebibyte(registry: Registry) -> None:
    struck = registry.inject("uploads/", Fault(status=413, cut_request=0), times=ALWAYS, method="PATCH")
    with pytest.raises(TooLargeError):
        push(registry, BIG)
    assert struck.hits == 3
    assert not registry.uploads.unfinished


@pytest.mark.parametrize("data", [SMALL, BIG])
@pytest.mark.parametrize("chunk", [None, 1_000_000])
def test_wrong_bytes_are_not_committed(registry: Registry, data: bytes, chunk: int | None) -> None:
    options = replace(QUICK, upload_chunk=chunk)
    with pytest.raises(DigestMismatchError, match=f"blob {digest_of(data)}: its source gives {len(data)} bytes with digest"):
        push(registry, data, options, real=data[:-1] + b"x")
    with pytest.raises(SizeMismatchError, match=f"its source ended at byte {len(data) - 1} of {len(data)}"):
        push(registry, data, options, real=data[:-1])
    assert "PUT" not in methods(registry)
    assert not registry.uploads.unfinished
    assert not registry.blobs


def test_a_source_that_fails_is_not_asked_again(registry: Registry) -> None:
    opened: list[int] = []

    def broken(offset: int) -> Iterator[bytes]:
        opened.append(offset)
        yield BIG[:1_000_000]
        raise UnreachableError("the source went away")

    with RepositoryClient(registry.host, "app", QUICK) as client, pytest.raises(UnreachableError, match="the source went away"):
        RepositoryWriter(client.primary).push_blob(describe(BIG), broken)
    assert opened == [0]
    assert not registry.uploads.unfinished


def test_a_registry_that_claims_more_than_was_sent(registry: Registry) -> None:
    registry.inject("uploads/", Fault(headers={"Range": "0-4999999"}), method="PATCH")
    with pytest.raises(MalformedError, match="says that it has 5000000 bytes, which were not sent yet"):
        push(registry, BIG, replace(QUICK, upload_chunk=2_000_000))


def test_a_registry_that_stored_other_bytes_is_given_them_again(registry: Registry) -> None:
    body = json.dumps({"errors": [{"code": "DIGEST_INVALID"}]}).encode()
    registry.inject("uploads/", Fault(status=400, body=body), method="PUT")
    assert push(registry, BIG) is PushStatus.UPLOADED
    assert stored(registry, BIG)


def test_a_registry_that_takes_nothing(registry: Registry) -> None:
    struck = registry.inject("uploads/", Fault(status=202, headers={"Range": "0-5"}), times=ALWAYS, method="PATCH")
    registry.inject("uploads/", Fault(status=204, headers={"Range": "0-5"}), times=ALWAYS, method="GET")
    with pytest.raises(UnavailableError, match="took nothing of bytes 6 to 4999999, it has 6"):
        push(registry, BIG)
    assert struck.hits == 1 + QUICK.retry.tries


def test_chunks_come_from_one_reading_of_the_source(registry: Registry) -> None:
    opened: list[int] = []

    def read(offset: int) -> Iterator[bytes]:
        opened.append(offset)
        yield BIG[offset : offset + 1_234_567]
        yield b""
        yield BIG[offset + 1_234_567 :]

    with RepositoryClient(registry.host, "app", QUICK) as client:
        writer = RepositoryWriter(client.primary, 1_000_000)
        assert writer.push_blob(describe(BIG), read) is PushStatus.UPLOADED
        assert opened == [0]
        opened.clear()
        registry.inject("uploads/", Fault(hang_up=True, after=True, cut_request=400_000), method="PATCH")
        assert writer.push_blob(describe(BIG[1:]), lambda offset: read(offset + 1)) is PushStatus.UPLOADED
        assert opened == [1, 400_001]
    assert stored(registry, BIG)
    assert stored(registry, BIG[1:])


def test_a_location_in_plain_http(tmp_path: Path) -> None:
    """As of a registry behind a proxy that does not tell it about HTTPS."""
    authority = Authority(tmp_path)
    with Registry(tls=authority.server_context()) as registry:
        location = f"http://{registry.host}/v2/app/blobs/uploads/1?_state=canary"
        registry.inject("uploads/", Fault(status=202, headers={"Location": location}), method="POST")
        with pytest.raises(RegistryError, match=r"the upload was sent from HTTPS to plain HTTP at 127\.0\.0\.1$"):
            push(registry, SMALL, replace(QUICK, ca_file=authority.ca_file))
        assert methods(registry)[-1] == "POST"


@pytest.mark.parametrize("value", ["5-9", "0-", "items 0-5", "0-99999999999999999999999999"])
def test_a_wrong_range_is_an_error(registry: Registry, value: str) -> None:
    registry.inject("uploads/", Fault(headers={"Range": value}), times=ALWAYS, method="PATCH")
    with pytest.raises(MalformedError, match="the Range of an upload is"):
        push(registry, BIG)


def test_locations_to_which_nothing_goes(registry: Registry) -> None:
    for location in ("ftp://example.com/", "http://[::1", "http://169.254.169.254/", "http://host:99999/"):
        registry.requests.clear()
        registry.inject("uploads/", Fault(status=202, headers={"Location": location}), method="POST")
        with pytest.raises(RegistryError, match="the upload was sent to"):
            push(registry, SMALL)
        assert methods(registry) == ["HEAD", "POST"]
    registry.inject("uploads/", Fault(status=202), method="POST", times=ALWAYS)
    with pytest.raises(MalformedError, match="does not say where to upload"):
        push(registry, SMALL)


def test_mounts(registry: Registry) -> None:
    registry.add_blob("other", BIG)
    assert push(registry, BIG, mount_from=("nobody", "other")) is PushStatus.MOUNTED
    assert sent(registry) == 0
    assert not registry.uploads.unfinished
    assert push(registry, SMALL, mount_from=("nobody", "other")) is PushStatus.UPLOADED
    assert not registry.uploads.unfinished


@pytest.mark.parametrize("status", [400, 403, 404, 405])
def test_a_registry_that_refuses_mounts(registry: Registry, status: int) -> None:
    registry.inject("mount=", Fault(status=status), times=ALWAYS)
    assert push(registry, SMALL, mount_from=("other", "third")) is PushStatus.UPLOADED


def test_a_mount_whose_answer_was_lost(registry: Registry) -> None:
    registry.add_blob("other", BIG)
    registry.inject("mount=", Fault(hang_up=True, after=True))
    assert push(registry, BIG, mount_from=("other",)) is PushStatus.MOUNTED


def test_tokens_that_expire_within_an_upload() -> None:
    with Registry(auth="bearer") as registry:
        options = replace(QUICK, credential=Credential(registry.username, registry.password), upload_chunk=1_000_000)
        with RepositoryClient(registry.host, "app", options) as client:
            writer = RepositoryWriter(client.primary, options.upload_chunk)
            left = set(range(0, len(BIG), 1_000_000))

            def read(offset: int) -> Iterator[bytes]:
                for at in range(offset, len(BIG), 1_000_000):
                    if at in left:
                        left.remove(at)
                        registry.revoke_tokens()
                    yield BIG[at : at + 1_000_000]

            assert writer.push_blob(describe(BIG), read) is PushStatus.UPLOADED
        assert stored(registry, BIG)
        assert sum(request.status == 401 for request in registry.requests) >= 5


def test_a_stopped_upload(registry: Registry) -> None:
    stop = threading.Event()

    def read(offset: int) -> Iterator[bytes]:
        yield BIG[:1_000_000]
        stop.set()
        yield BIG[1_000_000:]

    with RepositoryClient(registry.host, "app", QUICK) as client, pytest.raises(CancelledError, match="cancelled at byte 0 of"):
        RepositoryWriter(client.primary).push_blob(describe(BIG), read, stop=stop)
    assert not registry.uploads.unfinished


def test_a_registry_that_reads_slowly(registry: Registry) -> None:
    """A new connection is made within the connect timeout, but what goes over it has the time of a read."""
    data = bytes(40 * MIB)
    registry.inject("uploads/", Fault(close=True, headers={"Connection": "close"}), method="POST")
    options = replace(QUICK, connect_timeout=0.5, read_timeout=20, retry=RetryPolicy(tries=1))
    with CuttingProxy(registry.host) as proxy, RepositoryClient(proxy.host, "app", options) as client:
        registry.host = proxy.host  # in Locations
        proxy.pause_before("PATCH", 1.2)
        writer = RepositoryWriter(client.primary)
        assert writer.push_blob(describe(data), lambda offset: iter([data[offset:]])) is PushStatus.UPLOADED
    assert stored(registry, data)


def push_layout(registry: Registry, layout: Path, tag: str = "1", options: Options = QUICK) -> Digest:
    with closing(open_source(f"oci:{layout}")) as source:
        return push_image(source, Reference.parse(f"{registry.host}/app:{tag}"), options)


def assert_whole(registry: Registry) -> None:
    """No tag, index or manifest names what is not there."""
    for data, _ in registry.manifests.values():
        document: Mapping[str, list[Mapping[str, str]]] = json.loads(data)
        for entry in document.get("manifests", []):
            assert ("app", entry["digest"]) in registry.manifests
        config = [json.loads(data)["config"]] if "config" in document else []
        for entry in [*config, *document.get("layers", [])]:
            assert registry.blob("app", entry["digest"]) is not None


class Late(Injected):
    """Strikes all requests that change something, after the first ``spared`` of them."""

    spared = 0

    def matches(self, method: str, path: str) -> bool:
        self.spared -= method != "HEAD"
        return method != "HEAD" and self.spared < 0


def test_a_push_that_ends_anywhere_leaves_no_broken_tag(tmp_path: Path) -> None:
    names = ("linux/amd64", "linux/arm64")
    images = [build_image([make_tar({"a": name.encode()}), make_tar({"shared": BIG})], platform=name) for name in names]
    layout = write_layout(tmp_path / "layout", {"1": images})
    for spared in itertools.count():
        with Registry() as registry:
            registry.checks_manifests = False
            late = Late(re.compile(""), None, Fault(status=403), ALWAYS)
            late.spared = spared
            registry._injected.append(late)
            try:
                push_layout(registry, layout)
                break
            except DeniedError:
                assert registry.tags.get("app", []) == []
            assert_whole(registry)
            registry.clear_faults()
            assert push_layout(registry, layout) == digest_of(registry.manifests["app", "1"][0])
            assert_whole(registry)
    assert spared == 2 * 4 + 3 + 3, "blobs by POST and PUT, one of them with a PATCH, or PATCH for PUT; three manifests"


def test_a_failure_ends_what_is_under_way(registry: Registry, tmp_path: Path) -> None:
    layers = [make_tar({"random": random.Random(number).randbytes(100_000 + number)}) for number in range(20)]
    layout = write_layout(tmp_path / "layout", {"1": build_image(layers)})
    struck = registry.inject("uploads/", Fault(status=403), times=ALWAYS, method="POST")
    with pytest.raises(DeniedError, match="push access denied"):
        push_layout(registry, layout)
    assert struck.hits <= BLOBS_AT_ONCE


def test_a_docker_archive_cannot_be_pushed(registry: Registry, tmp_path: Path) -> None:
    archive = write_docker_archive(tmp_path / "image.tar", {"app:1": build_image([make_tar({"a": b""})])})
    with closing(open_source(f"docker-archive:{archive}")) as source:
        for platform in (None, source.resolve(None).platform):
            with pytest.raises(UnsupportedError, match="docker-archive holds no manifest"):
                push_image(source, Reference.parse(f"{registry.host}/app:1"), QUICK, platform=platform)
    assert not registry.requests


def test_foreign_layers_stay_where_they_are(registry: Registry, tmp_path: Path) -> None:
    image = build_image([make_tar({"a": b""})])
    fields = json.loads(image.manifest)
    kind = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
    foreign = {"mediaType": kind, "digest": digest_of(b"far away"), "size": 8, "urls": ["https://example.com/layer"]}
    changed = replace(image, manifest=json.dumps(fields | {"layers": [*fields["layers"], foreign]}).encode())
    assert push_layout(registry, write_layout(tmp_path / "layout", {"1": changed})) == changed.digest
    assert registry.manifests["app", "1"][0] == changed.manifest


def test_digests_of_the_destination(registry: Registry) -> None:
    with closing(open_source(f"oci:{THREE_LAYERS}")) as source:
        root = source.root().digest
        wrong = Digest.of(b"")
        with pytest.raises(DigestMismatchError, match=f"which cannot be pushed as .*@{wrong}"):
            push_image(source, Reference.parse(f"{registry.host}/app:1@{wrong}"), QUICK)
        assert not registry.requests
        push_image(source, Reference.parse(f"{registry.host}/app@{root}"), QUICK)
        assert registry.tags["app"] == []
        push_image(source, Reference.parse(f"{registry.host}/app:1@{root}"), QUICK)
        assert registry.tags["app"] == ["1"]


@pytest.mark.parametrize("fault", [*TEMPORARY.values(), *LOST_ANSWERS.values()], ids=[*TEMPORARY, *LOST_ANSWERS])
def test_manifests_are_written_again(registry: Registry, fault: Fault) -> None:
    struck = registry.inject("/manifests/", quick(fault), times=2)
    digest = push_layout(registry, THREE_LAYERS, options=replace(QUICK, read_timeout=0.2))
    assert digest == digest_of(registry.manifests["app", "1"][0])
    assert struck.hits > 0


def test_a_registry_that_got_another_manifest(registry: Registry) -> None:
    registry.inject("/manifests/", Fault(headers={"Docker-Content-Digest": "sha256:" + 64 * "0"}), method="PUT")
    with pytest.raises(DigestMismatchError, match="was pushed, the registry says that it got 'sha256:000"):
        push_layout(registry, THREE_LAYERS)


def test_a_manifest_that_names_what_is_missing(registry: Registry) -> None:
    image = build_image([make_tar({"a": b""})])
    with RepositoryClient(registry.host, "app", QUICK) as client:
        writer = RepositoryWriter(client.primary)
        with pytest.raises(RegistryError, match="manifest blob unknown"):
            writer.put_manifest("1", image.manifest, OCI_MANIFEST)
        body = json.dumps({"errors": [{"code": "MANIFEST_BLOB_UNKNOWN", "message": "blob unknown to registry"}]}).encode()
        registry.inject("/manifests/", Fault(status=404, body=body), method="PUT")
        with pytest.raises(NotFoundError, match="does not take it, something that it names is not there: manifest blob unknown"):
            writer.put_manifest("1", image.manifest, OCI_MANIFEST)
        with pytest.raises(DigestMismatchError, match=f"bytes to push have {image.digest}"):
            writer.put_manifest(Digest.of(b""), image.manifest, OCI_MANIFEST)
        with pytest.raises(MalformedError, match="not valid JSON"):
            writer.put_manifest("1", b"{", OCI_MANIFEST)


def referrer(subject: str, name: str) -> bytes:
    config = {"mediaType": "application/x.config", "digest": digest_of(b"{}"), "size": 2}
    fields = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [], "annotations": {"name": name}}
    return json.dumps(fields | {"subject": {"mediaType": OCI_MANIFEST, "digest": subject, "size": 2}}).encode()


@pytest.mark.parametrize("api", [True, False])
def test_referrers(registry: Registry, api: bool) -> None:
    registry.referrers = api
    registry.add_blob("app", b"{}")
    subject = Digest.of(b"subject")
    with RepositoryClient(registry.host, "app", QUICK) as client:
        writer = RepositoryWriter(client.primary)
        digests = []
        for name in ("one", "two", "one"):
            document = referrer(subject, name)
            digests.append(writer.put_manifest(Digest.of(document), document, OCI_MANIFEST))
        found = client.referrers(subject)
        assert {each.digest: each.annotations["name"] for each in found} == {digests[0]: "one", digests[1]: "two"}
        assert len(found) == 2
        assert {each.artifact_type for each in found} == {"application/x.config"}
        assert registry.tags["app"] == ([] if api else [f"sha256-{subject.hex}"])
        for digest in digests[:2]:
            writer.delete_manifest(digest)
        assert client.referrers(subject) == []


def test_referrers_that_others_write_at_the_same_time(registry: Registry) -> None:
    """Whose entry was overwritten writes it again, and what others wrote stays as it is."""
    registry.referrers = False
    registry.add_blob("app", b"{}")
    subject = Digest.of(b"subject")
    tag = f"sha256-{subject.hex}"
    other = {"mediaType": OCI_MANIFEST, "digest": digest_of(b"other"), "size": 5, "data": "b3RoZXI=", "x-unknown": [1]}
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [other], "annotations": {"kept": "yes"}}
    registry.add_manifest("app", tag, json.dumps(index).encode(), OCI_INDEX)
    registry.checks_manifests = False
    document = referrer(subject, "ours")
    overwritten = Fault(status=201)
    registry.inject(f"/manifests/{tag}", overwritten, method="PUT", times=2)
    with RepositoryClient(registry.host, "app", QUICK) as client:
        writer = RepositoryWriter(client.primary)
        writer.put_manifest("ours", document, OCI_MANIFEST)
        written = json.loads(registry.manifests["app", tag][0])
        assert written["manifests"][0] == other
        assert [entry["digest"] for entry in written["manifests"]] == [other["digest"], digest_of(document)]
        assert written["annotations"] == {"kept": "yes"}
        registry.inject(f"/manifests/{tag}", overwritten, method="PUT", times=ALWAYS)
        with pytest.raises(UnavailableError, match="others changed the list"):
            writer.put_manifest("more", referrer(subject, "more"), OCI_MANIFEST)
        registry.add_manifest("app", tag, document, OCI_MANIFEST)
        with pytest.raises(MalformedError, match="is a manifest, not an index"):
            writer.put_manifest("more", referrer(subject, "more"), OCI_MANIFEST)


def test_deletes(registry: Registry) -> None:
    image = registry.add_image("app", "1", [SMALL])
    with RepositoryClient(registry.host, "app", QUICK) as client:
        writer = RepositoryWriter(client.primary)
        registry.inject("/manifests/1", Fault(hang_up=True, after=True), method="DELETE")
        writer.delete_tag("1")  # the answer to the first request was lost, the second finds nothing
        assert registry.tags["app"] == []
        with pytest.raises(NotFoundError):
            writer.delete_tag("1")
        writer.delete_manifest(Digest(image.digest))
        writer.delete_blob(Digest(image.layer_digests[0]))
        image = registry.add_image("app", "1", [SMALL])
        registry.deletes = False
        for delete in (
            lambda: writer.delete_tag("1"),
            lambda: writer.delete_manifest(Digest(image.digest)),
            lambda: writer.delete_blob(Digest(image.image_id)),
        ):
            with pytest.raises(UnsupportedError, match="The operation is unsupported"):
                delete()
