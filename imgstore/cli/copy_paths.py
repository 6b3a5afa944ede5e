"""What ``docker cp`` makes of its two paths: which directory is extracted into, and what the copy is called there.

Source: docker/cli ``cli/command/container/cp.go``, moby ``pkg/archive/copy.go``.
"""

from __future__ import annotations

import os
import posixpath
import stat
from dataclasses import dataclass
from pathlib import Path

from imgstore.errors import InvalidError, NotFoundError

_MOST_LINKS = 10
"""As many links to a destination as docker follows."""


@dataclass(frozen=True, slots=True)
class Source:
    """What is copied.

    Attributes:
        path: absolute.
        is_directory: whether it is one.
        name: of its first entry in the archive; ``.`` or ``/`` if it is a directory whose name is not to be copied.
    """

    path: str
    is_directory: bool
    name: str


@dataclass(frozen=True, slots=True)
class Destination:
    """Where it is copied to.

    Attributes:
        path: absolute; ends with a slash if it must be a directory.
        is_directory: None if there is nothing yet.
    """

    path: str
    is_directory: bool | None


def split_argument(argument: str) -> tuple[str | None, str]:
    """Container and path of ``CONTAINER:PATH``; None and the path for one of this machine: absolute, with a dot first, or without colon."""
    container, colon, path = argument.partition(":")
    if not colon or argument.startswith(("/", ".")):
        return None, argument
    return container, path


def absolute(path: str) -> str:
    """An absolute path in normal form that keeps a trailing ``/`` or ``/.``."""
    return keep_end(posixpath.abspath(path), path)


def keep_end(clean: str, path: str) -> str:
    """``clean``, a path in normal form, with the trailing ``/`` or ``/.`` that ``path`` has."""
    if names_contents(path):
        return clean.rstrip("/") + "/."
    return clean.rstrip("/") + "/" if path.endswith("/") else clean


def names_contents(path: str) -> bool:
    """Whether a path ends with a component ``.``: a directory's contents without its name."""
    return path == "." or path.endswith("/.")


def place_copy(source: Source, destination: Destination) -> tuple[str, str]:
    """The directory that the copy is extracted into, and the name of its first entry there.

    Raises:
        InvalidError: a directory cannot become a file, or a file that directory, in docker's words.
    """
    if destination.is_directory:
        return destination.path, source.name
    if source.is_directory and destination.is_directory is False:
        raise InvalidError("cannot copy directory")
    if not source.is_directory and destination.is_directory is None and asserts_directory(destination.path):
        raise InvalidError("no such directory")
    if names_contents(destination.path):
        return destination.path[:-2] or "/", "."
    above, _, name = posixpath.normpath(destination.path).rpartition("/")
    return above or "/", name


def asserts_directory(path: str) -> bool:
    """Whether a path can only name a directory."""
    return path.endswith("/") or names_contents(path)


def find_source(path: str, *, follow: bool) -> Source:
    """A file or directory of this machine as the source of a copy; links on the way to it are followed, itself only if ``follow``.

    Raises:
        NotFoundError: there is none.
        InvalidError: it is no directory, and the path says that it is.
    """
    path = absolute(path)
    name = posixpath.basename(path.rstrip("/")) or "/"
    status = _status(path, follow=follow or asserts_directory(path))
    is_directory = stat.S_ISDIR(status.st_mode)
    if asserts_directory(path) and not is_directory:
        raise InvalidError(f"lstat {path}: not a directory")
    if follow or asserts_directory(path):
        path = keep_end(posixpath.realpath(path), path)
    return Source(path, is_directory, "." if names_contents(path) else name)


def find_destination(path: str) -> Destination:
    """A path of this machine as the destination of a copy; links that it is are followed, also to where nothing is yet.

    Raises:
        NotFoundError: the directory that it is to be in is not there.
        InvalidError: that is no directory, what is there is neither a directory nor a regular file, or it is a loop of links.
    """
    path = absolute(path)
    above = posixpath.dirname(path.rstrip("/") or "/")
    if not Path(above).exists():
        raise NotFoundError(f'invalid output path: directory "{above}" does not exist')
    followed = path
    for _ in range(_MOST_LINKS + 1):
        try:
            status = Path(followed).lstat()
        except FileNotFoundError:
            if not Path(followed).parent.is_dir():
                raise InvalidError(f"{path}: not a directory") from None
            return Destination(followed, None)
        except NotADirectoryError as error:
            raise InvalidError(f"stat {followed}: not a directory") from error
        if not stat.S_ISLNK(status.st_mode):
            if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
                raise InvalidError(f'invalid output path: "{path}" must be a directory or a regular file')
            return Destination(followed, stat.S_ISDIR(status.st_mode))
        followed = posixpath.join(posixpath.dirname(followed), str(Path(followed).readlink()))
    raise InvalidError(f"too many symlinks in {path}")


def _status(path: str, *, follow: bool) -> os.stat_result:
    try:
        return Path(path).stat() if follow else Path(path).lstat()
    except FileNotFoundError:
        raise NotFoundError(f"lstat {path}: no such file or directory") from None
    except NotADirectoryError:
        raise InvalidError(f"lstat {path}: not a directory") from None
