"""Flattening: the lowest disks of a chain become one, so that a chain has no more disks than are wanted.

The disk of a layer gives its place to one that shows the same bytes alone: of the same name and the same content id, without parent. So
every disk above it, of images and of containers, fits as before, and is not touched. The layers below stay with their own disks: those
are what a save or a push makes their tars of, and what other images stand on.
"""

from __future__ import annotations

import posixpath
from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from imgstore import layout
from imgstore.blocks import GRAIN, SECTOR, ExtentKind, ReadableFile
from imgstore.catalog.catalog import Catalog
from imgstore.datastores.datastore import Datastore, Staging
from imgstore.disks import Disks, layer_lease, layer_row, record_of
from imgstore.errors import CorruptError, UnsupportedError
from imgstore.leases import Leases, held
from imgstore.markers import DiskRecord
from imgstore.progress import ProgressEvent, ProgressSink
from imgstore.quota import Quota
from imgstore.stop import Stop
from imgstore.vmdk.chain import Chain
from imgstore.vmdk.grains import numbers_from_bytes
from imgstore.vmdk.hosted import HostedDiskWriter, read_whole

_PIECE_GRAINS = 64
"""Grains that are read and written at once: 4 MiB."""


@dataclass(frozen=True, slots=True)
class Merge:
    """What is to be merged.

    Attributes:
        chain_ids: of a layer, whose disk will show all below it, and of all below it, lowest first.
        size: bytes of the grains that the disk will hold.
    """

    chain_ids: Sequence[str]
    size: int


