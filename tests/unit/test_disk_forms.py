"""Disks that a platform made, as only their descriptors tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgstore import disk_forms, layout
from imgstore.datastores.local import LocalDatastore
from imgstore.errors import InvalidError, UnsupportedError
from imgstore.markers import DiskRecord
from imgstore.vmdk.stack import open_disks

STEM = "ab" * 32
CAPACITY = 1 << 26
RECORD = DiskRecord(f"{STEM}.vmdk", CAPACITY, 5, "12c0ffee", "", "", merged=True, format="vmfs")


@pytest.mark.parametrize("name", [*layout.disk_files(STEM), f"{STEM}.json", f"{STEM}.merged.crc32c"])
def test_files_of_a_layer(name: str) -> None:
    assert layout.layer_of(name) == f"sha256:{STEM}"
    assert f"disks/{name}" in layout.layer_files(f"sha256:{STEM}")


@pytest.mark.parametrize("name", ["scratch-delta.vmdk", f"{STEM}-delta.json", f"{STEM}-flat-flat.vmdk", "blank.vmdk"])
def test_files_of_no_layer(name: str) -> None:
    assert layout.layer_of(name) is None


def put(directory: Path, extent: str, cid: str = "12c0ffee") -> None:
    (directory / "disks").mkdir(exist_ok=True)
    (directory / f"disks/{STEM}.vmdk").write_text(
        f'# Disk DescriptorFile\nversion=4\nencoding="UTF-8"\nCID={cid}\nparentCID=ffffffff\nisNativeSnapshot="no"\ncreateType="vmfs"\n\n'
        f'# Extent description\nRW {CAPACITY // 512} VMFS "{extent}"\n\n# The Disk Data Base\n#DDB\n\nddb.adapterType = "lsilogic"\n'
    )


def test_an_object_of_vsan_is_a_disk_that_cannot_be_read(tmp_path: Path) -> None:
    put(tmp_path, "vsan://f252ae55-2577-c9f5-98b7-001517a69c72")
    with LocalDatastore(tmp_path) as datastore:
        assert list(disk_forms.problems(datastore, RECORD, CAPACITY)) == []
        with pytest.raises(UnsupportedError, match=r"its data are in vsan://f252.*, which only the platform reads"):
            open_disks(datastore.open, f"disks/{STEM}.vmdk")


@pytest.mark.parametrize("extent", ["../other-flat.vmdk", "http://host/x", "vsan://", "vsan://a b"])
def test_extents_elsewhere(tmp_path: Path, extent: str) -> None:
    put(tmp_path, extent)
    with LocalDatastore(tmp_path) as datastore:
        ((_, problem),) = disk_forms.problems(datastore, RECORD, CAPACITY)
    assert "is not a plain base name" in problem


def test_a_disk_that_was_written(tmp_path: Path) -> None:
    put(tmp_path, f"{STEM}-flat.vmdk", "00000007")
    with LocalDatastore(tmp_path) as datastore:
        ((_, problem),) = disk_forms.problems(datastore, RECORD, CAPACITY)
    assert problem.endswith("its content id is 00000007, its marker says 12c0ffee")


def test_a_blank_disk_of_another_size(tmp_path: Path) -> None:
    with LocalDatastore(tmp_path) as datastore:
        disk_forms.make_blank(datastore, CAPACITY)
        assert disk_forms.make_blank(datastore, CAPACITY).capacity == CAPACITY
        with pytest.raises(InvalidError, match="is a disk of 67108864 bytes, those of the store have 134217728"):
            disk_forms.make_blank(datastore, 2 * CAPACITY)
