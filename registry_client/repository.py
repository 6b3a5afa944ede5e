"""RemoteRepository: authorized requests for one repository at one endpoint. What they mean is for ``client`` and ``uploads``."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import quote

import requests

from registry_client.answers import status_error
from registry_client.auth import Authorizer, denial
from registry_client.credentials import Credential, find_credential
from registry_client.endpoint import Endpoint
from registry_client.errors import (
    DeniedError,
    MalformedError,
    NoConnectionError,
    NotFoundError,
    RegistryError,
    SizeMismatchError,
    UnavailableError,
    UnreachableError,
)
from registry_client.manifest import Descriptor
from registry_client.options import Options
from registry_client.server import Connections
from registry_client.transport import SizedBody, discard, origin, read_raw

T = TypeVar("T")

# Pieces of a TLS connection are 16 KiB; this many bytes are worth the calls that a piece costs further on.
_PIECE_SIZE = 256 << 10
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")

MakeBody = Callable[[], bytes | SizedBody]
"""Makes the body of a request, anew for each try."""


class Action(enum.Enum):
    """What a request is for: the rights that its token needs (token specification, "Requesting access")."""

    PULL = "pull"
    PUSH = "pull,push"
    DELETE = "delete"
    LOGIN = ""
    SEARCH = "search"
    CATALOG = "catalog"

    @property
    def verb(self) -> str:
        """For messages."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer whose status was expected; its body is not read yet.

    Attributes:
        url: where it came from.
    """

    response: requests.Response
    url: str

    @property
    def status(self) -> int:
        """HTTP status."""
        return self.response.status_code

    def header(self, name: str) -> str:
        """A header's value, or ``""``."""
        value: str = self.response.headers.get(name, "")
        return value

    def close(self) -> None:
        """Gives the connection back without anybody reading the body; where that is long, the connection ends."""
        discard(self.response)


