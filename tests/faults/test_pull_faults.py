"""Pulls, removals and tags that are killed, or whose system calls fail, at every step; and what is there afterwards.

strace injects: ``when=N`` counts the calls of each thread, and N runs over all that an undisturbed command makes, in steps. The profile
``deep`` takes every step.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgstore.store import ImageStore
from tests.command_line import REFERENCE, CommandLine, complaint, contents, litter
from tests.tools import need

DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"

# Of one thread in an undisturbed pull of the three layers, less what depends on its luck: (calls, how many of them are tried).
CALLS = {
    "pwrite64": (99, 9),
    "fsync": (18, 8),
    "fdatasync": (6, 3),
    "renameat": (11, 8),
    "unlink": (9, 4),
    "unlinkat": (13, 5),
    "mkdirat": (8, 3),
    "ftruncate": (3, 3),
    "fchmod": (8, 3),
}
ERRORS = [
    ("pwrite64", "ENOSPC", 120, 7),
    ("pwrite64", "EIO", 120, 3),
    ("fsync", "EIO", 21, 6),
    ("fdatasync", "EIO", 12, 2),
    ("renameat", "EIO", 11, 5),
    ("mkdirat", "ENOSPC", 8, 3),
    ("ftruncate", "ENOSPC", 4, 2),
    ("unlink", "EIO", 9, 3),
    ("unlinkat", "EIO", 15, 3),
]


def steps(calls: int, tried: int) -> list[int]:
    """Numbers from 1 to ``calls``, evenly spread, the first and the last among them."""
    if DEEP or tried >= calls:
        return list(range(1, calls + 1))
    return sorted({1 + round(number * (calls - 1) / (tried - 1)) for number in range(tried)})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the image, that nothing happened to."""
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    with ImageStore.open(str(store)) as opened:
        opened.pull(REFERENCE)
    return store


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[CommandLine]:
    yield CommandLine(tmp_path / "store")
    shutil.rmtree(tmp_path / "store", ignore_errors=True)


def inject(call: str, what: str, number: int) -> list[str]:
    need("strace")
    return ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:{what}:when={number}"]


def assert_recovers(cli: CommandLine, undisturbed: Path) -> None:
    """The next start finds no half things and leaves no litter; the next pull makes the store that an undisturbed one makes."""
    if not (cli.store / "store.json").exists():
        assert cli.run("pull", "-q", REFERENCE).returncode == 0
    with ImageStore.open(str(cli.store), create=False) as store:
        assert list(store.check(read_data=True)) == []
        for image in store.images():
            assert len(image.layers) == 3
            assert all(layer.disk and Path(layer.disk).exists() for layer in image.layers)
    assert litter(cli.store) == []
    with ImageStore.open(str(cli.store), create=False) as store:
        result = store.pull(REFERENCE)
        assert [result.image.id] == [image.id for image in store.images()]
        assert result.image.references == ("three-layers:latest",)
        assert list(store.check(read_data=True)) == []
    assert litter(cli.store) == []
    assert contents(undisturbed) == contents(cli.store)


@pytest.mark.parametrize(
    ("call", "number"), [(call, number) for call, (calls, tried) in CALLS.items() for number in steps(calls, tried)]
)
def test_pull_killed_at_a_call(cli: CommandLine, undisturbed: Path, call: str, number: int) -> None:
    done = cli.run("pull", "-q", REFERENCE, wrapper=inject(call, "signal=SIGKILL", number))
    assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), "strace did not get to kill it: fewer calls than expected"
    assert_recovers(cli, undisturbed)


@pytest.mark.parametrize("seed", range(100 if DEEP else 8))
def test_pull_killed_at_a_time(cli: CommandLine, undisturbed: Path, seed: int) -> None:
    """From the first file on: before it, there is nothing to leave behind."""
    process = cli.start("pull", "-q", REFERENCE)
    while not cli.store.exists() and process.poll() is None:
        time.sleep(0.001)
    time.sleep(random.Random(seed).uniform(0, 0.3))
    process.kill()
    process.communicate()
    assert_recovers(cli, undisturbed)


@pytest.mark.parametrize(
    ("call", "error", "number"), [(call, error, number) for call, error, calls, tried in ERRORS for number in steps(calls, tried)]
)
def test_pull_with_an_error(cli: CommandLine, undisturbed: Path, call: str, error: str, number: int) -> None:
    done = cli.run("pull", "-q", REFERENCE, wrapper=inject(call, f"error={error}", number))
    if done.returncode == 0:
        assert done.stdout.startswith(b"sha256:")  # what failed was of no matter: a note, a lock's file
    else:
        assert done.returncode in ((8, 6) if error == "ENOSPC" else (6,)), done.stderr.decode()
        complaint(done.stderr)
        assert done.stdout == b""
    if not call.startswith("unlink"):  # what could not be removed has to wait for the next start
        rest = [path for path in litter(cli.store) if not path.startswith("catalog.")]
        assert [path for path in rest if path != ".leases/names" and not path.startswith(".owner-")] == [], (
            "at most the word that there is something to mend"
        )
    assert_recovers(cli, undisturbed)


@pytest.fixture
def changed(undisturbed: Path, cli: CommandLine) -> CommandLine:
    """A copy of that store, to be changed."""
    shutil.copytree(undisturbed, cli.store)
    return cli


def state(store: Path) -> tuple[list[tuple[str, tuple[str, ...]]], int]:
    """Images with their names, and the number of layers with a disk; all of it sound."""
    with ImageStore.open(str(store), create=False) as opened:
        assert list(opened.check(read_data=True)) == []
        found = [(image.id, image.references) for image in opened.images()], opened.usage().disks
    assert litter(store) == []
    return found


COMMANDS = {
    "rm": (["rm", "three-layers"], {"unlink": 6, "unlinkat": 15, "renameat": 1, "fsync": 15, "fdatasync": 3}),
    "tag": (["tag", "three-layers", "other:1"], {"pwrite64": 4, "unlink": 2, "renameat": 1, "fsync": 2}),
}


@pytest.mark.parametrize(
    ("name", "call", "number"),
    [(name, call, number) for name, (_, calls) in COMMANDS.items() for call, most in calls.items() for number in steps(most, 3)],
)
@pytest.mark.parametrize("what", ["signal=SIGKILL", "error=EIO"])
def test_change_disturbed_at_a_call(changed: CommandLine, name: str, call: str, number: int, what: str) -> None:
    before = state(changed.store)
    words = COMMANDS[name][0]
    done = changed.run(*words, wrapper=inject(call, what, number))
    if "EIO" in what and done.returncode != 0:
        assert done.returncode == 6, done.stderr.decode()
        complaint(done.stderr)
    images, disks = state(changed.store)
    image_id = before[0][0][0]
    if name == "rm":
        assert images in ([], before[0], [(image_id, ())])
        assert disks in range(4) if not images else disks == 3
        if images:
            changed.text("rm", image_id)
        assert state(changed.store)[0] == []
    else:
        assert images[0][1] in (("three-layers:latest",), ("other:1", "three-layers:latest"))
        changed.text(*words)
        assert state(changed.store)[0] == [(image_id, ("other:1", "three-layers:latest"))]


def test_a_child_of_strace_is_our_own_interpreter(cli: CommandLine) -> None:
    """A shim between (pyenv's is a shell script) would take the faults that are meant for us."""
    need("strace")
    done = subprocess.run(
        ["strace", "-qq", "-e", "trace=execve", *cli.words("--version")], capture_output=True, env=cli.environment, check=True
    )
    assert done.stderr.count(b"execve(") == 1, done.stderr
