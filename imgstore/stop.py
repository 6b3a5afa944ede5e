"""Stop: ends a long operation from another thread, as Ctrl-C would end it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from imgstore.errors import UnavailableError


class StoppedError(UnavailableError):
    """The operation was ended by its `Stop`; what it leaves is what an interrupt leaves."""


class Stop:
    """Tells one operation that nobody wants it any more. Given to it when it starts; cannot be taken back."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._event = threading.Event()
        self._interrupts: dict[object, Callable[[], None]] = {}

    @property
    def is_set(self) -> bool:
        """Whether the operation is to end."""
        return self._event.is_set()

    def set(self) -> None:
        """Ends the operation soon: it raises StoppedError. From any thread; a second call does nothing."""
        with self._guard:
            if self._event.is_set():
                return
            self._event.set()
            interrupts = list(self._interrupts.values())
        for interrupt in interrupts:
            interrupt()

    def check(self) -> None:
        """For the operation, where it can end.

        Raises:
            StoppedError: it is to.
        """
        if self._event.is_set():
            raise StoppedError("stopped: nobody waits for the result any more")

    def wait(self, seconds: float) -> None:
        """For the operation, in the place of ``time.sleep``. Raises what `check` raises."""
        self._event.wait(seconds)
        self.check()

    @contextlib.contextmanager
    def interrupting(self, interrupt: Callable[[], None]) -> Iterator[None]:
        """For the operation: calls ``interrupt`` as soon as it is to end, in the thread of who stops it.

        It must not block, and must bear being called when the block has just been left.
        """
        key = object()
        with self._guard:
            self._interrupts[key] = interrupt
            late = self._event.is_set()
        try:
            if late:
                interrupt()
            yield
        finally:
            with self._guard:
                del self._interrupts[key]
