"""The machine stops, or the process is killed, at every step of an edit: the disk is as before or as after.

What was written since the last fsync is lost in every combination, halves of writes too.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from imgstore.blocks import GRAIN
from imgstore.datastores import LocalDatastore
from imgstore.live_disks import LiveDisks
from imgstore.vmdk import EditedDisk, apply_intent, check_disk, open_chain, write_child
from tests.crashes import CrashFile, CrashIntents, Machine, StoppedError
from tests.tools import need

SIZE = 34 << 20  # two grain tables
ROOT = Path(__file__).parents[2]
CALLS = ("pwrite64", "fsync", "renameat", "unlinkat")

Content = dict[int, bytes]


def content_of(machine: Machine) -> Content:
    """The grains that are not zeros."""
    with open_chain(lambda _: CrashFile(machine), CrashFile.path) as chain:
        return {
            offset + at: data
            for offset, length in chain.own_ranges()
            for at in range(0, length, GRAIN)
            if any(data := chain.read(offset + at, GRAIN))
        }


def edit(machine: Machine, writes: list[tuple[int, bytes]], *, give_up: bool = False) -> None:
    """One edit with a cache of one grain, so that most of it reaches the file before the commit."""
    file = CrashFile(machine)
    with open_chain(lambda _: file, CrashFile.path) as chain:
        device = EditedDisk(chain, file, CrashIntents(machine), cache_size=GRAIN)
        for offset, data in writes:
            device.write(offset, data)
        if give_up:
            device.discard()
        else:
            device.commit()


def settle(machine: Machine) -> None:
    """What the next who opens the disk does."""
    if machine.intent is not None:
        apply_intent(CrashFile(machine), machine.intent)
        CrashIntents(machine).erase()


def used_disk() -> Machine:
    """A disk with four grains in two tables, and a free place among them."""
    machine = Machine(bytearray())
    write_child(CrashFile(machine), capacity=SIZE, cid=7, extent_name="live.vmdk")
    edit(machine, [(0, b"a" * GRAIN), (GRAIN, b"b" * GRAIN), (SIZE - GRAIN, b"c" * GRAIN), (9 * GRAIN, b"d" * 100)])
    edit(machine, [(GRAIN, b"e" * 10)])
    return Machine(machine.contents())


WRITES = [
    (5, b"1" * 100),
    (GRAIN - 5, b"2" * 10),
    (SIZE - GRAIN, b"3" * GRAIN),
    (20 * GRAIN, b"4" * 2 * GRAIN),
    (9 * GRAIN, b"5"),
]


@pytest.mark.parametrize("give_up", [False, True])
def test_a_machine_that_stops_at_any_step_leaves_all_or_nothing(give_up: bool) -> None:
    chance = random.Random(1)
    used = used_disk().stable
    before = content_of(Machine(used))
    whole = Machine(bytearray(used))
    edit(whole, WRITES, give_up=give_up)
    after = content_of(whole)
    assert (after == before) == give_up
    seen: list[bool] = []
    states = 0
    for stop_at in range(whole.steps + 1):
        machine = Machine(bytearray(used), stop_at=stop_at)
        try:
            edit(machine, WRITES, give_up=give_up)
            assert stop_at == whole.steps
        except StoppedError:
            pass
        results = set()
        for stable in machine.after_stop(chance):
            states += 1
            again = Machine(stable, machine.intent)
            if again.intent is not None:
                interrupt(again, chance, before, after)
            settle(again)
            found = content_of(again)
            assert found in (before, after), f"stopped before step {stop_at}"
            assert check_disk(CrashFile(again), sealed=False) == [], f"stopped before step {stop_at}"
            results.add(found == after)
        assert len(results) == 1, f"stopped before step {stop_at}: it depends on what was lost"
        seen.append(results.pop())
    assert seen == sorted(seen)
    assert states > 200


def interrupt(machine: Machine, chance: random.Random, before: Content, after: Content) -> None:
    """Stops the recovery too, at a step of its own."""
    first = Machine(bytearray(machine.stable), machine.intent, stop_at=chance.randrange(4))
    with contextlib.suppress(StoppedError):
        settle(first)
    for stable in first.after_stop(chance):
        second = Machine(stable, first.intent)
        settle(second)
        assert content_of(second) in (before, after)


def test_what_is_written_after_a_crash_is_safe_too() -> None:
    """Places that the lost edit had taken are taken again, and its intent, should it come back, is another's."""
    used = used_disk().stable
    for stop_at in range(40):
        machine = Machine(bytearray(used), stop_at=stop_at)
        try:
            edit(machine, WRITES)
            break
        except StoppedError:
            pass
        again = Machine(machine.contents(), machine.intent)
        stale = again.intent
        settle(again)
        edit(again, [(3 * GRAIN, b"z" * 3 * GRAIN)])
        expected = content_of(again)
        assert expected[3 * GRAIN] == b"z" * GRAIN
        if stale is not None:
            assert not apply_intent(CrashFile(again), stale)
        assert content_of(again) == expected
        assert check_disk(CrashFile(again), sealed=False) == []
    else:
        pytest.fail("the edit has more steps than were tried")


