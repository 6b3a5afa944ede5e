"""Upload: the way of one blob to a registry, resumed where it was cut.

The steps are POST (which may mount the blob from another repository instead), PATCH as often as needed, and PUT, which names the digest
and makes the blob visible. A blob of up to 4 MiB goes with the PUT; a larger one in one PATCH, as docker, skopeo and crane send it, unless
the caller, or a proxy that answers 413, wants smaller requests.

Source: OCI distribution-spec 1.1, "Pushing Blobs"; distribution 2.8 ``registry/handlers/blobupload.go``.
"""

from __future__ import annotations

import enum
import re
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from urllib.parse import quote, urlsplit, urlunsplit

from registry_client.errors import (
    CancelledError,
    DeniedError,
    DigestMismatchError,
    MalformedError,
    NoConnectionError,
    NotFoundError,
    RegistryError,
    SizeMismatchError,
    TooLargeError,
    UnavailableError,
    UnreachableError,
)
from registry_client.manifest import Descriptor
from registry_client.repository import Action, Answer, MakeBody, RemoteRepository
from registry_client.transport import SizedBody, follow

MONOLITHIC_MAX = 4 << 20
"""Bytes of a blob up to which it is sent with the PUT, from memory."""

SMALLER_CHUNKS = (64 << 20, 16 << 20, 4 << 20, 1 << 20)
"""Bytes of the requests tried after status 413. Cloudflare takes 100 MB in one, nginx 1 MiB unless told otherwise."""

_PIECE_SIZE = 1 << 20
_UPLOADS = "blobs/uploads/"
_OCTETS = {"Content-Type": "application/octet-stream"}
_DELETED = (200, 202, 204, 404)
_RANGE = re.compile(r"(?:bytes[= ])?0-(\d{1,19})")
# What registries say of an upload that they gave up, or that does not hold what they were sent.
_LOST_CODES = frozenset({"BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID", "DIGEST_INVALID", "SIZE_INVALID"})

OpenAt = Callable[[int], Iterator[bytes]]
"""Gives a blob's bytes from an offset on. An iterator that has a method ``close`` is closed when it is no longer needed."""


class PushStatus(enum.Enum):
    """How a blob came to be in the repository."""

    EXISTS = "exists"
    MOUNTED = "mounted"
    UPLOADED = "uploaded"


def ignore_position(position: int) -> None:
    """Drops the number."""


