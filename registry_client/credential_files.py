"""Files with credentials: docker's ``config.json``, podman's ``auth.json``, and the old ``.dockercfg``.

All are JSON. ``auths`` maps keys to entries, ``credHelpers`` maps hosts to helper programs, ``credsStore`` names the helper for all
other hosts; ``.dockercfg`` is the bare map of ``auths``. Sources: docker/cli ``cli/config/configfile``; containers-auth.json(5).

Docker and podman replace a file by a rename, and do not lock it. We do both: the lock lets no two of our logins lose one another's
entry, and the rename lets nobody see, and no crash leave, half a file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from registry_client.credential_keys import canonical_key, matching_keys, written_key
from registry_client.errors import DeniedError, InvalidError, MalformedError, RegistryError, UnavailableError
from registry_client.strict_json import Fields, parse_object

FILE_SIZE_MAX = 1 << 20
LOCK_TIMEOUT = 10.0  # seconds; a login holds the lock for as long as it takes to write a small file

_LEGACY_NAME = ".dockercfg"
_LOCK_INTERVAL = 0.01
_INDENT = re.compile(r"\s*\{[ \t]*\r?\n([ \t]+)")
_DOCKER_INDENT = "\t"


class CredentialFile:
    """What one file says. Entries are parsed when they are asked for, so that a broken one hurts nobody else.

    Every method raises MalformedError, with the file and the field.
    """

    def __init__(self, data: bytes, what: str, *, bare: bool = False) -> None:
        """Parses a document; an empty one is an empty object, as for docker.

        Args:
            what: name of the file, for messages.
            bare: the document is the map of ``auths``.

        Raises:
            MalformedError: no JSON object.
        """
        self.what = what
        self._fields = parse_object(data if data.strip() else b"{}", what, size_max=FILE_SIZE_MAX)
        self._bare = bare

    def helper(self, registry: str) -> str:
        """Name of the program that keeps the credential of a registry; empty if it is in the file itself."""
        if self._bare:
            return ""
        if "credHelpers" in self._fields:
            helpers = self._fields.nested("credHelpers")
            for key in _spellings(helpers, registry):
                return helpers.string(key)
        return self._fields.string("credsStore", "")

    def servers(self, registry: str) -> list[str]:
        """The names under which a helper may know a registry: docker's, and those that occur in the file.

        Docker leaves an empty entry in ``auths`` for what it gave to a helper, so that this finds ``host:443`` too.
        """
        names = [written_key(registry)]
        for field in ("credHelpers", "auths"):
            if field in self._fields:
                names += _spellings(self._fields.nested(field), registry)
        return list(dict.fromkeys(names))

    def entries(self, registry: str, repository: str) -> Iterator[tuple[str, Fields]]:
        """Keys and entries that cover a repository, the most specific first."""
        auths = self._auths()
        if auths is None:
            return
        for candidate in matching_keys(registry, repository):
            for key in _spellings(auths, candidate):
                yield key, auths.nested(key)

    def has_entry(self, registry: str) -> bool:
        """Whether there is an entry, full or empty, for exactly this registry, or this namespace."""
        auths = self._auths()
        return auths is not None and bool(_spellings(auths, registry))

    def _auths(self) -> Fields | None:
        if self._bare:
            return self._fields
        return self._fields.nested("auths") if "auths" in self._fields else None


def read_credential_file(path: Path, *, named: bool) -> CredentialFile | None:
    """Reads a file; None if there is none.

    Args:
        named: the user named this very file. One of the usual ones is skipped if it may not be read, as docker does: it may be
            another user's.

    Raises:
        MalformedError: no JSON object, or too big.
        InvalidError: a directory.
        DeniedError: may not be read.
        RegistryError: cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(FILE_SIZE_MAX + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        if named:
            raise DeniedError(f"{path}: {error.strerror}") from None
        return None
    except IsADirectoryError as error:
        raise InvalidError(f"{path}: {error.strerror}") from None
    except OSError as error:
        raise RegistryError(f"{path}: {error.strerror}") from None
    return CredentialFile(data, str(path), bare=path.name == _LEGACY_NAME)


def update_auths(path: Path, change: Callable[[dict[str, Any]], bool]) -> bool:
    """Changes the entries of a file; all else in it stays as it is, in its order and with its indentation.

    The file is made if it is not there, with mode 0600, its directory with 0700. Behind a symbolic link it is the target that
    changes. A crash, or an error, leaves the old file or the new one. Other processes that call this wait; of docker and podman,
    which do not lock, the one that writes last wins.

    Args:
        change: edits the map of keys to entries; False if there was nothing to do, and nothing is written.

    Returns:
        What ``change`` returned.

    Raises:
        MalformedError: the file is there, but broken; it stays as it is.
        InvalidError: there is something else than a regular file, or the directory cannot be one.
        DeniedError: may not be written.
        UnavailableError: another process keeps the lock.
        RegistryError: cannot be written.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise InvalidError(f"{path}: not a regular file")  # a rename would put one in the place of /dev/null
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(target):
            data, owner = _read_target(target)
            bare = target.name == _LEGACY_NAME
            document = dict(parse_object(data if data.strip() else b"{}", str(path), size_max=FILE_SIZE_MAX).values)
            auths = document if bare else document.get("auths")
            if auths is None:
                auths = document["auths"] = {}
            if not isinstance(auths, dict):
                raise MalformedError(f"{path}: auths is not an object")
            if not change(auths):
                return False
            new = _format(document, data)
            if len(new) > FILE_SIZE_MAX:
                raise InvalidError(f"{path}: would have {len(new)} bytes, more than {FILE_SIZE_MAX}")
            _replace(target, new, owner)
            return True
    except (FileExistsError, NotADirectoryError) as error:  # a file where a directory has to be
        raise InvalidError(f"{path}: {error.strerror}") from None
    except OSError as error:
        kind = DeniedError if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else RegistryError
        raise kind(f"{path}: {error.strerror}") from None


def _spellings(fields: Fields, registry: str) -> list[str]:
    """The keys that mean a registry or namespace, those first that are spelled as docker would."""
    wanted, written = canonical_key(registry), written_key(registry)
    found = [key for key in fields.values if canonical_key(key) == wanted]
    return sorted(found, key=lambda key: key != written)


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Holds a lock file beside the target: the target itself is replaced, and so cannot carry the lock.

    The lock file stays: were it removed, one process could lock the old one and another a new one.
    """
    path = target.with_name(f".{target.name}.lock")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        deadline = time.monotonic() + LOCK_TIMEOUT
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UnavailableError(f"{path}: locked by another process for {LOCK_TIMEOUT:.0f} seconds") from None
                time.sleep(_LOCK_INTERVAL)
        yield
    finally:
        os.close(fd)


def _read_target(target: Path) -> tuple[bytes, os.stat_result | None]:
    try:
        fd = os.open(target, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return b"", None
    with os.fdopen(fd, "rb") as file:
        return file.read(FILE_SIZE_MAX + 1), os.fstat(fd)


def _format(document: dict[str, Any], old: bytes) -> bytes:
    text = old.decode()
    found = _INDENT.match(text)
    end = "\n" if text.endswith("\n") else ""
    return (json.dumps(document, indent=found[1] if found else _DOCKER_INDENT, ensure_ascii=False) + end).encode()


def _replace(target: Path, data: bytes, owner: os.stat_result | None) -> None:
    """Puts a file with these bytes in the place of the target, durably."""
    # The name is always the same, so that what a crash leaves behind goes with the next login; O_EXCL, so that nobody else's is used.
    part = target.with_name(f".{target.name}.part")
    part.unlink(missing_ok=True)
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, 0o600)  # whatever the umask is
            if owner is not None and (owner.st_uid, owner.st_gid) != (os.geteuid(), os.getegid()):
                # Root's login for a user must not take the file away from him.
                with contextlib.suppress(PermissionError):
                    os.fchown(fd, owner.st_uid, owner.st_gid)
            file.write(data)
            file.flush()
            os.fsync(fd)
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot
            raise
    finally:
        os.close(directory)
