"""The program as a process, with a store of its own, and what may lie in that store."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgstore.store import ImageStore

ROOT = Path(__file__).parents[1]
LAYOUT = ROOT / "testdata/three-layers"
REFERENCE = f"oci:{LAYOUT}"
TIME_MAX = 120.0

_ALWAYS = re.compile(r"store\.json|catalog\.sqlite3|\.leases|disks|images|references|disks/scratch\.(vmdk|crc32c)")


@dataclass(frozen=True)
class CommandLine:
    """The program, and the store that it is to use."""

    store: Path

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("IMGSTORE_")}
        return {**kept, "IMGSTORE_STORE": str(self.store), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}

    def words(self, *words: str | Path) -> list[str]:
        return [sys.executable, "-m", "imgstore", *map(str, words)]

    def start(self, *words: str | Path, wrapper: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """Starts a command line; the caller waits for it."""
        return subprocess.Popen(
            [*wrapper, *self.words(*words)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment,
        )

    def run(self, *words: str | Path, wrapper: Sequence[str] = ()) -> subprocess.CompletedProcess[bytes]:
        """Runs a command line to its end, however it ends."""
        return subprocess.run(
            [*wrapper, *self.words(*words)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=self.environment,
            timeout=TIME_MAX,
        )

    def text(self, *words: str | Path) -> str:
        """Runs a command line that must go well, and returns its standard output."""
        done = self.run(*words)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def json(self, *words: str | Path) -> Any:
        return json.loads(self.text(*words, "--format", "json"))

    def fails(self, code: int, *words: str | Path, wrapper: Sequence[str] = ()) -> str:
        """Runs a command line that must fail in good order; returns what `complaint` does."""
        done = self.run(*words, wrapper=wrapper)
        assert done.stdout == b""
        assert code == done.returncode, done.stderr.decode()
        return complaint(done.stderr)

    def assert_empty(self) -> None:
        """No image, nothing wrong, and no file that a store does not have which never had one."""
        with ImageStore.open(str(self.store), create=False) as store:
            assert store.images() == []
            assert list(store.check(read_data=True)) == []
        assert leftovers(self.store) == []


def complaint(stderr: bytes) -> str:
    """The error in what a command said: one line and perhaps a hint, at the end, and no traceback."""
    lines = stderr.decode().splitlines()
    assert "Traceback" not in stderr.decode(), stderr.decode()
    errors = [line for line in lines if line.startswith("imgstore: ")]
    assert len(errors) == 1, lines
    assert lines[-1] == errors[0] or (lines[-2] == errors[0] and lines[-1].startswith("hint: ")), lines
    assert not errors[0].startswith("imgstore: unexpected"), errors
    return errors[0]


def paths(store: Path) -> list[str]:
    """Every path in a store."""
    return sorted(str(path.relative_to(store)) for path in store.rglob("*"))


def leftovers(store: Path) -> list[str]:
    """What lies in a store beside what one without images has."""
    return [path for path in paths(store) if not _ALWAYS.fullmatch(path)]


def litter(store: Path) -> list[str]:
    """What no store has while nobody uses it: stagings, locks, leases, SQLite's log."""
    return [path for path in paths(store) if re.search(r"\.part|\.lock$|^\.leases/|-wal$|-shm$|\.tmp", path)]


def contents(store: Path) -> dict[str, str]:
    """Digest of every file of disks, images and references."""
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for part in ("disks", "images", "references")
        for path in sorted((store / part).rglob("*"))
        if path.is_file()
    }
