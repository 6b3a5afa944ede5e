"""read_changes: the Changes of an uncompressed layer, read out of its tar while it streams by.

Reads v7, ustar, old GNU (long names, base-256 numbers, ``S`` sparse files) and PAX archives (all three sparse forms, SCHILY and LIBARCHIVE
extended attributes, ACLs in text). It is strict: where two readers in use take one archive for two different trees, the archive is refused.

Sources: see ``tar_header``; OCI image-spec ``layer.md`` for whiteouts. Where docker and the documents differ, docker's way is taken:
leading slashes are dropped, uname and gname are not looked at, an archive may end without its two blocks of zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, NoReturn

from imgstore.blocks import Bytes
from imgstore.changes import NO_XATTRS, Change, Entry, FileType, HardLink, Opaque, Whiteout
from imgstore.errors import NoSpaceError
from imgstore.layers import pax
from imgstore.layers.acl import acl_permissions
from imgstore.layers.names import has_whiteout, is_aufs, normal_path, whiteout_path
from imgstore.layers.pieces import PieceCursor
from imgstore.layers.sparse import PaxSparse, checked_segments, is_sparse, map_before_data, old_gnu_map
from imgstore.layers.tar_header import (
    BLOCK,
    HEADER,
    MAGIC_GNU,
    MAGIC_POSIX,
    MAX_ENTRIES,
    MAX_EXTENDED,
    MAX_ID,
    MAX_LINK,
    MAX_OCTAL_12,
    MalformedError,
    TarError,
    checksum,
    number,
    padded,
    shown,
    signed_checksum,
    text,
)

_ZEROS: Final = bytes(1 << 16)
_NS: Final = 1_000_000_000

_REGULAR, _OLD_REGULAR, _CONTIGUOUS, _SPARSE = b"0", b"\0", b"7", b"S"
_LINK: Final = b"1"
_TYPES: Final = {
    _REGULAR: FileType.REGULAR,
    _OLD_REGULAR: FileType.REGULAR,
    _CONTIGUOUS: FileType.REGULAR,
    _SPARSE: FileType.REGULAR,
    b"2": FileType.SYMLINK,
    b"3": FileType.CHARACTER_DEVICE,
    b"4": FileType.BLOCK_DEVICE,
    b"5": FileType.DIRECTORY,
    b"6": FileType.FIFO,
}
_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK = b"x", b"g", b"L", b"K"
_EXTENDED: Final = frozenset({_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK})
_DEVICES: Final = frozenset({FileType.CHARACTER_DEVICE, FileType.BLOCK_DEVICE})

# Linux packs a device number into 32 bits (``new_encode_dev``).
_MAX_MAJOR: Final = 0xFFF
_MAX_MINOR: Final = 0xFFFFF

# Owner, mode and time fields are few and come again and again: their text is remembered.
_MAX_REMEMBERED: Final = 1 << 14


def read_changes(
    pieces: Iterable[Bytes],
    *,
    capacity: int,
    announce: Callable[[int, int], None] = lambda offset, length: None,
    whiteouts: bool = True,
) -> Iterator[Change]:
    """The Changes of the tar that ``pieces`` make, in the order of the archive.

    ``pieces`` is read to its very end, so that whoever hashes it has seen all of it when the iteration ends. Nothing is made of bytes after
    the archive: they must be zeros. Of the archive, one piece and one entry's headers (1 MiB at most) are held. An entry's data is
    handed out as views of the pieces; the pieces must not change afterwards.

    A name that comes twice yields two Changes; the last wins. Hard links are not looked up.

    Args:
        pieces: of any length; long ones are faster.
        capacity: bytes of the disk; an entry larger than that is refused before its data is looked at.
        announce: called with the offset in the tar and the length of each Entry's data, before the Entry is yielded and before the first
            piece is asked for behind the one that the data begins in.
        whiteouts: False for a tar that is no layer: names that begin with ``.wh.`` are names of files in it.

    Raises:
        TarError: damaged, cut off, ambiguous, or beyond a bound; at the entry that is.
        NoSpaceError: an entry is larger than ``capacity``.
        RuntimeError: an Entry's data is read after the next Change was asked for.
    """
    return _TarReader(pieces, capacity, announce, whiteouts).changes()


class _StoredData:
    """The stored bytes of one entry, some of which are not there yet."""

    __slots__ = ("_cursor", "_where", "left")

    def __init__(self, cursor: PieceCursor, size: int, where: str) -> None:
        self._cursor = cursor
        self._where = where
        self.left: int | None = size

    def __iter__(self) -> Iterator[memoryview]:
        return self

    def __next__(self) -> memoryview:
        if not self.left:
            if self.left is None:
                raise RuntimeError(f"{self._where}: its data was asked for after the next Change was")
            raise StopIteration
        run = self._cursor.run(self.left)
        if not run:
            raise TarError(f"{self._where}: the tar ends {self.left} bytes before the end of its data")
        self.left -= len(run)
        return run

    def finish(self) -> None:
        """Passes over what was not read."""
        if self.left:
            missing = self.left - self._cursor.skip(self.left)
            if missing:
                raise TarError(f"{self._where}: the tar ends {missing} bytes before the end of its data")
        self.left = None


class _Extensions:
    """What the extended headers before an entry say about it."""

    __slots__ = ("link", "pairs", "path", "records", "total")

    def __init__(self) -> None:
        self.path: bytes | None = None
        self.link: bytes | None = None
        self.records: dict[bytes, bytes] | None = None
        self.pairs: list[tuple[bytes, bytes]] = []
        self.total = 0

    def add(self, flag: bytes, data: bytes) -> None:
        self.total += len(data)
        if self.total > MAX_EXTENDED:
            raise MalformedError(f"extended headers have {self.total} bytes, more than {MAX_EXTENDED}")
        if flag == _PAX:
            if self.records is not None:
                raise MalformedError("two PAX headers in a row")
            self.records, self.pairs = pax.read_extended(data)
            return
        value = data.rstrip(b"\0")
        if b"\0" in value or not value:
            raise MalformedError(f"GNU long name is {shown(data)}: empty, or with a NUL byte inside")
        if flag == _LONG_NAME:
            if self.path is not None:
                raise MalformedError("two GNU long names in a row")
            self.path = value
        else:
            if self.link is not None:
                raise MalformedError("two GNU long link targets in a row")
            self.link = value

    def settle(self) -> dict[bytes, bytes]:
        """The PAX records; ``path`` and ``link`` then say what they are, whoever said it."""
        records = self.records or {}
        for keyword, said in ((b"path", self.path), (b"linkpath", self.link)):
            if said is not None and (keyword in records or (keyword == b"path" and b"GNU.sparse.name" in records)):
                raise MalformedError(
                    f"has both a GNU long name and a PAX {keyword.decode()}, and readers disagree on which counts"
                )
        self.path = records.get(b"path", self.path)
        self.link = records.get(b"linkpath", self.link)
        return records


def _with_acls(file_type: FileType, mode: int, xattrs: Mapping[bytes, bytes]) -> tuple[int, Mapping[bytes, bytes]]:
    """Mode and attributes after ``setxattr(2)`` has set the ACLs: libarchive's mode is not that of a file with an ACL."""
    access, default = xattrs.get(pax.ACL_ACCESS), xattrs.get(pax.ACL_DEFAULT)
    if default is not None:
        if file_type is not FileType.DIRECTORY:
            raise MalformedError("has a default ACL and is no directory")
        acl_permissions(default)
    if access is not None:
        if file_type is FileType.SYMLINK:
            raise MalformedError("has an ACL and is a symbolic link")
        permissions, extended = acl_permissions(access)
        mode = mode & 0o7000 | permissions
        if not extended:
            xattrs = {name: value for name, value in xattrs.items() if name != pax.ACL_ACCESS}
    return mode, xattrs