# The same with a process, a kill, and a real file system.

OLD = b"old" + bytes(GRAIN - 3)
NEW = b"new" + bytes(GRAIN - 3)
DISK = "containers/c.vmdk"


def work(store: Path, *trace: str) -> str:
    """Runs the worker, under strace if there are options for it, and returns what it said: nothing if it was killed."""
    command = [sys.executable, str(Path(__file__).with_name("edit_worker.py")), str(store)]
    if trace:
        command = ["strace", "-f", "-qq", *trace, *command]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.strip()


def make(store: Path) -> None:
    with LocalDatastore(store, create=True) as datastore:
        if datastore.exists(DISK):
            datastore.remove_tree("containers")
        live = LiveDisks(datastore)
        live.create(DISK, SIZE)
        with live.edit(DISK) as device:
            device.write(0, OLD)


def steps(store: Path) -> list[tuple[str, int]]:
    make(store)
    log = store.parent / "trace"
    assert work(store, "-o", str(log), "-e", f"trace={','.join(CALLS)}") == "done"
    seen: Counter[str] = Counter()
    found = []
    for line in log.read_text().splitlines():
        if call := re.search(r"\b(" + "|".join(CALLS) + r")\(", line):
            seen[call[1]] += 1
            found.append((call[1], seen[call[1]]))
    return found


def look(store: Path, after: str) -> bool:
    """Whether the disk has the new contents; it has the old ones otherwise, and nothing is left of the edit."""
    with LocalDatastore(store) as datastore:
        datastore.sweep()
        live = LiveDisks(datastore)
        with live.read(DISK) as chain:
            found = chain.read(0, GRAIN)
        assert found in (OLD, NEW), after
        assert datastore.list("containers") == ["c.vmdk"], after
        with datastore.open(DISK) as file:
            assert check_disk(file, sealed=False) == [], after
        with live.edit(DISK) as device:
            device.write(GRAIN, b"more")
        with live.read(DISK) as chain:
            assert chain.read(0, GRAIN + 4) == found + b"more", after
    return found == NEW


def test_a_kill_at_any_step_leaves_all_or_nothing(tmp_path: Path) -> None:
    need("strace")
    store = tmp_path / "store"
    reached = []
    for name, number in steps(store):
        make(store)
        after = f"killed at {name} number {number}"
        assert work(store, "-e", f"trace={name}", "-e", f"inject={name}:signal=KILL:when={number}") == "", after
        reached.append(look(store, after))
    assert reached == sorted(reached)
    assert set(reached) == {False, True}


@pytest.mark.parametrize(("name", "error", "code"), [("fsync", "EIO", "unavailable"), ("pwrite64", "ENOSPC", "no-space")])
def test_an_error_at_any_step_leaves_all_or_nothing(tmp_path: Path, name: str, error: str, code: str) -> None:
    need("strace")
    store = tmp_path / "store"
    reached = []
    for number in (number for call, number in steps(store) if call == name):
        make(store)
        said = work(store, "-e", f"trace={name}", "-e", f"inject={name}:error={error}:when={number}")
        after = f"{error} from {name} number {number}"
        if name == "pwrite64" and said == "done":
            continue  # the lock file's line for people, which may be missing
        assert said.startswith(f"{code}: "), f"{after}: {said}"
        reached.append(look(store, after))
    assert not reached[0]
