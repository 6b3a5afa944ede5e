"""The distribution-spec 1.1, endpoint by endpoint: Debian's docker-registry and the registry of this process behave alike.

What docker-registry 2.8 does not have (referrers, deletion of tags, an upload by one POST) is asked of ours alone. The suite follows
the categories of the specification's own conformance tests: pull, push, content discovery, content management.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from tests.servers.docker_registry import docker_registry
from tests.servers.images import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    BuiltImage,
    build_image,
    build_index,
    digest_of,
    make_tar,
)
from tests.servers.registry import Registry

DATA = bytes(range(256)) * 4
DIGEST = digest_of(DATA)
IMAGE = build_image([make_tar({"name": b"data"})])
NOTHING = "sha256:" + 64 * "0"


@dataclass(frozen=True)
class Got:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def codes(self) -> list[str]:
        return [each["code"] for each in json.loads(self.body)["errors"]]


@dataclass(frozen=True)
class Client:
    """Asks without knowing anything of registries."""

    host: str

    def ask(self, method: str, url: str, body: bytes | None = None, **headers: str) -> Got:
        """``url`` may be a path below ``/v2/``, or a Location; header names have ``_`` for ``-``."""
        parts = urlsplit(url)
        path = parts._replace(scheme="", netloc="").geturl()
        connection = http.client.HTTPConnection(parts.netloc or self.host, timeout=20)
        with closing(connection):
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            try:
                body = response.read()
            except http.client.IncompleteRead as error:
                assert response.status == 416, "docker-registry says the blob's length there, and sends an error's body"
                body = error.partial
            return Got(response.status, {name.lower(): value for name, value in response.getheaders()}, body)

    def start(self, repository: str = "app", query: str = "") -> str:
        got = self.ask("POST", f"/v2/{repository}/blobs/uploads/{query}")
        assert got.status == 202
        return got.headers["location"]

    def push_blob(self, data: bytes, repository: str = "app") -> str:
        digest = digest_of(data)
        got = self.ask("PUT", finish(self.start(repository), digest), data, Content_Type="application/octet-stream")
        assert (got.status, got.headers["docker-content-digest"]) == (201, digest)
        return digest

    def push_image(self, image: BuiltImage, tag: str, repository: str = "app") -> Got:
        for data in image.blobs.values():
            self.push_blob(data, repository)
        return self.ask("PUT", f"/v2/{repository}/manifests/{tag}", image.manifest, Content_Type=image.media_type)


def finish(location: str, digest: str) -> str:
    return f"{location}{'&' if '?' in location else '?'}digest={quote(digest)}"


LOCATIONS = ("absolute", "relative", "opaque")


@pytest.fixture(scope="module", params=["docker-registry", "docker-registry relative", *LOCATIONS])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    if request.param.startswith("docker-registry"):
        root = tmp_path_factory.mktemp("registry")
        with docker_registry(root, relative_urls=request.param.endswith("relative")) as registry:
            yield Client(registry.host)
    else:
        with Registry() as own:
            own.uploads.location = request.param
            yield Client(own.host)


@pytest.fixture
def own() -> Iterator[Registry]:
    with Registry() as registry:
        yield registry


def test_the_root(client: Client) -> None:
    got = client.ask("GET", "/v2/")
    assert (got.status, got.body) == (200, b"{}")
    assert got.headers["docker-distribution-api-version"] == "registry/2.0"


def test_blobs(client: Client) -> None:
    digest = client.push_blob(DATA)
    for method in ("GET", "HEAD"):
        got = client.ask(method, f"/v2/app/blobs/{digest}")
        assert (got.status, got.body) == (200, DATA if method == "GET" else b"")
        assert got.headers["content-length"] == str(len(DATA))
        assert got.headers["docker-content-digest"] == digest
        assert client.ask(method, f"/v2/app/blobs/{NOTHING}").status == 404
        assert client.ask(method, f"/v2/other/blobs/{digest}").status == 404, "a blob belongs to its repository"
    assert client.ask("GET", f"/v2/app/blobs/{NOTHING}").codes == ["BLOB_UNKNOWN"]


@pytest.mark.parametrize(
    ("asked", "status", "span"),
    [("bytes=0-", 206, (0, 1024)), ("bytes=1000-", 206, (1000, 1024)), ("bytes=5-9", 206, (5, 10)), ("bytes=1024-", 416, None)],
)
def test_ranges(client: Client, asked: str, status: int, span: tuple[int, int] | None) -> None:
    got = client.ask("GET", f"/v2/app/blobs/{client.push_blob(DATA)}", Range=asked)
    assert got.status == status
    if span:
        assert got.body == DATA[slice(*span)]
        assert got.headers["content-range"] == f"bytes {span[0]}-{span[1] - 1}/{len(DATA)}"
    else:
        assert got.headers["content-range"] == f"bytes */{len(DATA)}"


def test_a_wrong_digest_ends_an_upload(client: Client) -> None:
    location = client.start()
    got = client.ask("PUT", finish(location, NOTHING), DATA, Content_Type="application/octet-stream")
    assert (got.status, got.codes) == (400, ["DIGEST_INVALID"])
    assert client.ask("PUT", finish(client.start(), "sha256:0"), DATA).codes == ["DIGEST_INVALID"]


def test_chunks(client: Client) -> None:
    data = DATA + b"chunks"
    location = client.start("chunked")
    for start, end in ((0, 300), (300, 1000)):
        kind = "application/octet-stream"
        got = client.ask("PATCH", location, data[start:end], Content_Range=f"{start}-{end - 1}", Content_Type=kind)
        assert (got.status, got.headers["range"]) == (202, f"0-{end - 1}")
        location = got.headers["location"]
    status = client.ask("GET", location)
    assert (status.status, status.headers["range"], status.body) == (204, "0-999", b"")


def test_chunks_out_of_order(own: Registry) -> None:
    client = Client(own.host)
    location = client.ask("PATCH", client.start(), DATA[:1000], Content_Range="0-999").headers["location"]
    got = client.ask("PATCH", location, DATA[900:], Content_Range="900-1023")
    assert (got.status, got.codes, got.headers["range"], got.headers["location"]) == (416, ["RANGE_INVALID"], "0-999", location)
    got = client.ask("PATCH", location, DATA[1000:], Content_Range="1000-1024")
    assert (got.status, got.codes) == (400, ["SIZE_INVALID"]), "fewer bytes than announced"
    assert client.ask("PUT", finish(location, DIGEST), DATA[1000:], Content_Range="1000-1023").status == 201


@pytest.mark.parametrize("with_body", [False, True])
def test_the_last_chunk(client: Client, with_body: bool) -> None:
    data = DATA + bytes([with_body])
    got = client.ask("PATCH", client.start("chunked"), data[:1000], Content_Type="application/octet-stream")
    location = got.headers["location"]
    if not with_body:
        location = client.ask("PATCH", location, data[1000:], Content_Type="application/octet-stream").headers["location"]
    got = client.ask("PUT", finish(location, digest_of(data)), data[1000:] if with_body else None)
    assert got.status == 201
    assert client.ask("GET", got.headers["location"]).body == data
    assert client.ask("PUT", finish(location, digest_of(data))).status == 404, "the upload is over"


def test_an_upload_that_is_given_up(client: Client) -> None:
    location = client.start()
    assert client.ask("DELETE", location).status == 204
    got = client.ask("GET", location)
    assert (got.status, got.codes) == (404, ["BLOB_UPLOAD_UNKNOWN"])


def test_mounts(client: Client) -> None:
    digest = client.push_blob(DATA, "team/from")
    got = client.ask("POST", f"/v2/team/to/blobs/uploads/?mount={digest}&from=team/from")
    assert (got.status, got.headers["docker-content-digest"]) == (201, digest)
    assert client.ask("GET", got.headers["location"]).body == DATA
    assert client.ask("HEAD", f"/v2/team/to/blobs/{digest}").status == 200
    assert "/uploads/" in client.start("team/to", f"?mount={NOTHING}&from=team/from").replace("artifacts-uploads", "uploads")


def test_manifests(client: Client) -> None:
    got = client.push_image(IMAGE, "1", "images")
    assert (got.status, got.headers["docker-content-digest"]) == (201, IMAGE.digest)
    for reference in ("1", IMAGE.digest):
        for method in ("GET", "HEAD"):
            found = client.ask(method, f"/v2/images/manifests/{reference}", Accept=OCI_MANIFEST)
            assert (found.status, found.body) == (200, IMAGE.manifest if method == "GET" else b"")
            assert found.headers["docker-content-digest"] == IMAGE.digest
            assert found.headers["content-type"] == OCI_MANIFEST
            assert found.headers["content-length"] == str(len(IMAGE.manifest))
    got = client.ask("GET", "/v2/images/manifests/nope", Accept=OCI_MANIFEST)
    assert (got.status, got.codes) == (404, ["MANIFEST_UNKNOWN"])


def test_manifests_that_name_what_is_not_there(client: Client) -> None:
    path = "/v2/incomplete/manifests/1"
    got = client.ask("PUT", path, IMAGE.manifest, Content_Type=OCI_MANIFEST)
    assert (got.status, set(got.codes)) == (400, {"MANIFEST_BLOB_UNKNOWN"})
    index = build_index([IMAGE.descriptor()])
    got = client.ask("PUT", path, index, Content_Type=OCI_INDEX)
    assert (got.status, got.codes) == (400, ["MANIFEST_BLOB_UNKNOWN"])
    client.push_image(IMAGE, IMAGE.digest, "incomplete")
    got = client.ask("PUT", path, index, Content_Type=OCI_INDEX)
    assert (got.status, got.headers["docker-content-digest"]) == (201, digest_of(index))


def test_manifests_that_are_none(client: Client) -> None:
    for data in (b"", b"[]", b"{", json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX}).encode()):
        got = client.ask("PUT", "/v2/app/manifests/1", data, Content_Type=OCI_MANIFEST)
        assert (got.status, got.codes) == (400, ["MANIFEST_INVALID"])
    client.push_image(IMAGE, "1")
    got = client.ask("PUT", f"/v2/app/manifests/{NOTHING}", IMAGE.manifest, Content_Type=OCI_MANIFEST)
    assert (got.status, got.codes) == (400, ["DIGEST_INVALID"])


def test_tags(client: Client) -> None:
    for tag in ("c", "a", "d", "b"):
        client.push_image(IMAGE, tag, "tagged")
    got = client.ask("GET", "/v2/tagged/tags/list")
    assert sorted(json.loads(got.body)["tags"]) == ["a", "b", "c", "d"]
    assert json.loads(got.body)["name"] == "tagged"
    got = client.ask("GET", "/v2/nobody/tags/list")
    assert (got.status, got.codes) == (404, ["NAME_UNKNOWN"])


def test_deletes(client: Client) -> None:
    other = build_image([make_tar({"other": b"data"})])
    client.push_image(IMAGE, "1", "deleted")
    client.push_image(other, "2", "deleted")
    assert client.ask("DELETE", f"/v2/deleted/manifests/{IMAGE.digest}").status == 202
    for reference in (IMAGE.digest, "1"):
        assert client.ask("GET", f"/v2/deleted/manifests/{reference}", Accept=OCI_MANIFEST).status == 404
    assert client.ask("GET", "/v2/deleted/manifests/2", Accept=OCI_MANIFEST).body == other.manifest
    assert client.ask("DELETE", f"/v2/deleted/manifests/{NOTHING}").status == 404
    digest = client.push_blob(DATA, "deleted")
    assert client.ask("DELETE", f"/v2/deleted/blobs/{digest}").status == 202
    assert client.ask("HEAD", f"/v2/deleted/blobs/{digest}").status == 404
    assert client.ask("DELETE", f"/v2/deleted/blobs/{digest}").status == 404


def test_pages_of_tags(own: Registry) -> None:
    for number in range(5):
        own.add_image("app", f"v{number}", [b""])
    for own.absolute_links in (False, True):
        path: str | None = "/v2/app/tags/list?n=2"
        pages = []
        while path:
            got = Client(own.host).ask("GET", path)
            pages.append(json.loads(got.body)["tags"])
            path = got.headers["link"].removeprefix("<").removesuffix('>; rel="next"') if "link" in got.headers else None
        assert pages == [["v0", "v1"], ["v2", "v3"], ["v4"]]


def test_deletion_of_tags(own: Registry) -> None:
    client = Client(own.host)
    client.push_image(IMAGE, "1")
    client.push_image(IMAGE, "2")
    assert client.ask("DELETE", "/v2/app/manifests/1").status == 202
    assert json.loads(client.ask("GET", "/v2/app/tags/list").body)["tags"] == ["2"]
    assert client.ask("GET", f"/v2/app/manifests/{IMAGE.digest}").body == IMAGE.manifest
    own.tag_deletes = False
    assert client.ask("DELETE", "/v2/app/manifests/2").codes == ["UNSUPPORTED"]


def test_an_upload_by_one_post(own: Registry) -> None:
    client = Client(own.host)
    assert client.ask("POST", f"/v2/app/blobs/uploads/?digest={NOTHING}", DATA).codes == ["DIGEST_INVALID"]
    got = client.ask("POST", f"/v2/app/blobs/uploads/?digest={DIGEST}", DATA)
    assert (got.status, client.ask("GET", got.headers["location"]).body) == (201, DATA)
    own.uploads.single_post = False
    assert client.ask("POST", f"/v2/app/blobs/uploads/?digest={DIGEST}", DATA).status == 202


def test_the_least_size_of_a_chunk(own: Registry) -> None:
    client, own.uploads.chunk_size_min = Client(own.host), 100
    got = client.ask("POST", "/v2/app/blobs/uploads/")
    assert got.headers["oci-chunk-min-length"] == "100"
    location = got.headers["location"]
    assert client.ask("PATCH", location, DATA[:100], Content_Range="0-99").status == 202
    assert client.ask("PATCH", location, DATA[100:150], Content_Range="100-149").status == 202, "perhaps the last"
    assert client.ask("PATCH", location, DATA[150:], Content_Range="150-1023").codes == ["SIZE_INVALID"]


def test_old_opaque_locations_are_refused(own: Registry) -> None:
    client, own.uploads.location = Client(own.host), "opaque"
    first = client.start()
    second = client.ask("PATCH", first, DATA[:10]).headers["location"]
    assert first != second
    assert client.ask("PATCH", first, DATA[10:]).codes == ["BLOB_UPLOAD_INVALID"]
    got = client.ask("GET", first)
    assert (got.status, got.headers["range"]) == (204, "0-9"), "but where to go on can be asked"
    own.uploads.answers_old = False
    assert client.ask("GET", first).codes == ["BLOB_UPLOAD_INVALID"]
    assert client.ask("PUT", finish(got.headers["location"], DIGEST), DATA[10:]).status == 201


def push_referrer(client: Client, artifact_type: str, **fields: Any) -> Got:
    config = client.push_blob(b"{}")
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": artifact_type,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config, "size": 2},
        "layers": [],
        "subject": {"mediaType": OCI_MANIFEST, "digest": IMAGE.digest, "size": len(IMAGE.manifest)},
        **fields,
    }
    data = json.dumps({name: value for name, value in document.items() if value is not None}).encode()
    return client.ask("PUT", f"/v2/app/manifests/{digest_of(data)}", data, Content_Type=OCI_MANIFEST)


def test_referrers(own: Registry) -> None:
    client = Client(own.host)
    path = f"/v2/app/referrers/{IMAGE.digest}"
    got = client.ask("GET", path)
    assert (got.status, got.headers["content-type"], json.loads(got.body)["manifests"]) == (200, OCI_INDEX, [])
    got = push_referrer(client, "application/example.sbom", annotations={"a": "b"})
    assert (got.status, got.headers["oci-subject"]) == (201, IMAGE.digest), "the subject need not be there"
    push_referrer(client, "application/example.signature")
    config = {"mediaType": OCI_CONFIG, "digest": client.push_blob(b"{}"), "size": 2}
    push_referrer(client, "", artifactType=None, config=config)
    entries = json.loads(client.ask("GET", path).body)["manifests"]
    assert [each["artifactType"] for each in entries] == ["application/example.sbom", "application/example.signature", OCI_CONFIG]
    assert entries[0]["annotations"] == {"a": "b"}
    for each in entries:
        assert len(client.ask("GET", f"/v2/app/manifests/{each['digest']}").body) == each["size"]
    got = client.ask("GET", f"{path}?artifactType=application/example.signature")
    assert got.headers["oci-filters-applied"] == "artifactType"
    assert json.loads(got.body)["manifests"] == entries[1:2]


def test_pages_of_referrers(own: Registry) -> None:
    client, own.page_size = Client(own.host), 1
    push_referrer(client, "one")
    push_referrer(client, "two")
    got = client.ask("GET", f"/v2/app/referrers/{IMAGE.digest}")
    assert got.headers["link"] == f'</v2/app/referrers/{IMAGE.digest}?start=1>; rel="next"'
    got = client.ask("GET", f"/v2/app/referrers/{IMAGE.digest}?start=1")
    assert [each["artifactType"] for each in json.loads(got.body)["manifests"]] == ["two"]
    assert "link" not in got.headers


def test_without_referrers(own: Registry) -> None:
    client, own.referrers = Client(own.host), False
    got = push_referrer(client, "one")
    assert (got.status, "oci-subject" in got.headers) == (201, False)
    assert client.ask("GET", f"/v2/app/referrers/{IMAGE.digest}").status == 404


def test_what_docker_registry_does_its_own_way(tmp_path: Path) -> None:
    """So that it stays known what a client must do without."""
    with docker_registry(tmp_path / "registry") as registry:
        client = Client(registry.host)
        client.push_image(IMAGE, "1")
        assert client.ask("GET", f"/v2/app/referrers/{IMAGE.digest}").status == 404
        assert client.ask("DELETE", "/v2/app/manifests/1").codes == ["DIGEST_INVALID"], "tags cannot be deleted"
        assert ("DELETE", "/v2/app/manifests/1", 400) in registry.requests
        assert client.ask("POST", f"/v2/app/blobs/uploads/?digest={DIGEST}", DATA).status == 202
        first = client.start()
        second = client.ask("PATCH", first, DATA[:10]).headers["location"]
        for method in ("GET", "PATCH"):
            assert client.ask(method, first, b"").codes == ["BLOB_UPLOAD_INVALID"], (
                "an answer that is lost is the end of an upload"
            )
        out_of_order = client.ask("PATCH", second, DATA[:10], Content_Range="5-14")
        assert (out_of_order.status, out_of_order.headers["range"]) == (202, "0-19"), "Content-Range is not looked at"
