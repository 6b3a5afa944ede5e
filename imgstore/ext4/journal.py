"""The journal as a formatted, clean file system has it: one superblock, and nothing to replay."""

from __future__ import annotations

from imgstore.ext4.structures import BLOCK_SIZE, JournalSuperBlock

_SMALL_DISK = 1 << 30


def journal_blocks(size: int) -> int:
    """Blocks of the journal on a disk of ``size`` bytes: 4 MiB below 1 GiB, otherwise 16 MiB.

    jbd2 wants at least 1024 blocks (``JBD2_MIN_JOURNAL_BLOCKS``); a bigger one only makes rw disks larger.
    """
    return (4 << 20 if size < _SMALL_DISK else 16 << 20) // BLOCK_SIZE


def encode_journal(blocks: int, uuid: bytes) -> bytes:
    """The first block of a clean journal of ``blocks`` blocks."""
    return JournalSuperBlock(max_length=blocks, uuid=uuid).to_bytes().ljust(BLOCK_SIZE, b"\0")
