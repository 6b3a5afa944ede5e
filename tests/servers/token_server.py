"""A token server as registries have them: real JWTs, which Debian's docker-registry verifies.

Sources: distribution's "Token Authentication Specification", "Token Authentication Implementation" (the claims), "OAuth2 Token
Authentication" (POST); how Harbor cuts rights and refuses: goharbor/harbor ``src/core/service/token``.

::

    accounts = {"robot$team+ci": Account("s3cret", {"team/*": {"pull", "push"}})}
    with TokenServer(authority, accounts, lifetime=5) as tokens, docker_registry(root, tls=authority.server, token_server=tokens):
        ...
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any, cast
from urllib.parse import parse_qs

import jwt
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate

from tests.servers.authority import Authority
from tests.servers.http_server import Answer, Handler, Service, error_answer, json_answer

ANONYMOUS = ""
"""Name of the account of those who bring no password."""
ALL = frozenset({"pull", "push", "delete"})
PATH = "/service/token"


@dataclass(frozen=True)
class Account:
    """Who may do what.

    Attributes:
        password: None for an account without one.
        rights: actions by glob of repositories; ``*`` is any part of a name, slashes, too. ``registry:catalog`` with ``*``.
    """

    password: str | None = field(repr=False)
    rights: Mapping[str, Iterable[str]] = field(default_factory=dict)

    def may(self, name: str) -> set[str]:
        """Actions at a repository."""
        return {action for glob, actions in self.rights.items() if fnmatchcase(name, glob) for action in actions}


class TokenServer(Service):
    """See the module. A known account always gets a token; what it may not do is left out of it without a word, as Harbor does.

    Args:
        authority: signs the certificate that tokens are verified with, and the server's own.
        accounts: by name; ANONYMOUS for those without a password, who are refused if it is missing.
        encrypted: serve HTTPS.

    Attributes:
        realm: URL for challenges.
        issuer, service: what registry and token server agree on.
        root_certificates: file for the registry to verify tokens with.
        lifetime: seconds, for which tokens are valid.
        leeway: seconds for which a registry takes a token after its end (docker-registry: 60); tokens say that they end so much earlier.
        token_field: ``token``, ``access_token`` or ``both``. For POST it is always ``access_token``, as its specification wants.
        says_lifetime, says_issue: whether answers have ``expires_in``, ``issued_at``.
        post_status: refuse POST with this status: Harbor 405, others 404.
        key_header: what the token says of its key: ``x5c`` (the certificate) or ``kid``.
        wrong_password_is_anonymous: whoever has a wrong password gets what everybody gets, if a scope is asked for (Harbor).
        rotates: a refresh token is good for one use, and brings the next.
        refresh_tokens: account and rights stand behind each; tests may add some.
    """

    def __init__(
        self,
        authority: Authority,
        accounts: Mapping[str, Account],
        *,
        encrypted: bool = True,
        lifetime: float = 300.0,
        leeway: float = 60.0,
        token_field: str = "token",
        says_lifetime: bool = True,
        says_issue: bool = True,
        post_status: int | None = None,
        key_header: str = "x5c",
        wrong_password_is_anonymous: bool = False,
        rotates: bool = False,
    ) -> None:
        super().__init__(authority.server_context() if encrypted else None)
        self.accounts = dict(accounts)
        self.issuer = "test token server"
        self.service = "harbor-registry"
        self.lifetime = lifetime
        self.leeway = leeway
        self.token_field = token_field
        self.says_lifetime = says_lifetime
        self.says_issue = says_issue
        self.post_status = post_status
        self.key_header = key_header
        self.wrong_password_is_anonymous = wrong_password_is_anonymous
        self.rotates = rotates
        self.refresh_tokens: dict[str, str] = {}
        self.host = self.listen("token", _TokenHandler)
        self.realm = f"{self.scheme}://{self.host}{PATH}"
        certificate, key = authority.issue("token signer", "token.example.com")
        # The signer's own certificate is for `kid`: a registry knows the keys that it has certificates of.
        self.root_certificates = authority.directory / "token roots.pem"
        self.root_certificates.write_bytes(authority.ca_file.read_bytes() + certificate.read_bytes())
        self._certificate = load_pem_x509_certificate(certificate.read_bytes())
        self._key = cast("Any", load_pem_private_key(key.read_bytes(), None))
        self._algorithm = "ES256" if "EC" in type(self._key).__name__ else "RS256"

    def sign(self, account: str, access: Iterable[Mapping[str, Any]], *, lifetime: float | None = None) -> str:
        """A token; for tests that want one of their own making."""
        now = int(time.time())
        expires = now + (self.lifetime if lifetime is None else lifetime) - self.leeway
        claims = {
            "iss": self.issuer,
            "sub": account,
            "aud": self.service,
            "exp": int(expires),
            "nbf": now - int(self.leeway),
            "iat": now,
            "jti": secrets.token_hex(8),
            "access": list(access),
        }
        if self.key_header == "kid":
            headers: dict[str, Any] = {"kid": self._key_id()}
        else:
            headers = {"x5c": [base64.b64encode(self._certificate.public_bytes(Encoding.DER)).decode()]}
        return jwt.encode(claims, self._key, self._algorithm, headers)

    def granted(self, token: str) -> frozenset[str] | None:
        """What a token allows, as ``repository:name:action``; None if it is not one of ours, or is over."""
        try:
            claims = jwt.decode(
                token,
                self._certificate.public_key(),  # type: ignore[arg-type]  # any key, says cryptography
                [self._algorithm],
                audience=self.service,
                issuer=self.issuer,
                leeway=self.leeway,
            )
        except jwt.InvalidTokenError:
            return None
        return frozenset(f"{each['type']}:{each['name']}:{action}" for each in claims["access"] for action in each["actions"])

    def _key_id(self) -> str:
        """As libtrust makes it: the first 240 bits of the key's SHA-256, in base 32, in groups of four letters."""
        key = self._certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        letters = base64.b32encode(hashlib.sha256(key).digest()[:30]).decode()
        return ":".join(letters[start : start + 4] for start in range(0, len(letters), 4))


