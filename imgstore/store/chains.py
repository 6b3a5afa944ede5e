"""The chains of disks that images are, made shorter."""

from __future__ import annotations

from imgstore import gc
from imgstore.answers import FlattenResult
from imgstore.blocks import GRAIN
from imgstore.disks import layer_row
from imgstore.intake import NAMES
from imgstore.leases import held
from imgstore.location import check_depth
from imgstore.progress import ProgressSink, ignore
from imgstore.stop import Stop
from imgstore.store.core import StoreCore


class Chains(StoreCore):
    """The methods of an `ImageStore` that change how many disks an image has."""

    def flatten(
        self,
        reference: str,
        depth: int | None = None,
        *,
        dry_run: bool = False,
        progress: ProgressSink = ignore,
        stop: Stop | None = None,
    ) -> FlattenResult:
        """Merges the lowest disks of an image into one, so that its chain has at most ``depth``; nothing if it has no more already.

        What the image shows, its id and its layers stay, and so do containers: the merged disk takes the place of one that they stand on.
        Images that have its layer get shallower with it. The layers below keep their disks, from which they are saved and pushed, so
        that it takes as much space as is copied. After an error or a crash the image is as before, or flattened.

        Args:
            depth: at least 1, which leaves the top disk alone; the scratch disk counts. None: the most that the store allows; 1 where it
                allows any number.
            dry_run: tell what would be done, and change nothing.
            progress: told what happens.
            stop: ends it from another thread.

        Raises:
            NotFoundError: there is no such image.
            InvalidError: ``depth`` is none.
            NoSpaceError: the copy does not fit the datastore, or the quota.
            CorruptError: a disk is damaged.
            UnsupportedError: the datastore cannot replace files, as vSphere's cannot.
            StoppedError: ``stop`` was set.
        """
        wanted = (self._max_depth or 1) if depth is None else depth
        check_depth(wanted)
        row = self._images.find(reference)
        chain_ids = [layer.chain_id for layer in row.layers]
        with self._mended(), gc.kept(self._leases, chain_ids):
            row = self._images.find(row.id)  # it may have gone before its layers were kept
            before, plan = self._flattening.plan(chain_ids, wanted)
            if plan is None:
                return FlattenResult(self._listing.image(row), before, before, 0)
            if dry_run:
                return FlattenResult(self._listing.image(row), before, wanted, plan.size)
            record = self._flattening.flatten(chain_ids, wanted, progress, stop or Stop())
            with held(self._leases, NAMES):
                # A rebuild while we worked can have put what it saw before.
                self._catalog.put_layer(layer_row(self._disks.read_marker(plan.chain_ids[-1])))
            after, _ = self._flattening.plan(chain_ids, wanted)
            return FlattenResult(self._listing.image(row), before, after, 0 if record is None else record.grains * GRAIN)
