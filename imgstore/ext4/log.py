"""The log of a journal: which transactions were committed, and what they put where (``fs/jbd2/recovery.c``).

The kernel goes over the log three times, to find its end, its revocations and its blocks. Here it is read once, and what it says is
kept by numbers: memory and time are bounded by the blocks of the journal.
"""

from __future__ import annotations

import bisect
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from imgstore.blocks import BlockDevice, Bytes
from imgstore.errors import CorruptError, UnsupportedError
from imgstore.ext4 import checksums
from imgstore.ext4.extents import Run
from imgstore.ext4.structures import (
    BLOCK_SIZE,
    JOURNAL_HEADER,
    JOURNAL_MAGIC,
    CommitHeader,
    JournalBlockType,
    JournalCompatFeature,
    JournalIncompatFeature,
    JournalSuperBlock,
    TagFlag,
)

MEND_HINT = "run e2fsck on the file system"
_MAGIC = JOURNAL_MAGIC.to_bytes(4, "big")
_KNOWN = (
    JournalIncompatFeature.REVOKE
    | JournalIncompatFeature.BIT64
    | JournalIncompatFeature.ASYNC_COMMIT
    | JournalIncompatFeature.CSUM_V2
    | JournalIncompatFeature.CSUM_V3
    | JournalIncompatFeature.FAST_COMMIT
)
_CRC32C = 4
_CRC32 = 1
_TAIL = 4
_REVOKE_HEADER = 16
_UUID = 16
_FAST_COMMIT_BLOCKS = 256  # where the superblock says 0
_FAST_COMMIT_HEAD = struct.Struct("<HHII")  # tag, length, features, transaction
_FAST_COMMIT_HEAD_TAG = 9
_SEQUENCE_MASK = 0xFFFFFFFF
_REVERSED = bytes(int(f"{number:08b}"[::-1], 2) for number in range(256))


class Tag(NamedTuple):
    """One block of a transaction."""

    target: int
    """Block of the file system."""
    position: int
    """Block of the journal that holds its new contents."""
    flags: int
    checksum: int


class Transaction(NamedTuple):
    """A transaction with its commit block."""

    sequence: int
    tags: list[Tag]
    revocations: list[int]
    """Positions of its revoke blocks."""


