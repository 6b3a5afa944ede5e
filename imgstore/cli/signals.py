"""Signals that end a command become exceptions, so that it cleans up on its way out."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """A signal other than Ctrl-C told the process to end.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.strsignal(number))
        self.number = number


@contextmanager
def signals_raised() -> Iterator[None]:
    """SIGTERM and SIGHUP raise Interrupted in the main thread while the block runs, as SIGINT raises KeyboardInterrupt.

    A signal that the parent told us to ignore (``nohup``) stays ignored. Only the main thread may enter the block.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler == signal.SIG_DFL:
            signal.signal(number, _raise)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)
