"""ReadOnlyDisk: a chain in the hands of a guest that must not write it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from imgstore.blocks import Bytes, Extent
from imgstore.errors import DeniedError
from imgstore.vmdk.chain import Chain


class ReadOnlyDisk:
    """A GuestDevice that shows a chain.

    Args:
        chain: not closed by the device, so that several may show it.
        release: called once, by the first ``close``.
    """

    def __init__(self, chain: Chain, release: Callable[[], None]) -> None:
        self._chain = chain
        self._release: Callable[[], None] | None = release
        self.size = chain.size
        self.read_only = True
        # Straight to the chain: most calls are these.
        self.read = chain.read
        self.read_ready_into = chain.read_ready_into

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        """The runs that tile the range, ascending: DATA where a disk has the grain, else HOLE."""
        return self._chain.extents(offset, length)

    def write(self, offset: int, data: Bytes) -> None:
        """Raises DeniedError."""
        raise self._denied()

    def zero(self, offset: int, length: int, *, keep_space: bool = False) -> None:
        """Raises DeniedError."""
        raise self._denied()

    def trim(self, offset: int, length: int) -> None:
        """Raises DeniedError."""
        raise self._denied()

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Gives the chain back; allowed more than once."""
        release, self._release = self._release, None
        if release is not None:
            release()

    def _denied(self) -> DeniedError:
        return DeniedError(f"{self._chain.path}: is read-only")
