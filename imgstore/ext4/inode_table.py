"""InodeTable: inodes as the writer makes, changes and frees them."""

from __future__ import annotations

import struct

from crc32c import crc32c

from imgstore.errors import UnsupportedError
from imgstore.ext4 import checksums
from imgstore.ext4.groups import GroupTable
from imgstore.ext4.pages import PAGE_SHIFT, PAGE_SIZE, WritablePageCache
from imgstore.ext4.structures import INODE, INODE_SIZE

DELETED_AT = 1 << 30
"""Time of deletion of every freed inode; below the count of inodes e2fsck would take it for a link of the orphan list."""

_LEAST_EXTRA = 28  # up to the creation time: mke2fs and the kernel never wrote less into inodes of 256 bytes
_SEED = struct.Struct("<II")
_LOW = struct.Struct("<H")
_MASK = PAGE_SIZE - 1


class InodeTable:
    """Inodes of 256 bytes by number; what is put is in the pages, with its checksum."""

    def __init__(self, pages: WritablePageCache, groups: GroupTable, seed: int) -> None:
        self._pages = pages
        self._tables = groups.inode_table
        self._per_group = groups.geometry.inodes_per_group
        self._groups = groups
        self._inverted = seed ^ checksums.ALL_ONES

    def read(self, number: int) -> bytearray:
        """The 256 bytes of an inode."""
        return bytearray(self._pages.read(self._groups.inode_offset(number), INODE_SIZE))

    def create(
        self,
        number: int,
        mode: int,
        uid: int,
        gid: int,
        size: int,
        mtime: tuple[int, int],
        now: tuple[int, int],
        links: int,
        sectors: int,
        flags: int,
        block: bytes,
        xattr_block: int,
        xattr_area: bytes,
    ) -> None:
        """Puts a new inode: ``mode`` with the type, the times as 32-bit seconds and extra, ``now`` for all but the mtime."""
        seconds, extra = now
        self.put(
            number,
            INODE.pack(
                mode,
                uid & 0xFFFF,
                size & 0xFFFFFFFF,
                seconds,
                seconds,
                mtime[0],
                0,
                gid & 0xFFFF,
                links,
                sectors & 0xFFFFFFFF,
                flags,
                0,
                block,
                0,
                xattr_block & 0xFFFFFFFF,
                size >> 32,
                0,
                sectors >> 32,
                xattr_block >> 32,
                uid >> 16,
                gid >> 16,
                0,
                0,
                32,
                0,
                extra,
                mtime[1],
                extra,
                seconds,
                extra,
                0,
                0,
                xattr_area,
            ),
        )

    def put(self, number: int, raw: bytes | bytearray) -> None:
        """Puts an inode whose two checksum fields are zero."""
        checksum = (
            crc32c(raw, crc32c(_SEED.pack(number, int.from_bytes(raw[100:104], "little")), self._inverted)) ^ checksums.ALL_ONES
        )
        group, index = divmod(number - 1, self._per_group)
        offset = (self._tables[group] << 12) + (index << 8)
        page = self._pages.changing_page(offset >> PAGE_SHIFT)
        start = offset & _MASK
        page[start : start + INODE_SIZE] = raw
        _LOW.pack_into(page, start + 124, checksum & 0xFFFF)
        _LOW.pack_into(page, start + 130, checksum >> 16)

    def change(self, number: int, raw: bytearray) -> None:
        """Puts back what ``read`` gave.

        Raises:
            UnsupportedError: the inode has no room for its times, or for its checksum.
        """
        extra = raw[0x80] | raw[0x81] << 8
        if extra < _LEAST_EXTRA:
            raise UnsupportedError(f"inode {number}: extra fields of {extra} bytes, at least {_LEAST_EXTRA} can be changed")
        raw[124:126] = b"\0\0"
        raw[130:132] = b"\0\0"
        self.put(number, raw)

    def clear(self, number: int) -> None:
        """Puts what a freed inode leaves."""
        raw = bytearray(INODE_SIZE)
        raw[0x14:0x18] = DELETED_AT.to_bytes(4, "little")
        raw[0x80] = 32
        self.put(number, raw)
