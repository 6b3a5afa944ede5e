"""Damaged disks: whatever byte is wrong, the answer is a finding or an error of ours, and never another program's surprise."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from imgstore.blocks import GRAIN
from imgstore.datastores import LocalDatastore, MemoryDatastore
from imgstore.errors import CorruptError, NotFoundError, UnsupportedError
from imgstore.vmdk import check_disk, open_chain
from tests.disks import add_chain, path_of
from tests.tools import need, run

METADATA = GRAIN


@pytest.fixture(scope="module")
def sound() -> tuple[bytes, bytearray, MemoryDatastore]:
    datastore = MemoryDatastore()
    _, model = add_chain(datastore, 2, seed=3, size=33 << 20)
    return datastore.fs.readbytes(path_of("d1")), model, datastore


def damage(data: bytes, chance: random.Random) -> bytes:
    """One to four changes in the metadata, or a file cut short or made longer."""
    changed = bytearray(data)
    for _ in range(chance.randrange(1, 5)):
        offset = chance.choice((chance.randrange(512), chance.randrange(512, 1024), chance.randrange(METADATA)))
        match chance.randrange(4):
            case 0:
                changed[offset] ^= 1 << chance.randrange(8)
            case 1:
                changed[offset] = chance.randrange(256)
            case 2:
                offset &= ~3
                changed[offset : offset + 4] = chance.choice((0, 1, 21, 127, 129, 0xFFFFFFFF, 1 << 31)).to_bytes(4, "little")
            case 3:
                del changed[chance.randrange(len(changed)) :]
                break
    return bytes(changed)


def test_damage_is_a_finding_or_a_typed_error(sound: tuple[bytes, bytearray, MemoryDatastore]) -> None:
    data, model, datastore = sound
    chance = random.Random(11)
    silent = refused = 0
    try:
        for _ in range(500):
            changed = damage(data, chance)
            datastore.fs.writebytes(path_of("d1"), changed)
            with datastore.open(path_of("d1")) as file:
                findings = check_disk(file)
            try:
                with open_chain(datastore.open, path_of("d1")) as chain:
                    content = chain.read(0, chain.size)
            except (CorruptError, UnsupportedError, NotFoundError):
                refused += 1
                continue
            if content != model:
                assert findings, "wrong bytes without a finding"
            silent += not findings
    finally:
        datastore.fs.writebytes(path_of("d1"), data)
    # Changes of bytes that nothing reads, or of a content id that nobody checks yet, are neither; most are caught.
    assert refused > 200
    assert silent < 200


@pytest.mark.parametrize("value", [1 << 31, 0xFFFFFF00])
def test_what_qemu_finds_we_find(tmp_path: Path, value: int) -> None:
    need("qemu-img")
    offset = 48 * 512  # first entry of the first grain table
    with LocalDatastore(tmp_path) as datastore:
        add_chain(datastore, 1, seed=3)
        disk = datastore.local_path(path_of("d0"))
        disk.chmod(0o644)
        with disk.open("r+b") as out:
            out.seek(offset)
            out.write(value.to_bytes(4, "little"))
        assert run("qemu-img", "check", "-f", "vmdk", disk, check=False).returncode != 0
        with datastore.open(path_of("d0")) as file:
            assert offset in [finding.offset for finding in check_disk(file)]
        with pytest.raises(CorruptError, match=path_of("d0")):
            open_chain(datastore.open, path_of("d0"))
