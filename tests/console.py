"""Sessions in Markdown: what a document says that a shell prints, and what a shell prints.

A block marked ``console`` is a session: a line that begins with ``$ `` is a command, one that begins with ``> `` goes on with it, all
others are what it prints, standard error included. All sessions of a document are one shell.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

HOME = "/home/me"
CHECKOUT = f"{HOME}/imgstore"
"""Where the documents say that the checkout is."""

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_END = "\x1e"


@dataclass
class Step:
    """One command of a session, and the lines that it prints."""

    command: str
    output: list[str] = field(default_factory=list)


def blocks(document: Path, language: str) -> list[str]:
    """The code blocks of a document that are marked as of this language."""
    return [found[2] for found in _BLOCK.finditer(document.read_text()) if found[1] == language]


def steps(document: Path) -> list[Step]:
    """The steps of all sessions of a document."""
    found: list[Step] = []
    for block in blocks(document, "console"):
        lines = block.splitlines()
        assert lines and lines[0].startswith("$ "), f"{document}: a session begins with a command"
        for line in lines:
            if line.startswith("$ "):
                found.append(Step(line[2:]))
            elif line.startswith("> "):
                found[-1].command += "\n" + line[2:]
            else:
                found[-1].output.append(line)
    return found


def play(commands: list[str], directory: Path, environment: Mapping[str, str]) -> list[list[str]]:
    """The lines that each command prints, all run by one bash in this directory, no matter how they end."""
    script = "exec 2>&1\n" + "".join(f"{command}\nprintf '{_END}'\n" for command in commands)
    done = subprocess.run(
        ["bash", "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        cwd=directory,
        env=dict(environment),
        timeout=500,
    )
    printed = done.stdout.decode().split(_END)
    assert len(printed) == len(commands) + 1, f"the shell ended early: {printed}"
    return [text.splitlines() for text in printed[:-1]]


def normal(lines: list[str], directory: Path | str) -> list[str]:
    """Output without what differs from run to run: place, age, ids, versions, sizes below, the order of layers in progress."""
    kept: list[str] = []
    layers: list[str] = []
    for line in lines:
        line = line.replace(str(directory), CHECKOUT).replace(str(Path(directory).parent), HOME)
        line = re.sub(r"\b(?:About an?|\d+) (?:second|minute|hour|day|week|month|year)s? ago", "AGO", line)
        line = re.sub(r"\bcontainer [0-9a-f]{12}\b", "container ID", line)
        line = re.sub(r"^(e2fsck|debugfs) \d.*", r"\1", line)
        line = re.sub(r"^((?:Layer disks|Scratch disk|Configs and names|Catalog|Free space) +\d* +)\d.*", r"\1SIZE", line)
        line = re.sub(r"( AGO +.*?)\d[\d.]*(?:B|[kMG]B)( *)$", r"\1SIZE", line)  # blocks of the file system below
        line = re.sub(r"([0-9a-f]{12} +(?:\d+ +\d+ +)?)\d[\d.]*[kMG]?B(?= +\d+$|$)", r"\1SIZE", line)
        if re.match(r"[0-9a-f]{12}: ", line):
            # How far one layer is when another begins is chance, and so is whether its download is ever seen to run.
            if not line.endswith((": Downloading", ": Waiting")):
                layers.append(line)
        else:
            kept += [*sorted(layers), line]
            layers = []
    return kept + sorted(layers)


def environment(**more: str) -> dict[str, str]:
    """The environment of a user who has set nothing: no store, no virtual environment; sbin is on the PATH, as for root."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("IMGSTORE", "PYTHON", "VIRTUAL_ENV", "XDG_"))
    }
    path = f"{kept.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"
    return {**kept, "PATH": path, "LC_ALL": "C.UTF-8", "TERM": "dumb", **more}
