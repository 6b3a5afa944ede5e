"""Container shapes: a container as the JSON of Docker's API has it, in each version. Ours were never started: they are ``created``.

Source: moby ``api/types/container`` (container.go, network_settings.go), ``daemon/inspect.go``, ``container/view.go`` (transform),
``api/server/router/container/inspect.go``.
"""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from imgstore.answers import Container, Image, Mount, Volume
from imgstore.changes import FileType
from imgstore.copies.archive import PathStatus
from imgstore.docker_api.container_configs import network_of, show_endpoint, show_host_config, show_run_config
from imgstore.docker_api.container_requests import NETWORKS, bind_mode
from imgstore.docker_api.image_shapes import DRIVER, Json, Version, format_time

_ZERO_TIME = "0001-01-01T00:00:00Z"

_STATE: Json = {
    "Status": "created",
    "Running": False,
    "Paused": False,
    "Restarting": False,
    "OOMKilled": False,
    "Dead": False,
    "Pid": 0,
    "ExitCode": 0,
    "Error": "",
    "StartedAt": _ZERO_TIME,
    "FinishedAt": _ZERO_TIME,
}

_NO_NETWORK: Json = {
    "Bridge": "",
    "SandboxID": "",
    "SandboxKey": "",
    "Ports": {},
    "HairpinMode": False,
    "LinkLocalIPv6Address": "",
    "LinkLocalIPv6PrefixLen": 0,
    "SecondaryIPAddresses": None,
    "SecondaryIPv6Addresses": None,
    "EndpointID": "",
    "Gateway": "",
    "GlobalIPv6Address": "",
    "GlobalIPv6PrefixLen": 0,
    "IPAddress": "",
    "IPPrefixLen": 0,
    "IPv6Gateway": "",
    "MacAddress": "",
}

# Go's io/fs.FileMode, which is not that of the kernel.
_GO_TYPES: Mapping[FileType, int] = {
    FileType.REGULAR: 0,
    FileType.DIRECTORY: 1 << 31,
    FileType.SYMLINK: 1 << 27,
    FileType.BLOCK_DEVICE: 1 << 26,
    FileType.CHARACTER_DEVICE: 1 << 26 | 1 << 21,
    FileType.FIFO: 1 << 25,
    FileType.SOCKET: 1 << 24,
}
_GO_BITS = ((stat.S_ISUID, 1 << 23), (stat.S_ISGID, 1 << 22), (stat.S_ISVTX, 1 << 20))


def summarize(
    container: Container,
    shown_image: str,
    volumes: Mapping[str, Volume],
    version: Version,
    *,
    image_size: int | None = None,
) -> Json:
    """An item of ``GET /containers/json``: ContainerSummary.

    Args:
        shown_image: the name of its image, or the id if the name is another image's now.
        volumes: those that there are, by name.
        image_size: bytes that its image takes; None: nobody asked for sizes.
    """
    path, *arguments = command_of(container.config) or [""]
    host_config: Json = {"NetworkMode": network_of(container.host_config)}
    annotations = container.host_config.get("Annotations")
    if annotations and version >= (1, 46):
        host_config["Annotations"] = annotations
    shown: Json = {
        "Id": container.id,
        "Names": [f"/{container.name}"],
        "Image": shown_image,
        "ImageID": container.image_id,
        "Command": " ".join([path, *(f"'{each}'" if " " in each else each for each in arguments)]),
        "Created": int(container.created.timestamp()),
        "Ports": [],
        "Labels": dict(container.labels),
        "State": "created",
        "Status": "Created",
        "HostConfig": host_config,
        "NetworkSettings": {"Networks": _networks(container)},
        "Mounts": _mounts(container, volumes),
    }
    if image_size is not None:
        sizes = {"SizeRw": container.size_rw, "SizeRootFs": container.size_rw + image_size}
        shown |= {name: size for name, size in sizes.items() if size}
    return shown


