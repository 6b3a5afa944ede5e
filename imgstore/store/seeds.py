"""Seeds: images from this store to others, and what others have."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Self, TypeVar

from imgstore import layout, markers
from imgstore.answers import CopyPlan, CopyResult, PullResult, RemoteStore, SeedFailure, SeedPlan, SeedReport
from imgstore.catalog.catalog import Catalog, ImageRow, ReferenceRow
from imgstore.config import is_vsphere_location
from imgstore.datastores.local import LocalDatastore
from imgstore.errors import ImgstoreError, InvalidError, NotFoundError, UnsupportedError
from imgstore.images import names_id, parse_reference
from imgstore.leases import MemoryLeases
from imgstore.location import check_depth, directory_of, has_store, open_vsphere
from imgstore.progress import ProgressSink, ignore
from imgstore.rebuild import rebuild
from imgstore.registries import translated
from imgstore.seed_files import SeedImage
from imgstore.seeding import Side, check_same_size, copy_image, default_form, files_of, missing_layers, parse_target_form
from imgstore.stop import Stop, StoppedError
from imgstore.store.transfers import Transfers
from imgstore.vmdk.formats import DiskFormat
from imgstore.vsphere.locations import DatastoreLocation, parse_datastore
from registry_client.credentials import Credential
from registry_client.options import Options
from registry_client.platform import Platform
from registry_client.source import open_source

if TYPE_CHECKING:
    from imgstore.vsphere.login import VsphereLogin

T = TypeVar("T")

VSPHERE_DEPTH = 30
"""Disks of a chain on vSphere: it opens some more, and those of a machine and its snapshots come on top."""

JOBS_DEFAULT = 3
"""Datastores that are seeded at once."""


class Seeds(Transfers):
    """The methods of an `ImageStore` that bring its images to other stores."""

    _form = DiskFormat.HOSTED
    """Of the disks that are copied to this store."""

    _called: str | None = None
    """What who opened this store to copy to it calls it."""

    _depth_on_copy: int | None = None
    """How deep the chains of what is copied to this store may become, where the store itself does not say."""

    def open_target(
        self,
        location: str,
        *,
        max_depth: int | None = None,
        disk_format: str | None = None,
        vsphere: VsphereLogin | None = None,
    ) -> Self:
        """Opens the store that images are to be copied to; makes it, with the disk size of this one, if there is none.

        Args:
            max_depth: how many disks the chain of an image may have there, as `create` takes it; a store that is there must have been made
                with it. On vSphere, where stores do not keep it, it holds for these copies. None: what the store was made with; on vSphere
                30.
            disk_format: ``hosted``, a disk a layer, for QEMU and Workstation; ``vmfs-sparse``, a disk a layer, for ESXi on VMFS 5 and NFS;
                ``vmfs``, one disk an image, beside its top layer, which vSphere makes itself of what is uploaded; or
                ``stream-optimized``, that upload, left there to be imported by others. Nothing can be copied on from a store of another
                form than hosted, and nothing be pulled or written into it. All disks of a store have one form. None: hosted; on
                vSphere by what the datastore says it is: vmfs-sparse on VMFS up to 5 and NFS, vmfs on VMFS 6, vSAN and vVols.
            vsphere: as for `open`.

        Raises:
            InvalidError: no such form; its disks have another size, or it has another largest depth; it is this store; the directory
                holds something else.
            UnsupportedError: disks are not copied in this form, or not there.
            Otherwise what `open` raises.
        """
        self._check_elsewhere(location, vsphere)
        form = _check_words(max_depth, disk_format)
        if form is not None:
            _check_form(form, location, max_depth)
        remote = is_vsphere_location(location)
        target = type(self)._open(
            location,
            disk_size=self._disks.capacity,
            max_depth=None if remote else max_depth,
            registries=self._registries,
            vsphere=vsphere,
        )
        target._called = location
        try:
            check_same_size(self._disks, target._disks, location)
            target._form = form or default_form(target._datastore.storage_type())
            _check_form(target._form, location, max_depth)
            if remote:
                target._depth_on_copy = max_depth or VSPHERE_DEPTH
            elif max_depth not in (None, target._max_depth):
                had = target._max_depth or "any number of"
                raise InvalidError(f"{location}: was made for chains of {had} disks, not {max_depth}")
        except BaseException:
            target.close()
            raise
        return target

    def copy_image(
        self, reference: str, target: Seeds, *, progress: ProgressSink = ignore, stop: Stop | None = None
    ) -> CopyResult:
        """Brings an image to another store as it is: the disks that are missing there, then the image, then its names.

        Each grain is compared with its checksum on its way. What other processes do in the other store meanwhile does no harm. After an
        error or an interrupt neither the image nor a new name is there; layers that were complete stay, and the next copy goes on from
        there. Nothing is written where nothing is missing.

        Args:
            reference: a name: the image gets it there, with the digest that the registry has for it; or an id: it gets all its names.
            target: from `open_target`.
            progress: told what happens; called from several threads. The layers are followed by the location.
            stop: ends it from another thread.

        Raises:
            NotFoundError: no image has this name.
            InvalidError: the disks have different sizes, or layers there were made by another version of imgstore.
            CorruptError: a disk of this store is damaged.
            NoSpaceError: the image does not fit there.
            StoppedError: ``stop`` was set.
        """
        image = self._images.find(reference)
        names = self._names_of(reference, image)
        with _told(f"{reference} to {target._called or target.location}"), self._mended(), target._mended():
            return copy_image(self._side(), target._side(), image, names, progress, stop or Stop())

    def seed(
        self,
        images: Sequence[SeedImage],
        locations: Sequence[str],
        *,
        platform: str | None = None,
        max_depth: int | None = None,
        disk_format: str | None = None,
        jobs: int = JOBS_DEFAULT,
        keep_going: bool = False,
        logins: Mapping[str, VsphereLogin] = MappingProxyType({}),
        credential: Credential | None = None,
        progress: ProgressSink = ignore,
        stop: Stop | None = None,
    ) -> SeedReport:
        """Pulls images into this store, each once, and copies to other stores what they lack of them.

        The datastores are looked at before anything is pulled, and copied to at the same time. It is safe to repeat: what is there is
        neither pulled nor copied again.

        Args:
            images: what ``imgstore.seed_files.parse_seed_file`` returns.
            locations: of the stores; made, with the disk size of this one, where there are none.
            platform: for the images that ask for none; None: Linux on this machine's architecture.
            max_depth, disk_format: as for `open_target`.
            jobs: how many datastores are copied to at once.
            keep_going: go on with all else after a failure, and report it; else the first failure ends all, and is raised.
            logins: for locations on vSphere, by location.
            credential, progress, stop: as for `pull`.

        Raises:
            InvalidError: a location is named twice, or ``jobs`` is not above 0.
            Otherwise what `pull`, `open_target` and `copy_image` raise, unless ``keep_going``.
        """
        if jobs < 1:
            raise InvalidError(f"{jobs} jobs: must be above 0")
        run = _SeedRun(keep_going, stop or Stop())
        with contextlib.ExitStack() as stack:
            targets: list[Seeds] = []
            for location in _distinct(locations, logins):
                with run.attempt("", location):
                    login = logins.get(location)
                    target = self.open_target(location, max_depth=max_depth, disk_format=disk_format, vsphere=login)
                    targets.append(stack.enter_context(target))
            pulls: list[PullResult] = []
            for image in images:
                with run.attempt(image.reference, ""):
                    for reference in self._tags_of(image, credential, progress, run.stop):
                        wanted = image.platform or platform
                        pulls.append(
                            self.pull(reference, platform=wanted, credential=credential, progress=progress, stop=run.stop)
                        )
            copies: dict[str, list[CopyResult]] = {str(target._called): [] for target in targets}

            def copy_all(target: Seeds) -> None:
                for pulled in pulls:
                    with run.attempt(pulled.reference, str(target._called)):
                        copied = self.copy_image(pulled.reference, target, progress=progress, stop=run.stop)
                        copies[copied.location].append(copied)

            run.each(copy_all, targets, jobs)
        return SeedReport(tuple(pulls), tuple(copy for made in copies.values() for copy in made), tuple(run.failures))

    def plan_seed(
        self,
        images: Sequence[SeedImage],
        locations: Sequence[str],
        *,
        platform: str | None = None,
        max_depth: int | None = None,
        disk_format: str | None = None,
        logins: Mapping[str, VsphereLogin] = MappingProxyType({}),
        credential: Credential | None = None,
        progress: ProgressSink = ignore,
        stop: Stop | None = None,
    ) -> list[SeedPlan]:
        """What `seed` would do. Registries are asked for manifests and configurations only; nothing is changed anywhere.

        What cannot be done is told in the plan. Arguments as for `seed`.

        Raises:
            InvalidError, UnsupportedError: an argument makes no sense, wherever it would be used.
        """
        _check_words(max_depth, disk_format)
        stop = stop or Stop()
        plans: list[SeedPlan] = []
        with contextlib.ExitStack() as stack:
            views: dict[str, Seeds | ImgstoreError | None] = {}
            for location in _distinct(locations, logins):
                try:
                    self._check_elsewhere(location, logins.get(location))
                    views[location] = view = self._view(location, logins.get(location))
                    if view is not None:
                        stack.callback(view.close)
                        check_same_size(self._disks, view._disks, location)
                except ImgstoreError as error:
                    views[location] = error
            for image in images:
                try:
                    references = list(self._tags_of(image, credential, progress, stop))
                except ImgstoreError as error:
                    plans.append(SeedPlan(image.reference, problem=str(error)))
                    continue
                for reference in references:
                    wanted = image.platform or platform
                    try:
                        plans.append(self._plan(reference, wanted, views, self._options(progress, credential, stop)))
                    except ImgstoreError as error:
                        plans.append(SeedPlan(reference, problem=str(error)))
        return plans

    @classmethod
    def list_remote(cls, location: str, *, vsphere: VsphereLogin | None = None) -> RemoteStore:
        """What a store has, without opening it for writing: nothing there is made, locked, swept or mended.

        Raises:
            NotFoundError: there is no store.
            Otherwise what `open` raises.
        """
        view = cls._view(location, vsphere)
        if view is None:
            raise NotFoundError(f"{location}: there is no store", hint="imgstore seed and imgstore copy make one")
        with view:
            return RemoteStore(view.location, view._disks.capacity, tuple(view._listing.images()), view._left_out)

    @classmethod
    def _view(cls, location: str, vsphere: VsphereLogin | None) -> Self | None:
        """A store that is only looked at, its catalog in memory; None where there is none."""
        directory = None
        if is_vsphere_location(location):
            datastore = open_vsphere(location, vsphere)
        else:
            directory = directory_of(location)
            if directory is None or not has_store(directory):
                return None
            datastore = LocalDatastore(directory)
        try:
            datastore.space()  # a datastore that is missing, or in maintenance, is more than a store that is not there yet
            if not datastore.exists(layout.STORE):
                datastore.close()
                return None
            data = datastore.read_bytes(layout.STORE, markers.LIMIT)
            marker = markers.decode(markers.StoreMarker, data, datastore.prefix + layout.STORE)
            view = cls(datastore, Catalog(None), MemoryLeases(), marker, directory, Options())
        except BaseException:
            datastore.close()
            raise
        try:
            view._left_out = rebuild(view._catalog, view._disks, view._images, view._containers).left_out
        except BaseException:
            view.close()
            raise
        return view

    _left_out: tuple[str, ...] = ()
    """What a view found that is not whole."""

    def _side(self) -> Side:
        return Side(
            self._called or self.location,
            self._datastore,
            self._catalog,
            self._leases,
            self._disks,
            self._images,
            self._quota,
            None if self._max_depth is None else self._flattening,
            self._depth_on_copy if self._max_depth is None else self._max_depth,
            self._form,
            self._tidy,
        )

    def _names_of(self, reference: str, image: ImageRow) -> list[ReferenceRow]:
        """The names that a copy of ``reference`` brings, those with digests first: a tag is only there where its digest is."""
        rows = self._catalog.references(image.id)
        if not names_id(reference, image.id):
            name = parse_reference(reference)
            full = str(name if name.digest is None else name.with_digest(name.digest))
            digest = next((row.digest for row in rows if row.name == full), None)
            rows = [row for row in rows if row.name in (full, f"{name.name}@{digest}")]
        return sorted(rows, key=lambda row: ("@" not in row.name, row.name))

    def _tags_of(self, image: SeedImage, credential: Credential | None, progress: ProgressSink, stop: Stop) -> Iterator[str]:
        if not image.all_tags:
            yield image.reference
            return
        for tag in self.list_tags(image.reference, credential=credential, progress=progress, stop=stop):
            yield f"{image.reference}:{tag}"

    def _plan(
        self, reference: str, platform: str | None, views: dict[str, Seeds | ImgstoreError | None], options: Options
    ) -> SeedPlan:
        with contextlib.ExitStack() as stack, translated():
            source = open_source(reference, options, self._connections)
            stack.callback(source.close)
            image = source.resolve(None if platform is None else Platform.parse(platform))
        chain_ids = [str(chain_id) for chain_id in image.config.chain_ids]
        lacking = set(missing_layers(self._disks, chain_ids))
        sizes = {chain_id: layer.size for chain_id, layer in zip(chain_ids, image.layers, strict=True)}
        usages = self._datastore.usages(layout.DISKS)
        copies = []
        for location, view in views.items():
            if isinstance(view, ImgstoreError):
                copies.append(CopyPlan(location, 0, 0, 0, str(view)))
                continue
            wanted = list(sizes) if view is None else missing_layers(view._disks, chain_ids)
            here = [self._disks.read_marker(chain_id) for chain_id in wanted if chain_id not in lacking]
            size = sum(usages.get(name, 0) for marker in here for name in files_of(marker))
            copies.append(CopyPlan(location, len(wanted), len(sizes) - len(wanted), size))
        return SeedPlan(reference, len(lacking), sum(sizes[chain_id] for chain_id in lacking), tuple(copies))

    def _check_elsewhere(self, location: str, login: VsphereLogin | None) -> None:
        ours, theirs = _place(self.location, None), _place(location, login)
        if ours is not None and _are_same(ours, theirs):
            raise InvalidError(f"{location}: is the store that is copied from")
        if isinstance(ours, Path) and isinstance(theirs, Path) and theirs.is_relative_to(ours):
            raise InvalidError(f"{location}: is in the store that is copied from")


class _SeedRun:
    """What goes wrong in one seeding, and what becomes of the rest then."""

    def __init__(self, keep_going: bool, stop: Stop) -> None:
        self._keep_going = keep_going
        self._outer = stop
        self._guard = threading.Lock()
        self._first: BaseException | None = None
        self.stop = Stop()
        self.failures: list[SeedFailure] = []

    @contextlib.contextmanager
    def attempt(self, reference: str, location: str) -> Iterator[None]:
        """One part of the work: its failure is noted, or ends all."""
        self._outer.check()
        try:
            with self._outer.interrupting(self.stop.set):
                yield
        except StoppedError:
            raise
        except ImgstoreError as error:
            if not self._keep_going:
                raise
            with self._guard:
                self.failures.append(SeedFailure(reference, location, error))

    def each(self, act: Callable[[T], None], targets: Sequence[T], jobs: int) -> None:
        """Does it for all, some at once; what the first that fails raises ends the others, and is raised."""
        if not targets:
            return

        def act_or_end(target: T) -> None:
            try:
                act(target)
            except BaseException as error:
                with self._guard:
                    self._first = self._first or error
                self.stop.set()

        with ThreadPoolExecutor(min(jobs, len(targets)), thread_name_prefix="imgstore-seed") as workers:
            try:
                for future in [workers.submit(act_or_end, target) for target in targets]:
                    future.result()
            except BaseException:  # an interrupt of the thread that waits
                self.stop.set()
                raise
        if self._first is not None:
            raise self._first


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Names what was copied where in an error: many copies may go on at once, and paths on a datastore do not say on which."""
    try:
        yield
    except StoppedError:
        raise
    except ImgstoreError as error:
        raise type(error)(f"{what}: {error}", hint=error.hint) from error


