"""Snapshot disks: hosted sparse VMDKs, read and written as block devices. Knows files only by their bytes."""

from imgstore.vmdk.chain import Chain, open_chain
from imgstore.vmdk.check import Finding, check_disk
from imgstore.vmdk.child import random_cid, write_child
from imgstore.vmdk.descriptor import Descriptor, derive_cid
from imgstore.vmdk.editor import EditedDisk
from imgstore.vmdk.hosted import DiskSummary, HostedDisk, HostedDiskWriter, open_disk
from imgstore.vmdk.intent import apply_intent
from imgstore.vmdk.snapshot import SnapshotDevice

__all__ = [
    "Chain",
    "Descriptor",
    "DiskSummary",
    "EditedDisk",
    "Finding",
    "HostedDisk",
    "HostedDiskWriter",
    "SnapshotDevice",
    "apply_intent",
    "check_disk",
    "derive_cid",
    "open_chain",
    "open_disk",
    "random_cid",
    "write_child",
]
