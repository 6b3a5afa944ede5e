"""InPlaceDevice: a chain whose top disk's file is written where it lies, as by a guest."""

from __future__ import annotations

import abc
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from imgstore.blocks import GRAIN, SECTOR, BlockMap, Bytes, Extent, ExtentKind, ReadableFile, Run
from imgstore.errors import NoSpaceError
from imgstore.vmdk.chain import ZEROS, check_range, fill_ready, read_mapped, read_runs
from imgstore.vmdk.editor import EditableFile
from imgstore.vmdk.grains import GRAIN_SECTORS, MAX_SECTORS
from imgstore.vmdk.hosted import read_whole

_RUNS_AT_ONCE = 8 * BlockMap.SEGMENT
"""Grains, 256 MiB: the runs of a longer range are looked up piece by piece."""


class GuestFile(EditableFile, Protocol):
    """What the file of a disk must do for a guest."""

    def zero(self, offset: int, length: int, *, keep_space: bool = False) -> None:
        """Makes bytes inside the file read as zeros, and gives their storage back unless ``keep_space``."""
        ...

    def fdatasync(self) -> None:
        """Returns when the bytes written before would survive a power cut."""
        ...


class InPlaceDevice(abc.ABC):
    """A GuestDevice over the files of a chain, of which the last is written.

    A grain that this file has is overwritten there. One that it has not gets a place at its end, completed by what was seen there before;
    what reads as zeros is left a hole. A grain keeps its place. Reads wait for no write.

    Args:
        files: of the chain, the one to be written last.
        block_map: where the chain's grains are; changed.
        size: bytes.
        file: the last of ``files``.
        end: sector after the last grain that the file holds; what the file has behind is hole.
        release: called once, by the first ``close``.
    """

    read_only = False

    def __init__(
        self,
        files: Sequence[ReadableFile],
        block_map: BlockMap,
        size: int,
        file: GuestFile,
        end: int,
        release: Callable[[], None],
    ) -> None:
        self.size = size
        self._files = tuple(files)
        self._disk = len(self._files) - 1
        self._file = file
        self._end = end
        self._map = block_map
        self._map_lock = threading.Lock()
        """Of who changes the map, for a moment, or goes through its runs. One entry can be looked up without."""
        self._placing = threading.Lock()
        """Of who gives grains a place. The map is changed by nobody else."""
        self._release: Callable[[], None] | None = release

    @abc.abstractmethod
    def flush(self) -> None:
        """Returns when all that was written before would survive a power cut, as far as the device promises that."""

    @abc.abstractmethod
    def _begin_change(self) -> None:
        """Called before each change."""

    @abc.abstractmethod
    def _make_room(self) -> None:
        """Called before grains get a place, without a lock."""

    @abc.abstractmethod
    def _note_placed(self, grain: int, count: int, sector: int) -> None:
        """Called when grains have a place and their contents there, before they are read there, by who holds ``_placing``."""

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes at ``offset``.

        Raises:
            ValueError: the range is not inside the device.
            CorruptError: a disk's file became shorter.
            UnavailableError: the datastore does not answer.
        """
        check_range(offset, length, self.size)
        grain, start = divmod(offset, GRAIN)
        if start + length > GRAIN:
            return read_runs(self._runs(offset, length), self._files, offset, length)
        found = self._map.find(grain)
        if found is None:
            return bytes(length)
        disk, sector = found
        return read_whole(self._files[disk], sector * SECTOR + start, length)

    def read_ready_into(self, offset: int, buffer: memoryview) -> bool:
        """As ``read``, of what is in memory; False where that would have to wait for the storage, or would fail there."""
        length = len(buffer)
        check_range(offset, length, self.size)
        grain, start = divmod(offset, GRAIN)
        if start + length > GRAIN:
            return fill_ready(self._runs(offset, length), self._files, offset, buffer)
        found = self._map.find(grain)
        if found is None:
            buffer[:] = ZEROS[:length]
            return True
        disk, sector = found
        return self._files[disk].read_ready_into(sector * SECTOR + start, buffer)

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        """The runs that tile the range, ascending: HOLE where no disk has the grain, and where the file that is written has a hole."""
        end = self.size if length is None else offset + length
        check_range(offset, end - offset, self.size)
        position, kind = offset, ExtentKind.HOLE
        for start, _, new in self._seen(offset, end):
            if new is not kind:
                if start > position:
                    yield Extent(position, start - position, kind)
                position, kind = start, new
        if end > position:
            yield Extent(position, end - position, kind)

    def write(self, offset: int, data: Bytes) -> None:
        """Puts ``data`` at ``offset``.

        Raises:
            ValueError: the range is not inside the device.
            NoSpaceError: the datastore or the file is full; of the range any part may have the new data.
            UnavailableError: the storage failed, now or before.
        """
        view = memoryview(data).cast("B")
        check_range(offset, len(view), self.size)
        if not view:
            return
        self._begin_change()
        for run, start, stop in self._pieces(offset, len(view)):
            part = view[start - offset : stop - offset]
            if run.disk == self._disk:
                self._file.pwrite(_place_of(run, start), part)
            else:
                self._make_room()
                with self._placing:
                    self._write_placing(start, part)

    def zero(self, offset: int, length: int, *, keep_space: bool = False) -> None:
        """Makes the range read as zeros, and gives its storage back unless ``keep_space``. Raises what `write` raises."""
        check_range(offset, length, self.size)
        if not length:
            return
        self._begin_change()
        for run, start, stop in self._pieces(offset, length):
            if run.disk == self._disk:
                self._file.zero(_place_of(run, start), stop - start, keep_space=keep_space)
            elif run.disk is not None:
                self._make_room()
                with self._placing:
                    self._zero_placing(start, stop - start, keep_space=keep_space)

    def trim(self, offset: int, length: int) -> None:
        """Gives back what the range takes of the file: it reads as zeros then, or as before. Raises what `write` raises."""
        check_range(offset, length, self.size)
        if not length:
            return
        self._begin_change()
        for run, start, stop in self._pieces(offset, length):
            if run.disk == self._disk:
                self._file.punch(_place_of(run, start), stop - start)

    def close(self) -> None:
        """Flushes, and gives the disk back, also if that fails. No other call may be running. Allowed more than once."""
        release, self._release = self._release, None
        if release is not None:
            try:
                self._finish()
            finally:
                release()

    def _finish(self) -> None:
        """Called once, by ``close``."""
        self.flush()

    def _runs(self, offset: int, length: int) -> list[Run]:
        first = offset // GRAIN
        with self._map_lock:
            return list(self._map.runs(first, -(-(offset + length) // GRAIN) - first))

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[Run, int, int]]:
        """The runs that tile a range, as they are when their turn comes; with each, the bytes of the range that it begins and ends with."""
        end = offset + length
        while offset < end:
            stop = min(end, (offset // GRAIN + _RUNS_AT_ONCE) * GRAIN)
            for run in self._runs(offset, stop - offset):
                first = run.grain * GRAIN
                yield run, max(offset, first), min(stop, first + run.length * GRAIN)
            offset = stop

    def _seen(self, offset: int, end: int) -> Iterator[tuple[int, int, ExtentKind]]:
        for run, start, stop in self._pieces(offset, end - offset):
            if run.disk != self._disk:
                yield start, stop, ExtentKind.HOLE if run.disk is None else ExtentKind.DATA
                continue
            shift = start - _place_of(run, start)
            for place, length in self._file.data_ranges(start - shift, stop - start):
                if place + shift > start:
                    yield start, place + shift, ExtentKind.HOLE
                start = place + shift + length
                yield place + shift, start, ExtentKind.DATA
            if start < stop:
                yield start, stop, ExtentKind.HOLE

    def _write_placing(self, offset: int, data: memoryview) -> None:
        """As `write`, by who holds ``_placing``: some of the grains may have got their place since."""
        for run, start, stop in self._pieces(offset, len(data)):
            part = data[start - offset : stop - offset]
            if run.disk == self._disk:
                self._file.pwrite(_place_of(run, start), part)
            else:
                self._place(run, start, stop, part)

    def _zero_placing(self, offset: int, length: int, *, keep_space: bool) -> None:
        for run, start, stop in self._pieces(offset, length):
            if run.disk == self._disk:
                self._file.zero(_place_of(run, start), stop - start, keep_space=keep_space)
            elif run.disk is not None:
                self._place(run, start, stop, None)

    def _place(self, run: Run, start: int, stop: int, data: memoryview | None) -> None:
        """Gives the grains of a run that the file has not their place at its end.

        Args:
            start, stop: bytes of the device that change, in all of its grains.
            data: what they become; None: zeros.
        """
        first, end = start // GRAIN, -(-stop // GRAIN)
        sector = self._end
        after = sector + (end - first) * GRAIN_SECTORS
        if after > MAX_SECTORS:
            raise NoSpaceError(f"{self._file.path}: an extent file holds at most {MAX_SECTORS * SECTOR} bytes")
        shift = sector * SECTOR - first * GRAIN
        try:
            if run.disk is not None:
                for left, right in ((first * GRAIN, start), (stop, end * GRAIN)):
                    if left < right:
                        self._file.pwrite(left + shift, read_mapped(self._map, self._files, left, right - left))
            if data is not None:
                self._file.pwrite(start + shift, data)
            if self._file.size < after * SECTOR:
                self._file.truncate(after * SECTOR)
        except BaseException:
            self._end = after
            self._file.truncate(sector * SECTOR)  # the next ones there count on a hole
            self._end = sector
            raise
        self._end = after
        self._note_placed(first, end - first, sector)
        with self._map_lock:
            self._map.assign(first, end - first, self._disk, sector)


def _place_of(run: Run, offset: int) -> int:
    """Where in the file of a run a byte of the device lies."""
    return run.sector * SECTOR + offset - run.grain * GRAIN
