"""Container images as chains of VMDK snapshot disks.

::

    import imgstore

    with imgstore.ImageStore.open("/var/lib/imgstore") as store:
        pulled = store.pull("harbor.example/library/app:1")
        print(store.disk_paths(pulled.reference)[-1])

Everything here comes from a module below, which is imported when its first name is used: the command line starts without them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imgstore.answers import (
        Container,
        DeviceInfo,
        HistoryItem,
        Image,
        ImageUsage,
        Layer,
        LoadedImage,
        Mount,
        PruneReport,
        PullResult,
        PullStatus,
        PushResult,
        RemoteImage,
        RemoteStore,
        Removal,
        SeedFailure,
        SeedPlan,
        SeedReport,
        StoreInfo,
        Usage,
        Volume,
        VolumePruneReport,
        VolumeSnapshot,
        VolumeStoreInfo,
        VolumeUsage,
    )
    from imgstore.attach.attachment import AttachedDisk
    from imgstore.attach.machine import PluggedDisk, UnpluggedDisk
    from imgstore.attach.qemu import DeviceModel
    from imgstore.changes import FileType
    from imgstore.check import Finding
    from imgstore.errors import (
        AlreadyExistsError,
        CorruptError,
        DeniedError,
        ImgstoreError,
        InUseError,
        InvalidError,
        NoSpaceError,
        NotFoundError,
        PartialError,
        UnavailableError,
        UnsupportedError,
    )
    from imgstore.ext4.reader import FileStatus
    from imgstore.progress import ProgressEvent, ProgressSink, State
    from imgstore.quota import QuotaReport
    from imgstore.rebuild import RebuildReport
    from imgstore.seed_files import SeedImage, parse_seed_file
    from imgstore.stop import Stop
    from imgstore.store import ImageStore
    from imgstore.vsphere.login import VsphereLogin

__all__ = [
    "AlreadyExistsError",
    "AttachedDisk",
    "Container",
    "CopyPlan",
    "CopyResult",
    "CorruptError",
    "DeniedError",
    "DeviceInfo",
    "DeviceModel",
    "FileStatus",
    "FileType",
    "Finding",
    "HistoryItem",
    "Image",
    "ImageStore",
    "ImageUsage",
    "ImgstoreError",
    "InUseError",
    "InvalidError",
    "Layer",
    "LoadedImage",
    "Mount",
    "NoSpaceError",
    "NotFoundError",
    "PartialError",
    "PluggedDisk",
    "ProgressEvent",
    "ProgressSink",
    "PruneReport",
    "PullResult",
    "PullStatus",
    "PushResult",
    "QuotaReport",
    "RebuildReport",
    "RemoteImage",
    "RemoteStore",
    "Removal",
    "SeedFailure",
    "SeedImage",
    "SeedPlan",
    "SeedReport",
    "State",
    "Stop",
    "StoreInfo",
    "UnavailableError",
    "UnpluggedDisk",
    "UnsupportedError",
    "Usage",
    "Volume",
    "VolumePruneReport",
    "VolumeSnapshot",
    "VolumeStoreInfo",
    "VolumeUsage",
    "VsphereLogin",
    "parse_seed_file",
]

_ELSEWHERE = {
    "Container": "answers",
    "DeviceInfo": "answers",
    "FileStatus": "ext4.reader",
    "FileType": "changes",
    "Finding": "check",
    "HistoryItem": "answers",
    "Image": "answers",
    "ImageStore": "store",
    "ImageUsage": "answers",
    "Layer": "answers",
    "LoadedImage": "answers",
    "Mount": "answers",
    "ProgressEvent": "progress",
    "ProgressSink": "progress",
    "PruneReport": "answers",
    "PullResult": "answers",
    "PullStatus": "answers",
    "PushResult": "answers",
    "AttachedDisk": "attach.attachment",
    "PluggedDisk": "attach.machine",
    "UnpluggedDisk": "attach.machine",
    "DeviceModel": "attach.qemu",
    "QuotaReport": "quota",
    "RebuildReport": "rebuild",
    "RemoteImage": "answers",
    "Removal": "answers",
    "State": "progress",
    "Stop": "stop",
    "StoreInfo": "answers",
    "Usage": "answers",
    "Volume": "answers",
    "VolumePruneReport": "answers",
    "VolumeSnapshot": "answers",
    "VolumeStoreInfo": "answers",
    "VolumeUsage": "answers",
    "CopyPlan": "answers",
    "CopyResult": "answers",
    "RemoteStore": "answers",
    "SeedFailure": "answers",
    "SeedPlan": "answers",
    "SeedReport": "answers",
    "SeedImage": "seed_files",
    "parse_seed_file": "seed_files",
    "VsphereLogin": "vsphere.login",
}
"""Modules of the names that are no error."""

if not TYPE_CHECKING:  # a type checker would take any name for one that is there

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        module = _ELSEWHERE.get(name, "errors")
        value = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