class _TarReader:
    """One reading of one tar."""

    def __init__(self, pieces: Iterable[Bytes], capacity: int, announce: Callable[[int, int], None], whiteouts: bool) -> None:
        self._cursor = PieceCursor(pieces)
        self._capacity = capacity
        self._announce = announce
        self._whiteouts = whiteouts
        self._remembered: dict[bytes, int] = {}
        self._body: _StoredData | None = None
        self._body_padding = 0
        # Of the entry at hand, for messages.
        self._offset = 0
        self._name = b""

    def changes(self) -> Iterator[Change]:
        entries = 0
        extensions: _Extensions | None = None
        while True:
            try:
                header = self._next_header()
                if header is None:
                    if extensions is not None:
                        raise MalformedError("is an extended header, and no entry comes after it")
                    self._expect_end()
                    return
                entries += 1
                if entries > MAX_ENTRIES:
                    raise MalformedError(f"is one more than the {MAX_ENTRIES} headers that a layer may have")
                if header[7] in _EXTENDED:
                    extensions = self._extended(header, extensions)
                    continue
                change = self._change(header, extensions)
            except MalformedError as error:
                self._fail(error)
            extensions = None
            if change is not None:
                yield change
            if self._body is not None:
                self._finish_body()

    # Headers

    def _next_header(self) -> tuple[bytes, ...] | None:
        """Fields of the next header; None at the end of the archive, marked or not."""
        cursor = self._cursor
        start = cursor.position
        self._offset = cursor.base + start
        self._name = b""
        block: Bytes
        if start + BLOCK <= cursor.length:
            block = cursor.view
            cursor.position = start + BLOCK
        else:
            block = cursor.take(BLOCK)
            start = 0
            if len(block) < BLOCK:
                if not block:
                    return None
                raise MalformedError(f"the tar ends {BLOCK - len(block)} bytes before the end of a header")
        header = HEADER.unpack_from(block, start)
        found = checksum(block, start)
        # Nearly all writers put the checksum like this; comparing text is faster than reading a number.
        if header[6] != b"%06o\0 " % found and number(header[6], "checksum") != found:
            whole = bytes(block[start : start + BLOCK])
            if whole == _ZEROS[:BLOCK]:
                return None
            self._name = text(header[0])
            if number(header[6], "checksum") != signed_checksum(whole):
                raise MalformedError(f"checksum is {shown(header[6])}, and the header's bytes give {found:o}")
        return header

    def _expect_end(self) -> None:
        """Reads what is after the first block of zeros, or after the last entry of an archive that has none."""
        cursor = self._cursor
        while run := cursor.run(len(_ZEROS)):
            if bytes(run) != _ZEROS[: len(run)]:
                first = cursor.offset - len(bytes(run).lstrip(b"\0"))
                raise MalformedError(f"is the end of the archive, and byte {first} after it is not zero")

    def _extended(self, header: tuple[bytes, ...], extensions: _Extensions | None) -> _Extensions | None:
        flag = header[7]
        self._name = text(header[0])
        size = number(header[4], "size")
        if not 0 <= size <= MAX_EXTENDED:
            raise MalformedError(f"extended header of {size} bytes, not 0 to {MAX_EXTENDED}")
        if flag in (_PAX, _PAX_GLOBAL) and header[9][:6] != MAGIC_POSIX:
            raise MalformedError("PAX header in an archive that is not POSIX ustar")
        data = bytes(self._cursor.take(padded(size)))
        if len(data) < padded(size):
            raise MalformedError("the tar ends in the middle of an extended header")
        data = data[:size]
        if flag == _PAX_GLOBAL:
            if extensions is not None:
                raise MalformedError("a global PAX header stands between an entry and its extended header")
            pax.check_global(data)
            return None
        extensions = extensions or _Extensions()
        extensions.add(flag, data)
        return extensions

    # Entries

    def _change(self, header: tuple[bytes, ...], extensions: _Extensions | None) -> Change | None:
        name, mode_field, uid_field, gid_field, size_field, time_field, _, flag, _, magic, _, _, _, _, prefix, _ = header
        name = name.partition(b"\0")[0]
        if magic[:6] == MAGIC_POSIX:
            if prefix[0]:
                # star keeps access and creation time behind a shorter prefix, and says so at the end of the header.
                name = text(prefix[:131] if header[15][8:] == b"tar\0" else prefix) + b"/" + name
        elif prefix[0]:
            self._check_no_prefix(magic, prefix)
        self._name = name
        size = number(size_field, "size")
        mtime_ns = self._number(time_field, "mtime") * _NS
        uid = self._number(uid_field, "uid")
        gid = self._number(gid_field, "gid")
        xattrs: Mapping[bytes, bytes] = NO_XATTRS
        segments: list[tuple[int, int]] | None = None
        sparse: PaxSparse | None = None
        records: dict[bytes, bytes] | None = None
        if extensions is not None:
            records = extensions.settle()
            if extensions.path is not None:
                self._name = name = extensions.path
            if records or extensions.pairs:
                size = self._pax_size(records, size)
                if b"mtime" in records:
                    mtime_ns = pax.time_ns(records[b"mtime"], "mtime")
                if b"uid" in records:
                    uid = pax.decimal(records[b"uid"], "uid")
                if b"gid" in records:
                    gid = pax.decimal(records[b"gid"], "gid")
                if is_sparse(records, extensions.pairs):
                    sparse = PaxSparse(records, extensions.pairs)
                    if sparse.name is not None:
                        self._name = name = sparse.name
                xattrs = pax.xattrs(records) or NO_XATTRS

        file_type = _TYPES.get(flag)
        if file_type is None and flag != _LINK:
            raise MalformedError(f"has type {shown(flag)}, which is not known")
        path = normal_path(name)
        if name.endswith(b"/") and file_type is not FileType.DIRECTORY:
            # The oldest tars know directories by the slash alone. In later ones readers disagree.
            if flag != _OLD_REGULAR:
                raise MalformedError("ends with a slash and is no directory")
            file_type = FileType.DIRECTORY
        if size and (file_type is not FileType.REGULAR or (sparse is not None and flag != _REGULAR)):
            raise MalformedError(f"has type {shown(flag)} and {size} bytes of data")
        if size < 0:
            raise MalformedError(f"has {size} bytes of data")
        if not (0 <= uid <= MAX_ID and 0 <= gid <= MAX_ID):
            raise MalformedError(f"has owner {uid}:{gid}, not 0 to {MAX_ID}")
        if size > self._capacity:
            self._no_space(size)

        if b".wh." in path and self._whiteouts and has_whiteout(path):
            return self._special_name(path, flag, size)
        if file_type is None:
            return self._hard_link(path, self._link(header, extensions))
        if not path and file_type is not FileType.DIRECTORY:
            raise MalformedError(f"is the root and has type {shown(flag)}, not a directory's")
        mode = self._number(mode_field, "mode") & 0o7777
        if pax.ACL_ACCESS in xattrs or pax.ACL_DEFAULT in xattrs:
            mode, xattrs = _with_acls(file_type, mode, xattrs)

        if file_type is FileType.REGULAR:
            apparent = size
            if flag == _SPARSE:
                if magic != MAGIC_GNU:
                    raise MalformedError("is a sparse file of an archive that is not GNU's")
                runs, apparent = old_gnu_map(HEADER.pack(*header), self._cursor)
                segments = self._segments(runs, apparent, size)
            elif sparse is not None:
                apparent = sparse.size
                runs_found = sparse.runs
                if runs_found is None:
                    runs_found, taken = map_before_data(self._cursor, size)
                    size -= taken
                segments = self._segments(runs_found, apparent, size)
            if size:
                self._announce(self._cursor.offset, size)
            return Entry(
                path,
                file_type,
                mode,
                uid,
                gid,
                mtime_ns,
                apparent,
                b"",
                (0, 0),
                xattrs,
                segments,
                self._data(size) if size else (),
            )
        if sparse is not None:
            raise MalformedError(f"has type {shown(flag)} and PAX records of a sparse file")
        target = b""
        rdev = (0, 0)
        if file_type is FileType.SYMLINK:
            target = self._target(self._link(header, extensions))
        elif file_type in _DEVICES:
            rdev = self._device(header, records or {})
        return Entry(path, file_type, mode, uid, gid, mtime_ns, 0, target, rdev, xattrs)

    def _number(self, field: bytes, name: str) -> int:
        value = self._remembered.get(field)
        if value is None:
            value = number(field, name)
            if len(self._remembered) < _MAX_REMEMBERED:
                self._remembered[field] = value
        return value

    @staticmethod
    def _check_no_prefix(magic: bytes, prefix: bytes) -> None:
        """Only POSIX has a prefix. GNU has times there; Go before 1.8 wrote a prefix nevertheless, and Go alone reads it as one."""
        if magic != MAGIC_GNU:
            raise MalformedError(f"has a name prefix in a header without POSIX magic: {shown(text(prefix))}")
        try:
            number(prefix[:12], "access time")
        except MalformedError:
            raise MalformedError(f"has a name prefix in a GNU header: {shown(text(prefix))}") from None

    @staticmethod
    def _pax_size(records: Mapping[bytes, bytes], size: int) -> int:
        value = records.get(b"size")
        if value is None:
            return size
        said = pax.decimal(value, "size")
        # A size that does not fit is written as 0 (Go, GNU tar, Python) or as the largest that does (libarchive).
        if said != size and not (said > MAX_OCTAL_12 and size in (0, MAX_OCTAL_12)):
            raise MalformedError(f"has {said} bytes by its PAX header and {size} by its own")
        return said

    def _special_name(self, path: bytes, flag: bytes, size: int) -> Change | None:
        if is_aufs(path):
            if size:
                self._data(size)
            return None
        removed, opaque = whiteout_path(path)
        # aufs's whiteouts are hard links of one another, and old images have them as such.
        if flag not in (_REGULAR, _OLD_REGULAR, _CONTIGUOUS, _LINK) or size:
            raise MalformedError(f"is a whiteout of type {shown(flag)} with {size} bytes of data, not an empty file")
        return Opaque(removed) if opaque else Whiteout(removed)

    @staticmethod
    def _link(header: tuple[bytes, ...], extensions: _Extensions | None) -> bytes:
        return text(header[8]) if extensions is None or extensions.link is None else extensions.link

    def _hard_link(self, path: bytes, link: bytes) -> HardLink:
        target = normal_path(link, "link target")
        if not path or not target or target == path:
            raise MalformedError(f"is a hard link to {shown(target)}, which cannot be")
        if self._whiteouts and has_whiteout(target):
            raise MalformedError(f"is a hard link to a special name: {shown(target)}")
        return HardLink(path, target)

    @staticmethod
    def _target(link: bytes) -> bytes:
        if not link or b"\0" in link:
            raise MalformedError(f"is a symbolic link to {shown(link)}: empty, or with a NUL byte")
        if len(link) > MAX_LINK:
            raise MalformedError(f"is a symbolic link to a path of {len(link)} bytes, more than {MAX_LINK}")
        return link

    def _device(self, header: tuple[bytes, ...], records: Mapping[bytes, bytes]) -> tuple[int, int]:
        major = self._number(header[12], "devmajor")
        minor = self._number(header[13], "devminor")
        if b"SCHILY.devmajor" in records:
            major = pax.decimal(records[b"SCHILY.devmajor"], "SCHILY.devmajor")
        if b"SCHILY.devminor" in records:
            minor = pax.decimal(records[b"SCHILY.devminor"], "SCHILY.devminor")
        if not (0 <= major <= _MAX_MAJOR and 0 <= minor <= _MAX_MINOR):
            raise MalformedError(f"is device {major}:{minor}, beyond {_MAX_MAJOR}:{_MAX_MINOR}")
        return major, minor

    def _segments(self, runs: list[tuple[int, int]], size: int, stored: int) -> list[tuple[int, int]] | None:
        if size < 0:
            raise MalformedError(f"is a sparse file of {size} bytes")
        if size > self._capacity:
            self._no_space(size)
        return checked_segments(runs, size=size, stored=stored)

    # Data

    def _data(self, size: int) -> Iterable[memoryview]:
        """Hands out the data at the cursor; what is in the current piece as it is, else piece by piece as it is asked for."""
        cursor = self._cursor
        start = cursor.position
        end = start + padded(size)
        if end <= cursor.length:
            cursor.position = end
            return (cursor.view[start : start + size],)
        self._body = _StoredData(cursor, size, self._where())
        self._body_padding = padded(size) - size
        return self._body

    def _finish_body(self) -> None:
        body, self._body = self._body, None
        if body is not None:
            body.finish()
            if self._cursor.skip(self._body_padding) < self._body_padding:
                raise TarError(f"{self._where()}: the tar ends in the padding after its data")

    # Messages

    def _where(self) -> str:
        name = f"tar entry {shown(self._name)}" if self._name else "tar header"
        return f"{name} at byte {self._offset}"

    def _fail(self, error: MalformedError) -> NoReturn:
        raise TarError(f"{self._where()}: {error}") from None

    def _no_space(self, size: int) -> NoReturn:
        raise NoSpaceError(f"{self._where()}: has {size} bytes, and the disk {self._capacity}")
