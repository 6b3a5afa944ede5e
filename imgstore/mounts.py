"""Mounts: where in a container its volumes are.

Source: moby ``volume/mounts`` (linux_parser.go, validate.go), ``daemon/volumes.go`` (registerMountPoints), ``daemon/create_unix.go``.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import replace

from imgstore.answers import Mount
from imgstore.errors import InvalidError

_LENGTH_MAX = 4095

_MODES = frozenset({"ro", "rw", "nocopy", "z", "Z"})
"""What may stand behind a volume; ``z`` and ``Z`` are for SELinux, and say nothing here."""


def plan_mounts(given: Sequence[Mount], image_volumes: Iterable[str]) -> list[Mount]:
    """The mounts of a container: those that are given, then the volumes that its image declares at other places.

    Their destinations are in normal form. A mount without a volume, as those of the image are, is to get an anonymous one.

    Args:
        image_volumes: paths, as the configuration has them.

    Raises:
        InvalidError: a destination is none, or two are the same; docker's words.
    """
    planned: dict[str, Mount] = {}
    for mount in given:
        destination = _normal(mount.destination)
        if destination in planned:
            raise InvalidError(f"Duplicate mount point: {destination}")
        planned[destination] = replace(mount, destination=destination)
    for path in sorted(image_volumes):
        destination = _normal(posixpath.join("/", path))
        planned.setdefault(destination, Mount("", destination))
    return list(planned.values())


def parse_bind(text: str) -> Mount:
    """A mount as ``docker run -v`` takes it: ``name:/path``, ``name:/path:ro``, or ``/path`` for a volume without a name.

    Raises:
        InvalidError: it is malformed, or names a directory of the host; the words of vSphere Integrated Containers.
    """
    volume, destination, mode = ("", text, "") if ":" not in text else (*text.split(":", 2), "")[:3]
    if volume.startswith(("/", ".", "~")):
        raise InvalidError("mounting directories as a data volume is not supported.")
    modes = set(mode.split(",")) - {""}
    if not destination.startswith("/") or (":" in text and not volume) or not modes <= _MODES or {"ro", "rw"} <= modes:
        raise InvalidError(f"volume bind input is invalid: -v {text[:_LENGTH_MAX]}")
    return Mount(volume, destination, "ro" in modes, "nocopy" in modes)


def _normal(destination: str) -> str:
    if not destination:
        raise InvalidError('invalid mount config for type "volume": field Target must not be empty')
    if not destination.startswith("/"):
        raise InvalidError(
            f'invalid mount config for type "volume": invalid mount path: {destination[:200]!r} mount path must be absolute'
        )
    if "\0" in destination or len(destination.encode(errors="surrogateescape")) > _LENGTH_MAX:
        raise InvalidError(f"invalid mount path: {destination[:200]!r}: a null byte, or more than {_LENGTH_MAX} bytes")
    normal = "/" + posixpath.normpath(destination).lstrip("/")
    if normal == "/":
        raise InvalidError("invalid specification: destination can't be '/'")
    return normal
