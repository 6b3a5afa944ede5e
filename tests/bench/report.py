"""The figures as Markdown, and their place in docs/internals/performance.md."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.measure import Run, median_run

BEGIN, END = "<!-- figures: written by tox -e bench -->", "<!-- end of figures -->"


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
        runs: by contender's title, in the order of the table.
        written_later: median seconds that a sync took right after each contender's pull: what it had left unwritten.
        checks: promises and measurements.
    """

    image: str
    versions: list[str] = field(default_factory=list)
    runs: dict[str, list[Run]] = field(default_factory=dict)
    written_later: dict[str, list[float]] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)


def best_floor(runs: Mapping[str, Sequence[Run]]) -> float | None:
    """Median seconds of the fastest mode of the floor; None if the floor was not measured."""
    medians = [median_run(of_one).seconds for title, of_one in runs.items() if title.startswith("floor")]
    return min(medians, default=None)


def render(figures: Figures) -> str:
    """The section of the document."""
    lines = [_machine(), "", f"Image: {figures.image}.", ""]
    if figures.versions:
        lines += [f"Compared with: {', '.join(figures.versions)}.", ""]
    lines += _table(
        ("pull into nothing", "median s", "least to most s", "to the floor", "CPU s", "peak MiB", "sync after it, s"),
        (_row(title, runs, figures) for title, runs in figures.runs.items()),
    )
    if figures.checks:
        lines.append("")
        lines += _table(
            ("promise", "limit", "measured", "holds"),
            ((check.what, check.limit, check.measured, "yes" if check.holds else "**no**") for check in figures.checks),
        )
    return "\n".join(lines)


def write_report(path: Path, figures: Figures) -> None:
    """Puts the figures between the two marker lines of the document; the prose round them stays.

    Raises:
        ValueError: the document lacks a marker.
    """
    text = path.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path}: no line {BEGIN!r} followed by {END!r}")
    path.write_text(f"{before}{BEGIN}\n\n{render(figures)}\n\n{END}{after}")


def _row(title: str, runs: Sequence[Run], figures: Figures) -> tuple[str, ...]:
    median = median_run(runs)
    floor = best_floor(figures.runs)
    seconds = sorted(run.seconds for run in runs)
    later = sorted(figures.written_later[title])
    in_daemon = title.startswith(("docker", "ctr"))
    return (
        title,
        f"{median.seconds:.2f}",
        f"{seconds[0]:.2f} to {seconds[-1]:.2f}",
        f"{median.seconds / floor:.2f}x" if floor else "-",
        "-" if in_daemon else f"{median.cpu_seconds:.2f}",
        "-" if in_daemon else f"{median.peak / 2**20:.0f}",
        f"{later[len(later) // 2]:.2f}",
    )


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
