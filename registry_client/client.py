"""RepositoryClient: the reads of the distribution API for one repository, from its registry and the registry's mirrors.

Source: OCI distribution-spec 1.1, "Pull" and "Content Discovery".
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Self, TypeVar

from registry_client import media_types
from registry_client.answers import next_page
from registry_client.blobs import PROGRESS_MIN, BlobStream
from registry_client.digest import Digest
from registry_client.errors import (
    DeniedError,
    DigestMismatchError,
    InvalidDigestError,
    MalformedError,
    NotFoundError,
    RegistryError,
    UnavailableError,
)
from registry_client.image import Document
from registry_client.manifest import Descriptor, Index, parse_manifest
from registry_client.options import Options
from registry_client.reference import Reference, is_tag
from registry_client.repository import Answer, HttpBody, RemoteRepository
from registry_client.routes import find_endpoints, find_primary
from registry_client.server import Connections
from registry_client.strict_json import SIZE_MAX, parse_object
from registry_client.transport import read_body

T = TypeVar("T")

PAGE_SIZE = 1000  # the most that Amazon's registry takes
PAGES_MAX = 1000
PAGE_BYTES_MAX = 4 << 20

_COMPANION_TAG = re.compile(r"sha256-[0-9a-f]{64}(?:\.[A-Za-z0-9_.-]+)?")


class RepositoryClient:
    """Reads manifests, blobs, tags and referrers of one repository. May be used from several threads; close it at the end.

    A read goes to the first mirror that the configuration names, and from one that fails to the next; to the registry last.

    A registry on this machine (``localhost``, ``127.0.0.0/8``, ``::1``, as typed) is asked by HTTPS first and then by plain HTTP, as
    docker does; all others by HTTPS alone, unless the configuration calls them insecure.
    """

    def __init__(
        self,
        registry: str,
        repository: str,
        options: Options | None = None,
        connections: Connections | None = None,
        *,
        by_digest: bool = False,
    ) -> None:
        """Reads configuration; sends nothing yet.

        Args:
            registry: as in a Reference: ``docker.io``, ``host:port``.
            connections: to share; None: its own, which `close` closes.
            by_digest: what is wanted is named by a digest: mirrors that are for tags alone are left out.

        Raises:
            DeniedError: a policy forbids this registry.
            MalformedError: a configuration file is broken.
        """
        options = options or Options()
        self.name = f"{registry}/{repository}"
        self._options = options
        endpoints = find_endpoints(registry, repository, options, by_digest=by_digest)
        primary = find_primary(registry, repository, options)
        shared = Connections(options) if connections is None else connections
        self._own_connections = shared if connections is None else None
        self.primary = RemoteRepository(primary, self.name, shared, options)
        """The registry itself, for writes."""
        self._places = [RemoteRepository(endpoint, self.name, shared, options) for endpoint in endpoints]
        self._closed_to_us: set[RemoteRepository] = set()

    @classmethod
    def of(cls, reference: Reference, options: Options | None = None, connections: Connections | None = None) -> Self:
        """The client for the repository of a reference."""
        by_digest = reference.digest is not None
        return cls(reference.registry, reference.repository, options, connections, by_digest=by_digest)

    def manifest(self, tag_or_digest: str, what: str | None = None) -> Document:
        """The manifest or index of a tag or digest, as it came; checked against the digest.

        Args:
            what: how the user calls it, for messages.

        Raises:
            NotFoundError: no such repository or tag.
            DigestMismatchError: the bytes are not those of the digest, or not those that the registry says they are.
            RegistryError: all else that keeps us from reading it.
        """
        what = f"manifest for {what or _named(self.name, tag_or_digest)}"
        return self._first(lambda place: read_manifest(place, tag_or_digest, what), by_digest=":" in tag_or_digest)

    def find_manifest(self, tag_or_digest: str) -> Descriptor | None:
        """What a tag or digest names, without its contents (HEAD); None if there is nothing.

        Registries that do not say it in the answer's headers are asked for the manifest itself.

        Raises:
            RegistryError: the registry does not answer, or does not let us look.
        """
        what = f"manifest for {_named(self.name, tag_or_digest)}"

        def ask(place: RemoteRepository) -> Descriptor:
            headers = {"Accept": media_types.ACCEPT_MANIFESTS}
            answer = place.request("HEAD", f"manifests/{tag_or_digest}", what, headers=headers)
            answer.close()
            return _descriptor_of(answer) or _describe(read_manifest(place, tag_or_digest, what))

        try:
            return self._first(ask, by_digest=":" in tag_or_digest)
        except NotFoundError:
            return None

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """A blob as a stream; nothing is sent before its first piece is asked for."""
        places = self._chosen(by_digest=True)
        return BlobStream(
            descriptor,
            _BlobPlaces(descriptor, places, self._move_on),
            offset=offset,
            retry=self._options.retry,
            on_retry=self._options.on_retry,
        )

    def has_blob(self, digest: Digest) -> bool:
        """Whether the registry itself has the blob (HEAD)."""
        answer = self.primary.request("HEAD", f"blobs/{digest}", f"blob {digest} of {self.name}", expected=(200, 404))
        answer.close()
        return answer.status == 200

    def tags(self, *, companions: bool = False) -> Iterator[str]:
        """All tags, page by page, in the registry's order.

        Args:
            companions: with those that stand for signatures and the like of another image (``sha256-….sig``).

        Raises:
            NotFoundError: no such repository.
            RegistryError: all else.
        """
        what = f"tags of {self.name}"
        # A list that began at one place cannot go on at another.
        place, first = self._first(lambda place: (place, self._get(place, f"tags/list?n={PAGE_SIZE}", what)), by_digest=False)
        for data in self._pages(place, first, what):
            for tag in parse_object(data, what).strings("tags", maximum=PAGE_BYTES_MAX):
                if not is_tag(tag):
                    raise MalformedError(f"{what}: {tag[:160]!r} is no tag")
                if companions or not _COMPANION_TAG.fullmatch(tag):
                    yield tag

    def referrers(self, digest: Digest, artifact_type: str | None = None) -> list[Descriptor]:
        """Manifests that have this one as their subject: signatures, SBOMs.

        Registries without the referrers API are asked for the tag that stands in for it (``sha256-<hex>``).

        Args:
            artifact_type: only those of this type.

        Raises:
            RegistryError: the registry does not answer, does not let us look, or its list is broken.
        """
        what = f"referrers of {self.name}@{digest}"
        found = self._first(lambda place: self._read_referrers(place, digest, artifact_type, what), by_digest=True)
        return [entry for entry in found if artifact_type is None or entry.artifact_type == artifact_type]

    def close(self) -> None:
        """Closes the connections, unless they are shared."""
        if self._own_connections is not None:
            self._own_connections.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *rest: object) -> None:
        self.close()

    def _first(self, ask: Callable[[RemoteRepository], T], *, by_digest: bool) -> T:
        """The answer of the first place that has one."""
        places = self._chosen(by_digest=by_digest)
        for place, following in itertools.pairwise(places):
            try:
                return ask(place)
            except RegistryError as error:
                self._move_on(place, following, error)
        return ask(places[-1])

    def _chosen(self, *, by_digest: bool) -> Sequence[RemoteRepository]:
        """The places to ask, in order; at least one."""
        serving = [
            place for place in self._places if (place.endpoint.serves_digests if by_digest else place.endpoint.serves_tags)
        ] or [self.primary]
        return [place for place in serving[:-1] if not (place.server.rests or place in self._closed_to_us)] + serving[-1:]

    def _move_on(self, place: RemoteRepository, following: RemoteRepository, error: RegistryError) -> None:
        if isinstance(error, UnavailableError):
            place.server.rest()
        elif isinstance(error, DeniedError):
            self._closed_to_us.add(place)
        self._options.on_fallback(f"{place.endpoint.host}: {error}; asking {following.endpoint.host}")

    def _read_referrers(self, place: RemoteRepository, digest: Digest, artifact_type: str | None, what: str) -> list[Descriptor]:
        query = f"?artifactType={artifact_type}" if artifact_type else ""
        try:
            first = self._get(place, f"referrers/{digest}{query}", what)
        except NotFoundError:
            return self._read_referrers_tag(place, digest)
        found: list[Descriptor] = []
        for data in self._pages(place, first, what):
            found += _index(data, what).manifests
        return found

    def _read_referrers_tag(self, place: RemoteRepository, digest: Digest) -> list[Descriptor]:
        what = f"referrers of {self.name}@{digest}"
        try:
            document = read_manifest(place, referrers_tag(digest), what)
        except NotFoundError:
            return []
        return list(_index(document.data, what).manifests)

    def _get(self, place: RemoteRepository, path: str, what: str) -> tuple[Answer, bytes]:
        """One page of a list."""

        def read() -> tuple[Answer, bytes]:
            answer = place.send("GET", path, what)
            return answer, read_body(answer.response, PAGE_BYTES_MAX, what)

        return place.retried(read)

    def _pages(self, place: RemoteRepository, first: tuple[Answer, bytes], what: str) -> Iterator[bytes]:
        page = first
        for _ in range(PAGES_MAX):
            following = next_page(page[0].response, page[0].url)
            yield page[1]
            if following is None:
                return
            page = self._get(place, following, what)
        raise MalformedError(f"{what}: more than {PAGES_MAX} pages")


class _BlobPlaces:
    """Opens a blob where it is, going on to the next place when one gives no more bytes."""

    def __init__(
        self,
        descriptor: Descriptor,
        places: Sequence[RemoteRepository],
        move_on: Callable[[RemoteRepository, RemoteRepository, RegistryError], None],
    ) -> None:
        self._descriptor = descriptor
        self._places = list(places)
        self._move_on = move_on
        self._tries: list[int] = []  # offsets asked of the present place since it last gave more than a few bytes

    def __call__(self, start: int) -> HttpBody:
        self._tries = [*(offset for offset in self._tries if start - offset < PROGRESS_MIN), start]
        while True:
            place = self._places[0]
            try:
                if len(self._tries) > 2 and len(self._places) > 1:
                    raise UnavailableError(f"blob {self._descriptor.digest}: no byte after byte {start}")
                return place.open_body(self._descriptor, start)
            except RegistryError as error:
                if len(self._places) == 1 or (error.temporary and len(self._tries) < 2):
                    raise
                del self._places[0]
                self._tries = [start]
                self._move_on(place, self._places[0], error)


def read_manifest(place: RemoteRepository, tag_or_digest: str, what: str) -> Document:
    """The manifest or index of a tag or digest at one place; see `RepositoryClient.manifest`."""
    headers = {"Accept": media_types.ACCEPT_MANIFESTS}

    def read() -> tuple[Answer, bytes]:
        answer = place.send("GET", f"manifests/{tag_or_digest}", what, headers=headers)
        return answer, read_body(answer.response, SIZE_MAX, what)

    answer, data = place.retried(read)
    media_type = answer.header("content-type").partition(";")[0].strip()
    claimed = answer.header("docker-content-digest")
    digest = Digest(tag_or_digest) if ":" in tag_or_digest else Digest.of(data)
    if not digest.names(data):
        raise DigestMismatchError(f"manifest {digest} of {place.name}: the {len(data)} bytes received have {Digest.of(data)}")
    if claimed.startswith("sha256:") and claimed != Digest.of(data):
        raise DigestMismatchError(f"{what}: the registry says {claimed[:80]!r}, the bytes are {Digest.of(data)}")
    return Document(data, media_type, digest)


def referrers_tag(digest: Digest) -> str:
    """The tag of the index that stands in for the referrers API (distribution-spec, "Referrers Tag Schema")."""
    return f"{digest.algorithm}-{digest.hex[:64]}"


def _named(name: str, tag_or_digest: str) -> str:
    return f"{name}{'@' if ':' in tag_or_digest else ':'}{tag_or_digest}"


def _index(data: bytes, what: str) -> Index:
    parsed = parse_manifest(data, media_types.OCI_INDEX, what)
    if not isinstance(parsed, Index):
        raise MalformedError(f"{what}: is a manifest, not an index")
    return parsed


def _descriptor_of(answer: Answer) -> Descriptor | None:
    """What the headers of a HEAD say; None if something is missing or makes no sense."""
    length = answer.header("content-length")
    if answer.header("content-encoding"):
        return None  # then the length is that of something else
    try:
        digest = Digest(answer.header("docker-content-digest"))
    except InvalidDigestError:
        return None
    media_type = answer.header("content-type").partition(";")[0].strip()
    if not (length.isascii() and length.isdigit()) or not media_type:
        return None
    return Descriptor(media_type, digest, int(length[:20]))


def _describe(document: Document) -> Descriptor:
    return Descriptor(document.media_type, document.digest, len(document.data))
