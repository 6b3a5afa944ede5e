"""The outside programs that judge us. A missing one skips the test, or fails it under ``--require-tools``, as CI runs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

REQUIRED = False
"""Set by ``--require-tools``."""


def missing(what: str) -> None:
    """Skips the test that asked, or fails it where everything is required."""
    if REQUIRED:
        pytest.fail(f"{what} is missing, and --require-tools was given")
    pytest.skip(f"{what} is missing")


def need(*programs: str) -> None:
    """Skips or fails unless every program is on the PATH (or in /sbin and /usr/sbin)."""
    for program in programs:
        if shutil.which(program, path=_path()) is None:
            missing(program)


def need_root() -> None:
    """Skips or fails unless we are root: loop mounts ask for it."""
    if os.geteuid() != 0:
        missing("root (loop mounts)")


def run(*command: str | Path, check: bool = True, input: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """Runs a program to its end and returns what it printed; its failure is an AssertionError with its words."""
    done = subprocess.run([str(word) for word in command], capture_output=True, input=input, env=_environment())
    if check and done.returncode != 0:
        words = (done.stdout + done.stderr).decode(errors="replace")
        raise AssertionError(f"{_line(command)} ended with {done.returncode}:\n{words}")
    return done


def _line(command: Sequence[str | Path]) -> str:
    return " ".join(str(word) for word in command)


def _path() -> str:
    return os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": _path(), "LC_ALL": "C.UTF-8"}
