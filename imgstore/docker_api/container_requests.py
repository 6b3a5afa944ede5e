"""What clients ask for with a new container: the body of ``POST /containers/create``.

Volumes are what can be mounted; directories of the host are not, in the words of vSphere Integrated Containers, which scripts may know.

Source: moby ``runconfig/config.go``, ``api/server/router/container/container_routes.go`` (postContainersCreate),
``volume/mounts/linux_parser.go``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from imgstore.answers import Mount
from imgstore.docker_api.container_configs import MountRequest, check_endpoints, check_host_config, check_run_config
from imgstore.docker_api.errors import ApiError
from imgstore.docker_api.image_shapes import Json, Version

NETWORKS = "NetworkingConfig"
"""Under this name what was asked of networks is kept with the host configuration."""

_NO_DIRECTORIES = "mounting directories as a data volume is not supported."
_SHOWN_MAX = 200

# Go's RAMInBytes (docker/go-units): every unit is a power of 1024.
_SIZE = re.compile(r"(\d{1,15})(?:\.(\d{1,9}))? ?([kmgtp]?)i?b?", re.ASCII | re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}

_MODES: tuple[frozenset[str], ...] = (
    frozenset({"ro", "rw"}),
    frozenset({"Z", "z"}),
    frozenset({"private", "rprivate", "shared", "rshared", "slave", "rslave"}),
    frozenset({"nocopy"}),
    frozenset({"cached", "consistent", "default", "delegated"}),
)
"""What the mode of a bind may say; one word of each group."""


@dataclass(frozen=True, slots=True)
class WantedVolume:
    """A volume that a mount wants made in a way of its own, if it is not there; without a name, it is anonymous.

    Attributes:
        position: of the mount among the others.
    """

    position: int
    name: str
    driver: str
    options: Mapping[str, str]
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class NewContainer:
    """A container as it was asked for.

    Attributes:
        size: bytes of its disk, or None.
        config, host_config: as they are kept; see `imgstore.answers.Container`.
    """

    image: str
    size: int | None
    read_only: bool
    config: Json
    host_config: Json
    mounts: tuple[Mount, ...]
    wanted_volumes: tuple[WantedVolume, ...] = field(default=())


def parse_new_container(body: object, version: Version) -> NewContainer:
    """What a body asks for.

    Raises:
        ApiError: 400, in Docker's words where it has some; no such body, or something that no container here can have.
    """
    if body is None:
        raise ApiError(400, "Config cannot be empty in order to create a container")
    if not isinstance(body, dict):
        raise ApiError(400, f"invalid JSON: Expected `object`, got `{type(body).__name__}`")
    given = dict(body)
    host_config = check_host_config(given.pop("HostConfig", None))
    networks = given.pop(NETWORKS, None)
    if networks is not None and not isinstance(networks, dict):
        raise ApiError(400, f"invalid JSON: {NETWORKS}: Expected `object`, got `{type(networks).__name__}`")
    endpoints = check_endpoints((networks or {}).get("EndpointsConfig"))
    config = check_run_config(given)
    if version < (1, 25):
        host_config.pop("AutoRemove", None)  # these clients remove the container themselves
    mounts, wanted = _read_mounts(host_config)
    if endpoints:
        host_config[NETWORKS] = {"EndpointsConfig": endpoints}
    return NewContainer(
        image=config.get("Image", ""),
        size=_read_size(host_config.get("StorageOpt", {})),
        read_only=host_config.get("ReadonlyRootfs", False),
        config=config,
        host_config=host_config,
        mounts=tuple(mounts),
        wanted_volumes=tuple(wanted),
    )


def parse_bind(text: str) -> Mount:
    """A volume as ``-v`` has it: ``name:/path[:mode]``, or ``/path`` alone.

    Raises:
        ApiError: 400.
    """
    parts = text.split(":")
    if len(parts) > 1 and parts[0].startswith("/"):
        raise ApiError(400, _NO_DIRECTORIES)
    if len(parts) > 3 or not parts[0] or (len(parts) == 2 and _is_mode(parts[1])):
        raise ApiError(400, f"volume bind input is invalid: -v {text[:_SHOWN_MAX]}")
    if len(parts) == 1:
        return Mount("", parts[0])
    name, destination, mode = parts[0], parts[1], parts[2] if len(parts) == 3 else ""
    if not _is_mode(mode):
        raise ApiError(400, f"invalid mode: {mode[:_SHOWN_MAX]}")
    if not destination.startswith("/"):
        words = f"invalid mount path: '{destination[:_SHOWN_MAX]}' mount path must be absolute"
        raise ApiError(
            400, f"invalid volume specification: '{text[:_SHOWN_MAX]}': invalid mount config for type \"volume\": {words}"
        )
    words_of_mode = mode.split(",")
    return Mount(name, destination, "ro" in words_of_mode, "nocopy" in words_of_mode)


def bind_mode(text: str) -> str:
    """The mode of a bind, as it was given."""
    return text.split(":")[2] if text.count(":") == 2 else ""


def _is_mode(text: str) -> bool:
    if not text:
        return True
    words = text.split(",")
    known = frozenset[str]().union(*_MODES)
    return known.issuperset(words) and all(sum(word in group for word in words) <= 1 for group in _MODES)


def _read_mounts(host_config: Json) -> tuple[list[Mount], list[WantedVolume]]:
    driver = host_config.get("VolumeDriver", "")
    mounts = [parse_bind(text) for text in host_config.get("Binds", ())]
    wanted = [
        WantedVolume(position, mount.volume, driver, {}, {}) for position, mount in enumerate(mounts) if driver and mount.volume
    ]
    for request in _volume_mounts(host_config):
        options = request.volume_options
        if options is not None and (options.driver_config.name or options.driver_config.options or options.labels):
            chosen = options.driver_config
            wanted.append(WantedVolume(len(mounts), request.source, chosen.name, chosen.options, options.labels))
        no_copy = options is not None and options.no_copy
        mounts.append(Mount(request.source, request.target, request.read_only, no_copy))
    return mounts, wanted


def _volume_mounts(host_config: Json) -> Iterator[MountRequest]:
    """Those of the Mounts that are volumes; a tmpfs is for the platform that runs the container to see to."""
    for request in msgspec.convert(host_config.get("Mounts", []), list[MountRequest]):
        if request.type == "bind":
            raise ApiError(400, _NO_DIRECTORIES)
        prefix = f'invalid mount config for type "{request.type[:_SHOWN_MAX]}":'
        if not request.target:
            raise ApiError(400, f"{prefix} field Target must not be empty")
        if request.type not in ("volume", "tmpfs"):
            raise ApiError(400, f"{prefix} mount type unknown")
        if request.type == "tmpfs":
            if request.source:
                raise ApiError(400, f"{prefix} field Source must not be specified")
            continue
        if request.volume_options is not None and request.volume_options.subpath:
            raise ApiError(501, f"{prefix} a part of a volume cannot be mounted, only all of it")
        if request.read_only and not request.source:
            raise ApiError(400, f"{prefix} must not set ReadOnly mode when using anonymous volumes")
        yield request


def _read_size(storage_options: Mapping[str, Any]) -> int | None:
    size = None
    for name, text in storage_options.items():
        if name.lower() != "size":
            raise ApiError(400, f"Unknown option {name[:_SHOWN_MAX]}")
        found = _SIZE.fullmatch(text)
        if found is None:
            raise ApiError(400, f"invalid size: '{text[:_SHOWN_MAX]}'")
        whole, fraction, unit = found[1], found[2] or "", found[3].lower()
        scale: int = 10 ** len(fraction)
        size = int(whole + fraction) * 1024 ** _POWERS[unit] // scale
    return size
