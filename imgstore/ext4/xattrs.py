"""Extended attributes: first in the room that the inode leaves, then in one block (``fs/ext4/xattr.h``).

Names and values are those of ``getxattr(2)``: the prefix is spelled out, and a POSIX ACL is in the version-2 form of
``linux/posix_acl_xattr.h``, which on the disk is the shorter form of ``fs/ext4/acl.h``.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

from imgstore.errors import CorruptError, InvalidError
from imgstore.ext4 import checksums
from imgstore.ext4.structures import BLOCK_SIZE, XATTR_ENTRY, XATTR_MAGIC, XattrHeader

INODE_ROOM = 96
"""Bytes of the inode behind its fixed fields: magic, entries, a null, values."""

_MAGIC = XATTR_MAGIC.to_bytes(4, "little")
_MASK = 0xFFFFFFFF
_TERMINATOR = 4
_NAME_MAX = 255  # of the whole name: XATTR_NAME_MAX of the kernel, which cannot read a longer one
_PREFIXES = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
    7: b"system.",
}
_ACL_INDEXES = (2, 3)
_BY_PREFIX = {prefix: index for index, prefix in _PREFIXES.items()}

_ACL_XATTR_ENTRY = struct.Struct("<HHI")
_ACL_SHORT = struct.Struct("<HH")
_ACL_WITH_ID = (0x02, 0x08)  # ACL_USER, ACL_GROUP
_ACL_WITHOUT_ID = (0x01, 0x04, 0x10, 0x20)  # ACL_USER_OBJ, ACL_GROUP_OBJ, ACL_MASK, ACL_OTHER
_ACL_NO_ID = 0xFFFFFFFF


class XattrsError(InvalidError):
    """Attributes that ext4 cannot hold: unknown prefix, name too long, no ACL, or too big for the inode and one block."""


class _Attribute(NamedTuple):
    """Sorts as the kernel does: by number of the prefix, then length of the name, then name."""

    prefix: int
    length: int
    name: bytes
    value: bytes

    @property
    def size(self) -> int:
        return ((16 + self.length + 3) & ~3) + ((len(self.value) + 3) & ~3)


def encode_xattrs(xattrs: Mapping[bytes, bytes]) -> tuple[bytes, bytes | None]:
    """The 96 bytes for the inode, and the block without its checksum, or None if none is needed.

    Raises:
        XattrsError: they cannot be held; the message has the names and sizes.
    """
    inside: list[_Attribute] = []
    outside: list[_Attribute] = []
    room = INODE_ROOM - 4 - _TERMINATOR
    for attribute in sorted(_split(name, value) for name, value in xattrs.items()):
        if attribute.size <= room:
            room -= attribute.size
            inside.append(attribute)
        else:
            outside.append(attribute)
    total = sum(attribute.size for attribute in outside)
    if total > BLOCK_SIZE - XattrHeader.SIZE - _TERMINATOR:
        sizes = ", ".join(f"{name.decode(errors='backslashreplace')} {len(value)}" for name, value in sorted(xattrs.items()))
        raise XattrsError(
            f"extended attributes take {total} bytes, one block holds {BLOCK_SIZE - XattrHeader.SIZE - _TERMINATOR} (bytes: {sizes})"
        )
    area = _MAGIC + _encode_entries(inside, INODE_ROOM - 4, 0)[0] if inside else bytes(INODE_ROOM)
    if not outside:
        return area, None
    body, hashes = _encode_entries(outside, BLOCK_SIZE - XattrHeader.SIZE, XattrHeader.SIZE)
    return area, XattrHeader(hash=_block_hash(hashes)).to_bytes() + body


def seal_xattr_block(block: bytes, number: int, seed: int) -> bytes:
    """``block`` with the checksum that it has when it lies at block ``number``."""
    return block[:0x10] + checksums.xattr_block(seed, number, block).to_bytes(4, "little") + block[0x14:]


def _split(name: bytes, value: bytes) -> _Attribute:
    if name in _BY_PREFIX and name.startswith(b"system.posix_acl_"):
        return _Attribute(_BY_PREFIX[name], 0, b"", _acl_to_disk(name, value))
    prefix, dot, rest = name.partition(b".")
    index = _BY_PREFIX.get(prefix + dot)
    if index is None or not rest or len(name) > _NAME_MAX or b"\0" in rest:
        raise XattrsError(f"extended attribute {name[:300]!r}: ext4 has no place for the name")
    return _Attribute(index, len(rest), rest, bytes(value))


def _encode_entries(attributes: list[_Attribute], room: int, base: int) -> tuple[bytes, list[int]]:
    """Entries from the front, values from the back of ``room`` bytes; value offsets count from ``base`` before them."""
    out = bytearray(room)
    hashes = []
    front, back = 0, room
    for index, length, name, value in attributes:
        back -= (len(value) + 3) & ~3
        digest = entry_hash(name, value)
        hashes.append(digest)
        XATTR_ENTRY.pack_into(out, front, length, index, back + base if value else 0, 0, len(value), digest)
        out[front + 16 : front + 16 + length] = name
        out[back : back + len(value)] = value
        front += (16 + length + 3) & ~3
    return bytes(out), hashes


def entry_hash(name: bytes, value: bytes, *, signed: bool = False) -> int:
    """``ext4_xattr_hash_entry``; ``signed`` is the form of old kernels on x86, which differs for names beyond ASCII."""
    digest = 0
    for byte in name:
        digest = (digest << 5 & _MASK) ^ (digest >> 27) ^ (byte if byte < 128 or not signed else byte | 0xFFFFFF00)
    padded = value + bytes(-len(value) % 4)
    for (word,) in struct.iter_unpack("<I", padded):
        digest = (digest << 16 & _MASK) ^ (digest >> 16) ^ word
    return digest


def _block_hash(hashes: list[int]) -> int:
    """``ext4_xattr_rehash``: 0, which means not to be shared, if one entry has none."""
    digest = 0
    for value in hashes:
        if not value:
            return 0
        digest = (digest << 16 & _MASK) ^ (digest >> 16) ^ value
    return digest


def decode_inode_xattrs(area: bytes, where: str) -> dict[bytes, bytes]:
    """The attributes in the inode; ``area`` is all that follows its fixed fields. None if there is no magic.

    Raises:
        CorruptError: an entry or a value leaves the area.
    """
    if area[:4] != _MAGIC:
        return {}
    return dict(pair for pair, _ in _decode_entries(area[4:], 0, where))


def decode_xattr_block(block: bytes, number: int, seed: int | None, where: str) -> dict[bytes, bytes]:
    """The attributes in a block that lies at block ``number``.

    Raises:
        CorruptError: header, checksum, an entry or a value is wrong.
    """
    try:
        header = XattrHeader.from_bytes(block)
    except CorruptError as error:
        raise CorruptError(f"{where}: {error}") from None
    if seed is not None and header.checksum != (expected := checksums.xattr_block(seed, number, block)):
        raise CorruptError(f"{where}: checksum is 0x{header.checksum:08x}, the bytes give 0x{expected:08x}")
    return dict(pair for pair, _ in _decode_entries(block[XattrHeader.SIZE :], XattrHeader.SIZE, where))


def xattr_block_problems(block: bytes) -> list[str]:
    """What is wrong with a readable block that readers pass over: order and hashes."""
    problems = []
    header = XattrHeader.from_bytes(block)
    order = []
    hashes = []
    for (name, value), (index, disk_name, disk_value, digest) in _decode_entries(
        block[XattrHeader.SIZE :], XattrHeader.SIZE, "block"
    ):
        del value
        order.append((index, len(disk_name), disk_name))
        hashes.append(digest)
        if digest not in (entry_hash(disk_name, disk_value), entry_hash(disk_name, disk_value, signed=True)):
            problems.append(f"hash of {name!r} is 0x{digest:08x}, not 0x{entry_hash(disk_name, disk_value):08x}")
    if order != sorted(set(order)):
        problems.append("the attributes are not sorted")
    if header.hash != _block_hash(hashes):
        problems.append(f"hash of the block is 0x{header.hash:08x}, not 0x{_block_hash(hashes):08x}")
    return problems


def _decode_entries(data: bytes, base: int, where: str) -> list[tuple[tuple[bytes, bytes], tuple[int, bytes, bytes, int]]]:
    found: list[tuple[tuple[bytes, bytes], tuple[int, bytes, bytes, int]]] = []
    position = 0
    while True:
        if position + 4 > len(data):
            raise CorruptError(f"{where}: extended attributes do not end before byte {base + len(data)}")
        if data[position : position + 4] == bytes(4):
            return found
        if position + 16 > len(data):
            raise CorruptError(f"{where}: extended attribute at byte {base + position} does not fit")
        length, index, offset, inode, size, digest = XATTR_ENTRY.unpack_from(data, position)
        start = offset - base
        if position + 16 + length > len(data) or inode or (size and (start < 0 or start + size > len(data))):
            raise CorruptError(
                f"{where}: extended attribute at byte {base + position} has a name of {length} and a value of {size} bytes at {offset}"
            )
        name = data[position + 16 : position + 16 + length]
        value = data[start : start + size] if size else b""
        prefix = _PREFIXES.get(index, b"unknown-%d." % index)
        if index in _ACL_INDEXES:
            found.append(((prefix, _acl_from_disk(value, where)), (index, name, value, digest)))
        else:
            found.append(((prefix + name, value), (index, name, value, digest)))
        position += (16 + length + 3) & ~3


def _acl_to_disk(name: bytes, value: bytes) -> bytes:
    if len(value) < 4 or (len(value) - 4) % 8 or value[:4] != b"\2\0\0\0":
        raise XattrsError(f"extended attribute {name.decode()}: {len(value)} bytes are no ACL of version 2")
    parts = [b"\1\0\0\0"]
    for tag, permissions, identity in _ACL_XATTR_ENTRY.iter_unpack(value[4:]):
        if tag in _ACL_WITH_ID:
            parts.append(_ACL_XATTR_ENTRY.pack(tag, permissions, identity))
        elif tag in _ACL_WITHOUT_ID:
            parts.append(_ACL_SHORT.pack(tag, permissions))
        else:
            raise XattrsError(f"extended attribute {name.decode()}: tag 0x{tag:x} is not one of an ACL")
    return b"".join(parts)


def _acl_from_disk(value: bytes, where: str) -> bytes:
    if value[:4] != b"\1\0\0\0":
        raise CorruptError(f"{where}: ACL has version {value[:4].hex()}, not 01000000")
    parts = [b"\2\0\0\0"]
    position = 4
    while position < len(value):
        size = 8 if int.from_bytes(value[position : position + 2], "little") in _ACL_WITH_ID else 4
        if position + size > len(value):
            raise CorruptError(f"{where}: ACL of {len(value)} bytes ends inside an entry")
        tag, permissions = _ACL_SHORT.unpack_from(value, position)
        identity = int.from_bytes(value[position + 4 : position + 8], "little") if size == 8 else _ACL_NO_ID
        parts.append(_ACL_XATTR_ENTRY.pack(tag, permissions, identity))
        position += size
    return b"".join(parts)
