from __future__ import annotations

import pytest

from imgstore.changes import FileType
from imgstore.errors import CorruptError
from imgstore.ext4 import checksums
from imgstore.ext4.inodes import decode_device, decode_inode, decode_time, encode_device, encode_time
from imgstore.ext4.structures import INODE, INODE_SIZE, Inode, InodeFlag

SECOND = 10**9
EARLIEST = -(1 << 31) * SECOND
LATEST = ((1 << 31) - 1 + (3 << 32)) * SECOND + SECOND - 1


@pytest.mark.parametrize("time", [EARLIEST, -1, 0, 1, (1 << 31) * SECOND - 1, (1 << 31) * SECOND, 5 << 62, LATEST])
def test_time_round_trips(time: int) -> None:
    time = min(time, LATEST)
    assert decode_time(*encode_time(time)) == time


@pytest.mark.parametrize(
    ("time", "clamped"), [(EARLIEST - 1, EARLIEST), (-(1 << 80), EARLIEST), (LATEST + 1, LATEST), (1 << 80, LATEST)]
)
def test_time_is_clamped(time: int, clamped: int) -> None:
    assert decode_time(*encode_time(time)) == clamped


def test_time_as_the_kernel_documents_it() -> None:
    """The table of Documentation/filesystems/ext4/inodes.rst: epoch bits and the 32-bit seconds."""
    assert encode_time((0x80000000) * SECOND) == (0x80000000, 1)
    assert encode_time((0x17FFFFFFF) * SECOND + 7) == (0x7FFFFFFF, 7 << 2 | 1)
    assert encode_time((0x180000000) * SECOND) == (0x80000000, 2)
    assert encode_time(-1 * SECOND) == (0xFFFFFFFF, 0)


@pytest.mark.parametrize("device", [(0, 0), (1, 3), (255, 255), (256, 0), (0, 256), (300, 70000), (4095, (1 << 20) - 1)])
def test_device_round_trips(device: tuple[int, int]) -> None:
    assert len(encode_device(*device)) == 60
    assert decode_device(encode_device(*device)) == device


def sealed(inode: Inode, number: int = 12, seed: int = 7) -> bytes:
    checksum = checksums.inode(seed, number, inode.to_bytes())
    inode.checksum_lo, inode.checksum_hi = checksum & 0xFFFF, checksum >> 16
    return inode.to_bytes()


def test_inode_and_its_struct_are_one_declaration() -> None:
    assert INODE.size == INODE_SIZE
    inode = Inode(
        mode=0o100644, uid_lo=1, uid_hi=2, gid_lo=3, gid_hi=4, size_lo=5, size_hi=6, links=7, blocks_lo=8, block=b"b" * 60
    )
    values = INODE.unpack(inode.to_bytes())
    assert values == tuple(getattr(inode, name) for name in Inode._fields)


def test_decode() -> None:
    raw = sealed(
        Inode(mode=0o104755, uid_lo=1, uid_hi=2, gid_lo=3, size_hi=1, links=2, mtime=5, mtime_extra=4, flags=InodeFlag.EXTENTS)
    )
    node = decode_inode(raw, 12, "inode 12", seed=7)
    assert (node.type, node.mode, node.uid, node.gid, node.size, node.mtime_ns) == (
        FileType.REGULAR,
        0o4755,
        1 | 2 << 16,
        3,
        1 << 32,
        5 * SECOND + 1,
    )


def test_huge_file_counts_blocks() -> None:
    node = decode_inode(sealed(Inode(mode=0o100644, links=1, blocks_lo=3, flags=InodeFlag.HUGE_FILE)), 12, "", seed=7)
    assert node.sectors == 24


@pytest.mark.parametrize(
    ("inode", "words"),
    [
        (Inode(mode=0, links=1), "mode 00 is of no file"),
        (Inode(mode=0o070644, links=1), "is of no file"),
        (Inode(mode=0o100644, links=0), "no links"),
        (Inode(mode=0o100644, links=1, extra_isize=3), "extra size is 3"),
        (Inode(mode=0o100644, links=1, extra_isize=132), "extra size is 132"),
        (Inode(mode=0o100644, links=1, flags=InodeFlag.INLINE_DATA), "flags 0x10000000"),
    ],
)
def test_damage_is_named(inode: Inode, words: str) -> None:
    with pytest.raises(CorruptError, match=f"inode 12 at byte 99: .*{words}"):
        decode_inode(inode.to_bytes(), 12, "inode 12 at byte 99", seed=None)


def test_wrong_checksum() -> None:
    with pytest.raises(CorruptError, match="inode 13: checksum is 0x"):
        decode_inode(sealed(Inode(mode=0o100644, links=1), number=12), 13, "inode 13", seed=7)
