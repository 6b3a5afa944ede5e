"""The parts of the bench about containers and volumes."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from imgstore import layout
from tests.bench import container_promises as promises
from tests.bench import image
from tests.bench.contenders import MODES
from tests.bench.contest import Contender, Contest, say
from tests.bench.library import Library
from tests.bench.loop import LoopDisk
from tests.bench.measure import Run, median_run, run
from tests.bench.report import Figures

MANY, ONE_BY_ONE, DISK, QEMU, QEMU_DURABLE, QEMU_START = (
    "`create_containers`",
    "`create_container`, one by one",
    "their disks alone, one by one",
    "`qemu-img create -b`",
    "`qemu-img create -b`, then `sync` of the disk",
    "`qemu-img --version`",
)
REPLACED, IN_PLACE, FURTHEST, WALK, KERNEL_WALK = (
    "`diff_container`, a file replaced",
    "`diff_container`, one written in place",
    "`diff_container`, one written in place far from its directory",
    "both trees walked, our reader",
    "both trees walked, the kernel's, on loop devices",
)
COPY, TAR = "imgstore", "`tar` on a loop device"
CLONE, SNAPSHOT, VOLUME = (f"`{verb}`, one by one" for verb in ("clone_volume", "snapshot_volume", "create_volume"))
GROW, COPY_DISK = "`grow_volume`", "`cp` of its disk, and `sync`"
COMMIT = "`commit_container`"


@dataclass(frozen=True)
class Scale:
    """How much is done.

    Attributes:
        few: containers or volumes in a contest.
        batch: the first and the last containers that are timed.
        many: containers in all.
        repetitions: of what takes little.
        file: one large file.
        tree: many small ones.
        changes: what is committed, and what a volume has.
    """

    few: int
    batch: int
    many: int
    repetitions: int
    file: image.Recipe
    tree: image.Recipe
    changes: image.Recipe


FULL = Scale(
    few=100,
    batch=1000,
    many=30_000,
    repetitions=9,
    file=image.Recipe(1, 1_000_000_000, 16 << 20),
    tree=image.Recipe(20_000, 200_000_000, 16 << 20),
    changes=image.Recipe(2000, 100_000_000, 16 << 20),
)
SMOKE = Scale(
    few=3,
    batch=5,
    many=15,
    repetitions=1,
    file=image.Recipe(1, 1_000_000, 1 << 20),
    tree=image.Recipe(50, 200_000, 1 << 20),
    changes=image.Recipe(50, 1_000_000, 1 << 20),
)


class ContainerBench:
    """Runs the parts, on a store that has two images: a large one and a small one.

    Args:
        recipe: of the large image.
        names: of those who take part.
        scratch: what the parts leave goes with it.
        library: of a store that is there or not.
    """

    def __init__(
        self, scale: Scale, recipe: image.Recipe, rounds: int, names: list[str], scratch: Path, library: Library, figures: Figures
    ) -> None:
        self._scale = scale
        self._recipe = recipe
        self._rounds = rounds
        self._names = names
        self._scratch = scratch
        self._library = library
        self._figures = figures
        self._numbers = itertools.count()

    def run_parts(self, parts: list[str], large: str, small: str) -> None:
        """Runs them.

        Args:
            large, small: references of the images.
        """
        for reference in (small, large):
            self._library.run("pull", reference)
        if "create" in parts:
            self._create(large, small)
        if "diff" in parts:
            self._diff(large)
        if "copy" in parts:
            self._copy(small)
        if "volume" in parts:
            self._volume(small)
        if "commit" in parts:
            self._commit(small)

    def _create(self, large: str, small: str) -> None:
        """Nothing is removed before it is done, for ext4 is slow to use an inode again within a minute."""
        scale, library = self._scale, self._library
        chosen = [
            Contender(MANY, lambda: library.run("create", large, scale.few)),
            Contender(ONE_BY_ONE, lambda: library.run("create_one_by_one", large, scale.few)),
            Contender(DISK, lambda: library.run("create_disks", large, scale.few)),
        ]
        if "qemu" in self._names:
            chosen += self._qemu(library.ask("top_disk", large).value)
        contest = self._hold(f"{scale.few} containers", chosen)
        promises.check_creation(contest, (MANY, ONE_BY_ONE, DISK), QEMU, QEMU_DURABLE, QEMU_START, self._figures)
        seconds: dict[str, list[float]] = {small: [], large: []}
        for _ in range(self._rounds):
            for reference, each in seconds.items():
                each.append(library.run("create", reference, scale.batch).seconds / scale.batch)
        promises.check_image_size(seconds[large], seconds[small], self._figures)
        self._create_many(large)

    def _create_many(self, reference: str) -> None:
        scale = self._scale
        batches = (scale.batch, scale.many - 2 * scale.batch, scale.batch)
        with Library(self._scratch / "many") as library:
            library.run("pull", reference)
            runs = [library.run("create", reference, count) for count in batches]
        words = (f"{count:,} in {each.seconds:.2f} s" for count, each in zip(batches, runs, strict=True))
        say(f"{scale.many:,} containers: {', '.join(words)}")
        promises.check_many(scale.many, scale.batch, runs, self._figures)

    def _qemu(self, parent: str) -> list[Contender]:
        """Those that start qemu-img for each disk."""

        def create(*, durable: bool) -> Run:
            directory = self._scratch / f"qemu-{next(self._numbers)}"
            directory.mkdir()
            runs = []
            for number in range(self._scale.few):
                disk = directory / f"{number}.vmdk"
                runs.append(run(["qemu-img", "create", "-q", "-f", "vmdk", "-b", parent, "-F", "vmdk", disk]))
                if durable:
                    runs.append(run(["sync", disk, directory]))
            return _added(runs)

        def start() -> Run:
            return _added([run(["qemu-img", "--version"]) for _ in range(self._scale.few)])

        return [
            Contender(QEMU, lambda: create(durable=False)),
            Contender(QEMU_DURABLE, lambda: create(durable=True)),
            Contender(QEMU_START, start),
        ]

    def _diff(self, reference: str) -> None:
        middle = image.file_path("dependencies", self._recipe.files // 4 + 5)  # a file of the third layer
        replaced, near, far = (self._container(reference) for _ in range(3))
        self._unpack(replaced, image.write_change(self._scratch / "change.tar", middle))
        self._library.run("touch", near, middle)
        self._library.run("touch", far, image.file_path("base", 0))  # the last layer replaced it

        def differ(container: str) -> Run:
            return median_run([self._library.run("diff", container) for _ in range(self._scale.repetitions)])

        chosen = [
            Contender(REPLACED, lambda: differ(replaced)),
            Contender(IN_PLACE, lambda: differ(near)),
            Contender(FURTHEST, lambda: differ(far)),
            Contender(WALK, lambda: self._library.run("walk", replaced)),
        ]
        with ExitStack() as stack:
            if {"kernel", "qemu"} <= set(self._names):
                before, after = (
                    stack.enter_context(self._raw(disk, name))
                    for disk, name in (
                        (self._library.ask("top_disk", reference).value, "before"),
                        (self._disk(replaced), "after"),
                    )
                )
                chosen.append(self._kernel_walk(before, after))
            contest = self._hold(f"diff of {self._recipe.files:,} files, one changed", chosen)
        promises.check_diff(contest, (REPLACED, IN_PLACE, FURTHEST), WALK, self._figures)

    def _raw(self, disk: str | Path, name: str) -> LoopDisk:
        raw = self._scratch / f"{name}.raw"
        subprocess.run(["qemu-img", "convert", "-f", "vmdk", "-O", "raw", disk, raw], check=True)
        return LoopDisk(raw)

    @staticmethod
    def _kernel_walk(before: LoopDisk, after: LoopDisk) -> Contender:
        def mount_again() -> None:
            before.mount_again("ro")
            after.mount_again("ro")

        command = [sys.executable, "-m", "tests.bench.walk", str(before.directory), str(after.directory)]
        return Contender(KERNEL_WALK, lambda: run(command), mount_again)

    def _copy(self, reference: str) -> None:
        scale = self._scale
        self._copy_tree(reference, f"a file of {scale.file.size / 1e6:,.0f} MB", scale.file)
        self._copy_tree(reference, f"{scale.tree.files:,} files of {scale.tree.size / 1e6:,.1f} MB", scale.tree)

    def _copy_tree(self, reference: str, what: str, recipe: image.Recipe) -> None:
        """The same tree into a container and out of the last one, and so with tar."""
        library, copied = self._library, self._scratch / "copied.tar"
        tar = image.write_tree(self._scratch / "tree.tar", recipe)
        container = ""

        def renew() -> None:
            nonlocal container
            if container:
                library.run("remove", container)
            container = self._container(reference)

        def forget() -> None:
            copied.unlink(missing_ok=True)

        into = [Contender(COPY, lambda: library.run("copy_in", container, tar), renew)]
        out = [Contender(COPY, lambda: library.run("copy_out", container, image.TREE, copied), forget)]
        with ExitStack() as stack:
            if "kernel" in self._names:
                disk = stack.enter_context(LoopDisk(self._scratch / "loop.raw"))

                def mount_again() -> None:
                    forget()
                    disk.mount_again()

                into.append(Contender(TAR, lambda: disk.extract(tar), lambda: disk.format(4 * recipe.size + (64 << 20))))
                out.append(Contender(TAR, lambda: disk.archive(image.TREE, copied), mount_again))
            for title, chosen in ((f"{what}, into a container", into), (f"{what}, out of it", out)):
                promises.check_copy(self._hold(title, chosen), COPY, TAR, self._figures)
        forget()
        tar.unlink()
        library.run("remove", container)

    def _volume(self, reference: str) -> None:
        few, library = self._scale.few, self._library
        tar = image.write_tree(self._scratch / "volume.tar", self._scale.changes)
        library.run("fill_volume", "source", "2GiB", tar)
        prefix = ""

        def make_volumes() -> None:
            nonlocal prefix
            prefix = f"bench-{next(self._numbers)}"
            library.run("create_volumes", prefix, few)

        chosen = [
            Contender(ONE_BY_ONE, lambda: library.run("create_one_by_one", reference, few)),
            Contender(CLONE, lambda: library.run("clone", "source", few)),
            Contender(SNAPSHOT, lambda: library.run("snapshot", prefix, few), make_volumes),
            Contender(VOLUME, lambda: library.run("create_volumes", f"new-{next(self._numbers)}", few)),
        ]
        promises.check_clone(self._hold(f"{few} volumes", chosen), CLONE, ONE_BY_ONE, self._figures)
        self._grow(tar)

    def _grow(self, tar: Path) -> None:
        disk, copied = "", self._scratch / "copied.vmdk"

        def renew() -> None:
            nonlocal disk
            disk = self._library.ask("fill_volume", "grown", "2GiB", tar).value
            copied.unlink(missing_ok=True)

        chosen = [
            Contender(GROW, lambda: self._library.run("grow", "grown", "4GiB"), renew),
            Contender(COPY_DISK, lambda: run(["sh", "-c", 'cp "$1" "$2" && sync "$2"', "sh", disk, copied]), renew),
        ]
        self._hold(f"a volume with {self._scale.changes.size / 1e6:,.0f} MB becomes twice as large", chosen)

    def _commit(self, reference: str) -> None:
        container = self._container(reference)
        self._unpack(container, image.write_tree(self._scratch / "changes.tar", self._scale.changes))
        committed: list[str] = []

        def commit() -> Run:
            answer = self._library.ask("commit", container)
            committed.append(answer.value)
            return answer.run

        def forget() -> None:
            while committed:
                self._library.run("remove_image", committed.pop())

        written = self._scratch / "floor"

        def floor(mode: str) -> Contender:
            return Contender(
                MODES[mode],
                lambda: self._library.run("floor_of_commit", mode, container, written),
                lambda: shutil.rmtree(written, ignore_errors=True),
            )

        chosen = [floor(mode) for mode in ("serial", "stages") if "floor" in self._names]
        chosen.append(Contender(COMMIT, commit, forget))
        self._hold(f"commit of {self._scale.changes.size / 1e6:,.0f} MB", chosen)

    def _container(self, reference: str) -> str:
        container: str = self._library.ask("create_one_by_one", reference, 1).value
        return container

    def _disk(self, container: str) -> Path:
        return self._library.store / layout.container_disk(container)

    def _unpack(self, container: str, tar: Path) -> None:
        self._library.run("copy_in", container, tar)
        tar.unlink()

    def _hold(self, title: str, chosen: list[Contender]) -> Contest:
        contest = Contest(title, chosen).hold(self._rounds)
        self._figures.contests.append(contest)
        return contest


def _added(runs: list[Run]) -> Run:
    return Run(sum(run.seconds for run in runs), sum(run.cpu_seconds for run in runs), max(run.peak for run in runs))
