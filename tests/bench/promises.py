"""Promises: what the project says of its speed, its memory and its space, beside what was measured."""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

from imgstore import layout, markers
from tests.bench import contenders, image
from tests.bench.contenders import Command
from tests.bench.contest import Contest
from tests.bench.endpoint import Latencies
from tests.bench.measure import run
from tests.bench.registry import DockerRegistry
from tests.bench.report import Check, Figures

MEMORY_MAX = 256 << 20


def check_contest(contest: Contest, title: str, figures: Figures) -> None:
    """A contender of ours: within twice the floor, faster than the engines, within the memory.

    The floor of a load is a pull's, see `check_load_against_pull`.
    """
    ours = contest.median(title)
    if ours is None:
        return
    if title != contenders.LOAD and (floor := contest.floor()):
        ratio = ours.seconds / floor
        figures.checks.append(Check(f"`{title}`, to the floor", f"{ratio:.2f}x", "2x", ratio <= 2))
    for contender in contest.contenders:
        theirs = contest.median(contender.title)
        if contender.in_daemon and theirs is not None:
            ratio = ours.seconds / theirs.seconds
            figures.checks.append(Check(f"`{title}`, to `{contender.title}`", f"{ratio:.2f}x", "1x", ratio < 1))
    peak = max(each.peak for each in contest.runs[title])
    figures.checks.append(Check(f"`{title}`, peak memory", f"{peak / 2**20:.0f} MiB", "256 MiB", peak <= MEMORY_MAX))


def check_endpoint(contest: Contest, empty: Path, repetitions: int, figures: Figures) -> None:
    """A pull through the endpoint costs what one by the command costs, which has to start first."""
    command, endpoint = contest.median(contenders.PULL), contest.median(contenders.ENDPOINT)
    if command is None or endpoint is None:
        return
    start = statistics.median(run(Command(empty).words("images", "-q")).seconds for _ in range(repetitions))
    ratio, without_start = endpoint.seconds / command.seconds, endpoint.seconds / (command.seconds - start)
    measured = f"{ratio:.2f}x; {without_start:.2f}x without the {start:.2f} s that the command takes to start"
    figures.checks.append(Check("pull through `imgstore serve`, to `imgstore pull`", measured, "1.05x", ratio <= 1.05))


def check_load_against_pull(pull: Contest, load: Contest, figures: Figures) -> None:
    """The floor of a pull reads, inflates, hashes and writes the same layers."""
    ours, floor = load.median(contenders.LOAD), pull.floor()
    if ours is not None and floor:
        ratio = ours.seconds / floor
        figures.checks.append(Check("`imgstore load`, to the floor of the pull", f"{ratio:.2f}x", "2x", ratio <= 2))


def check_recipes(store: Path, figures: Figures) -> None:
    """What lies beside each disk to make its tar again."""
    shares = [marker.recipe.size / marker.size for marker in layer_markers(store)]
    measured = f"{min(shares) * 100:.2f} to {max(shares) * 100:.2f} %"
    figures.checks.append(Check("recipe, to the tar of its layer", measured, "1 %", max(shares) <= 0.01))


def check_space(store: Path, layout_directory: Path, figures: Figures) -> None:
    """All of a store, to the contents of its only image."""
    contents, layers = image.rounded_size(layout_directory), len(image.layer_blobs(layout_directory))
    allowed = contents * 1.03 + layers * (512 << 10)
    taken = sum(path.lstat().st_blocks * 512 for path in store.rglob("*"))
    percent = f"{(taken / contents - 1) * 100:+.1f} % over {contents / 1e6:,.0f} MB"
    figures.checks.append(Check("space of the whole store", percent, "3 % + 512 KiB a layer", taken <= allowed))


def check_pull_again(
    command: Command, registry: DockerRegistry, reference: str, small: str, rounds: int, figures: Figures
) -> None:
    """An image that is there costs one request, and no more work if it is large."""
    asked = len(registry.requests())
    again = statistics.median(command.pull(reference).seconds for _ in range(rounds))
    requests = registry.requests()[asked:]
    one_manifest = len(requests) == rounds and all("/manifests/" in request for request in requests)
    figures.checks.append(Check("pull of what is there: time of the process", f"{again:.2f} s", "0.5 s", again <= 0.5))
    measured = f"{len(requests) / rounds:g}"
    figures.checks.append(Check("pull of what is there: requests", measured, "1, of the manifest", one_manifest))
    command.pull(small)
    calls, small_calls = _system_calls(command, reference), _system_calls(command, small)
    grown = f"{calls:,}; {small_calls:,} for an image of {image.SMOKE.size / 1e6:.0f} MB"
    figures.checks.append(
        Check("pull of what is there: system calls on files", grown, "as for a small image", calls <= small_calls * 1.05)
    )


def check_start(rounds: int, figures: Figures) -> None:
    """The command answers soon."""
    bare, help_ = [], []
    for _ in range(rounds):
        bare.append(run([sys.executable, "-c", "pass"]).seconds)
        help_.append(run([sys.executable, "-m", "imgstore", "--help"]).seconds)
    ratio = statistics.median(help_) / statistics.median(bare)
    measured = f"{ratio:.1f}x ({statistics.median(help_) * 1e3:.0f} ms)"
    figures.checks.append(Check("`imgstore --help`, to `python -c pass`", measured, "5x", ratio <= 5))


def check_list(what: str, seconds: dict[int, list[float]], figures: Figures) -> None:
    """The time for each image does not grow with their number.

    Args:
        seconds: of each list, by number of images in the store: a few, and many.
    """
    (few, each_of_few), (many, each_of_many) = sorted((count, statistics.median(each) / count) for count, each in seconds.items())
    measured = f"{each_of_many / each_of_few:.2f}x ({each_of_many * 1e6:.0f} µs an image of {many:,}, {each_of_few * 1e6:.0f} of {few:,})"
    figures.checks.append(Check(f"{what}: time of an image", measured, "3x", each_of_many <= 3 * each_of_few))


def check_answers(latencies: Latencies, figures: Figures) -> None:
    """The endpoint answers while it works."""
    measured = f"{latencies.median * 1e3:.0f} ms, 99 % {latencies.p99 * 1e3:.0f} ms of {latencies.count:,}"
    what = "`/_ping` while it pulls, saves and lists, 99 %"
    figures.checks.append(Check(what, measured, "100 ms", latencies.p99 <= 0.1))


def layer_markers(store: Path) -> list[markers.LayerMarker]:
    """The markers of all layers of a store."""
    found = []
    for path in sorted((store / layout.DISKS).iterdir()):
        chain_id = layout.layer_of(path.name)
        if chain_id is not None and path == store / layout.layer_marker(chain_id):
            found.append(markers.decode(markers.LayerMarker, path.read_bytes(), path.name))
    return found


def _system_calls(command: Command, reference: str) -> int:
    """How many system calls on files and descriptors a second pull makes."""
    log = command.store.with_name("strace")
    words = ["strace", "-f", "-qq", "-o", str(log), "-e", "trace=%file,%desc", *command.words("pull", "-q", reference)]
    subprocess.run(words, check=True, capture_output=True)
    return len(log.read_text(errors="replace").splitlines())
