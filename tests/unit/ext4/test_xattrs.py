from __future__ import annotations

import pytest

from imgstore.errors import CorruptError
from imgstore.ext4.xattrs import (
    INODE_ROOM,
    XattrsError,
    decode_inode_xattrs,
    decode_xattr_block,
    encode_xattrs,
    entry_hash,
    seal_xattr_block,
    xattr_block_problems,
)

ACL = bytes.fromhex("02000000 01000600ffffffff 02000600e8030000 04000400ffffffff 10000600ffffffff 20000400ffffffff")


def decode(area: bytes, block: bytes | None) -> dict[bytes, bytes]:
    found = decode_inode_xattrs(area, "inode")
    if block is not None:
        found.update(decode_xattr_block(seal_xattr_block(block, 7, 3), 7, 3, "block"))
    return found


@pytest.mark.parametrize(
    ("xattrs", "needs_block"),
    [
        ({}, False),
        ({b"user.a": b""}, False),
        ({b"security.capability": bytes(range(20)), b"user.a": b"b"}, False),
        ({b"user.a": b"x" * 68}, False),
        ({b"user.a": b"x" * 69}, True),
        ({b"user.a": b"x" * (4096 - 32 - 4 - 20)}, True),
        ({b"user." + b"n" * 250: b"v", b"trusted.t": b"t", b"security.s": b"s", b"system.x": b"y"}, True),
        ({b"system.posix_acl_access": ACL, b"system.posix_acl_default": ACL}, False),
        ({b"user.%d" % number: b"v" * number for number in range(50)}, True),
    ],
)
def test_round_trip(xattrs: dict[bytes, bytes], needs_block: bool) -> None:
    area, block = encode_xattrs(xattrs)
    assert len(area) == INODE_ROOM
    assert (block is not None) == needs_block
    assert decode(area, block) == xattrs
    if block is not None:
        assert len(block) == 4096
        assert xattr_block_problems(block) == []


def test_order_of_the_mapping_does_not_matter() -> None:
    xattrs = {b"user.b": b"1", b"user.a": b"2" * 200, b"trusted.a": b"3"}
    assert encode_xattrs(xattrs) == encode_xattrs(dict(reversed(xattrs.items())))


def test_acl_is_shorter_on_the_disk() -> None:
    area, _ = encode_xattrs({b"system.posix_acl_access": ACL})
    disk = bytes.fromhex("01000000 01000600 02000600e8030000 04000400 10000600 20000400")
    assert disk in area
    assert b"posix" not in area


@pytest.mark.parametrize(
    ("xattrs", "words"),
    [
        ({b"user.a": b"x" * (4096 - 32 - 4 - 19)}, r"take 4064 bytes, one block holds 4060 \(bytes: user\.a 4041\)"),
        ({b"nonsense.a": b""}, "no place for the name"),
        ({b"user": b""}, "no place for the name"),
        ({b"user.": b""}, "no place for the name"),
        ({b"user." + b"n" * 251: b""}, "no place for the name"),
        ({b"user.a\0b": b""}, "no place for the name"),
        ({b"system.posix_acl_access": b""}, "no ACL of version 2"),
        ({b"system.posix_acl_access": ACL[:-1]}, "no ACL of version 2"),
        ({b"system.posix_acl_access": b"\1" + ACL[1:]}, "no ACL of version 2"),
        ({b"system.posix_acl_access": ACL[:4] + b"\3" + ACL[5:]}, "tag 0x3"),
    ],
)
def test_what_cannot_be_held(xattrs: dict[bytes, bytes], words: str) -> None:
    with pytest.raises(XattrsError, match=words):
        encode_xattrs(xattrs)


def test_hashes_of_both_kinds_of_char() -> None:
    assert entry_hash(b"ascii", b"value") == entry_hash(b"ascii", b"value", signed=True)
    assert entry_hash(b"\xc3\xa4", b"value") != entry_hash(b"\xc3\xa4", b"value", signed=True)


@pytest.mark.parametrize("position", range(0, 80, 3))
def test_damaged_block_is_found(position: int) -> None:
    _, block = encode_xattrs({b"user.a": b"x" * 100, b"user.b": b"y" * 100})
    assert block is not None
    damaged = bytearray(seal_xattr_block(block, 7, 3))
    damaged[position] ^= 0x55
    with pytest.raises(CorruptError, match="block: "):
        decode_xattr_block(bytes(damaged), 7, 3, "block")


def test_unsorted_block_is_found() -> None:
    _, block = encode_xattrs({b"user.a": b"x" * 100, b"user.b": b"y" * 100})
    assert block is not None
    assert xattr_block_problems(block[:32] + block[52:72] + block[32:52] + block[72:]) == [
        "the attributes are not sorted",
        xattr_block_problems(block[:32] + block[52:72] + block[32:52] + block[72:])[1],
    ]


@pytest.mark.parametrize("area", [b"\0\0\2\xea" + b"\xff" * 92, b"\0\0\2\xea" + b"\1\1\0\0" * 23])
def test_damaged_area_is_found(area: bytes) -> None:
    with pytest.raises(CorruptError, match="inode 5: extended attribute"):
        decode_inode_xattrs(area, "inode 5")


def test_area_without_magic_has_none() -> None:
    assert decode_inode_xattrs(b"\xff" * 96, "inode") == {}