class Upload:
    """Sends one blob. For one call of `run`, in one thread.

    No byte that the registry acknowledged is sent twice, as long as it keeps the upload. distribution 2.8 does not, if a connection
    breaks within a PATCH: then the blob is sent from its beginning.

    The number of tries of the repository's RetryPolicy counts failures in a row without a byte beyond those ever acknowledged.

    Attributes:
        chunk: bytes that one request sends at most, or None for all in one; smaller after a 413.
    """

    def __init__(
        self,
        repository: RemoteRepository,
        descriptor: Descriptor,
        open_at: OpenAt,
        *,
        mount_from: Sequence[str] = (),
        chunk: int | None = None,
        progress: Callable[[int], None] = ignore_position,
        stop: threading.Event | None = None,
    ) -> None:
        """Sends nothing yet; see `RepositoryWriter.push_blob`."""
        self.chunk = chunk
        self._repository = repository
        self._descriptor = descriptor
        self._what = f"blob {descriptor.digest} of {repository.name}"
        self._bytes = _Bytes(descriptor, open_at, progress)
        self._mount_from = list(mount_from)
        self._stop = stop or threading.Event()
        self._url: str | None = None  # of the upload; a new one after each answer
        self._position = 0  # bytes that the registry acknowledged
        self._sent = 0  # bytes that it may have
        self._chunk_min = 0
        self._state_unknown = False  # a request was sent, and its answer did not come
        self._commit_unknown = False  # likewise, a PUT
        self._furthest = 0
        self._failures = 0
        self._first_failure = 0.0

    def run(self) -> PushStatus:
        """Sends the blob; returns MOUNTED or UPLOADED. What a failed upload left in the registry is deleted, if that works.

        Raises:
            DigestMismatchError, SizeMismatchError: the bytes given are not those of the descriptor. They were not committed.
            CancelledError: ``stop`` was set.
            RegistryError: what the registry or the source of the bytes raises.
        """
        try:
            while True:
                try:
                    status = self._advance()
                except RegistryError as error:
                    self._recover(error)
                else:
                    if status is not None:
                        return status
        except BaseException:
            self._abandon()
            raise
        finally:
            self._bytes.close()

    def mount(self) -> bool:
        """Tries the first of ``mount_from`` and sends no bytes: whether the blob is there now."""
        answer = self._repository.retried(lambda: self._mount(self._mount_from.pop(0)))
        if answer is None or answer.status == 201:
            return answer is not None
        self._move(answer)
        self._abandon()
        return False

    def _advance(self) -> PushStatus | None:
        """One request; None if more are needed."""
        self._check_stop()
        size = self._descriptor.size
        if self._commit_unknown and has_blob(self._repository, self._descriptor):
            return PushStatus.UPLOADED
        self._commit_unknown = False
        if self._url is None:
            return self._begin()
        if self._state_unknown:
            self._ask_state(self._url)
        elif self._position == size or (self._position == 0 and size <= min(MONOLITHIC_MAX, self._chunk_size)):
            self._commit(with_digest(self._url, self._descriptor))
            return PushStatus.UPLOADED
        else:
            self._send_chunk(self._url)
        return None

    @property
    def _chunk_size(self) -> int:
        """Bytes of the next request."""
        return self._descriptor.size if self.chunk is None else max(self.chunk, self._chunk_min)

    def _begin(self) -> PushStatus | None:
        answer = None
        while self._mount_from and answer is None:
            answer = self._mount(self._mount_from.pop(0))
            if answer is not None and answer.status == 201:
                return PushStatus.MOUNTED
        if answer is None:
            answer = self._send("POST", _UPLOADS, expected=(202,))
        length = answer.header("oci-chunk-min-length")
        self._chunk_min = int(length[:19]) if length.isascii() and length.isdigit() else 0
        if not answer.header("location"):
            error = MalformedError(f"{self._what}: the registry's answer does not say where to upload (no Location)")
            error.temporary = True  # an answer that was cut within its headers looks like one that had no more
            raise error
        self._move(answer)
        return None

    def _mount(self, repository: str) -> Answer | None:
        """Asks for the blob of another repository. None: it cannot be had there; else it was mounted (201), or an upload began (202)."""
        path = f"{_UPLOADS}?mount={self._descriptor.digest}&from={quote(repository, safe='')}"
        try:
            answer = self._send("POST", path, mount_from=repository, expected=(201, 202))
        except RegistryError as error:
            if error.temporary:
                self._mount_from.insert(0, repository)
                raise
            return None
        if answer.status == 202 and self._mount_from:
            self._move(answer)
            self._abandon()
            return None
        return answer

    def _send_chunk(self, url: str) -> None:
        start = self._position
        end = min(self._descriptor.size, start + self._chunk_size)
        headers = dict(_OCTETS)
        if (start, end) != (0, self._descriptor.size):
            headers["Content-Range"] = f"{start}-{end - 1}"
        answer = self._send_body("PATCH", url, start, end, headers, (201, 202, 204))
        self._move(answer)
        acknowledged = _acknowledged(answer, self._what)
        # 0-0 is what distribution says for nothing, too. Behind a status of success it tells nothing; in the end the digest does.
        position = end if acknowledged is None or acknowledged == 1 else acknowledged
        self._set_position(position)
        if position <= start:
            raise UnavailableError(f"{self._what}: the registry took nothing of bytes {start} to {end - 1}, it has {position}")

    def _ask_state(self, url: str) -> None:
        """Learns what the registry has after a request whose end is unknown."""
        try:
            answer = self._send("GET", url, expected=(200, 202, 204))
        except RegistryError as error:
            if error.temporary or isinstance(error, DeniedError):
                raise
            self._lose(error)
            raise
        acknowledged = _acknowledged(answer, self._what)
        self._move(answer)
        if self._sent == 0:
            self._set_position(0)
        elif acknowledged is None or acknowledged == 1 < self._sent:
            self._abandon()
        else:
            self._set_position(acknowledged)

    def _commit(self, url: str) -> None:
        expected = (200, 201, 204)
        self._commit_unknown = self._state_unknown = True
        if self._position < self._descriptor.size:
            self._send_body("PUT", url, 0, self._descriptor.size, _OCTETS, expected)
        else:
            self._send("PUT", url, expected=expected)
        self._url = None

    def _send_body(
        self, method: str, url: str, start: int, end: int, headers: dict[str, str], expected: tuple[int, ...]
    ) -> Answer:
        with ExitStack() as stack:

            def make_body() -> bytes | SizedBody:
                pieces = stack.enter_context(closing(self._bytes.read(start, end, self._check_stop)))
                return b"".join(pieces) if method == "PUT" else SizedBody(pieces, end - start)

            self._state_unknown = True
            self._sent = end
            return self._send(method, url, headers=headers, body=make_body, expected=expected)

    def _send(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str] | None = None,
        body: MakeBody | None = None,
        mount_from: str | None = None,
        expected: tuple[int, ...],
    ) -> Answer:
        answer = self._repository.send(
            method,
            path,
            self._what,
            headers=headers,
            body=body,
            action=Action.PUSH,
            mount_from=mount_from,
            expected=expected,
        )
        answer.close()
        return answer

    def _move(self, answer: Answer) -> None:
        """Goes on where the answer says."""
        if location := answer.header("location"):
            request = answer.response.request
            self._url = follow(request.method or "", answer.url, location, "the upload was sent")

    def _set_position(self, position: int) -> None:
        if position > min(self._sent, self._bytes.known):
            raise MalformedError(f"{self._what}: the registry says that it has {position} bytes, which were not sent yet")
        self._position = position
        self._state_unknown = False
        if position > self._furthest:
            self._furthest = position
            self._failures = 0

    def _recover(self, error: RegistryError) -> None:
        """Prepares the next try and waits for it, or raises the error again."""
        if self._bytes.failed or isinstance(error, CancelledError):
            raise error
        if isinstance(error, TooLargeError):
            self._shrink(error)
            return
        if self._url is not None:
            if isinstance(error, NotFoundError) or not _LOST_CODES.isdisjoint(error.codes):
                self._lose(error)
            elif error.status == 416:
                # Another one than we thought is the next byte: the state tells which.
                self._state_unknown = error.temporary = True
        self._failures += 1
        if self._failures == 1:
            self._first_failure = time.monotonic()
        # From the failure on, and not from when the request began: to send a large blob takes its time.
        delay = self._repository.retry.delay(self._failures, error, time.monotonic() - self._first_failure)
        if delay is None:
            raise error
        self._repository.on_retry(str(error), delay)
        self._stop.wait(delay)

    def _shrink(self, error: TooLargeError) -> None:
        """Makes requests smaller: a proxy takes no more, however much the registry itself would."""
        refused = self._sent - self._position
        smaller = next((chunk for chunk in SMALLER_CHUNKS if self._chunk_min <= chunk < refused), None)
        if smaller is None:
            raise error
        self.chunk = smaller
        self._commit_unknown = False
        if self._position == 0:
            self._abandon()  # the state costs a request as well, and may be ambiguous

    def _lose(self, error: RegistryError) -> None:
        """The registry has this upload no more, or in no useful state: begins another one."""
        error.temporary = True
        if isinstance(error, NotFoundError):
            self._url = None
        self._abandon()

    def _abandon(self) -> None:
        """Deletes the upload, best effort."""
        url, self._url = self._url, None
        self._position = self._sent = 0
        self._state_unknown = False
        if url is None:
            return
        with suppress(RegistryError):
            try:
                self._send("DELETE", url, expected=_DELETED)
            except NoConnectionError:
                raise
            except UnreachableError:
                # Who refuses a body closes the connection, and we may learn it only now.
                self._send("DELETE", url, expected=_DELETED)

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise CancelledError(f"{self._what}: upload cancelled at byte {self._position} of {self._descriptor.size}")


