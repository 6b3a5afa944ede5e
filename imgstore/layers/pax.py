"""PAX extended headers: records of a keyword and a value that override or extend the ustar header after them.

Sources: POSIX.1-2017 ``pax`` ("pax Extended Header"), star(5) for ``SCHILY.*``, libarchive's tar(5) for ``LIBARCHIVE.xattr.*``.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator
from typing import Final

from imgstore.layers.acl import parse_acl
from imgstore.layers.tar_header import MAX_RECORDS, MAX_XATTR_VALUE, MalformedError, shown

_RECORD = re.compile(rb"([1-9][0-9]{0,6}) ([^=\0]{1,1000})=")
_DECIMAL = re.compile(rb"-?[0-9]{1,19}")
_TIME = re.compile(rb"(-?)([0-9]{1,19})(?:\.([0-9]{0,40}))?")
_ESCAPED = re.compile(rb"%([0-9A-Fa-f]{2})")

SCHILY_XATTR: Final = b"SCHILY.xattr."
LIBARCHIVE_XATTR: Final = b"LIBARCHIVE.xattr."
ACL_ACCESS: Final = b"system.posix_acl_access"
ACL_DEFAULT: Final = b"system.posix_acl_default"
ACL_XATTRS: Final = {b"SCHILY.acl.access": ACL_ACCESS, b"SCHILY.acl.default": ACL_DEFAULT}
SPARSE_PREFIX: Final = b"GNU.sparse."
SPARSE_PAIR: Final = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")

# An empty value means "as if there were no record" to POSIX and Go, and an empty name to GNU tar: nobody writes it, we refuse it.
_NEVER_EMPTY: Final = frozenset(
    {b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime", b"hdrcharset", b"SCHILY.devmajor", b"SCHILY.devminor"}
)
_CHARSETS: Final = frozenset({b"BINARY", b"ISO-IR 10646 2000 UTF-8"})

# What only a multi-volume or incremental archive, or another kind of sparse file, would say: the entry is not what it looks like.
_UNSUPPORTED: Final = (b"GNU.dumpdir", b"GNU.volume.", b"SCHILY.realsize", b"SCHILY.offset", b"SCHILY.volhdr.")


def parse_records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The records (keyword, value) of an extended header, in order.

    Raises:
        MalformedError: a record's length is not that of the record, or there are too many.
    """
    position, count = 0, 0
    while position < len(data):
        match = _RECORD.match(data, position)
        if match is None:
            raise MalformedError(
                f"PAX record at byte {position} is no 'LENGTH KEYWORD=VALUE': {shown(data[position : position + 40])}"
            )
        end = position + int(match[1])
        if end > len(data) or end <= match.end() or data[end - 1] != 0x0A:
            raise MalformedError(f"PAX record at byte {position} says it has {int(match[1])} bytes, and no newline ends it there")
        keyword = match[2]
        if keyword not in SPARSE_PAIR:  # these have a bound of their own
            count += 1
            if count > MAX_RECORDS:
                raise MalformedError(f"PAX header has more than {MAX_RECORDS} records")
        yield keyword, data[match.end() : end - 1]
        position = end


def read_extended(data: bytes) -> tuple[dict[bytes, bytes], list[tuple[bytes, bytes]]]:
    """An ``x`` header's records.

    Returns:
        Keyword to value; and the records of ``SPARSE_PAIR`` in order, the only keywords that may come more than once.

    Raises:
        MalformedError: malformed, contradictory, or of a kind that cannot be honoured.
    """
    records: dict[bytes, bytes] = {}
    pairs: list[tuple[bytes, bytes]] = []
    for keyword, value in parse_records(data):
        if keyword in SPARSE_PAIR:
            pairs.append((keyword, value))
            continue
        if keyword in records:
            raise MalformedError(f"PAX header has {shown(keyword)} twice")
        if keyword in _NEVER_EMPTY and not value:
            raise MalformedError(f"PAX record {shown(keyword)} is empty")
        if keyword == b"hdrcharset" and value not in _CHARSETS:
            raise MalformedError(f"PAX hdrcharset is {shown(value)}, neither BINARY nor UTF-8")
        if keyword.startswith(_UNSUPPORTED):
            raise MalformedError(
                f"PAX record {shown(keyword)}: multi-volume, incremental and star's sparse archives are not read"
            )
        records[keyword] = value
    return records, pairs


def check_global(data: bytes) -> None:
    """Checks a ``g`` header, which may hold comments only.

    Go's reader, and so docker, ignores global records; GNU tar, libarchive and Python honour them. One that would change the
    entries after it makes two images of one archive.

    Raises:
        MalformedError: malformed, or a record would change what entries are.
    """
    for keyword, _ in parse_records(data):
        if (
            keyword in _NEVER_EMPTY
            or keyword in ACL_XATTRS
            or keyword.startswith((SPARSE_PREFIX, SCHILY_XATTR, LIBARCHIVE_XATTR))
        ):
            raise MalformedError(f"global PAX record {shown(keyword)}: readers disagree on whether it counts")
        if keyword.startswith(_UNSUPPORTED):
            raise MalformedError(f"global PAX record {shown(keyword)}: multi-volume and incremental archives are not read")


def decimal(value: bytes, keyword: str) -> int:
    """A decimal number.

    Raises:
        MalformedError: it is none.
    """
    if _DECIMAL.fullmatch(value) is None:
        raise MalformedError(f"PAX {keyword} is {shown(value)}, no decimal number")
    return int(value)


def time_ns(value: bytes, keyword: str) -> int:
    """A time in seconds with a fraction, as nanoseconds; digits below those are cut off.

    Raises:
        MalformedError: it is none.
    """
    match = _TIME.fullmatch(value)
    if match is None:
        raise MalformedError(f"PAX {keyword} is {shown(value)}, no time")
    sign, seconds, fraction = match.groups()
    total = int(seconds) * 1_000_000_000 + int((fraction or b"")[:9].ljust(9, b"0"))
    return -total if sign else total


def xattrs(records: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """The extended attributes among an entry's records, ACLs included, in the form of ``Entry.xattrs``.

    Raises:
        MalformedError: a bad name or value, or two records that give one attribute two values.
    """
    found: dict[bytes, bytes] = {}
    for keyword, value in records.items():
        if keyword.startswith(SCHILY_XATTR):
            name = keyword[len(SCHILY_XATTR) :]
        elif keyword.startswith(LIBARCHIVE_XATTR):
            name = _ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), keyword[len(LIBARCHIVE_XATTR) :])
            try:
                value = binascii.a2b_base64(value + b"=" * (-len(value) % 4), strict_mode=True)
            except binascii.Error as error:
                raise MalformedError(f"PAX record {shown(keyword)}: {error}") from None
        elif keyword in ACL_XATTRS:
            name = ACL_XATTRS[keyword]
            value = parse_acl(value)
        else:
            continue
        if not 0 < len(name) <= 255 or b"\0" in name:
            raise MalformedError(f"extended attribute has a bad name: {shown(name)}")
        if len(value) > MAX_XATTR_VALUE:
            raise MalformedError(f"extended attribute {shown(name)} has {len(value)} bytes, more than {MAX_XATTR_VALUE}")
        if found.setdefault(name, value) != value:
            raise MalformedError(f"extended attribute {shown(name)} is given two values")
    return found
