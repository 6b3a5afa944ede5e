"""What vSphere and the way there can answer in place of a result, as ImgstoreErrors."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterator
from xml.parsers.expat import ExpatError

import requests
import urllib3

from imgstore.errors import (
    AlreadyExistsError,
    DeniedError,
    ImgstoreError,
    InUseError,
    InvalidError,
    NoSpaceError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)
from imgstore.vsphere.soap import vim, vmodl

FULL = "No space left on device"
"""What servers say in the body of an answer, or in a fault, when a datastore is full: the words of ESXi's kernel."""

_KINDS: tuple[tuple[type[Exception], type[ImgstoreError]], ...] = (
    (vim.fault.InvalidLogin, DeniedError),
    (vmodl.fault.SecurityError, DeniedError),  # NotAuthenticated and NoPermission are of this kind
    (vim.fault.NoDiskSpace, NoSpaceError),
    (vim.fault.FileTooLarge, NoSpaceError),
    (vim.fault.FileNotFound, NotFoundError),
    (vim.fault.NotFound, NotFoundError),
    (vim.fault.InaccessibleDatastore, UnavailableError),  # before what it is a kind of: its files are there all the same
    (vim.fault.InvalidDatastore, NotFoundError),
    (vmodl.fault.ManagedObjectNotFound, NotFoundError),
    (vim.fault.FileAlreadyExists, AlreadyExistsError),
    (vim.fault.AlreadyExists, AlreadyExistsError),
    (vim.fault.DuplicateName, AlreadyExistsError),
    (vim.fault.DirectoryNotEmpty, AlreadyExistsError),
    (vim.fault.FileLocked, InUseError),
    (vim.fault.ResourceInUse, InUseError),
    (vim.fault.TaskInProgress, InUseError),
    (vim.fault.InvalidName, InvalidError),
    (vim.fault.InvalidDatastorePath, InvalidError),
    (vmodl.fault.InvalidArgument, InvalidError),
    (vmodl.fault.NotSupported, UnsupportedError),
    (vmodl.fault.MethodNotFound, UnsupportedError),
    (vmodl.fault.NotImplemented, UnsupportedError),
)

FAILURES: tuple[type[Exception], ...] = (
    vmodl.MethodFault,
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    ExpatError,
    OSError,
)
"""What calls raise when they fail, over SOAP and over plain HTTPS."""

_TRUST = "name its authority with GOVC_TLS_CA_CERTS; GOVC_INSECURE=1 takes it unverified"


def translate(error: Exception, what: str, server: str = "") -> ImgstoreError:
    """The ImgstoreError that a fault, or an error on the way, is.

    Args:
        what: what was asked, beginning with the object's name.
        server: the one that did not answer, where ``what`` does not name it.
    """
    if isinstance(error, vmodl.MethodFault):
        return _translate_fault(error, what)
    return _translate_failure(error, f"{what}: {server}" if server else what)


def is_logged_out(error: Exception) -> bool:
    """Whether the server refused because it knows no such session: nothing was done, and to log in again helps."""
    return isinstance(error, vim.fault.NotAuthenticated) or (
        isinstance(error, http.client.HTTPException) and str(error).startswith("401 ")
    )


def _translate_fault(fault: vmodl.MethodFault, what: str) -> ImgstoreError:
    name = type(fault).__name__.rpartition(".")[2]
    words = " ".join((fault.msg or "").split())
    message = f"{what}: {words} ({name})" if words else f"{what}: {name}"
    if FULL in words:
        return NoSpaceError(message)
    if isinstance(fault, vim.fault.NoPermission) and not isinstance(fault, vim.fault.NotAuthenticated):
        return DeniedError(f"{message}: the privilege {fault.privilegeId} is missing")
    if isinstance(fault, vim.fault.InvalidLogin):
        return DeniedError(f"{what}: wrong user name or password", hint="set GOVC_USERNAME and GOVC_PASSWORD")
    kind = next((ours for theirs, ours in _KINDS if isinstance(fault, theirs)), UnavailableError)
    return kind(message)


def _translate_failure(error: Exception, what: str) -> UnavailableError:
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return UnavailableError(f"{what}: certificate not trusted: {cause.verify_message}", hint=_TRUST)
        if isinstance(cause, socket.gaierror):
            return UnavailableError(f"{what}: no such host")
    for cause in causes:
        if isinstance(cause, TimeoutError | requests.Timeout):
            return UnavailableError(f"{what}: no answer within the time limit")
        if isinstance(cause, ssl.SSLError):
            return UnavailableError(f"{what}: TLS failed: {cause.reason}")
        if isinstance(cause, ConnectionError):
            return UnavailableError(f"{what}: {cause.strerror or 'the connection was cut'}")
    return UnavailableError(f"{what}: {causes[-1] or type(causes[-1]).__name__}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and what it says that it came from."""
    seen: set[int] = set()
    pending: list[BaseException] = [error]
    while pending:
        current = pending.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        further = [current.__cause__, current.__context__, getattr(current, "reason", None), *current.args]
        pending.extend(each for each in further if isinstance(each, BaseException))
