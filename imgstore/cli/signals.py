"""Signals that end a command become exceptions, so that it cleans up on its way out; a second one ends it at once."""

from __future__ import annotations

import os
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
    """SIGTERM and SIGHUP raise Interrupted in the main thread while the block runs, and SIGINT raises KeyboardInterrupt.

    Cleaning up takes time: a disk that is being put on stable storage is waited for. Whoever sends a second signal does not want that:
    the process ends there and then, as if it were killed, and what it leaves is removed at the next start.

    A signal that the parent told us to ignore (``nohup``) stays ignored. Only the main thread may enter the block.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _raise)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise(number: int, frame: FrameType | None) -> None:
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(each) is _raise:
            signal.signal(each, end_at_once)
    raise KeyboardInterrupt if number == signal.SIGINT else Interrupted(number)


def end_at_once(number: int, frame: FrameType | None) -> None:
    """Ends the process as if it were killed: the handler of a second signal."""
    os.write(2, b"imgstore: interrupted again: ended at once; the next start cleans up\n")
    os._exit(128 + number)
