"""Credentials: those given, and those that docker, podman and skopeo keep in their files.

Sources: docker/cli ``cli/config`` (config.json, credential helpers); containers-auth.json(5) of containers/image (auth.json).
Nothing is expanded and nothing passes through a shell: a Harbor robot ``robot$project+name`` stays what it is.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from registry_client.errors import DeniedError, MalformedError
from registry_client.reference import DEFAULT_REGISTRY
from registry_client.strict_json import Fields, parse_object

CONFIG_SIZE_MAX = 1 << 20
HELPER_TIMEOUT = 30.0  # seconds; some helpers ask a keychain that asks the user
HELPER_OUTPUT_MAX = 1 << 20
TOKEN_USERNAME = "<token>"  # noqa: S105  docker's mark for "the secret is an identity token"

_DOCKER_HUB_KEY = "https://index.docker.io/v1/"
_DOCKER_HUB_HOSTS = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
_HELPER_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_NOT_FOUND = "credentials not found in native keychain"


@dataclass(frozen=True, slots=True)
class Credential:
    """What proves who we are; empty means anonymous.

    Attributes:
        username: may hold any character but ``:``.
        password: any text.
        identity_token: a refresh token in the place of a password.
        registry_token: a bearer token that is ready to be sent.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)

    def __bool__(self) -> bool:
        return bool(self.username or self.password or self.identity_token or self.registry_token)

    @property
    def basic(self) -> str:
        """Value of the Authorization header, scheme Basic (RFC 7617, UTF-8)."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


ANONYMOUS = Credential()


def find_credential(
    registry: str, repository: str, environment: Mapping[str, str] = os.environ, authfile: Path | None = None
) -> Credential:
    """The credential for a repository, from the first file that has one.

    The order: ``$REGISTRY_AUTH_FILE``; ``containers/auth.json`` below ``$XDG_RUNTIME_DIR``, then below ``$XDG_CONFIG_HOME``;
    ``$DOCKER_CONFIG/config.json`` or ``~/.docker/config.json``; ``~/.dockercfg``. In one file, ``credHelpers`` beats
    ``credsStore`` beats ``auths``; there the longest key that is the repository or one of its parents wins.

    Raises:
        MalformedError: a file is there, but broken.
        DeniedError: a credential helper failed.
    """
    for path in _files(environment):
        try:
            with path.open("rb") as file:
                data = file.read(CONFIG_SIZE_MAX + 1)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        found = _look_up(data, path, registry, repository, environment)
        if found:
            return found
    return ANONYMOUS


def _files(environment: Mapping[str, str]) -> Iterator[Path]:
    home = Path(environment.get("HOME") or "/")
    if environment.get("REGISTRY_AUTH_FILE"):
        yield Path(environment["REGISTRY_AUTH_FILE"])
    if environment.get("XDG_RUNTIME_DIR"):
        yield Path(environment["XDG_RUNTIME_DIR"], "containers/auth.json")
    yield Path(environment.get("XDG_CONFIG_HOME") or home / ".config", "containers/auth.json")
    yield Path(environment.get("DOCKER_CONFIG") or home / ".docker", "config.json")
    yield home / ".dockercfg"


def _look_up(data: bytes, path: Path, registry: str, repository: str, environment: Mapping[str, str]) -> Credential:
    if not data.strip():
        return ANONYMOUS
    fields = parse_object(data, str(path), size_max=CONFIG_SIZE_MAX)
    # ~/.dockercfg is the bare map of "auths".
    auths = fields if path.name == ".dockercfg" else fields.nested("auths") if "auths" in fields else None
    helpers = fields.string_map("credHelpers") if path.name != ".dockercfg" else {}
    server = _DOCKER_HUB_KEY if registry == DEFAULT_REGISTRY else registry
    for key, helper in helpers.items():
        if _host_of(key) in _hosts(registry):
            return _ask_helper(helper, server, environment)
    if path.name != ".dockercfg" and (store := fields.string("credsStore", "")):
        found = _ask_helper(store, server, environment)
        if found:
            return found
    if auths is None:
        return ANONYMOUS
    keys = {_normalise_key(key): key for key in auths.values}
    for candidate in _candidates(registry, repository):
        if candidate in keys:
            return _parse_auth(auths.nested(keys[candidate]))
    return ANONYMOUS


def _hosts(registry: str) -> frozenset[str]:
    return _DOCKER_HUB_HOSTS if registry == DEFAULT_REGISTRY else frozenset({registry})


def _normalise_key(key: str) -> str:
    """A key without scheme and without docker's ``/v1/`` or ``/v2/`` at the end."""
    key = re.sub(r"^https?://", "", key)
    return re.sub(r"/v[12]/?$", "", key).rstrip("/")


def _host_of(key: str) -> str:
    return _normalise_key(key).partition("/")[0]


def _candidates(registry: str, repository: str) -> Iterator[str]:
    """The keys to look for, the most specific first: ``host/ns/repo``, ``host/ns``, ``host``."""
    parts = repository.split("/")
    for length in range(len(parts), -1, -1):
        for host in sorted(_hosts(registry)):
            yield "/".join([host, *parts[:length]])


def _parse_auth(entry: Fields) -> Credential:
    identity_token = entry.string("identitytoken", "")
    username, password = entry.string("username", ""), entry.string("password", "")
    encoded = entry.string("auth", "")
    if encoded:
        try:
            text = base64.b64decode(encoded, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise MalformedError(f"{entry.what}: auth is not base64 of user:password") from None
        username, colon, password = text.partition(":")
        if not colon:
            raise MalformedError(f"{entry.what}: auth is not base64 of user:password")
        password = password.rstrip("\0")  # docker pads with zeros
    return Credential(username, password, identity_token)


def _ask_helper(name: str, server: str, environment: Mapping[str, str]) -> Credential:
    """Runs ``docker-credential-<name> get`` (docker-credential-helpers protocol)."""
    if _HELPER_NAME.fullmatch(name) is None:
        raise MalformedError(f"credential helper {name[:64]!r}: not a valid name")
    program = f"docker-credential-{name}"
    try:
        done = subprocess.run(  # noqa: S603
            [program, "get"],
            input=server.encode(),
            capture_output=True,
            timeout=HELPER_TIMEOUT,
            env=dict(environment),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DeniedError(f"{program}: no answer for {server} in {HELPER_TIMEOUT:.0f} seconds") from None
    except OSError as error:
        raise DeniedError(f"{program}: {error.strerror}") from None
    if done.returncode != 0:
        words = done.stdout.decode(errors="replace").strip() or done.stderr.decode(errors="replace").strip()
        if words.startswith(_NOT_FOUND):
            return ANONYMOUS
        raise DeniedError(f"{program}: failed for {server}: {words[:200]!r}")
    answer = parse_object(done.stdout, f"answer of {program}", size_max=HELPER_OUTPUT_MAX)
    username, secret = answer.string("Username", ""), answer.string("Secret", "")
    if username == TOKEN_USERNAME:
        return Credential(identity_token=secret)
    return Credential(username, secret)
