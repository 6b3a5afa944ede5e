"""HTTP: one request at a time, with everything about connections that must not be left to defaults.

- Nothing of the surroundings changes what we were told: no netrc, no cookies, no user information in URLs. Proxies and
  certificate authorities of the environment are honoured, read here and in one way.
- Redirects: at most five, never from HTTPS to HTTP, never from elsewhere to this machine's loopback, and Authorization never goes to
  another scheme, host or port (distribution-spec; CVE-2018-18074).
- Every failure is a typed error with the words that docker's users know.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import http.cookiejar
import logging
import os
import re
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urljoin, urlsplit, urlunsplit

import requests
import requests.adapters
import requests.utils
import urllib3.exceptions

from registry_client.endpoint import Endpoint, TlsSettings
from registry_client.errors import (
    CertificateError,
    InvalidError,
    MalformedError,
    NoConnectionError,
    PlainHttpError,
    RedirectError,
    RegistryError,
    TlsError,
    UnknownHostError,
    UnreachableError,
)
from registry_client.hosts import is_link_local, is_loopback
from registry_client.options import Options
from registry_client.proxies import find_proxies
from registry_client.routes import tls_settings

REDIRECTS_MAX = 5
USER_AGENT = "imgstore"
_COMMIT_FACTOR = 2
_HARMLESS_HEADERS = frozenset({"User-Agent", "Accept-Encoding", "Accept", "Range"})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_LENGTH = re.compile(r"\d{1,19}(\s*,\s*\d{1,19})*", re.ASCII)  # urllib3 makes sure that several are the same
_DISCARDED_MAX = 16 << 10  # bytes: less work than another handshake
_CONNECTIONS_MAX = 16
_CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")  # SSL_CERT_FILE and SSL_CERT_DIR are read by OpenSSL itself

# What OpenSSL says when the bytes that came are no TLS record: old and new words.
_NOT_TLS = ("WRONG_VERSION_NUMBER", "wrong version number", "HTTP_REQUEST", "record layer failure", "RECORD_LAYER_FAILURE")
# What it says when the other side wants a certificate of ours, or another one.
_CERTIFICATE_ALERTS = ("ALERT_CERTIFICATE", "ALERT_BAD_CERTIFICATE", "ALERT_UNKNOWN_CA", "ALERT_UNSUPPORTED_CERTIFICATE")

_log = logging.getLogger(__name__)


class _OthersRecords(logging.Filter):
    """Drops what urllib3 logs about our requests: URLs with their queries, in which signatures are. Others' requests it lets through."""

    def __init__(self) -> None:
        super().__init__()
        self.ours = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        return not getattr(self.ours, "sending", False)


_others_records = _OthersRecords()
for _name in ("urllib3.connection", "urllib3.connectionpool"):
    logging.getLogger(_name).addFilter(_others_records)


@contextlib.contextmanager
def _silent_urllib3() -> Iterator[None]:
    _others_records.ours.sending = True
    try:
        yield
    finally:
        _others_records.ours.sending = False


