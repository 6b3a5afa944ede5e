"""Names of devices: which disk of a store is meant, in one string, for exports, machines and the command line.

::

    image/REFERENCE        an image's top disk with all below it; nobody writes it
    container/NAME         a container's own disk; the name may be its id, or the start of that
    volume/NAME            a volume's disk

``?snapshot`` behind any of them asks for a private copy of the moment, which can be written and vanishes when it is closed.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from imgstore.errors import InvalidError

DeviceKind = Literal["image", "container", "volume"]

_SNAPSHOT = "snapshot"
_SHOWN = 200
"""Characters of a wrong name that an error repeats."""


class DeviceName(NamedTuple):
    """A disk of a store; ``str`` gives the text that ``parse_device_name`` takes."""

    kind: DeviceKind
    reference: str
    """Of the image, the container or the volume."""
    snapshot: bool = False

    def __str__(self) -> str:
        return f"{self.kind}/{self.reference}" + (f"?{_SNAPSHOT}" if self.snapshot else "")


def parse_device_name(text: str) -> DeviceName:
    """Reads ``KIND/REFERENCE[?snapshot]``. Whether the store has it is not seen here.

    Raises:
        InvalidError: the kind is unknown or missing, nothing comes behind it, or what comes behind ``?`` is not ``snapshot``.
    """
    shown = text[:_SHOWN]
    wanted, question, option = text.partition("?")
    kind, slash, reference = wanted.partition("/")
    if question and option != _SNAPSHOT:
        raise InvalidError(f"device {shown!r}: {option[:_SHOWN]!r} is no option, only '{_SNAPSHOT}' is")
    for known in get_args(DeviceKind):
        if kind == known and reference:
            return DeviceName(known, reference, bool(question))
    problem = f"nothing comes behind {kind}/" if slash and kind in get_args(DeviceKind) else "has no kind that is known"
    raise InvalidError(f"device {shown!r}: {problem}", hint="image/REFERENCE, container/NAME or volume/NAME")
