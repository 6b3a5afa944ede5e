"""Kills and failing system calls at every step of the write protocol: each file is whole or not there, and the next start cleans up.

What is made are two files, a disk and its sums, with a marker that says that both are there; what is removed, two files and a tree.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from crc32c import crc32c

from imgstore.blocks import GRAIN
from imgstore.datastores import LocalDatastore
from imgstore.vmdk import check_disk, open_chain
from tests.disks import add_disk, path_of
from tests.tools import need

CALLS = ("flock", "mkdirat", "pwrite64", "ftruncate", "fchmod", "fsync", "renameat", "unlinkat")
CONTENT = b"a" * GRAIN + b"b" + bytes(GRAIN - 1) + bytes(2 * GRAIN)
SUMS = b"".join(crc32c(CONTENT[at : at + GRAIN]).to_bytes(4, "little") for at in (0, GRAIN))
ROOT = Path(__file__).parents[2]

NEW = ("new.vmdk", "new.crc32c", "new.json")
OLD = ("old.vmdk", "old.crc32c")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    with LocalDatastore(tmp_path / "store", create=True) as datastore:
        add_old(datastore)
    return tmp_path / "store"


def add_old(datastore: LocalDatastore) -> None:
    """What the worker removes."""
    add_disk(datastore, "old", None, [(0, b"old")], size=4 * GRAIN).close()
    datastore.write_atomic("names/old", b"old")


def work(store: Path, *trace: str) -> str:
    """Runs the worker, under strace if there are options for it, and returns what it said: nothing if it was killed."""
    command = [sys.executable, str(Path(__file__).with_name("datastore_worker.py")), str(store)]
    if trace:
        command = ["strace", "-f", "-qq", *trace, *command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.strip()


def steps(store: Path) -> list[tuple[str, int]]:
    """Each call that the worker makes: its name and the how-manieth of that name it is."""
    log = store.parent / "trace"
    assert work(store, "-o", str(log), "-e", f"trace={','.join(CALLS)}") == "done"
    seen: Counter[str] = Counter()
    found = []
    for line in log.read_text().splitlines():
        if call := re.search(r"\b(" + "|".join(CALLS) + r")\(", line):
            seen[call[1]] += 1
            found.append((call[1], seen[call[1]]))
    return found


def look(store: Path, after: str) -> tuple[bool, ...]:
    """Proves that all that is visible is whole; says which files are there, in the order of the worker's calls."""
    with LocalDatastore(store) as datastore:
        names = set(datastore.list("disks"))
        assert names <= {*NEW, *OLD}, after
        for name in names & {"new.vmdk", "old.vmdk"}:
            with datastore.open(f"disks/{name}") as file:
                assert check_disk(file) == [], after
        if "new.vmdk" in names:
            with open_chain(datastore.open, path_of("new")) as chain:
                assert chain.read(0, 4 * GRAIN) == CONTENT, after
        if "new.crc32c" in names:
            assert datastore.read_bytes("disks/new.crc32c") == SUMS, after
        if "new.json" in names:
            assert names >= set(NEW), after
            assert datastore.read_bytes("disks/new.json") == b'{"whole": true}', after
        kept = [*(name in names for name in OLD), datastore.exists("names/old")]
        assert datastore.exists("names") == kept[2], after
        return *(name in names for name in NEW), *(not there for there in kept)


def clean_and_finish(store: Path, after: str) -> None:
    """Proves that a sweep leaves no litter and hides nothing, and that the work can then be done."""
    before = look(store, after)
    with LocalDatastore(store) as datastore:
        datastore.sweep()
    assert look(store, after) == before, after
    assert [path for path in store.rglob(".*") if path.name.endswith((".part", ".lock"))] == [], after
    if not before[2]:
        # Files without a marker are what a crash left.
        with LocalDatastore(store) as datastore:
            for name in set(datastore.list("disks")) & set(NEW):
                datastore.remove_file(f"disks/{name}")
        assert work(store) == "done", after
        assert look(store, after) == (True,) * 6, after


def fresh(store: Path) -> None:
    """Takes back what a former run did."""
    with LocalDatastore(store) as datastore:
        datastore.remove_tree("disks")
        add_old(datastore)


def test_a_kill_at_any_step_leaves_nothing_half(store: Path) -> None:
    need("strace")
    order = steps(store)
    assert {name for name, _ in order} == set(CALLS)
    reached = []
    for name, number in order:
        fresh(store)
        after = f"killed at {name} number {number}"
        assert work(store, "-e", f"trace={name}", "-e", f"inject={name}:signal=KILL:when={number}") == "", after
        reached.append(look(store, after))
        clean_and_finish(store, after)
    # In the order of the calls: the disk appears, its sums, their marker, then the old files go one by one; and none of it goes back.
    assert reached == sorted(reached)
    assert set(reached) == {(True,) * done + (False,) * (6 - done) for done in range(7)}


