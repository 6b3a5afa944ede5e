"""Uploads of blobs, as far as they have come."""

from __future__ import annotations

import hashlib
import secrets
import threading
from dataclasses import dataclass, field

from tests.servers.http_server import Answer, error_answer


@dataclass
class Upload:
    """One upload.

    Attributes:
        state: the one in the Location that was given out last.
        short: a chunk came that was smaller than the least size, so it must be the last.
    """

    identifier: str
    repository: str
    data: bytearray = field(default_factory=bytearray)
    state: str = ""
    short: bool = False

    @property
    def range(self) -> str:
        """What came, both ends included; ``0-0`` for nothing, as docker-registry has it."""
        return f"0-{max(0, len(self.data) - 1)}"


class Uploads:
    """All uploads of a registry, and how they go.

    Attributes:
        location: kind of the Location of an upload. ``relative`` and ``absolute`` are a plain path below the repository; ``opaque``
            is another path with a query that is new in each answer, and chunks and ends that come by an old one are refused;
            ``storage`` is on the storage server, which asks for no authorization, and refuses requests that bring any.
        chunk_size_min: bytes; announced as OCI-Chunk-Min-Length, and every chunk but the last must have them. Or None.
        mounts: mount blobs; if not, 202 and an upload.
        single_post: take a blob by one POST with ``digest``; if not, 202 and an upload.
    """

    def __init__(self) -> None:
        self.location = "absolute"
        self.answers_old = True
        self.chunk_size_min: int | None = None
        self.mounts = True
        self.single_post = True
        self.unfinished: dict[str, Upload] = {}
        self._lock = threading.Lock()

    def start(self, repository: str) -> Upload:
        upload = Upload(secrets.token_hex(8), repository)
        with self._lock:
            self.unfinished[upload.identifier] = upload
        return upload

    def path(self, upload: Upload) -> str:
        """Where the upload goes on; for an opaque Location, a new place each time."""
        if self.location == "opaque":
            upload.state = secrets.token_urlsafe(12)
            return f"/artifacts-uploads/{upload.identifier}?_state={upload.state}&alg=sha%2F256"
        if self.location == "storage":
            return f"/storage/uploads/{upload.identifier}?signature=canary"
        return f"/v2/{upload.repository}/blobs/uploads/{upload.identifier}"

    def find(self, identifier: str, state: str | None, *, only_asks: bool) -> Upload | Answer:
        """The upload, or why it cannot go on.

        Args:
            state: that the request brings.
            only_asks: how far the upload is.
        """
        upload = self.unfinished.get(identifier)
        if upload is None:
            return error_answer(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
        if self.location == "opaque" and state != upload.state and not (only_asks and self.answers_old):
            return error_answer(404, "BLOB_UPLOAD_INVALID", "blob upload invalid")
        return upload

    def append(self, upload: Upload, data: bytes, content_range: str | None, *, last: bool, truncated: bool) -> Answer | None:
        """Takes a chunk, or says what is wrong with it.

        Args:
            content_range: ``start-end``, both included; None for what goes on where the last chunk ended.
            truncated: not all of it came.
        """
        with self._lock:
            if content_range is not None:
                try:
                    start, end = (int(number) for number in content_range.removeprefix("bytes ").split("/")[0].split("-"))
                except ValueError:
                    return error_answer(400, "BLOB_UPLOAD_INVALID", f"Content-Range {content_range!r}")
                if start != len(upload.data):
                    return self._out_of_order(upload, start)
                if end - start + 1 != len(data) and not truncated:
                    return error_answer(400, "SIZE_INVALID", f"{len(data)} bytes came as {content_range}")
            if upload.short and data and not last:
                return error_answer(400, "SIZE_INVALID", f"a chunk of fewer than {self.chunk_size_min} bytes was not the last")
            upload.short = self.chunk_size_min is not None and len(data) < self.chunk_size_min and not truncated
            upload.data += data
            return None

    def finish(self, upload: Upload, digest: str) -> Answer | None:
        """Ends an upload; or says what is wrong with it, and forgets it."""
        with self._lock:
            if self.unfinished.pop(upload.identifier, None) is None:
                return error_answer(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
        return None if digest_matches(upload.data, digest) else invalid_digest(digest)

    def cancel(self, upload: Upload) -> None:
        self.unfinished.pop(upload.identifier, None)

    def _out_of_order(self, upload: Upload, start: int) -> Answer:
        message = f"a chunk at {start}, where {len(upload.data)} bytes are there"
        return error_answer(416, "RANGE_INVALID", message, {"Range": upload.range})


def digest_matches(data: bytes | bytearray, digest: str) -> bool:
    """Whether this is the digest of the data; False for one that is malformed."""
    algorithm, _, value = digest.partition(":")
    return algorithm in ("sha256", "sha512") and hashlib.new(algorithm, data).hexdigest() == value


def invalid_digest(digest: str) -> Answer:
    return error_answer(400, "DIGEST_INVALID", f"provided digest {digest!r} did not match uploaded content")
