"""Recovery: what the kernel does first with a file system that was not unmounted (``ext4_load_journal``, ``ext4_orphan_cleanup``).

A guest that was stopped hard leaves a journal that waits for replay, and inodes that it had removed or was cutting. ``recovered``
shows the file system as it is after the replay; ``recover`` does it for good, and the rest.
"""

from __future__ import annotations

import bisect
import struct
from collections.abc import Iterator

from imgstore.blocks import BlockDevice, Extent, ExtentKind, WritableBlockDevice
from imgstore.errors import CorruptError, UnsupportedError
from imgstore.ext4.geometry import SUPER_OFFSET, read_super_block, write_super_block
from imgstore.ext4.log import MEND_HINT, Log, super_block_checksum
from imgstore.ext4.orphans import remove_orphans
from imgstore.ext4.reader import FileSystem
from imgstore.ext4.structures import (
    BLOCK_SHIFT,
    BLOCK_SIZE,
    CompatFeature,
    IncompatFeature,
    JournalIncompatFeature,
    JournalSuperBlock,
    RoCompatFeature,
    SuperBlock,
)

_MASK = BLOCK_SIZE - 1
_ERRORS = 0x2  # of s_state: the kernel met damage
_ERROR_RECORD = slice(0x194 - 0x176, 0x200 - 0x176)  # of SuperBlock.rest: s_error_count to s_last_error_block
_WRITTEN = 1 << 20


class RecoveredDevice:
    """A device with some of its blocks replaced, as a replay leaves it. Reads from several threads are safe if those below are.

    Takes some hundred bytes for each replaced block; their contents stay in the journal below, which must not change.
    """

    def __init__(self, device: BlockDevice) -> None:
        """A view in which nothing is replaced yet."""
        self._device = device
        self._blocks: dict[int, int | bytes] = {}
        self._order: list[int] = []

    @property
    def size(self) -> int:
        return self._device.size

    @property
    def changed(self) -> list[tuple[int, int]]:
        """The (offset, length) runs that may differ from the device below, ascending; neighbours are joined."""
        runs: list[tuple[int, int]] = []
        for block in self._order:
            offset = block << BLOCK_SHIFT
            if runs and sum(runs[-1]) == offset:
                runs[-1] = (runs[-1][0], runs[-1][1] + BLOCK_SIZE)
            else:
                runs.append((offset, BLOCK_SIZE))
        return runs

    def replace(self, blocks: dict[int, int | bytes]) -> None:
        """Replaces blocks: by number the new bytes, or the byte of the device below where they lie."""
        self._blocks.update(blocks)
        self._order = sorted(self._blocks)

    def read(self, offset: int, length: int) -> bytes:
        data = self._device.read(offset, length)
        first = bisect.bisect_left(self._order, offset >> BLOCK_SHIFT)
        last = bisect.bisect_left(self._order, (offset + length + _MASK) >> BLOCK_SHIFT)
        if first == last or not length:
            return data
        patched = bytearray(data)
        for block in self._order[first:last]:
            start = block << BLOCK_SHIFT
            begin, end = max(start, offset), min(start + BLOCK_SIZE, offset + length)
            patched[begin - offset : end - offset] = self._content(block)[begin - start : end - start]
        return bytes(patched)

    def _content(self, block: int) -> bytes:
        content = self._blocks[block]
        return content if isinstance(content, bytes) else self._device.read(content, BLOCK_SIZE)

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        for extent in self._device.extents(offset, length):
            if extent.kind is not ExtentKind.HOLE:
                yield extent
                continue
            position, end = extent.offset, extent.offset + extent.length
            first = bisect.bisect_left(self._order, position >> BLOCK_SHIFT)
            last = bisect.bisect_left(self._order, (end + _MASK) >> BLOCK_SHIFT)
            for block in self._order[first:last]:
                start, stop = max(block << BLOCK_SHIFT, position), min((block + 1) << BLOCK_SHIFT, end)
                if start > position:
                    yield Extent(position, start - position, ExtentKind.HOLE)
                yield Extent(start, stop - start, ExtentKind.DATA)
                position = stop
            if position < end:
                yield Extent(position, end - position, ExtentKind.HOLE)


def recovered(device: BlockDevice) -> BlockDevice:
    """``device`` as it is after the replay of its journal; ``device`` itself if nothing waits for replay.

    Nothing is written. Orphans, which the kernel removes afterwards, are still there: no name leads to them.

    Returns:
        If the journal waits for replay a RecoveredDevice, whose ``changed`` tells where it differs from ``device``.

    Raises:
        CorruptError: file system or journal are damaged where no power cut damages them.
        UnsupportedError: the journal is a device of its own, or has fast commits or unknown features.
    """
    super_block = read_super_block(device)
    if not super_block.feature_incompat & IncompatFeature.RECOVER:
        return device
    view = RecoveredDevice(device)
    _show_super_block(view, super_block)
    log = _open_log(view, device)
    if log is None:
        raise CorruptError(f"SuperBlock at byte {SUPER_OFFSET}: the journal must be replayed, and there is none")
    if log.super_block.start:
        blocks, sequence = log.replay()
        _prove_targets(blocks, log, FileSystem(view).geometry.blocks)
        view.replace(blocks)
    else:
        sequence = log.super_block.sequence
    _settle_super_block(view, super_block, failed=bool(log.super_block.error))
    view.replace({log.place(0) >> BLOCK_SHIFT: _emptied(log, sequence)})
    return view


