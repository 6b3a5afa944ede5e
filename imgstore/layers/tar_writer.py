"""tar_pieces, write_tar: Changes as a tar that docker, GNU tar and libarchive read.

POSIX ustar headers; PAX records only for what does not fit there: long names, names that are not ASCII, large numbers, fractions of
seconds, extended attributes (``SCHILY.xattr.``, as docker and GNU tar have them), files with large holes (GNU's sparse form 1.0). The same
Changes give the same bytes.

Sources: see ``tar_header`` and ``pax``; GNU tar manual, "PAX Format, Version 1.0".
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from imgstore.blocks import Bytes
from imgstore.changes import Change, Entry, FileType, HardLink, Opaque, Whiteout
from imgstore.errors import InvalidError
from imgstore.layers.names import OPAQUE_NAME, WHITEOUT_PREFIX, has_whiteout
from imgstore.layers.pax import LIBARCHIVE_XATTR, SCHILY_XATTR
from imgstore.layers.tar_header import (
    BLOCK,
    HEADER,
    MAGIC_POSIX,
    MAX_COMPONENT,
    MAX_OCTAL_8,
    MAX_OCTAL_12,
    MAX_SPARSE,
    checksum,
    padded,
    shown,
)

_FLAGS: Final = {
    FileType.REGULAR: b"0",
    FileType.SYMLINK: b"2",
    FileType.CHARACTER_DEVICE: b"3",
    FileType.BLOCK_DEVICE: b"4",
    FileType.DIRECTORY: b"5",
    FileType.FIFO: b"6",
}

_MIN_HOLES: Final = 1 << 20
"""Bytes of holes from which on a file is written as sparse; some readers (busybox) do not know sparse files."""

_ZEROS: Final = bytes(1 << 20)
_PIECE: Final = 1 << 20
_SMALL: Final = 1 << 16
_NS: Final = 1_000_000_000
_UNSAFE = re.compile(rb"[^A-Za-z0-9._\-]")

# mode, uid, gid, mtime_ns
_Attributes = tuple[int, int, int, int]
_NO_ATTRIBUTES: Final[_Attributes] = (0o644, 0, 0, 0)


def write_tar(changes: Iterable[Change], write: Callable[[Bytes], object]) -> None:
    """Writes what `tar_pieces` gives.

    Args:
        write: takes all it is given; is called with views that it may not keep.
    """
    for piece in tar_pieces(changes):
        write(piece)


def tar_pieces(changes: Iterable[Change], *, whiteouts: bool = True) -> Iterator[Bytes]:
    """The Changes, in their order, and the end of the archive, in pieces of up to about a MiB, each valid until the next is asked for.

    A hard link carries the attributes of its target, if that came before: docker applies them again. For this about 200 bytes
    a file are held until the end.

    What came before an error is no archive.

    Args:
        changes: each Entry's data is read before the next Change is asked for. A path may begin with ``/`` or with ``./``.
        whiteouts: False for a tar that is no layer, in which a name may begin with ``.wh.``.

    Raises:
        InvalidError: a Change that a tar cannot hold: a name that begins with ``.wh.`` in a layer, or an Entry whose data is not as
            long as it says.
    """
    small = bytearray()
    writer = _TarWriter(whiteouts)
    for change in changes:
        for piece in writer.add(change):
            if len(piece) <= _SMALL:
                small += piece
            if small and (len(small) >= _PIECE or len(piece) > _SMALL):
                yield small
                small = bytearray()
            if len(piece) > _SMALL:
                yield piece
    small += bytes(2 * BLOCK)
    yield small


class _TarWriter:
    def __init__(self, whiteouts: bool) -> None:
        self._check_name = _check_name if whiteouts else _allow_name
        self._attributes: dict[bytes, _Attributes] = {}
        self._shared: dict[_Attributes, _Attributes] = {}

    def add(self, change: Change) -> Iterator[Bytes]:
        match change:
            case Entry():
                yield from self._add_entry(change)
            case HardLink(path, target):
                self._check_name(path)
                self._check_name(target)
                yield self._header(path, b"1", self._attributes.get(target, _NO_ATTRIBUTES), link=target)
            case Whiteout(path):
                self._check_name(path)
                parent, slash, name = path.rpartition(b"/")
                if not name or len(name) + len(WHITEOUT_PREFIX) > MAX_COMPONENT:
                    raise InvalidError(f"whiteout of {shown(path)}: a tar has no name for it")
                yield self._header(parent + slash + WHITEOUT_PREFIX + name, b"0", (0, 0, 0, 0))
            case Opaque(path):
                self._check_name(path)
                yield self._header(path + b"/" + OPAQUE_NAME if path else OPAQUE_NAME, b"0", (0, 0, 0, 0))

    def _add_entry(self, entry: Entry) -> Iterator[Bytes]:
        self._check_name(entry.path)
        attributes = (entry.mode, entry.uid, entry.gid, entry.mtime_ns)
        name = entry.path
        records: dict[bytes, bytes] = {}
        if entry.type is FileType.DIRECTORY:
            name = name if name.endswith(b"/") else name + b"/" if name else b"./"
        else:
            self._attributes[entry.path] = self._shared.setdefault(attributes, attributes)
        for xattr, value in sorted(entry.xattrs.items()):
            records.update([_xattr_record(xattr, value)])
        if entry.type is not FileType.REGULAR:
            yield self._header(name, _FLAGS[entry.type], attributes, link=entry.target, rdev=entry.rdev, records=records)
            return
        segments: Sequence[tuple[int, int]] = (
            [(0, entry.size)] if entry.segments is None else [run for run in entry.segments if run[1]]
        )
        runs = _written_runs(segments, entry.size)
        if runs is None:
            yield self._header(name, b"0", attributes, size=entry.size, records=records)
            yield from self._data(entry, segments, [(0, entry.size)])
            return
        sparse_map = b"".join(b"%d\n" % number for number in (len(runs), *(number for run in runs for number in run)))
        sparse_map += bytes(-len(sparse_map) % BLOCK)
        records |= {
            b"GNU.sparse.major": b"1",
            b"GNU.sparse.minor": b"0",
            b"GNU.sparse.name": name,
            b"GNU.sparse.realsize": b"%d" % entry.size,
        }
        parent, slash, base = name.rpartition(b"/")
        stored = len(sparse_map) + sum(length for _, length in runs)
        yield self._header(parent + slash + b"GNUSparseFile.0/" + base, b"0", attributes, size=stored, records=records)
        yield sparse_map
        yield from self._data(entry, segments, runs)

    def _data(self, entry: Entry, segments: Sequence[tuple[int, int]], runs: Sequence[tuple[int, int]]) -> Iterator[Bytes]:
        """``runs``, each of which begins and ends outside of segments, out of the data of ``segments``; padded."""
        remaining = iter(segments)
        pieces = _Exact(entry)
        segment = next(remaining, None)
        total = 0
        for start, length in runs:
            position, end = start, start + length
            total += length
            while segment is not None and segment[0] < end:
                yield from _zeros(segment[0] - position)
                yield from pieces.take(segment[1])
                position = segment[0] + segment[1]
                segment = next(remaining, None)
            yield from _zeros(end - position)
        pieces.expect_end()
        yield from _zeros(-total % BLOCK)

    def _header(
        self,
        name: bytes,
        flag: bytes,
        attributes: _Attributes,
        *,
        size: int = 0,
        link: bytes = b"",
        rdev: tuple[int, int] = (0, 0),
        records: dict[bytes, bytes] | None = None,
    ) -> bytes:
        mode, uid, gid, mtime_ns = attributes
        needed: dict[bytes, bytes] = {}
        short_name, prefix = _split_name(name)
        if short_name is None:
            needed[b"path"] = name
            short_name = _UNSAFE.sub(b"_", name.rstrip(b"/").rpartition(b"/")[2])[:100]
        short_link = link
        if len(link) > 100 or not link.isascii():
            needed[b"linkpath"] = link
            short_link = _UNSAFE.sub(b"_", link)[:100]
        seconds, nanoseconds = divmod(mtime_ns, _NS)
        if nanoseconds or not 0 <= seconds <= MAX_OCTAL_12:
            needed[b"mtime"] = _decimal_time(mtime_ns)
            seconds = min(max(seconds, 0), MAX_OCTAL_12)
        for keyword, value, largest in ((b"uid", uid, MAX_OCTAL_8), (b"gid", gid, MAX_OCTAL_8), (b"size", size, MAX_OCTAL_12)):
            if value > largest:
                needed[keyword] = b"%d" % value
        fields = _Fields(
            name=short_name,
            prefix=prefix,
            mode=mode,
            uid=uid if uid <= MAX_OCTAL_8 else 0,
            gid=gid if gid <= MAX_OCTAL_8 else 0,
            size=size if size <= MAX_OCTAL_12 else 0,
            seconds=seconds,
        )
        if records:
            needed |= records
        extended = _pax_header(needed, short_name.rstrip(b"/").rpartition(b"/")[2]) if needed else b""
        return extended + fields.pack(flag, link=short_link, rdev=rdev)


def _zeros(count: int) -> Iterator[Bytes]:
    view = memoryview(_ZEROS)
    while count > 0:
        yield view[:count]
        count -= len(view)


def _pax_header(records: dict[bytes, bytes], base: bytes) -> bytes:
    parts = [_record(keyword, value) for keyword, value in sorted(records.items())]
    if not all(_is_text(value) for keyword, value in records.items() if not keyword.startswith(SCHILY_XATTR)):
        parts.insert(0, _record(b"hdrcharset", b"BINARY"))
    data = b"".join(parts)
    fields = _Fields(name=(b"PaxHeaders.0/" + base)[:100], mode=0o644, size=len(data))
    return fields.pack(b"x") + data + bytes(padded(len(data)) - len(data))


class _Fields:
    """The fields of a header that its kinds have in common."""

    __slots__ = ("gid", "mode", "name", "prefix", "seconds", "size", "uid")

    def __init__(
        self, *, name: bytes, mode: int, size: int, prefix: bytes = b"", uid: int = 0, gid: int = 0, seconds: int = 0
    ) -> None:
        self.name = name
        self.prefix = prefix
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.size = size
        self.seconds = seconds

    def pack(self, flag: bytes, *, link: bytes = b"", rdev: tuple[int, int] = (0, 0)) -> bytes:
        block = bytearray(
            HEADER.pack(
                self.name,
                b"%07o\0" % self.mode,
                b"%07o\0" % self.uid,
                b"%07o\0" % self.gid,
                b"%011o\0" % self.size,
                b"%011o\0" % self.seconds,
                b"        ",
                flag,
                link,
                MAGIC_POSIX + b"00",
                b"",
                b"",
                b"%07o\0" % rdev[0],
                b"%07o\0" % rdev[1],
                self.prefix,
                b"",
            )
        )
        block[148:156] = b"%06o\0 " % checksum(block)
        return bytes(block)


class _Exact:
    """An Entry's data, cut into the lengths of its segments."""

    def __init__(self, entry: Entry) -> None:
        self._path = entry.path
        self._pieces = iter(entry.data)
        self._piece = memoryview(b"")

    def take(self, count: int) -> Iterator[memoryview]:
        while count:
            if not self._piece:
                piece = next(self._pieces, None)
                if piece is None:
                    raise InvalidError(f"entry {shown(self._path)}: its data ends {count} bytes before the end of a segment")
                self._piece = piece
                continue
            taken, self._piece = self._piece[:count], self._piece[count:]
            count -= len(taken)
            yield taken

    def expect_end(self) -> None:
        if self._piece or any(len(piece) for piece in self._pieces):
            raise InvalidError(f"entry {shown(self._path)}: its data is longer than its segments")


