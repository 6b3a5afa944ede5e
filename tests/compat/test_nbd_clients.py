"""Clients of the NBD server that others made: libnbd's programs, QEMU's, and fio; each in the ways that it is used."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imgstore.blocks import GRAIN
from imgstore.nbd.exports import Exports
from imgstore.store import ImageStore
from tests.command_line import REFERENCE
from tests.servers.authority import Authority
from tests.servers.nbd import Disk, Disks, NbdEndpoint, nbd_server
from tests.tools import need, run

IMAGE = "image/three-layers"
VOLUME = "volume/data"
CONTAINER = "container/web"
MIB = 1 << 20


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageStore]:
    with ImageStore.create(str(tmp_path_factory.mktemp("nbd") / "store"), disk_size=64 * MIB) as store:
        store.pull(REFERENCE)
        store.create_container("three-layers", name="web")
        store.create_volume("data", options={"Capacity": "64"})
        yield store


@pytest.fixture(scope="module")
def served(store: ImageStore) -> Iterator[NbdEndpoint]:
    with nbd_server(store) as server:
        yield server


@pytest.fixture(scope="module")
def image(store: ImageStore) -> bytes:
    device = store.open_device(IMAGE)
    try:
        return device.read(0, device.size)
    finally:
        device.close()


def nbdinfo(*words: str) -> Any:
    need("nbdinfo")
    return json.loads(run("nbdinfo", "--json", *words).stdout)


def test_nbdinfo(served: NbdEndpoint) -> None:
    (export,) = nbdinfo(served.uri(IMAGE))["exports"]
    assert (export["export-size"], export["is_read_only"], export["can_multi_conn"]) == (64 * MIB, True, True)
    assert (export["block_size_minimum"], export["block_size_preferred"], export["block_size_maximum"]) == (1, GRAIN, 32 * MIB)
    assert export["contexts"] == ["base:allocation"]
    (export,) = nbdinfo(served.uri(VOLUME))["exports"]
    assert not export["is_read_only"] and not export["can_multi_conn"]
    assert export["can_trim"] and export["can_zero"] and export["can_fast_zero"] and export["can_fua"]


def test_nbdinfo_lists(served: NbdEndpoint) -> None:
    listed = nbdinfo("--list", served.uri(""))["exports"]
    assert [export["export-name"] for export in listed] == [f"{IMAGE}:latest", CONTAINER, VOLUME]
    assert all(export["description"] for export in listed)


def test_maps_tell_holes(served: NbdEndpoint, store: ImageStore) -> None:
    device = store.open_device(IMAGE)
    extents = [(extent.offset, extent.length, extent.kind.value) for extent in device.extents()]
    device.close()
    kinds = {"data": "data", "hole,zero": "hole"}
    shown = json.loads(run("nbdinfo", "--map", "--json", served.uri(IMAGE)).stdout)
    assert [(row["offset"], row["length"], kinds[row["description"]]) for row in shown] == extents
    need("qemu-img")
    shown = json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", served.uri(IMAGE)).stdout)
    assert [(row["start"], row["length"], "data" if row["data"] else "hole") for row in shown] == extents


@pytest.mark.parametrize("words", [(), ("--no-extents",), ("--connections=4", "--requests=64"), ("--request-size=33554432",)])
def test_nbdcopy(served: NbdEndpoint, image: bytes, tmp_path: Path, words: tuple[str, ...]) -> None:
    need("nbdcopy")
    copy = tmp_path / "copy.raw"
    run("nbdcopy", *words, served.uri(IMAGE), copy)
    assert copy.read_bytes() == image


def test_nbdcopy_there_and_back(served: NbdEndpoint, tmp_path: Path) -> None:
    chance = random.Random(1)
    raw, back = tmp_path / "raw", tmp_path / "back"
    with raw.open("wb") as file:
        file.truncate(64 * MIB)
        for _ in range(20):
            file.seek(chance.randrange(63 * MIB))
            file.write(chance.randbytes(chance.randrange(1, 3 * GRAIN)))
    run("nbdcopy", "--flush", raw, served.uri(VOLUME))
    run("nbdcopy", served.uri(VOLUME), back)
    assert back.read_bytes() == raw.read_bytes()


def test_qemu_img(served: NbdEndpoint, image: bytes, tmp_path: Path) -> None:
    need("qemu-img")
    raw, converted = tmp_path / "image.raw", tmp_path / "image.qcow2"
    raw.write_bytes(image)
    assert json.loads(run("qemu-img", "info", "--output=json", served.uri(IMAGE)).stdout)["virtual-size"] == 64 * MIB
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", served.uri(IMAGE), raw)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", served.uri(IMAGE), converted)
    run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", converted, raw)
    run("qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", converted, served.uri(CONTAINER))
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", served.uri(CONTAINER), raw)


def test_qemu_io(served: NbdEndpoint, store: ImageStore) -> None:
    need("qemu-io")
    words = ["write -P 1 0 1M", "write -P 2 -f 1000k 100k", "write -z 512k 64k", "write -zu 576k 64k", "discard 2M 1M", "flush"]
    reads = ["read -P 1 0 512k", "read -P 0 512k 128k", "read -P 1 768k 64k", "read -P 2 1000k 100k"]
    commands = [word for command in (*words, *reads) for word in ("-c", command)]
    assert b"failed" not in run("qemu-io", "-f", "raw", *commands, served.uri(VOLUME)).stdout
    device = store.open_device(VOLUME)  # QEMU does not wait for the end of its connection; the volume is free all the same
    assert device.read(1000 << 10, 100 << 10) == b"\2" * (100 << 10)
    device.close()


def test_private_copies(served: NbdEndpoint, store: ImageStore, image: bytes) -> None:
    need("qemu-io")
    uri = served.uri(f"{IMAGE}%3Fsnapshot")
    assert b"failed" not in run("qemu-io", "-f", "raw", "-c", "write -P 9 0 1M", "-c", "read -P 9 0 1M", uri).stdout
    device = store.open_device(IMAGE)
    assert device.read(0, device.size) == image
    device.close()
    done = run("qemu-io", "-f", "raw", "-c", "write 0 1M", served.uri(IMAGE), check=False)
    assert done.returncode == 1 and b"Permission denied" in done.stderr


def test_fio_verifies(served: NbdEndpoint) -> None:
    need("fio")
    job = ("--name=v", "--ioengine=nbd", f"--uri={served.uri(VOLUME)}", "--iodepth=16", "--size=16M", "--randseed=1")
    run(
        "fio",
        *job,
        "--rw=randwrite",
        "--bsrange=512-128k",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--fsync=64",
    )


@pytest.fixture
def tls(tmp_path: Path) -> Iterator[tuple[Authority, NbdEndpoint]]:
    authority = Authority(tmp_path / "authority")
    disk = Disk(read_only=True)
    disk.memory.write(0, b"\1" * MIB)
    with nbd_server(Disks({"disk": disk}), tls=authority.server_context(client_ca=authority.ca_file)) as server:
        yield authority, server


def credentials(authority: Authority, directory: Path, *, client: bool) -> Path:
    """A directory as GnuTLS's programs want it."""
    directory.mkdir()
    shutil.copy(authority.ca_file, directory / "ca-cert.pem")
    if client:
        shutil.copy(authority.client[0], directory / "client-cert.pem")
        shutil.copy(authority.client[1], directory / "client-key.pem")
    return directory


