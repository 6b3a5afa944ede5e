"""A registry in this process: a real HTTP server that serves manifests and blobs from memory, and misbehaves when told to.

::

    with Registry(auth="bearer") as registry:
        image = registry.add_image("library/busybox", "1.36", [make_tar({"hello": b"hello"})])
        registry.inject(r"/blobs/", Fault(cut_after=100), times=2)
        ... f"{registry.host}/library/busybox:1.36" ...
        assert [request.path for request in registry.requests] == [...]
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from tests.servers.images import BuiltImage, build_image, build_index, digest_of

_MANIFEST = re.compile(r"/v2/(.+)/manifests/([^/]+)")
_BLOB = re.compile(r"/v2/(.+)/blobs/(sha(?:256|512):[0-9a-f]+)")
_TAGS = re.compile(r"/v2/(.+)/tags/list")


@dataclass(frozen=True)
class Fault:
    """What to do to one answer. Those that change a body keep all headers right, but for what they are about.

    Attributes:
        status: answer with this, ``headers`` and ``body``, and nothing else.
        headers: also added to a body that is served.
        cut_after: close the connection after so many bytes of the body.
        damage_at: change the byte at this offset of the blob.
        drop: serve so many bytes fewer, with a Content-Length that agrees.
        append: serve these bytes after the end, with a Content-Length that agrees.
        chunked: no Content-Length.
        ignore_range: serve the whole with status 200.
        redirect: send the client to the storage server on another port, for the same bytes.
        hang_up: close the connection before any answer.
        delay: seconds before the answer.
        stall: seconds of silence at ``cut_after``, before the connection is closed.
        hold: send the first half of the body, and the second when this is set or the registry stops.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut_after: int | None = None
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


@dataclass
class Request:
    """A request as it came, and what was answered.

    Attributes:
        server: ``registry`` or ``storage``.
        path: with the query.
        sent: bytes of the answer's body.
    """

    server: str
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    status: int = 0
    sent: int = 0


@dataclass
class _Injected:
    pattern: re.Pattern[str]
    fault: Fault
    times: int