def _check_name(path: bytes) -> None:
    if has_whiteout(path):
        raise InvalidError(f"entry {shown(path)}: a name that begins with .wh. means a whiteout in a layer")


def _allow_name(path: bytes) -> None:
    pass


def _split_name(name: bytes) -> tuple[bytes | None, bytes]:
    """Name and prefix of the header, or None if they cannot hold it."""
    if not name.isascii():
        return None, b""
    if len(name) <= 100:
        return name, b""
    # The prefix may have 155 bytes, and a slash that is not written comes between.
    at = name.find(b"/", len(name) - 101, min(156, len(name) - 1))
    return (name[at + 1 :], name[:at]) if at > 0 else (None, b"")


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _record(keyword: bytes, value: bytes) -> bytes:
    """One PAX record; its length counts its own digits."""
    rest = len(keyword) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, keyword, value)


def _xattr_record(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    if b"=" not in name:
        return SCHILY_XATTR + name, value
    # A keyword ends at its first "=", and only libarchive's form escapes it.
    escaped = b"".join(b"%c" % byte if 0x21 <= byte <= 0x7E and byte not in b"%=" else b"%%%02X" % byte for byte in name)
    return LIBARCHIVE_XATTR + escaped, binascii.b2a_base64(value, newline=False).rstrip(b"=")


def _decimal_time(time_ns: int) -> bytes:
    sign = b"-" if time_ns < 0 else b""
    seconds, nanoseconds = divmod(abs(time_ns), _NS)
    return sign + b"%d.%09d" % (seconds, nanoseconds) if nanoseconds else sign + b"%d" % seconds


def _written_runs(segments: Sequence[tuple[int, int]], size: int) -> list[tuple[int, int]] | None:
    """What is stored of a sparse file: its segments, those near each other joined if they are too many; None for all of it."""
    if size - sum(length for _, length in segments) < _MIN_HOLES:
        return None
    gap = 0
    while True:
        runs: list[tuple[int, int]] = []
        for offset, length in segments:
            if runs and offset - sum(runs[-1]) <= gap:
                runs[-1] = (runs[-1][0], offset + length - runs[-1][0])
            else:
                runs.append((offset, length))
        if len(runs) < MAX_SPARSE:
            break
        gap = max(4096, gap * 2)
    if size - sum(length for _, length in runs) < _MIN_HOLES:
        return None
    if not runs or sum(runs[-1]) < size:
        runs.append((size, 0))  # GNU tar's way to say how long the file is
    return runs
