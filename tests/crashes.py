"""A file whose every write can be lost: what a disk may hold after the machine stopped at any instant."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from imgstore.blocks import SECTOR, Bytes

Change = Callable[[bytearray], None]

_ALL_SUBSETS = 6
"""Of more changes than that on their way, some sets only are tried."""


@dataclass
class Machine:
    """A file, and a small one beside it that is replaced atomically. Notes all that is done to them."""

    stable: bytearray
    intent: bytes | None = None
    pending: list[Change] = field(default_factory=list)
    steps: int = 0
    stop_at: int | None = None
    """The step before which the machine stops, or None."""

    def step(self) -> None:
        if self.steps == self.stop_at:
            raise StoppedError
        self.steps += 1

    def contents(self) -> bytearray:
        """What a process sees."""
        return _with(self.stable, self.pending)

    def after_stop(self, chance: random.Random) -> Iterator[bytearray]:
        """What the file may hold when the machine starts again: each change that was on its way is there, or not, or the last in part."""
        count = len(self.pending)
        if count <= _ALL_SUBSETS:
            choices = list(itertools.product((True, False), repeat=count))
        else:
            choices = [(True,) * count, (False,) * count]
            choices += [tuple(chance.random() < 0.5 for _ in range(count)) for _ in range(2**_ALL_SUBSETS)]
        for choice in choices:
            yield _with(self.stable, [change for change, kept in zip(self.pending, choice, strict=True) if kept])


class StoppedError(Exception):
    """The machine stops now."""


def _with(stable: bytearray, changes: list[Change]) -> bytearray:
    data = bytearray(stable)
    for change in changes:
        change(data)
    return data


class CrashFile:
    """The file of a machine, as an ``EditableFile``. What is punched may read as anything."""

    path = "disks/live.vmdk"

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._data = machine.contents()

    @property
    def size(self) -> int:
        return len(self._data)

    def pread(self, offset: int, length: int) -> bytes:
        return bytes(self._data[offset : offset + length])

    def data_ranges(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        if offset < self.size:
            yield offset, min(length, self.size - offset)

    def pwrite(self, offset: int, data: Bytes) -> None:
        kept = bytes(data)

        def torn(length: int) -> Change:
            return lambda disk: _put(disk, offset, kept[:length])

        # A write that the machine's stop tears is one whose first part is there and whose rest is not.
        if self._machine.steps == self._machine.stop_at and len(kept) > 1:
            self._machine.pending.append(torn(len(kept) // 2 if len(kept) < 1024 else 512))
        self._machine.step()
        half = len(kept) // 2
        self._machine.pending.append(torn(half))
        self._machine.pending.append(lambda disk: _put(disk, offset + half, kept[half:]))
        _put(self._data, offset, kept)

    def truncate(self, size: int) -> None:
        self._machine.step()
        self._machine.pending.append(lambda disk: _resize(disk, size))
        _resize(self._data, size)

    def punch(self, offset: int, length: int) -> None:
        self._machine.step()
        self._machine.pending.append(lambda disk: _put(disk, offset, b"\xee" * length))
        _put(self._data, offset, b"\xee" * length)

    def fsync(self) -> None:
        self._machine.step()
        self._machine.stable = self._machine.contents()
        self._machine.pending.clear()

    def close(self) -> None:
        """Nothing to do."""


class GuestCrashFile(CrashFile):
    """The same for a ``GuestDisk``, whose promises are of sectors: a sector that is written is written whole or not at all."""

    def pwrite(self, offset: int, data: Bytes) -> None:
        kept = bytes(data)
        end = offset + len(kept)
        middle = min(end, (offset + len(kept) // 2 + SECTOR - 1) // SECTOR * SECTOR)
        self._change(lambda disk: _put(disk, offset, kept[: middle - offset]))
        if middle < end:
            self._change(lambda disk: _put(disk, middle, kept[middle - offset :]))

    def truncate(self, size: int) -> None:
        self._change(lambda disk: _resize(disk, size))

    def punch(self, offset: int, length: int) -> None:
        self.zero(offset, length)

    def zero(self, offset: int, length: int, *, keep_space: bool = False) -> None:
        self.pwrite(offset, bytes(length))

    def fdatasync(self) -> None:
        self.fsync()

    def read_ready_into(self, offset: int, buffer: memoryview) -> bool:
        buffer[:] = self.pread(offset, len(buffer))
        return True

    def _change(self, change: Change) -> None:
        self._machine.step()
        self._machine.pending.append(change)
        change(self._data)


class CrashIntents:
    """The intents of that file: whole, and durable when a call returns. A stop within a call leaves the old or the new."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def write(self, intent: bytes) -> None:
        self._machine.step()
        self._machine.intent = intent
        self._machine.step()

    def erase(self) -> None:
        self._machine.step()
        self._machine.intent = None
        self._machine.step()


def _put(disk: bytearray, offset: int, data: bytes) -> None:
    if len(disk) < offset:
        disk.extend(bytes(offset - len(disk)))
    disk[offset : offset + len(data)] = data


def _resize(disk: bytearray, size: int) -> None:
    disk.extend(bytes(max(0, size - len(disk))))
    del disk[size:]
