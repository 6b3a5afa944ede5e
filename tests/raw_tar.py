"""Tars made byte by byte, so that a test can say what no proper writer would."""

from __future__ import annotations

END = bytes(1024)


def octal(value: int, width: int) -> bytes:
    """A number field as GNU tar and Go write it."""
    return b"%0*o\0" % (width - 1, value)


def base256(value: int, width: int) -> bytes:
    """A number field in GNU's binary form."""
    return bytes([(0xFF if value < 0 else 0x80)]) + (value & ((1 << (8 * (width - 1))) - 1)).to_bytes(width - 1, "big")


def header(
    name: bytes = b"file",
    *,
    flag: bytes = b"0",
    size: int | bytes = 0,
    mode: int | bytes = 0o644,
    uid: int | bytes = 0,
    gid: int | bytes = 0,
    mtime: int | bytes = 0,
    link: bytes = b"",
    magic: bytes = b"ustar\x0000",
    rdev: tuple[int, int] = (0, 0),
    prefix: bytes = b"",
    tail: bytes = b"",
    checksum: bytes | None = None,
) -> bytes:
    """One header block; a number given as bytes is put there as it is, and the checksum is right unless given."""

    def field(value: int | bytes, width: int) -> bytes:
        return (octal(value, width) if isinstance(value, int) else value).ljust(width, b"\0")

    start = name.ljust(100, b"\0") + field(mode, 8) + field(uid, 8) + field(gid, 8) + field(size, 12) + field(mtime, 12)
    end = flag + link.ljust(100, b"\0") + magic.ljust(8, b"\0") + bytes(64) + octal(rdev[0], 8) + octal(rdev[1], 8)
    end += prefix.ljust(155, b"\0") + tail.ljust(12, b"\0")
    assert len(start) == 148
    assert len(end) == 512 - 156
    total = sum(start) + sum(end) + 8 * 32
    return start + (b"%06o\0 " % total if checksum is None else checksum) + end


def padded(data: bytes) -> bytes:
    """Data as it lies in a tar."""
    return data + bytes(-len(data) % 512)


def file(name: bytes = b"file", data: bytes = b"", **fields: object) -> bytes:
    """A header, and data of the size that the header says unless ``size`` is given."""
    fields.setdefault("size", len(data))
    return header(name, **fields) + padded(data)  # type: ignore[arg-type]


def record(keyword: bytes, value: bytes) -> bytes:
    """One PAX record."""
    length = len(keyword) + len(value) + 3
    while len(b"%d" % length) + len(keyword) + len(value) + 3 != length:
        length = len(b"%d" % length) + len(keyword) + len(value) + 3
    return b"%d %s=%s\n" % (length, keyword, value)


def pax(*records: tuple[bytes, bytes], flag: bytes = b"x") -> bytes:
    """An extended header of these records."""
    return pax_raw(b"".join(record(*pair) for pair in records), flag=flag)


def pax_raw(data: bytes, *, flag: bytes = b"x") -> bytes:
    """An extended header of these bytes."""
    return file(b"PaxHeaders.0/file", data, flag=flag)


def long_name(name: bytes, *, flag: bytes = b"L") -> bytes:
    """GNU's header for a long name (``L``) or a long link target (``K``)."""
    return file(b"././@LongLink", name + b"\0", flag=flag, magic=b"ustar  \0")


def sparse_header(runs: list[tuple[int, int]], real_size: int, stored: int, *, extended: bool = False) -> bytes:
    """An old GNU ``S`` header with at most four runs."""
    fields = b"".join(octal(offset, 12) + octal(length, 12) for offset, length in runs).ljust(96, b"\0")
    assert len(fields) == 96
    prefix = bytes(41) + fields + (b"\1" if extended else b"\0") + octal(real_size, 12)
    return header(b"sparse", flag=b"S", size=stored, magic=b"ustar  \0", prefix=prefix)


def sparse_block(runs: list[tuple[int, int]], *, extended: bool = False) -> bytes:
    """A block that continues an ``S`` header's map with at most 21 runs."""
    fields = b"".join(octal(offset, 12) + octal(length, 12) for offset, length in runs).ljust(504, b"\0")
    return (fields + (b"\1" if extended else b"\0")).ljust(512, b"\0")
