"""Authorization: Basic, and Bearer tokens that a token server hands out.

Sources: distribution-spec and distribution "Token Authentication Specification"; RFC 9110 §11 (challenges), RFC 6749 (refresh tokens).
A realm is given by the registry, so it is checked before anything is sent to it (CVE-2020-15157, CVE-2019-10214).
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlencode, urlsplit

import requests

from registry_client.answers import status_error
from registry_client.credentials import Credential
from registry_client.errors import DeniedError, MalformedError, NotFoundError, RegistryError, UnavailableError
from registry_client.hosts import is_internal, is_loopback
from registry_client.strict_json import parse_object
from registry_client.transport import Reach, Transport, describe, discard, read_body

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


@dataclass(slots=True)
class _Grant:
    """What was handed out for some scopes."""

    header: str
    request: _TokenRequest
    refresh_at: float


class Authorizer:
    """Knows what to send as Authorization to one registry for one account.

    Safe to use from several threads: one of them fetches a token, the others wait for it.

    Args:
        registry: scheme and host of the registry, ``https://host:port``.
        reach: how to reach it.
    """

    def __init__(self, transport: Transport, registry: str, reach: Reach, credential: Credential) -> None:
        self._transport = transport
        self._registry = urlsplit(registry)
        self._reach = reach
        self._credential = credential
        self._lock = threading.Lock()
        self._basic: str | None = None
        self._grants: dict[tuple[str, ...], _Grant] = {}

    @property
    def credential(self) -> Credential:
        """The account; its identity token is the newest."""
        return self._credential

    def header(self, scopes: tuple[str, ...]) -> str | None:
        """The header to send now, or None as long as the registry asked for nothing. Gets a new token in good time.

        Args:
            scopes: what the request needs, ``repository:project/app:pull``.

        Raises:
            RegistryError: the token server refuses, or does not answer.
        """
        with self._lock:
            grant = self._grants.get(scopes)
            if grant is None:
                return self._basic
            if time.monotonic() >= grant.refresh_at:
                grant = self._fetch_token(scopes, grant.request)
            return grant.header

    def answer(self, response: requests.Response, sent: str | None, scopes: tuple[str, ...]) -> str | None:
        """Answers a 401: the header for one more try, or None if there is nothing better than what was sent.

        The answer is unread only in the second case: then its words are all there is to say.

        Args:
            sent: the Authorization of the request that was refused.

        Raises:
            RegistryError: the token server refuses, or does not answer; or its realm must not be trusted.
        """
        challenges = {challenge.scheme: challenge for challenge in reversed(parse_challenges(_challenge_headers(response)))}
        with self._lock:
            header = self._next_header(response, sent, scopes, challenges)
        if header is not None:
            discard(response)
        return header

    def _next_header(
        self, response: requests.Response, sent: str | None, scopes: tuple[str, ...], challenges: Mapping[str, Challenge]
    ) -> str | None:
        grant = self._grants.get(scopes)
        if grant is not None and grant.header != sent:
            return grant.header  # another thread was faster
        if "bearer" in challenges and not self._credential.registry_token:
            discard(response)  # often the token is had by the same connection
            wanted = self._parse_bearer(challenges["bearer"].parameters, scopes)
            return self._fetch_token(scopes, wanted).header
        header = None
        if "bearer" in challenges:
            header = f"Bearer {self._credential.registry_token}"
        elif "basic" in challenges and self._credential.username:
            header = self._basic = self._credential.basic
        return header if header != sent else None

    def _parse_bearer(self, parameters: Mapping[str, str], scopes: tuple[str, ...]) -> _TokenRequest:
        realm = parameters.get("realm", "")
        check_realm(realm, self._registry.geturl(), self._reach.realms)
        # The challenged scope goes first: some token servers read only that one.
        wanted = dict.fromkeys([*filter(None, [parameters.get("scope", "")]), *scopes])
        return _TokenRequest(realm, parameters.get("service", ""), tuple(wanted))

    def _fetch_token(self, scopes: tuple[str, ...], wanted: _TokenRequest) -> _Grant:
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
        renewed = fields.string("refresh_token", "")
        if renewed and (self._credential.identity_token or not wanted.scopes):  # asked for, by a login, or the next of a row
            self._credential = replace(self._credential, identity_token=renewed)
        grant = _Grant(f"Bearer {token}", wanted, started + _REFRESH_AT * (lifetime or LIFETIME_DEFAULT))
        self._grants[scopes] = grant
        return grant

    def _ask(self, wanted: _TokenRequest) -> tuple[requests.Response, str]:
        credential = self._credential
        reach = self._transport.reach(wanted.realm, self._registry.geturl(), self._reach)
        if credential.identity_token:
            form = {
                "grant_type": "refresh_token",
                "service": wanted.service,
                "client_id": _CLIENT_ID,
                "access_type": "offline",
                "refresh_token": credential.identity_token,
                "scope": " ".join(wanted.scopes),
            }
            response, url = self._transport.send("POST", wanted.realm, {}, reach, body=form)
            if response.status_code not in (404, 405):
                return response, url
            discard(response)  # a token server that knows only GET
        query = [("scope", scope) for scope in wanted.scopes]
        if wanted.service:
            query.insert(0, ("service", wanted.service))
        if not wanted.scopes:  # a login
            query += [("offline_token", "true"), ("client_id", _CLIENT_ID)]
        headers = {}
        if credential.username:
            query.append(("account", credential.username))
            headers["Authorization"] = credential.basic
        mark = "&" if urlsplit(wanted.realm).query else "?"
        return self._transport.send("GET", f"{wanted.realm}{mark}{urlencode(query)}", headers, reach, leaves=False)

    def _refused(self, error: RegistryError) -> RegistryError:
        if isinstance(error, NotFoundError):
            # Harbor 2.12: too many logins in a short time.
            message = f"token server of {self._registry.netloc} says 404: it limits logins, or there is none"
            return UnavailableError(message, request=error.request, status=error.status, codes=error.codes)
        return error


def check_realm(realm: str, registry: str, trusted: Collection[str] = ()) -> None:
    """Refuses a realm to which no request, and no password, may go.

    HTTPS, unless the registry itself is spoken to by plain HTTP and the realm is on the same host, or both are this machine. No literal
    address of a loopback, link-local or private network, unless the registry's own is such a literal.

    Args:
        registry: scheme and host, ``https://host:port``.
        trusted: hosts, with or without a port, to which the rule about addresses does not apply.

    Raises:
        DeniedError: says which rule the realm breaks.
    """
    target, origin = urlsplit(realm), urlsplit(registry)
    host, registry_host = target.hostname or "", origin.hostname or ""
    name = f"registry {origin.netloc}: realm {describe('', realm).strip()[:200]!r}"
    same = host == registry_host or (is_loopback(host) and is_loopback(registry_host))
    if not host or not (target.scheme == "https" or (target.scheme == origin.scheme == "http" and same)):
        raise DeniedError(f"{name} is not https: no credentials are sent there")
    if is_internal(host) and not is_internal(registry_host) and not {host, target.netloc}.intersection(trusted):
        raise DeniedError(f"{name} is an address of an internal network: no credentials are sent there")


def denial(action: str, name: str, credential: Credential, said: str) -> str:
    """The sentence for a refusal: without a login, with docker's words; else naming the account.

    Args:
        action: ``pull`` or ``push``.
    """
    if not credential:
        return f"{action} access denied for {name}, repository does not exist or may require 'docker login': {said}"
    account = f"account {credential.username!r}" if credential.username else "the account of the token"
    if credential.origin:
        account += f" (from {credential.origin})"
    return f"{action} access denied for {name}: {account} is not accepted or may not {action}: {said}"


def _challenge_headers(response: requests.Response) -> list[str]:
    values: list[str] = response.raw.headers.getlist("www-authenticate")
    return values
