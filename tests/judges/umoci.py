"""umoci's reading of an image: the layers unpacked into a directory of the host."""

from __future__ import annotations

from pathlib import Path

from tests.tools import need, need_root, run


def unpack(layout: Path, tag: str, directory: Path) -> Path:
    """Unpacks an image of an OCI layout into ``directory``, which must not exist yet, and returns it."""
    need_root()
    need("umoci")
    run("umoci", "raw", "unpack", "--image", f"{layout}:{tag}", directory)
    return directory
