"""Promises about containers and volumes, beside what was measured. Contenders are given by their titles."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tests.bench.contest import Contest
from tests.bench.measure import Run
from tests.bench.promises import MEMORY_MAX
from tests.bench.report import Check, Figures

QEMU_RATIO = 10
CONTAINERS_A_SECOND = 1000
STEADY = 1.5
"""What may not grow may seem to, on a machine that has other work."""
DIFF_SECONDS, DIFF_RATIO = 0.1, 100
COPY_RATIO = 2
CLONE_RATIO = 1.5


def check_creation(contest: Contest, ours: Sequence[str], qemu: str, durable: str, start: str, figures: Figures) -> None:
    """A container's disk takes a tenth of what it takes to start qemu-img, which leaves it unwritten."""
    theirs, theirs_durable, bare = (contest.median(title) for title in (qemu, durable, start))
    if theirs is None or theirs_durable is None or bare is None:
        return
    for title in ours:
        run = _median(contest, title)
        ratio = theirs.seconds / run.seconds
        measured = (
            f"{ratio:.1f}x; {(theirs.seconds - bare.seconds) / run.seconds:.1f}x without the start of the process, "
            f"{theirs_durable.seconds / run.seconds:.1f}x where theirs are durable too"
        )
        figures.checks.append(Check(f"{title}, faster than {qemu}", measured, f"{QEMU_RATIO}x", ratio >= QEMU_RATIO))


def check_image_size(large: Sequence[float], small: Sequence[float], figures: Figures) -> None:
    """A container costs the same whatever its image. Each is given as seconds for one container."""
    of_large, of_small = statistics.median(large), statistics.median(small)
    measured = f"{of_large / of_small:.2f}x ({of_large * 1e6:.0f} µs, {of_small * 1e6:.0f} µs)"
    what = "a container of the image, to one of a small image"
    figures.checks.append(Check(what, measured, f"{STEADY}x", of_large <= STEADY * of_small))


def check_many(count: int, batch: int, runs: Sequence[Run], figures: Figures) -> None:
    """Many containers, and the last as soon as the first.

    Args:
        batch: how many the first and the last are.
        runs: those of the first, of all others, of the last.
    """
    first, _, last = (run.seconds for run in runs)
    total, limit = sum(run.seconds for run in runs), count / CONTAINERS_A_SECOND
    measured = f"{total:.1f} s, {total / count * 1e6:.0f} µs each"
    figures.checks.append(Check(f"{count:,} containers, durable", measured, f"{limit:g} s", total <= limit))
    measured = f"{last / first:.2f}x ({last:.2f} s, {first:.2f} s)"
    what = f"the last {batch:,} of them, to the first"
    figures.checks.append(Check(what, measured, f"{STEADY}x", last <= STEADY * first))
    peak = max(run.peak for run in runs)
    what = f"{count:,} containers, peak memory"
    figures.checks.append(Check(what, f"{peak / 2**20:.0f} MiB", f"{MEMORY_MAX >> 20} MiB", peak <= MEMORY_MAX))


def check_diff(contest: Contest, ours: Sequence[str], walk: str, figures: Figures) -> None:
    """A diff takes time by what changed."""
    walked = _median(contest, walk).seconds
    for title in ours:
        seconds = _median(contest, title).seconds
        figures.checks.append(Check(title, f"{seconds * 1e3:.1f} ms", f"{DIFF_SECONDS * 1e3:g} ms", seconds <= DIFF_SECONDS))
        ratio = walked / seconds
        figures.checks.append(Check(f"{title}, faster than {walk}", f"{ratio:.0f}x", f"{DIFF_RATIO}x", ratio >= DIFF_RATIO))


def check_copy(contest: Contest, ours: str, tar: str, figures: Figures) -> None:
    """Files go in and out as the kernel moves them."""
    theirs = contest.median(tar)
    if theirs is not None:
        ratio = _median(contest, ours).seconds / theirs.seconds
        figures.checks.append(Check(f"{contest.title}, to {tar}", f"{ratio:.2f}x", f"{COPY_RATIO}x", ratio <= COPY_RATIO))


def check_clone(contest: Contest, clone: str, container: str, figures: Figures) -> None:
    """A clone of a volume costs what a container's disk costs."""
    ratio = _median(contest, clone).seconds / _median(contest, container).seconds
    figures.checks.append(Check(f"{clone}, to {container}", f"{ratio:.2f}x", f"{CLONE_RATIO}x", ratio <= CLONE_RATIO))


def _median(contest: Contest, title: str) -> Run:
    median = contest.median(title)
    assert median is not None
    return median
