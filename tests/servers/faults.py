"""What a server in this process can do wrong, and names for what registries and networks do to clients."""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

ALWAYS = 1 << 30
"""For ``inject(..., times=ALWAYS)``."""

_STALL = 30.0
_HUGE = b" " * (8 << 20)


@dataclass(frozen=True)
class Fault:
    """What to do to one answer. Those that change a body keep all headers right, but for what they are about.

    In values of ``headers``, ``{scheme}``, ``{host}``, ``{path}`` (with the query) stand for those of the request, ``{storage}`` for
    the registry's storage server, and ``{soon}`` for the HTTP date of one second from now.

    In the place of the answer; the first of these that is set counts. Nothing is done of what was asked, unless ``after`` is set:

    Attributes:
        hang_up: close the connection before any answer.
        raw: send these bytes and close the connection: malformed status lines, headers, chunks.
        status: answer with this, ``headers`` and ``body``, and nothing else.
        after: first do what was asked, as when an answer is lost on its way.

    The request:

    Attributes:
        cut_request: read at most so many bytes of the request's body, go on with the answer, and close the connection.
        delay: seconds before the answer; fewer if the client goes away.
        interim: statuses (1xx) of answers that come before the answer.

    The headers:

    Attributes:
        headers: added to the answer, or in the place of its own.
        cut_headers: close the connection after so many bytes of status line and headers.
        length_error: added to Content-Length, but not to what is sent. The connection is closed behind a body that is too short; what
            is too much comes where the client expects the next answer.
        chunked: no Content-Length.

    The body; of errors, too, but for those marked *, which change only what was asked for:

    Attributes:
        cut_after: close the connection after so many bytes of the body.
        cut_at: close it after this part of the body, 0 to 1, rounded down: who goes on where it was cut comes nearer to the end, and
            never there.
        damage_at: * change the byte at this offset (of the blob, not of the range of it that was asked for).
        drop: * serve so many bytes fewer, with a Content-Length that agrees.
        append: * serve these bytes after the end, with a Content-Length that agrees.
        gzip: compress it, and say so in Content-Encoding, whatever the client accepts.
        ignore_range: serve the whole with status 200.
        redirect: send the client to the storage server on another port, for the same blob.
        piece_size: send the beginning of the body in 64 pieces of so many bytes.
        pause: seconds between pieces.
        stall: seconds of silence at ``cut_after`` or ``cut_at``, before the connection is closed; fewer if the client goes away.
        hold: send the first half of the body, and the second when this is set or the registry stops.

    The connection:

    Attributes:
        close: close it behind an answer that did not say so.
        reset: wherever the fault closes the connection, do it with RST.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut_after: int | None = None
    cut_at: float | None = None
    damage_at: int | None = None
    drop: int = 0
    append: bytes = b""
    chunked: bool = False
    ignore_range: bool = False
    redirect: bool = False
    hang_up: bool = False
    delay: float = 0.0
    stall: float = 0.0
    hold: threading.Event | None = None
    after: bool = False
    raw: bytes | None = None
    reset: bool = False
    cut_request: int | None = None
    cut_headers: int | None = None
    interim: tuple[int, ...] = ()
    length_error: int = 0
    gzip: bool = False
    piece_size: int | None = None
    pause: float = 0.0
    close: bool = False

    @property
    def in_place(self) -> bool:
        """Whether something else is sent in the place of the answer."""
        return self.hang_up or self.raw is not None or self.status is not None

    def cut(self, body: bytes) -> bytes:
        """What is sent of the body."""
        if self.cut_at is not None:
            return body[: int(len(body) * self.cut_at)]
        return body if self.cut_after is None else body[: self.cut_after]

    def change(self, data: bytes) -> bytes:
        """The bytes that are served as this document or blob."""
        if self.damage_at is not None and self.damage_at < len(data):
            data = data[: self.damage_at] + bytes([data[self.damage_at] ^ 0xFF]) + data[self.damage_at + 1 :]
        return data[: len(data) - self.drop] + self.append

    def encode(self, body: bytes) -> bytes:
        """The body as it goes over the wire."""
        return gzip.compress(body, 1, mtime=0) if self.gzip else body


@dataclass
class Injected:
    """A fault that waits for requests.

    Attributes:
        times: how often it is still to strike.
        hits: how often it struck.
    """

    pattern: re.Pattern[str]
    method: str | None
    fault: Fault
    times: int
    hits: int = 0

    def matches(self, method: str, path: str) -> bool:
        return self.times > 0 and self.method in (None, method) and self.pattern.search(path) is not None


def error_body(code: str, message: str) -> bytes:
    """An error as the distribution-spec has it."""
    return json.dumps({"errors": [{"code": code, "message": message, "detail": None}]}).encode()


def _refusal(status: int, code: str, message: str) -> Fault:
    return Fault(status=status, headers={"Content-Type": "application/json"}, body=error_body(code, message))


def _page(status: int, title: str) -> Fault:
    body = f"<html>\r\n<head><title>{status} {title}</title></head>\r\n<body><center><h1>{status} {title}</h1></center></body></html>"
    return Fault(status=status, headers={"Content-Type": "text/html"}, body=body.encode())


TEMPORARY: Mapping[str, Fault] = {
    "hang-up": Fault(hang_up=True),
    "reset": Fault(hang_up=True, reset=True),
    "hang-up-in-request-body": Fault(hang_up=True, cut_request=1),
    "reset-in-request-body": Fault(hang_up=True, cut_request=1, reset=True),
    "cut-status-line": Fault(cut_headers=7),
    "cut-headers": Fault(cut_headers=30),  # http.client takes it for the end of the headers, and of an empty body
    "cut-before-body": Fault(cut_after=0),
    "cut-body": Fault(cut_at=0.5),
    "cut-chunked-body": Fault(cut_at=0.5, chunked=True),
    "reset-in-body": Fault(cut_at=0.5, reset=True),
    "stall-before-headers": Fault(hang_up=True, delay=_STALL),
    "stall-in-body": Fault(cut_at=0.5, stall=_STALL),
    "408": _page(408, "Request Timeout"),
    "429": _refusal(429, "TOOMANYREQUESTS", "too many requests to upstream registry"),
    "429-retry-after-seconds": replace(_refusal(429, "TOOMANYREQUESTS", "too many requests"), headers={"Retry-After": "1"}),
    "429-retry-after-date": replace(_refusal(429, "TOOMANYREQUESTS", "too many requests"), headers={"Retry-After": "{soon}"}),
    "500": _refusal(500, "UNKNOWN", "unknown error"),
    "502-html": _page(502, "Bad Gateway"),
    "503-empty": Fault(status=503),
    "503-unavailable": _refusal(503, "UNAVAILABLE", "service unavailable"),
    "504-html": _page(504, "Gateway Time-out"),
    "400-too-many-requests": _refusal(400, "TOOMANYREQUESTS", "too many requests to upstream registry"),
    "400-unavailable": _refusal(400, "UNAVAILABLE", "try again later"),
    "500-upstream-login": _refusal(500, "UNKNOWN", "unknown: login to dockerhub error: Failed to generate login session"),
}
"""What passes: once or twice, the client tries again and succeeds; always, it gives up with one typed error."""

REFUSED: Mapping[str, Fault] = {
    "400": _refusal(400, "NAME_INVALID", "invalid repository name"),
    "403": _refusal(403, "DENIED", "requested access to the resource is denied"),
    "404-upstream-login": _refusal(404, "NOT_FOUND", "artifact proxy/library/node:20 not found"),
    "404-html": _page(404, "Not Found"),
    "405": _refusal(405, "UNSUPPORTED", "The operation is unsupported."),
    "412-policy": _refusal(
        412, "PROJECTPOLICYVIOLATION", "current image with 9 vulnerabilities cannot be pulled due to configured policy"
    ),
    "413-html": replace(_page(413, "Request Entity Too Large"), cut_request=0),
    "501": Fault(status=501),
}
"""What the server means, and says again: one typed error, without another try. ``404-upstream-login`` is what Harbor's proxy cache
makes of a login at Docker Hub that was refused for its rate (goharbor/harbor#23750): nothing in it tells it from a missing image."""

WRONG: Mapping[str, Fault] = {
    "wrong-digest-header": Fault(headers={"Docker-Content-Digest": "sha256:" + 64 * "0"}),
    "damaged-body": Fault(damage_at=3),
    "body-too-short": Fault(drop=1),
    "body-too-long": Fault(append=b"x"),
    "huge-body": Fault(status=200, body=_HUGE),
    "huge-error": Fault(status=400, headers={"Content-Type": "application/json"}, body=_HUGE),
    "garbage-json": Fault(status=200, headers={"Content-Type": "application/json"}, body=b'{"errors": [\xff\x00'),
    "html-page": _page(200, "Please log in to the network"),
    "empty-200": Fault(status=200),
    "gzip-unasked": Fault(gzip=True),
    "redirect-loop": Fault(status=307, headers={"Location": "{path}"}),
    "redirect-to-plain-http": Fault(status=307, headers={"Location": "http://{host}{path}"}),
    "redirect-to-file": Fault(status=302, headers={"Location": "file:///etc/passwd"}),
    "redirect-to-nowhere": Fault(status=307),
    "malformed-status-line": Fault(raw=b"HTTP/1.1 two hundred OK\r\nContent-Length: 0\r\n\r\n"),
    "not-http": Fault(raw=b"SSH-2.0-OpenSSH_9.2p1\r\n"),
    "binary-garbage": Fault(raw=bytes(range(256)) * 8),
    "malformed-headers": Fault(raw=b"HTTP/1.1 200 OK\r\nno colon here\r\n\x00: \x01\r\nContent-Length: 0\r\n\r\n"),
    "endless-header": Fault(raw=b"HTTP/1.1 200 OK\r\nX-Long: " + 100_000 * b"x" + b"\r\n\r\n"),
    "thousand-headers": Fault(raw=b"HTTP/1.1 200 OK\r\n" + 1000 * b"X-Many: x\r\n" + b"Content-Length: 0\r\n\r\n"),
    "content-length-too-long": Fault(length_error=1000),
    "content-length-too-short": Fault(length_error=-3),
    "negative-content-length": Fault(raw=b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n12345"),
    "two-content-lengths": Fault(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\n12345"),
    "malformed-chunk": Fault(raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n0\r\n\r\n"),
    "switching-protocols": Fault(raw=b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n"),
}
"""What breaks the protocol, or is not what was asked for: always, it is one typed error. Whether another try helps is for the client to
know. Those without effect on an answer that has no body, or no digest, are harmless there."""

HARMLESS: Mapping[str, Fault] = {
    "slow-answer": Fault(delay=0.05),
    "continue-unasked": Fault(interim=(100,)),
    "continue-twice": Fault(interim=(100, 100)),
    "chunked": Fault(chunked=True),
    "dribble": Fault(piece_size=97, pause=0.0005),
    "close-behind-answer": Fault(close=True),
    "range-ignored": Fault(ignore_range=True),
    "blob-redirect": Fault(redirect=True),
    "odd-headers": Fault(headers={"x-empty": "", "X-Non-ASCII": "\xe9\xff", "docker-distribution-api-version": "registry/9"}),
}
"""What is legal, or common, and must not be noticed, however often."""

LOST_ANSWERS: Mapping[str, Fault] = {
    "done-then-hang-up": Fault(after=True, hang_up=True),
    "done-then-reset": Fault(after=True, hang_up=True, reset=True),
    "done-then-cut-headers": Fault(cut_headers=20),
    "done-then-stall": Fault(after=True, hang_up=True, delay=_STALL),
    "done-then-500": replace(_refusal(500, "UNKNOWN", "unknown error"), after=True),
    "part-of-body-then-hang-up": Fault(after=True, hang_up=True, cut_request=3),
    "done-then-504-html": replace(_page(504, "Gateway Time-out"), after=True),
}
"""What was asked is done, and the client does not learn it. As TEMPORARY; for writes."""

FAULTS: Mapping[str, Fault] = {**TEMPORARY, **REFUSED, **WRONG, **HARMLESS, **LOST_ANSWERS}

ENDPOINTS: Mapping[str, tuple[str | None, str]] = {
    "ping": ("GET", r"^/v2/$"),
    "token": (None, r"^(/service)?/token"),
    "tags": ("GET", r"/tags/list"),
    "manifest": ("GET", r"/manifests/"),
    "manifest-head": ("HEAD", r"/manifests/"),
    "blob": ("GET", r"/blobs/sha|^/storage/"),
    "blob-head": ("HEAD", r"/blobs/sha"),
    "referrers": ("GET", r"/referrers/"),
    "upload-start": ("POST", r"/blobs/uploads/"),
    "upload-chunk": ("PATCH", r"uploads/"),
    "upload-status": ("GET", r"uploads/"),
    "upload-end": ("PUT", r"uploads/"),
    "upload-cancel": ("DELETE", r"uploads/"),
    "manifest-put": ("PUT", r"/manifests/"),
    "manifest-delete": ("DELETE", r"/manifests/"),
    "blob-delete": ("DELETE", r"/blobs/sha"),
}
"""Method and pattern, for `inject`."""
