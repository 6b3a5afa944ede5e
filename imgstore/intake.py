"""Intake: an image becomes one of the store's, wherever it comes from: the layers that it lacks, then itself under its names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from imgstore import gc
from imgstore.catalog.catalog import Catalog, ImageLayerRow, ImageRow, ReferenceRow
from imgstore.disks import Disks, layer_row
from imgstore.flattening import Flattening
from imgstore.images import Images
from imgstore.leases import Leases, held
from imgstore.progress import ProgressSink
from imgstore.pulls import BlobSource, LayerPull, WantedLayer
from imgstore.quota import Quota, QuotaExceededError
from imgstore.stop import Stop
from registry_client.image import Image

NAMES = "names"
"""Lease of who changes which image has which name."""


@dataclass(frozen=True, slots=True)
class TakenIn:
    """What an intake did.

    Attributes:
        image: as the catalog has it.
        changed: False when the store had the image, all its layers, and all its names for it.
        moved: names that another image had until now, and the id of that image.
    """

    image: ImageRow
    changed: bool
    moved: dict[str, str]


class Intake:
    """Takes images in, any number of them, for one store.

    Args:
        max_depth: how many disks the chain of an image may have; None: any number.
        directory: for what downloads ahead of its turn; None: the system's temporary directory.
        tidy: removes what interrupted work left; called while the layers of the image are leased.
    """

    def __init__(
        self,
        disks: Disks,
        images: Images,
        catalog: Catalog,
        leases: Leases,
        quota: Quota,
        flattening: Flattening,
        max_depth: int | None,
        directory: Path | None,
        tidy: Callable[[], None],
    ) -> None:
        self._disks = disks
        self._images = images
        self._catalog = catalog
        self._leases = leases
        self._quota = quota
        self._flattening = flattening
        self._max_depth = max_depth
        self._directory = directory
        self._tidy = tidy

    def take(
        self,
        source: BlobSource,
        image: Image,
        names: Sequence[ReferenceRow],
        progress: ProgressSink,
        stop: Stop,
        *,
        parent: str | None = None,
    ) -> TakenIn:
        """Brings the layers that are not there, then commits the image under these names, which leave any image that had them.

        After an error or a crash neither the image nor a name of it is new; layers that were complete stay for the next try, and
        go with the next collection.

        Args:
            source: has the blobs of the image's layers.
            stop: ends it, as long as the image is not committed.
            parent: id of the image that it was made from here, if it was.

        Raises:
            StoppedError: it was ended.
            QuotaExceededError: the store may not take so much; the layers that came stay only if another image has them.
            ImgstoreError: the first layer that failed.
        """
        wanted = [
            WantedLayer(str(chain_id), str(diff_id), None if parent is None else str(parent), descriptor)
            for chain_id, diff_id, parent, descriptor in zip(
                image.config.chain_ids,
                image.config.diff_ids,
                (None, *image.config.chain_ids),
                image.layers,
                strict=False,  # the lowest layer has no parent: one more of these
            )
        ]
        row = ImageRow(
            id=str(image.config.image_id),
            manifest_digest=None if image.manifest_document is None else str(image.manifest_document.digest),
            manifest=b"" if image.manifest_document is None else image.manifest_document.data,
            config=image.config.raw,
            layers=tuple(
                ImageLayerRow(layer.chain_id, layer.diff_id, str(layer.descriptor.digest), layer.descriptor.media_type)
                for layer in wanted
            ),
            parent=parent,
        )
        try:
            return self._take(source, image, row, wanted, names, progress, stop)
        except QuotaExceededError:
            self.collect()
            raise

    def _take(
        self,
        source: BlobSource,
        image: Image,
        row: ImageRow,
        wanted: Sequence[WantedLayer],
        names: Sequence[ReferenceRow],
        progress: ProgressSink,
        stop: Stop,
    ) -> TakenIn:
        with gc.kept(self._leases, (layer.chain_id for layer in wanted)):
            self._tidy()
            admit = self._quota.check
            pull = LayerPull(source, self._disks, self._catalog, self._leases, progress, self._directory, stop, admit=admit)
            with self._quota.reserved(self._missing(wanted)):
                brought = pull.run(wanted)
                stop.check()
                if brought:
                    admit(len(row.config) + len(row.manifest))
            if self._max_depth is not None:
                self._flattening.flatten([layer.chain_id for layer in wanted], self._max_depth, progress, stop, slack=True)
            with held(self._leases, NAMES):
                # A rebuild while we pulled, or a pull that was killed, can have left the catalog without them.
                for layer in wanted:
                    self._catalog.put_layer(layer_row(self._disks.read_marker(layer.chain_id)))
                before = {name.name: self._catalog.reference(name.name) for name in names}
                old = self._catalog.image(row.id)
                if old is not None and image.manifest_document is None:
                    row = old  # an archive knows less than the registry that it came from before
                known = old is not None and all(before[name.name] == name for name in names)
                self._images.commit(row, names)
        moved = {name: was.image_id for name, was in before.items() if was is not None and was.image_id != row.id}
        return TakenIn(row, changed=brought or not known, moved=moved)

    def _missing(self, wanted: Sequence[WantedLayer]) -> int:
        """Bytes that are to come, as they are sent; 0 where nobody counts them."""
        if self._quota.limit() is None:
            return 0
        return sum(layer.descriptor.size for layer in wanted if self._disks.find(layer.chain_id) is None)

    def collect(self) -> None:
        """Removes the layers that no image has: those of an image that failed, which nobody will ask for again."""
        with held(self._leases, NAMES):
            gc.collect(self._disks, self._catalog, self._leases)
