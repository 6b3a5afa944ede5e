"""Snapshot disks: hosted sparse VMDKs, read and written as block devices. Knows files only by their bytes."""

from imgstore.vmdk.chain import Chain, open_chain
from imgstore.vmdk.check import Finding, check_disk
from imgstore.vmdk.descriptor import Descriptor, derive_cid
from imgstore.vmdk.hosted import DiskSummary, HostedDisk, HostedDiskWriter, open_disk
from imgstore.vmdk.snapshot import SnapshotDevice

__all__ = [
    "Chain",
    "Descriptor",
    "DiskSummary",
    "Finding",
    "HostedDisk",
    "HostedDiskWriter",
    "SnapshotDevice",
    "check_disk",
    "derive_cid",
    "open_chain",
    "open_disk",
]
