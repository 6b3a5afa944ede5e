"""A flattening that is killed, or that the storage fails, at every step: the image is as before or flattened, and never damaged."""

from __future__ import annotations

import errno
import io
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imgstore.errors import ImgstoreError, NoSpaceError, UnavailableError
from imgstore.store import ImageStore
from tests.command_line import REFERENCE, litter
from tests.faults.container_worker import DONE, IMAGE, KILLED
from tests.faults.test_container_crashes import work


def seen(store: ImageStore) -> tuple[bytes, bytes]:
    """All that the image shows, and all its layers."""
    tree = io.BytesIO()
    store.export(IMAGE, tree)
    return tree.getvalue(), b"".join(map(bytes, store.save([IMAGE])))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "store"
    with ImageStore.create(str(path), disk_size=64 << 20) as store:
        store.pull(REFERENCE)
    return path


@pytest.fixture(scope="module")
def expected(template: Path) -> tuple[bytes, bytes]:
    with ImageStore.open(str(template)) as store:
        return seen(store)


def look(location: Path, expected: tuple[bytes, bytes]) -> int:
    """What the next who opens the store finds: the depth; the image is whole, and nothing is left over."""
    with ImageStore.open(str(location)) as store:
        assert seen(store) == expected, location.name
        assert list(store.check()) == [], location.name
        depth = len(store.disk_paths(IMAGE))
        assert list(store.image(IMAGE).disks) == store.disk_paths(IMAGE), location.name
    files = [path.name for path in (location / "disks").iterdir()]
    assert len(files) == 2 + 3 * 4, location.name  # two of the scratch disk, four of each layer
    assert litter(location) == [], location.name
    return depth


def test_a_kill_at_any_step(template: Path, tmp_path: Path, expected: tuple[bytes, bytes]) -> None:
    stores = work("flatten", template, tmp_path, 3)
    assert [ended for _, ended in stores] == [KILLED] * (len(stores) - 1) + [DONE]
    halfway = 0
    depths = []
    for location, _ in stores:
        halfway += any("replacement" in marker.read_text() for marker in (location / "disks").glob("*.json"))
        depths.append(look(location, expected))
    assert depths == sorted(depths, reverse=True) and set(depths) == {4, 2}
    assert halfway >= 3
    with ImageStore.open(str(stores[0][0])) as store:
        assert store.flatten(IMAGE, 2).after == 2


def test_a_killed_pull_into_a_shallow_store(tmp_path: Path, expected: tuple[bytes, bytes]) -> None:
    with ImageStore.create(str(tmp_path / "template"), disk_size=64 << 20, max_depth=2):
        pass
    stores = work("pull", tmp_path / "template", tmp_path, 19)
    assert [ended for _, ended in stores] == [KILLED] * (len(stores) - 1) + [DONE]
    for location, _ in stores[-4:]:
        with ImageStore.open(str(location)) as store:
            assert all(len(image.disks) <= 2 for image in store.images()), "nobody sees a deeper one"
            store.pull(REFERENCE)
        assert look(location, expected) == 2


def fail_at(patch: pytest.MonkeyPatch, name: str, number: int, code: int) -> Callable[[], bool]:
    """Makes the n-th call fail, and all after it for a full disk; tells whether it came to that."""
    call = getattr(os, name)
    numbers = itertools.count(1)
    failed = False

    def failing(*arguments: Any, **options: Any) -> Any:
        nonlocal failed
        if (current := next(numbers)) == number or (code == errno.ENOSPC and current > number):
            failed = True
            raise OSError(code, os.strerror(code))
        return call(*arguments, **options)

    patch.setattr(os, name, failing)
    return lambda: failed


@pytest.mark.parametrize(
    ("name", "code", "kind"),
    [("pwrite", errno.ENOSPC, NoSpaceError), ("fsync", errno.EIO, UnavailableError), ("rename", errno.EIO, UnavailableError)],
)
def test_an_error_at_any_step(
    tmp_path: Path, expected: tuple[bytes, bytes], name: str, code: int, kind: type[ImgstoreError]
) -> None:
    depths = []
    location = tmp_path / "store"
    for number in range(1, 100):
        with ImageStore.open(str(location)) as store:
            if not store.images() or len(store.disk_paths(IMAGE)) == 2:
                if store.images():
                    store.remove(IMAGE)
                store.pull(REFERENCE)
            with pytest.MonkeyPatch.context() as patch:
                failed = fail_at(patch, name, number, code)
                try:
                    store.flatten(IMAGE, 2)
                except kind:
                    assert failed()
            assert seen(store) == expected, f"{name} {number}"
        depths.append(look(location, expected))
        if not failed():
            break
    else:
        pytest.fail("there are more steps than were tried")
    assert depths[0] == 4 and depths[-1] == 2