class Transport:
    """Sends requests, from any number of threads; connections are kept, and shared by all requests to one host with one TLS setting.

    After `close` it must not be used.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._sessions: dict[TlsSettings, requests.Session] = {}

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        reach: Reach,
        *,
        body: bytes | Mapping[str, str] | SizedBody | None = None,
        leaves: bool = True,
    ) -> tuple[requests.Response, str]:
        """Sends one request, follows redirects of a GET or HEAD, and returns the last answer and its URL.

        The body of the answer is not read yet; the caller reads or closes it. Any status is returned, none is an error.

        Args:
            reach: how to reach the host of ``url``. Where a redirect leads elsewhere, only the authorities that it trusts go along.
            body: a Mapping is sent as a form.
            leaves: a redirect may lead to another server.

        Raises:
            UnreachableError, TlsError: no answer.
            RedirectError: a redirect that must not be followed.
            MalformedError: an answer that breaks HTTP in a way that another try would not mend.
        """
        headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **headers}
        for _ in range(REDIRECTS_MAX + 1):
            response = self._send_once(method, url, headers, reach, body)
            if response.status_code not in _REDIRECTS or "location" not in response.headers:
                return response, url
            discard(response)
            if method not in ("GET", "HEAD"):
                raise RedirectError(
                    f"{describe(method, url)}: redirected, which only a GET or HEAD may be", request=describe(method, url)
                )
            target = follow(method, url, response.headers["location"])
            if origin(target) != origin(url):
                if not leaves:
                    raise RedirectError(
                        f"{describe(method, url)}: redirected to {urlsplit(target).hostname}, where it must not go",
                        request=describe(method, url),
                    )
                headers = {name: value for name, value in headers.items() if name in _HARMLESS_HEADERS}
                reach = self._elsewhere(target, reach)
            url = target
        raise RedirectError(f"{describe(method, url)}: more than {REDIRECTS_MAX} redirects", request=describe(method, url))

    def reach(self, url: str, known: str, reach: Reach) -> Reach:
        """How to reach ``url``, given how to reach ``known``: the same way if both are on one server."""
        return reach if origin(url) == origin(known) else self._elsewhere(url, reach)

    def close(self) -> None:
        """Closes all connections."""
        with self._lock:
            for session in self._sessions.values():
                session.close()

    def _elsewhere(self, url: str, reach: Reach) -> Reach:
        """How to reach another host that one led us to: by its own settings, and with the authorities of the first."""
        own = tls_settings(urlsplit(url).netloc.rpartition("@")[2], self._options)
        tls = replace(own, ca_files=tuple(dict.fromkeys([*own.ca_files, *reach.tls.ca_files])))
        return Reach(tls, realms=reach.realms)

    def _send_once(
        self, method: str, url: str, headers: Mapping[str, str], reach: Reach, body: bytes | Mapping[str, str] | SizedBody | None
    ) -> requests.Response:
        session = self._session(reach.tls)
        silence = self._options.read_timeout * (_COMMIT_FACTOR if method == "PUT" else 1)
        timeout = (reach.connect_timeout or self._options.connect_timeout, silence)
        if isinstance(body, SizedBody):
            # On a new connection each piece of a body may take as long as the connection itself, which is for packets, not for megabytes.
            timeout = (max(timeout), silence)
        try:
            request = requests.Request(method, url, headers=dict(headers), data=body).prepare()
            with _silent_urllib3():
                response = session.send(
                    request, stream=True, timeout=timeout, allow_redirects=False, proxies=_proxies(url, reach.proxy)
                )
        except requests.RequestException as error:
            # Not "from error": its words hold the URL with its query, and tracebacks would show them.
            raise _translate(error, method, url) from None
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            # What requests lets through: a malformed answer, or a connection that broke while the body was sent.
            raise _translate(requests.ConnectionError(error), method, url) from None
        _log.debug("%s: %d", describe(method, url), response.status_code)
        _check_head(response, describe(method, url))
        return response

    def _session(self, tls: TlsSettings) -> requests.Session:
        with self._lock:
            session = self._sessions.get(tls)
            if session is None:
                session = requests.Session()
                session.trust_env = False
                session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
                session.mount("https://", _TlsAdapter(_tls_context(tls), verify=tls.verify))
                session.mount("http://", _Adapter(pool_maxsize=_CONNECTIONS_MAX))
                self._sessions[tls] = session
            return session


@dataclass(frozen=True, slots=True)
class Reach:
    """How one host is reached: the part of an Endpoint that a connection needs."""

    tls: TlsSettings
    proxy: str | None = field(default=None, repr=False)
    connect_timeout: float | None = None
    realms: tuple[str, ...] = ()

    @classmethod
    def of(cls, endpoint: Endpoint) -> Reach:
        """The way to an endpoint's own host."""
        return cls(endpoint.tls, endpoint.proxy, endpoint.connect_timeout, endpoint.realms)


class SizedBody:
    """A request body of known size that is made while it is sent. Can be sent once."""

    def __init__(self, pieces: Iterable[bytes], size: int) -> None:
        self._pieces = pieces
        self._size = size

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return self._size


def _proxies(url: str, proxy: str | None) -> dict[str, str]:
    if is_loopback(urlsplit(url).hostname or "") or proxy == "":
        return {}
    if proxy is not None:
        return {"http": proxy, "https": proxy}
    return find_proxies(url)


class _Adapter(requests.adapters.HTTPAdapter):
    """Closes its connections when it is closed; urllib3 would do so when nobody holds the pool any more, and tracebacks may."""

    def close(self) -> None:
        for manager in (self.poolmanager, *self.proxy_manager.values()):
            for key in manager.pools.keys():  # noqa: SIM118 - it cannot be iterated over
                pool = manager.pools.get(key)
                if pool is not None:
                    pool.close()
        super().close()


