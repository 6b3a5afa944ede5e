"""A catalogue of tars that attack: by what they claim, or by what two readers would take them for.

``HOSTILE`` holds those that reading refuses. ``TREE_ATTACKS`` holds those that are proper tars: what they say must not
reach outside the image's own tree, or is impossible there.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from imgstore.errors import ImgstoreError, NoSpaceError
from imgstore.layers.tar_header import TarError
from tests.raw_tar import END, base256, file, header, long_name, pax, pax_raw, record, sparse_block, sparse_header

CAPACITY = 1 << 30
"""The disk for which the catalogue says what is refused."""


class HostileTar(NamedTuple):
    """One attack.

    Attributes:
        data: the tar.
        words: what the message must say.
        error: kind of the error.
    """

    data: bytes
    words: str
    error: type[ImgstoreError] = TarError


def _traversal() -> dict[str, HostileTar]:
    return {
        "parent component": HostileTar(file(b"../escape") + END, "'..' component"),
        "parent component inside": HostileTar(file(b"a/../../escape") + END, "'..' component"),
        "parent component at the end": HostileTar(file(b"a/..", flag=b"5") + END, "'..' component"),
        "parent component in PAX path": HostileTar(pax((b"path", b"../escape")) + file() + END, "'..' component"),
        "parent component in GNU long name": HostileTar(long_name(b"../escape") + file() + END, "'..' component"),
        "hard link to parent": HostileTar(file(b"a", flag=b"1", link=b"../../etc/passwd") + END, "'..' component"),
        "hard link to itself": HostileTar(file(b"a", flag=b"1", link=b"./a") + END, "which cannot be"),
        "hard link to the root": HostileTar(file(b"a", flag=b"1", link=b"/") + END, "which cannot be"),
        "hard link to nothing": HostileTar(file(b"a", flag=b"1") + END, "link target is empty"),
        "root as a symbolic link": HostileTar(file(b".", flag=b"2", link=b"/etc") + END, "is the root"),
        "slash as a symbolic link": HostileTar(file(b"/", flag=b"2", link=b"/etc") + END, "and is no directory"),
        "root as a file": HostileTar(file(b"./.", b"x") + END, "is the root"),
        "empty name": HostileTar(file(b"") + END, "path is empty"),
        "empty symbolic link": HostileTar(file(b"a", flag=b"2") + END, "empty, or with a NUL"),
    }


def _giants() -> dict[str, HostileTar]:
    name_4097 = b"/".join([b"n" * 255] * 16) + b"/x" * 8
    many = b"".join(record(b"V.%d" % number, b"") for number in range(1001))
    attributes = [(b"SCHILY.xattr.user.%d" % number, b"x" * 60_000) for number in range(20)]
    return {
        "PAX header that claims 64 MiB": HostileTar(header(flag=b"x", size=64 << 20) + END, "extended header of 67108864 bytes"),
        "PAX header that claims 8 EiB": HostileTar(
            header(flag=b"x", size=base256(2**63 - 1, 12)) + END, "extended header of 9223"
        ),
        "GNU long name that claims 4 GiB": HostileTar(header(flag=b"L", size=4 << 30) + END, "extended header of 4294967296"),
        "extended headers of more than 1 MiB together": HostileTar(
            pax(*attributes[:10]) + long_name(b"k" * 600_000, flag=b"K") + file() + END, "extended headers have"
        ),
        "path of 4103 bytes": HostileTar(pax((b"path", name_4097[:-1] + b"yyyyyyyy")) + file() + END, "more than 4096"),
        "component of 256 bytes": HostileTar(pax((b"path", b"a/" + b"n" * 256)) + file() + END, "component of 256 bytes"),
        "symbolic link of 4096 bytes": HostileTar(
            pax((b"linkpath", b"l" * 4096)) + file(flag=b"2") + END, "4096 bytes, more than 4095"
        ),
        "extended attribute of 64 KiB and a byte": HostileTar(
            pax((b"SCHILY.xattr.user.a", b"x" * 65537)) + file() + END, "65537 bytes, more than 65536"
        ),
        "extended attribute without a name": HostileTar(pax((b"SCHILY.xattr.", b"x")) + file() + END, "bad name"),
        "1001 PAX records": HostileTar(pax_raw(many) + file() + END, "more than 1000 records"),
        "file larger than the disk": HostileTar(header(size=CAPACITY + 1) + END, "and the disk", NoSpaceError),
        "file of 8 EiB": HostileTar(header(size=base256(2**63 - 1, 12)) + END, "and the disk", NoSpaceError),
        "file of 2**80 bytes": HostileTar(header(size=base256(2**80, 12)) + END, "outside 64 bits"),
        "file of PAX size 10**18": HostileTar(
            pax((b"size", b"1000000000000000000")) + file() + END, "and the disk", NoSpaceError
        ),
        "PAX size of 20 digits": HostileTar(pax((b"size", b"9" * 20)) + file() + END, "no decimal number"),
        "negative size": HostileTar(header(size=base256(-1, 12)) + END, "-1 bytes"),
        "negative PAX size": HostileTar(pax((b"size", b"-512")) + file() + END, "-512 bytes"),
    }


def _sparse() -> dict[str, HostileTar]:
    def version_1(text: bytes, size: int) -> bytes:
        records = ((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"%d" % size))
        return pax(*records) + file(b"f", text) + END

    def version_01(runs: bytes, size: int, data: bytes) -> bytes:
        return pax((b"GNU.sparse.size", b"%d" % size), (b"GNU.sparse.map", runs)) + file(b"f", data) + END

    endless = b"".join(sparse_block([(0, 1)] * 21, extended=True) for _ in range(500))
    return {
        "sparse map that overlaps": HostileTar(version_01(b"0,10,5,10", 100, b"x" * 20), "sparse map has bytes 5..15 after 10"),
        "sparse map that goes back": HostileTar(version_01(b"50,10,0,10", 100, b"x" * 20), "sparse map has bytes 0..10 after 60"),
        "sparse map past the end": HostileTar(version_01(b"90,20", 100, b"x" * 20), "bytes 90..110"),
        "sparse map with a negative offset": HostileTar(version_01(b"-10,20", 100, b"x" * 20), "bytes -10..10"),
        "sparse map with a negative length": HostileTar(version_01(b"10,-5,20,25", 100, b"x" * 20), "bytes 10..5"),
        "sparse map of odd length": HostileTar(version_01(b"0,10,20", 100, b"x" * 10), "which is odd"),
        "sparse map that is no map": HostileTar(version_01(b"0;10", 100, b"x" * 10), "no decimal number"),
        "sparse map that covers too little": HostileTar(
            version_01(b"0,10", 100, b"x" * 20), "covers 10 bytes, and 20 are stored"
        ),
        "sparse map that covers too much": HostileTar(version_01(b"0,30", 100, b"x" * 20), "covers 30 bytes, and 20 are stored"),
        "sparse file larger than the disk": HostileTar(version_01(b"0,1", CAPACITY + 1, b"x"), "and the disk", NoSpaceError),
        "sparse file of negative size": HostileTar(version_01(b"0,1", -1, b"x"), "is -1"),
        "sparse form 1.0 of 10,001 runs": HostileTar(version_1(b"10001\n" + b"0\n" * 2000, 100), "10001 runs"),
        "sparse form 1.0 of 10**19 runs": HostileTar(version_1(b"9999999999999999999\n" * 30, 100), "runs, more than 10000"),
        "sparse form 1.0 without an end": HostileTar(version_1(b"3\n0\n1\n", 100), "longer than the 6 bytes"),
        "sparse form 1.0 with one long line": HostileTar(version_1(b"1" * 512, 100), "no number"),
        "sparse form 1.0 with words": HostileTar(version_1(b"one\n".ljust(512, b"\0"), 100), "no number"),
        "sparse form 2.0": HostileTar(pax((b"GNU.sparse.major", b"2"), (b"GNU.sparse.minor", b"0")) + file() + END, "form 2.0"),
        "sparse directory": HostileTar(
            pax((b"GNU.sparse.size", b"9"), (b"GNU.sparse.map", b"0,0")) + file(flag=b"5") + END, "PAX records of a sparse file"
        ),
        "sparse runs of two forms": HostileTar(
            pax((b"GNU.sparse.size", b"9"), (b"GNU.sparse.map", b"0,0"), (b"GNU.sparse.offset", b"0")) + file() + END,
            "no known form",
        ),
        "sparse offsets without lengths": HostileTar(
            pax((b"GNU.sparse.size", b"9"), (b"GNU.sparse.offset", b"0"), (b"GNU.sparse.offset", b"1")) + file() + END,
            "do not alternate",
        ),
        "old sparse map without an end": HostileTar(
            sparse_header([(0, 1)], 100, 1, extended=True) + endless + END, "more than 10000 runs"
        ),
        "old sparse map that overlaps": HostileTar(sparse_header([(0, 9), (4, 9)], 100, 18) + END, "bytes 4..13 after 9"),
        "old sparse map in a POSIX archive": HostileTar(header(flag=b"S") + END, "not GNU's"),
        "star's sparse file": HostileTar(pax((b"SCHILY.realsize", b"100")) + file() + END, "star's sparse"),
    }


def _differentials() -> dict[str, HostileTar]:
    twice = pax((b"path", b"a")) + pax((b"path", b"b")) + file() + END
    catalogue = {
        "size that PAX and ustar tell differently": HostileTar(
            pax((b"size", b"1024")) + file(b"a", b"x" * 512) + file(b"smuggled") + END, "1024 bytes by its PAX header and 512"
        ),
        "size 0 in ustar, small in PAX": HostileTar(
            pax((b"size", b"512")) + header(b"a") + file(b"b") + END, "512 bytes by its PAX"
        ),
        "PAX record whose length is short": HostileTar(pax_raw(b"10 path=evil\n") + file() + END, "no newline"),
        "PAX record whose length is long": HostileTar(pax_raw(b"99 path=evil\n") + file() + END, "no newline"),
        "PAX record whose length is zero": HostileTar(pax_raw(b"0 path=evil\n") + file() + END, "is no 'LENGTH"),
        "PAX record whose length has a sign": HostileTar(pax_raw(b"+13 path=evil\n") + file() + END, "is no 'LENGTH"),
        "PAX record without a value": HostileTar(pax_raw(b"8 path\n\n") + file() + END, "is no 'LENGTH"),
        "PAX records followed by NULs": HostileTar(pax_raw(record(b"path", b"a") + bytes(5)) + file() + END, "is no 'LENGTH"),
        "NUL in PAX path": HostileTar(pax((b"path", b"good\0evil")) + file() + END, "NUL byte"),
        "NUL in PAX link target": HostileTar(pax((b"linkpath", b"good\0evil")) + file(flag=b"2") + END, "NUL byte"),
        "NUL in PAX keyword": HostileTar(pax((b"pa\0th", b"evil")) + file() + END, "is no 'LENGTH"),
        "NUL in GNU long name": HostileTar(long_name(b"good\0evil") + file() + END, "NUL byte"),
        "NUL in hard link target": HostileTar(pax((b"linkpath", b"a\0b")) + file(flag=b"1") + END, "NUL byte"),
        "empty GNU long name": HostileTar(long_name(b"") + file() + END, "GNU long name"),
        "PAX path twice": HostileTar(pax((b"path", b"a"), (b"path", b"b")) + file() + END, "'path' twice"),
        "empty PAX path": HostileTar(pax((b"path", b"")) + file() + END, "'path' is empty"),
        "PAX path and GNU long name": HostileTar(long_name(b"a") + pax((b"path", b"b")) + file() + END, "which counts"),
        "PAX and GNU long link target": HostileTar(
            long_name(b"a", flag=b"K") + pax((b"linkpath", b"b")) + file(flag=b"2") + END, "which counts"
        ),
        "two PAX headers": HostileTar(twice, "two PAX headers"),
        "two GNU long names": HostileTar(long_name(b"a") + long_name(b"b") + file() + END, "two GNU long names"),
        "two GNU long link targets": HostileTar(long_name(b"a", flag=b"K") * 2 + file(flag=b"2") + END, "two GNU long link"),
        "extended header before the end": HostileTar(pax((b"path", b"a")) + END, "no entry comes after it"),
        "extended header at the very end": HostileTar(pax((b"path", b"a")), "no entry comes after it"),
        "global header after an extended one": HostileTar(
            pax((b"path", b"a")) + pax((b"comment", b"c"), flag=b"g") + file() + END, "between an entry and its"
        ),
        "global path": HostileTar(pax((b"path", b"evil"), flag=b"g") + file() + END, "global PAX record 'path'"),
        "global size": HostileTar(pax((b"size", b"0"), flag=b"g") + file(b"a", b"data") + END, "global PAX record 'size'"),
        "global owner": HostileTar(pax((b"uid", b"0"), flag=b"g") + file() + END, "global PAX record 'uid'"),
        "global extended attribute": HostileTar(
            pax((b"SCHILY.xattr.user.a", b"x"), flag=b"g") + file() + END, "global PAX record"
        ),
        "unknown charset": HostileTar(pax((b"hdrcharset", b"EBCDIC"), (b"path", b"a")) + file() + END, "hdrcharset"),
        "regular file with a trailing slash": HostileTar(file(b"a/", b"data") + END, "ends with a slash"),
        "v7 header with a prefix": HostileTar(file(b"a", magic=b"", prefix=b"evil") + END, "without POSIX magic"),
        "GNU header with a prefix": HostileTar(file(b"a", magic=b"ustar  \0", prefix=b"evil") + END, "in a GNU header"),
        "unknown type": HostileTar(file(b"a", flag=b"Z") + END, "'Z', which is not known"),
        "multi-volume entry": HostileTar(file(b"a", flag=b"M") + END, "'M', which is not known"),
        "wrong checksum": HostileTar(file(b"a") + header(b"b", checksum=b"000000\0 ") + file(b"c") + END, "checksum is"),
        "checksum that is no number": HostileTar(header(checksum=b"what now") + END, "no octal number"),
        "size that is no number": HostileTar(header(size=b"12x45678") + END, "size field is"),
        "mode that is no number": HostileTar(header(mode=b"0o755") + END, "mode field is"),
        "one block of zeros and another archive": HostileTar(file(b"a") + bytes(512) + file(b"b") + END, "end of the archive"),
        "another archive after the end": HostileTar(file(b"a") + END + file(b"b") + END, "end of the archive"),
        "bytes after the end": HostileTar(file(b"a") + END + bytes(9000) + b"x", "end of the archive"),
    }
    for flag, name in ((b"1", "hard link"), (b"2", "symbolic link"), (b"3", "device"), (b"5", "directory"), (b"6", "FIFO")):
        data = header(b"a", flag=flag, size=512, link=b"b") + file(b"smuggled") + END
        catalogue[f"{name} with data"] = HostileTar(data, "and 512 bytes of data")
    return catalogue


def _owners_and_devices() -> dict[str, HostileTar]:
    return {
        "uid 2**32 - 1": HostileTar(header(uid=base256(2**32 - 1, 8)) + END, "has owner 4294967295:0"),
        "gid 2**32": HostileTar(pax((b"gid", b"4294967296")) + header() + END, "has owner 0:4294967296"),
        "negative uid": HostileTar(header(uid=base256(-1, 8)) + END, "has owner -1:0"),
        "PAX uid that is no number": HostileTar(pax((b"uid", b"root")) + header() + END, "PAX uid is 'root'"),
        "PAX mtime that is no time": HostileTar(pax((b"mtime", b"1e9")) + header() + END, "no time"),
        "device major beyond 12 bits": HostileTar(header(flag=b"3", rdev=(4096, 0)) + END, "device 4096:0"),
        "device minor beyond 20 bits": HostileTar(
            pax((b"SCHILY.devminor", b"1048576")) + header(flag=b"4") + END, "device 0:1048576"
        ),
        "ACL of names": HostileTar(
            pax((b"SCHILY.acl.access", b"user::rw-,user:bob:rwx,group::r--,mask::rwx,other::r--")) + header() + END,
            "a name and no number",
        ),
        "ACL without a mask": HostileTar(
            pax((b"SCHILY.acl.access", b"user::rw-,user:7:rwx,group::r--,other::r--")) + header() + END, "no mask"
        ),
        "ACL without an owner": HostileTar(pax((b"SCHILY.acl.access", b"group::r--,other::r--")) + header() + END, "no user::"),
        "ACL that is none": HostileTar(pax((b"SCHILY.acl.access", b"everyone may")) + header() + END, "not TAG:QUALIFIER:rwx"),
        "ACL with a user twice": HostileTar(
            pax((b"SCHILY.acl.access", b"u::rw-,u:7:rwx,u:7:r--,g::r--,m::rwx,o::r--")) + header() + END, "two user:id: entries"
        ),
        "ACL of another version": HostileTar(
            pax((b"SCHILY.xattr.system.posix_acl_access", b"\1\0\0\0")) + header() + END, "not in version 2 form"
        ),
        "ACL with an unknown tag": HostileTar(
            pax((b"SCHILY.xattr.system.posix_acl_access", b"\2\0\0\0\3\0\0\0\0\0\0\0")) + header() + END, "ACL entry has tag 3"
        ),
        "ACL of a symbolic link": HostileTar(
            pax((b"SCHILY.acl.access", b"u::rw-,g::r--,o::r--")) + file(flag=b"2", link=b"x") + END, "is a symbolic link"
        ),
        "default ACL of a file": HostileTar(
            pax((b"SCHILY.acl.default", b"u::rw-,u:7:rwx,g::r--,m::rwx,o::r--")) + header() + END,
            "default ACL and is no directory",
        ),
        "extended attribute with two values": HostileTar(
            pax((b"SCHILY.xattr.user.a", b"1"), (b"LIBARCHIVE.xattr.user.a", b"Mg")) + header() + END, "two values"
        ),
        "extended attribute that is no base64": HostileTar(
            pax((b"LIBARCHIVE.xattr.user.a", b"!")) + header() + END, "LIBARCHIVE"
        ),
    }


def _whiteouts() -> dict[str, HostileTar]:
    return {
        "whiteout of nothing": HostileTar(file(b"a/.wh.") + END, "nothing that can be removed"),
        "whiteout of the directory itself": HostileTar(file(b"a/.wh..") + END, "nothing that can be removed"),
        "whiteout of the parent": HostileTar(file(b"a/.wh...") + END, "nothing that can be removed"),
        "unknown special whiteout": HostileTar(file(b"a/.wh..wh.evil") + END, "unknown special name"),
        "aufs name below the root": HostileTar(file(b"a/.wh..wh.plnk", flag=b"5") + END, "unknown special name"),
        "whiteout that is a directory": HostileTar(file(b".wh.a/", flag=b"5") + END, "is a whiteout of type '5'"),
        "whiteout that is a symbolic link": HostileTar(file(b".wh.a", flag=b"2", link=b"/") + END, "is a whiteout of type '2'"),
        "whiteout with data": HostileTar(file(b".wh.a", b"data") + END, "with 4 bytes of data"),
        "file inside a whiteout": HostileTar(file(b".wh.a/b") + END, "inside a whiteout"),
        "file inside an opaque marker": HostileTar(file(b".wh..wh..opq/b") + END, "inside a whiteout"),
        "hard link to a whiteout": HostileTar(file(b"b", flag=b"1", link=b"a/.wh.c") + END, "to a special name"),
        "hard link into aufs's store": HostileTar(file(b"b", flag=b"1", link=b".wh..wh.plnk/1.2") + END, "to a special name"),
    }


def _cut_off() -> dict[str, HostileTar]:
    return {
        "cut off in a header": HostileTar(file(b"a") + header(b"b")[:300], "212 bytes before the end of a header"),
        "cut off in data": HostileTar(header(b"a", size=1000) + b"x" * 600, "400 bytes before the end of its data"),
        "cut off in padding": HostileTar(header(b"a", size=1000) + b"x" * 1000, "in the padding"),
        "cut off in an extended header": HostileTar(pax((b"path", b"p" * 600))[:900], "in the middle of an extended header"),
        "cut off in a sparse map": HostileTar(sparse_header([(0, 1)], 10, 1, extended=True), "in the middle of a sparse map"),
    }


HOSTILE: Mapping[str, HostileTar] = MappingProxyType(
    _traversal() | _giants() | _sparse() | _differentials() | _owners_and_devices() | _whiteouts() | _cut_off()
)
"""Name of the attack to the tar, refused with ``HostileTar.error`` when it is read for a disk of ``CAPACITY`` bytes."""

TREE_ATTACKS: Mapping[str, bytes] = MappingProxyType(
    {
        "hard link to what is not there": file(b"a", flag=b"1", link=b"missing") + END,
        "hard link to a directory": file(b"d/", flag=b"5") + file(b"a", flag=b"1", link=b"d") + END,
        "file through a symbolic link": file(b"etc", flag=b"2", link=b"/tmp") + file(b"etc/passwd", b"evil") + END,
        "file through a relative symbolic link": file(b"a", flag=b"2", link=b"../../..") + file(b"a/escape", b"evil") + END,
        "hard link through a symbolic link": (
            file(b"a", flag=b"2", link=b"/etc") + file(b"b", flag=b"1", link=b"a/passwd") + END
        ),
        "hard link to a symbolic link, then written": (
            file(b"a", flag=b"2", link=b"/etc/passwd") + file(b"b", flag=b"1", link=b"a") + file(b"b", b"evil") + END
        ),
        "file below a file": file(b"a", b"data") + file(b"a/b", b"data") + END,
        "file below a device": file(b"a", flag=b"3", rdev=(1, 3)) + file(b"a/b", b"data") + END,
        "whiteout below a file": file(b"a", b"data") + file(b"a/.wh.b") + END,
        "file over its own parent": file(b"a/b/c", b"data") + file(b"a", b"data") + END,
        "absolute name": file(b"/etc/passwd", b"root::0:0::/:/bin/sh\n") + END,
        "symbolic link loop": file(b"a", flag=b"2", link=b"b") + file(b"b", flag=b"2", link=b"a") + file(b"a/c") + END,
        "ten thousand times the same name": file(b"a", b"data") * 10_000 + END,
        "whiteout and its file, in this order": file(b".wh.a") + file(b"a", b"data") + END,
        "file and its whiteout, in this order": file(b"a", b"data") + file(b".wh.a") + END,
    }
)
"""Proper tars: each Change is lawful, and what it asks for has to stay inside the tree, or be refused there."""
