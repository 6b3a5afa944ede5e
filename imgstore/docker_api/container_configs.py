"""Configurations of containers: the fields that Docker's clients give and read, each with its type, and what it is when nobody gave it.

What clients give is kept as they gave it, also fields that are not here; but of a known field nothing that they could not read again:
the command line gives up on the whole of an answer for one field of another type.

Source: moby ``api/types/container`` (config.go, hostconfig.go), ``api/types/mount``, ``api/types/network/endpoint.go``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from imgstore.docker_api.errors import ApiError
from imgstore.docker_api.image_shapes import Json, Version
from imgstore.structs import prepare

_Int = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
_Texts = list[str]
_Map = dict[str, str]
_Set = dict[str, dict[str, Any]]


class _Struct(msgspec.Struct, rename="pascal"):
    """A part of a configuration; its fields are optional, and null is the same as nothing."""


class _LogConfig(_Struct):
    type: str = ""
    config: _Map = {}


class _RestartPolicy(_Struct):
    name: str = ""
    maximum_retry_count: _Int = 0


class _PortBinding(_Struct):
    host_ip: str = ""
    host_port: str = ""


class _WeightDevice(_Struct):
    path: str = ""
    weight: _Int = 0


class _ThrottleDevice(_Struct):
    path: str = ""
    rate: _Int = 0


class _Device(_Struct):
    path_on_host: str = ""
    path_in_container: str = ""
    cgroup_permissions: str = ""


class _DeviceRequest(_Struct):
    driver: str = ""
    count: _Int = 0
    device_ids: _Texts = msgspec.field(default_factory=list, name="DeviceIDs")
    capabilities: list[_Texts] = []
    options: _Map = {}


class _Ulimit(_Struct):
    name: str = ""
    hard: _Int = 0
    soft: _Int = 0


class _Driver(_Struct):
    name: str = ""
    options: _Map = {}


class VolumeOptions(_Struct):
    """How the volume of a mount is to be made, if it is not there."""

    no_copy: bool = False
    labels: _Map = {}
    driver_config: _Driver = msgspec.field(default_factory=_Driver)
    subpath: str = ""


class MountRequest(_Struct):
    """An item of ``HostConfig.Mounts``."""

    type: str = ""
    source: str = ""
    target: str = ""
    read_only: bool = False
    consistency: str = ""
    bind_options: dict[str, Any] | None = None
    volume_options: VolumeOptions | None = None
    tmpfs_options: dict[str, Any] | None = None


class _Healthcheck(_Struct):
    test: _Texts = []
    interval: _Int = 0
    timeout: _Int = 0
    start_period: _Int = 0
    start_interval: _Int = 0
    retries: _Int = 0


class _IpamConfig(_Struct):
    ipv4_address: str = msgspec.field(default="", name="IPv4Address")
    ipv6_address: str = msgspec.field(default="", name="IPv6Address")
    link_local_ips: _Texts = msgspec.field(default_factory=list, name="LinkLocalIPs")


class _Absent:
    """In the place of a default: the field is left out."""


_Fields = Mapping[str, tuple[Any, Any]]
"""Name of a field to its type, and what it is where it is not given."""

_RUN_CONFIG: _Fields = {
    "Hostname": (str, ""),
    "Domainname": (str, ""),
    "User": (str, ""),
    "AttachStdin": (bool, False),
    "AttachStdout": (bool, False),
    "AttachStderr": (bool, False),
    "ExposedPorts": (_Set, _Absent),
    "Tty": (bool, False),
    "OpenStdin": (bool, False),
    "StdinOnce": (bool, False),
    "Env": (_Texts, None),
    "Cmd": (_Texts | str, None),
    "Healthcheck": (_Healthcheck, _Absent),
    "ArgsEscaped": (bool, _Absent),
    "Image": (str, ""),
    "Volumes": (_Set, None),
    "WorkingDir": (str, ""),
    "Entrypoint": (_Texts | str, None),
    "NetworkDisabled": (bool, _Absent),
    "MacAddress": (str, _Absent),
    "OnBuild": (_Texts, None),
    "Labels": (_Map, {}),
    "StopSignal": (str, _Absent),
    "StopTimeout": (_Int, _Absent),
    "Shell": (_Texts | str, _Absent),
}

_HOST_CONFIG: _Fields = {
    "Binds": (_Texts, None),
    "ContainerIDFile": (str, ""),
    "LogConfig": (_LogConfig, {"Type": "none", "Config": {}}),
    "NetworkMode": (str, "default"),
    "PortBindings": (dict[str, list[_PortBinding]], {}),
    "RestartPolicy": (_RestartPolicy, {"Name": "no", "MaximumRetryCount": 0}),
    "AutoRemove": (bool, False),
    "VolumeDriver": (str, ""),
    "VolumesFrom": (_Texts, None),
    "ConsoleSize": (tuple[_Int, _Int], [0, 0]),
    "Annotations": (_Map, _Absent),
    "CapAdd": (_Texts | str, None),
    "CapDrop": (_Texts | str, None),
    "CgroupnsMode": (str, "private"),
    "Dns": (_Texts, []),
    "DnsOptions": (_Texts, []),
    "DnsSearch": (_Texts, []),
    "ExtraHosts": (_Texts, None),
    "GroupAdd": (_Texts, None),
    "IpcMode": (str, "private"),
    "Cgroup": (str, ""),
    "Links": (_Texts, None),
    "OomScoreAdj": (_Int, 0),
    "PidMode": (str, ""),
    "Privileged": (bool, False),
    "PublishAllPorts": (bool, False),
    "ReadonlyRootfs": (bool, False),
    "SecurityOpt": (_Texts, None),
    "StorageOpt": (_Map, _Absent),
    "Tmpfs": (_Map, _Absent),
    "UTSMode": (str, ""),
    "UsernsMode": (str, ""),
    "ShmSize": (_Int, 64 << 20),
    "Sysctls": (_Map, _Absent),
    "Runtime": (str, _Absent),
    "Isolation": (str, ""),
    "CpuShares": (_Int, 0),
    "Memory": (_Int, 0),
    "NanoCpus": (_Int, 0),
    "CgroupParent": (str, ""),
    "BlkioWeight": (_Int, 0),
    "BlkioWeightDevice": (list[_WeightDevice], []),
    "BlkioDeviceReadBps": (list[_ThrottleDevice], []),
    "BlkioDeviceWriteBps": (list[_ThrottleDevice], []),
    "BlkioDeviceReadIOps": (list[_ThrottleDevice], []),
    "BlkioDeviceWriteIOps": (list[_ThrottleDevice], []),
    "CpuPeriod": (_Int, 0),
    "CpuQuota": (_Int, 0),
    "CpuRealtimePeriod": (_Int, 0),
    "CpuRealtimeRuntime": (_Int, 0),
    "CpusetCpus": (str, ""),
    "CpusetMems": (str, ""),
    "Devices": (list[_Device], []),
    "DeviceCgroupRules": (_Texts, None),
    "DeviceRequests": (list[_DeviceRequest], None),
    "MemoryReservation": (_Int, 0),
    "MemorySwap": (_Int, 0),
    "MemorySwappiness": (_Int, None),
    "OomKillDisable": (bool, False),
    "PidsLimit": (_Int, None),
    "Ulimits": (list[_Ulimit], []),
    "CpuCount": (_Int, 0),
    "CpuPercent": (_Int, 0),
    "IOMaximumIOps": (_Int, 0),
    "IOMaximumBandwidth": (_Int, 0),
    "Mounts": (list[MountRequest], _Absent),
    "MaskedPaths": (_Texts, []),
    "ReadonlyPaths": (_Texts, []),
    "Init": (bool, _Absent),
}

_ENDPOINT: _Fields = {
    "IPAMConfig": (_IpamConfig, None),
    "Links": (_Texts, None),
    "Aliases": (_Texts, None),
    "MacAddress": (str, ""),
    "DriverOpts": (_Map, None),
    "GwPriority": (_Int, 0),
    "NetworkID": (str, ""),
    "EndpointID": (str, ""),
    "Gateway": (str, ""),
    "IPAddress": (str, ""),
    "IPPrefixLen": (_Int, 0),
    "IPv6Gateway": (str, ""),
    "GlobalIPv6Address": (str, ""),
    "GlobalIPv6PrefixLen": (_Int, 0),
    "DNSNames": (_Texts, None),
}

_LISTS = frozenset({"CapAdd", "CapDrop", "Cmd", "Entrypoint", "Shell"})
"""Where a lone word stands for a list of it."""

prepare(*(kind for table in (_RUN_CONFIG, _HOST_CONFIG, _ENDPOINT) for kind, _ in table.values()))

_KEYS_THAT_COUNT: Mapping[str, object] = {"ExposedPorts": {}, "PortBindings": [], "Volumes": {}}
"""Maps whose keys mean something also with null, and what that stands for."""


def check_run_config(given: object) -> Json:
    """What a client gives as Config; raises ApiError, 400, for a value of another type than its field has."""
    return _check(_RUN_CONFIG, given, "Config")


def check_host_config(given: object) -> Json:
    """As `check_run_config`, of a HostConfig."""
    return _check(_HOST_CONFIG, given, "HostConfig")


def check_endpoints(given: object) -> dict[str, Json]:
    """As `check_run_config`, of the EndpointsConfig of a NetworkingConfig: name of a network to what is wanted of it."""
    where = "NetworkingConfig.EndpointsConfig"
    return {name: _check(_ENDPOINT, endpoint, f"{where}.{name[:100]}") for name, endpoint in _object(given, where).items()}


def show_run_config(config: Mapping[str, Any]) -> Json:
    """A Config as clients read it: with all fields; without those that an image has in a form of its own."""
    return _show(_RUN_CONFIG, config)


def show_host_config(config: Mapping[str, Any], version: Version) -> Json:
    """A HostConfig as clients of this version read it."""
    shown = _show(_HOST_CONFIG, config)
    shown["NetworkMode"] = network_of(config)
    if shown["MemorySwappiness"] == -1:
        shown["MemorySwappiness"] = None
    if version < (1, 42):
        shown |= {"KernelMemory": 0, "KernelMemoryTCP": 0}
    if version < (1, 43):
        shown.pop("Annotations", None)
    return shown


def show_endpoint(endpoint: Mapping[str, Any]) -> Json:
    """The settings of a network as clients read them."""
    return _show(_ENDPOINT, endpoint)


def network_of(host_config: Mapping[str, Any]) -> str:
    """Name of the network that a container is for, as Docker has it: the default one is ``bridge``."""
    mode = host_config.get("NetworkMode")
    return mode if isinstance(mode, str) and mode not in ("", "default") else "bridge"


def _check(fields: _Fields, given: object, where: str) -> Json:
    checked = _object(given, where)
    for name, value in checked.items():
        if name in fields:
            try:
                msgspec.convert(value, fields[name][0])
            except msgspec.ValidationError as error:
                raise ApiError(400, f"invalid JSON: {where}.{name}: {error}") from None
    return checked


def _object(given: object, where: str) -> Json:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise ApiError(400, f"invalid JSON: {where}: Expected `object`, got `{type(given).__name__}`")
    return {name: _without_nulls(value, _KEYS_THAT_COUNT.get(name)) for name, value in given.items() if value is not None}


def _without_nulls(value: Any, instead: object = None) -> Any:
    """The value with null left out at all depths, or with ``instead`` in its place directly below."""
    if isinstance(value, dict):
        filled = {name: instead if each is None else each for name, each in value.items()}
        return {name: _without_nulls(each) for name, each in filled.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def _show(fields: _Fields, config: Mapping[str, Any]) -> Json:
    shown: Json = {}
    for name, (kind, default) in fields.items():
        value = config.get(name)
        if value and _is(value, kind):
            shown[name] = [value] if name in _LISTS and isinstance(value, str) else value
        elif default is not _Absent:
            shown[name] = default  # also in the place of what is empty
    return shown


def _is(value: object, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True
