"""What can go wrong, by kind.

Each kind maps to one exit code (``imgstore.cli``) and one HTTP status (``imgstore.docker_api``). A specific error is a subclass that
stands beside the code that raises it. A message names the object first, then what is wrong, with the numbers:
``HostedHeader at byte 0: magic is b'COWD', not b'KDMV'``.
"""

from __future__ import annotations

from typing import ClassVar


class ImgstoreError(Exception):
    """Base of every error that imgstore raises on purpose. Raise one of its kinds.

    Attributes:
        code: stable identifier of the kind, for scripts (``--format json`` prints it).
        hint: what the user can do about it, or an empty string.
    """

    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class InvalidError(ImgstoreError):
    """What the caller asked makes no sense."""

    code = "invalid"


class PartialError(ImgstoreError):
    """Some of several operations failed; the message says which."""

    code = "partial"


class NotFoundError(ImgstoreError):
    """The named object does not exist."""

    code = "not-found"


class DeniedError(ImgstoreError):
    """Login needed, or a policy forbids it."""

    code = "denied"


class UnavailableError(ImgstoreError):
    """A registry or datastore does not answer; trying later can help.

    Attributes:
        retry_after: seconds after which the other side said to try again, or None.
    """

    code = "unavailable"

    def __init__(self, message: str, *, hint: str = "", retry_after: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class CorruptError(ImgstoreError):
    """A digest, a checksum or a structure is wrong. The message names the file and the byte offset."""

    code = "corrupt"


class NoSpaceError(ImgstoreError):
    """A disk, a file system or a datastore is full."""

    code = "no-space"


class InUseError(ImgstoreError):
    """A tag, container, child or lease still needs the object."""

    code = "in-use"


class AlreadyExistsError(ImgstoreError):
    """The object exists already."""

    code = "already-exists"


class UnsupportedError(ImgstoreError):
    """Known, and not done."""

    code = "unsupported"
