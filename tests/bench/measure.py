"""Running a program and measuring it as the kernel does."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """One run of one program.

    Attributes:
        seconds: from start to exit.
        cpu_seconds: user and system time of the process and the children that it waited for; a daemon's is not in it.
        peak: most bytes resident at once, of the process or the largest of those children.
    """

    seconds: float
    cpu_seconds: float
    peak: int


class CommandError(Exception):
    """A measured program failed; the message holds its words."""


def run(command: Sequence[str | Path], *, discard: bool = False) -> Run:
    """Runs a program to its end, its output kept for the error alone.

    Args:
        discard: its standard output is data, which goes to ``/dev/null``.

    Raises:
        CommandError: it ended with anything but 0.
    """
    words = [str(word) for word in command]
    # An installed program has its byte code; one that runs from a checkout is to have it too, after its first run.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as words_of_it:
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if discard else writer,
                stderr=writer,
                env=environment,
            )
        finally:
            os.close(writer)
        output = words_of_it.read()
        _, status, usage = os.wait4(process.pid, 0)  # not wait(): it would drop the usage
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise CommandError(f"{' '.join(words)} ended with {process.returncode}:\n{output.decode(errors='replace')}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss << 10)


def reset_peak(process: int) -> None:
    """Lets the peak of a running process begin anew (proc(5), clear_refs)."""
    Path(f"/proc/{process}/clear_refs").write_text("5")


def peak_of(process: int) -> int:
    """Most bytes of a running process that were resident at once, since it started or since ``reset_peak``."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def cpu_seconds_of(process: int) -> float:
    """User and system time of a running process (proc(5), stat)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def median_run(runs: Sequence[Run]) -> Run:
    """The median of each figure."""
    return Run(
        statistics.median(run.seconds for run in runs),
        statistics.median(run.cpu_seconds for run in runs),
        int(statistics.median(run.peak for run in runs)),
    )
