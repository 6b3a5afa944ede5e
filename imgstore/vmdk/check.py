"""Finds what is wrong with a disk file, more strictly than reading it asks for."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from itertools import pairwise

from imgstore.blocks import SECTOR, ReadableFile
from imgstore.errors import CorruptError, UnsupportedError
from imgstore.vmdk.grains import GRAIN_SECTORS, TABLE_ENTRIES, TABLE_SECTORS, HostedHeader
from imgstore.vmdk.hosted import HostedDisk

MAX_FINDINGS = 100
"""No more are listed for one file: one damaged table can have thousands."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        path: of the file in its datastore.
        offset: byte in the file, or None where it is the file as a whole.
        problem: what is wrong there, with the numbers.
    """

    path: str
    offset: int | None
    problem: str


def check_disk(file: ReadableFile, *, sealed: bool = True) -> list[Finding]:
    """Checks one disk file for itself; ``open_chain`` checks how it fits its parent.

    Proves that header and descriptor agree; that both grain directories and all grain tables are there, inside the file, apart from
    each other, and equal; that every grain is aligned, inside the file, past the metadata and in one table entry only; that nothing
    lies past the end of the disk; and of a sealed one that the grains fill the file. Reads metadata only. The file stays open.

    Args:
        sealed: False for a disk that is written where it lies: edits leave free places, and a guest that was killed an end that no
            table names and redundant tables that lack entries. No intent of an edit is left.

    Returns:
        The findings, none for a sound disk, at most ``MAX_FINDINGS``. A file so damaged that it cannot be opened has one.

    Raises:
        UnavailableError: the datastore does not answer.
    """
    checker = _Checker(file, sealed)
    try:
        checker.check()
    except (CorruptError, UnsupportedError) as error:
        checker.report(None, str(error))
    except _EnoughError:
        pass
    return checker.findings


class _EnoughError(Exception):
    """``MAX_FINDINGS`` are listed."""


class _Checker:
    def __init__(self, file: ReadableFile, sealed: bool) -> None:
        self.file = file
        self.sealed = sealed
        self.findings: list[Finding] = []

    def report(self, offset: int | None, problem: str) -> None:
        self.findings.append(Finding(self.file.path, offset, problem))
        if len(self.findings) == MAX_FINDINGS:
            raise _EnoughError

    def check(self) -> None:
        disk = HostedDisk(self.file)
        header = disk.header
        if header.unclean_shutdown:
            self.report(HostedHeader.offset_of("unclean_shutdown"), f"unclean_shutdown is {header.unclean_shutdown}, not 0")
        if header.overhead % GRAIN_SECTORS:
            self.report(
                HostedHeader.offset_of("overhead"), f"overhead of {header.overhead} sectors is not a multiple of {GRAIN_SECTORS}"
            )
        self._check_directories(disk)
        tables = {number: (offset, table) for number, offset, table in disk.tables()}
        self._check_redundant(disk, tables)
        self._check_entries(disk, tables)

    def _check_directories(self, disk: HostedDisk) -> None:
        taken: list[tuple[int, int, str]] = []
        for redundant, name in ((False, "directory"), (True, "redundant_directory")):
            directory = disk.directory(redundant=redundant)
            start = getattr(disk.header, name)
            words = name.replace("_", " ")
            taken.append((start, -(-len(directory) * 4 // SECTOR), f"grain {words}"))
            for number, sector in enumerate(directory):
                offset = start * SECTOR + number * 4
                if not sector:
                    self.report(offset, f"grain {words}: table {number} is missing")
                    continue
                if sector + TABLE_SECTORS > disk.header.overhead:
                    self.report(offset, f"grain {words}: table {number} at sector {sector} is not before the first grain")
                taken.append((sector, TABLE_SECTORS, f"table {number} of the {words}"))
        taken.append((0, disk.header.descriptor_offset + disk.header.descriptor_size, "header and descriptor"))
        taken.sort()
        for below, above in pairwise(taken):
            if above[0] < below[0] + below[1]:
                self.report(above[0] * SECTOR, f"{above[2]} overlaps {below[2]}")

    def _check_redundant(self, disk: HostedDisk, tables: dict[int, tuple[int, array[int]]]) -> None:
        left = set(tables)
        for number, offset, table in disk.tables(redundant=True):
            left.discard(number)
            if number not in tables:
                self.report(offset, f"redundant grain table {number} has entries, the grain table has none")
            elif table != (primary := tables[number][1]):
                for position, (sector, expected) in enumerate(zip(table, primary, strict=True)):
                    # A guest's QEMU sets the redundant entry last, and may have been killed before.
                    if sector != expected and (self.sealed or sector):
                        self.report(
                            offset + position * 4,
                            f"redundant grain table {number}: entry {position} is {sector}, in the grain table {expected}",
                        )
                        break
        for number in sorted(left) if self.sealed else ():
            self.report(tables[number][0], f"grain table {number} has entries, the redundant one has none")

    def _check_entries(self, disk: HostedDisk, tables: dict[int, tuple[int, array[int]]]) -> None:
        owners: dict[int, int] = {}
        overhead, end = disk.header.overhead, -(-disk.header.capacity // GRAIN_SECTORS)
        for number, (offset, table) in tables.items():
            for position, sector in enumerate(table):
                if not sector:
                    continue
                grain, at = number * TABLE_ENTRIES + position, offset + position * 4
                if grain >= end:
                    self.report(at, f"grain {grain} lies past the end of the disk of {end} grains")
                if sector < overhead:
                    self.report(at, f"grain {grain} at sector {sector} lies in the metadata, which ends at sector {overhead}")
                elif (sector - overhead) % GRAIN_SECTORS:
                    self.report(
                        at, f"grain {grain} at sector {sector} is not at a multiple of {GRAIN_SECTORS} from sector {overhead}"
                    )
                if (sector + GRAIN_SECTORS) * SECTOR > self.file.size:
                    self.report(at, f"grain {grain} at sector {sector} goes over the end of the file of {self.file.size} bytes")
                if owners.setdefault(sector, grain) != grain:
                    self.report(at, f"grain {grain} is at sector {sector} like grain {owners[sector]}")
        size = (overhead + len(owners) * GRAIN_SECTORS) * SECTOR
        if self.sealed and self.file.size != size:
            self.report(None, f"the file has {self.file.size} bytes, header, tables and {len(owners)} grains make {size}")
