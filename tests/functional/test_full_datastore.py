"""A datastore without a free block: nothing can come, but what is there can be seen, used and removed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command_line import REFERENCE, CommandLine
from tests.tools import need, need_root, run


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[CommandLine]:
    need("mount", "umount")
    need_root()
    directory = tmp_path / "small"
    directory.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", directory)
    yield CommandLine(directory / "store")
    run("umount", directory)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while file.write(bytes(4096)):
            pass


def test_what_is_there_can_be_used_and_removed(cli: CommandLine) -> None:
    image_id = cli.text("pull", "-q", REFERENCE)
    ballast = cli.store.parent / "ballast"
    fill(ballast)
    assert [image["id"] for image in cli.json("images")] == [image_id.strip()]
    assert "hostname" in cli.text("ls", "three-layers", "/etc")
    assert cli.json("check", "--read-data") == []
    cli.text("rm", "three-layers")
    assert cli.json("images") == []
    ballast.unlink()
    assert cli.json("images") == []
    assert cli.json("check", "--read-data") == []
    assert cli.text("pull", "-q", REFERENCE) == image_id
