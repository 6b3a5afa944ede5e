"""Hands out blocks and inodes, and takes them back.

For a layer both allocators go forward from behind the last one in use, so that what it adds lies together; what earlier layers freed
is taken only when the end is reached. For a file system in use they take what is free from the front: there the disk below has its
bytes already, and a disk that is written again and again does not wander to its end. Same file system and same calls, same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from imgstore.errors import CorruptError, NoSpaceError
from imgstore.ext4 import checksums
from imgstore.ext4.bitmaps import clear_bits, clear_runs, count_bits, highest_bit, set_bits
from imgstore.ext4.geometry import Geometry
from imgstore.ext4.groups import BaseMetadata, GroupTable, load_block_bitmap, load_inode_bitmap
from imgstore.ext4.pages import WritablePageCache
from imgstore.ext4.structures import BLOCK_SIZE, GroupFlag

_ALIGNMENT = 16  # blocks: 64 KiB, a grain of the disk below
_REUSED_RUNS = (2048, _ALIGNMENT, 1)
"""Least blocks of the free runs that are taken first, second, last: 8 MiB keep big files whole, where holes are many."""


class FileSystemFullError(NoSpaceError):
    """No free block, or no free inode, is left."""


class _Bitmaps:
    """The bitmaps of one kind, loaded when first needed."""

    def __init__(self, per_group: int, load: Callable[[int], bytearray]) -> None:
        self._per_group = per_group
        self._load = load
        self._loaded: dict[int, bytearray] = {}
        self.changed: set[int] = set()

    def __getitem__(self, group: int) -> bytearray:
        bitmap = self._loaded.get(group)
        if bitmap is None:
            bitmap = self._loaded[group] = self._load(group)
        return bitmap

    def pieces(self, start: int, count: int) -> Iterator[tuple[int, int, int]]:
        """(group, first bit, count) of a range."""
        while count:
            group, bit = divmod(start, self._per_group)
            take = min(count, self._per_group - bit)
            yield group, bit, take
            start += take
            count -= take

    def changed_bitmaps(self) -> Iterator[tuple[int, bytearray]]:
        for group in sorted(self.changed):
            yield group, self._loaded[group]


class BlockAllocator:
    """Free and used blocks.

    Nothing is written before ``save``. What was taken from this allocator and given back is free only then: the layer's recipe counts on
    the contents of all files that the layer ever had, also of those that it replaced itself.
    """

    def __init__(
        self, pages: WritablePageCache, geometry: Geometry, groups: GroupTable, base: BaseMetadata, *, reuse: bool
    ) -> None:
        """``reuse`` takes free runs from the front, instead of going on behind the last block in use."""
        self._pages = pages
        self._geometry = geometry
        self._groups = groups
        self._base = base
        self._bitmaps = _Bitmaps(geometry.blocks_per_group, self._load)
        self._run_lengths = _REUSED_RUNS if reuse else (1,)
        after_last = geometry.blocks if reuse else self._after_last()
        self._pointer = min(-(-after_last // _ALIGNMENT) * _ALIGNMENT, geometry.blocks)
        self._marked = self._pointer
        self._first_new = self._pointer
        self._reused = _Bitmaps(geometry.blocks_per_group, lambda group: bytearray(BLOCK_SIZE))
        self._held: list[tuple[int, int]] = []
        self._runs: Iterator[tuple[int, int]] | None = None
        self._run = (0, 0)
        self._freed = False

    def _load(self, group: int) -> bytearray:
        return load_block_bitmap(self._pages, self._groups, self._base, group)

    def _after_last(self) -> int:
        geometry = self._geometry
        for group in range(geometry.groups - 1, -1, -1):
            if self._groups.free_blocks[group] < geometry.blocks_in_group(group):
                last = highest_bit(self._bitmaps[group], geometry.blocks_in_group(group))
                if last >= 0:
                    return group * geometry.blocks_per_group + last + 1
        return 0

    def take(self, count: int) -> tuple[int, int]:
        """(first block, how many) of a run of at most ``count`` blocks; they are used from now on.

        Raises:
            FileSystemFullError: not one block is free.
        """
        start = self._pointer
        available = self._geometry.blocks - start
        if available > 0:
            if count > available:
                count = available
            self._pointer = start + count
            return start, count
        start, length = self._run
        if not length:
            start, length = self._next_run()
        count = min(count, length)
        self._run = (start + count, length - count)
        self._mark(start, count)
        for group, bit, part in self._reused.pieces(start, count):
            set_bits(self._reused[group], bit, part)
        return start, count

    def _next_run(self) -> tuple[int, int]:
        self._sync()
        for _ in range(2):
            if self._runs is None:
                self._runs, self._freed = self._free_runs(), False
            run = next(self._runs, None)
            if run is not None:
                return run
            if not self._freed:
                break
            self._runs = None
        free = sum(self._groups.free_blocks)
        raise FileSystemFullError(f"no block is free: {self._geometry.blocks - free} of {self._geometry.blocks} blocks are used")

    def _free_runs(self) -> Iterator[tuple[int, int]]:
        for least in self._run_lengths:
            for group in range(self._geometry.groups):
                if self._groups.free_blocks[group] >= least:
                    for bit, count in clear_runs(self._bitmaps[group], self._geometry.blocks_in_group(group)):
                        if count >= least:
                            yield group * self._geometry.blocks_per_group + bit, count

    def free(self, start: int, count: int) -> None:
        """Gives back a run of used blocks.

        Raises:
            CorruptError: one of them is free, or outside the file system.
        """
        if start < 1 or start + count > self._geometry.blocks:
            raise CorruptError(f"blocks {start} to {start + count - 1} are in use, the file system has {self._geometry.blocks}")
        self._sync()
        if self._is_new(start, count):
            self._held.append((start, count))
        else:
            self._clear(start, count)
            self._freed = True

    def _is_new(self, start: int, count: int) -> bool:
        """Whether a block of the run was taken from this allocator."""
        return start + count > self._first_new or any(
            count_bits(self._reused[group], bit, length) for group, bit, length in self._reused.pieces(start, count)
        )

    def _clear(self, start: int, count: int) -> None:
        for group, bit, length in self._bitmaps.pieces(start, count):
            bitmap = self._bitmaps[group]
            if (used := count_bits(bitmap, bit, length)) != length:
                raise CorruptError(
                    f"block bitmap {group} at byte {self._groups.block_bitmap[group] * BLOCK_SIZE}: "
                    f"{length - used} of blocks {start} to {start + count - 1} are free, and a file has them"
                )
            clear_bits(bitmap, bit, length)
            self._groups.free_blocks[group] += length
            self._bitmaps.changed.add(group)

    def _sync(self) -> None:
        self._mark(self._marked, self._pointer - self._marked)
        self._marked = self._pointer

    def _mark(self, start: int, count: int) -> None:
        for group, bit, length in self._bitmaps.pieces(start, count):
            set_bits(self._bitmaps[group], bit, length)
            self._groups.free_blocks[group] -= length
            self._bitmaps.changed.add(group)

    def save(self) -> None:
        """Puts the changed bitmaps into the pages, and their checksums and counts into the group table.

        Raises:
            CorruptError: a block was freed twice.
        """
        self._sync()
        for start, count in self._held:
            self._clear(start, count)
        self._held.clear()
        seed = self._geometry.checksum_seed
        for group, bitmap in self._bitmaps.changed_bitmaps():
            self._pages.write(self._groups.block_bitmap[group] * BLOCK_SIZE, bitmap)
            if seed is not None:
                self._groups.block_bitmap_checksum[group] = checksums.update(seed, bitmap[: self._geometry.blocks_per_group // 8])
            self._groups.flags[group] &= ~int(GroupFlag.BLOCK_UNINIT)
            self._groups.changed.add(group)


class InodeAllocator:
    """Free and used inodes. Nothing is written before ``save``.

    Attributes:
        first_new: every inode in use from this number on was taken from this allocator.
    """

    def __init__(self, pages: WritablePageCache, geometry: Geometry, groups: GroupTable, *, reuse: bool) -> None:
        """``reuse`` takes the first that are free, instead of going on behind the last in use."""
        self._pages = pages
        self._geometry = geometry
        self._groups = groups
        self._bitmaps = _Bitmaps(geometry.inodes_per_group, self._load)
        self.first_new = geometry.inodes + 1 if reuse else max(self._after_last(), geometry.first_inode)
        self._pointer = self.first_new
        self._marked = self._pointer
        self._reused: set[int] = set()
        self._runs: Iterator[tuple[int, int]] | None = None
        self._run = (0, 0)
        self._freed = False

    def _load(self, group: int) -> bytearray:
        return load_inode_bitmap(self._pages, self._groups, group)

    def _after_last(self) -> int:
        geometry = self._geometry
        for group in range(geometry.groups - 1, -1, -1):
            if self._groups.free_inodes[group] < geometry.inodes_per_group:
                last = highest_bit(self._bitmaps[group], geometry.inodes_per_group)
                if last >= 0:
                    return group * geometry.inodes_per_group + last + 2
        return 1

    def is_new(self, number: int) -> bool:
        """Whether inode ``number``, which is in use, was taken from this allocator."""
        return number >= self.first_new or number in self._reused

    def take(self) -> int:
        """An inode, used from now on.

        Raises:
            FileSystemFullError: none is free.
        """
        number = self._pointer
        if number <= self._geometry.inodes:
            self._pointer = number + 1
            return number
        start, length = self._run
        if not length:
            start, length = self._next_run()
        self._run = (start + 1, length - 1)
        self._mark(start, 1)
        self._reused.add(start)
        return start

    def _next_run(self) -> tuple[int, int]:
        self._sync()
        for _ in range(2):
            if self._runs is None:
                self._runs, self._freed = self._free_runs(), False
            run = next(self._runs, None)
            if run is not None:
                return run
            if not self._freed:
                break
            self._runs = None
        raise FileSystemFullError(f"no inode is free: all {self._geometry.inodes} are used")

    def _free_runs(self) -> Iterator[tuple[int, int]]:
        for group in range(self._geometry.groups):
            if self._groups.free_inodes[group]:
                for bit, count in clear_runs(self._bitmaps[group], self._geometry.inodes_per_group):
                    yield group * self._geometry.inodes_per_group + bit + 1, count

    def note_directory(self, number: int) -> None:
        """Counts a used inode as a directory."""
        self._groups.used_dirs[(number - 1) // self._geometry.inodes_per_group] += 1

    def free(self, number: int, *, directory: bool) -> None:
        """Gives back an inode in use.

        Raises:
            CorruptError: it is free already, reserved or outside the file system.
        """
        if not self._geometry.first_inode <= number <= self._geometry.inodes:
            raise CorruptError(f"inode {number} has a name, valid are {self._geometry.first_inode} to {self._geometry.inodes}")
        self._sync()
        group, bit = divmod(number - 1, self._geometry.inodes_per_group)
        bitmap = self._bitmaps[group]
        if not bitmap[bit >> 3] >> (bit & 7) & 1:
            raise CorruptError(
                f"inode bitmap {group} at byte {self._groups.inode_bitmap[group] * BLOCK_SIZE}: inode {number} is free, and has a name"
            )
        clear_bits(bitmap, bit, 1)
        self._groups.free_inodes[group] += 1
        if directory:
            if not self._groups.used_dirs[group]:
                raise CorruptError(
                    f"GroupDescriptor {group} at byte {self._groups.descriptor_offset(group)}: "
                    f"has no directories, and inode {number} is one"
                )
            self._groups.used_dirs[group] -= 1
        self._bitmaps.changed.add(group)
        self._reused.discard(number)
        self._freed = True

    def _sync(self) -> None:
        if self._pointer > self._marked:
            self._mark(self._marked, self._pointer - self._marked)
            self._marked = self._pointer

    def _mark(self, first: int, count: int) -> None:
        per_group = self._geometry.inodes_per_group
        for group, bit, length in self._bitmaps.pieces(first - 1, count):
            set_bits(self._bitmaps[group], bit, length)
            self._groups.free_inodes[group] -= length
            self._groups.itable_unused[group] = min(self._groups.itable_unused[group], per_group - bit - length)
            self._bitmaps.changed.add(group)

    def save(self) -> None:
        """Puts the changed bitmaps into the pages, and their checksums and counts into the group table."""
        self._sync()
        seed = self._geometry.checksum_seed
        for group, bitmap in self._bitmaps.changed_bitmaps():
            self._pages.write(self._groups.inode_bitmap[group] * BLOCK_SIZE, bitmap)
            if seed is not None:
                self._groups.inode_bitmap_checksum[group] = checksums.update(seed, bitmap[: self._geometry.inodes_per_group // 8])
            self._groups.flags[group] &= ~int(GroupFlag.INODE_UNINIT)
            self._groups.changed.add(group)
