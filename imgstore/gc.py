"""Garbage collection: layers that no image has, and no container stands on, are removed, children first.

A layer that a running pull counts on is leased by it, shared; collection takes each layer's lease alone before it touches it, and leaves
what it cannot have at once for the next time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from imgstore import layout
from imgstore.catalog.catalog import Catalog
from imgstore.disks import Disks
from imgstore.leases import Leases, wait_for


def use_lease(chain_id: str) -> str:
    """Name of the lease that keeps a layer from being collected."""
    return f"use-{layout.hex_of(chain_id)}"


@contextlib.contextmanager
def kept(leases: Leases, chain_ids: Iterable[str]) -> Iterator[None]:
    """Keeps layers from being collected inside the block; that they are there is for the caller to see."""
    with contextlib.ExitStack() as stack:
        for chain_id in chain_ids:
            lease = wait_for(leases, use_lease(chain_id), shared=True)
            stack.callback(lease.release)
        yield


def collect(disks: Disks, catalog: Catalog, leases: Leases) -> list[str]:
    """Removes the layers that nothing stands on, nobody leases and no machine has, and returns their chain ids, children first.

    A crash leaves each layer whole or gone; what was left of its directory is removed at the next start.
    """
    removed: list[str] = []
    skipped = disks.on_machines() if catalog.unused_layers() else set()
    while leaves := [chain_id for chain_id in catalog.unused_layers() if chain_id not in skipped]:
        for chain_id in leaves:
            if _collect_one(chain_id, disks, catalog, leases):
                removed.append(chain_id)
            else:
                skipped.add(chain_id)
    return removed


def _collect_one(chain_id: str, disks: Disks, catalog: Catalog, leases: Leases) -> bool:
    lease = leases.acquire(use_lease(chain_id))
    if lease is None:
        return False
    try:
        if catalog.is_used(chain_id):
            return False  # an image has it since
        catalog.delete_layer(chain_id)
        disks.remove(chain_id)
        return True
    finally:
        lease.release()
