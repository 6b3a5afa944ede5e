"""Who takes part: the floors in their modes, imgstore by its commands and its endpoint, and the engines."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.contest import Contender
from tests.bench.endpoint import Endpoint
from tests.bench.engines import Docker, Engine
from tests.bench.measure import Run, run
from tests.bench.registry import DockerRegistry

MODES = {
    "serial": "floor, one thread",
    "stages": "floor, a thread a stage",
    "layers": "floor, a thread a layer, as many as cores",
}

PULL, ENDPOINT, SAVE, LOAD, PUSH = (
    "imgstore pull",
    "pull through imgstore serve",
    "imgstore save",
    "imgstore load",
    "imgstore push",
)


@dataclass(frozen=True)
class Command:
    """The command of this repository, on one store."""

    store: Path

    def words(self, *words: str | Path) -> list[str]:
        """An imgstore command, to be run."""
        return [sys.executable, "-m", "imgstore", "--store", str(self.store), *map(str, words)]

    def pull(self, reference: str) -> Run:
        """Pulls an image."""
        return run(self.words("pull", "-q", reference))

    def tag(self, image: str, reference: str) -> None:
        """Gives an image a name."""
        subprocess.run(self.words("tag", image, reference), check=True, capture_output=True)

    def clear(self) -> None:
        """Leaves no store."""
        shutil.rmtree(self.store, ignore_errors=True)


def pulling(
    reference: str, command: Command | None, endpoint: Endpoint | None, engines: Sequence[Engine], floors: Path | None
) -> list[Contender]:
    """Those who pull an image from a registry into nothing. What is None does not take part."""
    chosen = []
    host, _, rest = reference.partition("/")
    repository, _, tag = rest.rpartition(":")
    if floors is not None:
        chosen += _floors(["serial", "stages", "layers"], ["pull", host, repository, tag], floors)
    if command is not None:
        chosen.append(Contender(PULL, lambda: command.pull(reference), command.clear))
    if endpoint is not None:
        chosen.append(Contender(ENDPOINT, lambda: endpoint.pull(reference), lambda: endpoint.remove(reference)))
    return [*chosen, *(_of_engine(engine.pull_title, engine, engine.pull_command(reference)) for engine in engines)]


def saving(reference: str, command: Command, docker: Docker | None, disks: Sequence[tuple[Path, int]]) -> list[Contender]:
    """Those who write an image as one archive, to ``/dev/null``: a stream, so there is no floor with a thread a layer.

    Args:
        disks: of the image's layers, each with the bytes of its tar.
    """
    words = ["save", *(f"{disk}:{size}" for disk, size in disks)]
    chosen = _floors(["serial", "stages"], words, None)
    chosen.append(Contender(SAVE, lambda: run(command.words("save", reference), discard=True)))
    if docker is not None:
        saves = docker.save_command(reference)
        chosen.append(Contender("docker save", lambda: run(saves, discard=True), in_daemon=True))
    return chosen


def loading(archive: Path, command: Command, docker: Docker | None, floors: Path) -> list[Contender]:
    """Those who load an archive into nothing."""
    chosen = _floors(["serial", "stages", "layers"], ["load", archive], floors)
    chosen.append(Contender(LOAD, lambda: run(command.words("load", "-q", "-i", archive)), command.clear))
    if docker is not None:
        chosen.append(_of_engine(f"docker load ({docker.stores})", docker, docker.load_command(archive)))
    return chosen


def pushing(reference: str, archive: Path, command: Command, docker: Docker | None, registry: DockerRegistry) -> list[Contender]:
    """Those who push an image, which has this name, into an empty registry.

    Args:
        archive: holds the tars of its layers, for the floor.
    """
    chosen = _floors(["serial", "stages", "layers"], ["push", archive], None)
    chosen.append(Contender(PUSH, lambda: run(command.words("push", "-q", reference)), registry.clear))
    if docker is not None:
        pushes = docker.push_command(reference)
        chosen.append(Contender("docker push", lambda: run(pushes), registry.clear, in_daemon=True))
    return chosen


def _floors(modes: Sequence[str], words: Sequence[str | Path], directory: Path | None) -> list[Contender]:
    """The floor in these modes; those that write do it into a directory of their own below ``directory``."""
    chosen = []
    for mode in modes:
        command = [sys.executable, "-m", "tests.bench.floor", "--mode", mode, *map(str, words)]
        if directory is None:
            chosen.append(_floor(mode, command, None))
        else:
            chosen.append(_floor(mode, [*command, str(directory / mode)], directory / mode))
    return chosen


def _floor(mode: str, command: list[str], written: Path | None) -> Contender:
    def clear() -> None:
        if written is not None:
            written.parent.mkdir(exist_ok=True)
            shutil.rmtree(written, ignore_errors=True)

    return Contender(MODES[mode], lambda: run(command), clear)


def _of_engine(title: str, engine: Engine, command: list[str]) -> Contender:
    return Contender(title, lambda: run(command), engine.clear, in_daemon=True)
