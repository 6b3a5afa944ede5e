"""The sessions and programs in ``docs/``: run as they stand, beside a copy of the test images.

Where they speak of ``harbor.example.com``, there is a registry under that name, with an authority that no system trusts.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.console import blocks, environment, normal, play, steps
from tests.servers.authority import Authority
from tests.servers.proxy import Proxy
from tests.servers.registry import Registry
from tests.tools import need

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
HARBOR = "harbor.example.com"
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


@contextmanager
def harbor(place: Path) -> Iterator[dict[str, str]]:
    """Runs what stands for a Harbor: a project with a robot account, and one that is a proxy cache. Yields settings to reach it.

    The test image is what is in both. ``harbor-ca.crt`` in the checkout is the authority's certificate.
    """
    authority = Authority(place.parent / "authority")
    shutil.copy(authority.ca_file, place / "harbor-ca.crt")
    context = authority.server_context(authority.issue("harbor", HARBOR))
    layout = place / "testdata/three-layers"
    (entry,) = json.loads((layout / "index.json").read_bytes())["manifests"]
    blobs = [path.read_bytes() for path in (layout / "blobs/sha256").iterdir()]
    manifest = (layout / "blobs/sha256" / entry["digest"].removeprefix("sha256:")).read_bytes()
    with Registry(auth="bearer", username="robot$team+ci", password="s3cret", tls=context) as registry:
        registry.realm = f"https://{HARBOR}/token"
        for repository, tags in {"team/app": ("1.0", "1.1"), "hub/library/busybox": ("1.36",)}.items():
            for data in blobs:
                registry.add_blob(repository, data)
            for tag in tags:
                registry.add_manifest(repository, tag, manifest, entry["mediaType"])
        with Proxy(names={f"{HARBOR}:443": registry.host}) as proxy:
            yield {"HTTPS_PROXY": proxy.url}


@pytest.mark.parametrize("document", DOCUMENTS, ids=[path.stem for path in DOCUMENTS])
def test_document(document: Path, place: Path) -> None:
    # A session that names no store must not get the machine's.
    settings = environment(HOME=str(place.parent), XDG_DATA_HOME=str(place.parent / "data"))
    settings["PATH"] = f"{place.parent}/bin:{settings['PATH']}"
    code = "".join(blocks(document, "console") + blocks(document, "python"))
    if "qemu-img" in code:
        need("qemu-img")
    if "qemu-system-x86_64" in code:
        need("qemu-system-x86_64")
    if "DOCKER_HOST" in code:
        need("docker")
    if HARBOR in code:
        with harbor(place) as reach:
            run_document(document, place, settings | reach)
    else:
        run_document(document, place, settings)


def run_document(document: Path, place: Path, settings: dict[str, str]) -> None:
    script = steps(document)
    printed = play([step.command for step in script], place, settings)
    expected = [(step.command, normal(step.output, place)) for step in script]
    assert expected == [(step.command, normal(lines, place)) for step, lines in zip(script, printed, strict=True)]
    for program in blocks(document, "python"):
        python = [sys.executable, "-W", "error", "-c", program]
        done = subprocess.run(python, cwd=place, env={**settings, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
        assert done.stderr == ""
        assert re.findall(r"\)  # (.*)", program) == done.stdout.splitlines()
