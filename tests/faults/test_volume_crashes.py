"""Kills and failing calls at every step of what is done to volumes: each is as before or as after, and the next start cleans up."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from imgstore.errors import NoSpaceError
from imgstore.store import ImageStore
from tests.faults.volume_worker import ACTIONS, archive
from tests.tools import need, need_root, run

ROOT = Path(__file__).parents[2]

State = dict[str, tuple[int, list[dict[str, bytes]]]]
"""Name of a volume to its capacity, and the files of it and of each of its snapshots."""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a volume that has a snapshot, and something written since."""
    path = tmp_path_factory.mktemp("volumes") / "original"
    with ImageStore.open(str(path)) as store:
        store.create_volume("a", options={"Capacity": "64"})
        store.snapshot_volume("a", "s")
        with tarfile.open(fileobj=(out := io.BytesIO()), mode="w") as writer:
            writer.addfile(tarfile.TarInfo("old"))
        out.seek(0)
        store.import_volume("a", out)
    return path


def files_of(store: ImageStore, source: str) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(b"".join(map(bytes, store.export_volume(source))))) as body:
        return {member.name: found.read() for member in body if (found := body.extractfile(member)) is not None}


def look(path: Path) -> State:
    """What the volumes are; proves that they are whole, and that nothing else lies there."""
    with ImageStore.open(str(path)) as store:
        assert list(store.check()) == []
        found = {
            volume.name: (
                volume.capacity,
                [files_of(store, f"{volume.name}{kept}") for kept in ("", *(f"@{one.name}" for one in volume.snapshots))],
            )
            for volume in store.volumes()[0]
        }
        names = {name.suffix for name in (path / "volumes").iterdir()}
        assert names <= {".vmdk", ".json", ""}, "nothing is left of what was cut off"
    return found


def use(path: Path) -> None:
    """Proves that volumes can be made, changed and removed, and that nothing stays of them."""
    with ImageStore.open(str(path)) as store:
        store.create_volume("b", options={"Capacity": "64"}, exist_ok=True)
        for volume in store.volumes()[0]:
            store.snapshot_volume(volume.name, "again")
            store.import_volume(volume.name, archive())
            store.remove_volume(volume.name)
    assert list((path / "volumes").glob("*.vmdk")) == []


def step_through(original: Path, copies: Path, action: str, happening: str) -> list[str]:
    """Runs the worker; what it said of each step."""
    copies.mkdir()
    command = [sys.executable, str(Path(__file__).with_name("volume_worker.py")), str(original), str(copies), action, happening]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize("action", ACTIONS)
def test_a_kill_at_any_step_leaves_all_or_nothing(original: Path, tmp_path: Path, action: str) -> None:
    said = step_through(original, tmp_path / "copies", action, "kill")
    assert said == ["killed"] * (len(said) - 1) + ["done"] and len(said) > 3
    states = [look(tmp_path / "copies" / str(step)) for step in range(1, len(said) + 1)]
    before, after = states[0], states[-1]
    assert before != after
    reached = [state == after for state in states]
    assert reached == sorted(reached) and all(state in (before, after) for state in states)
    use(tmp_path / "copies" / str(len(said) // 2))


@pytest.mark.parametrize(("error", "code"), [("EIO", "unavailable: "), ("ENOSPC", "no-space: ")])
@pytest.mark.parametrize("action", ["clone", "grow"])
def test_an_error_at_any_step_leaves_all_or_nothing(original: Path, tmp_path: Path, action: str, error: str, code: str) -> None:
    said = step_through(original, tmp_path / "copies", action, error)
    assert len(said) > 2
    states = [look(tmp_path / "copies" / str(step)) for step in range(1, len(said) + 1)]
    for line, state in zip(said, states, strict=True):
        assert line == "done" or line.startswith(code)
        assert state in (states[0], states[-1])
        assert line == "done" or error != "ENOSPC" or state == states[0], "what failed for want of space is not there"


def test_a_full_datastore(tmp_path: Path) -> None:
    need("mount", "umount")
    need_root()
    directory = tmp_path / "small"
    directory.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", directory)
    try:
        with ImageStore.open(str(directory / "store")) as store:
            store.create_volume("a", options={"Capacity": "64"})
            store.import_volume("a", archive())
            before = files_of(store, "a")
            store.snapshot_volume("a", "s")
            with (directory / "ballast").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
                while file.write(bytes(4096)):
                    pass
            for act in (
                lambda: store.create_volume("b"),
                lambda: store.clone_volume("a@s", "b"),
                lambda: store.grow_volume("a", 128 << 20),
            ):
                with pytest.raises(NoSpaceError):
                    act()
            assert [volume.name for volume in store.volumes()[0]] == ["a"] and files_of(store, "a") == before
            store.remove_volume("a")
            assert list((directory / "store" / "volumes").glob("*.vmdk")) == []
    finally:
        run("umount", directory)
