"""What ``GET /info`` tells: the store as the storage driver, the machine, and how registries are reached.

Source: moby ``daemon/info.go``, ``api/types/system/info.go``; the words that the command line prints are in docker/cli
``command/system/info.go``.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import platform
import re
import socket
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from imgstore.answers import StoreInfo
from imgstore.docker_api.service import Service
from imgstore.docker_api.versions import program_version
from imgstore.store import ImageStore
from imgstore.volume_options import DRIVERS
from registry_client.hosts import DOCKER_HUB
from registry_client.options import Options, RegistryOptions

INDEX_SERVER = "https://index.docker.io/v1/"
"""Under which the command line keeps a login to Docker Hub."""

_LOW_SPACE = 0.05
_NOT_HERE = "N/A"  # what dockerd says of a program that it cannot find


def describe_service(service: Service) -> dict[str, Any]:
    """The answer to ``GET /info``. Asks the catalog, the file system and the kernel, so not for the event loop."""
    store = service.store.info()
    system = os.uname()
    return {
        "ID": store.id,
        "Containers": store.containers,
        "ContainersRunning": 0,
        "ContainersPaused": 0,
        "ContainersStopped": store.containers,
        "Images": store.images,
        "Driver": "vmdk",
        "DriverStatus": [*_describe_driver(store), *_describe_quota(service.store, store.quota)],
        "Plugins": {"Volume": sorted(DRIVERS), "Network": [], "Authorization": [], "Log": []},
        "MemoryLimit": False,
        "SwapLimit": False,
        "CpuCfsPeriod": False,
        "CpuCfsQuota": False,
        "CPUShares": False,
        "CPUSet": False,
        "PidsLimit": False,
        "OomKillDisable": False,
        "IPv4Forwarding": True,
        "Debug": logging.getLogger("imgstore").isEnabledFor(logging.DEBUG),
        "NFd": len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - names are all that counts
        "NGoroutines": threading.active_count(),
        "NEventsListener": service.events.listeners,
        "SystemTime": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "LoggingDriver": "none",
        "CgroupDriver": "none",
        "KernelVersion": system.release,
        **_describe_distribution(),
        "OSType": "linux",
        "Architecture": system.machine,
        "NCPU": os.cpu_count() or 1,
        "MemTotal": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "IndexServerAddress": INDEX_SERVER,
        "RegistryConfig": _describe_registries(store.registries),
        "GenericResources": [],
        "DockerRootDir": str(store.directory or ""),
        "HttpProxy": "",
        "HttpsProxy": "",
        "NoProxy": "",
        "Name": socket.gethostname(),
        "Labels": [],
        "ExperimentalBuild": False,
        "ServerVersion": program_version(),
        "Runtimes": {},
        "DefaultRuntime": "",
        "Swarm": {
            "NodeID": "",
            "NodeAddr": "",
            "LocalNodeState": "inactive",
            "ControlAvailable": False,
            "Error": "",
            "RemoteManagers": None,
        },
        "LiveRestoreEnabled": False,
        "Isolation": "",
        "InitBinary": _NOT_HERE,
        "ContainerdCommit": {"ID": _NOT_HERE},
        "RuncCommit": {"ID": _NOT_HERE},
        "InitCommit": {"ID": _NOT_HERE},
        "SecurityOptions": [],
        "CDISpecDirs": [],
        "Warnings": [*service.warnings, *_warn_of_space(store)],
    }


def _describe_driver(store: StoreInfo) -> list[tuple[str, str]]:
    rows = [
        ("Datastore", "memory" if store.directory is None else str(store.directory)),
        ("Backing Filesystem", "memory" if store.directory is None else _file_system_of(store.directory)),
    ]
    if store.space is not None and store.free_space is not None:
        rows += [("Datastore Size", _gib(store.space)), ("Datastore Free", _gib(store.free_space))]
    return [
        *rows,
        ("Format", "monolithicSparse"),
        ("Disk Capacity", _gib(store.capacity)),
        ("Disk File System", "ext4"),
        ("Layers", str(store.layers)),
        ("Layers Shared by Images", str(store.shared_layers)),
    ]


def _describe_quota(store: ImageStore, limit: int | None) -> list[tuple[str, str]]:
    """In the words of vSphere Integrated Containers, whose users' scripts know them; nothing is measured where there is no limit."""
    if limit is None:
        return []
    quota = store.quota()
    return [
        ("VCH storage limit", _gib(limit)),
        ("VCH storage usage", _gib(quota.used)),
        ("VCH images storage usage", _gib(quota.images)),
        ("VCH containers storage usage", _gib(quota.containers)),
        ("VCH volumes storage usage", _gib(quota.volumes)),
        ("VCH storage reservation", _gib(quota.reserved)),
    ]


def _gib(size: int) -> str:
    return f"{size / 2**30:.4g}GiB"


def _warn_of_space(store: StoreInfo) -> list[str]:
    if store.space is None or store.free_space is None or store.free_space >= store.space * _LOW_SPACE:
        return []
    return [f"WARNING: {store.directory}: only {_gib(store.free_space)} of {_gib(store.space)} are free"]


def _file_system_of(directory: Path) -> str:
    """Type of the file system below, by the longest mount point on the way. See proc_pid_mountinfo(5)."""
    best, type = -1, "unknown"
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        before, _, after = line.partition(" - ")
        mount_point = re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), before.split(" ")[4])
        if directory.is_relative_to(mount_point) and len(mount_point) >= best:
            best, type = len(mount_point), after.split(" ")[0]
    return type


def _describe_distribution() -> dict[str, str]:
    try:
        found = platform.freedesktop_os_release()
    except OSError:
        found = {}
    return {"OperatingSystem": found.get("PRETTY_NAME", "Linux"), "OSVersion": found.get("VERSION_ID", "")}


def _describe_registries(options: Options) -> dict[str, Any]:
    networks = {"127.0.0.0/8", "::1/128"}
    registries = {DOCKER_HUB: RegistryOptions(), **options.registries}
    for name in options.insecure_registries:
        if _is_network(name):
            networks.add(name)
        else:
            registries.setdefault(name, RegistryOptions(insecure=True))
    indexes = {
        name: {
            "Name": name,
            "Mirrors": [f"https://{mirror}/" for mirror in chosen.mirrors],
            "Secure": not (chosen.insecure or name in options.insecure_registries),
            "Official": name == DOCKER_HUB,
        }
        for name, chosen in sorted(registries.items())
    }
    return {
        "InsecureRegistryCIDRs": sorted(networks),
        "IndexConfigs": indexes,
        "Mirrors": indexes[DOCKER_HUB]["Mirrors"],
    }


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return "/" in text
