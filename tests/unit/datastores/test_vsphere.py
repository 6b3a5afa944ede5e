from __future__ import annotations

import pytest

from imgstore.datastores.vsphere import DatastoreDescription, describe
from imgstore.errors import UnavailableError
from imgstore.vsphere.soap import vim


def summary(kind: str, *, accessible: bool = True, maintenance: str = "normal") -> vim.Datastore.Summary:
    return vim.Datastore.Summary(
        name="DS", type=kind, capacity=1 << 40, freeSpace=1 << 30, accessible=accessible, maintenanceMode=maintenance
    )


def vmfs(version: int) -> vim.host.VmfsDatastoreInfo:
    return vim.host.VmfsDatastoreInfo(name="DS", vmfs=vim.host.VmfsVolume(majorVersion=version))


@pytest.mark.parametrize(
    ("kind", "info", "expected"),
    [
        ("VMFS", vmfs(5), "VMFS 5"),
        ("VMFS", vmfs(6), "VMFS 6"),
        ("VMFS", vim.host.VmfsDatastoreInfo(name="DS"), "VMFS"),
        ("NFS", vim.host.NasDatastoreInfo(name="DS"), "NFS"),
        ("NFS41", vim.host.NasDatastoreInfo(name="DS"), "NFS41"),
        ("OTHER", vim.host.LocalDatastoreInfo(name="DS"), "local"),
        ("vsan", vim.Datastore.Info(name="DS"), "vsan"),
        ("VVOL", vim.Datastore.Info(name="DS"), "VVOL"),
    ],
)
def test_a_datastore_says_of_what_kind_it_is(kind: str, info: vim.Datastore.Info, expected: str) -> None:
    assert describe(summary(kind), info) == DatastoreDescription("DS", expected, 1 << 40, 1 << 30)


def test_one_that_cannot_be_used_is_unavailable() -> None:
    with pytest.raises(UnavailableError, match=r"^\[DS\]: no host reaches the datastore$"):
        describe(summary("VMFS", accessible=False), vmfs(6))
    with pytest.raises(UnavailableError, match=r"^\[DS\]: the datastore is in maintenance \(inMaintenance\)$"):
        describe(summary("VMFS", maintenance="inMaintenance"), vmfs(6))
