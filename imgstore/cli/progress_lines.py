"""Progress where no cursor can be moved: one line a change of state, as ``docker pull`` prints into a pipe."""

from __future__ import annotations

import threading
from typing import TextIO

from imgstore.cli.output import printable
from imgstore.progress import ProgressEvent, State


class StateLines:
    """A ProgressSink that writes lines. A layer enters a state once; only RETRYING is told each time."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._told: set[tuple[str, State]] = set()

    def __call__(self, event: ProgressEvent) -> None:
        repeats = event.state in (None, State.RETRYING)
        if event.state is State.MOUNTED:
            line = f"{event.layer}: {event.state} {event.message}"
        else:
            line = ": ".join(filter(None, (event.layer, event.state, event.message if repeats else "")))
        with self._lock:
            if event.state is not None and not repeats:
                if (event.layer, event.state) in self._told:
                    return
                self._told.add((event.layer, event.state))
            print(printable(line), file=self._stream, flush=True)
