"""RepositoryClient: the reads of the distribution API for one repository.

Source: OCI distribution-spec 1.1, "Pull" and "Content Discovery".
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import requests

from registry_client import media_types
from registry_client.answers import next_page, status_error
from registry_client.auth import Authorizer, denial
from registry_client.blobs import BlobStream
from registry_client.credentials import Credential, find_credential
from registry_client.digest import Digest
from registry_client.errors import (
    CertificateError,
    DeniedError,
    DigestMismatchError,
    MalformedError,
    NoConnectionError,
    NotFoundError,
    RegistryError,
    SizeMismatchError,
    TlsError,
    UnavailableError,
    UnreachableError,
)
from registry_client.hosts import is_loopback
from registry_client.image import Document
from registry_client.manifest import Descriptor
from registry_client.options import Options
from registry_client.reference import DEFAULT_REGISTRY, is_tag
from registry_client.strict_json import SIZE_MAX, parse_object
from registry_client.transport import Transport, origin, read_body, read_raw

DOCKER_HUB_HOST = "registry-1.docker.io"
PAGE_SIZE = 1000  # the most that Amazon's registry takes
PAGES_MAX = 1000
PAGE_BYTES_MAX = 4 << 20

# Pieces of a TLS connection are 16 KiB; this many bytes are worth the calls that a piece costs further on.
_PIECE_SIZE = 256 << 10
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")


class RepositoryClient:
    """Reads manifests, blobs and tags of one repository. May be used from several threads; close it at the end.

    A registry on this machine (``localhost``, ``127.0.0.0/8``, ``::1``, as typed) is asked by HTTPS first and then by plain HTTP, as
    docker does; all others by HTTPS alone.

    Args:
        registry: as in a Reference: ``docker.io``, ``host:port``.
    """

    def __init__(self, registry: str, repository: str, options: Options) -> None:
        self._registry = registry
        self._repository = repository
        self._options = options
        self._transport = Transport(options)
        self._host = DOCKER_HUB_HOST if registry == DEFAULT_REGISTRY else registry
        self._lock = threading.Lock()
        self._authorizer: Authorizer | None = None
        self._reached = False

    @property
    def name(self) -> str:
        """Registry and repository."""
        return f"{self._registry}/{self._repository}"

    def manifest(self, tag_or_digest: str, what: str) -> Document:
        """The manifest or index of a tag or digest, as it came; checked against the digest.

        Args:
            what: how the user calls it, for messages.

        Raises:
            NotFoundError: no such repository or tag.
            DigestMismatchError: the bytes are not those of the digest, or not those that the registry says they are.
            RegistryError: all else that keeps us from reading it.
        """
        response, _ = self._get(f"manifests/{tag_or_digest}", {"Accept": media_types.ACCEPT_MANIFESTS}, f"manifest for {what}")
        data = read_body(response, SIZE_MAX, f"manifest for {what}")
        media_type = response.headers.get("content-type", "").partition(";")[0].strip()
        claimed = response.headers.get("docker-content-digest", "")
        digest = Digest(tag_or_digest) if ":" in tag_or_digest else Digest.of(data)
        if not digest.names(data):
            raise DigestMismatchError(f"manifest {digest} of {self.name}: the {len(data)} bytes received have {Digest.of(data)}")
        if claimed.startswith("sha256:") and claimed != Digest.of(data):
            raise DigestMismatchError(f"manifest for {what}: the registry says {claimed[:80]!r}, the bytes are {Digest.of(data)}")
        return Document(data, media_type, digest)

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """A blob as a stream; nothing is sent before its first piece is asked for."""
        return BlobStream(
            descriptor,
            lambda start: self._open_body(descriptor, start),
            offset=offset,
            retry=self._options.retry,
            on_retry=self._options.on_retry,
        )

    def tags(self) -> Iterator[str]:
        """All tags, page by page, in the registry's order; without those that cosign uses for signatures.

        Raises:
            NotFoundError: no such repository.
            RegistryError: all else.
        """
        url = f"tags/list?n={PAGE_SIZE}"
        what = f"tags of {self.name}"
        for _ in range(PAGES_MAX):
            response, came_from = self._get(url, {}, what)
            fields = parse_object(read_body(response, PAGE_BYTES_MAX, what), what)
            following = next_page(response, came_from)
            for tag in fields.strings("tags", maximum=PAGE_BYTES_MAX):
                if not is_tag(tag):
                    raise MalformedError(f"{what}: {tag[:160]!r} is no tag")
                if not _SIGNATURE_TAG.fullmatch(tag):
                    yield tag
            if following is None:
                return
            url = following
        raise MalformedError(f"{what}: more than {PAGES_MAX} pages")

    def close(self) -> None:
        """Closes all connections."""
        self._transport.close()

    def _open_body(self, descriptor: Descriptor, start: int) -> _HttpBody:
        """One try to get the bytes from ``start`` on."""
        headers = {"Accept": "*/*"} | ({"Range": f"bytes={start}-"} if start else {})
        what = f"blob {descriptor.digest} of {self.name}"
        response, _ = self._try(f"blobs/{descriptor.digest}", headers, what)
        body = _HttpBody(response, what)
        try:
            at = _start_of(response, descriptor, what) if response.status_code == 206 else 0
            if at not in (0, start):
                raise MalformedError(f"{what}: asked for bytes from {start} on, got them from {at} on")
            length = response.headers.get("content-length", "")
            if length.isascii() and length.isdigit() and at + int(length[:20]) != descriptor.size:
                raise SizeMismatchError(
                    f"{what}: the registry has {at + int(length[:20])} bytes, its descriptor says {descriptor.size}"
                )
            body.skip(start - at)
        except BaseException:
            body.close()
            raise
        return body

    def _get(self, path: str, headers: dict[str, str], what: str) -> tuple[requests.Response, str]:
        """Like `_try`, and again as often as the policy allows."""
        failures = 0
        while True:
            try:
                return self._try(path, headers, what)
            except RegistryError as error:
                failures += 1
                delay = self._options.retry.delay(failures, error)
                if delay is None:
                    raise
                self._options.on_retry(str(error), delay)
                time.sleep(delay)

    def _try(self, path: str, headers: dict[str, str], what: str) -> tuple[requests.Response, str]:
        """One GET below ``/v2/<repository>/``, with authorization, and with one more try if that was refused.

        Args:
            path: or a whole URL of this registry.

        Returns:
            The answer, of status 200 or 206, and the URL that it came from.
        """
        try:
            authorizer = self._connect()
            url = path if "://" in path else f"{self._base}/v2/{self._repository}/{path}"
            sent = authorizer.header()
            response, came_from = self._send(url, headers, sent)
            if response.status_code == 401 and origin(came_from) == origin(url):
                answer = authorizer.answer(response, sent)
                if answer is not None:
                    response, came_from = self._send(url, headers, answer)
        except NoConnectionError as error:
            # A registry that answered before gets time to come back; one that never did is more likely a wrong name.
            error.temporary = self._reached
            raise
        self._reached = True
        if response.status_code in (200, 206):
            return response, came_from
        raise self._error(response, came_from, what, elsewhere=origin(came_from) != origin(url))

    def _send(self, url: str, headers: dict[str, str], authorization: str | None) -> tuple[requests.Response, str]:
        extra = {"Authorization": authorization} if authorization else {}
        return self._transport.send("GET", url, {**headers, **extra})

    def _connect(self) -> Authorizer:
        """Finds out, once, which scheme the registry speaks."""
        with self._lock:
            if self._authorizer is None:
                self._base = self._find_base()
                self._authorizer = Authorizer(self._transport, self._base, self._repository, self._credential)
            return self._authorizer

    def _find_base(self) -> str:
        secure, plain = f"https://{self._host}", f"http://{self._host}"
        if not is_loopback(urlsplit(secure).hostname or ""):
            return secure
        try:
            self._transport.send("GET", f"{secure}/v2/", {})[0].close()
        except CertificateError:
            raise
        except (TlsError, UnreachableError):
            return plain
        self._reached = True
        return secure

    def _credential(self) -> Credential:
        if self._options.credential is not None:
            return self._options.credential
        return find_credential(self._registry, self._repository)

    def _error(self, response: requests.Response, url: str, what: str, *, elsewhere: bool) -> RegistryError:
        if elsewhere and response.status_code in (401, 403):
            # Storage that we were sent to: its signed URL has run out. The registry gives a new one.
            error = status_error(response, url, what)
            return UnavailableError(str(error), request=error.request, status=error.status)
        error = status_error(response, url, what)
        if isinstance(error, NotFoundError) and "NAME_UNKNOWN" in error.codes:
            words = str(error).partition("not found: ")[2]
            return _like(error, NotFoundError, f"repository {self.name} not found: {words}")
        if isinstance(error, DeniedError) and error.status in (401, 403) and self._authorizer is not None:
            words = str(error).partition(f"{what}: ")[2]
            return _like(error, DeniedError, denial(self.name, self._authorizer.credential, words))
        return error


_SIGNATURE_TAG = re.compile(r"sha256-[0-9a-f]{64}(?:\.[A-Za-z0-9_.-]+)?")


def _like(error: RegistryError, kind: type[RegistryError], message: str) -> RegistryError:
    return kind(message, request=error.request, status=error.status, codes=error.codes, retry_after=error.retry_after)


def _start_of(response: requests.Response, descriptor: Descriptor, what: str) -> int:
    """First byte of a 206 answer (RFC 9110 §14.4)."""
    value = response.headers.get("content-range", "")
    found = _CONTENT_RANGE.fullmatch(value)
    if found is None:
        raise MalformedError(f"{what}: Content-Range is {value[:80]!r}")
    start, end, total = found.groups()
    if total not in ("*", str(descriptor.size)) or int(end) + 1 != descriptor.size:
        raise SizeMismatchError(f"{what}: Content-Range is {value!r}, its descriptor says {descriptor.size} bytes")
    return int(start)


class _HttpBody:
    """The Body of an HTTP answer."""

    def __init__(self, response: requests.Response, what: str) -> None:
        self._response = response
        self._what = what

    def read(self, size: int) -> bytes:
        pieces: list[bytes] = []
        length = 0
        while length < min(size, _PIECE_SIZE):
            try:
                piece = read_raw(self._response, size - length, self._what)
            except UnreachableError:
                if pieces:
                    break  # what came is good; the next read meets the same error
                raise
            if not piece:
                break
            pieces.append(piece)
            length += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def skip(self, size: int) -> None:
        """Drops bytes that are here already: the server did not honour the Range."""
        while size > 0:
            piece = self.read(min(size, 1 << 20))
            if not piece:
                raise UnreachableError(f"{self._what}: the connection ended, {size} bytes before the wanted ones")
            size -= len(piece)

    def interrupt(self) -> None:
        with suppress(OSError, ValueError, RuntimeError):
            self._response.raw.shutdown()

    def close(self) -> None:
        self._response.close()
