"""Journals made by hand: every form that jbd2 has for descriptors, revocations and checksums, and what power cuts make of them."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from crc32c import crc32c

from imgstore.blocks import MemoryBlockDevice
from imgstore.ext4.geometry import SUPER_OFFSET, read_super_block, write_super_block
from imgstore.ext4.reader import FileSystem
from imgstore.ext4.structures import IncompatFeature

BLOCK = 4096
MAGIC = b"\xc0\x3b\x39\x98"
BIT64, ASYNC, CSUM_V2, CSUM_V3, FAST = 0x2, 0x4, 0x8, 0x10, 0x20
ESCAPED, SAME_UUID, LAST = 1, 2, 8
DESCRIPTOR, COMMIT, REVOKE = 1, 2, 5
TABLE = [0] * 256
for _byte in range(256):
    _value = _byte << 24
    for _ in range(8):
        _value = (_value << 1) ^ (0x04C11DB7 if _value & 1 << 31 else 0)
    TABLE[_byte] = _value & 0xFFFFFFFF


def crc32_be(data: bytes, value: int) -> int:
    """As in the book, byte by byte."""
    for byte in data:
        value = (value << 8 & 0xFFFFFFFF) ^ TABLE[value >> 24 ^ byte]
    return value


class JournalMaker:
    """Writes a log into the journal of a formatted device, and ``finish`` lets it wait for replay.

    Attributes:
        position: where the next block of the log goes.
        sequence: of the next transaction.
    """

    def __init__(
        self,
        device: MemoryBlockDevice,
        features: int = 0,
        *,
        version1: bool = False,
        first: int = 1,
        length: int = 1024,
        start: int = 1,
        sequence: int = 1,
    ) -> None:
        file_system = FileSystem(device)
        (run,) = file_system.runs(file_system.node(8))
        self.device = device
        self.base = run.physical * BLOCK
        self.features = features
        self.version1 = version1
        self.first, self.length = first, length
        self.start, self.position = start, start
        self.first_sequence = self.sequence = sequence
        self.uuid = bytes(range(16))
        self.seed = crc32c(self.uuid) ^ 0xFFFFFFFF
        self.seconds = 1000
        self.error = 0
        self._sum = 0xFFFFFFFF

    @property
    def checked(self) -> bool:
        return bool(self.features & (CSUM_V2 | CSUM_V3))

    def checksum(self, *parts: bytes) -> int:
        value = self.seed
        for part in parts:
            value = crc32c(part, value ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
        return value

    def put(self, block: bytes) -> int:
        """The next block of the log; returns the byte of the device where it lies."""
        assert len(block) == BLOCK
        place = self.base + self.position * BLOCK
        self.device.write(place, block)
        self.position += 1
        end = self.length - 256 if self.features & FAST else self.length
        if self.position == end:
            self.position = self.first
        return place

    def head(self, kind: int) -> bytes:
        return MAGIC + struct.pack(">II", kind, self.sequence)

    def _sealed(self, body: bytes) -> bytes:
        if not self.checked:
            return body.ljust(BLOCK, b"\0")
        body = body.ljust(BLOCK - 4, b"\0")
        return body + self.checksum(body, bytes(4)).to_bytes(4, "big")

    def describe(self, blocks: Mapping[int, bytes], *, same_uuid: bool = True) -> list[int]:
        """A descriptor block and the blocks it describes."""
        body = self.head(DESCRIPTOR)
        stored = []
        for number, (target, data) in enumerate(blocks.items(), 1):
            flags = LAST if number == len(blocks) else 0
            if data[:4] == MAGIC:
                flags |= ESCAPED
                data = bytes(4) + data[4:]
            if same_uuid and number > 1:
                flags |= SAME_UUID
            checksum = self.checksum(self.sequence.to_bytes(4, "big"), data)
            low, high = target & 0xFFFFFFFF, target >> 32
            if self.features & CSUM_V3:
                body += struct.pack(">IIII", low, flags, high, checksum)
            else:
                body += struct.pack(">IHH", low, checksum & 0xFFFF if self.checked else 0, flags)
                if self.features & BIT64:
                    body += struct.pack(">I", high)
                if self.features & CSUM_V2:
                    body += bytes(2)
            if not flags & SAME_UUID:
                body += self.uuid
            stored.append(data)
        block = self._sealed(body)
        for data in (block, *stored):
            self._sum = crc32_be(data, self._sum) if self.version1 else self._sum
        return [self.put(block), *map(self.put, stored)]

    def revoke(self, targets: Sequence[int]) -> int:
        size = 8 if self.features & BIT64 else 4
        body = self.head(REVOKE) + (16 + size * len(targets)).to_bytes(4, "big")
        return self.put(self._sealed(body + b"".join(target.to_bytes(size, "big") for target in targets)))

    def commit(self, *, rest: bytes = b"") -> int:
        """The commit block, with ``rest`` in the place of its last bytes."""
        kind = b"\1\4\0\0" if self.version1 else bytes(4)
        tail = bytes(28) + struct.pack(">QI", self.seconds, 0)
        block = (self.head(COMMIT) + kind + bytes(4) + tail).ljust(BLOCK, b"\0")
        value = self._sum if self.version1 else self.checksum(block) if self.checked else 0
        block = block[:16] + value.to_bytes(4, "big") + block[20:]
        self.sequence = self.sequence + 1 & 0xFFFFFFFF
        self.seconds += 1
        self._sum = 0xFFFFFFFF
        return self.put(block[: BLOCK - len(rest)] + rest)

    def transaction(self, blocks: Mapping[int, bytes], revoked: Sequence[int] = ()) -> None:
        if revoked:
            self.revoke(revoked)
        if blocks:
            self.describe(blocks)
        self.commit()

    def finish(self) -> MemoryBlockDevice:
        block = bytearray(1024)
        struct.pack_into(
            ">12I",
            block,
            0,
            *(0xC03B3998, 4, 0, BLOCK, self.length, self.first, self.first_sequence, self.start, self.error),
            *(int(self.version1), self.features | 1, 0),
        )
        block[0x30:0x40] = self.uuid
        block[0x40:0x44] = (1).to_bytes(4, "big")
        if self.checked:
            block[0x50] = 4
            block[0xFC:0x100] = (crc32c(block) ^ 0xFFFFFFFF).to_bytes(4, "big")
        self.device.write(self.base, block.ljust(BLOCK, b"\0"))
        super_block = read_super_block(self.device)
        super_block.feature_incompat |= int(IncompatFeature.RECOVER)
        self.device.write(SUPER_OFFSET, write_super_block(super_block))
        return self.device
