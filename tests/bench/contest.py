"""A contest: several ways to do one thing, in rounds, each once a round, so that whatever else the machine does falls on all alike."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.bench.measure import Run, median_run


@dataclass(frozen=True)
class Contender:
    """One way to do it.

    Attributes:
        title: its row in the report. The floor's begin with "floor".
        measure: does it, once.
        clear: leaves nothing of the last time; called before each time, the first one too.
        in_daemon: a daemon does the work, whose CPU time and memory nobody counts.
    """

    title: str
    measure: Callable[[], Run]
    clear: Callable[[], None] = lambda: None
    in_daemon: bool = False


@dataclass
class Contest:
    """What the rounds gave.

    Attributes:
        title: what was done.
        contenders: in the order of the table.
        runs: by contender's title.
        written_later: seconds that a sync took right after each run: what it had left unwritten.
    """

    title: str
    contenders: Sequence[Contender]
    runs: dict[str, list[Run]] = field(default_factory=dict)
    written_later: dict[str, list[float]] = field(default_factory=dict)

    def hold(self, rounds: int) -> Contest:
        """Runs the rounds. What the last one left stays, for those who look at it."""
        for contender in self.contenders:
            self.runs[contender.title], self.written_later[contender.title] = [], []
        for number in range(1, rounds + 1):
            for contender in self.contenders:
                contender.clear()
                os.sync()
                result = contender.measure()
                start = time.perf_counter()
                os.sync()
                self.written_later[contender.title].append(time.perf_counter() - start)
                self.runs[contender.title].append(result)
                say(f"{self.title}, round {number}: {contender.title}: {result.seconds:.2f} s")
        return self

    def median(self, title: str) -> Run | None:
        """The median of each figure of a contender; None if it did not take part."""
        return median_run(self.runs[title]) if self.runs.get(title) else None

    def floor(self) -> float | None:
        """Median seconds of the fastest mode of the floor; None if the floor was not measured."""
        medians = [statistics.median(run.seconds for run in runs) for title, runs in self.runs.items() if is_floor(title)]
        return min(medians, default=None)


def is_floor(title: str) -> bool:
    """Whether a contender is a mode of the floor."""
    return title.startswith("floor")


def say(words: str) -> None:
    """Tells who waits how far the bench is."""
    print(words, file=sys.stderr, flush=True)
