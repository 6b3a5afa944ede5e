"""Sparse files in tars: where the stored bytes lie in the file.

Four forms are in use, all by GNU tar (manual, "Storing Sparse Files"): the old GNU ``S`` entry with a map in the header and in blocks
after it, and PAX 0.0 (repeated records), 0.1 (one record) and 1.0 (a map before the data).
"""

from __future__ import annotations

import re
from typing import Final

from imgstore.layers.pax import SPARSE_PAIR, decimal
from imgstore.layers.pieces import PieceCursor
from imgstore.layers.tar_header import BLOCK, MAX_SPARSE, MalformedError, number

_PREFIX: Final = "GNU.sparse."
_KNOWN: Final = frozenset({"major", "minor", "name", "realsize", "size", "numblocks", "map"})
_NUMBER_LINE = re.compile(rb"[0-9]{1,19}")


def checked_segments(sparse_map: list[tuple[int, int]], *, size: int, stored: int) -> list[tuple[int, int]] | None:
    """The map as ``Entry.segments``: without the empty runs, and None if the file has no hole.

    Raises:
        MalformedError: runs out of order, overlapping, outside the file, or not as long as what is stored.
    """
    end = 0
    for offset, length in sparse_map:
        if offset < end or length < 0 or offset + length > size:
            raise MalformedError(f"sparse map has bytes {offset}..{offset + length} after {end}, in a file of {size}")
        end = offset + length
    total = sum(length for _, length in sparse_map)
    if total != stored:
        raise MalformedError(f"sparse map covers {total} bytes, and {stored} are stored")
    segments = [run for run in sparse_map if run[1]]
    return None if stored == size else segments


def old_gnu_map(block: bytes, cursor: PieceCursor) -> tuple[list[tuple[int, int]], int]:
    """Map and apparent size of an ``S`` entry; takes the blocks that continue the map.

    Raises:
        MalformedError: no numbers, too many, or the tar ends.
    """
    size = number(block[483:495], "real size")
    runs = _old_gnu_runs(block[386:482])
    more = block[482]
    while more:
        if len(runs) > MAX_SPARSE:
            raise MalformedError(f"sparse map has more than {MAX_SPARSE} runs")
        continued = bytes(cursor.take(BLOCK))  # a view may not outlive the next take
        if len(continued) < BLOCK:
            raise MalformedError("the tar ends in the middle of a sparse map")
        runs += _old_gnu_runs(continued[:504])
        more = continued[504]
    return runs, size


def _old_gnu_runs(fields: bytes) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for start in range(0, len(fields), 24):
        if not fields[start + 12]:
            break  # GNU tar's own rule: an empty length field ends the map
        offset = number(fields[start : start + 12], "sparse offset")
        length = number(fields[start + 12 : start + 24], "sparse length")
        runs.append((offset, length))
    return runs


class PaxSparse:
    """What an entry's ``GNU.sparse.*`` records say.

    Attributes:
        name: of the file, or None if the header has it.
        size: apparent size in bytes.
        runs: the map, or None if it stands before the data (form 1.0).
    """

    def __init__(self, records: dict[bytes, bytes], pairs: list[tuple[bytes, bytes]]) -> None:
        """Reads the records.

        Raises:
            MalformedError: they contradict each other, or are of no known form.
        """
        said = {
            key[len(_PREFIX) :].decode("latin-1"): value for key, value in records.items() if key.startswith(_PREFIX.encode())
        }
        if unknown := said.keys() - _KNOWN:
            raise MalformedError(f"unknown PAX records {_PREFIX}{', '.join(sorted(unknown))}")
        version = (self._number(said, "major", 0), self._number(said, "minor", 0))
        if {"major", "minor"} & said.keys() and version != (1, 0):
            raise MalformedError(f"sparse form {version[0]}.{version[1]} is not known")
        self.name = said.get("name")
        self.runs: list[tuple[int, int]] | None
        if version == (1, 0):
            if pairs or said.keys() & {"size", "numblocks", "map"}:
                raise MalformedError("sparse form 1.0 has records of form 0")
            self.size = self._number(said, "realsize")
            self.runs = None
            return
        if "realsize" in said or ("map" in said) == bool(pairs):
            raise MalformedError("PAX sparse records are of no known form")
        self.size = self._number(said, "size")
        self.runs = _listed_runs(said["map"]) if "map" in said else _paired_runs(pairs)
        if "numblocks" in said and self._number(said, "numblocks") != len(self.runs):
            raise MalformedError(f"sparse map has {len(self.runs)} runs, and numblocks is {self._number(said, 'numblocks')}")

    @staticmethod
    def _number(said: dict[str, bytes], key: str, default: int | None = None) -> int:
        if key not in said:
            if default is None:
                raise MalformedError(f"PAX record {_PREFIX}{key} is missing")
            return default
        value = decimal(said[key], _PREFIX + key)
        if value < 0:
            raise MalformedError(f"PAX {_PREFIX}{key} is {value}")
        return value


def is_sparse(records: dict[bytes, bytes], pairs: list[tuple[bytes, bytes]]) -> bool:
    """Whether an entry with these PAX records is a sparse file."""
    return bool(pairs) or any(key.startswith(_PREFIX.encode()) for key in records)


def _listed_runs(value: bytes) -> list[tuple[int, int]]:
    if not value:
        return []
    if value.count(b",") >= 2 * MAX_SPARSE:
        raise MalformedError(f"sparse map has more than {MAX_SPARSE} runs")
    numbers = [decimal(word, "GNU.sparse.map") for word in value.split(b",")]
    if len(numbers) % 2:
        raise MalformedError(f"sparse map has {len(numbers)} numbers, which is odd")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _paired_runs(pairs: list[tuple[bytes, bytes]]) -> list[tuple[int, int]]:
    if len(pairs) > 2 * MAX_SPARSE:
        raise MalformedError(f"sparse map has more than {MAX_SPARSE} runs")
    keywords = tuple(keyword for keyword, _ in pairs)
    if keywords != SPARSE_PAIR * (len(pairs) // 2):
        raise MalformedError("PAX sparse offsets and lengths do not alternate")
    numbers = [decimal(value, "GNU.sparse") for _, value in pairs]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def map_before_data(cursor: PieceCursor, stored: int) -> tuple[list[tuple[int, int]], int]:
    """The map of form 1.0: decimal numbers, one a line, the first says how many runs; padded to a whole block.

    Args:
        cursor: stands at the entry's data, of which ``stored`` bytes are in the tar.

    Returns:
        The runs, and how many bytes were taken.

    Raises:
        MalformedError: no such map, too long, or longer than the data.
    """
    numbers: list[int] = []
    rest = b""
    taken, wanted = 0, 1
    while len(numbers) < wanted:
        if taken + BLOCK > stored:
            raise MalformedError(f"sparse map is longer than the {stored} bytes of the entry")
        block = bytes(cursor.take(BLOCK))
        if len(block) < BLOCK:
            raise MalformedError("the tar ends in the middle of a sparse map")
        taken += BLOCK
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            if len(numbers) == wanted:
                break
            if _NUMBER_LINE.fullmatch(line) is None:
                raise MalformedError("sparse map holds a line that is no number")
            numbers.append(int(line))
            if len(numbers) == 1:
                if numbers[0] > MAX_SPARSE:
                    raise MalformedError(f"sparse map has {numbers[0]} runs, more than {MAX_SPARSE}")
                wanted = 1 + 2 * numbers[0]
        if len(numbers) < wanted and len(rest) > 19:
            raise MalformedError("sparse map holds a line that is no number")
    return list(zip(numbers[1::2], numbers[2::2], strict=True)), taken
