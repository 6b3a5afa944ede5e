"""Datastores that several processes use at once, and datastores that are really full."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgstore.datastores import LocalDatastore
from imgstore.errors import NoSpaceError
from tests.tools import need, need_root, run

ROOT = Path(__file__).parents[2]

PUBLISHER = """
import sys
from imgstore.datastores import LocalDatastore
for number in range(60):
    with LocalDatastore(sys.argv[1]) as datastore:
        name = f"{sys.argv[2]}-{number}"
        with datastore.stage("disks", name) as staging:
            staging.create(name).pwrite(0, b"data")
            staging.publish()
        datastore.write_atomic(f"marks/{name}", b"data")
"""

SWEEPER = """
import sys
from imgstore.datastores import LocalDatastore
while True:
    with LocalDatastore(sys.argv[1]) as datastore:
        datastore.sweep()
"""


def start(code: str, *arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE
    )


def test_sweeps_take_nothing_from_those_who_publish(tmp_path: Path) -> None:
    sweepers = [start(SWEEPER, tmp_path) for _ in range(2)]
    publishers = [start(PUBLISHER, tmp_path, name) for name in ("a", "b")]
    try:
        for publisher in publishers:
            assert publisher.communicate()[1] == b""
        assert [sweeper.poll() for sweeper in sweepers] == [None, None], sweepers[0].stderr
    finally:
        for sweeper in sweepers:
            sweeper.kill()
            sweeper.communicate()
    with LocalDatastore(tmp_path) as datastore:
        expected = sorted(f"{name}-{number}" for name in ("a", "b") for number in range(60))
        assert datastore.list("disks") == datastore.list("marks") == expected
        assert all(datastore.read_bytes(f"disks/{name}") == b"data" for name in expected)
        datastore.sweep()
    assert list(tmp_path.glob(".*")) == []


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    need_root()
    need("mount", "umount")
    directory = tmp_path / "small"
    directory.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=1M,nr_inodes=20", "tmpfs", directory)
    yield directory
    run("umount", directory)


def test_a_full_file_system_is_told_and_given_back(small: Path) -> None:
    with LocalDatastore(small) as datastore:
        for _ in range(3):
            for length in ((2 << 20) - 1, 2 << 20):  # through the cache, and around it, where another thread writes
                with datastore.stage("disks", "a") as staging:
                    file = staging.create("x")
                    with pytest.raises(NoSpaceError, match="disks/x: cannot "):
                        file.pwrite(0, bytes(length))
                        file.fsync()
            with datastore.stage("disks", "a") as staging:
                staging.create("x").pwrite(0, bytes(2 << 20))
                with pytest.raises(NoSpaceError, match="disks/a: cannot publish it"):
                    staging.publish()
                assert datastore.list("disks") == []
        with datastore.stage("disks", "a") as staging:
            with staging.create("x") as file:
                file.pwrite(0, bytes(1 << 19))
            staging.publish()
        with pytest.raises(NoSpaceError, match="mark: cannot write it"):
            datastore.write_atomic("mark", bytes(1 << 20))
        assert datastore.list() == ["disks"]
        assert list(datastore.sweep()) == []


def test_a_file_system_without_inodes_is_told(small: Path) -> None:
    with LocalDatastore(small) as datastore:
        with datastore.stage("disks", "a") as staging, pytest.raises(NoSpaceError, match=r"disks/[0-9]+: cannot create it"):
            for number in range(30):
                staging.create(str(number))
        assert datastore.list("disks") == []