def inspect(
    container: Container,
    disks: Sequence[str],
    volumes: Mapping[str, Volume],
    datastore: str,
    version: Version,
    *,
    image_size: int | None = None,
) -> Json:
    """The answer to ``GET /containers/{name}/json``: ContainerInspectResponse.

    Args:
        disks: paths of all disks of its chain, its own last.
        volumes: those of its volumes that there are, by name.
        datastore: where the disks lie.
        image_size: bytes that its image takes; None: nobody asked for sizes.
    """
    path, *arguments = command_of(container.config) or [""]
    shown: Json = {
        "Id": container.id,
        "Created": show_time(container.created),
        "Path": path,
        "Args": arguments,
        "State": _STATE,
        "Image": container.image_id,
        "ResolvConfPath": "",
        "HostnamePath": "",
        "HostsPath": "",
        "LogPath": "",
        "Name": f"/{container.name}",
        "RestartCount": 0,
        "Driver": DRIVER,
        "Platform": container.platform.partition("/")[0],
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": None,
        "HostConfig": show_host_config(container.host_config, version),
        "GraphDriver": {
            "Name": DRIVER,
            "Data": {"TopVMDK": disks[-1], "Chain": ":".join(disks), "Datastore": datastore, "Capacity": str(container.capacity)},
        },
        "Mounts": _mounts(container, volumes),
        "Config": show_run_config(container.config),
        "NetworkSettings": _NO_NETWORK | {"Networks": _networks(container)},
    }
    if image_size is not None:
        shown |= {"SizeRw": container.size_rw, "SizeRootFs": container.size_rw + image_size}
    return shown


def command_of(config: Mapping[str, Any]) -> list[str]:
    """What a container would run: its entry point, then its command."""
    words: list[str] = []
    for name in ("Entrypoint", "Cmd"):
        value = config.get(name) or []
        words += [value] if isinstance(value, str) else value
    return words


def shown_image(container: Container, images: Mapping[str, Image], ids_by_name: Mapping[str, str]) -> str:
    """The name under which a container's image was asked for, or its id if that is another image's name now, or nobody's.

    Args:
        images: by id.
        ids_by_name: familiar name with tag or digest to the image that has it.
    """
    asked = container.image
    if container.image_id in images and container.image_id.removeprefix("sha256:").startswith(asked.removeprefix("sha256:")):
        return asked
    familiar = asked if ":" in asked.rpartition("/")[2] or "@" in asked else f"{asked}:latest"
    familiar = familiar.removeprefix("docker.io/").removeprefix("library/")
    return asked if ids_by_name.get(familiar) == container.image_id else container.image_id


def encode_path_status(found: PathStatus) -> str:
    """The header ``X-Docker-Container-Path-Stat``."""
    status = found.status
    shown = {
        "name": _readable(found.name),
        "size": status.size,
        "mode": go_mode(status.type, status.mode),
        "mtime": format_time(_show_nanoseconds(status.mtime_ns)),
        "linkTarget": _readable(found.link_target),
    }
    return base64.b64encode(msgspec.json.encode(shown)).decode()


def go_mode(type: FileType, mode: int) -> int:
    """Type and permission bits of a file as a number of Go's ``os.FileMode``."""
    return _GO_TYPES[type] | (mode & 0o777) | sum(bit for ours, bit in _GO_BITS if mode & ours)


def show_time(time: datetime) -> str:
    """A time as Go prints it, in UTC."""
    return format_time(time.astimezone(UTC).isoformat())


def _readable(text: str) -> str:
    """A name as JSON can have it: what is no text in it is lost, as with Go."""
    return os.fsencode(text).decode(errors="replace")


def _show_nanoseconds(time_ns: int) -> str:
    seconds, nanoseconds = divmod(time_ns, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def _networks(container: Container) -> Json:
    asked = (container.host_config.get(NETWORKS) or {}).get("EndpointsConfig") or {}
    mode = network_of(container.host_config)
    named = {mode if name == "default" else name: endpoint for name, endpoint in asked.items()}
    return {name: show_endpoint(endpoint) for name, endpoint in (named or {mode: {}}).items()}


def _mounts(container: Container, volumes: Mapping[str, Volume]) -> list[Json]:
    return [_show_mount(mount, volumes.get(mount.volume), container.host_config) for mount in container.mounts]


def _show_mount(mount: Mount, volume: Volume | None, host_config: Mapping[str, Any]) -> Json:
    """``Source`` is the volume's disk: what a platform gives the virtual machine."""
    return {
        "Type": "volume",
        "Name": mount.volume,
        "Source": "" if volume is None else volume.disk,
        "Destination": mount.destination,
        "Driver": "local" if volume is None else volume.driver,
        "Mode": _mode_of(mount, host_config),
        "RW": not mount.read_only,
        "Propagation": "",
    }


def _mode_of(mount: Mount, host_config: Mapping[str, Any]) -> str:
    for bind in host_config.get("Binds") or ():
        if bind.startswith(f"{mount.volume}:{mount.destination}"):
            return bind_mode(bind)
    asked = host_config.get("Mounts") or ()
    return "z" if any(each.get("Target") == mount.destination for each in asked) else ""
