"""e2fsprogs and the kernel on a raw ext4 image: the whole gate, because an exit code of 0 hides half of what e2fsck sees."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.judges.mount import mounted
from tests.judges.tree import tree_of
from tests.tools import need, run

_EXPECTED = (
    re.compile(r"e2fsck \d+\.\d+\S* \(\S+\)"),
    re.compile(r"Pass [1-5]: (Checking|Pass) .*"),
    re.compile(r".*: \d+/\d+ files \(\d+\.\d+% non-contiguous\), \d+/\d+ blocks"),
)


def findings(image: Path) -> list[str]:
    """Everything that ``e2fsck -fn`` and ``dumpe2fs`` have to say against a raw image that nobody has mounted; empty when it is clean."""
    need("e2fsck", "dumpe2fs")
    done = run("e2fsck", "-fn", image, check=False)
    said = (done.stdout + done.stderr).decode(errors="replace").splitlines()
    found = [line for line in said if line.strip() and not any(pattern.fullmatch(line) for pattern in _EXPECTED)]
    if done.returncode != 0:
        found.append(f"e2fsck -fn ended with {done.returncode}")
    if done.returncode & ~0b111:
        return found
    return found + _superblock_findings(image)


def _superblock_findings(image: Path) -> list[str]:
    """What e2fsck overlooks with exit code 0 and not a word: a state that is not clean, an orphan list, a journal to replay."""
    text = run("dumpe2fs", "-h", image).stdout.decode(errors="replace")
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    found = []
    if values.get("Filesystem state") != "clean":
        found.append(f"s_state is {values.get('Filesystem state')!r}, not 'clean'")
    if "First orphan inode" in values:
        found.append(f"s_last_orphan is {values['First orphan inode']}, not 0")
    features = values.get("Filesystem features", "").split()
    if "needs_recovery" in features:
        found.append("needs_recovery is set")
    if "has_journal" in features and values.get("Journal start") != "0":
        found.append(f"journal s_start is {values.get('Journal start')}, not 0")
    return found


def gate(image: Path) -> None:
    """Fails unless the image is clean: exit code 0, no line beyond the passes and the summary, a superblock at rest."""
    found = findings(image)
    assert not found, f"{image} is not clean:\n" + "\n".join(found)


def kernel_gate(image: Path) -> None:
    """``gate``, then a kernel that mounts a copy for writing, walks it with all xattrs, makes and removes files; then ``gate`` again.

    Inconsistent counters and bitmaps, which the kernel only meets when it allocates, end up as an error flag in the superblock.
    """
    gate(image)
    copy = image.with_name(image.name + ".written")
    run("cp", "--sparse=always", image, copy)
    try:
        with mounted(copy, writable=True) as directory:
            tree_of(directory, contents=False)
            _exercise(directory)
        gate(copy)
    finally:
        copy.unlink()


def _exercise(directory: Path) -> None:
    place = directory / ".written-by-the-kernel"
    place.mkdir()
    for number in range(200):
        (place / f"file-{number:03}").write_bytes(b"%d" % number * 2000)
    os.sync()
    for number in range(0, 200, 2):
        (place / f"file-{number:03}").unlink()
