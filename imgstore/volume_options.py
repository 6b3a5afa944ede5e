"""Volume options: what a volume may be called, and what its driver's options say, in the words of VIC and docker.

Source: vmware/vic ``lib/apiservers/engine/proxy/storage_proxy.go``; docker/go-units ``size.go``.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from imgstore.blocks import GRAIN
from imgstore.errors import InvalidError, NotFoundError
from imgstore.ext4.format import MAXIMUM_SIZE, MINIMUM_SIZE

DRIVERS = frozenset({"local", "vsphere"})
"""They mean the same: docker's client asks for the first by itself, users of VIC for the second."""

DEFAULT_CAPACITY = 1 << 30
"""Bytes; VIC's 1024 MB."""

DEFAULT_STORE = "default"
"""The volume store that is always there: the store's own datastore."""

ANONYMOUS_LABEL = "com.docker.volume.anonymous"
"""Docker's mark of a volume that nobody gave a name."""

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*", re.ASCII)
_NAME_LENGTH_MAX = 255

_NUMBER = re.compile(r"[+-]?\d{1,19}", re.ASCII)
_SIZE = re.compile(r"(\d{1,19}(?:\.\d{0,9})?) ?(?:([kmgtpKMGTP])([iI])?)?[bB]?", re.ASCII)
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_MEBIBYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class VolumeOptions:
    """What a volume is to be.

    Attributes:
        driver: as it was given.
        options: as they were given, in their own case.
        store: name of its volume store.
        capacity: bytes of its disk; None: nobody said.
    """

    driver: str
    options: Mapping[str, str] = field(default_factory=dict)
    store: str = DEFAULT_STORE
    capacity: int | None = None


def parse_options(driver: str, options: Mapping[str, str]) -> VolumeOptions:
    """Reads a driver's options: ``VolumeStore`` and ``Capacity``, in any case.

    Raises:
        NotFoundError: no such driver.
        InvalidError: an option that is not known, or a value that makes no sense.
    """
    if driver not in DRIVERS:
        raise NotFoundError(f"error looking up volume plugin {driver}: plugin not found")
    known: dict[str, str] = {}
    for key, value in options.items():
        name = key.lower()
        if name not in ("volumestore", "capacity"):
            raise _bad_value(f"{key} is not a supported option")
        if name in known:
            raise _bad_value(f"{key} is given twice")
        known[name] = value
    try:
        capacity = None if "capacity" not in known else parse_capacity(known["capacity"])
    except InvalidError as error:
        raise _bad_value(str(error)) from None
    return VolumeOptions(driver, dict(options), known.get("volumestore", DEFAULT_STORE), capacity)


def parse_capacity(text: str) -> int:
    """The bytes of a disk that has at least the capacity: ``512`` (MiB), ``10GB`` (decimal, as docker has it), ``10GiB``.

    Rounded up to whole grains of 64 KiB, and to the 64 MiB that a file system needs.

    Raises:
        InvalidError: no size, less than a byte, or more than a disk can have (2 TiB - 64 KiB).
    """
    if _NUMBER.fullmatch(text):
        size = int(text) * _MEBIBYTE
    elif found := _SIZE.fullmatch(text):
        base = 1024 if found[3] and found[2] else 1000
        size = int(float(found[1]) * base ** _POWERS.get((found[2] or "").lower(), 0))
    else:
        raise InvalidError(f"invalid size: '{text[:100]}'")
    if size < 1:
        raise InvalidError(f"Invalid size: {text[:100]}")
    if size > MAXIMUM_SIZE:
        raise InvalidError(f"Capacity value too large: {text[:100]}")
    return round_capacity(size)


def round_capacity(size: int) -> int:
    """The smallest capacity in bytes that a volume can have and that is not below ``size``."""
    return max(-(-size // GRAIN) * GRAIN, MINIMUM_SIZE)


def check_name(name: str) -> None:
    """Raises InvalidError unless a volume can be called that."""
    if not _NAME.fullmatch(name):
        raise InvalidError(
            f'volume name "{name[:_NAME_LENGTH_MAX]}" includes invalid characters, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed'
        )
    if len(name) > _NAME_LENGTH_MAX:
        raise InvalidError(f"volume name of {len(name)} characters: more than {_NAME_LENGTH_MAX}")


def new_name() -> str:
    """A name for a volume that nobody gave one, as docker makes them."""
    return secrets.token_hex(32)


def _bad_value(problem: str) -> InvalidError:
    return InvalidError(f"bad driver value - {problem}")