def recover(device: WritableBlockDevice) -> bool:
    """Does for good what the kernel does when it mounts: replays and empties the journal, then removes the orphans.

    Orphans without a name are freed with all their blocks, the others cut at their size. What is written is not ordered, and not
    atomic: whoever calls makes all of it durable, or none; after an error nothing of it must stay.

    Returns:
        Whether anything had to be done; if not, nothing was written.

    Raises:
        CorruptError: file system, journal or the list of orphans are damaged.
        UnsupportedError: the kernel met damage and says so in the superblock; or what ``recovered`` or LayerWriter do not support.
    """
    view = recovered(device)
    super_block = read_super_block(view)
    if super_block.state & _ERRORS:
        raise UnsupportedError(
            f"SuperBlock at byte {SUPER_OFFSET}: state is {super_block.state}: the kernel has found damage", hint=MEND_HINT
        )
    wrote = False
    if isinstance(view, RecoveredDevice):
        for offset, length in view.changed:
            for start in range(offset, offset + length, _WRITTEN):
                device.write(start, view.read(start, min(_WRITTEN, offset + length - start)))
        wrote = True
    else:
        wrote = _empty_unused_log(device)
    return remove_orphans(device) or wrote


def _show_super_block(view: RecoveredDevice, super_block: SuperBlock) -> None:
    """Replaces the first block by one with ``super_block``, without RECOVER."""
    super_block.feature_incompat &= ~int(IncompatFeature.RECOVER)
    checked = super_block.feature_ro_compat & RoCompatFeature.METADATA_CSUM
    first = bytearray(view.read(0, BLOCK_SIZE))
    first[SUPER_OFFSET : SUPER_OFFSET + SuperBlock.SIZE] = write_super_block(super_block) if checked else super_block.to_bytes()
    view.replace({0: bytes(first)})


def _settle_super_block(view: RecoveredDevice, before: SuperBlock, *, failed: bool) -> None:
    """Makes the replayed superblock what the kernel leaves.

    What the kernel wrote of errors past the journal stays, and the free blocks and inodes are counted: a running kernel has their
    number in memory only.
    """
    super_block = read_super_block(view)
    super_block.state |= before.state & _ERRORS | (_ERRORS if failed else 0)
    super_block.rest = (
        super_block.rest[: _ERROR_RECORD.start] + before.rest[_ERROR_RECORD] + super_block.rest[_ERROR_RECORD.stop :]
    )
    _show_super_block(view, super_block)
    groups = FileSystem(view).groups
    blocks = sum(groups.free_blocks)
    super_block.free_blocks_count_lo = blocks & 0xFFFFFFFF
    if super_block.feature_incompat & IncompatFeature.BIT64:
        super_block.free_blocks_count_hi = blocks >> 32
    super_block.free_inodes_count = sum(groups.free_inodes)
    _show_super_block(view, super_block)


def _open_log(view: BlockDevice, device: BlockDevice) -> Log | None:
    """The journal of the file system that ``view`` shows; its blocks are read from ``device``. None if it has none."""
    file_system = FileSystem(view)
    super_block = file_system.super_block
    if not super_block.feature_compat & CompatFeature.HAS_JOURNAL:
        return None
    if super_block.journal_dev or not super_block.journal_inum:
        raise UnsupportedError(
            f"SuperBlock at byte {SUPER_OFFSET}: the journal is device 0x{super_block.journal_dev:x}", hint=MEND_HINT
        )
    return Log(device, list(file_system.runs(file_system.node(super_block.journal_inum))))


def _prove_targets(blocks: dict[int, int | bytes], log: Log, limit: int) -> None:
    own = {log.place(position) >> BLOCK_SHIFT for position in range(log.super_block.max_length)}
    for block in blocks:
        if block >= limit or block in own:
            what = "lies in the journal itself" if block in own else f"is none of the {limit} of the file system"
            raise CorruptError(f"journal: block {block}, to be replayed, {what}", hint=MEND_HINT)


def _emptied(log: Log, sequence: int) -> bytes:
    """The journal's first block when nothing waits for replay, and the last transaction was ``sequence``."""
    data = bytearray(log.read(0))
    struct.pack_into(">II", data, JournalSuperBlock.offset_of("sequence"), sequence, 0)
    if log.super_block.feature_incompat & (JournalIncompatFeature.CSUM_V2 | JournalIncompatFeature.CSUM_V3):
        struct.pack_into(">I", data, JournalSuperBlock.offset_of("checksum"), super_block_checksum(data))
    return bytes(data)


def _empty_unused_log(device: WritableBlockDevice) -> bool:
    """Empties a journal that does not wait for replay and has transactions: the kernel throws them away, too."""
    log = _open_log(device, device)
    if log is None or not log.super_block.start:
        return False
    # Its number must be behind all that the log holds, or these would be replayed at the next power cut.
    device.write(log.place(0), _emptied(log, log.replay()[1]))
    return True
