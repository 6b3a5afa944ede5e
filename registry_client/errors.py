"""What can go wrong when images are read, as one tree.

::

    RegistryError
    ├── InvalidReferenceError, InvalidDigestError, InvalidPlatformError      what was typed makes no sense (InvalidError)
    ├── NotFoundError            no such host name, repository, tag, blob, file, or nothing for the platform
    ├── DeniedError              login needed, or not enough rights
    ├── UnavailableError         does not answer, or not now: UnreachableError, TlsError, RedirectError, RateLimitError, ServerError
    ├── CorruptError             DigestMismatchError, SizeMismatchError, MalformedError
    ├── UnsupportedError         schema 1, artifacts, encrypted or foreign layers; what a registry does not do: TooLargeError
    └── CancelledError           somebody called ``BlobStream.cancel``

Messages name the object, then what is wrong. They never hold credentials, tokens or the query of a URL.
"""

from __future__ import annotations

from typing import Self


class RegistryError(Exception):
    """Base of everything that this package raises on purpose.

    Attributes:
        request: method and URL without query and user information, ``GET https://host/v2/…``; empty if there was none.
        status: HTTP status, or None.
        codes: error codes of the distribution spec in the answer (``MANIFEST_UNKNOWN``), in its order.
        temporary: the same call may succeed later.
        retry_after: seconds that the server asked to wait, or None.
    """

    temporary = False

    def __init__(
        self,
        message: str,
        *,
        request: str = "",
        status: int | None = None,
        codes: tuple[str, ...] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.request = request
        self.status = status
        self.codes = codes
        self.retry_after = retry_after

    def like(self, message: str) -> Self:
        """The same error in other words."""
        error = type(self)(message, request=self.request, status=self.status, codes=self.codes, retry_after=self.retry_after)
        error.temporary = self.temporary
        return error


class InvalidError(RegistryError, ValueError):
    """What the caller gave makes no sense."""


class InvalidReferenceError(InvalidError):
    """The text is no image reference."""


class InvalidDigestError(InvalidError):
    """The text is no digest of a supported algorithm."""


class InvalidPlatformError(InvalidError):
    """The text names no platform."""


class NotFoundError(RegistryError):
    """The repository, tag, manifest, blob or file does not exist."""


class NoMatchingPlatformError(NotFoundError):
    """The image exists, but not for the platform asked for."""


class DeniedError(RegistryError):
    """A login is needed, or the account has not the right.

    Attributes:
        registry: where another login may help, as in a Reference; empty where none would.
    """

    registry = ""


class UnavailableError(RegistryError):
    """The registry does not answer, or not now."""

    temporary = True


class UnreachableError(UnavailableError):
    """No connection, no answer, or a connection that was cut."""


class NoConnectionError(UnreachableError):
    """No connection at all: refused, no route, or no answer to the first packet. Temporary only for a registry that was there before."""


class UnknownHostError(NoConnectionError):
    """The registry's host name does not resolve."""


class TlsError(UnavailableError):
    """The TLS handshake failed: an unknown authority, a wrong name, or no TLS at all."""

    temporary = False


class CertificateError(TlsError):
    """The certificate is from an unknown authority, for another name, or out of date; or the server does not take ours."""


class PlainHttpError(TlsError):
    """The registry speaks plain HTTP where HTTPS was expected."""


class RedirectError(UnavailableError):
    """The server leads to where we do not follow: in a circle, to plain HTTP, to this machine."""

    temporary = False


class RateLimitError(UnavailableError):
    """Status 429; ``retry_after`` holds the server's wish, if it gave one."""


class ServerError(UnavailableError):
    """Status 5xx, or 408."""


class CorruptError(RegistryError):
    """Bytes are not what their name or their specification says."""


class DigestMismatchError(CorruptError):
    """The bytes have another digest than their name says."""


class SizeMismatchError(CorruptError):
    """There are fewer or more bytes than the descriptor says."""


class MalformedError(CorruptError):
    """A document (manifest, configuration, layout file, answer of a registry) breaks its specification."""


class UnsupportedError(RegistryError):
    """Legal, known, and not done."""


class TooLargeError(UnsupportedError):
    """Status 413: the registry, or a proxy before it, takes no request of this size."""


class CancelledError(RegistryError):
    """The stream was cancelled by its user."""
