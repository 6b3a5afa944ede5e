"""The figures as Markdown, and their place in docs/internals/performance.md."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.contest import Contender, Contest
from tests.bench.measure import median_run

IMAGES, CONTAINERS, COPIES, NBD = "images", "containers and volumes", "copies between stores", "disks over NBD"
"""What each of the sections of figures is about."""


@dataclass(frozen=True)
class Check:
    """One figure that the project promises, beside what was measured."""

    what: str
    measured: str
    limit: str
    holds: bool


@dataclass
class Figures:
    """All that one run of the bench found.

    Attributes:
        image: the image, in words.
        versions: of the programs compared.
        contests: each becomes a table.
        checks: promises and measurements.
    """

    image: str
    versions: list[str] = field(default_factory=list)
    contests: list[Contest] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)


def render(figures: Figures) -> str:
    """The section of the document."""
    lines = [_machine(), "", f"Image: {figures.image}.", ""]
    if figures.versions:
        lines += [f"Compared with: {', '.join(figures.versions)}.", ""]
    for contest in figures.contests:
        head = (contest.title, "median s", "least to most s", "to the floor", "CPU s", "peak MiB", "sync after it, s")
        lines += [*_table(head, (_row(contender, contest) for contender in contest.contenders)), ""]
    if figures.checks:
        lines += _table(
            ("promise", "limit", "measured", "holds"),
            ((check.what, check.limit, check.measured, "yes" if check.holds else "**no**") for check in figures.checks),
        )
    return "\n".join(lines).rstrip()


def write_report(path: Path, section: str, figures: Figures) -> None:
    """Puts the figures between the two marker lines of a section of the document; all else stays.

    Raises:
        ValueError: the document lacks a marker.
    """
    first, last = marker_lines(section)
    text = path.read_text()
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise ValueError(f"{path}: no line {first!r} followed by {last!r}")
    path.write_text(f"{before}{first}\n\n{render(figures)}\n\n{last}{after}")


def marker_lines(section: str) -> tuple[str, str]:
    """The lines between which the figures of a section are."""
    return f"<!-- figures of {section}: written by tox -e bench -->", f"<!-- end of the figures of {section} -->"


def _row(contender: Contender, contest: Contest) -> tuple[str, ...]:
    runs = contest.runs[contender.title]
    median = median_run(runs)
    floor = contest.floor()
    seconds = sorted(run.seconds for run in runs)
    return (
        contender.title,
        _show(median.seconds),
        f"{_show(seconds[0])} to {_show(seconds[-1])}",
        f"{median.seconds / floor:.2f}x" if floor else "-",
        "-" if contender.in_daemon else f"{median.cpu_seconds:.2f}",
        "-" if contender.in_daemon else f"{median.peak / 2**20:.0f}",
        f"{statistics.median(contest.written_later[contender.title]):.2f}",
    )


def _show(seconds: float) -> str:
    return f"{seconds:.2f}" if seconds >= 0.1 else f"{seconds:.4f}"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    return [" | ".join(("", *row, "")).strip() for row in (head, ("---",) * len(head), *rows)]


def _machine() -> str:
    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), platform.machine()
    )
    memory = next(int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")) / 2**20
    return (
        f"Machine: {os.cpu_count()} cores ({cpu}), {memory:.0f} GiB of memory, Linux {platform.release().split('-')[0]}, "
        f"Python {platform.python_version()}."
    )


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
