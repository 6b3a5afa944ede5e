"""StoreCore: what all of a store stands on: how it is opened, kept whole, and closed."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from imgstore import layout, markers
from imgstore.catalog.catalog import Catalog
from imgstore.config import DEFAULT_DISK_SIZE, is_vsphere_location
from imgstore.containers import Containers
from imgstore.copies.trees import ContainerTrees
from imgstore.datastores.datastore import Datastore
from imgstore.datastores.local import LocalDatastore
from imgstore.datastores.memory import MemoryDatastore
from imgstore.disks import Disks
from imgstore.errors import AlreadyExistsError, CorruptError, ImgstoreError, NotFoundError
from imgstore.flattening import Flattening
from imgstore.images import Images
from imgstore.intake import NAMES, Intake
from imgstore.leases import FileLeases, Leases, MemoryLeases, held
from imgstore.listing import Listing
from imgstore.live_disks import LiveDisks
from imgstore.location import (
    LEASES,
    check_depth,
    check_disk_size,
    directory_of,
    has_store,
    make_store,
    mark_store,
    open_catalog,
    open_vsphere,
)
from imgstore.progress import ProgressEvent, ProgressSink, State
from imgstore.quota import Quota
from imgstore.rebuild import RebuildReport, rebuild
from imgstore.stop import Stop
from imgstore.store.shared_chains import SharedChains
from imgstore.vmdk.chain import Chain
from imgstore.vmdk.stack import OpenDisks
from imgstore.volume_stores import VolumeStores
from imgstore.volumes import Volumes
from registry_client.credentials import Credential
from registry_client.options import Options
from registry_client.server import Connections

if TYPE_CHECKING:
    from imgstore.vsphere.login import VsphereLogin


class StoreCore:
    """A store that is open. The methods that users call are those of `ImageStore`, which has its parts from here."""

    def __init__(
        self,
        datastore: Datastore,
        catalog: Catalog,
        leases: Leases,
        marker: markers.StoreMarker,
        directory: Path | None,
        registries: Options,
    ) -> None:
        self._datastore = datastore
        self._catalog = catalog
        self._leases = leases
        self._directory = directory
        self._id = marker.id
        self._disks = Disks(datastore, leases, marker.disk_size)
        self._images = Images(datastore, catalog)
        self._live_disks = LiveDisks(datastore)
        self._containers = Containers(datastore, catalog, self._live_disks, leases)
        self._listing = Listing(datastore, catalog)
        self._volume_stores = VolumeStores(datastore, directory)
        self._volumes = Volumes(self._volume_stores, catalog)
        self._trees = ContainerTrees(self._live_disks, self._volumes, leases)
        self._shared_chains = SharedChains()
        self._quota = Quota(datastore, leases, self._volumes.used_bytes)
        self._max_depth = marker.max_depth
        self._flattening = Flattening(datastore, self._disks, catalog, leases, self._quota)
        self._intake = Intake(
            self._disks,
            self._images,
            catalog,
            leases,
            self._quota,
            self._flattening,
            self._max_depth,
            directory,
            self._tidy,
        )
        self._registries = registries
        self._connections = Connections(registries)

    @classmethod
    def open(
        cls,
        location: str,
        *,
        create: bool = True,
        registries: Options | None = None,
        vsphere: VsphereLogin | None = None,
    ) -> Self:
        """Opens the store at ``location``.

        Args:
            location: a directory, ``file://`` or ``osfs://`` with one; ``mem://`` for a store that vanishes with this object; or a
                directory on vSphere: ``vsphere://HOST/DATACENTER/DATASTORE/path``, ``ds://DATASTORE/path``, ``[DATASTORE] path``.
            create: make it, with the default disk size, if there is none; the directory must be missing or empty then.
            registries: how to reach registries; None: as the files of docker, podman and containerd say.
            vsphere: who logs in to vSphere, and the server and datacenter of a location that names none.

        What processes that were killed left behind is removed, and the catalog is made again from the datastore if they could have
        left it behind that, or if it is missing, of another version, or no catalog at all. On vSphere the catalog is made anew each time,
        nothing is removed, and one process at a time may change the store: nobody there tells whether others do.

        Raises:
            NotFoundError: there is none, and ``create`` is False.
            InvalidError: the directory holds something else.
            UnsupportedError: a newer imgstore made it, or no datastore of ours is reached that way.
            DeniedError: vSphere does not let us in.
            UnavailableError: it does not answer.
        """
        return cls._open(location, disk_size=DEFAULT_DISK_SIZE if create else None, registries=registries, vsphere=vsphere)

    @classmethod
    def create(
        cls,
        location: str,
        *,
        disk_size: int = DEFAULT_DISK_SIZE,
        max_depth: int | None = None,
        vsphere: VsphereLogin | None = None,
    ) -> Self:
        """Makes a store.

        Args:
            disk_size: capacity of all its disks in bytes, for good: a multiple of 64 KiB, at least 64 MiB.
            max_depth: how many disks the chain of an image may have, the scratch disk counted, for good: of one that would have more the
                lowest are merged before it gets its name. None: any number.
            vsphere: as for `open`.

        Raises:
            AlreadyExistsError: there is one.
            InvalidError: the directory holds something else, or the size or the depth is none.
            UnsupportedError: a depth for a store on vSphere, where no disk can be replaced in one step.
        """
        check_disk_size(disk_size)
        if max_depth is not None:
            check_depth(max_depth)
        return cls._open(location, disk_size=disk_size, max_depth=max_depth, exclusive=True, vsphere=vsphere)

    @classmethod
    def _open(
        cls,
        location: str,
        *,
        disk_size: int | None,
        max_depth: int | None = None,
        exclusive: bool = False,
        registries: Options | None = None,
        vsphere: VsphereLogin | None = None,
    ) -> Self:
        options = registries or Options()
        if is_vsphere_location(location):
            return cls._open_remote(open_vsphere(location, vsphere), disk_size, max_depth, exclusive, options)
        directory = directory_of(location)
        if directory is None:
            marker = markers.StoreMarker(str(uuid.uuid4()), disk_size or DEFAULT_DISK_SIZE, max_depth)
            store = cls(MemoryDatastore(), Catalog(None), MemoryLeases(), marker, None, options)
            store.rebuild()
            return store
        if not has_store(directory):
            if disk_size is None:
                raise NotFoundError(f"{directory}: there is no store", hint="imgstore init makes one")
            make_store(directory, disk_size, max_depth)
        elif exclusive:
            raise AlreadyExistsError(f"{directory}: there is a store already")
        datastore = LocalDatastore(directory)
        try:
            path = f"{directory}/{layout.STORE}"
            marker = markers.decode(markers.StoreMarker, datastore.read_bytes(layout.STORE, markers.LIMIT), path)
            leases = FileLeases(directory / LEASES)
            store = cls(datastore, open_catalog(directory), leases, marker, directory, options)
        except BaseException:
            datastore.close()
            raise
        with contextlib.ExitStack() as undo:
            undo.callback(store.close)
            if leases.sweep() or not store._has_catalog():
                store.rebuild()
            else:
                datastore.sweep()
            store._volumes.tidy()
            undo.pop_all()
        return store

    @classmethod
    def _open_remote(
        cls, datastore: Datastore, disk_size: int | None, max_depth: int | None, exclusive: bool, options: Options
    ) -> Self:
        """A store whose datastore alone is shared: catalog and leases are in memory. Others may be writing, so nothing is tidied."""
        with contextlib.ExitStack() as undo:
            undo.callback(datastore.close)
            datastore.space()  # a datastore that is missing, or in maintenance, is more than a store that is not there yet
            try:
                data = datastore.read_bytes(layout.STORE, markers.LIMIT)
            except NotFoundError:
                if disk_size is None:
                    raise NotFoundError(f"{datastore.location}: there is no store", hint="imgstore init makes one") from None
                data = mark_store(datastore, disk_size, max_depth)
            else:
                if exclusive:
                    raise AlreadyExistsError(f"{datastore.location}: there is a store already")
            marker = markers.decode(markers.StoreMarker, data, datastore.prefix + layout.STORE)
            store = cls(datastore, Catalog(None), MemoryLeases(), marker, None, options)
            rebuild(store._catalog, store._disks, store._images, store._containers)
            undo.pop_all()
        return store

    @property
    def location(self) -> str:
        """Where the store is: its directory, absolute, or a URL: ``mem://``, ``vsphere://``."""
        return self._datastore.location

    def close(self) -> None:
        """Gives everything back. The store is unusable afterwards; a second call does nothing."""
        self._connections.close()
        self._catalog.close()
        self._volume_stores.close()
        self._datastore.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *rest: object) -> None:
        self.close()

    def rebuild(self) -> RebuildReport:
        """Makes the catalog again from what lies whole on the datastore, and removes what interrupted work left there."""
        with held(self._leases, NAMES):
            if self._catalog.damage():
                self._catalog.discard()
            self._images.remove_unfinished()
            self._containers.remove_unfinished()
            self._containers.finish_edits()
            self._tidy()
            self._disks.settle_all()
            return rebuild(self._catalog, self._disks, self._images, self._containers)

    def _options(self, progress: ProgressSink, credential: Credential | None, stop: Stop) -> Options:
        def on_retry(message: str, delay: float) -> None:
            progress(ProgressEvent("", State.RETRYING, message=f"{message}; trying again in {delay:.0f} s"))

        def on_fallback(message: str) -> None:
            progress(ProgressEvent("", State.RETRYING, message=message))

        return replace(
            self._registries,
            credential=self._registries.credential if credential is None else credential,
            retry=replace(self._registries.retry, wait=stop.wait),
            on_retry=on_retry,
            on_fallback=on_fallback,
            spool_directory=self._directory,
        )

    @contextlib.contextmanager
    def _mended(self) -> Iterator[None]:
        """Makes the catalog agree with the datastore should the block fail between the two; if that fails too, the next start does."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(ImgstoreError):
                if self._leases.sweep():
                    self.rebuild()
            raise

    def _has_catalog(self) -> bool:
        try:
            return self._catalog.is_current()
        except CorruptError:
            return False

    def _tidy(self) -> None:
        """Removes what interrupted work left: stagings without an owner, and layers without a marker that nobody is making."""
        self._datastore.sweep()
        known = {row.chain_id for row in self._catalog.layers()} if self._has_catalog() else set()
        for chain_id in set(self._disks.chain_ids()) - known:
            self._disks.remove_unfinished(chain_id)
        self._disks.mend_scratch()

    @contextlib.contextmanager
    def _chain(self, reference: str) -> Iterator[Chain]:
        image = self._images.find(reference)
        with self._disks.open_chain([layer.chain_id for layer in image.layers]) as chain:
            yield chain

    @contextlib.contextmanager
    def _open_view(self, reference: str) -> Iterator[OpenDisks]:
        """What an image shows, of whatever form its disks are."""
        image = self._images.find(reference)
        with self._disks.open_view([layer.chain_id for layer in image.layers]) as disks:
            yield disks
