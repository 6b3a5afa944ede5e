"""Registries: the image sources of ``registry_client``, with their errors in our own kinds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from imgstore.errors import (
    CorruptError,
    DeniedError,
    ImgstoreError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)
from registry_client import errors as registry_errors

_HINTS: tuple[tuple[type[registry_errors.RegistryError], str], ...] = (
    (registry_errors.NoMatchingPlatformError, "choose one that it has with --platform OS/ARCH[/VARIANT]"),
    (registry_errors.UnknownHostError, "is the registry's name spelled right?"),
    (registry_errors.CertificateError, "name the authority that signed it, and your own certificate, with --cert-dir"),
    (registry_errors.PlainHttpError, "--insecure-registry HOST allows it for one registry"),
)

_KINDS: tuple[tuple[type[registry_errors.RegistryError], type[ImgstoreError]], ...] = (
    (registry_errors.InvalidError, InvalidError),
    (registry_errors.NotFoundError, NotFoundError),
    (registry_errors.DeniedError, DeniedError),
    (registry_errors.CorruptError, CorruptError),
    (registry_errors.UnsupportedError, UnsupportedError),
)


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Raises what ``registry_client`` raises inside the block as the ImgstoreError of the same kind."""
    try:
        yield
    except registry_errors.RegistryError as error:
        raise translate(error) from error


def translate(error: registry_errors.RegistryError) -> ImgstoreError:
    """The ImgstoreError that says the same."""
    hint = next((text for kind, text in _HINTS if isinstance(error, kind)), "")
    if isinstance(error, registry_errors.DeniedError) and error.registry:
        hint = f"log in with: imgstore login {error.registry}"
    if isinstance(error, registry_errors.UnavailableError):
        if error.retry_after:
            hint = f"the registry asks to try again in {error.retry_after:.0f} s"
        return UnavailableError(str(error), hint=hint, retry_after=error.retry_after)
    for theirs, ours in _KINDS:
        if isinstance(error, theirs):
            return ours(str(error), hint=hint)
    return UnavailableError(str(error), hint=hint)
