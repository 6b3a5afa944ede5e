"""Blobs as streams that are checked while they pass, and resumed when the connection breaks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from registry_client.errors import CancelledError, DigestMismatchError, RegistryError, SizeMismatchError, UnreachableError
from registry_client.manifest import Descriptor
from registry_client.options import RetrySink, ignore_retry
from registry_client.retry import RetryPolicy

CHUNK_SIZE = 1 << 20
PROGRESS_MIN = 4 << 10
"""Bytes that a connection must bring to count as one that did not fail: with fewer, no blob would ever be whole."""


class Body(Protocol):
    """Bytes of a blob from some offset on, from one connection or file."""

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes; ``b""`` at the end. An UnavailableError says that another Body may bring the rest."""

    def interrupt(self) -> None:
        """Makes a `read` that waits in another thread return or fail soon."""

    def close(self) -> None:
        """Gives back the connection or file."""


OpenBody = Callable[[int], Body]
"""Opens the blob's bytes from an offset on. One try, no retries."""


class BlobStream:
    """Iterates over the bytes of a blob, in pieces of at most 1 MiB; each piece is a ``bytes`` of its own.

    The last piece is handed out only after all bytes had the size and the digest of the descriptor: who has received
    ``descriptor.size`` bytes has received the right ones, and who got an error has not received the last piece.
    What came before the last piece is unchecked until then.

    A broken connection is opened again where it broke (HTTP Range). The policy's number of tries counts failures in a row
    with fewer than PROGRESS_MIN bytes each. With an ``offset`` the digest cannot be checked, only the size.

    Use from one thread at a time; only `cancel` may be called from another.

    Attributes:
        descriptor: of the blob.
        position: offset of the next byte to be handed out.
        retries: how often a broken or refused connection was replaced.
    """

    def __init__(
        self,
        descriptor: Descriptor,
        open_body: OpenBody,
        *,
        offset: int = 0,
        retry: RetryPolicy | None = None,
        on_retry: RetrySink = ignore_retry,
    ) -> None:
        if not 0 <= offset <= descriptor.size:
            raise ValueError(f"offset {offset} is outside of blob {descriptor.digest.short} of {descriptor.size} bytes")
        self.descriptor = descriptor
        self.position = offset
        self.retries = 0
        self._open_body = open_body
        self._retry = retry or RetryPolicy(tries=1)
        self._on_retry = on_retry
        self._hash = descriptor.digest.new_hash() if offset == 0 else None
        self._body: Body | None = None
        self._progress = 0
        self._failures = 0
        self._row_began = 0.0  # when the first try in a row of failures did
        self._finished = False
        self._cancelled = threading.Event()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        """The next piece.

        Raises:
            DigestMismatchError, SizeMismatchError: wrong bytes; nothing that came may be used.
            CancelledError: see `cancel`.
            RegistryError: the registry gave up on us, or we on it.
        """
        if self._finished:
            raise StopIteration
        try:
            piece = self._next_piece()
            if self._hash is not None:
                self._hash.update(piece)
            self.position += len(piece)
            if self.position >= self.descriptor.size:
                self._verify()
        except BaseException:
            self.close()
            raise
        if not piece:
            raise StopIteration
        return piece

    def cancel(self) -> None:
        """Ends the stream from another thread: a waiting `__next__` raises CancelledError soon."""
        self._cancelled.set()
        body = self._body
        if body is not None:
            body.interrupt()

    def close(self) -> None:
        """Gives back the connection. The stream ends here; closing twice does no harm."""
        self._finished = True
        self._close_body()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def _name(self) -> str:
        return f"blob {self.descriptor.digest}"

    def _next_piece(self) -> bytes:
        """Bytes from the body; ``b""`` only if nothing is missing. Opens a body, and another one, as needed."""
        if not self._failures:
            self._row_began = time.monotonic()  # what the reader did meanwhile took none of our patience
        while True:
            if self._cancelled.is_set():
                raise CancelledError(f"{self._name}: cancelled at byte {self.position} of {self.descriptor.size}")
            if self.position == self.descriptor.size:
                return b""
            try:
                if self._body is None:
                    self._progress = 0
                    self._body = self._open_body(self.position)
                    continue  # somebody may have cancelled meanwhile
                if piece := self._body.read(CHUNK_SIZE):
                    self._progress += len(piece)
                    if self._progress >= PROGRESS_MIN:
                        self._failures = 0
                    return piece
                raise UnreachableError(f"{self._name}: the connection ended at byte {self.position} of {self.descriptor.size}")
            except RegistryError as error:
                self._wait_after(error)

    def _wait_after(self, error: RegistryError) -> None:
        """Waits before the next try, or raises the error again."""
        self._close_body()
        self._failures += 1
        elapsed = time.monotonic() - self._row_began
        delay = None if self._cancelled.is_set() else self._retry.delay(self._failures, error, elapsed)
        if delay is None:
            if self._cancelled.is_set():
                return
            raise error
        self.retries += 1
        self._on_retry(str(error), delay)
        self._cancelled.wait(delay)

    def _verify(self) -> None:
        """Checks that this was all, and the right bytes. Called before the last piece goes out."""
        extra = 0
        if self.position == self.descriptor.size and self._body is not None:
            try:
                extra = len(self._body.read(1))
            except RegistryError:
                extra = 0  # broken after the last byte: the digest tells whether that matters
        self.close()
        if self.position + extra > self.descriptor.size:
            raise SizeMismatchError(f"{self._name}: longer than the {self.descriptor.size} bytes of its descriptor")
        if self._hash is not None and self._hash.hexdigest() != self.descriptor.digest.hex:
            raise DigestMismatchError(
                f"{self._name}: the {self.descriptor.size} bytes received have digest {self._hash.name}:{self._hash.hexdigest()}"
            )

    def _close_body(self) -> None:
        body, self._body = self._body, None
        if body is not None:
            body.close()


def read_blob(stream: BlobStream) -> bytes:
    """The whole of a small blob, checked. The caller has bounded ``descriptor.size``."""
    with stream:
        return b"".join(stream)