class _TlsAdapter(_Adapter):
    """Trusts what its context trusts; requests alone would trust only certifi's list."""

    def __init__(self, context: ssl.SSLContext, *, verify: bool) -> None:
        self._context = context
        self._verify = verify
        super().__init__(pool_maxsize=_CONNECTIONS_MAX)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._context, **kwargs)

    def proxy_manager_for(self, proxy: Any, **kwargs: Any) -> Any:
        return super().proxy_manager_for(proxy, ssl_context=self._context, **kwargs)

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        conn.cert_reqs = "CERT_REQUIRED" if self._verify else "CERT_NONE"
        conn.assert_hostname = None if self._verify else False


def _check_head(response: requests.Response, request: str) -> None:
    """Refuses an answer whose end cannot be known: what follows on the connection would be taken for the answer to another request."""
    length = response.headers.get("content-length")
    if response.status_code < 200:
        # http.client skips 100 alone; behind these, too, comes the answer itself.
        response.close()
        raise MalformedError(f"{request}: answered {response.status_code}, which does not end a request", request=request)
    if length is not None and not _LENGTH.fullmatch(length):
        response.close()
        raise UnreachableError(f"{request}: the answer is malformed (Content-Length {length[:40]!r})", request=request)


def _tls_context(tls: TlsSettings) -> ssl.SSLContext:
    bundle = next((os.environ[name] for name in _CA_VARIABLES if os.environ.get(name)), None)
    reading, wanted = str(bundle), "certificate"
    try:
        context = ssl.create_default_context(cafile=bundle)
        if not context.cert_store_stats()["x509_ca"]:
            context.load_verify_locations(requests.utils.DEFAULT_CA_BUNDLE_PATH)
        for path in tls.ca_files:
            reading = str(path)
            context.load_verify_locations(path)
        for path, key in tls.client_certificates:
            reading, wanted = (f"{path}, {key}" if key != path else str(path)), "certificate and its key"
            context.load_cert_chain(path, key, password=_no_password)
    except ssl.SSLError as error:
        raise InvalidError(f"{reading}: no {wanted} in PEM ({_words_of(error)})") from None
    except OSError as error:
        raise InvalidError(f"{reading}: {error.strerror or error}") from None
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _words_of(error: ssl.SSLError) -> str:
    """``TLSV13_ALERT_CERTIFICATE_REQUIRED`` as words; without the source line of OpenSSL that the message has."""
    return error.reason.lower().replace("_", " ") if error.reason else str(error).partition(" (_ssl")[0]


def _no_password() -> str:
    # Without this OpenSSL asks on the terminal.
    raise OSError("the key is encrypted, and there is nobody to ask for its password")


def describe(method: str, url: str) -> str:
    """The request without secrets: no user information, no query."""
    parts = urlsplit(url)
    return f"{method} {parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or {"https": 443}.get(parts.scheme, 80)


def read_body(response: requests.Response, size_max: int, what: str) -> bytes:
    """Reads a whole small body and gives the connection back.

    Raises:
        MalformedError: more than ``size_max`` bytes, or encoded although we asked for identity.
        UnreachableError: the connection broke.
    """
    encoding = response.headers.get("content-encoding", "identity")
    if encoding.lower() not in ("", "identity"):
        response.close()
        raise MalformedError(f"{what}: came with Content-Encoding {encoding!r}, which was not asked for")
    data = b"".join(_pieces(response, size_max + 1, what))
    if len(data) > size_max:
        raise MalformedError(f"{what}: more than {size_max} bytes")
    if not data and not {"content-length", "transfer-encoding"}.intersection(map(str.lower, response.headers)):
        # Where the end of the connection is the end of the body, it may just as well have been cut, even within the headers.
        raise UnreachableError(f"{what}: the connection ended before the body began")
    return data


def discard(response: requests.Response) -> None:
    """Drops an answer. The connection is kept where there is little or nothing left to read, and else ends."""
    length = response.headers.get("content-length", "")
    if response.request.method == "HEAD" or (_LENGTH.fullmatch(length) and int(length.partition(",")[0]) <= _DISCARDED_MAX):
        with contextlib.suppress(UnreachableError):
            while read_raw(response, _DISCARDED_MAX, "rest of an answer"):
                pass
    response.close()


def _pieces(response: requests.Response, limit: int, what: str) -> Iterator[bytes]:
    try:
        while limit > 0 and (piece := read_raw(response, min(limit, 1 << 16), what)):
            limit -= len(piece)
            yield piece
    finally:
        response.close()


def read_raw(response: requests.Response, size: int, what: str) -> bytes:
    """At most ``size`` bytes of the body as they are on the wire, as soon as there are any; ``b""`` at its end.

    Raises:
        UnreachableError: the connection broke, or was silent for too long.
    """
    try:
        data: bytes = response.raw.read1(size)
    except urllib3.exceptions.ReadTimeoutError:
        raise UnreachableError(f"{what}: no byte within the time limit") from None
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        # ValueError: the connection was closed under the reader by another thread.
        raise UnreachableError(f"{what}: the connection broke ({_reason(error)})") from error
    return data


