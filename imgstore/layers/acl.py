"""POSIX ACLs: the text that tars hold to the binary form of extended attributes.

Sources: acl(5) for the text, star(5) for the number after a name, ``linux/posix_acl_xattr.h`` for version 2 of the binary form.
"""

from __future__ import annotations

import re
import struct
from typing import Final

from imgstore.layers.tar_header import MAX_ID, MalformedError, shown

_VERSION: Final = struct.pack("<I", 2)
_ENTRY: Final = struct.Struct("<HHI")
_NO_ID: Final = 0xFFFFFFFF

_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_TAGS: Final = {
    b"user": (_USER_OBJ, _USER),
    b"u": (_USER_OBJ, _USER),
    b"group": (_GROUP_OBJ, _GROUP),
    b"g": (_GROUP_OBJ, _GROUP),
    b"mask": (_MASK, None),
    b"m": (_MASK, None),
    b"other": (_OTHER, None),
    b"o": (_OTHER, None),
}

_PERMISSIONS = re.compile(rb"[r-][w-][xX-]")
_MAX_TEXT: Final = 1 << 16


def parse_acl(value: bytes) -> bytes | None:
    """The version-2 form of an ACL in text, or None if it says no more than mode bits do.

    Entries are separated by commas or newlines. A named user or group is a number, or a name with its number as a fourth field, as
    star and libarchive write: names alone mean nothing without the image's own /etc/passwd.

    Raises:
        MalformedError: no ACL, or names without numbers.
    """
    if len(value) > _MAX_TEXT:
        raise MalformedError(f"ACL has {len(value)} bytes of text, more than {_MAX_TEXT}")
    entries: set[tuple[int, int]] = set()
    permissions: dict[tuple[int, int], int] = {}
    for line in re.split(rb"[,\n]", value):
        words = line.partition(b"#")[0].strip()
        if not words:
            continue
        key, bits = _parse_entry(words)
        if key in permissions:
            raise MalformedError(f"ACL has two entries for {shown(words)}")
        permissions[key] = bits
    entries = set(permissions)
    for tag, word in ((_USER_OBJ, "user::"), (_GROUP_OBJ, "group::"), (_OTHER, "other::")):
        if (tag, _NO_ID) not in entries:
            raise MalformedError(f"ACL has no {word} entry")
    if len(entries) == 3:
        return None
    if (_MASK, _NO_ID) not in entries:
        raise MalformedError("ACL names users or groups and has no mask")
    packed = (_ENTRY.pack(tag, permissions[tag, number], number) for tag, number in sorted(entries))
    return _VERSION + b"".join(packed)


def _parse_entry(words: bytes) -> tuple[tuple[int, int], int]:
    fields = [field.strip() for field in words.split(b":")]
    if len(fields) == 2 and fields[0] in (b"mask", b"m", b"other", b"o"):
        fields.insert(1, b"")  # Solaris writes ``other:r--``
    if not 3 <= len(fields) <= 4 or fields[0] not in _TAGS or _PERMISSIONS.fullmatch(fields[2]) is None:
        raise MalformedError(f"ACL entry is {shown(words)}, not TAG:QUALIFIER:rwx")
    owner, named = _TAGS[fields[0]]
    bits = sum(bit for letter, bit in zip(fields[2], (4, 2, 1), strict=True) if letter != 0x2D)
    if not fields[1]:
        if len(fields) == 4 and fields[3]:
            raise MalformedError(f"ACL entry {shown(words)} has a number and no name")
        return (owner, _NO_ID), bits
    if named is None:
        raise MalformedError(f"ACL entry {shown(words)} can have no qualifier")
    number = fields[3] if len(fields) == 4 else fields[1]
    if not number.isdigit() or len(number) > 10 or int(number) > MAX_ID:
        raise MalformedError(f"ACL entry {shown(words)} has no numeric id; write the tar with numeric owners")
    return (named, int(number)), bits
