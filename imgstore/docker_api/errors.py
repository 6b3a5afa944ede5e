"""Errors in Docker's shape: a status, and ``{"message": ...}``. The command line and docker-py read the words.

Source: moby ``api/server/httpstatus`` and ``api/server/httputils``.
"""

from __future__ import annotations

import json
import logging
import re
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from imgstore.errors import (
    AlreadyExistsError,
    CorruptError,
    DeniedError,
    ImgstoreError,
    InUseError,
    InvalidError,
    NoSpaceError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)

_OUR_NAMES = re.compile(r"^(tag )?(?P<quote>['\"]).*(?P=quote)…?: (?=invalid|repository)")
"""What stands before Docker's own words in ours, where a name is none."""

_log = logging.getLogger(__name__)

_STATUSES: tuple[tuple[type[ImgstoreError], int], ...] = (
    (InvalidError, 400),
    (DeniedError, 403),
    (NotFoundError, 404),
    (InUseError, 409),
    (AlreadyExistsError, 409),
    (CorruptError, 500),
    (UnsupportedError, 501),
    (UnavailableError, 503),
    (NoSpaceError, 507),
)


class ApiError(Exception):
    """What only this face of the store can say; everything below raises an ImgstoreError."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def status_of(error: Exception) -> int:
    """HTTP status of an error: 500 for all that are not foreseen."""
    if isinstance(error, ApiError):
        return error.status
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)


def message_of(error: Exception) -> str:
    """What the client is told. Of an error that is not foreseen no more than its kind: its words may hold anything."""
    if isinstance(error, (ApiError, ImgstoreError)):
        return _OUR_NAMES.sub("", str(error))
    return f"internal error ({type(error).__name__}); the log of the service has more"


def error_response(status: int, message: str) -> Response:
    """An error as every client of Docker reads it."""
    body = json.dumps({"message": message}, ensure_ascii=False, separators=(",", ":")) + "\n"
    return Response(body.encode(errors="replace"), status, media_type="application/json")


async def answer_error(request: Request, error: Exception) -> Response:
    """The response to a request whose handler raised."""
    if status_of(error) == 500:
        _log.error("%s %s failed", request.method, quote(request.scope["path"]), exc_info=error)
    return error_response(status_of(error), message_of(error))


async def answer_unknown(request: Request, error: Exception) -> Response:
    """The response to a path that is none, and to a method that a path has not: Docker tells no difference."""
    if isinstance(error, HTTPException) and error.status_code not in (404, 405):
        return error_response(error.status_code, error.detail)
    return error_response(404, "page not found")
