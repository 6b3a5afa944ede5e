"""The bench: ``tox -e bench``, or ``python -m tests.bench`` where everything is installed.

All contenders do the same to the same image and one docker-registry on loopback, in rounds, each once a round, so that whatever else the
machine does falls on all of them alike. Figures are medians over the rounds, and ratios of medians.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from imgstore import layout
from tests.bench import containers, contenders, image, loop, nbd, promises, report, seeding
from tests.bench.containers import ContainerBench
from tests.bench.contenders import Command
from tests.bench.contest import Contest, say
from tests.bench.endpoint import Endpoint, Latencies
from tests.bench.engines import ENGINES, Docker, Engine
from tests.bench.library import Library
from tests.bench.measure import run
from tests.bench.registry import DockerRegistry
from tests.bench.report import Figures

CONTENDERS = ("floor", "imgstore", "docker", "ctr", "qemu", "kernel")
IMAGE_PARTS = ("pull", "save", "load", "push", "list")
CONTAINER_PARTS = ("create", "diff", "copy", "volume", "commit")
PARTS = (*IMAGE_PARTS, *CONTAINER_PARTS, "seed", "nbd")
REPORT = Path("docs/internals/performance.md")


@dataclass(frozen=True)
class Scale:
    """How much is done besides the rounds."""

    image: image.Recipe
    few: int
    many: int
    repetitions: int
    containers: containers.Scale
    nbd: nbd.Scale


FULL = Scale(image.FULL, 100, 10_000, 7, containers.FULL, nbd.FULL)
SMOKE = Scale(image.SMOKE, 5, 20, 1, containers.SMOKE, nbd.SMOKE)


def main() -> None:
    """Measures, and writes the figures into the document."""
    options = _parse()
    scale = SMOKE if options.smoke else FULL
    directory: Path = options.directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    say(f"making or finding the image of {scale.image.size:,} bytes in {scale.image.files:,} files")
    blobs = image.layer_blobs(image.build_image(scale.image, directory))
    packed = sum(blob.stat().st_size for blob in blobs) / 1e6
    size = f"{scale.image.size / 1e6:,.0f} MB in {scale.image.files:,} files, {packed:,.0f} MB as gzip, {len(blobs)} layers"
    size += f"; {options.rounds} rounds"
    names = _usable(options.contenders)
    sections: dict[str, Figures] = {}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=directory)))
        registry = stack.enter_context(DockerRegistry(scratch / "registry"))
        if set(IMAGE_PARTS) & set(options.parts):
            engines = [stack.enter_context(engine(scratch / engine.name)) for engine in ENGINES if engine.name in names]
            figures = sections[report.IMAGES] = Figures(size, [engine.version for engine in engines])
            Bench(scale, options.rounds, names, directory, scratch, engines, figures).run_parts(options.parts, registry)
        if set(CONTAINER_PARTS) & set(options.parts) and "imgstore" in names:
            references = [
                registry.push(image.build_image(recipe, directory), f"bench/{name}:1")
                for recipe, name in ((scale.image, "image"), (image.SMOKE, "small"))
            ]
            figures = sections[report.CONTAINERS] = Figures(size, [_qemu_version()] if "qemu" in names else [])
            library = stack.enter_context(Library(scratch / "containers"))
            bench = ContainerBench(scale.containers, scale.image, options.rounds, names, scratch, library, figures)
            bench.run_parts(options.parts, *references)
        if "seed" in options.parts and "imgstore" in names:
            reference = registry.push(image.build_image(scale.image, directory), "bench/image:1")
            sections[report.COPIES] = seeding.measure_all(reference, Figures(size), options.rounds, scratch)
        if "nbd" in options.parts and {"imgstore", "qemu"} <= set(names) and nbd.usable():
            sections[report.NBD] = nbd.measure_all(scale.nbd, options.rounds, scratch)
    for section, figures in sections.items():
        print(report.render(figures))
        if options.report is not None:
            report.write_report(options.report, section, figures)


class Bench:
    """The parts of one run, one after the other: each works on what the ones before it left."""

    def __init__(
        self,
        scale: Scale,
        rounds: int,
        names: list[str],
        directory: Path,
        scratch: Path,
        engines: list[Engine],
        figures: Figures,
    ) -> None:
        self._scale = scale
        self._rounds = rounds
        self._layout = image.build_image(scale.image, directory)
        self._small = image.build_image(image.SMOKE, directory)
        self._scratch = scratch
        self._engines = engines
        self._docker = next((engine for engine in engines if isinstance(engine, Docker)), None)
        self._figures = figures
        self._floors = scratch / "floor" if "floor" in names else None
        self._command = Command(scratch / "store") if "imgstore" in names else None
        self._archive = scratch / "image.tar"

    def run_parts(self, parts: list[str], registry: DockerRegistry) -> None:
        """Runs them; all but the pull need imgstore."""
        reference, small = registry.push(self._layout, "bench/image:1"), registry.push(self._small, "bench/small:1")
        pull = self._pull(reference)
        command = self._command
        if command is None:
            return
        promises.check_recipes(command.store, self._figures)
        promises.check_space(command.store, self._layout, self._figures)
        if "save" in parts:
            self._save(reference, command)
        if "load" in parts or "push" in parts:
            with self._archive.open("wb") as archive:
                subprocess.run(command.words("save", reference), check=True, stdout=archive)
        if "load" in parts:
            self._load(pull)
        if "push" in parts:
            self._push(reference, command)
        if "list" in parts:
            self._list(reference, small)
        if "pull" in parts:
            promises.check_pull_again(command, registry, reference, small, self._scale.repetitions, self._figures)
            promises.check_start(2 * self._scale.repetitions, self._figures)

    def _pull(self, reference: str) -> Contest:
        with ExitStack() as stack:
            endpoint = stack.enter_context(Endpoint(self._scratch / "served")) if self._command else None
            contest = self._hold(
                "pull into nothing",
                contenders.pulling(reference, self._command, endpoint, self._engines, self._floors),
                contenders.PULL,
            )
            promises.check_endpoint(contest, self._scratch / "empty", self._scale.repetitions, self._figures)
        return contest

    def _save(self, reference: str, command: Command) -> None:
        disks = [
            (command.store / layout.DISKS / marker.disk.file, marker.size)
            for marker in promises.layer_markers(command.store)
            if marker.disk is not None
        ]
        self._hold("save to nowhere", contenders.saving(reference, command, self._docker, disks), contenders.SAVE)

    def _load(self, pull: Contest) -> None:
        command = Command(self._scratch / "loaded")
        floors = self._scratch / "floor"
        contest = self._hold(
            "load into nothing", contenders.loading(self._archive, command, self._docker, floors), contenders.LOAD
        )
        promises.check_load_against_pull(pull, contest, self._figures)
        command.clear()

    def _push(self, reference: str, command: Command) -> None:
        with DockerRegistry(self._scratch / "destination") as registry:
            destination = f"{registry.host}/bench/pushed:1"
            command.tag(reference, destination)
            if self._docker is not None:
                self._docker.tag(reference, destination)
            names = contenders.pushing(destination, self._archive, command, self._docker, registry)
            self._hold("push to an empty registry", names, contenders.PUSH)

    def _list(self, reference: str, small: str) -> None:
        scale = self._scale
        stores = {count: self._scratch / f"store-{count}" for count in (scale.few, scale.many)}
        program = [sys.executable, "-m", "tests.bench.many_images"]
        made = run([*program, "make", *(f"{store}:{count}" for count, store in stores.items())])
        say(f"stores of {' and '.join(f'{count:,}' for count in stores)} images made in {made.seconds:.1f} s")
        listed: dict[int, list[float]] = {count: [] for count in stores}
        answered: dict[int, list[float]] = {count: [] for count in stores}
        with ExitStack() as stack:
            served = {count: stack.enter_context(Endpoint(store)) for count, store in stores.items()}
            for endpoint in served.values():
                endpoint.list()  # for what a store remembers
            for _ in range(scale.repetitions):
                timed = subprocess.run([*program, "list", *stores.values()], check=True, stdout=subprocess.PIPE)
                for count, seconds in zip(stores, json.loads(timed.stdout), strict=True):
                    listed[count].append(seconds)
                for count, endpoint in served.items():
                    start = time.perf_counter()
                    endpoint.list()
                    answered[count].append(time.perf_counter() - start)
            promises.check_list("`ImageStore.images()`", listed, self._figures)
            promises.check_list("`GET /images/json`", answered, self._figures)
            self._answer(served[scale.many], reference, small)

    def _answer(self, endpoint: Endpoint, reference: str, small: str) -> None:
        """The endpoint that has many images pulls, saves and lists, and is asked all the while whether it is there."""

        def pull_small() -> None:
            endpoint.remove(small)
            endpoint.pull(small)

        endpoint.pull(small)
        times = endpoint.answer_times(
            [lambda: endpoint.pull(reference)], background=[endpoint.list, lambda: endpoint.save(small)]
        )
        times += endpoint.answer_times([lambda: endpoint.save(reference)], background=[endpoint.list, pull_small])
        promises.check_answers(Latencies.of(times), self._figures)

    def _hold(self, title: str, chosen: list[contenders.Contender], ours: str) -> Contest:
        contest = Contest(title, chosen).hold(self._rounds)
        self._figures.contests.append(contest)
        promises.check_contest(contest, ours, self._figures)
        return contest


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "--smoke", action="store_true", help="a small image: shows that the bench works, not how fast anything is"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contenders", type=_words, default=list(CONTENDERS), help=",".join(CONTENDERS))
    parser.add_argument("--parts", type=_words, default=list(PARTS), help=",".join(PARTS) + "; with one about images, the pull")
    parser.add_argument("--directory", type=Path, default=Path("build/bench"), help="works below it, and keeps the images there")
    parser.add_argument("--report", type=Path, nargs="?", const=REPORT, help=f"write the figures there (default: {REPORT})")
    options = parser.parse_args()
    for chosen, known in ((options.contenders, CONTENDERS), (options.parts, PARTS)):
        if unknown := set(chosen) - set(known):
            parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return options


def _words(text: str) -> list[str]:
    return text.split(",")


def _usable(names: list[str]) -> list[str]:
    """Those that can take part on this machine."""
    lacking = {engine.name: f"root and {', '.join(engine.programs)}" for engine in ENGINES if not _can_run(engine)}
    if not loop.usable():
        lacking["kernel"] = f"root and {', '.join(loop.PROGRAMS)}"
    if shutil.which("qemu-img") is None:
        lacking["qemu"] = "qemu-img"
    for name in names:
        if name in lacking:
            say(f"without {name}: it needs {lacking[name]}")
    return [name for name in names if name not in lacking]


def _can_run(engine: type[Engine]) -> bool:
    return engine.installed() and os.geteuid() == 0


def _qemu_version() -> str:
    words = subprocess.run(["qemu-img", "--version"], check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    return f"qemu-img {words[2]}"


if __name__ == "__main__":
    main()