class Log:
    """The log of the journal whose blocks lie at ``runs`` of ``device``.

    Attributes:
        super_block: of the journal.
        end: the block of the journal behind the last one of the log; from there it goes on at ``super_block.first``.
    """

    def __init__(self, device: BlockDevice, runs: Sequence[Run]) -> None:
        """Reads and proves the journal's superblock.

        Raises:
            CorruptError: it is damaged, or does not fit the journal's blocks.
            UnsupportedError: a feature that is not known.
        """
        self._device = device
        if not runs:
            raise CorruptError("journal: has no blocks")
        self._runs = runs
        self._starts = [run.logical for run in runs]
        data = self.read(0)
        self.super_block = JournalSuperBlock.from_bytes(data)
        self._prove(data)
        features = self.super_block.feature_incompat
        self._wide = bool(features & JournalIncompatFeature.BIT64)
        self._version3 = bool(features & JournalIncompatFeature.CSUM_V3)
        self._checked = bool(features & (JournalIncompatFeature.CSUM_V2 | JournalIncompatFeature.CSUM_V3))
        self._seed = checksums.update(checksums.ALL_ONES, self.super_block.uuid)
        self.end = self.super_block.max_length
        if features & JournalIncompatFeature.FAST_COMMIT:
            self.end -= self.super_block.fast_commit_blocks or _FAST_COMMIT_BLOCKS
        if not 0 < self.super_block.first < self.end or not (
            self.super_block.start == 0 or self.super_block.first <= self.super_block.start < self.end
        ):
            raise CorruptError(
                f"journal: the log is blocks {self.super_block.first} to {self.end - 1} of {self.super_block.max_length}, "
                f"and starts at {self.super_block.start}"
            )

    def _prove(self, data: bytes) -> None:
        journal = self.super_block
        held = self._runs[-1].logical + self._runs[-1].length
        if journal.block_size != BLOCK_SIZE or journal.max_length > held:
            raise CorruptError(
                f"journal: {journal.max_length} blocks of {journal.block_size} bytes in a file of {held} of {BLOCK_SIZE}"
            )
        unknown = journal.feature_incompat & ~int(_KNOWN)
        if unknown or journal.feature_ro_compat:
            raise UnsupportedError(
                f"journal: features 0x{unknown:x} (incompatible) and 0x{journal.feature_ro_compat:x} (read-only) are not supported"
            )
        new = journal.feature_incompat & (JournalIncompatFeature.CSUM_V2 | JournalIncompatFeature.CSUM_V3)
        old = journal.feature_compat & JournalCompatFeature.CHECKSUM
        if new.bit_count() + old.bit_count() > 1:
            raise CorruptError(
                f"journal: has checksums of several versions, features 0x{journal.feature_incompat:x} and 0x{old:x}"
            )
        if not new:
            return
        if journal.checksum_type != _CRC32C:
            raise UnsupportedError(f"journal: checksum type is {journal.checksum_type}, not {_CRC32C} (crc32c)")
        if journal.checksum != (expected := super_block_checksum(data)):
            raise CorruptError(
                f"journal: checksum of its superblock is 0x{journal.checksum:08x}, the bytes give 0x{expected:08x}"
            )

    def place(self, position: int) -> int:
        """Byte of the device where block ``position`` of the journal lies.

        Raises:
            CorruptError: the journal has no such block.
        """
        index = bisect.bisect_right(self._starts, position) - 1
        run = self._runs[max(index, 0)]
        if not run.logical <= position < run.logical + run.length or run.unwritten:
            raise CorruptError(f"journal: block {position} is not there")
        return (run.physical + position - run.logical) * BLOCK_SIZE

    def read(self, position: int) -> bytes:
        """Block ``position`` of the journal."""
        return self._device.read(self.place(position), BLOCK_SIZE)

    def replay(self) -> tuple[dict[int, int | bytes], int]:
        """What the committed transactions put where, and the number of the transaction that comes after them.

        Returns:
            Block of the file system to its new contents: the byte of the device where they lie, or, if they cannot lie in a log as
            they are, themselves.

        Raises:
            CorruptError: a committed transaction is damaged. What only a power cut leaves, a last transaction that is not whole,
                ends the log and is no error.
            UnsupportedError: fast commits follow the log.
        """
        transactions, end = _Scan(self).run()
        self._refuse_fast_commits(end)
        revoked = self._revoked(transactions)
        contents: dict[int, int | bytes] = {}
        for transaction in transactions:
            seed = checksums.update(self._seed, transaction.sequence.to_bytes(4, "big"))
            for tag in transaction.tags:
                last = revoked.get(tag.target)
                if last is not None and not _is_later(transaction.sequence, last):
                    continue
                escaped = tag.flags & TagFlag.ESCAPED
                if escaped or self._checked:
                    data = self.read(tag.position)
                    self._prove_block(tag, seed, data, transaction.sequence)
                contents[tag.target] = _MAGIC + data[4:] if escaped else self.place(tag.position)
        return contents, end + 1 & _SEQUENCE_MASK

    def _prove_block(self, tag: Tag, seed: int, data: bytes, sequence: int) -> None:
        if not self._checked:
            return
        expected = checksums.update(seed, data)
        if not self._version3:
            expected &= 0xFFFF
        if tag.checksum != expected:
            raise CorruptError(
                f"journal: transaction {sequence}: checksum of block {tag.position}, for block {tag.target} of the file system, "
                f"is 0x{tag.checksum:x}, the bytes give 0x{expected:x}",
                hint=MEND_HINT,
            )

    def _revoked(self, transactions: Sequence[Transaction]) -> dict[int, int]:
        """Block to the last transaction that revoked it: what it, and those before it, put there must not be replayed."""
        room = BLOCK_SIZE - (_TAIL if self._checked else 0)
        size, code = (8, ">Q") if self._wide else (4, ">I")
        revoked: dict[int, int] = {}
        for transaction in transactions:
            for position in transaction.revocations:
                data = self.read(position)
                used = int.from_bytes(data[12:16], "big")
                if used > room:
                    raise CorruptError(f"journal: revoke block {position} has {used} bytes, at most {room}", hint=MEND_HINT)
                count = max(used - _REVOKE_HEADER, 0) // size
                for (target,) in struct.iter_unpack(code, data[_REVOKE_HEADER : _REVOKE_HEADER + count * size]):
                    revoked[target] = transaction.sequence
        return revoked

    def _refuse_fast_commits(self, end: int) -> None:
        if (
            not self.super_block.feature_incompat & JournalIncompatFeature.FAST_COMMIT
            or self.end + 1 >= self.super_block.max_length
        ):
            return
        tag, _, _, sequence = _FAST_COMMIT_HEAD.unpack_from(self.read(self.end + 1))
        if tag == _FAST_COMMIT_HEAD_TAG and sequence == end:
            raise UnsupportedError(
                f"journal: fast commits of transaction {sequence} wait for replay",
                hint="mount the file system once, or run e2fsck on it",
            )

    def tags(self, block: bytes) -> list[tuple[int, int, int]]:
        """(target, flags, checksum) of the blocks that follow a descriptor block."""
        size = self._tag_size()
        end = BLOCK_SIZE - (_TAIL if self._checked else 0)
        found = []
        offset = JOURNAL_HEADER.size
        while offset + size <= end:
            target, middle, flags = struct.unpack_from(">IHH", block, offset)
            if self._wide:
                target |= int.from_bytes(block[offset + 8 : offset + 12], "big") << 32
            checksum = int.from_bytes(block[offset + 12 : offset + 16], "big") if self._version3 else middle
            found.append((target, flags, checksum))
            offset += size
            if not flags & TagFlag.SAME_UUID:
                offset += _UUID
            if flags & TagFlag.LAST:
                break
        return found

    def _tag_size(self) -> int:
        """``journal_tag_bytes``, with the two bytes too many that version 2 has always had."""
        if self._version3:
            return 16
        size = 12 if self._wide else 8
        return size + 2 if self._checked else size

    def is_sound(self, block: bytes) -> bool:
        """Whether the checksum at the end of a descriptor or revoke block is right, or there is none."""
        return not self._checked or checksums.update(self._seed, block[:-_TAIL] + bytes(_TAIL)) == int.from_bytes(
            block[-_TAIL:], "big"
        )

    def is_committed(self, block: bytes, header: CommitHeader, checksum: int) -> bool:
        """Whether a commit block is right; ``checksum`` is that of the transaction's blocks, for version 1.

        A device may have written only the first sector of the block: then the header must be right with zeros behind it.
        """
        if self.super_block.feature_compat & JournalCompatFeature.CHECKSUM:
            stated = header.checksum_type, header.checksum_size, header.checksum
            return stated in ((_CRC32, 4, checksum), (0, 0, 0))
        if not self._checked:
            return True
        start = block[:0x10] + bytes(4)
        size = CommitHeader.SIZE
        return any(
            checksums.update(self._seed, start + rest) == header.checksum
            for rest in (block[0x14:], block[0x14:size].ljust(BLOCK_SIZE - 0x14, b"\0"))
        )