class RemoteRepository:
    """One repository at one endpoint. May be used from several threads.

    Attributes:
        endpoint: where it is.
        server: whose API it is below.
        name: registry and repository, as the user calls them.
        retry: how often, and how long between.
        on_retry: told before each wait.
    """

    def __init__(
        self, endpoint: Endpoint, name: str, connections: Connections, options: Options, credential: Credential | None = None
    ) -> None:
        """Sends nothing yet.

        Args:
            credential: instead of the one in the options, or in files.
        """
        self.endpoint = endpoint
        self.server = connections.server(endpoint)
        self.name = name
        self.retry = options.retry.for_mirror() if endpoint.is_mirror else options.retry
        self.on_retry = options.on_retry
        self._options = options
        self._credential = credential
        self._found: Authorizer | None = None

    def request(
        self,
        method: str,
        path: str,
        what: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: MakeBody | None = None,
        action: Action = Action.PULL,
        mount_from: str | None = None,
        expected: Collection[int] = (200,),
    ) -> Answer:
        """Like `send`, and again as often as the policy allows. For requests that may be sent twice."""
        return self.retried(
            lambda: self.send(
                method, path, what, headers=headers, body=body, action=action, mount_from=mount_from, expected=expected
            )
        )

    def retried(self, act: Callable[[], T]) -> T:
        """Does something again as often as the policy allows."""
        return self.retry.run(act, self.on_retry)

    def send(
        self,
        method: str,
        path: str,
        what: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: MakeBody | None = None,
        action: Action = Action.PULL,
        mount_from: str | None = None,
        expected: Collection[int] = (200,),
    ) -> Answer:
        """One request, with authorization, and with one more try if that was refused.

        Args:
            path: below ``/v2/<repository>/``; or a whole URL, of another server too: that gets no authorization.
            what: the object of the request, for messages.
            mount_from: a repository of the same server that must be readable, too.
            expected: statuses that are no errors.

        Raises:
            NotFoundError, DeniedError, UnavailableError, RegistryError: any other status, or no answer.
        """
        scopes = self._scopes(action, mount_from)
        try:
            url = path if "://" in path else self._url(path)
            sent = self._header(url, scopes)
            response, came_from = self._send(method, url, headers, sent, body)
            if response.status_code == 401 and origin(came_from) == origin(url) == origin(self.server.base):
                self.server.asks_who_we_are = True
                answer = self._answer(response, sent, scopes)
                if answer is not None:
                    response, came_from = self._send(method, url, headers, answer, body)
        except NoConnectionError as error:
            error.temporary = self.server.reached
            raise
        except DeniedError as error:
            # Of the token server, if it has a status. The rules about realms speak for themselves.
            raise self._denied(error, action, str(error)) if error.status is not None else error from None
        self.server.reached = True
        if response.status_code in expected:
            return Answer(response, came_from)
        raise self._error(response, came_from, what, action, elsewhere=origin(came_from) != origin(self.server.base))

    def open_body(self, descriptor: Descriptor, start: int) -> HttpBody:
        """One try to get the bytes of a blob from ``start`` on.

        Raises:
            SizeMismatchError, MalformedError: the answer is about other bytes.
            RegistryError: what `send` raises.
        """
        headers = {"Accept": "*/*"} | ({"Range": f"bytes={start}-"} if start else {})
        what = f"blob {descriptor.digest} of {self.name}"
        response = self.send("GET", f"blobs/{descriptor.digest}", what, headers=headers, expected=(200, 206)).response
        body = HttpBody(response, what)
        try:
            at = _start_of(response, descriptor, what) if response.status_code == 206 else 0
            if at not in (0, start):
                raise MalformedError(f"{what}: asked for bytes from {start} on, got them from {at} on")
            length = response.headers.get("content-length", "")
            if length.isascii() and length.isdigit() and at + int(length[:20]) != descriptor.size:
                raise SizeMismatchError(
                    f"{what}: the registry has {at + int(length[:20])} bytes, its descriptor says {descriptor.size}"
                )
            body.skip(start - at)
        except BaseException:
            body.close()
            raise
        return body

    def _scopes(self, action: Action, mount_from: str | None) -> tuple[str, ...]:
        if action in (Action.LOGIN, Action.SEARCH):
            return ()
        if action is Action.CATALOG:
            return ("registry:catalog:*",)
        scopes = (f"repository:{self.endpoint.repository}:{action.value}",)
        return scopes if mount_from is None else (*scopes, f"repository:{mount_from}:pull")

    def _url(self, path: str) -> str:
        url = f"{self.server.base}{self.endpoint.api}/{self.endpoint.repository}/{path}"
        if self.endpoint.namespace is None:
            return url
        return f"{url}{'&' if '?' in path else '?'}ns={quote(self.endpoint.namespace, safe='')}"

    def _send(
        self, method: str, url: str, headers: Mapping[str, str] | None, authorization: str | None, body: MakeBody | None
    ) -> tuple[requests.Response, str]:
        transport = self.server.transport
        reach = transport.reach(url, self.server.base, self.server.reach)
        sent = dict(headers or {})
        if origin(url) == origin(self.server.base):
            sent |= dict(self.endpoint.headers)
            sent |= {"Authorization": authorization} if authorization else {}
        return transport.send(method, url, sent, reach, body=None if body is None else body())

    def _header(self, url: str, scopes: tuple[str, ...]) -> str | None:
        if not self.server.asks_who_we_are or origin(url) != origin(self.server.base):
            return None
        return self._authorizer().header(scopes)

    def _answer(self, response: requests.Response, sent: str | None, scopes: tuple[str, ...]) -> str | None:
        try:
            authorizer = self._authorizer()
        except BaseException:
            response.close()
            raise
        return authorizer.answer(response, sent, scopes)

    def _authorizer(self) -> Authorizer:
        if self._found is None:
            endpoint, options = self.endpoint, self._options
            credential = self._credential
            # A credential that was given is for the registry of the reference; a mirror is another one.
            if credential is None and not endpoint.is_mirror:
                credential = options.credential
            if credential is None:
                credential = find_credential(endpoint.registry, endpoint.repository, authfile=options.authfile)
            self._found = self.server.authorizer(credential)
        return self._found

    def _error(self, response: requests.Response, url: str, what: str, action: Action, *, elsewhere: bool) -> RegistryError:
        error = status_error(response, url, what)
        if elsewhere and response.status_code in (401, 403):
            # Storage that we were sent to: its signed URL has run out. The registry gives a new one.
            return UnavailableError(str(error), request=error.request, status=error.status)
        if isinstance(error, NotFoundError) and "NAME_UNKNOWN" in error.codes:
            words = str(error).partition("not found: ")[2]
            return error.like(f"repository {self.name} not found: {words}")
        if isinstance(error, DeniedError) and error.status in (401, 403):
            return self._denied(error, action, str(error).partition(f"{what}: ")[2])
        return error

    def _denied(self, error: DeniedError, action: Action, words: str) -> RegistryError:
        if action is Action.LOGIN:
            return error.like(words)
        denied = error.like(denial(action.verb, self.name, self._authorizer().credential, words))
        denied.registry = self.endpoint.registry
        return denied


class HttpBody:
    """The Body of an HTTP answer."""

    def __init__(self, response: requests.Response, what: str) -> None:
        self._response = response
        self._what = what

    def read(self, size: int) -> bytes:
        """See Body."""
        pieces: list[bytes] = []
        length = 0
        while length < min(size, _PIECE_SIZE):
            try:
                piece = read_raw(self._response, size - length, self._what)
            except UnreachableError:
                if pieces:
                    break  # what came is good; the next read meets the same error
                raise
            if not piece:
                break
            pieces.append(piece)
            length += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def skip(self, size: int) -> None:
        """Drops bytes that are here already: the server did not honour the Range."""
        while size > 0:
            piece = self.read(min(size, 1 << 20))
            if not piece:
                raise UnreachableError(f"{self._what}: the connection ended, {size} bytes before the wanted ones")
            size -= len(piece)

    def interrupt(self) -> None:
        """See Body."""
        with suppress(OSError, ValueError, RuntimeError):
            self._response.raw.shutdown()

    def close(self) -> None:
        """See Body."""
        self._response.close()


def _start_of(response: requests.Response, descriptor: Descriptor, what: str) -> int:
    """First byte of a 206 answer (RFC 9110 §14.4)."""
    value = response.headers.get("content-range", "")
    found = _CONTENT_RANGE.fullmatch(value)
    if found is None:
        raise MalformedError(f"{what}: Content-Range is {value[:80]!r}")
    start, end, total = found.groups()
    if total not in ("*", str(descriptor.size)) or int(end) + 1 != descriptor.size:
        raise SizeMismatchError(f"{what}: Content-Range is {value!r}, its descriptor says {descriptor.size} bytes")
    return int(start)
