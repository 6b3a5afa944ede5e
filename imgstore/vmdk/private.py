"""PrivateOverlay: a chain that its only user can write, without a trace."""

from __future__ import annotations

from collections.abc import Callable

from imgstore.blocks import SECTOR
from imgstore.vmdk.chain import Chain
from imgstore.vmdk.grains import GRAIN_SECTORS
from imgstore.vmdk.in_place import GuestFile, InPlaceDevice


class PrivateOverlay(InPlaceDevice):
    """A GuestDevice over a chain that is not changed; what is written lies in a file of its own, which is no disk, and is never durable.

    Args:
        chain: stays as it is, and open, until the device is closed.
        file: empty, and seen by nobody else.
        release: called once, by the first ``close``.
    """

    def __init__(self, chain: Chain, file: GuestFile, release: Callable[[], None]) -> None:
        end = GRAIN_SECTORS  # a map knows no grain at sector 0
        super().__init__((*chain.files, file), chain.block_map.copy(), chain.size, file, end, release)
        file.truncate(end * SECTOR)

    def flush(self) -> None:
        """Nothing to do: after a crash there is nothing."""

    def _begin_change(self) -> None:
        pass

    def _make_room(self) -> None:
        pass

    def _note_placed(self, grain: int, count: int, sector: int) -> None:
        pass