@pytest.mark.parametrize(
    ("name", "error", "code"),
    [
        ("pwrite64", "ENOSPC", "no-space"),
        ("pwrite64", "EDQUOT", "no-space"),
        ("ftruncate", "EFBIG", "no-space"),
        ("fsync", "EIO", "unavailable"),
        ("fsync", "ENOSPC", "no-space"),
        ("fchmod", "EPERM", "denied"),
        ("mkdirat", "ENOSPC", "no-space"),
        ("renameat", "ESTALE", "unavailable"),
        ("renameat", "EROFS", "denied"),
        ("unlinkat", "EIO", "unavailable"),
        ("flock", "ENOLCK", "unavailable"),
    ],
)
def test_an_error_at_any_step_is_told_by_its_kind(store: Path, name: str, error: str, code: str) -> None:
    need("strace")
    numbers = [number for call, number in steps(store) if call == name]
    assert numbers
    for number in numbers:
        fresh(store)
        after = f"{error} from {name} number {number}"
        said = work(store, "-e", f"trace={name}", "-e", f"inject={name}:error={error}:when={number}")
        if name == "unlinkat" and number == numbers[-1]:
            assert said == "done", f"{after}: {said}"  # its own lock file, at the end
        else:
            assert said.startswith(f"{code}: "), f"{after}: {said}"
        # What was moved before the error was taken back, so that all of a staging is there, or nothing.
        seen = look(store, after)
        assert seen[0] == seen[1], after
        clean_and_finish(store, after)


def test_a_short_write_is_continued(store: Path) -> None:
    need("strace")
    assert work(store, "-e", "trace=pwrite64", "-e", "inject=pwrite64:retval=0:when=2") == "done"
    assert look(store, "a write that took nothing") == (True,) * 6


def test_everything_is_on_stable_storage_before_it_is_visible(store: Path) -> None:
    """What a kill cannot show and a power cut would: the order of writes, fsyncs and renames."""
    need("strace")
    log = store.parent / "trace"
    calls = "openat,mkdirat,pwrite64,ftruncate,fchmod,fsync,renameat,unlinkat"
    assert work(store, "-o", str(log), "-y", "-s", "8", "-e", f"trace={calls}") == "done"
    dirty: set[str] = set()
    moved: set[str] = set()
    renamed, magic = [], 0
    for line in log.read_text().splitlines():
        call, _, rest = line.partition(" ")[2].lstrip().partition("(")
        paths = re.findall(r"\b\d+<([^>]*)>", rest)
        names = re.findall(r'"([^"]*)"', rest)
        if not paths or not paths[0].startswith(str(store)) or " = -1 " in rest:
            continue
        path = paths[0]
        if call in ("openat", "mkdirat") and names[0].endswith(".part"):
            assert str(store) not in dirty, "something is made before it is durable who makes it"
        match call:
            case "fsync":
                dirty.discard(path)
                moved.discard(path)
            case "openat" if "O_CREAT" in rest:
                dirty |= {path, f"{path}/{names[0]}"}
            case "mkdirat":
                dirty |= {path, f"{path}/{names[0]}"}
            case "unlinkat":
                dirty = {name for name in dirty if name != f"{path}/{names[0]}"} | {path}
            case "renameat":
                source, target = f"{path}/{names[0]}", paths[1]
                if names[1].startswith("new"):
                    assert [name for name in dirty if name in (source, f"{target}/{names[1]}")] == [], line
                if names[1] != "new.crc32c":  # of one staging with the one before
                    assert target not in moved, "a rename builds on one that is not on stable storage"
                renamed.append(names[1] if names[1].startswith("new") else "removed")
                moved.add(target)
                dirty |= {path, target}
            case "pwrite64" if names[0].startswith("KDMV"):
                assert path not in dirty, "the header is written over a body that is not on stable storage"
                magic += 1
                dirty.add(path)
            case "pwrite64" | "ftruncate" | "fchmod":
                dirty.add(path)
    assert renamed == [*NEW, "removed"]
    assert magic == 1
    assert not moved
    # Deletions in a tree that is gone may be lost: a sweep finds them again. So may the datastore's own lock.
    assert {name for name in dirty if ".part" not in name and ".owner" not in name} <= {str(store)}
