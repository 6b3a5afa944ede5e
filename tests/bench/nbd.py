"""The part of the bench about NBD: disks read by fio and nbdcopy through our server and through QEMU's, which serve the same files.

All of a disk is in the page cache, so that the servers are measured and not the storage.
"""

from __future__ import annotations

import functools
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imgstore.store import ImageStore
from tests.bench import measure
from tests.bench.contest import Contender, Contest, say
from tests.bench.measure import Run
from tests.bench.report import Check, Figures
from tests.images.layer import LayerTar
from tests.images.layout import write_layout

OURS, QEMU = "`imgstore nbd serve`", "`qemu-nbd`"
DEPTHS = (1, 30)
PROGRAMS = ("fio", "nbdcopy", "qemu-nbd")
_READ, _QUEUE, _COPIES = 4096, 16, 5
_START_SECONDS_MAX = 60.0


@dataclass(frozen=True)
class Scale:
    """How much is read.

    Attributes:
        data: bytes that the disks hold, which cannot be compressed.
        disk: bytes of each disk.
        random, sequential: bytes that are read in one run.
    """

    data: int
    disk: int
    random: int
    sequential: int


FULL = Scale(data=256 << 20, disk=512 << 20, random=512 << 20, sequential=4 << 30)
SMOKE = Scale(data=8 << 20, disk=64 << 20, random=8 << 20, sequential=64 << 20)


def usable() -> bool:
    """Whether this machine has the programs."""
    lacking = [program for program in PROGRAMS if shutil.which(program) is None]
    if lacking:
        say(f"without NBD: it needs {', '.join(lacking)}")
    return not lacking


def measure_all(scale: Scale, rounds: int, scratch: Path) -> Figures:
    """Holds the contests, on an image of as many layers as make the deepest chain, and on the same image in one disk."""
    layout = _write_image(scale, scratch / "nbd")
    size = f"{scale.data >> 20} MiB that cannot be compressed, on disks of {scale.disk >> 20} MiB"
    figures = Figures(f"{size}; {rounds} rounds", [_version("qemu-nbd"), _version("fio")])
    for depth in DEPTHS:
        location = scratch / f"nbd-{depth}"
        with ImageStore.create(str(location), disk_size=scale.disk) as store:
            store.pull(f"oci:{layout}")
            store.flatten("layout", depth)
            chain = store.disk_paths("layout")
        for disk in chain:
            Path(disk).read_bytes()  # into the page cache
        with _ours(location) as ours, _qemu(chain[-1]) as qemu:
            _hold(depth, scale, rounds, {OURS: ours, QEMU: qemu}, figures)
    return figures


@dataclass(frozen=True)
class _Served:
    """A disk that a process serves."""

    process: int
    uri: str

    def run(self, read: Callable[[str], float]) -> Run:
        """What one client takes; CPU time and memory are the server's."""
        before = measure.cpu_seconds_of(self.process)
        measure.reset_peak(self.process)
        seconds = read(self.uri)
        return Run(seconds, measure.cpu_seconds_of(self.process) - before, measure.peak_of(self.process))


def _hold(depth: int, scale: Scale, rounds: int, served: dict[str, _Served], figures: Figures) -> None:
    disks = "one disk" if depth == 1 else f"a chain of {depth}"
    reads: dict[str, tuple[Callable[[str], float], int, str]] = {
        f"{_READ >> 10} KiB reads at random, {_QUEUE} at once, of {disks}": (
            lambda uri: _fio(uri, "randread", _READ, scale.data, scale.random),
            scale.random // _READ,
            "reads",
        ),
        f"256 KiB reads one after the other, {_QUEUE} at once, of {disks}": (
            lambda uri: _fio(uri, "read", 256 << 10, scale.data, scale.sequential),
            scale.sequential // 10**6,
            "MB",
        ),
        f"`nbdcopy` to nowhere, {_COPIES} times, of {disks}": (_nbdcopy, _COPIES * scale.data // 10**6, "MB"),
    }
    for title, (read, amount, unit) in reads.items():
        chosen = [Contender(name, functools.partial(server.run, read)) for name, server in served.items()]
        contest = Contest(title, chosen).hold(rounds)
        figures.contests.append(contest)
        ours, theirs = contest.median(OURS), contest.median(QEMU)
        assert ours is not None and theirs is not None
        ratio = theirs.seconds / ours.seconds
        measured = f"{ratio:.2f}x ({amount / ours.seconds:,.0f} {unit} a second, theirs {amount / theirs.seconds:,.0f})"
        figures.checks.append(Check(f"{title}: speed, to {QEMU}", measured, "1x", ratio >= 1))


def _write_image(scale: Scale, directory: Path) -> Path:
    """An image whose disks, with the scratch disk, are the deepest chain; each layer is one file. Returns its layout."""
    directory.mkdir()
    chance = random.Random(6)
    layers = []
    for number in range(DEPTHS[-1] - 1):
        layers.append(directory / f"{number}.tar")
        with LayerTar(layers[-1]) as layer:
            layer.file(f"file-{number}", chance.randbytes(scale.data // (DEPTHS[-1] - 1)))
    write_layout(directory / "layout", layers)
    return directory / "layout"


@contextmanager
def _ours(store: Path) -> Iterator[_Served]:
    with tempfile.TemporaryDirectory(prefix="imgstore-bench-") as directory:
        path = Path(directory) / "nbd.sock"
        words = [sys.executable, "-m", "imgstore", "--store", str(store), "nbd", "serve", "--host", f"unix://{path}"]
        with _running(words, path) as process:
            yield _Served(process, f"nbd+unix:///image/layout?socket={path}")


@contextmanager
def _qemu(disk: str) -> Iterator[_Served]:
    """QEMU's server as it is fastest: with ``--aio=io_uring`` it is no faster, without the host's cache slower."""
    with tempfile.TemporaryDirectory(prefix="imgstore-bench-") as directory:
        path = Path(directory) / "nbd.sock"
        words = ["qemu-nbd", "--shared=0", "--persistent", "--read-only", "--format=vmdk", f"--socket={path}", disk]
        with _running(words, path) as process:
            yield _Served(process, f"nbd+unix:///?socket={path}")


@contextmanager
def _running(words: list[str], socket: Path) -> Iterator[int]:
    """The id of a process that has made its socket."""
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            deadline = time.monotonic() + _START_SECONDS_MAX
            while not socket.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{words[0]} does not listen")
                time.sleep(0.02)
            yield process.pid
        finally:
            process.send_signal(signal.SIGTERM)


def _fio(uri: str, how: str, block: int, area: int, amount: int) -> float:
    """Seconds of the reads alone, as fio says."""
    words = ["fio", "--name=reads", "--ioengine=nbd", f"--uri={uri}", f"--rw={how}", f"--bs={block}", f"--iodepth={_QUEUE}"]
    words += [f"--size={area}", f"--io_size={amount}", "--randrepeat=1", "--norandommap", "--output-format=json"]
    done = subprocess.run(words, check=True, capture_output=True)
    (job,) = json.loads(done.stdout[done.stdout.index(b"{") :])["jobs"]
    if job["error"] or job["read"]["io_bytes"] < amount:
        raise RuntimeError(f"fio read {job['read']['io_bytes']} bytes of {amount}, error {job['error']}")
    return max(float(job["read"]["runtime"]), 1.0) / 1000


def _nbdcopy(uri: str) -> float:
    return sum(measure.run(["nbdcopy", "--no-extents", uri, "null:"]).seconds for _ in range(_COPIES))


def _version(program: str) -> str:
    words = subprocess.run([program, "--version"], check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[0]
    return " ".join(words.split()[:2])
