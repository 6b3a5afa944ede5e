"""The sessions and programs in ``docs/``: run as they stand, beside a copy of the test images."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.console import blocks, environment, normal, play, steps
from tests.tools import need

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
DOCUMENTS = sorted(path for path in DOCS.rglob("*.md") if blocks(path, "console") or blocks(path, "python"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """What stands for a checkout: the test images, and ``imgstore`` on the PATH."""
    place = tmp_path / "imgstore"
    shutil.copytree(ROOT / "testdata", place / "testdata")
    program = tmp_path / "bin/imgstore"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -W error -m imgstore "$@"\n')
    program.chmod(0o755)
    return place


@pytest.mark.parametrize("document", DOCUMENTS, ids=[path.stem for path in DOCUMENTS])
def test_document(document: Path, place: Path) -> None:
    settings = environment()
    settings["PATH"] = f"{place.parent}/bin:{settings['PATH']}"
    script = steps(document)
    if any("qemu-img" in step.command for step in script):
        need("qemu-img")
    printed = play([step.command for step in script], place, settings)
    expected = [(step.command, normal(step.output, place)) for step in script]
    assert expected == [(step.command, normal(lines, place)) for step, lines in zip(script, printed, strict=True)]
    for program in blocks(document, "python"):
        python = [sys.executable, "-W", "error", "-c", program]
        done = subprocess.run(python, cwd=place, env={**settings, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
        assert done.stderr == ""
        assert re.findall(r"\)  # (.*)", program) == done.stdout.splitlines()
