"""``alpine:3.10`` as ``docker save`` wrote it, where somebody has put it: it is not ours to distribute."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.images.layout import Image
from tests.tools import need, run

_NAME = "alpine-3.10.docker-archive.tar.gz"


def build_alpine(directory: Path) -> Image:
    """Skips the test where ``$IMGSTORE_TEST_IMAGES`` (or ``../shared/images``) holds no archive of alpine."""
    place = Path(os.environ.get("IMGSTORE_TEST_IMAGES", Path(__file__).parents[3] / "shared" / "images"))
    if not (place / _NAME).exists():
        pytest.skip(f"{_NAME} is not in {place} (IMGSTORE_TEST_IMAGES names another place)")
    need("skopeo")
    archive = directory / "alpine.tar"
    with gzip.open(place / _NAME) as source, archive.open("wb") as sink:
        shutil.copyfileobj(source, sink)
    layout = directory / "layout"
    run("skopeo", "copy", "--quiet", f"docker-archive:{archive}", f"oci:{layout}:latest")
    run("tar", "--extract", "--file", archive, "--directory", directory)
    layers = json.loads((directory / "manifest.json").read_bytes())[0]["Layers"]
    return Image("alpine", layout, tuple(directory / name for name in layers))
