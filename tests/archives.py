"""Archives of images, written member by member, so that a test can say what no proper writer would."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.servers.images import BuiltImage

Members = Mapping[str, bytes] | Iterable[tuple[str, bytes | tarfile.TarInfo]]


def make_archive(members: Members) -> bytes:
    """A tar of regular files; a TarInfo in the place of the bytes is put there as it is, under that name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            if isinstance(data, tarfile.TarInfo):
                data.name = name
                tar.addfile(data)
                continue
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def symlink(target: str) -> tarfile.TarInfo:
    """A symbolic link."""
    member = tarfile.TarInfo()
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member


def docker_members(image: BuiltImage, tags: Sequence[str] | None, **changes: Any) -> dict[str, bytes]:
    """A docker-archive of one image as Docker 25 and later write it.

    Args:
        changes: fields of the element of ``manifest.json`` that replace what is there.
    """
    layers = {f"blobs/sha256/{diff_id[7:]}": layer for diff_id, layer in zip(image.diff_ids, image.layers, strict=True)}
    config = f"blobs/sha256/{image.image_id[7:]}"
    names = [f"blobs/sha256/{diff_id[7:]}" for diff_id in image.diff_ids]
    entry = {"Config": config, "RepoTags": None if tags is None else list(tags), "Layers": names} | changes
    return {**layers, config: image.config, "manifest.json": json.dumps([entry]).encode()}


def merged(*archives: Mapping[str, bytes]) -> dict[str, bytes]:
    """Several docker-archives as one."""
    members = {name: data for archive in archives for name, data in archive.items()}
    members["manifest.json"] = json.dumps([entry for one in archives for entry in json.loads(one["manifest.json"])]).encode()
    return members


def legacy_members(
    layers: Sequence[tuple[str, Mapping[str, Any], bytes]], repositories: Mapping[str, Mapping[str, str]] | None
) -> dict[str, bytes]:
    """What docker before 1.10 wrote.

    Args:
        layers: id, fields of its JSON, and tar, of each.
    """
    members: dict[str, bytes] = {}
    for identifier, fields, tar in layers:
        members[f"{identifier}/VERSION"] = b"1.0"
        members[f"{identifier}/json"] = json.dumps({"id": identifier, **fields}).encode()
        members[f"{identifier}/layer.tar"] = tar
    if repositories is not None:
        members["repositories"] = json.dumps(repositories).encode()
    return members


def legacy_image(tars: Sequence[bytes], *, docker_version: str, **fields: Any) -> list[tuple[str, dict[str, Any], bytes]]:
    """The layers of one image, for `legacy_members`; the last one is its top."""
    layers: list[tuple[str, dict[str, Any], bytes]] = []
    for number, tar in enumerate(tars):
        layer = {
            "created": f"2015-04-1{number}T09:15:59.1234{number}0Z",
            "container": "5" * 64,
            "container_config": {"Hostname": "b<&>", "Cmd": ["/bin/sh", "-c", f"#(nop) <step> {number}"], "Env": ["A=1"]},
            "docker_version": docker_version,
            "config": {"Cmd": ["/bin/sh"], "Labels": {"z": "1", "a": "é"}, "Volumes": {"/b": {}, "/a": {}}, "Unknown": 1},
            "architecture": "amd64",
            "os": "linux",
            "Size": len(tar),
            **fields,
        }
        if layers:
            layer["parent"] = layers[-1][0]
        layers.append((f"{number + 1:064x}", layer, tar))
    return layers


def write(path: Path, members: Members) -> Path:
    """A file with `make_archive`'s bytes."""
    path.write_bytes(make_archive(members))
    return path
