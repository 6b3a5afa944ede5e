"""Credentials: those given, and those that docker, podman and skopeo keep in their files and helpers.

They are read from where these programs would read them, and written where ``docker login`` would write them. Nothing is expanded
and nothing passes through a shell: a Harbor robot ``robot$project+name`` stays what it is. Sources: docker/cli ``cli/config``;
containers-auth.json(5) of containers/image; RFC 7617 (Basic).
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from registry_client.credential_files import CredentialFile, read_credential_file, update_auths
from registry_client.credential_helpers import CredentialHelper
from registry_client.credential_keys import canonical_key, written_key
from registry_client.errors import InvalidError, MalformedError
from registry_client.strict_json import Fields

TOKEN_USERNAME = "<token>"  # noqa: S105  docker's mark for "the secret is an identity token"


@dataclass(frozen=True, slots=True)
class Credential:
    """What proves who we are; empty means anonymous.

    Attributes:
        username: may hold any character but ``:`` and control characters.
        password: any text.
        identity_token: a refresh token in the place of a password.
        registry_token: a bearer token that is sent to the registry as it is.
        origin: where it was found, for messages; no part of what it is worth.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)
    origin: str = field(default="", compare=False)

    def __bool__(self) -> bool:
        return bool(self.username or self.password or self.identity_token or self.registry_token)

    @property
    def basic(self) -> str:
        """Value of the Authorization header, scheme Basic (RFC 7617, UTF-8)."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


ANONYMOUS = Credential()


def find_credential(
    registry: str, repository: str, *, authfile: Path | None = None, environment: Mapping[str, str] = os.environ
) -> Credential:
    """The credential for a repository, from the first place that has one.

    The order: the JSON in ``$DOCKER_AUTH_CONFIG``; the file ``$REGISTRY_AUTH_FILE``; ``containers/auth.json`` below
    ``$XDG_RUNTIME_DIR``, or ``/run/containers/<uid>/auth.json`` where that is not set; ``containers/auth.json`` below
    ``$XDG_CONFIG_HOME`` or ``~/.config``; ``$DOCKER_CONFIG/config.json`` or ``~/.docker/config.json``; ``~/.dockercfg``.

    In one place, the helper that ``credHelpers`` names for the registry, else the one that ``credsStore`` names, beats ``auths``;
    there the longest key that is the repository or one of its parents wins. ``host`` and ``host:443`` are the same registry.

    Args:
        registry: ``host[:port]``, as in a Reference.
        repository: path in the registry; may be empty.
        authfile: the only place to look into. It need not be there.

    Raises:
        MalformedError: a file is there, but broken, or the entry for this repository is. Other registries' entries may be broken.
        DeniedError: a credential helper failed, or a file that the user named may not be read.
        RegistryError: a file cannot be read.
    """
    for file in _files(authfile, environment):
        found = _look_up(file, registry, repository, environment)
        if found:
            return found
    return ANONYMOUS


def store_credential(
    registry: str, credential: Credential, *, authfile: Path | None = None, environment: Mapping[str, str] = os.environ
) -> str:
    """Keeps a credential, as ``docker login`` does: in the helper that the file names for the registry, else in the file itself.

    The file is ``authfile``, else ``$REGISTRY_AUTH_FILE``, else ``$DOCKER_CONFIG/config.json`` or ``~/.docker/config.json``. All
    else in it stays as it is. `find_credential` may know an earlier place with another credential for this registry. Several
    processes may do this at once; a crash leaves the old file or the new one, with mode 0600.

    Args:
        registry: ``host[:port]``, or with the beginning of a repository, for a key that counts for that alone. A scheme is dropped.
        credential: with an identity token, no password is kept beside it, as with docker.

    Returns:
        Where it went: the path of the file, or ``credential helper docker-credential-…``.

    Raises:
        InvalidError: a user name that Basic authentication cannot carry, no registry, or a namespace that a helper cannot keep.
        MalformedError: the file is there, but broken; it stays as it is.
        DeniedError: the file may not be written, or the helper failed.
        UnavailableError: another process keeps the file locked.
        RegistryError: the file cannot be written.
    """
    key = written_key(registry)
    _check(credential)
    path = _written_file(authfile, environment)
    file = read_credential_file(path, named=True)
    helper = _helper_for(file, key, environment)
    if helper is None:
        entry = _format_entry(credential)
        update_auths(path, lambda auths: _put(auths, key, entry))
        return str(path)
    if credential.registry_token:
        raise InvalidError(f"{path}: {helper.program} keeps the credential of {registry}, and cannot keep a registry token")
    if credential.identity_token:
        helper.store(key, TOKEN_USERNAME, credential.identity_token)
    else:
        helper.store(key, credential.username, credential.password)
    # Docker's sign that a helper knows this registry; and a password that was here before must not stay.
    update_auths(path, lambda auths: _put(auths, key, {}))
    return f"credential helper {helper.program}"


def erase_credential(registry: str, *, authfile: Path | None = None, environment: Mapping[str, str] = os.environ) -> bool:
    """Forgets the credential of a registry where `store_credential` would keep it, under all of its spellings.

    Keys for namespaces of the registry stay; a namespace is erased by its own name, ``host/namespace``.

    Returns:
        False if there was none.

    Raises:
        InvalidError: no registry.
        MalformedError, DeniedError, UnavailableError, RegistryError: as for `store_credential`.
    """
    wanted = canonical_key(written_key(registry))
    path = _written_file(authfile, environment)
    file = read_credential_file(path, named=True)
    if file is None:
        return False
    found = False
    helper = CredentialHelper(name, environment) if "/" not in wanted and (name := file.helper(registry)) else None
    if helper is not None:
        for server in file.servers(registry):
            if helper.get(server) is not None:
                helper.erase(server)
                found = True

    def remove(auths: dict[str, Any]) -> bool:
        nonlocal found
        keys = [key for key in auths if canonical_key(key) == wanted]
        for key in keys:
            # An empty entry is docker's sign for a helper, and no credential.
            found |= bool(auths.pop(key))
        return bool(keys)

    if file.has_entry(registry):
        update_auths(path, remove)
    return found


def _files(authfile: Path | None, environment: Mapping[str, str]) -> Iterator[CredentialFile]:
    if authfile is None and (text := environment.get("DOCKER_AUTH_CONFIG")):
        yield CredentialFile(text.encode(errors="surrogateescape"), "$DOCKER_AUTH_CONFIG")
    for path, named in [(authfile, True)] if authfile is not None else _usual_files(environment):
        if (file := read_credential_file(path, named=named)) is not None:
            yield file


def _usual_files(environment: Mapping[str, str]) -> Iterator[tuple[Path, bool]]:
    """Paths, and whether the user named this one."""
    home = Path(environment.get("HOME") or "/")
    if environment.get("REGISTRY_AUTH_FILE"):
        yield Path(environment["REGISTRY_AUTH_FILE"]), True
    runtime = environment.get("XDG_RUNTIME_DIR")
    yield Path(runtime, "containers/auth.json") if runtime else Path(f"/run/containers/{os.getuid()}/auth.json"), False
    yield Path(environment.get("XDG_CONFIG_HOME") or home / ".config", "containers/auth.json"), False
    yield _docker_file(environment), False
    yield home / ".dockercfg", False


def _docker_file(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("DOCKER_CONFIG") or Path(environment.get("HOME") or "/", ".docker"), "config.json")


def _written_file(authfile: Path | None, environment: Mapping[str, str]) -> Path:
    named = environment.get("REGISTRY_AUTH_FILE")
    return authfile or (Path(named) if named else _docker_file(environment))


def _look_up(file: CredentialFile, registry: str, repository: str, environment: Mapping[str, str]) -> Credential:
    if name := file.helper(registry):
        helper = CredentialHelper(name, environment)
        for server in file.servers(registry):
            if (answer := helper.get(server)) is None:
                continue
            username, secret = answer
            origin = f"credential helper {helper.program}"
            if username == TOKEN_USERNAME:
                return Credential(identity_token=secret, origin=origin)
            return Credential(username, secret, origin=origin)
    for key, entry in file.entries(registry, repository):
        if found := _parse_entry(entry, f"{file.what}: {key}"):
            return found
    return ANONYMOUS


def _helper_for(file: CredentialFile | None, key: str, environment: Mapping[str, str]) -> CredentialHelper | None:
    """The helper that keeps what is to be written under a key, or None if it goes into the file."""
    if file is None:
        return None
    host, slash, _ = canonical_key(key).partition("/")
    if not (name := file.helper(host)):
        return None
    helper = CredentialHelper(name, environment)
    if slash:
        raise InvalidError(
            f"{file.what}: {helper.program} keeps the credentials of {host}, and knows no namespaces such as {key}"
        )
    return helper


def _parse_entry(entry: Fields, origin: str) -> Credential:
    username, password = entry.string("username", ""), entry.string("password", "")
    encoded = entry.string("auth", "")
    if encoded:
        # Go's decoder, and so docker and podman, skips line breaks.
        text = _decode(encoded.replace("\r", "").replace("\n", ""))
        username, colon, password = (text or "").partition(":")
        if not colon:
            raise MalformedError(f"{entry.what}: auth is not base64 of user:password")
        password = password.strip("\0")  # docker pads with zeros
    return Credential(username, password, entry.string("identitytoken", ""), entry.string("registrytoken", ""), origin)


def _decode(encoded: str) -> str | None:
    try:
        return base64.b64decode(encoded, validate=True).decode()
    except ValueError:
        return None


def _format_entry(credential: Credential) -> dict[str, str]:
    entry = {}
    if credential.username or credential.password:
        password = "" if credential.identity_token else credential.password
        entry["auth"] = base64.b64encode(f"{credential.username}:{password}".encode()).decode()
    if credential.identity_token:
        entry["identitytoken"] = credential.identity_token
    if credential.registry_token:
        entry["registrytoken"] = credential.registry_token
    return entry


def _put(auths: dict[str, Any], key: str, entry: dict[str, str]) -> bool:
    changed = auths.get(key) != entry
    auths[key] = entry
    return changed


def _check(credential: Credential) -> None:
    """Refuses what cannot be kept so that it comes back as it is."""
    username = credential.username
    if not credential:
        raise InvalidError("credential: is empty")
    if ":" in username:
        shown = username.partition(":")[0]  # the rest may be a password
        raise InvalidError(f"user name {shown!r}…: holds ':', which Basic authentication cannot carry (RFC 7617)")
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in username):
        raise InvalidError(
            f"user name {username!r}: holds a control character, which Basic authentication cannot carry (RFC 7617)"
        )
    if username == TOKEN_USERNAME:
        raise InvalidError(f"user name {username!r}: is docker's mark for an identity token")
    if credential.password and not username:
        raise InvalidError("credential: has a password, but no user name")
    if "\0" in credential.password:
        raise InvalidError(f"password of {username!r}: holds a zero byte, which docker drops")
    secrets = (credential.password, credential.identity_token, credential.registry_token)
    if not all(_is_utf8(text) for text in (username, *secrets)):
        raise InvalidError("credential: is not valid UTF-8")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