def follow(method: str, url: str, location: str, led: str = "redirected") -> str:
    """The URL that a ``Location`` header leads to, once it is known to be one to which a request may go.

    Args:
        method, url: of the request that was answered with the header.
        led: what the header did to us, for messages.

    Raises:
        RedirectError: it is not HTTP, or from HTTPS to plain HTTP, or from elsewhere to this machine, or to an address of the link.
    """
    request = describe(method, url)
    not_http = RedirectError(f"{request}: {led} to something that is not HTTP", request=request)
    try:
        target = urlsplit(urljoin(url, location))
        usable = target.scheme in ("http", "https") and target.port != 0
    except ValueError:
        raise not_http from None
    host, from_host = target.hostname or "", urlsplit(url).hostname or ""
    if not host or not usable:
        raise not_http
    if urlsplit(url).scheme == "https" and target.scheme == "http":
        raise RedirectError(f"{request}: {led} from HTTPS to plain HTTP at {host}", request=request)
    if (is_loopback(host) and not is_loopback(from_host)) or (is_link_local(host) and host != from_host):
        raise RedirectError(f"{request}: {led} to this machine's {host}", request=request)
    return urlunsplit(target._replace(netloc=target.netloc.rpartition("@")[2], fragment=""))


def _translate(error: requests.RequestException, method: str, url: str) -> RegistryError:
    """The typed error for what requests, urllib3, ssl and the socket said."""
    request = describe(method, url)
    host = urlsplit(url).netloc.rpartition("@")[2]
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, urllib3.exceptions.NameResolutionError | socket.gaierror):
            return UnknownHostError(f"registry {host}: no such host", request=request)
        if isinstance(cause, ssl.SSLCertVerificationError):
            return CertificateError(f"registry {host}: certificate not trusted: {cause.verify_message}", request=request)
    for cause in causes:
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            if any(words in str(cause) for words in _NOT_TLS):
                return PlainHttpError(f"registry {host}: server gave HTTP response to HTTPS client", request=request)
            kind = CertificateError if any(words in str(cause) for words in _CERTIFICATE_ALERTS) else TlsError
            return kind(f"registry {host}: TLS handshake failed: {_words_of(cause)}", request=request)
    if isinstance(error, requests.exceptions.InvalidProxyURL) or "SOCKS support" in str(error):
        return InvalidError(f"registry {host}: the proxy cannot be used: {error}", request=request)
    # urllib3 blames the proxy, too, for a server that hangs up behind it.
    hung_up = any(isinstance(cause, http.client.RemoteDisconnected) for cause in causes)
    if not hung_up and any(isinstance(cause, urllib3.exceptions.ProxyError) for cause in causes):
        return UnreachableError(f"registry {host}: the proxy does not let us through ({_reason(causes[-1])})", request=request)
    if isinstance(error, requests.ConnectTimeout):
        return NoConnectionError(f"registry {host}: no connection within the time limit (i/o timeout)", request=request)
    if isinstance(error, requests.Timeout) or any(isinstance(cause, TimeoutError) for cause in causes):
        return UnreachableError(f"registry {host}: no answer within the time limit (i/o timeout)", request=request)
    if any(isinstance(cause, urllib3.exceptions.NewConnectionError) for cause in causes):
        return NoConnectionError(f"registry {host}: {_reason(error)}", request=request)
    if isinstance(error, requests.ConnectionError | requests.exceptions.InvalidHeader):
        return UnreachableError(f"registry {host}: the connection broke ({_reason(causes[-1])})", request=request)
    return RegistryError(f"{request}: {_reason(error)}", request=request)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was made from; urllib3 and requests keep that in three different places."""
    waiting: list[BaseException] = [error]
    seen: set[int] = set()
    while waiting:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        inner = [current.__cause__, current.__context__, getattr(current, "reason", None), *current.args]
        waiting.extend(item for item in inner if isinstance(item, BaseException))


def _reason(error: BaseException) -> str:
    """Short words for an error; not urllib3's own, which hold URLs with their queries."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno is not None and cause.errno in errno.errorcode:
            return os.strerror(cause.errno).lower()
    if any(isinstance(cause, urllib3.exceptions.IncompleteRead) for cause in _causes(error)):
        return "unexpected EOF"
    return type(list(_causes(error))[-1]).__name__
