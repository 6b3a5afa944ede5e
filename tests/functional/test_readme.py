"""README.md: its sessions are run as they stand, in a copy of the tree, the installation by pip included."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from tests.console import blocks, environment, normal, play, steps
from tests.tools import missing, need

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.img")


def test_sessions_and_program(tmp_path: Path) -> None:
    need("bash", "qemu-img", "e2fsck", "nbdinfo")
    checkout = Path(shutil.copytree(ROOT, tmp_path / "imgstore", ignore=LEFT_OUT))
    script = steps(README)
    settings = environment(PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_ROOT_USER_ACTION="ignore")
    printed = play([step.command for step in script], checkout, settings)
    if any("No matching distribution found" in line for line in printed[0]):
        missing("a package index")
    expected = [(step.command, normal(step.output, checkout)) for step in script]
    assert expected == [(step.command, normal(lines, checkout)) for step, lines in zip(script, printed, strict=True)]

    (program,) = blocks(README, "python")
    python = [checkout / ".venv/bin/python", "-W", "error", "-c", program]
    done = subprocess.run(python, cwd=checkout, env=environment(), capture_output=True, text=True)
    assert done.stderr == ""
    assert re.findall(r"\)  # (.*)", program) == done.stdout.splitlines()


def test_the_first_two_commands_are_the_two_that_a_stranger_needs() -> None:
    assert steps(README)[0].command.endswith("imgstore --store ./store pull oci:testdata/three-layers")
    assert blocks(README, "sh")[0] == "bash .ci/run\n"
