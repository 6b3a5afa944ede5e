"""How the progress of a pull or a push is shown: bars on a terminal, lines anywhere else, or not at all."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext

from imgstore.cli.progress_lines import StateLines
from imgstore.cli.session import Session
from imgstore.progress import ProgressSink, ignore


def progress_shown(session: Session, *, quiet: bool) -> AbstractContextManager[ProgressSink]:
    """The sink for a command, shown on standard error as long as the block runs."""
    if quiet:
        return nullcontext(ignore)
    # Lines of a log and bars that are redrawn do not go together.
    if sys.stderr.isatty() and session.environment.get("TERM", "dumb") != "dumb" and not session.debug:
        from imgstore.cli.progress_bars import bars_shown

        return bars_shown(sys.stderr)
    return nullcontext(StateLines(sys.stderr))
