"""Image shapes: an image as the JSON of Docker's API has it, in each version.

Source: moby ``api/swagger.yaml``, ``api/types/image``, ``api/server/router/image`` (image_routes.go, inspect_response.go).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from imgstore.answers import HistoryItem, Image
from imgstore.structs import prepare
from registry_client.media_types import OCI_MANIFEST

Version = tuple[int, int]
Json = dict[str, Any]

DRIVER = "vmdk"
"""Name of the storage driver."""

_ZERO_TIME = "0001-01-01T00:00:00Z"

_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:([Zz]|[+-]00:00)|([+-]\d\d:\d\d))")

_CONFIG_TYPES: dict[str, type] = {
    "ArgsEscaped": bool,
    "Cmd": list,
    "Entrypoint": list,
    "Env": list,
    "ExposedPorts": dict,
    "Healthcheck": dict,
    "Labels": dict,
    "OnBuild": list,
    "Shell": list,
    "StopSignal": str,
    "User": str,
    "Volumes": dict,
    "WorkingDir": str,
}
"""What of an image's ``config`` Docker shows, unless it is empty."""

_ALWAYS: Json = {
    "Cmd": None,
    "Entrypoint": None,
    "Env": None,
    "Labels": None,
    "OnBuild": None,
    "User": "",
    "Volumes": None,
    "WorkingDir": "",
}
_BEFORE_1_50: Json = _ALWAYS | {
    "AttachStderr": False,
    "AttachStdin": False,
    "AttachStdout": False,
    "Domainname": "",
    "Hostname": "",
    "Image": "",
    "OpenStdin": False,
    "StdinOnce": False,
    "Tty": False,
}


class _Manifest(msgspec.Struct):
    media_type: str | None = msgspec.field(default=None, name="mediaType")


prepare(_Manifest)


def summarize(image: Image, version: Version, *, shared_size: int = -1, containers: int = -1, manifests: bool = False) -> Json:
    """An item of ``GET /images/json``: ImageSummary.

    Args:
        shared_size: bytes that others have, too; -1 where nobody asked.
        containers: how many use it; -1 where nobody asked.
        manifests: whether the client asked for them.
    """
    shown: Json = {
        "Id": image.id,
        "ParentId": image.parent or "",
        "RepoTags": list(image.references),
        "RepoDigests": list(image.digests),
        "Created": 0 if image.created is None else int(image.created.timestamp()),
        "Size": image.size,
        "SharedSize": shared_size,
        "Labels": dict(image.labels) or None,
        "Containers": containers,
    }
    if version < (1, 43) and not image.references and not image.digests:
        shown |= {"RepoTags": ["<none>:<none>"], "RepoDigests": ["<none>@<none>"]}
    if version < (1, 44):
        shown["VirtualSize"] = image.size
    return shown | _describe_manifest(image, version, manifests=manifests)


def inspect(image: Image, version: Version, datastore: str, *, manifests: bool = False) -> Json:
    """The answer to ``GET /images/{name}/json``: ImageInspect.

    Args:
        datastore: where the disks lie.
        manifests: whether the client asked for them.
    """
    config = image.config
    history = config.get("history") or [{}]
    created = format_time(config.get("created"))
    shown: Json = {
        "Id": image.id,
        "RepoTags": list(image.references),
        "RepoDigests": list(image.digests),
        "Parent": image.parent or "",
        "Comment": _text(config, "comment") or _text(history[-1], "comment"),
        "Created": created,
        "DockerVersion": _text(config, "docker_version"),
        "Author": _text(config, "author"),
        "Config": _show_config(config.get("config"), version),
        "Architecture": _text(config, "architecture"),
        "Variant": _text(config, "variant"),
        "Os": _text(config, "os"),
        "OsVersion": _text(config, "os.version"),
        "Size": image.size,
        "GraphDriver": {
            "Name": DRIVER,
            "Data": {"TopVMDK": image.disks[-1], "Chain": ":".join(image.disks), "Datastore": datastore},
        },
        "RootFS": {"Type": "layers"} | ({"Layers": [layer.diff_id for layer in image.layers]} if image.layers else {}),
        "Metadata": {"LastTagTime": _ZERO_TIME if image.tagged is None else _show_time(image.tagged)},
    }
    for name in ("Variant", "OsVersion", "Created"):
        if not shown[name]:
            del shown[name]
    if version < (1, 45):
        shown["ContainerConfig"] = _show_config(config.get("container_config"), version)
        if container := _text(config, "container"):
            shown["Container"] = container
    if version < (1, 44):
        shown["VirtualSize"] = image.size
        shown.setdefault("Created", _ZERO_TIME)
    return shown | _describe_manifest(image, version, manifests=manifests)


def show_history(items: Sequence[HistoryItem], lineage: Sequence[Image]) -> list[Json]:
    """The answer to ``GET /images/{name}/history``.

    Args:
        lineage: the image, then those that it was made from, as far as they are here.
    """
    shown: list[Json] = []
    for position, item in enumerate(items):
        image = lineage[position] if position < len(lineage) else None
        shown.append(
            {
                "Id": "<missing>" if image is None else image.id,
                "Created": 0 if item.created is None else int(item.created.timestamp()),
                "CreatedBy": item.created_by,
                "Tags": None if image is None else list(image.references) or None,
                "Size": item.size,
                "Comment": item.comment,
            }
        )
    return shown


def format_time(text: object) -> str:
    """A time of an image as Go prints it, which leaves out zeros at the end of a second; empty where it is none."""
    found = _TIME.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        return ""
    date, clock, fraction, utc, zone = found.groups()
    fraction = (fraction or "").rstrip("0")
    return f"{date}T{clock}{'.' if fraction else ''}{fraction}{'Z' if utc else zone}"


def _show_time(time: datetime) -> str:
    return format_time(time.astimezone(UTC).isoformat())


def _show_config(config: object, version: Version) -> Json:
    given = config if isinstance(config, dict) else {}
    shown = {name: given[name] for name, kind in _CONFIG_TYPES.items() if isinstance(given.get(name), kind) and given[name]}
    return dict(sorted(((_BEFORE_1_50 if version < (1, 50) else _ALWAYS) | shown).items()))


def _describe_manifest(image: Image, version: Version, *, manifests: bool) -> Json:
    if image.manifest_digest is None or version < (1, 47):
        return {}
    media_type = msgspec.json.decode(image.manifest_bytes, type=_Manifest).media_type or OCI_MANIFEST
    descriptor: Json = {"mediaType": media_type, "digest": image.manifest_digest, "size": len(image.manifest_bytes)}
    shown: Json = {} if version < (1, 48) else {"Descriptor": descriptor}
    if manifests:
        platform = {"architecture": image.architecture, "os": image.os} | ({"variant": image.variant} if image.variant else {})
        content = len(image.manifest_bytes) + len(image.config_bytes)  # the layers are kept as disks only
        shown["Manifests"] = [
            {
                "ID": image.manifest_digest,
                "Descriptor": descriptor | {"platform": platform},
                "Available": True,
                "Size": {"Content": content, "Total": content + image.size},
                "Kind": "image",
                "ImageData": {"Platform": platform, "Size": {"Unpacked": image.size}, "Containers": []},
            }
        ]
    return shown


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name) if isinstance(values, dict) else None
    return value if isinstance(value, str) else ""
