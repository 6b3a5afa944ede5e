"""Where the members of a tar file lie, so that they can be read in place.

For image archives alone, which hold a handful of plain files: ustar, GNU long names and PAX paths and sizes are read; the sizes of all
members are checked against the file before they are believed. Source: POSIX.1-2017 pax "ustar Interchange Format" and "pax Extended
Header"; GNU tar manual, "Basic Tar Format".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from registry_client.errors import MalformedError, NotFoundError

BLOCK = 512
MEMBERS_MAX = 20_000
EXTENSION_SIZE_MAX = 1 << 20
LINK_HOPS_MAX = 8
NAME_LENGTH_MAX = 4096
_REGULAR = frozenset({b"\x00", b"0", b"7"})
_EXTENSIONS = frozenset({b"x", b"g", b"L", b"K"})


@dataclass(frozen=True, slots=True)
class TarMember:
    """A regular file in a tar: offset of its first byte, and its size in bytes."""

    offset: int
    size: int


class TarIndex:
    """The regular files of a tar by name, with links inside of it followed.

    Names are relative and in normal form; a member whose name has ``..`` in it is refused.
    """

    def __init__(self, fd: int, what: str) -> None:
        """Reads all headers.

        Raises:
            MalformedError: no tar, damaged, or beyond the limits.
        """
        self._what = what
        self._files: dict[str, TarMember] = {}
        self._links: dict[str, str] = {}
        self._scan(fd)

    def __contains__(self, name: str) -> bool:
        return name in self._files or name in self._links

    def names(self) -> Iterator[str]:
        """Names of the files and links."""
        yield from self._files
        yield from self._links

    def find(self, name: str) -> TarMember:
        """The file of that name.

        Raises:
            NotFoundError: there is none.
            MalformedError: a link that leads nowhere, or out of the archive, or around.
        """
        name = self._normal(name)
        for _ in range(LINK_HOPS_MAX):
            if name in self._files:
                return self._files[name]
            if name not in self._links:
                raise NotFoundError(f"{self._what}: has no file {name[:200]!r}")
            name = self._links[name]
        raise MalformedError(f"{self._what}: more than {LINK_HOPS_MAX} links one after the other, at {name[:200]!r}")

    def _scan(self, fd: int) -> None:
        end = os.fstat(fd).st_size
        offset = 0
        count = 0
        extended: dict[str, str] = {}
        while (block := os.pread(fd, BLOCK, offset)) and block != bytes(BLOCK):
            name, link, size, kind = self._header(block, offset)
            name, link, size = extended.get("path", name), extended.get("linkpath", link), self._size(extended, size)
            start = offset + BLOCK
            if kind not in _REGULAR | _EXTENSIONS:
                size = 0
            if start + size > end:
                raise MalformedError(f"{self._what}: member at byte {offset} has {size} bytes, the archive ends at byte {end}")
            offset = start + -(-size // BLOCK) * BLOCK
            count += 1
            if count > MEMBERS_MAX:
                raise MalformedError(f"{self._what}: more than {MEMBERS_MAX} members")
            if kind in _EXTENSIONS:
                if size > EXTENSION_SIZE_MAX:
                    raise MalformedError(f"{self._what}: extended header at byte {start - BLOCK} has {size} bytes")
                data = os.pread(fd, size, start)
                if kind == b"x":
                    extended |= self._parse_pax(data, start)
                elif kind == b"L":
                    extended["path"] = self._text(data.rstrip(b"\0"))
                elif kind == b"K":
                    extended["linkpath"] = self._text(data.rstrip(b"\0"))
                continue
            extended = {}
            self._add(name, link, kind, TarMember(start, size))
        if not count:
            raise MalformedError(f"{self._what}: holds no tar members")

    def _add(self, name: str, link: str, kind: bytes, member: TarMember) -> None:
        if kind == b"5":
            return
        name = self._normal(name)
        self._files.pop(name, None)
        self._links.pop(name, None)
        if kind in _REGULAR:
            self._files[name] = member
        elif kind == b"1":
            self._links[name] = self._normal(link)
        elif kind == b"2":
            self._links[name] = self._normal(f"{name.rpartition('/')[0]}/{link}")

    def _header(self, block: bytes, offset: int) -> tuple[str, str, int, bytes]:
        if len(block) < BLOCK:
            raise MalformedError(f"{self._what}: ends in the middle of a tar header at byte {offset}")
        expected = sum(block) - sum(block[148:156]) + 8 * ord(" ")
        stated = block[148:156].strip(b" \0")
        if stated.strip(b"01234567") or int(stated or b"0", 8) != expected:
            raise MalformedError(f"{self._what}: no tar header at byte {offset} (its checksum is wrong)")
        name = self._text(block[:100].partition(b"\0")[0])
        if block[257:263] == b"ustar\0" and (prefix := block[345:500].partition(b"\0")[0]):
            name = f"{self._text(prefix)}/{name}"
        return name, self._text(block[157:257].partition(b"\0")[0]), self._number(block[124:136], offset), block[156:157]

    def _number(self, data: bytes, offset: int) -> int:
        """An octal number, or GNU's base-256 for sizes of 8 GiB and more."""
        if data[0] == 0x80:
            return int.from_bytes(data[1:], "big")
        text = data.strip(b" \0")
        if not text or text.strip(b"01234567"):
            raise MalformedError(f"{self._what}: tar header at byte {offset} has {data!r} where a number should be")
        return int(text, 8)

    def _parse_pax(self, data: bytes, offset: int) -> dict[str, str]:
        records: dict[str, str] = {}
        position = 0
        while position < len(data):
            digits, space, _ = data[position : position + 10].partition(b" ")
            length = int(digits) if space and digits.isdigit() else 0
            record = data[position : position + length]
            key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
            if not equals or len(record) != length or not record.endswith(b"\n"):
                raise MalformedError(f"{self._what}: extended header at byte {offset} is damaged")
            if key in (b"path", b"linkpath", b"size"):
                records[key.decode()] = self._text(value)
            position += length
        return records

    def _size(self, extended: dict[str, str], size: int) -> int:
        text = extended.get("size")
        if text is None:
            return size
        if not text.isascii() or not text.isdigit() or len(text) > 19:
            raise MalformedError(f"{self._what}: extended header gives {text[:40]!r} as a size")
        return int(text)

    def _text(self, data: bytes) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise MalformedError(f"{self._what}: {data[:80]!r} is no name in UTF-8") from None

    def _normal(self, name: str) -> str:
        """The name without ``.`` and ``..``; a name that leads out of the archive is refused."""
        if len(name) > NAME_LENGTH_MAX:
            raise MalformedError(f"{self._what}: name {name[:200]!r}… has {len(name)} characters, more than {NAME_LENGTH_MAX}")
        parts: list[str] = []
        for part in name.split("/"):
            if part == "..":
                if not parts:
                    raise MalformedError(f"{self._what}: name {name[:200]!r} leads out of the archive")
                parts.pop()
            elif part not in ("", "."):
                parts.append(part)
        return "/".join(parts)
