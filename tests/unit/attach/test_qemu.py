from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from imgstore.attach.attachment import AttachedDisk
from imgstore.attach.machine import plug_id
from imgstore.attach.qemu import DeviceModel, block_nodes, boot_serials, name_serial, nest, parse_nbd_address, qemu_arguments
from imgstore.device_names import parse_device_name
from imgstore.errors import InvalidError, UnsupportedError


def disk(name: str, *files: str, read_only: bool = False) -> AttachedDisk:
    return AttachedDisk(parse_device_name(name), (), tuple(map(Path, files or ("/s/disk.vmdk",))), read_only)


def devices(words: list[str]) -> list[str]:
    return [after for word, after in pairwise(words) if word == "-device"]


def nodes(words: list[str]) -> list[dict[str, object]]:
    return [json.loads(after) for word, after in pairwise(words) if word == "-blockdev"]


def test_a_chain_is_named_file_by_file() -> None:
    path = 'a "file", with=all?of%it.vmdk'
    words = qemu_arguments([disk("container/web", "/scratch.vmdk", "/layer.vmdk", f"/{path}")])
    assert nodes(words) == [
        {
            "driver": "vmdk",
            "node-name": "root-0",
            "read-only": True,
            "file": {"driver": "file", "filename": "/scratch.vmdk"},
            "backing": None,
        },
        {
            "driver": "vmdk",
            "node-name": "root-1",
            "read-only": True,
            "file": {"driver": "file", "filename": "/layer.vmdk"},
            "backing": "root-0",
        },
        {
            "driver": "vmdk",
            "node-name": "root",
            "read-only": False,
            "file": {"driver": "file", "filename": f"/{path}"},
            "backing": "root-1",
        },
    ]
    assert devices(words) == ["virtio-blk-pci,drive=root,serial=root"]


def test_serials_are_counted_by_kind_and_names_of_nodes_differ() -> None:
    names = ["container/a", "volume/x", "image/i", "volume/y", "container/b"]
    disks = [disk(name, *(f"/{name}-{depth}" for depth in range(4))) for name in names]
    assert boot_serials(disks) == ["root", "volume-1", "image-1", "volume-2", "container-2"]
    made = [node["node-name"] for node in nodes(qemu_arguments(disks))]
    assert len(set(made)) == len(made) == 20


def test_models() -> None:
    disks = [disk("volume/a"), disk("image/b", read_only=True)]
    assert devices(qemu_arguments(disks, model=DeviceModel.NVME)) == [
        "nvme,drive=volume-1,serial=volume-1",
        "nvme,drive=image-1,serial=image-1",
    ]
    assert devices(qemu_arguments(disks, model=DeviceModel.VIRTIO_SCSI)) == [
        "virtio-scsi-pci,id=scsi",
        "scsi-hd,bus=scsi.0,drive=volume-1,serial=volume-1",
        "scsi-hd,bus=scsi.0,drive=image-1,serial=image-1",
    ]


def test_a_server_has_the_disks() -> None:
    server = parse_nbd_address("unix:///run/a socket")
    assert nodes(qemu_arguments([disk("image/a/b:1?snapshot")], nbd=server)) == [
        {
            "driver": "nbd",
            "node-name": "image-1",
            "server": {"type": "unix", "path": "/run/a socket"},
            "export": "image/a/b:1?snapshot",
            "read-only": False,
            "discard": "unmap",
        }
    ]


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("tcp://host", "host", "10809"),
        ("tcp://127.0.0.1:1/", "127.0.0.1", "1"),
        ("tcp://[::1]", "::1", "10809"),
        ("tcp://[::1]:65535", "::1", "65535"),
    ],
)
def test_addresses_of_servers(text: str, host: str, port: str) -> None:
    assert parse_nbd_address(text) == {"type": "inet", "host": host, "port": port}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/run/x",
        "unix://x",
        "unix://",
        "tcp://",
        "tcp://a:0",
        "tcp://a:65536",
        "tcp://::1",
        "tcp://a:b",
        "tls://a",
        "tcp://a/b",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(InvalidError, match="is neither unix:///PATH nor tcp://HOST:PORT"):
        parse_nbd_address(text)


@pytest.mark.parametrize(
    ("name", "serial"),
    [
        ("container/web", "ctr-web"),
        ("volume/sixteen-letters-", "vol-sixteen-letters-"),
        ("image/alpine", "img-alpine"),
        ("image/alpine:3.20", "img-alpine-3-d3dfed"),
        ("volume/one-letter-more--", "vol-one-lette-7d129d"),
        ("image/harbor.example.com/team/app:1.1", "img-app-1.1-746355"),
    ],
)
def test_serials_of_names(name: str, serial: str) -> None:
    assert name_serial(disk(name)) == serial
    assert len(serial) <= 20


def test_long_names_differ_in_their_digits() -> None:
    first, second = (name_serial(disk(f"volume/{'v' * 40}{end}")) for end in "ab")
    assert first != second and first[:14] == second[:14] and len(first) == 20


def test_nodes_inside_each_other() -> None:
    chain = disk("volume/v", "/a", "/b", "/c", read_only=True)
    node = nest(block_nodes(chain, plug_id(chain)))
    assert node["backing"]["backing"]["file"]["filename"] == "/a" and node["backing"]["backing"]["backing"] is None
    assert [node["node-name"], node["backing"]["node-name"]] == [plug_id(chain), f"{plug_id(chain)}-1"]


def test_ids_are_of_the_file() -> None:
    assert plug_id(disk("image/a", "/x", "/y")) == plug_id(disk("image/a:latest", "/y"))
    assert plug_id(disk("image/a", "/y")) != plug_id(disk("image/a?snapshot", "/y"))
    deepest = block_nodes(disk("image/a", *map(str, range(1024))), plug_id(disk("image/a")))[-2]["node-name"]
    assert len(deepest) <= 31  # of BlockDriverState.node_name


def test_a_file_whose_name_is_not_utf8() -> None:
    with pytest.raises(UnsupportedError, match="names are UTF-8"):
        qemu_arguments([disk("volume/v", "/caf\udce9.vmdk")])
