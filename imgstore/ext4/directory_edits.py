"""Changes names in the blocks that a directory has, as the kernel does: a file system in use should not move a directory for one name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from imgstore.ext4.directories import decode_block, encode_leaf, prove_block
from imgstore.ext4.directory_hash import HALF_MD4, hash_name
from imgstore.ext4.structures import HASH_ENTRY

_ROOT_ENTRIES_AT = 32
_NODE_ENTRIES_AT = 8
_DEEPEST = 1


@dataclass(frozen=True, slots=True)
class DirectoryBlocks:
    """A directory as it lies on the disk.

    Attributes:
        count: of its blocks.
        read: gives one of them.
        indexed: whether it has the INDEX flag.
        seed: of the checksums of its inode.
        inodes: how many the file system has.
        hash_seed: of the superblock, as is ``signed_hash``.
        where: names it, for errors.
    """

    count: int
    read: Callable[[int], bytes]
    indexed: bool
    seed: int
    inodes: int
    hash_seed: Sequence[int]
    signed_hash: bool
    where: str

    def edit(self, removed: Collection[bytes], added: Mapping[bytes, int]) -> dict[int, bytes] | None:
        """The blocks that change: number to bytes. None if the directory must be written anew, for a block is too small, or gets empty.

        Args:
            removed: names that are there; one that only gets another inode is in both.
            added: name to ``inode << 4 | file type``.

        Raises:
            CorruptError: a block is damaged.
        """
        leaves: dict[int, dict[bytes, int]] = {}
        for name in [*removed, *(name for name in added if name not in removed)]:
            number = self._leaf_of(name)
            if number is None:
                return None
            leaf = leaves.get(number)
            if leaf is None:
                leaf = leaves[number] = self._decode(number)
            if name in removed and name not in leaf:
                return None  # names of one hash may go on in the next leaf
            if name in added:
                leaf[name] = added[name]
            else:
                del leaf[name]
        encoded = {number: encode_leaf(leaf, self.seed) for number, leaf in leaves.items()}
        found = {number: block for number, block in encoded.items() if block is not None}
        return found if len(found) == len(encoded) else None

    def _decode(self, number: int) -> dict[bytes, int]:
        where, first = f"{self.where}: block {number}", number == 0
        return dict(decode_block(self.read(number), self.seed, self.inodes, where, indexed=self.indexed, first=first))

    def _leaf_of(self, name: bytes) -> int | None:
        """The block where ``dx_probe`` of the kernel looks for a name; None if the index is of another kind than ours."""
        if not self.indexed:
            return 0 if self.count == 1 else None
        root = self.read(0)
        prove_block(root, self.seed, f"{self.where}: block 0", indexed=True, first=True)
        levels = root[30]
        if root[28] != HALF_MD4 or levels > _DEEPEST:
            return None
        value, _ = hash_name(name, self.hash_seed, signed=self.signed_hash)
        number = _child(root, _ROOT_ENTRIES_AT, value)
        if levels and number < self.count:
            node = self.read(number)
            prove_block(node, self.seed, f"{self.where}: block {number}", indexed=True, first=False)
            if node[:6] != b"\0\0\0\0\0\x10":
                return None
            number = _child(node, _NODE_ENTRIES_AT, value)
        return number if 0 < number < self.count else None


def _child(node: bytes, start: int, value: int) -> int:
    """The block of the last entry whose hash is not above ``value``; that of the first entry has none."""
    count = int.from_bytes(node[start + 2 : start + 4], "little")
    child = int.from_bytes(node[start + 4 : start + 8], "little")
    for position in range(start + 8, start + 8 * count, 8):
        least, block = HASH_ENTRY.unpack_from(node, position)
        if least > value:
            break
        child = block
    return child