class _Scan:
    """One walk over a log, from its start to where the committed transactions end."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._first = log.super_block.first
        self._position = log.super_block.start
        self._left = log.end - self._first
        self._sequence = log.super_block.sequence
        self._sums_blocks = bool(log.super_block.feature_compat & JournalCompatFeature.CHECKSUM)
        self._asynchronous = bool(log.super_block.feature_incompat & JournalIncompatFeature.ASYNC_COMMIT)

    def run(self) -> tuple[list[Transaction], int]:
        """The whole transactions, and the number of the first that is not."""
        transactions: list[Transaction] = []
        ended: int | None = None
        last_time = 0
        for tags, revocations, sound, checksum, commit in self._parts():
            header = CommitHeader.from_bytes(commit)
            if not sound:
                # What an older use of these blocks left has an older time; a newer time tells of damage.
                if header.seconds >= last_time:
                    raise self._damaged("a descriptor or revoke block has a wrong checksum")
                break
            if ended is not None and self._sums_blocks:
                raise self._damaged("is committed, and the one before it is damaged")
            if not self._log.is_committed(commit, header, checksum):
                if header.seconds < last_time:
                    break
                if not self._asynchronous:
                    raise self._damaged("its commit block has a wrong checksum")
                ended = self._sequence if ended is None else ended
            if ended is None:
                transactions.append(Transaction(self._sequence, tags, revocations))
            last_time = header.seconds
            self._sequence = self._sequence + 1 & _SEQUENCE_MASK
        return transactions, self._sequence if ended is None else ended

    def _parts(self) -> Iterator[tuple[list[Tag], list[int], bool, int, bytes]]:
        """What belongs to each commit block: tags, revoke blocks, whether the blocks that say so are right, checksum; and that block.

        A log holds no more blocks than it has: transactions that would go around are not whole.
        """
        tags: list[Tag] = []
        revocations: list[int] = []
        sound, checksum = True, checksums.ALL_ONES
        while self._left > 0:
            position = self._take()
            block = self._log.read(position)
            magic, kind, sequence = JOURNAL_HEADER.unpack_from(block)
            if magic != JOURNAL_MAGIC or sequence != self._sequence:
                return
            if kind == JournalBlockType.COMMIT:
                yield tags, revocations, sound, checksum, block
                tags, revocations, checksum = [], [], checksums.ALL_ONES
                continue
            sound = sound and self._log.is_sound(block)
            if kind == JournalBlockType.REVOKE:
                revocations.append(position)
            elif kind == JournalBlockType.DESCRIPTOR:
                if self._sums_blocks:
                    checksum = _crc32_be(checksum, block)
                for target, flags, stated in self._log.tags(block):
                    position = self._take()
                    if self._sums_blocks:
                        checksum = _crc32_be(checksum, self._log.read(position))
                    tags.append(Tag(target, position, flags, stated))
            else:
                return

    def _take(self) -> int:
        position = self._position
        self._left -= 1
        self._position = position + 1 if position + 1 < self._log.end else self._first
        return position

    def _damaged(self, problem: str) -> CorruptError:
        return CorruptError(f"journal: transaction {self._sequence}: {problem}", hint=MEND_HINT)


def super_block_checksum(data: Bytes) -> int:
    """Of the first block of a journal."""
    offset = JournalSuperBlock.offset_of("checksum")
    return checksums.update(
        checksums.ALL_ONES, bytes(data[:offset]) + bytes(4) + bytes(data[offset + 4 : JournalSuperBlock.SIZE])
    )


def _crc32_be(seed: int, data: bytes) -> int:
    """The kernel's ``crc32_be``: what zlib counts, with the bits of every byte and of the sum the other way round."""
    return _reverse(zlib.crc32(data.translate(_REVERSED), _reverse(seed) ^ checksums.ALL_ONES) ^ checksums.ALL_ONES)


def _reverse(value: int) -> int:
    return int.from_bytes(value.to_bytes(4, "little").translate(_REVERSED), "big")


def _is_later(sequence: int, other: int) -> bool:
    """``tid_gt``: numbers of transactions go round."""
    return 0 < (sequence - other & _SEQUENCE_MASK) < 1 << 31
