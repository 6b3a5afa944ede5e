"""Copies into containers that go wrong: hostile, cut off or too large archives, and kills. The container is as before, or as after.

Races like that of CVE-2018-15664 have no place: whoever writes has the disk alone, and looks a path up in what it writes.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgstore.answers import Mount
from imgstore.errors import CorruptError, ImgstoreError, InUseError, InvalidError, NoSpaceError
from imgstore.stop import Stop, StoppedError
from imgstore.store import ImageStore
from tests.archive_members import directory, entry, file_of, link, make_tar, names_of
from tests.faults.container_worker import DONE, KILLED
from tests.faults.copy_worker import copy
from tests.hostile_tars import HOSTILE, TREE_ATTACKS

ROOT = Path(__file__).parents[2]
CAPACITY = 64 << 20
IMAGE = make_tar(
    directory("data"),
    (entry("data/file"), b"old"),
    directory("data/v"),
    link("out", "/../../.."),
    directory("tmp"),
    link("tmp/up", ".."),
)
ATTACKS = {**{what: tar.data for what, tar in HOSTILE.items()}, **TREE_ATTACKS}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a container that has a volume."""
    path = tmp_path_factory.mktemp("template") / "store"
    with ImageStore.create(str(path), disk_size=CAPACITY) as store:
        store.import_image(io.BytesIO(IMAGE), reference="base")
        store.create_volume("vv", options={"Capacity": "64"})
        store.create_container("base", name="one", mounts=[Mount("vv", "/data/v")], config={"Cmd": ["x"]})
    return path


@pytest.fixture
def store(template: Path, tmp_path: Path) -> Iterator[ImageStore]:
    shutil.copytree(template, tmp_path / "store", symlinks=True)
    with ImageStore.open(str(tmp_path / "store")) as store:
        yield store
        assert list(store.check()) == []


def state(store: ImageStore) -> str:
    """All that the container shows."""
    _, pieces = store.copy_from_container("one", "/")
    return hashlib.sha256(b"".join(pieces)).hexdigest()


def copy_in(store: ImageStore, tar: bytes, path: str = "/") -> None:
    store.copy_to_container("one", path, io.BytesIO(tar))


def test_hostile_archives_change_all_or_nothing(store: ImageStore) -> None:
    """What they may do inside is compared with dockerd; here each is refused whole, or leaves a file system that is whole."""
    refused = 0
    for what, tar in ATTACKS.items():
        before = state(store)
        try:
            copy_in(store, tar, "/tmp")
        except ImgstoreError:
            refused += 1
            assert before == state(store), what
    assert refused > len(HOSTILE) * 3 // 4
    assert file_of(store.copy_from_container("one", "/data/file")[1], "file") == b"old"
    assert list(store.check()) == []


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (entry("data"), r"unlinkat /data: device or resource busy"),
        (entry("data/v"), r"unlinkat /data/v: device or resource busy"),
        (link("data/v", "x"), r"unlinkat /data/v: device or resource busy"),
    ],
    ids=["above the mount", "the mount", "a link for the mount"],
)
def test_a_mounted_volume_is_not_replaced(store: ImageStore, member: object, words: str) -> None:
    copy_in(store, make_tar((entry("data/v/precious"), b"x")))
    before = state(store)
    with pytest.raises(InUseError, match=words):
        copy_in(store, make_tar((entry("first"), b"x"), member))  # type: ignore[arg-type]
    assert before == state(store)


def test_links_that_point_out_of_the_tree(store: ImageStore) -> None:
    copy_in(
        store, make_tar((entry("out/escaped"), b"1"), (entry("tmp/up/up/climbed"), b"2"), (entry("out/tmp/up/data/file"), b"3"))
    )
    expected = ["data", "data/file", "data/v", "escaped", "out", "tmp", "tmp/up", "up", "up/climbed"]
    assert expected == names_of(store.export_container("one"))
    assert file_of(store.copy_from_container("one", "/tmp/up/out/data/file")[1], "file") == b"3"


def test_an_archive_that_is_cut_off(store: ImageStore) -> None:
    before = state(store)
    tar = make_tar((entry("a"), b"x" * 3000), (entry("data/v/b"), b"y" * 70_000), (entry("c"), b"z"))
    for length in (100, 512, 700, 3500, 4100, 4700, 40_000):
        with pytest.raises(CorruptError):
            copy_in(store, tar[:length])
    with pytest.raises(InvalidError):
        copy_in(store, tar, "/data/file")
    assert before == state(store)


def test_more_than_fits(store: ImageStore) -> None:
    before = state(store)
    noise = random.Random(1).randbytes(1 << 20)
    with pytest.raises(NoSpaceError, match="blocks"):
        copy_in(store, make_tar((entry("data/v/in-volume"), b"x"), (entry("small"), b"x"), (entry("large"), noise * 70)))
    with pytest.raises(NoSpaceError):
        copy_in(store, make_tar((entry("small"), b"x"), (entry("data/v/large"), noise * 70)))
    assert before == state(store)
    copy_in(store, make_tar((entry("fits"), noise * 20)))
    assert file_of(store.copy_from_container("one", "fits")[1], "fits") == noise * 20


def test_it_can_be_stopped(store: ImageStore) -> None:
    before, stop = state(store), Stop()

    class Stopping(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(4096)
            if not data:
                stop.set()
            return data

    with pytest.raises(StoppedError):
        body = Stopping(make_tar(*[(entry(f"f{number}"), b"x" * 3000) for number in range(100)]))
        store.copy_to_container("one", "/", body, stop=stop)
    assert before == state(store)


def test_kills(template: Path, tmp_path: Path) -> None:
    """Own disk and volume are each as before or as after; the next start mends what was begun."""
    command = [sys.executable, "-m", "tests.faults.copy_worker", str(template), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stderr) == (0, "")
    ended = [int(line.split()[1]) for line in done.stdout.splitlines()]
    assert [KILLED] * (len(ended) - 1) + [DONE] == ended
    seen = set()
    for number in range(1, len(ended) + 1):
        with ImageStore.open(str(tmp_path / str(number))) as store:
            names = names_of(store.copy_from_container("one", "/")[1])
            seen.add(("/data/new" in names, "/data/v/new" in names))
            assert list(store.check()) == [], number
            copy(store)
    assert {(False, False), (True, True)} <= seen <= {(False, False), (False, True), (True, True)}