class Flattening:
    """Makes chains of a store shallower."""

    def __init__(self, datastore: Datastore, disks: Disks, catalog: Catalog, leases: Leases, quota: Quota) -> None:
        self._datastore = datastore
        self._disks = disks
        self._catalog = catalog
        self._leases = leases
        self._quota = quota

    def plan(self, chain_ids: Sequence[str], depth: int, *, slack: bool = False) -> tuple[int, Merge | None]:
        """How many disks the chain that shows these layers has, and what has to be merged for it to have no more than ``depth``.

        Args:
            chain_ids: lowest first.
            depth: at least 1.
            slack: of a chain that was merged before, and has grown since, merge so much that half of ``depth`` are left: one that
                grows layer by layer is then not copied with each of them.

        Raises:
            NotFoundError, CorruptError: as ``Disks.open_chain``.
        """
        with self._disks.open_chain(chain_ids) as chain:
            names = [posixpath.basename(file.path) for file in chain.files]
        if len(names) <= depth:
            return len(names), None
        if slack and names[0] != layout.disk_file(layout.SCRATCH):
            depth = max(1, depth // 2)
        below = chain_ids[: [layout.disk_file(layout.hex_of(chain_id)) for chain_id in chain_ids].index(names[-depth]) + 1]
        with self._disks.open_chain(below) as chain:
            held_bytes = sum(extent.length for extent in chain.extents() if extent.kind is ExtentKind.DATA)
        return len(names), Merge(below, held_bytes)

    def flatten(
        self, chain_ids: Sequence[str], depth: int, progress: ProgressSink, stop: Stop, *, slack: bool = False
    ) -> DiskRecord | None:
        """Merges what `plan` says, and returns the record of the disk that shows it; None where nothing had to be merged.

        The caller keeps the layers from being collected (``gc.kept``). Several at once wait for each other where they merge into the
        same disk. After an error or a crash each layer has the disk that it had, or the new one.

        Raises:
            QuotaExceededError: the store may not take so much.
            NoSpaceError: the datastore is full.
            CorruptError: a disk is damaged: nothing is copied that its checksums do not confirm.
            UnsupportedError: there is something to merge, and the datastore cannot replace files.
            StoppedError: ``stop`` was set.
        """
        merged = None
        while (plan := self.plan(chain_ids, depth, slack=slack)[1]) is not None:
            if not self._datastore.can_replace:
                raise UnsupportedError(
                    "disks of this datastore cannot be replaced, and so not be merged",
                    hint="flatten the image in the store that it comes from, and copy it again",
                )
            lease = layer_lease(plan.chain_ids[-1])
            with self._quota.reserved(plan.size), held(self._leases, lease, waiting=lambda note: stop.check()):
                merged = self._merge(plan.chain_ids, progress, stop) or merged
        return merged

    def _merge(self, chain_ids: Sequence[str], progress: ProgressSink, stop: Stop) -> DiskRecord | None:
        """Merges the whole chain that shows these layers; None where others replaced one of its disks meanwhile."""
        with self._disks.open_chain(chain_ids) as chain:
            if len(chain.files) == 1:
                return None
            sums = self._grain_sums(chain)
            if sums is None:
                return None
            progress(ProgressEvent("", message=f"Merging the lowest {len(chain.files)} disks into one"))
            stem = layout.hex_of(chain_ids[-1])
            with self._datastore.stage(layout.DISKS, stem) as staging:
                record = merge_chain(chain, sums, staging, stem, interrupt=stop.check)
                self._quota.check()
                marker = self._disks.replace(self._disks.read_marker(chain_ids[-1]), staging, record)
            self._catalog.put_layer(layer_row(marker))
            return record

    def _grain_sums(self, chain: Chain) -> list[array[int]] | None:
        found = []
        for number, file in enumerate(chain.files):
            sums = self._disks.read_grain_sums(file, merged=not number)
            if sums is None:
                return None
            found.append(sums)
        return found


def merge_chain(
    chain: Chain,
    grain_sums: Sequence[array[int]],
    staging: Staging,
    stem: str,
    *,
    interrupt: Callable[[], None] = lambda: None,
) -> DiskRecord:
    """Writes one disk that shows what a chain shows, without parent, and its checksums; publishing them is the caller's.

    The same chain always gives the same bytes: its grains ascending, holes left out.

    Args:
        chain: its top disk is the one whose place the new one can take: it gets its content id, and the name that belongs to ``stem``.
        grain_sums: of each disk of the chain, in the order of its file; what is copied is compared with them.
        staging: of any datastore; takes first the checksums, then the disk.
        stem: the hex digits of the chain id of the layer.
        interrupt: called between pieces; its error ends the copy.

    Raises:
        CorruptError: a grain is not what its checksum says; the message names disk and byte.
        NoSpaceError: the datastore is full.
    """
    sums_file = staging.create(layout.merged_sums_file(stem))
    name = layout.disk_file(stem)
    merged_file = staging.create(name)
    writer = HostedDiskWriter(merged_file, capacity=chain.size, cid=chain.cid, extent_name=name)
    expected = array("I")
    places: list[tuple[int, ReadableFile, int]] = []
    firsts = [file.size - len(sums) * GRAIN for file, sums in zip(chain.files, grain_sums, strict=True)]
    for run in chain.block_map.runs(0, -(-chain.size // GRAIN)):
        if run.disk is None:
            continue
        interrupt()
        file = chain.files[run.disk]
        start = run.sector * SECTOR
        index, rest = divmod(start - firsts[run.disk], GRAIN)
        confirmed = grain_sums[run.disk][index : index + run.length] if index >= 0 else array("I")
        if rest or len(confirmed) != run.length:
            raise CorruptError(f"{file.path} at byte {start}: the grain there has no checksum")
        places.append((len(expected), file, start))
        expected += confirmed
        for done in range(0, run.length, _PIECE_GRAINS):
            take = min(_PIECE_GRAINS, run.length - done)
            writer.write_grains(run.grain + done, read_whole(file, start + done * GRAIN, take * GRAIN))
    summary = writer.seal()
    merged_file.close()
    if (found := numbers_from_bytes(summary.grain_sums)) != expected:
        raise _difference(found, expected, places)
    sums_file.pwrite(0, summary.grain_sums)
    sums_file.close()
    return record_of(name, summary, layout.merged_sums_file(stem), merged=True)


def _difference(found: array[int], expected: array[int], places: Sequence[tuple[int, ReadableFile, int]]) -> CorruptError:
    """Says which grain was not what its checksum says.

    Args:
        places: for each run that was copied the number of its first grain, and where that came from: the file, and the byte in it.
    """
    number = next(number for number, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1])
    first, file, start = places[bisect_right(places, number, key=lambda place: place[0]) - 1]
    return CorruptError(
        f"{file.path} at byte {start + (number - first) * GRAIN}: grain has CRC-32C {found[number]:08x}, not {expected[number]:08x}",
        hint="imgstore check --read-data says more; a pull makes the layer again",
    )
