"""``imgstore images --filter`` and ``imgstore prune``."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgstore.store import ImageStore
from tests.command_line import REFERENCE, CommandLine, leftovers


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    cli = CommandLine(tmp_path / "store")
    with ImageStore.open(str(cli.store)) as store:
        store.pull(REFERENCE)
    return cli


def test_filters(cli: CommandLine) -> None:
    title = "label=org.opencontainers.image.title"
    assert len(cli.json("images", "--filter", title)) == len(cli.json("images", "three-*")) == 1
    assert cli.json("images", "--filter", f"{title}=x") == cli.json("images", "--filter", "dangling=true") == []
    assert cli.json("images", "nosuch") == []
    assert "invalid filter 'bogus'" in cli.fails(2, "images", "--filter", "bogus=1")
    assert "is not KEY=VALUE" in cli.fails(2, "images", "--filter", "bogus")


def test_prune(cli: CommandLine) -> None:
    assert cli.json("prune", "--force") == {"untagged": [], "deleted": [], "reclaimed": 0}
    assert "standard input is no terminal" in cli.fails(2, "prune", "--all")
    assert cli.json("prune", "--all", "--force", "--filter", "until=2020-01-01")["deleted"] == []
    used = cli.json("df")["disk_bytes"]
    pruned = cli.json("prune", "--all", "--force")
    assert (len(pruned["deleted"]), pruned["reclaimed"]) == (4, used)  # the image and its three layers
    assert pruned["untagged"][0] == "three-layers:latest" and leftovers(cli.store) == []
    assert cli.text("prune", "-f").splitlines() == ["Total reclaimed space: 0B"]
