"""Copies that are killed, or whose system calls fail, on their way to another store; and what is there afterwards.

strace injects, as in ``test_pull_faults``. The other store is there and empty before.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from imgstore.store import ImageStore
from tests.command_line import REFERENCE, CommandLine, complaint, contents, litter
from tests.tools import need

DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"

# Of one thread in an undisturbed copy of the three layers, less what depends on its luck: all, and those that are tried.
KILLS = {"pwrite64": (80, (40,)), "fsync": (17, (1, 9, 17)), "renameat": (12, (2, 5, 8, 12))}
ERRORS = [("pwrite64", "ENOSPC", (60,)), ("fsync", "EIO", (2,)), ("renameat", "EIO", (4, 10))]


def numbers(call: str, tried: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(range(1, KILLS[call][0] + 1)) if DEEP else tried


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    cli = CommandLine(tmp_path_factory.mktemp("source") / "store")
    with ImageStore.open(str(cli.store)) as store:
        store.pull(REFERENCE)
    return cli


@pytest.fixture
def there(tmp_path: Path) -> Path:
    ImageStore.create(str(tmp_path / "there")).close()
    return tmp_path / "there"


def inject(call: str, what: str, number: int) -> list[str]:
    need("strace")
    return ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:{what}:when={number}"]


def assert_goes_on(source: CommandLine, there: Path) -> None:
    """What is there is whole, the next start leaves no litter, and the next copy makes what an undisturbed one makes."""
    with ImageStore.open(str(there), create=False) as target:
        assert list(target.check(read_data=True)) == []
    assert litter(there) == []
    before = {name: (there / name).stat().st_ino for name in contents(there)}
    with ImageStore.open(str(source.store)) as store, store.open_target(str(there)) as target:
        store.copy_image("three-layers", target)
        assert list(target.check(read_data=True)) == []
    assert contents(source.store) == contents(there)
    kept = {name: inode for name, inode in before.items() if name.startswith("disks/")}
    assert kept == {name: (there / name).stat().st_ino for name in kept}, "what had come was copied once more"


@pytest.mark.parametrize(
    ("call", "number"), [(call, number) for call, (_, tried) in KILLS.items() for number in numbers(call, tried)]
)
def test_copy_killed_at_a_call(source: CommandLine, there: Path, call: str, number: int) -> None:
    done = source.run("copy", "three-layers", "--to", there, "-q", wrapper=inject(call, "signal=SIGKILL", number))
    assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), "strace did not get to kill it: fewer calls than expected"
    assert_goes_on(source, there)


@pytest.mark.parametrize(
    ("call", "error", "number"), [(call, error, number) for call, error, tried in ERRORS for number in tried]
)
def test_copy_with_an_error(source: CommandLine, there: Path, call: str, error: str, number: int) -> None:
    done = source.run("copy", "three-layers", "--to", there, "-q", wrapper=inject(call, f"error={error}", number))
    assert done.returncode == (8 if error == "ENOSPC" else 6), done.stderr.decode()
    assert f"three-layers to {there}: " in complaint(done.stderr)
    assert_goes_on(source, there)
