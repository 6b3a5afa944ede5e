"""read_ahead: an iterator that works in a thread of its own, a bounded number of items ahead of who reads it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class _End(NamedTuple):
    """Stands in the queue after the last item."""

    error: BaseException | None


def read_ahead(
    source: Iterable[T], depth: int, *, name: str = "read-ahead", interrupt: Callable[[], None] = lambda: None
) -> Generator[T, None, None]:
    """Yields what ``source`` yields; ``source`` runs in a thread, so its C calls overlap with the reader's Python.

    At most ``depth`` items wait in the queue, one is in the thread's hand and one in the reader's. The thread starts with the first
    item asked for and is joined before the iteration ends, however it ends: by exhaustion, by ``close()``, by an exception, or by
    garbage collection. ``close()`` waits for the item that ``source`` is making at that moment. A ``source`` with a ``close`` method
    (a generator) is closed, in the thread.

    Large items are worth much more than small ones: a thread that comes back from a C call waits up to ``sys.getswitchinterval()``
    for a reader that is busy in Python.

    Args:
        source: is iterated in the thread only.
        depth: at least 1.
        name: of the thread.
        interrupt: called when the iteration ends before ``source`` does, and before the thread is joined: to make a ``source`` that
            waits for its bytes end soon. May be called when ``source`` has ended meanwhile.

    Raises:
        ValueError: ``depth`` is below 1.
        BaseException: whatever ``source`` raises, after the items that came before it.
    """
    if depth < 1:
        raise ValueError(f"read_ahead: depth is {depth}, not at least 1")
    return _read_ahead(source, depth, name, interrupt)


def _read_ahead(source: Iterable[T], depth: int, name: str, interrupt: Callable[[], None]) -> Generator[T, None, None]:
    waiting: queue.Queue[T | _End] = queue.Queue(depth)
    stopped = threading.Event()
    thread = threading.Thread(target=_produce, args=(source, waiting, stopped), name=name, daemon=True)
    thread.start()
    ended = False
    try:
        while True:
            item = waiting.get()
            if isinstance(item, _End):
                ended = True
                if item.error is not None:
                    raise item.error
                return
            yield item
            del item  # else it would live while we wait for the next
    finally:
        stopped.set()
        if not ended:
            interrupt()
        # After this the thread puts at most one more item, for it looks at ``stopped`` after each: there is room for that one.
        while not waiting.empty():
            waiting.get_nowait()
        thread.join()


def _produce(source: Iterable[T], waiting: queue.Queue[T | _End], stopped: threading.Event) -> None:
    error: BaseException | None = None
    try:
        try:
            for item in source:
                waiting.put(item)
                if stopped.is_set():
                    break
                del item
        finally:
            close = getattr(source, "close", None)
            if close is not None:
                close()
    except BaseException as raised:
        error = raised
    if not stopped.is_set():
        waiting.put(_End(error))
