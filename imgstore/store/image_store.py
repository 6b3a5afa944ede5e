"""ImageStore: one method for each thing a user can ask of a store. The command line and the API endpoint are its faces.

::

    with ImageStore.open("/var/lib/imgstore") as store:
        pulled = store.pull("harbor.example/library/app:1")
        print(store.disk_paths(pulled.reference)[-1])
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from imgstore import gc, layout
from imgstore.answers import HistoryItem, Image, PruneReport, Removal, StoreInfo, Usage
from imgstore.check import Finding, check_store
from imgstore.errors import InUseError, InvalidError, NotFoundError
from imgstore.filters import Filters
from imgstore.image_filters import parse_list_filters, parse_prune_filters
from imgstore.intake import NAMES
from imgstore.leases import held
from imgstore.listing import removal_of
from imgstore.location import CATALOG
from imgstore.quota import QuotaReport, measure
from imgstore.store.archives import Archives
from imgstore.store.attachments import Attachments
from imgstore.store.chains import Chains
from imgstore.store.commits import ContainerCommits
from imgstore.store.container_files import ContainerFiles
from imgstore.store.devices import Devices
from imgstore.store.disk_exports import DiskExports
from imgstore.store.seeds import Seeds
from imgstore.store.transfers import parse_config
from imgstore.store.vm_attachments import VmAttachments
from imgstore.store.volumes import Volumes

_PRUNE = "prune"
"""Lease of the only prune."""


class ImageStore(
    Seeds, Archives, ContainerCommits, ContainerFiles, Volumes, Attachments, Devices, Chains, DiskExports, VmAttachments
):
    """A store: images, the disks that show them, containers on these, and volumes. Make one with `open` or `create`.

    Several processes may use one directory.

    Methods raise ImgstoreErrors only; which kinds mean what is in ``docs/reference/errors.md``. They may be called from several threads.
    """

    def images(self, filters: Filters | None = None, *, intermediate: bool = True) -> list[Image]:
        """The images, newest first, as they were at one moment.

        Args:
            filters: as docker has them: ``dangling``, ``label``, ``before``, ``since``, ``reference``, ``until``; name to values. With
                ``reference``, of an image those names are given that match.
            intermediate: also those without a name that others were made from.

        Raises:
            InvalidError: an unknown filter, or a value that makes no sense.
            NotFoundError: there is no image that ``before`` or ``since`` names.
        """
        wanted = parse_list_filters(filters or {}, self.image)
        images = self._listing.images()
        if not intermediate:
            parents = {image.parent for image in images}
            images = [image for image in images if image.references or image.digests or image.id not in parents]
        return wanted.select(images)

    def image(self, reference: str) -> Image:
        """The image that ``reference`` names: a name, an id, or the unambiguous start of an id.

        Raises:
            NotFoundError: there is none.
            InvalidError: it is no reference, or several ids start so.
        """
        return self._listing.image(self._images.find(reference))

    def history(self, reference: str) -> list[HistoryItem]:
        """How the image was made, newest step first. Raises what `image` raises."""
        image = self.image(reference)
        layers = iter(image.layers)
        items = []
        for step in parse_config(image.config_bytes, image.id).history:
            layer = None if step.empty_layer else next(layers, None)
            chain_id, size = (None, 0) if layer is None else (layer.chain_id, layer.size)
            items.append(HistoryItem(step.created, step.created_by, size, step.comment, step.empty_layer, chain_id))
        items.extend(HistoryItem(None, "", layer.size, "", False, layer.chain_id) for layer in layers)  # more layers than steps
        return items[::-1]

    def tag(self, reference: str, new: str) -> None:
        """Gives an image one more name, taking the name from any other image.

        Raises:
            NotFoundError: there is no image ``reference``.
            InvalidError: ``new`` is no name, or has a digest.
        """
        with self._mended(), held(self._leases, NAMES):
            self._images.name(self._images.find(reference), new)

    def remove(self, reference: str, *, force: bool = False, keep_parents: bool = False) -> Removal:
        """Removes a name; with its last name the image, and the layers that no other image has and no container stands on.

        Layers that a running pull needs stay, and go with the next removal. With an image go those that it was made from, as long as
        they have no name and nothing else was made from them.

        Args:
            force: remove also an image that containers were made from, which keep their disks; and by id one that has several tags, or
                names in several repositories.
            keep_parents: let those stay that it was made from.

        Raises:
            NotFoundError: there is none.
            InUseError: by id, and others were made from it, or it has several names; or a container was made from it.
        """
        with self._mended(), held(self._leases, NAMES):
            image = self.image(reference)
            removed = self._images.remove(reference, force=force, keep_parents=keep_parents)
            layers = gc.collect(self._disks, self._catalog, self._leases) if removed.image_ids else []
        return removal_of(removed, image, layers)

    def prune(self, filters: Filters | None = None) -> PruneReport:
        """Removes images without a tag, or all, that no container was made from, and the layers that nobody has then.

        Each image is removed by itself: what another names meanwhile stays, and an interrupt leaves the rest as it is.

        Args:
            filters: as docker has them: ``dangling`` (true if it is not given; false means all), ``label``, ``label!``, ``until``.

        Raises:
            InvalidError: an unknown filter, or a value that makes no sense.
            InUseError: another prune is running, in this process or another.
        """
        wanted = parse_prune_filters(filters or {})
        lease = self._leases.acquire(_PRUNE)
        if lease is None:
            raise InUseError("a prune operation is already running")
        with contextlib.ExitStack() as stack, self._mended():
            stack.callback(lease.release)
            sizes = self._listing.layer_sizes()
            removals = []
            for image in wanted.select(self._listing.images()):
                with held(self._leases, NAMES):
                    removed = self._images.remove_unused(image.id, tagged=wanted.dangling is None)
                if removed.image_ids:
                    removals.append(removal_of(removed, image, ()))
            with held(self._leases, NAMES):
                layers = gc.collect(self._disks, self._catalog, self._leases)
        if layers:
            removals.append(Removal((), tuple(layers)))
        return PruneReport(tuple(removals), sum(sizes[chain_id] for chain_id in layers))

    def check(self, *, read_data: bool = False) -> Iterator[Finding]:
        """Looks at catalog, markers, disks, chains and file systems, and changes nothing; no finding means all is well.

        Args:
            read_data: read all data too, compare them with their checksums, and make the tar of every layer again.
        """
        return check_store(
            self._datastore,
            self._catalog,
            self._disks,
            self._images,
            self._containers,
            self._live_disks,
            self._volumes,
            read_data=read_data,
        )

    def usage(self) -> Usage:
        """What takes how much space on the datastore, from the blocks that the file system counts."""
        sizes = self._listing.layer_sizes()
        scratch = self._usage(f"{layout.DISKS}/{layout.disk_file(layout.SCRATCH)}")
        scratch += self._usage(f"{layout.DISKS}/{layout.grain_sums_file(layout.SCRATCH)}")
        space = self._datastore.space()
        catalog = sum(file.stat().st_blocks * 512 for file in self._directory.glob(f"{CATALOG}*")) if self._directory else 0
        return Usage(
            images=self._listing.usages(sizes),
            disks=sum(row.disk is not None for row in self._catalog.layers()),
            disk_bytes=sizes.total(),
            scratch_bytes=scratch,
            catalog_bytes=catalog,
            metadata_bytes=self._usage(layout.IMAGES) + self._usage(layout.REFERENCES),
            containers=self._catalog.count_containers(),
            container_bytes=measure(self._datastore, layout.CONTAINERS),
            volumes=sum(store.volumes for store in self.volume_stores()),
            volume_bytes=self._volumes.used_bytes(),
            staged_bytes=sum(self._usage(path) for path in self._datastore.parts(layout.DISKS)),
            free_bytes=None if space is None else space.free,
            capacity=self._disks.capacity,
        )

    def info(self) -> StoreInfo:
        """What the store is, and how much of what it has: a few queries, however much that is."""
        images, layers, shared = self._catalog.counts()
        space = self._datastore.space()
        return StoreInfo(
            id=self._id,
            directory=self._directory,
            images=images,
            layers=layers,
            shared_layers=shared,
            containers=self._catalog.count_containers(),
            capacity=self._disks.capacity,
            space=None if space is None else space.total,
            free_space=None if space is None else space.free,
            max_depth=self._max_depth,
            quota=self._quota.limit(),
            registries=self._registries,
        )

    def quota(self) -> QuotaReport:
        """What images, containers and volumes take, and how much they may take together."""
        return self._quota.report()

    def set_quota(self, limit: int | None) -> None:
        """Limits what images, containers and volumes may take together, for all who open the store; None: no longer.

        What is there stays, though it be more; what is brought, made or written by us afterwards must fit.

        Args:
            limit: bytes of storage, above 0.

        Raises:
            InvalidError: the limit is none.
        """
        if limit is not None and limit <= 0:
            raise InvalidError(f"quota of {limit} bytes: must be above 0")
        self._quota.set_limit(limit)

    def _usage(self, path: str) -> int:
        try:
            return self._datastore.usage(path)
        except NotFoundError:
            return 0
