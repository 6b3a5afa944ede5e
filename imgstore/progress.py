"""Progress: what a long operation tells while it runs. The words are those that docker shows, and ``Converting`` between."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass


class State(enum.StrEnum):
    """What happens to a layer, in the order in which it happens: first in a pull, then in a push, then in a copy."""

    PULLING = "Pulling fs layer"
    WAITING = "Waiting"
    DOWNLOADING = "Downloading"
    DOWNLOADED = "Download complete"
    """All has come; the lowest layer is CONVERTING before that, as it comes."""
    RETRYING = "Retrying"
    CONVERTING = "Converting"
    COMPLETE = "Pull complete"
    EXISTS = "Already exists"

    PREPARING = "Preparing"
    COMPRESSING = "Compressing"
    PUSHING = "Pushing"
    PUSHED = "Pushed"
    MOUNTED = "Mounted from"
    """The message of the event says from which repository."""
    IN_REGISTRY = "Layer already exists"

    COPYING = "Copying"
    COPIED = "Copied"
    """To another datastore. The layer's identifier is followed by where it goes."""


@dataclass(frozen=True, slots=True)
class ProgressEvent:
    """One step of one layer, or a message about the whole (``layer`` is empty).

    Attributes:
        layer: short identifier (12 hex digits), or an empty string for a message.
        state: what happens now, or None for a message.
        current: bytes done in this state: compressed ones, but uncompressed ones while COMPRESSING.
        total: of these in all, or None if unknown.
        message: a sentence for the user.
    """

    layer: str
    state: State | None = None
    current: int = 0
    total: int | None = None
    message: str = ""


ProgressSink = Callable[[ProgressEvent], None]
"""Takes events; called from several threads, must not block for long and must not raise."""


def ignore(event: ProgressEvent) -> None:
    """Drops the event: the sink of those who do not watch."""
