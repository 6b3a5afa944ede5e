"""The bench: ``tox -e bench``, or ``python -m tests.bench`` where everything is installed.

All contenders pull the same image from a docker-registry on loopback, in rounds, each once a round, so that whatever else the machine does
falls on all of them alike. Figures are medians over the rounds, and ratios of medians.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench import image, report
from tests.bench.contenders import Contender, Imgstore, make_contenders
from tests.bench.engines import ENGINES, Engine
from tests.bench.measure import median_run, run
from tests.bench.registry import DockerRegistry
from tests.bench.report import Check, Figures

CONTENDERS = ("floor", "imgstore", "docker", "ctr")
REPORT = Path("docs/internals/performance.md")


def main() -> None:
    """Measures, and writes the figures into the document."""
    options = _parse()
    recipe = image.SMOKE if options.smoke else image.FULL
    directory: Path = options.directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    _say(f"making or finding the image of {recipe.size:,} bytes in {recipe.files:,} files")
    layout = image.build_image(recipe, directory)
    small = image.build_image(image.SMOKE, directory)
    blobs = [blob.stat().st_size for blob in image.layer_blobs(layout)]
    size = f"{recipe.size / 1e6:,.0f} MB in {recipe.files:,} files, {sum(blobs) / 1e6:,.0f} MB as gzip, {len(blobs)} layers"
    figures = Figures(f"{size}; {options.rounds} rounds")
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=directory)))
        registry = stack.enter_context(DockerRegistry(scratch / "registry"))
        reference, small_reference = registry.push(layout, "bench/image:1"), registry.push(small, "bench/small:1")
        engines = [stack.enter_context(engine(scratch / engine.name)) for engine in _usable_engines(options.contenders)]
        figures.versions = [engine.version for engine in engines]
        contenders = make_contenders(options.contenders, scratch, engines)
        _pull_in_rounds(contenders, reference, options.rounds, figures)
        for contender in contenders:
            if isinstance(contender, Imgstore):
                _examine(contender, registry, reference, small_reference, layout, figures)
    print(report.render(figures))
    if options.report is not None:
        report.write_report(options.report, figures)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "--smoke", action="store_true", help="a small image: shows that the bench works, not how fast anything is"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contenders", type=lambda text: text.split(","), default=list(CONTENDERS), help=",".join(CONTENDERS))
    parser.add_argument("--directory", type=Path, default=Path("build/bench"), help="works below it, and keeps the images there")
    parser.add_argument("--report", type=Path, nargs="?", const=REPORT, help=f"write the figures there (default: {REPORT})")
    options = parser.parse_args()
    if unknown := set(options.contenders) - set(CONTENDERS):
        parser.error(f"unknown contenders: {', '.join(sorted(unknown))}")
    return options


def _usable_engines(names: list[str]) -> list[type[Engine]]:
    chosen = [engine for engine in ENGINES if engine.name in names]
    usable = [engine for engine in chosen if engine.installed() and os.geteuid() == 0]
    for engine in chosen:
        if engine not in usable:
            _say(f"without {engine.title}: it needs root and {', '.join(engine.programs)}")
    return usable


def _pull_in_rounds(contenders: list[Contender], reference: str, rounds: int, figures: Figures) -> None:
    """The last round's results stay, for those who look at them."""
    for contender in contenders:
        figures.runs[contender.title] = []
        figures.written_later[contender.title] = []
    for number in range(rounds):
        for contender in contenders:
            if number:
                contender.clear(reference)
            os.sync()
            result = run(contender.pull_command(reference))
            start = time.perf_counter()
            os.sync()
            figures.written_later[contender.title].append(time.perf_counter() - start)
            figures.runs[contender.title].append(result)
            _say(f"round {number + 1}: {contender.title}: {result.seconds:.2f} s")


def _examine(imgstore: Imgstore, registry: DockerRegistry, reference: str, small: str, layout: Path, figures: Figures) -> None:
    """The promises beside speed, on the store that the last round left."""
    pulled = median_run(figures.runs[imgstore.title])
    if floor := report.best_floor(figures.runs):
        ratio = pulled.seconds / floor
        figures.checks.append(Check("pull and convert, to the floor", f"{ratio:.2f}x", "2x", ratio <= 2))
    for title, runs in figures.runs.items():
        if title.startswith(("docker", "ctr")):
            ratio = pulled.seconds / median_run(runs).seconds
            figures.checks.append(Check(f"pull and convert, to `{title}`", f"{ratio:.2f}x", "1x", ratio < 1))
    figures.checks.append(Check("peak memory", f"{pulled.peak / 2**20:.0f} MiB", "256 MiB", pulled.peak <= 256 << 20))

    contents, layers = image.rounded_size(layout), len(image.layer_blobs(layout))
    allowed, taken = contents * 1.03 + layers * (512 << 10), _allocated(imgstore.store)
    percent = f"{(taken / contents - 1) * 100:+.1f} % over {contents / 1e6:,.0f} MB"
    figures.checks.append(Check("space of the whole store", percent, "3 % + 512 KiB a layer", taken <= allowed))

    asked = len(registry.requests())
    again = statistics.median(run(imgstore.pull_command(reference)).seconds for _ in range(7))
    requests = registry.requests()[asked:]
    one_manifest = len(requests) == 7 and all("/manifests/" in request for request in requests)
    figures.checks.append(Check("pull of what is there: time of the process", f"{again:.2f} s", "0.5 s", again <= 0.5))
    figures.checks.append(Check("pull of what is there: requests", f"{len(requests) / 7:g}", "1, of the manifest", one_manifest))
    run(imgstore.pull_command(small))
    calls, small_calls = _system_calls(imgstore, reference), _system_calls(imgstore, small)
    grown = f"{calls:,}; {small_calls:,} for an image of {image.SMOKE.size / 1e6:.0f} MB"
    figures.checks.append(
        Check("pull of what is there: system calls on files", grown, "as for a small image", calls <= small_calls * 1.05)
    )

    bare, help_ = _start_times()
    figures.checks.append(
        Check("`imgstore --help`, to `python -c pass`", f"{help_ / bare:.1f}x ({help_ * 1e3:.0f} ms)", "5x", help_ <= 5 * bare)
    )


def _allocated(directory: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in directory.rglob("*"))


def _system_calls(imgstore: Imgstore, reference: str) -> int:
    """How many system calls on files and descriptors a second pull makes."""
    log = imgstore.store.with_name("strace")
    command = ["strace", "-f", "-qq", "-o", str(log), "-e", "trace=%file,%desc", *imgstore.pull_command(reference)]
    subprocess.run(command, check=True, capture_output=True)
    return len(log.read_text(errors="replace").splitlines())


def _start_times() -> tuple[float, float]:
    bare, help_ = [], []
    for _ in range(15):
        bare.append(run([sys.executable, "-c", "pass"]).seconds)
        help_.append(run([sys.executable, "-m", "imgstore", "--help"]).seconds)
    return statistics.median(bare), statistics.median(help_)


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
