"""POSIX ACLs: the text that tars hold to the binary form of extended attributes.

Sources: acl(5) for the text, star(5) for the number after a name, ``linux/posix_acl_xattr.h`` for version 2 of the binary form.
"""

from __future__ import annotations

import re
import struct
from typing import Final

from imgstore.errors import CorruptError
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

_TAG_WORDS: Final = {
    _USER_OBJ: "user::",
    _USER: "user:id:",
    _GROUP_OBJ: "group::",
    _GROUP: "group:id:",
    _MASK: "mask::",
    _OTHER: "other::",
}
_NAMED: Final = frozenset({_USER, _GROUP})

_PERMISSIONS = re.compile(rb"[r-][w-][xX-]")
_MAX_TEXT: Final = 1 << 16


def parse_acl(value: bytes) -> bytes:
    """The version-2 form of an ACL in text.

    Entries are separated by commas or newlines. A named user or group is a number, or a name with its number as a fourth field, as
    star and libarchive write: names alone mean nothing without the image's own /etc/passwd.

    Raises:
        MalformedError: no ACL, or names without numbers. Whether the entries make sense together says ``acl_permissions``.
    """
    if len(value) > _MAX_TEXT:
        raise MalformedError(f"ACL has {len(value)} bytes of text, more than {_MAX_TEXT}")
    entries: list[tuple[int, int, int]] = []
    for line in re.split(rb"[,\n]", value):
        words = line.partition(b"#")[0].strip()
        if words:
            entries.append(_parse_entry(words))
    entries.sort(key=lambda entry: (entry[0], entry[2]))
    return _VERSION + b"".join(_ENTRY.pack(*entry) for entry in entries)


def acl_permissions(acl: bytes) -> tuple[int, bool]:
    """What an ACL in version-2 form says that mode bits say too.

    Returns:
        The nine permission bits that a file with this ACL has (the group's are those of the mask), and whether the ACL
        says more than they do. The kernel keeps no access ACL that does not.

    Raises:
        MalformedError: not what ``posix_acl_from_xattr`` and ``posix_acl_valid`` of the kernel would take.
    """
    if acl[:4] != _VERSION or (len(acl) - 4) % _ENTRY.size:
        raise MalformedError(f"ACL of {len(acl)} bytes is not in version 2 form")
    permissions: dict[tuple[int, int], int] = {}
    previous = (0, 0)
    for tag, bits, number in _ENTRY.iter_unpack(acl[4:]):
        key = (tag, number if tag in _NAMED else _NO_ID)
        if tag not in _TAG_WORDS or bits > 7 or (tag in _NAMED and number > MAX_ID):
            raise MalformedError(f"ACL entry has tag {tag}, permissions {bits} and id {number}")
        if key <= previous:
            raise MalformedError(f"ACL has two {_TAG_WORDS[tag]} entries for one id, or entries out of order")
        permissions[key] = bits
        previous = key
    extended = any(tag in _NAMED for tag, _ in permissions)
    for tag in (_USER_OBJ, _GROUP_OBJ, _OTHER, *([_MASK] if extended else [])):
        if (tag, _NO_ID) not in permissions:
            raise MalformedError(f"ACL has no {_TAG_WORDS[tag]} entry")
    group = permissions.get((_MASK, _NO_ID), permissions[_GROUP_OBJ, _NO_ID])
    return permissions[_USER_OBJ, _NO_ID] << 6 | group << 3 | permissions[_OTHER, _NO_ID], len(permissions) > 3


def acl_with_mode(acl: bytes, mode: int) -> bytes:
    """An access ACL in version-2 form after chmod(2): the owner's permissions, those of others, and the mask or else the group's.

    Raises:
        CorruptError: it is no such ACL.
    """
    if acl[:4] != _VERSION or (len(acl) - 4) % _ENTRY.size:
        raise CorruptError(f"ACL of {len(acl)} bytes is not in version 2 form")
    entries = list(_ENTRY.iter_unpack(acl[4:]))
    of_group = _MASK if any(tag == _MASK for tag, _, _ in entries) else _GROUP_OBJ
    shifts = {_USER_OBJ: 6, of_group: 3, _OTHER: 0}
    return _VERSION + b"".join(
        _ENTRY.pack(tag, mode >> shifts[tag] & 7 if tag in shifts else bits, number) for tag, bits, number in entries
    )


def _parse_entry(words: bytes) -> tuple[int, int, int]:
    """Tag, permissions, id."""
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
        return owner, bits, _NO_ID
    if named is None:
        raise MalformedError(f"ACL entry {shown(words)} can have no qualifier")
    number = fields[3] if len(fields) == 4 else fields[1]
    if not number.isdigit() or len(number) > 10 or int(number) > MAX_ID:
        raise MalformedError(f"ACL entry {shown(words)} has a name and no number, and names are not looked up")
    return named, bits, int(number)
