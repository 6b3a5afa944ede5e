"""Images that cost seconds to build are built once a session, when a test first asks for them, and removed at its end."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.images.alpine import build_alpine
from tests.images.debian import build_debian
from tests.images.kinds import build_beyond_umoci, build_kinds
from tests.images.layout import Image
from tests.images.sizes import build_gnu_sparse, build_many_files, build_many_layers, build_sparse, build_wide
from tests.servers.docker_registry import DockerRegistry, docker_registry

BUILDERS: dict[str, Callable[[Path], Image]] = {
    "alpine": build_alpine,
    "beyond-umoci": build_beyond_umoci,
    "debian": build_debian,
    "gnu-sparse": build_gnu_sparse,
    "kinds": build_kinds,
    "many-files": build_many_files,
    "many-layers": build_many_layers,
    "sparse": build_sparse,
    "wide": build_wide,
}


@pytest.fixture(scope="session")
def build_image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Image]]:
    """A function from the name of an image to the image."""
    built: dict[str, Image] = {}
    root = tmp_path_factory.mktemp("images")

    def build(name: str) -> Image:
        if name not in built:
            directory = root / name
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            built[name] = BUILDERS[name](directory)
        return built[name]

    yield build
    shutil.rmtree(root)


@pytest.fixture(scope="session")
def second_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """Another one, which has nothing but what stores push to it."""
    directory = tmp_path_factory.mktemp("second-registry")
    with docker_registry(directory) as running:
        yield running
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """A real registry that all tests of the session push to."""
    directory = tmp_path_factory.mktemp("registry")
    with docker_registry(directory) as running:
        yield running
    shutil.rmtree(directory)
