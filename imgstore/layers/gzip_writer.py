"""A layer compressed for a registry: gzip that is the same bytes each time on the same machine.

Which bytes depends on the library, its version and the processor, as with every compressor; not on the time, the user, or how the tar
is cut into pieces. Source: RFC 1952; the header has no name and no time.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Final

from imgstore.blocks import Bytes
from imgstore.layers.pieces import PieceCursor

deflate: ModuleType
try:
    from isal import isal_zlib
except ImportError:  # no wheels for this machine: a fifth as fast
    deflate = zlib
else:
    deflate = isal_zlib

LEVEL: Final = 3
"""Of a tar of /usr/lib, ISA-L's levels 1, 2 and 3 leave 54.2 %, 53.7 % and 52.9 %, at 400, 460 and 250 MB/s of tar; zlib's 3 and 6 leave
52.7 % and 50.9 %, at 53 and 33 MB/s. A blob is stored for good and pulled often, so it is the level that leaves the least of those that
still fill a gigabit connection from one core."""

_FEED: Final = 1 << 20
"""Bytes given to the compressor at once: what ISA-L makes of them depends on that."""


def compress(pieces: Iterable[Bytes]) -> Iterator[bytes]:
    """The gzip of the joined pieces, in pieces of its own, none of them empty."""
    cursor = PieceCursor(pieces)
    compressor = deflate.compressobj(LEVEL, zlib.DEFLATED, 31)
    while fed := cursor.take(_FEED):
        if packed := compressor.compress(fed):
            yield packed
    yield compressor.flush()