class _Bytes:
    """The bytes of the blob: read on where the last request ended, or again where the registry wants them again.

    What is read for the first time is hashed. Who has read all bytes but the last piece has read the right ones.
    """

    def __init__(self, descriptor: Descriptor, open_at: OpenAt, progress: Callable[[int], None]) -> None:
        self.failed = False
        """Whether the bytes are to blame, and not the registry."""
        self.known = 0
        """How many bytes were read, and hashed."""
        self._name = f"blob {descriptor.digest}"
        self._descriptor = descriptor
        self._open_at = open_at
        self._progress = progress
        self._stream: Iterator[bytes] | None = None
        self._rest = memoryview(b"")
        self._position = 0
        self._hash = descriptor.digest.new_hash()

    def read(self, start: int, end: int, check_stop: Callable[[], None]) -> Generator[bytes]:
        """The bytes from ``start`` to ``end``, in pieces of at most 1 MiB."""
        try:
            if self._stream is None or self._position != start:
                self.close()
                self._stream = self._open_at(start)
                self._position = start
            while self._position < end:
                check_stop()
                while not self._rest:
                    self._rest = memoryview(self._next(self._stream))
                piece = bytes(self._rest[: min(end - self._position, _PIECE_SIZE)])
                self._rest = self._rest[len(piece) :]
                self._check(piece)
                self._position += len(piece)
                yield piece
                self._progress(self._position)
        except GeneratorExit:
            raise
        except BaseException:
            self.failed = True
            raise

    def close(self) -> None:
        """Gives back what the stream holds."""
        stream, self._stream = self._stream, None
        self._rest = memoryview(b"")
        if (close := getattr(stream, "close", None)) is not None:
            close()

    def _next(self, stream: Iterator[bytes]) -> bytes:
        piece = next(stream, None)
        if piece is None:
            raise SizeMismatchError(f"{self._name}: its source ended at byte {self._position} of {self._descriptor.size}")
        return piece

    def _check(self, piece: bytes) -> None:
        """Hashes what was not read before, and looks at the digest before the last byte is handed out."""
        size, end = self._descriptor.size, self._position + len(piece)
        self._hash.update(memoryview(piece)[max(0, self.known - self._position) :])
        self.known = max(self.known, end)
        if end == size and self._hash.hexdigest() != self._descriptor.digest.hex:
            raise DigestMismatchError(
                f"{self._name}: its source gives {size} bytes with digest {self._hash.name}:{self._hash.hexdigest()}"
            )


def has_blob(repository: RemoteRepository, descriptor: Descriptor) -> bool:
    """Whether the repository has the blob: one HEAD, with the rights to push."""
    what = f"blob {descriptor.digest} of {repository.name}"
    answer = repository.send("HEAD", f"blobs/{descriptor.digest}", what, action=Action.PUSH, expected=(200, 404))
    answer.close()
    return answer.status == 200


def _acknowledged(answer: Answer, what: str) -> int | None:
    """Number of bytes that the registry has, as its ``Range: 0-N`` says; None if it says nothing."""
    value = answer.header("range")
    if not value:
        return None
    found = _RANGE.fullmatch(value.strip())
    if found is None:
        raise MalformedError(f"{what}: the Range of an upload is {value[:80]!r}, not 0-N")
    return int(found[1]) + 1


def with_digest(url: str, descriptor: Descriptor) -> str:
    """The URL of the PUT. What the registry put into the query stays as it is: it may be signed."""
    parts = urlsplit(url)
    query = f"digest={descriptor.digest}"
    return urlunsplit(parts._replace(query=f"{parts.query}&{query}" if parts.query else query))
