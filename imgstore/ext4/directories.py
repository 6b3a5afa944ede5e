"""Directories: blocks of entries, and above one block the index that the kernel looks names up in (``fs/ext4/namei.c``).

Entries are given and got as a dict of name to ``inode << 4 | file type``: one small number per file, of which a layer may have a million.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from imgstore.errors import CorruptError, InvalidError
from imgstore.ext4 import checksums
from imgstore.ext4.directory_hash import HALF_MD4, hash_name
from imgstore.ext4.structures import BLOCK_SIZE, DIRECTORY_ENTRY, HASH_ENTRY, DirectoryFileType

TYPE_MASK = 0xF
DIRECTORY_TYPE = int(DirectoryFileType.DIRECTORY)
_TAIL = 12
_ROOM = BLOCK_SIZE - _TAIL
_FILL = _ROOM * 4 // 5  # of an indexed leaf, as e2fsck -D does: a guest that adds names does not split every leaf at once
_ROOT_ENTRIES = (BLOCK_SIZE - 32 - 8) // 8
_NODE_ENTRIES = (BLOCK_SIZE - 8 - 8) // 8
_ROOT_COUNT = 32  # byte offset of the first hash entry in the root of an index, where limit and count lie
_NODE_COUNT = 8

Entries = Mapping[bytes, int]


def encode_directory(
    entries: Entries, number: int, parent: int, seed: int, hash_seed: Sequence[int], *, signed_hash: bool = False
) -> tuple[list[bytes], bool]:
    """The blocks of a directory, and whether they have an index. Same entries, same bytes.

    Args:
        entries: without ``.`` and ``..``.
        number: its inode; ``parent`` that of its parent.
        seed: of the checksums of the directory's inode.
        signed_hash: whether names are hashed as signed bytes, as the superblock states.

    Raises:
        InvalidError: more names than an index of two levels can hold (some 20 million).
    """
    dots = _encode_entry(b".", number << 4 | DIRECTORY_TYPE, 12) + _encode_entry(b"..", parent << 4 | DIRECTORY_TYPE, 12)
    size = sum((len(name) + 11) & ~3 for name in entries)
    if len(dots) + size <= _ROOM:
        return [_encode_leaf(sorted(entries.items()), seed, dots)], False
    order = sorted((*hash_name(name, hash_seed, signed=signed_hash), name) for name in entries)
    return _encode_indexed(entries, order, number, parent, seed), True


def encode_leaf(entries: Entries, seed: int) -> bytes | None:
    """One block of these entries in their order, ``.`` and ``..`` too where it has them; None if they do not fit, or are none."""
    names = list(entries)
    dots = b"".join(_encode_entry(name, entries[name], 12) for name in names[:2] if name in (b".", b".."))
    rest = [(name, entries[name]) for name in names if name not in (b".", b"..")]
    if not entries or sum((len(name) + 11) & ~3 for name in names) > _ROOM:
        return None
    return _encode_leaf(rest, seed, dots)


def _encode_entry(name: bytes, value: int, length: int) -> bytes:
    head = DIRECTORY_ENTRY.pack(value >> 4, length, len(name), value & TYPE_MASK)
    return (head + name).ljust(length, b"\0")


def _encode_leaf(entries: Sequence[tuple[bytes, int]], seed: int, start: bytes = b"") -> bytes:
    pack = DIRECTORY_ENTRY.pack
    parts = [start]
    used = len(start)
    last = b""
    for name, value in entries:
        length = (len(name) + 11) & ~3
        last = pack(value >> 4, length, len(name), value & 15) + name + b"\0\0\0"[: length - len(name) - 8]
        parts.append(last)
        used += length
    if entries:
        # The last entry reaches to the end of what is before the checksum.
        parts[-1] = last[:4] + (len(last) + _ROOM - used).to_bytes(2, "little") + last[6:] + bytes(_ROOM - used)
    else:
        parts = [start[:16] + (12 + _ROOM - used).to_bytes(2, "little") + start[18:] + bytes(_ROOM - used)]
    body = b"".join(parts)
    return (
        body + DIRECTORY_ENTRY.pack(0, _TAIL, 0, DirectoryFileType.CHECKSUM) + checksums.update(seed, body).to_bytes(4, "little")
    )


def _encode_indexed(
    entries: Entries, order: Sequence[tuple[int, int, bytes]], number: int, parent: int, seed: int
) -> list[bytes]:
    leaves: list[bytes] = []
    hashes: list[int] = []
    current: list[tuple[bytes, int]] = []
    used = 0
    first = last = 0
    for value, _, name in order:
        length = (len(name) + 11) & ~3
        if used + length > _FILL:
            leaves.append(_encode_leaf(current, seed))
            hashes.append(first)
            first = value | (value == last)  # names of one hash lie in two leaves: the lowest bit tells the kernel to go on
            current, used = [], 0
        current.append((name, entries[name]))
        used += length
        last = value
    leaves.append(_encode_leaf(current, seed))
    hashes.append(first)
    if len(leaves) > _ROOT_ENTRIES * _NODE_ENTRIES:
        raise InvalidError(
            f"a directory of {len(entries)} names needs {len(leaves)} blocks, at most {_ROOT_ENTRIES * _NODE_ENTRIES} can be indexed"
        )
    nodes: list[bytes] = []
    if len(leaves) <= _ROOT_ENTRIES:
        pointers = list(zip(hashes, range(1, len(leaves) + 1), strict=True))
    else:
        groups = range(0, len(leaves), _NODE_ENTRIES)
        base = 1 + len(groups)
        pointers = []
        for block, start in enumerate(groups, 1):
            stop = min(start + _NODE_ENTRIES, len(leaves))
            inside = list(zip(hashes[start:stop], range(base + start, base + stop), strict=True))
            head = DIRECTORY_ENTRY.pack(0, BLOCK_SIZE, 0, 0)
            nodes.append(_encode_index(head, inside, _NODE_ENTRIES, seed))
            pointers.append((hashes[start], block))
    head = (
        _encode_entry(b".", number << 4 | DIRECTORY_TYPE, 12)
        + DIRECTORY_ENTRY.pack(parent, BLOCK_SIZE - 12, 2, DIRECTORY_TYPE)
        + b"..\0\0"
        + bytes((0, 0, 0, 0, HALF_MD4, 8, 1 if nodes else 0, 0))
    )
    return [_encode_index(head, pointers, _ROOT_ENTRIES, seed), *nodes, *leaves]


def _encode_index(head: bytes, pointers: Sequence[tuple[int, int]], limit: int, seed: int) -> bytes:
    """``head``, then limit and count in the place of the first hash, then the pointers, then the checksum."""
    first = limit.to_bytes(2, "little") + len(pointers).to_bytes(2, "little") + pointers[0][1].to_bytes(4, "little")
    body = head + first + b"".join(HASH_ENTRY.pack(*pointer) for pointer in pointers[1:])
    checksum = checksums.update(seed, body + bytes(8))  # the tail's reserved word, and its checksum counted as zero
    return body.ljust(BLOCK_SIZE - 8, b"\0") + bytes(4) + checksum.to_bytes(4, "little")


def decode_block(
    block: bytes, seed: int | None, inodes: int, where: str, *, indexed: bool, first: bool
) -> Iterator[tuple[bytes, int]]:
    """The entries of one block, ``.`` and ``..`` too, in their order; of a block of an index none but these.

    Args:
        seed: of the checksums of the directory's inode, None if there are none.
        inodes: how many the file system has.
        where: names the block, for errors.
        indexed: whether the directory has the INDEX flag.
        first: whether this is its first block.

    Raises:
        CorruptError: checksum, lengths, names or inode numbers are wrong.
    """
    end = prove_block(block, seed, where, indexed=indexed, first=first)
    offset = 0
    unpack = DIRECTORY_ENTRY.unpack_from
    while offset < end:
        if end - offset < 8:
            raise CorruptError(f"{where}: {end - offset} bytes are left at byte {offset}")
        number, length, name_length, kind = unpack(block, offset)
        if length < 8 + name_length or length & 3 or length > end - offset:
            raise CorruptError(f"{where}: entry at byte {offset} has length {length} and a name of {name_length} bytes")
        if number:
            name = block[offset + 8 : offset + 8 + name_length]
            if not name or number > inodes or b"/" in name or b"\0" in name:
                raise CorruptError(f"{where}: entry at byte {offset} has name {name!r} and inode {number}")
            yield name, number << 4 | kind & TYPE_MASK
        offset += length


def prove_block(block: bytes, seed: int | None, where: str, *, indexed: bool, first: bool) -> int:
    """Proves the checksum of one block, all of the arguments being those of ``decode_block``; returns where its entries end."""
    if seed is None:
        return BLOCK_SIZE
    if indexed and (first or block[:6] == b"\0\0\0\0\0\x10"):
        return _prove_index(block, seed, where, _ROOT_COUNT if first else _NODE_COUNT)
    return _prove_leaf(block, seed, where)


def _prove_leaf(block: bytes, seed: int, where: str) -> int:
    zero, length, names, kind = DIRECTORY_ENTRY.unpack_from(block, _ROOM)
    if (zero, length, names, kind) != (0, _TAIL, 0, DirectoryFileType.CHECKSUM):
        raise CorruptError(f"{where}: no checksum at byte {_ROOM}")
    expected, found = checksums.update(seed, block[:_ROOM]), int.from_bytes(block[-4:], "little")
    if found != expected:
        raise CorruptError(f"{where}: checksum is 0x{found:08x}, the bytes give 0x{expected:08x}")
    return _ROOM


def _prove_index(block: bytes, seed: int, where: str, count_offset: int) -> int:
    limit = int.from_bytes(block[count_offset : count_offset + 2], "little")
    count = int.from_bytes(block[count_offset + 2 : count_offset + 4], "little")
    if count > limit or count_offset + limit * 8 > BLOCK_SIZE - 8:
        raise CorruptError(f"{where}: index of {count} entries, at most {limit}")
    tail = count_offset + limit * 8
    value = checksums.update(seed, block[: count_offset + count * 8])
    expected, found = (
        checksums.update(value, block[tail : tail + 4] + bytes(4)),
        int.from_bytes(block[tail + 4 : tail + 8], "little"),
    )
    if found != expected:
        raise CorruptError(f"{where}: index checksum is 0x{found:08x}, the bytes give 0x{expected:08x}")
    return BLOCK_SIZE
