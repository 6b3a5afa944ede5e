"""HTTP: one request at a time, with everything about connections that must not be left to defaults.

- Nothing of the surroundings changes what we were told: no netrc, no cookies, no user information in URLs. Proxies and
  certificate authorities of the environment are honoured, read here and in one way.
- Redirects: at most five, never from HTTPS to HTTP, never from elsewhere to this machine's loopback, and Authorization never goes to
  another scheme, host or port (distribution-spec; CVE-2018-18074).
- Every failure is a typed error with the words that docker's users know.
"""

from __future__ import annotations

import errno
import http.cookiejar
import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit, urlunsplit

import requests
import requests.adapters
import requests.utils
import urllib3.exceptions

from registry_client.errors import (
    CertificateError,
    MalformedError,
    NoConnectionError,
    PlainHttpError,
    RegistryError,
    TlsError,
    UnknownHostError,
    UnreachableError,
)
from registry_client.hosts import is_loopback
from registry_client.options import Options

REDIRECTS_MAX = 5
USER_AGENT = "imgstore"
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CONNECTIONS_MAX = 16
_CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")  # SSL_CERT_FILE and SSL_CERT_DIR are read by OpenSSL itself

# What OpenSSL says when the bytes that came are no TLS record: old and new words.
_NOT_TLS = ("WRONG_VERSION_NUMBER", "wrong version number", "HTTP_REQUEST", "record layer failure", "RECORD_LAYER_FAILURE")


class Transport:
    """Sends requests, from any number of threads; connections are kept and shared.

    After `close` it must not be used.
    """

    def __init__(self, options: Options) -> None:
        self._timeout = (options.connect_timeout, options.read_timeout)
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        self._session.mount("https://", _Adapter(_tls_context(options)))
        self._session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=_CONNECTIONS_MAX))

    def send(
        self, method: str, url: str, headers: Mapping[str, str], *, data: Mapping[str, str] | None = None
    ) -> tuple[requests.Response, str]:
        """Sends one request, follows redirects of a GET, and returns the last answer and its URL.

        The body is not read yet; the caller reads or closes it. Any status is returned, none is an error.

        Raises:
            UnreachableError, TlsError: no answer.
            RegistryError: a redirect that must not be followed.
        """
        headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **headers}
        for _ in range(REDIRECTS_MAX + 1):
            response = self._send_once(method, url, headers, data)
            if response.status_code not in _REDIRECTS or "location" not in response.headers:
                return response, url
            response.close()
            if method != "GET":
                raise RegistryError(
                    f"{describe(method, url)}: redirected, which only a GET may be", request=describe(method, url)
                )
            target = _redirect_target(url, response.headers["location"])
            if origin(target) != origin(url):
                headers = {name: value for name, value in headers.items() if name != "Authorization"}
            url = target
        raise RegistryError(f"{describe(method, url)}: more than {REDIRECTS_MAX} redirects", request=describe(method, url))

    def close(self) -> None:
        """Closes all connections."""
        self._session.close()

    def _send_once(self, method: str, url: str, headers: Mapping[str, str], data: Mapping[str, str] | None) -> requests.Response:
        proxies = {} if is_loopback(urlsplit(url).hostname or "") else requests.utils.get_environ_proxies(url, no_proxy=None)
        try:
            request = requests.Request(method, url, headers=dict(headers), data=data).prepare()
            return self._session.send(request, stream=True, timeout=self._timeout, allow_redirects=False, proxies=proxies)
        except requests.RequestException as error:
            raise _translate(error, method, url) from error


class _Adapter(requests.adapters.HTTPAdapter):
    """Trusts what its context trusts; requests alone would trust only certifi's list."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        super().__init__(pool_maxsize=_CONNECTIONS_MAX)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._context, **kwargs)

    def proxy_manager_for(self, proxy: Any, **kwargs: Any) -> Any:
        return super().proxy_manager_for(proxy, ssl_context=self._context, **kwargs)

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        conn.cert_reqs = "CERT_REQUIRED"


def _tls_context(options: Options) -> ssl.SSLContext:
    bundle = next((os.environ[name] for name in _CA_VARIABLES if os.environ.get(name)), None)
    try:
        context = ssl.create_default_context(cafile=bundle)
        if not context.cert_store_stats()["x509_ca"]:
            context.load_verify_locations(requests.utils.DEFAULT_CA_BUNDLE_PATH)
        if options.ca_file is not None:
            context.load_verify_locations(options.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise TlsError(f"certificate authorities in {options.ca_file or bundle}: {error}") from None
    return context


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
    return data


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


def _redirect_target(url: str, location: str) -> str:
    request = describe("GET", url)
    target = urlsplit(urljoin(url, location))
    if target.scheme not in ("http", "https") or not target.hostname:
        raise RegistryError(f"{request}: redirected to something that is not HTTP", request=request)
    if urlsplit(url).scheme == "https" and target.scheme == "http":
        raise RegistryError(f"{request}: redirected from HTTPS to plain HTTP at {target.hostname}", request=request)
    if is_loopback(target.hostname) and not is_loopback(urlsplit(url).hostname or ""):
        raise RegistryError(f"{request}: redirected to this machine's {target.hostname}", request=request)
    return urlunsplit(target._replace(netloc=target.netloc.rpartition("@")[2]))


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
        if isinstance(cause, ssl.SSLError):
            if any(words in str(cause) for words in _NOT_TLS):
                return PlainHttpError(f"registry {host}: server gave HTTP response to HTTPS client", request=request)
            return TlsError(f"registry {host}: TLS handshake failed: {cause.reason or cause}", request=request)
    if any(isinstance(cause, urllib3.exceptions.ProxyError) for cause in causes):
        return UnreachableError(f"registry {host}: the proxy does not let us through ({_reason(causes[-1])})", request=request)
    if isinstance(error, requests.ConnectTimeout):
        return NoConnectionError(f"registry {host}: no connection within the time limit (i/o timeout)", request=request)
    if isinstance(error, requests.Timeout) or any(isinstance(cause, TimeoutError) for cause in causes):
        return UnreachableError(f"registry {host}: no answer within the time limit (i/o timeout)", request=request)
    if any(isinstance(cause, urllib3.exceptions.NewConnectionError) for cause in causes):
        return NoConnectionError(f"registry {host}: {_reason(error)}", request=request)
    if isinstance(error, requests.ConnectionError):
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
