"""``import imgstore``: what the command line has no word for."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

import imgstore
from registry_client.credentials import Credential
from registry_client.options import Options
from tests.servers.images import build_image, make_tar, write_layout
from tests.servers.registry import Registry


def test_nobody_is_a_credential_too(tmp_path: Path) -> None:
    """An empty credential means that nothing is sent, whatever the store would send."""
    with Registry(auth="basic") as registry:
        registry.add_image("app", "1", [make_tar({"file": b""})])
        options = Options(credential=Credential(registry.username, registry.password))
        with imgstore.ImageStore.open(str(tmp_path / "store"), registries=options) as store:
            with pytest.raises(imgstore.DeniedError, match="may require 'docker login'"):
                store.pull(f"{registry.host}/app:1", credential=Credential())
            store.pull(f"{registry.host}/app:1")


def test_a_pull_leaves_no_file_open(tmp_path: Path) -> None:
    """Layers that come before their turn wait in files without a name, which take space as long as they are open."""
    layers = [make_tar({"data": random.Random(number).randbytes(6_000_000)}) for number in range(4)]
    layout = write_layout(tmp_path / "layout", {"1": build_image(layers)})
    imgstore.ImageStore.create(str(tmp_path / "store"), disk_size=64 << 20).close()
    with imgstore.ImageStore.open(str(tmp_path / "store")) as store:
        store.pull(f"oci:{layout}:1")
        targets = [path.readlink() for path in Path("/proc/self/fd").iterdir() if os.path.lexists(path)]
        assert [target for target in targets if target.is_relative_to(tmp_path) and target.name.endswith(" (deleted)")] == []