def test_tls(tls: tuple[Authority, NbdEndpoint], tmp_path: Path) -> None:
    authority, server = tls
    known = credentials(authority, tmp_path / "known", client=True)
    unknown = credentials(authority, tmp_path / "unknown", client=False)
    uri = f"nbds://localhost:{server.port}/disk?tls-certificates="
    shown = nbdinfo(f"{uri}{known}")
    assert shown["TLS"] and shown["exports"][0]["export-size"] == 8 * MIB
    run("nbdcopy", f"{uri}{known}", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"\1" * MIB + bytes(7 * MIB)
    for refused in (f"{uri}{unknown}", f"nbd://localhost:{server.port}/disk"):
        assert run("nbdinfo", refused, check=False).returncode != 0
    need("qemu-img")
    options = f"driver=nbd,host=localhost,port={server.port},export=disk,tls-creds=tls"
    creds = f"tls-creds-x509,id=tls,endpoint=client,dir={known}"
    run("qemu-img", "convert", "--object", creds, "--image-opts", options, "-O", "raw", tmp_path / "converted")
    assert (tmp_path / "converted").read_bytes() == (tmp_path / "copy").read_bytes()


def test_exports_that_are_chosen(store: ImageStore, tmp_path: Path) -> None:
    need("nbdinfo", "qemu-io")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(nbd_server(store, names=[CONTAINER], read_only=True))
        (export,) = nbdinfo("--list", server.uri(""))["exports"]
        assert (export["export-name"], export["is_read_only"]) == (CONTAINER, True)
        assert nbdinfo(server.uri(""))["exports"][0]["can_multi_conn"]
        run("nbdcopy", "--connections=4", server.uri(""), "null:")
        assert run("nbdinfo", server.uri(VOLUME), check=False).returncode != 0
        assert b"Permission denied" in run("qemu-io", "-f", "raw", "-c", "write 0 512", server.uri(""), check=False).stderr
    assert [name for name, _ in Exports(store).list()] == [f"{IMAGE}:latest".encode(), CONTAINER.encode(), VOLUME.encode()]