def _check_form(form: DiskFormat, location: str, max_depth: int | None) -> None:
    """Raises UnsupportedError where there can be no disks of the form, InvalidError where chains of them are deeper."""
    if form is DiskFormat.VMFS and not is_vsphere_location(location):
        raise UnsupportedError(
            f"{location}: disks of the form {form} are made by vSphere, on its own datastores",
            hint="imgstore export-disk writes one into a directory",
        )
    if form is not DiskFormat.VMFS_SPARSE:
        return
    if not is_vsphere_location(location) and directory_of(location) is None:
        raise UnsupportedError(f"{location}: has no place for a flat disk, which those of the form {form} stand on")
    if max_depth == 1:
        raise InvalidError(f"{location}: chains of disks of the form {form} have at least 2 disks, not 1")


def _check_words(max_depth: int | None, disk_format: str | None) -> DiskFormat | None:
    """The form that a word names. Raises InvalidError or UnsupportedError where one of them makes no sense."""
    if max_depth is not None:
        check_depth(max_depth)
    return None if disk_format is None else parse_target_form(disk_format)


def _place(location: str, login: VsphereLogin | None) -> Path | DatastoreLocation | None:
    """What a location names, however it is written; None for a store in memory."""
    if is_vsphere_location(location):
        return parse_datastore(location, login)
    directory = directory_of(location)
    return None if directory is None else Path(os.path.realpath(directory))  # which bears a loop, too


def _are_same(one: Path | DatastoreLocation | str, other: Path | DatastoreLocation | str | None) -> bool:
    if isinstance(one, DatastoreLocation) and isinstance(other, DatastoreLocation):
        return one.is_same(other)
    return one == other


def _distinct(locations: Sequence[str], logins: Mapping[str, VsphereLogin]) -> list[str]:
    places: list[Path | DatastoreLocation | str] = []
    for location in locations:
        place = _place(location, logins.get(location)) or location
        if any(_are_same(place, other) for other in places):
            raise InvalidError(f"{location}: is named twice")
        places.append(place)
    return list(locations)
