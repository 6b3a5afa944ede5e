"""Logins that are killed, that fail, and that run at the same time: nobody's credential is lost, and no file is half."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from registry_client import credential_files
from registry_client.credentials import Credential, find_credential, store_credential
from registry_client.errors import UnavailableError
from tests.tools import need

CALLS = ("flock", "fchmod", "write", "fsync", "rename")
ROOT = Path(__file__).parents[2]
OLD = Credential("old", "x")


def start(path: Path, account: str, count: int, *trace: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(Path(__file__).with_name("credential_worker.py")), str(path), account, str(count)]
    if trace:
        command = ["strace", "-f", "-qq", *trace, *command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(worker: subprocess.Popen[str]) -> str:
    """What the worker said: nothing if it was killed."""
    said, complaint = worker.communicate()
    assert "Traceback" not in complaint, complaint
    return said.strip()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "docker/config.json"
    store_credential("old.example", OLD, authfile=path)
    return path


def calls(path: Path) -> list[tuple[str, int]]:
    """Each call of a login that touches its directory: its name, and the how-manieth of that name it is."""
    log = path.parent.parent / "trace"
    assert finish(start(path, "traced", 1, "-y", "-o", str(log), "-e", f"trace={','.join(CALLS)}")) == "done"
    seen = dict.fromkeys(CALLS, 0)
    found = []
    for line in log.read_text().splitlines():
        if call := re.search(rf"\b({'|'.join(CALLS)})\(", line):
            seen[call[1]] += 1
            if str(path.parent) in line:
                found.append((call[1], seen[call[1]]))
    return found


def test_a_kill_or_an_error_at_any_step_leaves_the_old_file_or_the_new_one(path: Path) -> None:
    need("strace")
    order = calls(path)
    assert [name for name, _ in order] == ["flock", "fchmod", "write", "fsync", "rename", "fsync"]
    for action in ("signal=KILL", "error=EIO"):
        for step, (name, number) in enumerate(order):
            account = f"{name}{number}{action[-2:].lower()}"
            said = finish(start(path, account, 1, "-e", f"trace={name}", "-e", f"inject={name}:{action}:when={number}"))
            assert said.startswith("RegistryError: ") == (action == "error=EIO"), f"{account}: {said}"
            assert path.stat().st_mode & 0o777 == 0o600
            assert find_credential("old.example", "a", authfile=path) == OLD
            there = bool(find_credential(f"{account}-0.example", "a", authfile=path))
            # A call that is killed on its way in has not been done.
            assert there == (step > 4), account
            left = {file.name for file in path.parent.iterdir()} - {"config.json", ".config.json.lock"}
            assert left <= ({".config.json.part"} if action == "signal=KILL" else set()), account
            if left:
                assert (path.parent / ".config.json.part").stat().st_mode & 0o777 == 0o600
            assert finish(start(path, f"after{step}", 1)) == "done"
            assert {file.name for file in path.parent.iterdir()} == {"config.json", ".config.json.lock"}


def test_logins_at_the_same_time_lose_nothing(path: Path) -> None:
    workers = [start(path, f"account{number}", 10) for number in range(4)]
    assert [finish(worker) for worker in workers] == ["done"] * 4
    wanted = {f"account{number}-{each}.example" for number in range(4) for each in range(10)}
    assert set(json.loads(path.read_text())["auths"]) == {"old.example", *wanted}


def test_a_lock_that_somebody_keeps(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credential_files, "LOCK_TIMEOUT", 0.1)
    before = path.read_bytes()
    with (path.parent / ".config.json.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UnavailableError, match=r"\.config\.json\.lock: locked by another process"):
            store_credential("r.io", OLD, authfile=path)
        assert path.read_bytes() == before
        assert find_credential("old.example", "a", authfile=path) == OLD
    store_credential("r.io", OLD, authfile=path)
