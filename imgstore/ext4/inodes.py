"""What an inode says: times, devices, owners and sizes between Changes and the disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from imgstore.changes import FileType
from imgstore.errors import CorruptError
from imgstore.ext4 import checksums
from imgstore.ext4.structures import INODE, INODE_SIZE, DirectoryFileType, InodeFlag

FAST_SYMLINK = 59
"""Longest target, in bytes, that lies in the inode."""

_SECOND = 10**9
# As int: an IntFlag is slow to compute with, and every inode that is read comes by here.
_HUGE_FILE = int(InodeFlag.HUGE_FILE)
_NOT_READ = int(InodeFlag.INLINE_DATA | InodeFlag.EA_INODE)
_EARLIEST = -(1 << 31)
_LATEST = (1 << 31) - 1 + (3 << 32)

DIRENT_TYPES: Mapping[FileType, DirectoryFileType] = {
    FileType.FIFO: DirectoryFileType.FIFO,
    FileType.CHARACTER_DEVICE: DirectoryFileType.CHARACTER_DEVICE,
    FileType.DIRECTORY: DirectoryFileType.DIRECTORY,
    FileType.BLOCK_DEVICE: DirectoryFileType.BLOCK_DEVICE,
    FileType.REGULAR: DirectoryFileType.REGULAR,
    FileType.SYMLINK: DirectoryFileType.SYMLINK,
    FileType.SOCKET: DirectoryFileType.SOCKET,
}
FILE_TYPES: Mapping[int, FileType] = {int(kind): file_type for file_type, kind in DIRENT_TYPES.items()}


def encode_time(nanoseconds: int) -> tuple[int, int]:
    """(32-bit seconds, extra) of a time since the epoch; clamped to 1901-12-13 .. 2446-05-10, which is what ext4 can say."""
    seconds, fraction = divmod(nanoseconds, _SECOND)
    if seconds < _EARLIEST:
        seconds, fraction = _EARLIEST, 0
    elif seconds > _LATEST:
        seconds, fraction = _LATEST, _SECOND - 1
    epoch = (seconds + (1 << 31)) >> 32
    return seconds & 0xFFFFFFFF, fraction << 2 | epoch


def decode_time(seconds: int, extra: int) -> int:
    """Nanoseconds since the epoch."""
    signed = seconds - (1 << 32) if seconds & 1 << 31 else seconds
    return (signed + ((extra & 3) << 32)) * _SECOND + (extra >> 2)


def encode_device(major: int, minor: int) -> bytes:
    """The 60 bytes of a device's inode: old encoding where both fit into 8 bits (``ext4_mknod``)."""
    if major < 256 and minor < 256:
        return (major << 8 | minor).to_bytes(4, "little") + bytes(56)
    return bytes(4) + (minor & 0xFF | major << 8 | (minor & ~0xFF) << 12).to_bytes(4, "little") + bytes(52)


def decode_device(block: bytes) -> tuple[int, int]:
    """(major, minor)."""
    old = int.from_bytes(block[:4], "little")
    if old:
        return old >> 8 & 0xFF, old & 0xFF
    new = int.from_bytes(block[4:8], "little")
    return (new >> 8) & 0xFFF, new & 0xFF | (new >> 12) & 0xFFF00


@dataclass(frozen=True, slots=True)
class Node:
    """An inode as it was when it was looked up.

    Attributes:
        number: of the inode.
        type: of the file.
        mode: permission bits.
        sectors: 512-byte units in use, extent and xattr blocks included.
        block: the 60 bytes of extent tree root, short symlink target or device number.
        xattr_block: block number, or 0.
        xattr_area: what follows the fixed fields.
    """

    number: int
    type: FileType
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    links: int
    flags: int
    generation: int
    sectors: int
    block: bytes
    xattr_block: int
    xattr_area: bytes

    @property
    def has_extents(self) -> bool:
        return bool(self.flags & InodeFlag.EXTENTS)

    @property
    def is_fast_symlink(self) -> bool:
        return self.type is FileType.SYMLINK and not self.has_extents and self.size <= FAST_SYMLINK


def decode_inode(raw: bytes, number: int, where: str, *, seed: int | None, orphan: bool = False) -> Node:
    """The inode in ``raw``, which is as long as the file system's inodes. Only an orphan may have no links.

    Raises:
        CorruptError: its checksum or type is wrong, it is not in use, or its extra fields leave it.
    """
    fields = INODE.unpack(raw[:INODE_SIZE].ljust(INODE_SIZE, b"\0"))
    mode, uid, size, _, _, mtime, _, gid, links, blocks, flags, _, block, generation, acl, size_hi = fields[:16]
    blocks_hi, acl_hi, uid_hi, gid_hi, low, _, extra_size, high, _, mtime_extra = fields[17:27]
    extra_size = extra_size if len(raw) > 128 else 0
    if seed is not None:
        found = low | high << 16 if extra_size >= 4 else low
        expected = checksums.inode(seed, number, raw)
        if found != expected:
            raise CorruptError(f"{where}: checksum is 0x{found:08x}, the bytes give 0x{expected:08x}")
    try:
        file_type = FileType(mode >> 12)
    except ValueError:
        raise CorruptError(f"{where}: mode 0{mode:o} is of no file") from None
    if not links and not orphan:
        raise CorruptError(f"{where}: has a name, and no links")
    if len(raw) > 128 and (extra_size & 3 or 128 + extra_size > len(raw)):
        raise CorruptError(f"{where}: extra size is {extra_size}")
    if flags & _NOT_READ:
        raise CorruptError(f"{where}: flags 0x{flags:08x} are of a feature that the file system does not have")
    sectors = blocks | blocks_hi << 32
    return Node(
        number=number,
        type=file_type,
        mode=mode & 0o7777,
        uid=uid | uid_hi << 16,
        gid=gid | gid_hi << 16,
        size=size | size_hi << 32,
        mtime_ns=decode_time(mtime, mtime_extra if extra_size >= 12 else 0),
        links=links,
        flags=flags,
        generation=generation,
        sectors=sectors * 8 if flags & _HUGE_FILE else sectors,
        block=block,
        xattr_block=acl | acl_hi << 32,
        xattr_area=raw[128 + extra_size :] if len(raw) > 128 else b"",
    )
