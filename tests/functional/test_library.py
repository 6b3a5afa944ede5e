"""``import imgstore``: what the command line has no word for."""

from __future__ import annotations

from pathlib import Path

import pytest

import imgstore
from registry_client.credentials import Credential
from registry_client.options import Options
from tests.servers.images import make_tar
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
