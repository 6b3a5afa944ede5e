"""What is compared: the floor in its three modes, imgstore, and the engines. Each pulls into nothing, and is cleared between its runs."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.bench.engines import Engine


class Contender(Protocol):
    """One way to pull."""

    @property
    def title(self) -> str:
        """Its row in the report."""

    def pull_command(self, reference: str) -> list[str]:
        """The command to measure."""

    def clear(self, reference: str) -> None:
        """Leaves nothing of the last pull."""


@dataclass(frozen=True)
class Floor:
    """Only what any pull must do, as ``tests.bench.floor`` does it."""

    directory: Path
    mode: str

    @property
    def title(self) -> str:
        return {
            "serial": "floor, one thread",
            "stages": "floor, a thread a stage",
            "layers": "floor, a thread a layer, as many as cores",
        }[self.mode]

    def pull_command(self, reference: str) -> list[str]:
        host, _, rest = reference.partition("/")
        repository, _, tag = rest.rpartition(":")
        return [sys.executable, "-m", "tests.bench.floor", host, repository, tag, str(self.directory), "--mode", self.mode]

    def clear(self, reference: str) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)


@dataclass(frozen=True)
class Imgstore:
    """The command of this repository, into a new store."""

    store: Path
    title: str = "imgstore pull"

    def command(self, *words: str) -> list[str]:
        """An imgstore command on this store."""
        return [sys.executable, "-m", "imgstore", "--store", str(self.store), *words]

    def pull_command(self, reference: str) -> list[str]:
        return self.command("pull", "-q", reference)

    def clear(self, reference: str) -> None:
        shutil.rmtree(self.store, ignore_errors=True)


FLOOR_MODES = ("serial", "stages", "layers")


def make_contenders(names: list[str], directory: Path, engines: list[Engine]) -> list[Contender]:
    """The contenders named, in the order of the report; the engines are those that run."""
    chosen: list[Contender] = []
    if "floor" in names:
        chosen += [Floor(directory / f"floor-{mode}", mode) for mode in FLOOR_MODES]
    if "imgstore" in names:
        chosen.append(Imgstore(directory / "store"))
    return [*chosen, *engines]