class _TokenHandler(Handler):
    """GET with Basic, and POST with a form."""

    @property
    def tokens(self) -> TokenServer:
        return cast("TokenServer", self.server.service)

    def serve(self, path: str, query: Mapping[str, list[str]]) -> Answer:
        if path != PATH:
            return Answer(404, b"404 page not found\n", {"Content-Type": "text/plain"})
        if self.command == "POST":
            if self.tokens.post_status is not None:
                return Answer(self.tokens.post_status, b"Method Not Allowed\n", {"Content-Type": "text/plain"})
            return self._serve_form(parse_qs(self.seen.body.decode(), keep_blank_values=True))
        return self._serve_query(query)

    def _serve_query(self, query: Mapping[str, list[str]]) -> Answer:
        scopes = _split(query.get("scope", []))
        if query.get("service") != [self.tokens.service]:
            return Answer(400, f"Unable to handle service: {query.get('service')}".encode())
        name, password = self._basic()
        if name is None:
            # Harbor gives nothing for no scope to those whom it does not know: that is how a login fails.
            account = ANONYMOUS if ANONYMOUS in self.tokens.accounts and scopes else None
        else:
            account = self._check(name, password)
            if account is None and self.tokens.wrong_password_is_anonymous and scopes and ANONYMOUS in self.tokens.accounts:
                account = ANONYMOUS
        if account is None:
            return _unauthorized()
        offline = query.get("offline_token") == ["true"] and account != ANONYMOUS
        return self._grant(account, scopes, refresh_token=self._new_refresh_token(account) if offline else None)

    def _serve_form(self, form: Mapping[str, list[str]]) -> Answer:
        tokens, kind = self.tokens, _only(form, "grant_type")
        if _only(form, "service") != tokens.service or not _only(form, "client_id"):
            return json_answer(400, {"error": "invalid_request", "error_description": "service and client_id are required"})
        refresh_token = None
        if kind == "password":
            account = self._check(_only(form, "username"), _only(form, "password"))
        elif kind == "refresh_token":
            refresh_token = _only(form, "refresh_token")
            account = tokens.refresh_tokens.get(refresh_token)
            if account is not None and tokens.rotates:
                del tokens.refresh_tokens[refresh_token]
                refresh_token = self._new_refresh_token(account)
        else:
            return json_answer(400, {"error": "unsupported_grant_type"})
        if account is None:
            return _unauthorized()
        if kind == "password" and _only(form, "access_type") == "offline":
            refresh_token = self._new_refresh_token(account)
        return self._grant(account, _split(form.get("scope", [])), refresh_token=refresh_token)

    def _grant(self, account: str, scopes: Iterable[str], *, refresh_token: str | None) -> Answer:
        tokens = self.tokens
        access = [entry for scope in scopes if (entry := self._cut(account, scope))]
        token = tokens.sign(account, access)
        field_name = "access_token" if self.command == "POST" else tokens.token_field
        document: dict[str, Any] = {name: token for name in ("token", "access_token") if field_name in (name, "both")}
        if tokens.says_lifetime:
            document["expires_in"] = int(tokens.lifetime)
        if tokens.says_issue:
            document["issued_at"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        if self.command == "POST":
            document["scope"] = " ".join(f"{each['type']}:{each['name']}:{','.join(each['actions'])}" for each in access)
        if refresh_token is not None:
            document["refresh_token"] = refresh_token
        return json_answer(200, document)

    def _cut(self, account: str, scope: str) -> dict[str, Any]:
        """The entry for what was asked for, less what is not allowed."""
        kind, _, rest = scope.partition(":")
        name, _, actions = rest.rpartition(":")
        allowed = self.tokens.accounts[account].may(name if kind == "repository" else f"{kind}:{name}")
        return {"type": kind, "name": name, "actions": [action for action in actions.split(",") if action in allowed]}

    def _basic(self) -> tuple[str | None, str]:
        kind, _, value = self.headers.get("authorization", "").partition(" ")
        if kind.lower() != "basic":
            return None, ""
        name, _, password = base64.b64decode(value).decode().partition(":")
        return name, password

    def _check(self, name: str, password: str) -> str | None:
        account = self.tokens.accounts.get(name)
        return name if name and account is not None and account.password == password else None

    def _new_refresh_token(self, account: str) -> str:
        token = secrets.token_urlsafe(24)
        self.tokens.refresh_tokens[token] = account
        return token


def _unauthorized() -> Answer:
    return error_answer(401, "UNAUTHORIZED", "unauthorized: authentication required")


def _split(values: Iterable[str]) -> list[str]:
    return [scope for value in values for scope in value.split()]


def _only(form: Mapping[str, list[str]], name: str) -> str:
    return form[name][0] if name in form else ""
