"""The part of the bench about seeding: the disks of an image brought to another datastore, beside what cp makes of the same files."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from imgstore import layout
from imgstore.store import ImageStore
from tests.bench.contenders import Command
from tests.bench.contest import Contender, Contest
from tests.bench.measure import Run, run
from tests.bench.promises import layer_markers
from tests.bench.report import Check, Figures

COPY, LAYER, AGAIN, CP, CP_HOLES, CP_DURABLE = (
    "`imgstore copy`, to an empty datastore",
    "`imgstore copy`, where the top layer lacks",
    "`imgstore copy`, where nothing lacks",
    "`cp -a --sparse=auto`",
    "`cp -a --sparse=always`",
    "`cp -a --sparse=auto`, and `sync`",
)
SPEED_RATIO = 0.8


def measure_all(reference: str, figures: Figures, rounds: int, scratch: Path) -> Figures:
    """Pulls the image and copies it; what is copied first stays for the next contender, which is what lacks nothing."""
    command = Command(scratch / "source")
    command.pull(reference)
    disks, target, copied = command.store / layout.DISKS, Command(scratch / "seeded"), scratch / "copied"
    size = sum(file.stat().st_blocks * 512 for file in disks.iterdir())

    def copy() -> Run:
        return run(command.words("copy", reference, "--to", target.store, "-q"))

    def lose_layer() -> None:
        with ImageStore.open(str(target.store)) as store:
            top = store.image(reference).layers[-1].chain_id
        (target.store / layout.layer_marker(top)).unlink()

    def cp(how: str, *, durable: bool = False) -> Run:
        line = f'cp -a --sparse={how} "$1" "$2"' + (' && sync -f "$2"' if durable else "")
        return run(["sh", "-c", line, "sh", disks, copied])

    def clear() -> None:
        shutil.rmtree(copied, ignore_errors=True)

    contest = Contest(
        f"copy {size / 1e6:,.0f} MB of disks",
        [
            Contender(COPY, copy, target.clear),
            Contender(AGAIN, copy),
            Contender(LAYER, copy, lose_layer),
            Contender(CP, lambda: cp("auto"), clear),
            Contender(CP_HOLES, lambda: cp("always"), clear),
            Contender(CP_DURABLE, lambda: cp("auto", durable=True), clear),
        ],
    ).hold(rounds)
    figures.contests.append(contest)
    _check(contest, figures)
    subprocess.run(["diff", "-r", disks, target.store / layout.DISKS], check=True)
    assert len(layer_markers(target.store)) == len(layer_markers(command.store))
    return figures


def _check(contest: Contest, figures: Figures) -> None:
    """How fast bytes go, to stable storage: what the command takes where nothing lacks is its start, which no byte pays for."""
    ours, start, cp, durable = (contest.median(title) for title in (COPY, AGAIN, CP, CP_DURABLE))
    assert ours is not None and start is not None and cp is not None and durable is not None
    ratio = durable.seconds / (ours.seconds - start.seconds)
    measured = (
        f"{ratio:.2f}x without the {start.seconds:.2f} s that the command takes where nothing lacks; "
        f"{durable.seconds / ours.seconds:.2f}x with them, {cp.seconds / ours.seconds:.2f}x of a cp that leaves its data unwritten"
    )
    figures.checks.append(Check(f"{COPY}: speed, to {CP_DURABLE}", measured, f"{SPEED_RATIO}x", ratio >= SPEED_RATIO))
