"""Flattened chains as other programs see them: what the deep one showed, byte for byte."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from imgstore.store import ImageStore
from tests.judges import e2fsck, vmdk
from tests.servers.images import build_image, make_tar, write_docker_archive

SIZE = 64 << 20


@pytest.mark.parametrize("depth", [1, 4])
def test_all_readers_see_what_they_saw(tmp_path: Path, depth: int) -> None:
    layers = [make_tar({f"file{number}": b"%d" % number * 50_000, "same": b"%d" % number * 99}) for number in range(9)]
    archive = write_docker_archive(tmp_path / "archive.tar", {"app:1": build_image(layers)})
    with ImageStore.create(str(tmp_path / "store"), disk_size=SIZE) as store:
        list(store.load(archive))
        vmdk.convert(Path(store.disk_paths("app:1")[-1]), tmp_path / "before")
        below = {path: path.read_bytes() for path in map(Path, store.disk_paths("app:1")[: 9 - depth])}
        container = store.create_container("app:1", config={"Cmd": ["/same"]})
        store.copy_to_container(container.id, "/", io.BytesIO(make_tar({"new": b"new"})))
        vmdk.convert(Path(store.container_disk_paths(container.id)[-1]), tmp_path / "container")
        store.flatten("app:1", depth)
        disks = [Path(path) for path in store.disk_paths("app:1")]
        own = Path(store.container_disk_paths(container.id)[-1])
        assert {path: path.read_bytes() for path in below} == below
    assert len(disks) == depth
    for disk in disks:
        vmdk.check(disk)
    expected = (tmp_path / "before").read_bytes()
    vmdk.convert(disks[-1], tmp_path / "after")
    assert (tmp_path / "after").read_bytes() == expected
    e2fsck.gate(tmp_path / "after")
    with vmdk.libvmdk(disks) as read:
        assert read(0, SIZE) == expected
    with vmdk.dissect(disks[-1]) as read:
        assert read(0, SIZE) == expected
    vmdk.convert(own, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "container").read_bytes()
