"""crc32c as ext4 counts it: seed all ones, and no inversion at the end (``ext4_chksum``).

The package inverts at both ends. A chain of calls can stay inverted, which the hot loops use: ``inverted`` seeds go straight into
``crc32c.crc32c``.
"""

from __future__ import annotations

import struct

from crc32c import crc32c

from imgstore.blocks import Bytes

ALL_ONES = 0xFFFFFFFF
_PAIR = struct.Struct("<II")


def update(seed: int, data: Bytes) -> int:
    """The kernel's ``crc32c(seed, data)``."""
    return crc32c(data, seed ^ ALL_ONES) ^ ALL_ONES


def super_block(block: bytes) -> int:
    """Of the 1024 bytes of a superblock."""
    return update(ALL_ONES, block[:0x3FC])


def group_descriptor(seed: int, group: int, descriptor: bytes) -> int:
    """Of a descriptor of any size; its checksum field is skipped as the kernel does, by counting zeros there."""
    value = update(seed, group.to_bytes(4, "little"))
    return update(value, descriptor[:0x1E] + b"\0\0" + descriptor[0x20:]) & 0xFFFF


def inode_seed(seed: int, number: int, generation: int) -> int:
    """Seed of all that belongs to one inode."""
    return update(seed, _PAIR.pack(number, generation))


def inode(seed: int, number: int, data: Bytes) -> int:
    """Of an inode of 128 bytes or more; 16 bits wide if it has no room for the high half."""
    plain = bytearray(data)
    generation = int.from_bytes(plain[100:104], "little")
    plain[124:126] = b"\0\0"
    wide = len(plain) > 128 and int.from_bytes(plain[128:130], "little") >= 4
    if wide:
        plain[130:132] = b"\0\0"
    value = update(inode_seed(seed, number, generation), plain)
    return value if wide else value & 0xFFFF


def xattr_block(seed: int, block: int, data: Bytes) -> int:
    """Of an xattr block that lies at ``block``."""
    value = update(seed, block.to_bytes(8, "little"))
    return update(value, bytes(data[:0x10]) + bytes(4) + bytes(data[0x14:]))