class Registry:
    """See the module. ``auth`` is ``none``, ``basic`` or ``bearer``.

    Args:
        anonymous_pull: a bearer registry that gives tokens to those without a password, too.
        token_lifetime: seconds, or None for an answer without ``expires_in``.
        token_field: ``token`` or ``access_token``.
        tls: serve HTTPS with this context.

    Attributes:
        host: ``127.0.0.1:port``.
        storage_host: where ``Fault(redirect=True)`` leads.
        requests: all, in the order in which they came; those of the storage server, too.
        identity_token: a refresh token that the token server accepts.
    """

    def __init__(
        self,
        *,
        auth: str = "none",
        username: str = "robot$project+puller",
        password: str = "pa$$:word",
        anonymous_pull: bool = False,
        token_lifetime: float | None = 300.0,
        token_field: str = "token",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.auth = auth
        self.username = username
        self.password = password
        self.anonymous_pull = anonymous_pull
        self.token_lifetime = token_lifetime
        self.token_field = token_field
        self.identity_token = "identity-token"
        self.realm: str | None = None
        self.page_size: int | None = None
        self.requests: list[Request] = []
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[bytes, str]] = {}
        self.tags: dict[str, list[str]] = {}
        self.tokens: dict[str, tuple[str, float]] = {}
        self._injected: list[_Injected] = []
        self._lock = threading.Lock()
        self._server = _Server(self, "registry", tls)
        self._storage = _Server(self, "storage", tls)
        self.scheme = "https" if tls else "http"
        self.host = self._server.host
        self.storage_host = self._storage.host

    def __enter__(self) -> Self:
        self._server.start()
        self._storage.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.stop()
        self._storage.stop()

    def add_image(self, repository: str, tag: str | None, layers: Sequence[bytes], **options: Any) -> BuiltImage:
        """Builds an image (see `build_image` for the options) and serves it."""
        return self.add_built(repository, tag, build_image(layers, **options))

    def add_built(self, repository: str, tag: str | None, image: BuiltImage) -> BuiltImage:
        """Serves an image."""
        self.blobs |= image.blobs
        self.add_manifest(repository, tag, image.manifest, image.media_type)
        return image

    def add_index(self, repository: str, tag: str | None, images: Sequence[BuiltImage]) -> str:
        """Serves these images for several platforms under one tag; returns the index's digest."""
        for image in images:
            self.add_built(repository, None, image)
        index = build_index([image.descriptor() for image in images])
        return self.add_manifest(repository, tag, index, json.loads(index)["mediaType"])

    def add_manifest(self, repository: str, tag: str | None, data: bytes, content_type: str) -> str:
        """Serves any bytes as a manifest; returns their digest."""
        digest = digest_of(data)
        self.manifests[repository, digest] = data, content_type
        tags = self.tags.setdefault(repository, [])
        if tag is not None:
            self.manifests[repository, tag] = data, content_type
            tags.append(tag)
        return digest

    def inject(self, pattern: str, fault: Fault, *, times: int = 1) -> None:
        """Lets the next ``times`` answers to requests whose path matches (``re.search``) go wrong. The first injected goes first.

        The storage server's paths begin with ``/storage/``.
        """
        with self._lock:
            self._injected.append(_Injected(re.compile(pattern), fault, times))

    def revoke_tokens(self) -> None:
        """From now on, all tokens that were given out are refused."""
        self.tokens.clear()

    def paths(self, pattern: str = "") -> list[str]:
        """Paths of the requests that match."""
        return [request.path for request in self.requests if re.search(pattern, request.path)]

    def take_fault(self, path: str) -> Fault:
        """For the handler: what to do to this answer."""
        with self._lock:
            for injected in self._injected:
                if injected.times > 0 and injected.pattern.search(path):
                    injected.times -= 1
                    return injected.fault
        return Fault()


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def __init__(self, registry: Registry, name: str, tls: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.registry = registry
        self.name = name
        self.tls = tls
        self.host = f"127.0.0.1:{self.server_address[1]}"
        self.daemon_threads = False
        self.stopping = threading.Event()
        self._connections: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, name=f"test {name}")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.stopping.set()
        self.shutdown()
        self._thread.join()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the connection's own thread: the handshake, then requests until it is closed."""
        self._connections.add(request)
        try:
            if self.tls is None:
                # A client that tries HTTPS first gets what Go's server gives: an end, and not a long silence.
                if request.recv(1, socket.MSG_PEEK) == b"\x16":
                    return
                super().finish_request(request, client_address)
                return
            with self.tls.wrap_socket(request, server_side=True) as secured:
                self._connections.add(secured)
                super().finish_request(secured, client_address)
                self._connections.discard(secured)
        except OSError:
            pass  # the client went away
        finally:
            self._connections.discard(request)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        registry = self.server.registry
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length)
        self.seen = Request(self.server.name, self.command, self.path, dict(self.headers), body)
        registry.requests.append(self.seen)
        fault = registry.take_fault(self.path)
        time.sleep(fault.delay)
        if fault.hang_up:
            self.close_connection = True
            return
        if fault.status is not None:
            self._answer(fault.status, fault.body, dict(fault.headers))
            return
        path = urlsplit(self.path).path
        if self.server.name == "storage":
            self._serve_blob(registry.blobs.get(path.removeprefix("/storage/")), fault)
        elif path == "/token":
            self._serve_token(body)
        elif self._authorized():
            self._route(path, fault)

    do_HEAD = do_GET  # noqa: N815
    do_POST = do_GET  # noqa: N815

    def _route(self, path: str, fault: Fault) -> None:
        registry = self.server.registry
        if path == "/v2/":
            self._answer(200, b"{}", {"Docker-Distribution-Api-Version": "registry/2.0"})
        elif found := _MANIFEST.fullmatch(path):
            stored = registry.manifests.get((found[1], found[2]))
            if stored is None:
                code = "MANIFEST_UNKNOWN" if found[1] in registry.tags else "NAME_UNKNOWN"
                self._error(404, code, code.lower().replace("_", " "))
                return
            headers = {"Content-Type": stored[1], "Docker-Content-Digest": digest_of(stored[0])}
            self._serve(stored[0], fault, headers)
        elif found := _BLOB.fullmatch(path):
            if fault.redirect:
                location = f"{registry.scheme}://{registry.storage_host}/storage/{found[2]}?signature=canary"
                self._answer(307, b"", {"Location": location})
            else:
                self._serve_blob(registry.blobs.get(found[2]), fault)
        elif found := _TAGS.fullmatch(path):
            self._serve_tags(found[1], fault)
        else:
            self._error(404, "UNSUPPORTED", f"no such path: {path}")

    def _serve_tags(self, repository: str, fault: Fault) -> None:
        registry = self.server.registry
        tags = registry.tags.get(repository)
        if tags is None:
            self._error(404, "NAME_UNKNOWN", "repository name not known to registry")
            return
        query = parse_qs(urlsplit(self.path).query)
        size = min(int(query["n"][0]), registry.page_size or len(tags) or 1)
        start = tags.index(query["last"][0]) + 1 if "last" in query else 0
        page = tags[start : start + size]
        more = start + size < len(tags)
        link = {"Link": f'</v2/{repository}/tags/list?n={size}&last={page[-1]}>; rel="next"'} if more else {}
        self._answer(200, json.dumps({"name": repository, "tags": page or None}).encode(), link | dict(fault.headers))

    def _serve_blob(self, data: bytes | None, fault: Fault) -> None:
        if data is None:
            self._error(404, "BLOB_UNKNOWN", "blob unknown to registry")
        else:
            self._serve(data, fault, {"Content-Type": "application/octet-stream"})

    def _serve(self, data: bytes, fault: Fault, headers: dict[str, str]) -> None:
        if fault.damage_at is not None:
            data = data[: fault.damage_at] + bytes([data[fault.damage_at] ^ 0xFF]) + data[fault.damage_at + 1 :]
        data = data[: len(data) - fault.drop] + fault.append
        status, total = 200, len(data)
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))
        if found and not fault.ignore_range:
            start = int(found[1])
            if start >= total:
                self._answer(416, b"", {"Content-Range": f"bytes */{total}"})
                return
            status, data = 206, data[start:]
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
        self._answer(status, data, headers | dict(fault.headers), fault)

    def _serve_token(self, form: bytes) -> None:
        registry = self.server.registry
        if self.command == "POST":
            fields = parse_qs(form.decode())
            allowed = fields.get("refresh_token") == [registry.identity_token]
            scopes = fields.get("scope", [""])[0].split(" ")
        else:
            fields = parse_qs(urlsplit(self.path).query)
            given = self.headers.get("authorization")
            allowed = given == self._basic() or (registry.anonymous_pull and given is None)
            scopes = fields.get("scope", [])
        if not allowed:
            self._error(401, "UNAUTHORIZED", "authentication required")
            return
        token = hashlib.sha256(f"{len(registry.requests)}{time.monotonic_ns()}".encode()).hexdigest()
        registry.tokens[token] = scopes[0], time.monotonic() + (registry.token_lifetime or 60.0)
        answer: dict[str, Any] = {registry.token_field: token}
        if registry.token_lifetime is not None:
            answer["expires_in"] = int(registry.token_lifetime)
        self._answer(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _basic(self) -> str:
        registry = self.server.registry
        return "Basic " + base64.b64encode(f"{registry.username}:{registry.password}".encode()).decode()

    def _authorized(self) -> bool:
        """Answers with a challenge, unless there is nothing to ask for."""
        registry = self.server.registry
        given = self.headers.get("authorization", "")
        if registry.auth == "none":
            return True
        if registry.auth == "basic":
            if given == self._basic():
                return True
            self._error(401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": 'Basic realm="registry, test"'})
            return False
        scope, expires = registry.tokens.get(given.removeprefix("Bearer "), ("", 0.0))
        found = re.match(r"/v2/(.+)/(?:manifests|blobs|tags)/", self.path)
        wanted = f"repository:{found[1]}:pull" if found else ""
        if expires > time.monotonic() and wanted in (scope, ""):
            return True
        realm = f"{registry.scheme}://{registry.host}/token" if registry.realm is None else registry.realm
        challenge = f'Bearer realm="{realm}",service="registry.test"' + (f',scope="{wanted}"' if wanted else "")
        self._error(401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": challenge})
        return False

    def _error(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps({"errors": [{"code": code, "message": message, "detail": None}]}).encode()
        self._answer(status, body, {"Content-Type": "application/json"} | dict(headers or {}))

    def _answer(self, status: int, body: bytes, headers: dict[str, str], fault: Fault = Fault()) -> None:
        cut_after, chunked = fault.cut_after, fault.chunked
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(len(body)))))
        self.end_headers()
        self.seen.status = status
        if self.command == "HEAD":
            return
        data = body if cut_after is None else body[:cut_after]
        self.seen.sent = len(data)
        if chunked:
            self.wfile.write(b"%x\r\n%b" % (len(body), data) if body else b"")
            if cut_after is None:
                self.wfile.write(b"\r\n0\r\n\r\n" if body else b"0\r\n\r\n")
        else:
            if fault.hold is not None:
                self.wfile.write(data[: len(data) // 2])
                data = data[len(data) // 2 :]
                while not fault.hold.wait(0.05) and not self.server.stopping.is_set():
                    pass
            self.wfile.write(data)
        if cut_after is not None and len(data) < len(body):
            self.server.stopping.wait(fault.stall)
            self.close_connection = True
