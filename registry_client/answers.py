"""What a registry answers beside the thing asked for: errors of the distribution-spec, and pages."""

from __future__ import annotations

import re
from urllib.parse import urljoin

import requests

from registry_client.errors import (
    DeniedError,
    MalformedError,
    NotFoundError,
    RateLimitError,
    RegistryError,
    ServerError,
    TooLargeError,
    UnavailableError,
    UnreachableError,
    UnsupportedError,
)
from registry_client.retry import parse_retry_after
from registry_client.strict_json import parse_object
from registry_client.transport import describe, origin, read_body

ERROR_SIZE_MAX = 64 << 10
_ERRORS_MAX = 100
_TEMPORARY_STATUSES = frozenset({408, 499, 500, 502, 503, 504, 522})
_TEMPORARY_CODES = frozenset({"TOOMANYREQUESTS", "UNAVAILABLE", "UNKNOWN"})
_NEXT_PAGE = re.compile(r'<([^<>]*)>\s*;\s*rel="?next"?(?:\s*[;,]|\s*$)')


def status_error(response: requests.Response, url: str, subject: str) -> RegistryError:
    """The typed error for an answer of status 400 and more; reads and closes the answer.

    Args:
        url: where the answer came from.
        subject: what was asked for: ``manifest for alpine:3.10``.
    """
    request = describe(response.request.method or "GET", url)
    status = response.status_code
    errors, words = _read_errors(response, request)
    codes = tuple(code for code, _ in errors)
    said = "; ".join(words) or f"status {status} {response.reason or ''}".rstrip()
    kind, temporary = _classify(status, codes)
    message = f"{subject} not found: {said}" if kind is NotFoundError else f"{subject}: {said} ({request} gave {status})"
    retry_after = parse_retry_after(response.headers.get("retry-after"))
    error = kind(message, request=request, status=status, codes=codes, retry_after=retry_after)
    error.temporary = temporary
    return error


def next_page(response: requests.Response, url: str) -> str | None:
    """URL of the next page of a list (RFC 8288 ``Link``), or None at the last.

    Raises:
        MalformedError: the link leads to another server.
    """
    found = _NEXT_PAGE.search(response.headers.get("link", ""))
    if found is None:
        return None
    target: str = urljoin(url, found[1])
    if origin(target) != origin(url):
        raise MalformedError(f"{describe('GET', url)}: the next page is on another server")
    return target


def _classify(status: int, codes: tuple[str, ...]) -> tuple[type[RegistryError], bool]:
    """Kind of the error, and whether it is worth another try."""
    says_later = bool(codes) and _TEMPORARY_CODES.issuperset(codes)
    # 412 with PROJECTPOLICYVIOLATION is Harbor's "this image is too vulnerable".
    if status in (401, 412) or (status == 403 and not says_later):
        return DeniedError, False
    if status == 429 or "TOOMANYREQUESTS" in codes:
        return RateLimitError, True
    if says_later:
        return UnavailableError, True
    if status == 404:
        return NotFoundError, False
    if status == 413:
        return TooLargeError, False
    if status == 405 or codes == ("UNSUPPORTED",):
        return UnsupportedError, False
    return ServerError, status in _TEMPORARY_STATUSES


def _read_errors(response: requests.Response, request: str) -> tuple[list[tuple[str, str]], list[str]]:
    """(code, message) pairs of the body, and how to print them. A body that is something else gives its first line."""
    try:
        body = read_body(response, ERROR_SIZE_MAX, request)
    except (MalformedError, UnreachableError):
        return [], []
    try:
        fields = parse_object(body, request)
        errors = [
            (entry.string("code", ""), entry.string("message", "")) for entry in fields.objects("errors", maximum=_ERRORS_MAX)
        ]
    except MalformedError:
        lines = body.decode(errors="replace").strip().splitlines()
        is_text = response.headers.get("content-type", "").startswith("text/plain")
        return [], [_printable(lines[0])] if lines and is_text else []
    return errors, [_words(code, message) for code, message in errors]


def _words(code: str, message: str) -> str:
    """``manifest unknown: the words of the registry``, as docker prints it; without repeating itself."""
    code = _printable(code.lower().replace("_", " "))
    message = _printable(message)
    if not message or message.lower() == code:
        return code
    return message if message.lower().startswith(code) else f"{code}: {message}"


def _printable(text: str) -> str:
    """At most 200 characters, none of which moves a terminal's cursor."""
    return "".join(char if char.isprintable() else "�" for char in text[:200])
