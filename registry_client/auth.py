"""Authorization: Basic, and Bearer tokens that a token server hands out.

Sources: distribution-spec and distribution "Token Authentication Specification"; RFC 9110 §11 (challenges), RFC 6749 (refresh tokens).
A realm is given by the registry, so it is checked before anything is sent to it (CVE-2020-15157, CVE-2019-10214).
"""

from __future__ import annotations

import ipaddress
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

import requests

from registry_client.answers import status_error
from registry_client.credentials import Credential
from registry_client.errors import DeniedError, MalformedError, RegistryError
from registry_client.hosts import is_loopback
from registry_client.strict_json import parse_object
from registry_client.transport import Transport, describe, read_body

TOKEN_SIZE_MAX = 1 << 20
LIFETIME_DEFAULT = 60.0  # seconds, where the answer has no expires_in (token specification)
_LIFETIME_MAX = 1 << 31
_REFRESH_AT = 0.8  # of the lifetime: a request that starts then still ends in time
_CLIENT_ID = "imgstore"

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105
_SCHEME = re.compile(rf"[\s,]*({_TOKEN})(?:\s+|\s*$|(?=,))")
_PARAMETER = re.compile(rf'[\s,]*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))')
_HEADER_MAX = 16 << 10


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge of a ``WWW-Authenticate`` header; scheme and parameter names in lower case."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """Reads all challenges of all ``WWW-Authenticate`` headers. What cannot be read is left out."""
    challenges: list[Challenge] = []
    for header in headers:
        text, position = header[:_HEADER_MAX], 0
        while found := _SCHEME.match(text, position):
            position = found.end()
            parameters: dict[str, str] = {}
            while parameter := _PARAMETER.match(text, position):
                name, quoted, bare = parameter.groups()
                parameters.setdefault(name.lower(), bare if quoted is None else re.sub(r"\\(.)", r"\1", quoted))
                position = parameter.end()
            challenges.append(Challenge(found[1].lower(), parameters))
    return challenges


@dataclass(frozen=True, slots=True)
class _TokenRequest:
    realm: str
    service: str
    scopes: tuple[str, ...]


class Authorizer:
    """Knows what to send as Authorization to one registry, for pulls from one repository.

    Safe to use from several threads: one of them fetches the token, the others wait for it.

    Args:
        registry: scheme and host of the registry, ``https://host:port``.
        find_credential: called at most once, at the first challenge.
    """

    def __init__(self, transport: Transport, registry: str, repository: str, find_credential: Callable[[], Credential]) -> None:
        self._transport = transport
        self._registry = urlsplit(registry)
        self._repository = repository
        self._find_credential = find_credential
        self._credential: Credential | None = None
        self._lock = threading.Lock()
        self._header: str | None = None
        self._token_request: _TokenRequest | None = None
        self._refresh_at = 0.0

    def header(self) -> str | None:
        """The header to send now, or None as long as the registry asked for nothing. Gets a new token in good time.

        Raises:
            RegistryError: the token server refuses, or does not answer.
        """
        with self._lock:
            if self._token_request is not None and time.monotonic() >= self._refresh_at:
                self._fetch_token(self._token_request)
            return self._header

    def answer(self, response: requests.Response, sent: str | None) -> str | None:
        """Answers a 401: the header for one more try, or None if there is nothing better than what was sent.

        Args:
            sent: the Authorization of the request that was refused.

        Raises:
            RegistryError: the token server refuses, or does not answer; or its realm must not be trusted.
        """
        challenges = {challenge.scheme: challenge for challenge in reversed(parse_challenges(_challenge_headers(response)))}
        response.close()
        with self._lock:
            if self._header is not None and self._header != sent:
                return self._header  # another thread was faster
            if "bearer" in challenges:
                self._fetch_token(self._parse_bearer(challenges["bearer"].parameters))
                return self._header
            if "basic" in challenges and self.credential.username:
                self._header = self.credential.basic
                return self._header if self._header != sent else None
            return None

    @property
    def credential(self) -> Credential:
        """Ours, for this repository."""
        if self._credential is None:
            self._credential = self._find_credential()
        return self._credential

    def _parse_bearer(self, parameters: Mapping[str, str]) -> _TokenRequest:
        realm = parameters.get("realm", "")
        check_realm(realm, self._registry.geturl())
        # The challenged scope goes first: some token servers read only that one.
        wanted = f"repository:{self._repository}:pull"
        scopes = dict.fromkeys([*filter(None, [parameters.get("scope", "")]), wanted])
        return _TokenRequest(realm, parameters.get("service", ""), tuple(scopes))

    def _fetch_token(self, wanted: _TokenRequest) -> None:
        started = time.monotonic()
        response, url = self._ask(wanted)
        if response.status_code != 200:
            raise self._refused(status_error(response, url, f"token server of {self._registry.netloc}"))
        what = f"answer of {describe('GET', url)}"
        fields = parse_object(read_body(response, TOKEN_SIZE_MAX, what), what)
        token = fields.string("token", "") or fields.string("access_token", "")
        if not token or not token.isascii() or not token.isprintable():
            raise MalformedError(f"{what}: holds no usable token")
        lifetime = fields.integer("expires_in", maximum=_LIFETIME_MAX) if "expires_in" in fields else 0
        if self.credential.identity_token and (renewed := fields.string("refresh_token", "")):
            self._credential = Credential(self.credential.username, self.credential.password, renewed)
        self._header = f"Bearer {token}"
        self._token_request = wanted
        self._refresh_at = started + _REFRESH_AT * (lifetime or LIFETIME_DEFAULT)

    def _ask(self, wanted: _TokenRequest) -> tuple[requests.Response, str]:
        credential = self.credential
        if credential.identity_token:
            form = {
                "grant_type": "refresh_token",
                "service": wanted.service,
                "client_id": _CLIENT_ID,
                "refresh_token": credential.identity_token,
                "scope": " ".join(wanted.scopes),
            }
            response, url = self._transport.send("POST", wanted.realm, {}, data=form)
            if response.status_code not in (404, 405):
                return response, url
            response.close()  # a token server that knows only GET
        query = [("scope", scope) for scope in wanted.scopes]
        if wanted.service:
            query.insert(0, ("service", wanted.service))
        headers = {}
        if credential.username:
            query.append(("account", credential.username))
            headers["Authorization"] = credential.basic
        mark = "&" if urlsplit(wanted.realm).query else "?"
        return self._transport.send("GET", f"{wanted.realm}{mark}{urlencode(query)}", headers)

    def _refused(self, error: RegistryError) -> RegistryError:
        if not isinstance(error, DeniedError):
            return error
        return DeniedError(
            denial(f"{self._registry.netloc}/{self._repository}", self.credential, str(error)),
            request=error.request,
            status=error.status,
            codes=error.codes,
        )


def check_realm(realm: str, registry: str) -> None:
    """Refuses a realm to which no request, and no password, may go.

    HTTPS, except where registry and realm are both this machine and the registry itself is plain HTTP. No literal address of
    a loopback, link-local or private network, unless the registry's own is such a literal.

    Args:
        registry: scheme and host, ``https://host:port``.

    Raises:
        DeniedError: says which rule the realm breaks.
    """
    target, origin = urlsplit(realm), urlsplit(registry)
    host, registry_host = target.hostname or "", origin.hostname or ""
    name = f"registry {origin.netloc}: realm {describe('', realm).strip()[:200]!r}"
    both_local = is_loopback(host) and is_loopback(registry_host)
    if not host or not (target.scheme == "https" or (target.scheme == origin.scheme == "http" and both_local)):
        raise DeniedError(f"{name} is not https: no credentials are sent there")
    if _is_internal(host) and not _is_internal(registry_host):
        raise DeniedError(f"{name} is an address of an internal network: no credentials are sent there")


def denial(name: str, credential: Credential, said: str) -> str:
    """The sentence for a refused pull: without a login, with docker's words; else naming the account."""
    if not credential:
        return f"pull access denied for {name}, repository does not exist or may require 'docker login': {said}"
    account = f"account {credential.username!r}" if credential.username else "the account of the identity token"
    return f"pull access denied for {name}: {account} is not accepted or may not pull from it: {said}"


def _challenge_headers(response: requests.Response) -> list[str]:
    values: list[str] = response.raw.headers.getlist("www-authenticate")
    return values


def _is_internal(host: str) -> bool:
    """Whether the host is ``localhost``, or a literal address of a network that is not the Internet."""
    if is_loopback(host):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_private or address.is_link_local or address.is_unspecified
