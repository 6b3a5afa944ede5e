"""Seeding: images of one store brought to another as they are, disk by disk, and only what that one lacks.

Nothing is converted: the files of a layer are copied with their holes, each grain compared with its checksum on its way, and become visible
there as a layer that was pulled does: disk, sums and recipe are published together, the marker comes last, and after it the image and
its names. So whatever ends a copy, the other store has whole layers, and leftovers that its next opening sweeps; the next copy goes on
behind the last layer that came. It works under the leases of both stores: nobody collects there what is being read or counted on, and of
a copy and a pull that want the same layer there, one makes it and the other waits.

A disk fits any store that has the same layers below it in the very same bytes. Their disks have the size of the store, and their bytes
follow from the layers and the program that converted them (``docs/decisions/0006-the-same-layers-give-the-same-bytes.md``), so both are
compared before the first file is copied.
"""

from __future__ import annotations

import contextlib
import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import msgspec

from imgstore import gc, layout
from imgstore.answers import CopyResult
from imgstore.blocks import GRAIN, ExtentKind
from imgstore.catalog.catalog import Catalog, ImageRow, ReferenceRow
from imgstore.datastores.datastore import Datastore, Staging, StoredFile
from imgstore.disk_forms import make_blank
from imgstore.disks import SUMS_LIMIT, Disks, layer_lease, layer_row
from imgstore.errors import CorruptError, InUseError, InvalidError, NotFoundError, UnsupportedError
from imgstore.flattening import Flattening, merge_chain
from imgstore.images import Images, familiar
from imgstore.intake import NAMES
from imgstore.layer_copies import copy_disk, copy_recipe, put_file, write_redo_log, write_single
from imgstore.leases import Lease, Leases, held, wait_for
from imgstore.markers import DiskRecord, LayerMarker
from imgstore.progress import ProgressEvent, ProgressSink, State
from imgstore.quota import Quota, QuotaExceededError
from imgstore.stop import Stop
from imgstore.vmdk.chain import Chain
from imgstore.vmdk.formats import DiskFormat, ParentDisk, data_ranges
from imgstore.vmdk.grains import numbers_from_bytes


@dataclass(frozen=True, slots=True)
class Side:
    """The parts of an open store that a copy reads, or writes.

    Attributes:
        location: what errors and progress call the store.
        flattening: merges disks that are there; None where none of them can be replaced.
        max_depth: how many disks the chain of an image may have there; None: any number.
        form: of the disks that are copied there.
        tidy: removes what interrupted work left there.
    """

    location: str
    datastore: Datastore
    catalog: Catalog
    leases: Leases
    disks: Disks
    images: Images
    quota: Quota
    flattening: Flattening | None
    max_depth: int | None
    form: DiskFormat
    tidy: Callable[[], None]


TARGET_FORMS = (DiskFormat.HOSTED, DiskFormat.VMFS_SPARSE, DiskFormat.VMFS, DiskFormat.STREAM_OPTIMIZED)
"""Forms that disks can be copied in."""

_SINGLE_FORMS = (DiskFormat.VMFS, DiskFormat.STREAM_OPTIMIZED)
"""Those of one disk an image."""

_REDO_LOG_VMFS = 5
"""The last version of VMFS whose snapshots are vmfsSparse; from the next on they are seSparse, and the two do not mix."""


def default_form(storage_type: str) -> DiskFormat:
    """The form for a datastore, by what it says it is: the one that ESXi itself has its snapshots in there, or else one that it makes.

    Source: VMware, "vSphere Storage" (6.5 to 7.0), "Snapshot Formats".
    """
    kind, _, version = storage_type.partition(" ")
    if kind == "VMFS":
        return DiskFormat.VMFS_SPARSE if version.isdigit() and int(version) <= _REDO_LOG_VMFS else DiskFormat.VMFS
    if kind in ("NFS", "NFS41"):
        return DiskFormat.VMFS_SPARSE
    return DiskFormat.VMFS if kind in ("vsan", "VVOL") else DiskFormat.HOSTED


def parse_target_form(text: str) -> DiskFormat:
    """The form of disks that a word names.

    Raises:
        InvalidError: none has this name.
        UnsupportedError: disks are not copied in this form.
    """
    try:
        form = DiskFormat(text)
    except ValueError:
        raise InvalidError(f"disk format {text!r}: is none of {', '.join(TARGET_FORMS)}") from None
    if form not in TARGET_FORMS:
        raise UnsupportedError(
            f"disk format {text!r}: images are copied as {' or '.join(TARGET_FORMS)} only", hint="imgstore export-disk"
        )
    return form


def missing_layers(disks: Disks, chain_ids: Sequence[str]) -> list[str]:
    """Those of the layers that are not there, or not whole as far as ``Disks.find`` looks; each once."""
    return [chain_id for chain_id in dict.fromkeys(chain_ids) if disks.find(chain_id) is None]


def check_same_size(source: Disks, target: Disks, location: str) -> None:
    """Raises InvalidError unless both stores have disks of one size."""
    if source.capacity != target.capacity:
        raise InvalidError(
            f"{location}: its disks have {target.capacity} bytes, those to be copied {source.capacity}",
            hint="the disks of a store all have one size, chosen when it is made: imgstore init --disk-size",
        )


def copy_image(
    source: Side, target: Side, image: ImageRow, names: Sequence[ReferenceRow], progress: ProgressSink, stop: Stop
) -> CopyResult:
    """Makes an image of ``source`` one of ``target``, under these names, which leave any image there that had them.

    After an error or a crash the target has neither the image nor a new name; layers that were complete stay for the next try.

    Raises:
        InvalidError: the disks of the two have different sizes, or a layer that is on both has not the same bytes.
        CorruptError: a layer of the source is not whole, or a file not what its marker says. Nothing of that layer is on the target.
        QuotaExceededError, NoSpaceError: it does not fit the target.
        StoppedError: ``stop`` was set.
    """
    check_same_size(source.disks, target.disks, target.location)
    chain_ids = [layer.chain_id for layer in image.layers]
    with gc.kept(source.leases, dict.fromkeys(chain_ids)), gc.kept(target.leases, dict.fromkeys(chain_ids)):
        markers = [_find(source.disks, chain_id) for chain_id in dict.fromkeys(chain_ids)]
        copy = _ImageCopy(source, target, image, progress, stop)
        try:
            with target.quota.reserved(copy.plan(markers)):
                copy.bring_layers()
                stop.check()
            if target.max_depth is not None and target.flattening is not None and target.form is DiskFormat.HOSTED:
                target.flattening.flatten(chain_ids, target.max_depth, progress, stop, slack=True)
            changed = _commit(target, image, markers, names)
        except QuotaExceededError:
            with held(target.leases, NAMES):
                gc.collect(target.disks, target.catalog, target.leases)
            raise
    return CopyResult(
        location=target.location,
        image_id=image.id,
        references=tuple(familiar(name.name) for name in names),
        copied_layers=len(copy.copied),
        present_layers=len(markers) - len(copy.copied),
        copied_bytes=copy.bytes,
        changed=changed or bool(copy.copied),
    )


def _commit(target: Side, image: ImageRow, markers: Sequence[LayerMarker], names: Sequence[ReferenceRow]) -> bool:
    """Makes the image visible, all of whose layers are there; False where all of it was there already."""
    with held(target.leases, NAMES):
        old = target.catalog.image(image.id)
        if old is not None and image.manifest_digest is None:
            image = old  # an archive knows less than the registry that it came from before
        elif image.parent is not None and target.catalog.image(image.parent) is None:
            image = replace(image, parent=None if old is None else old.parent)  # what it was made from is not there
        if old == image and all(target.catalog.reference(name.name) == name for name in names):
            return False
        for marker in markers:
            target.catalog.put_layer(layer_row(target.disks.read_marker(marker.chain_id)))
        target.images.commit(image, names)
    return True


def _find(disks: Disks, chain_id: str) -> LayerMarker:
    marker = disks.find(chain_id)
    if marker is None:
        raise CorruptError(f"layer {chain_id}: is missing or not whole", hint="a pull of the image makes it again")
    if marker.covered or (marker.disk is not None and marker.disk.format != DiskFormat.HOSTED):
        form = "not here, only merged ones" if marker.disk is None else f"of the form {marker.disk.format}"
        raise UnsupportedError(f"layer {chain_id}: its own disk is {form}", hint="copy it from where it was pulled")
    return marker


_ONE_FORM = "all disks of a datastore have one form: use --disk-format, or another directory"


class _ImageCopy:
    """The layers of one image on their way. Use once.

    Attributes:
        copied: chain ids of the layers that came, lowest first.
        bytes: that were written for them.
    """

    def __init__(self, source: Side, target: Side, image: ImageRow, progress: ProgressSink, stop: Stop) -> None:
        self._source = source
        self._target = target
        self._progress = progress
        self._stop = stop
        self._shorts = {layer.chain_id: layout.hex_of(layer.digest or layer.diff_id)[:12] for layer in image.layers}
        self._chain_ids = list(dict.fromkeys(layer.chain_id for layer in image.layers))
        self._missing: list[LayerMarker] = []
        self._merged_at: str | None = None
        self._single: str | None = None
        """The layer that gets one disk of another form, which shows the whole image; layers below go without."""
        self._blank: ParentDisk | None = None
        """What chains stand on there; None where that is the scratch disk."""
        self.copied: list[str] = []
        self.bytes = 0

    def plan(self, markers: Sequence[LayerMarker]) -> int:
        """Finds out what the target lacks, and returns how many bytes that is.

        Args:
            markers: of the layers of the image in the source, lowest first.

        Raises:
            InvalidError: what it has does not fit what it lacks.
        """
        there = {marker.chain_id: self._target.disks.find(marker.chain_id) for marker in markers}
        if self._target.form in _SINGLE_FORMS:
            self._single = next((marker.chain_id for marker in reversed(markers) if marker.disk is not None), None)
        self._missing = [marker for marker in markers if self._is_missing(marker, there[marker.chain_id])]
        for marker in markers:
            found = there[marker.chain_id]
            if found is None:
                continue
            self._check_form(found)
            if self._missing and self._single is None:
                self._check_same(marker, found)
            if marker not in self._missing:
                self._tell(marker, State.EXISTS)
        if self._missing and self._target.max_depth is not None and self._single is None:
            depth = self._target.max_depth - (self._target.form is DiskFormat.VMFS_SPARSE)  # the blank disk is one, too
            self._merged_at = _find_merge([there[marker.chain_id] or marker for marker in markers], self._missing, depth)
        usages = self._source.datastore.usages(layout.DISKS) if self._missing else {}
        return sum(usages.get(name, 0) for marker in self._missing for name in files_of(marker))

    def _is_missing(self, ours: LayerMarker, theirs: LayerMarker | None) -> bool:
        return theirs is None or (theirs.covered and ours.chain_id == self._single)

    def _check_form(self, theirs: LayerMarker) -> None:
        form = self._target.form if theirs.disk is None else theirs.disk.format
        if form != self._target.form or (theirs.covered and self._single is None):
            raise InvalidError(
                f"layer {theirs.chain_id}: its disk there has not the form {self._target.form}",
                hint=_ONE_FORM,
            )

    def _check_same(self, ours: LayerMarker, theirs: LayerMarker) -> None:
        """Disks above a layer refer to the bytes below them: another converter may have put the same files elsewhere."""
        is_merged = any(marker.disk is not None and marker.disk.merged for marker in (ours, theirs))
        if ours.recipe.digest != theirs.recipe.digest or not (is_merged or _sums_of(ours) == _sums_of(theirs)):
            raise InvalidError(
                f"layer {ours.chain_id}: is there as another version of imgstore converted it; the layers above do not fit on it",
                hint="remove the images there that have it, and copy them again",
            )

    def bring_layers(self) -> None:
        """Copies what `plan` found; returns when all of it is committed."""
        if not self._missing and not self._lacks_scratch():
            return
        self._target.tidy()
        if self._single is None:
            self._bring_scratch()
        with ThreadPoolExecutor(1, thread_name_prefix="imgstore-copy-commit") as committer:
            commits: list[Future[None]] = []
            try:
                for marker in self._missing:
                    self._stop.check()
                    if len(commits) > 1:
                        commits[-2].result()  # one layer is put on stable storage while the next is copied, no more
                    commits.append(self._bring(marker, committer, commits[-1] if commits else None))
            finally:
                # Also while an error is on its way: what was copied before it is committed, unless that failed first.
                for commit in commits:
                    commit.exception()
            for commit in commits:
                commit.result()

    def _lacks_scratch(self) -> bool:
        """Whether the disks there stand on one that is not whole, and that nobody there can make."""
        return self._target.form is DiskFormat.VMFS_SPARSE and not self._target.disks.has_scratch()

    def _bring_scratch(self) -> None:
        """Every chain stands on the scratch disk: theirs must be ours."""
        sums_path = f"{layout.DISKS}/{layout.grain_sums_file(layout.SCRATCH)}"
        self._source.disks.make_scratch()
        sums = self._source.datastore.read_bytes(sums_path, SUMS_LIMIT)
        with held(self._target.leases, "scratch"):
            form = self._target.disks.scratch_form()
            if form not in (None, self._target.form):
                raise InvalidError(
                    f"{layout.disk_file(layout.SCRATCH)}: is there in the form {form}, not {self._target.form}", hint=_ONE_FORM
                )
            if self._target.form is DiskFormat.VMFS_SPARSE:
                self._blank = make_blank(self._target.datastore, self._target.disks.capacity)
            if form is None:
                with self._target.disks.stage(layout.SCRATCH) as staging:
                    self._put_scratch(staging, sums)
                    put_file(staging, layout.grain_sums_file(layout.SCRATCH), sums)
                    self._target.disks.adopt_scratch(staging)
            elif self._target.datastore.read_bytes(sums_path, SUMS_LIMIT) != sums:
                raise InvalidError(
                    f"{layout.disk_file(layout.SCRATCH)}: was formatted by another version of imgstore; disks from here do not fit on it",
                    hint="remove all images and containers there, and the scratch disk, and copy again",
                )

    def _put_scratch(self, staging: Staging, sums: bytes) -> None:
        if self._blank is not None:
            with self._source.disks.open_chain(()) as chain:
                numbers = [numbers_from_bytes(sums)]
                write_redo_log(chain, numbers, staging, layout.SCRATCH, self._blank, self._stop, lambda done: None, merged=True)
            return
        with self._open(layout.disk_file(layout.SCRATCH)) as file:
            copy_disk(file, staging, layout.disk_file(layout.SCRATCH), sums, self._stop, lambda done: None)

    def _bring(self, marker: LayerMarker, committer: ThreadPoolExecutor, before: Future[None] | None) -> Future[None]:
        """Copies the files of a layer; they are committed after ``before``, in the background."""
        lease = self._wait_for(self._target.leases, marker)
        try:
            found = self._target.disks.find(marker.chain_id)
            if not self._is_missing(marker, found):  # somebody pulled or copied it meanwhile
                lease.release()
                self._tell(marker, State.EXISTS)
                return committer.submit(lambda: None)
            staging = self._target.disks.stage(layout.hex_of(marker.chain_id))
            try:
                marker = self._copy_files(marker, staging, uncover=found is not None)
            except BaseException:
                staging.discard()
                raise
        except BaseException:
            lease.release()
            raise
        # From here the files are the committer's: what interrupts us must not discard what is being published.
        return committer.submit(self._commit, before, marker, staging, lease, uncover=found is not None)

    def _commit(self, before: Future[None] | None, marker: LayerMarker, staging: Staging, lease: Lease, *, uncover: bool) -> None:
        try:
            with staging:
                if before is not None:
                    before.result()
                if uncover:
                    row = self._target.disks.uncover(staging, marker)
                else:
                    row = self._target.disks.adopt(staging, marker, admit=self._target.quota.check)
            self._target.catalog.put_layer(row)
        except BaseException:
            lease.abandon()  # the layer may be there, and the catalog not know it
            raise
        lease.release()
        self.copied.append(marker.chain_id)
        for name in files_of(marker):
            with contextlib.suppress(NotFoundError):  # a platform may show a disk without the files that it is made of
                self.bytes += self._target.datastore.usage(f"{layout.DISKS}/{name}")
        self._tell(marker, State.COPIED)

    def _wait_for(self, leases: Leases, marker: LayerMarker, *, shared: bool = False) -> Lease:
        return wait_for(leases, layer_lease(marker.chain_id), shared=shared, waiting=lambda note: self._stop.check())

    def _copy_files(self, marker: LayerMarker, staging: Staging, *, uncover: bool) -> LayerMarker:
        """Copies the files of a layer as they are now, and returns its marker.

        Args:
            uncover: the target has the recipe, and lacks the disk.
        """
        lease = self._wait_for(self._source.leases, marker, shared=True)  # nobody replaces its disk meanwhile
        try:
            marker = _find(self._source.disks, marker.chain_id)
            if not uncover:
                with self._open(marker.recipe.file) as file:
                    copy_recipe(file, staging, marker.recipe)
            if self._single is not None:
                return self._put_single(marker, staging)
            if self._blank is not None and marker.disk is not None:
                return self._put_redo_log(marker, staging, self._blank)
            if marker.chain_id == self._merged_at:
                return self._put_merged(marker, staging)
            if marker.disk is not None:
                self._put_disk(marker.disk, staging, marker)
        finally:
            lease.release()
        return marker

    def _put_single(self, marker: LayerMarker, staging: Staging) -> LayerMarker:
        """One disk of another form for the whole image, beside its top layer; the others are covered by it."""
        if marker.chain_id != self._single:
            return msgspec.structs.replace(marker, disk=None, covered=marker.disk is not None)
        with self._open_chain(marker) as (chain, sums):
            total = sum(extent.length for extent in chain.extents() if extent.kind is ExtentKind.DATA)
            record = write_single(
                chain,
                sums,
                staging,
                layout.hex_of(marker.chain_id),
                self._target.form,
                self._stop,
                lambda done: self._tell(marker, State.COPYING, done, total),
            )
        return msgspec.structs.replace(marker, disk=record)

    def _put_redo_log(self, marker: LayerMarker, staging: Staging, blank: ParentDisk) -> LayerMarker:
        with self._open_chain(marker) as (chain, sums):
            merged = marker.chain_id == self._merged_at
            ranges = data_ranges(chain) if merged else chain.own_ranges()
            total = sum(length for _, length in ranges)
            record = write_redo_log(
                chain,
                sums,
                staging,
                layout.hex_of(marker.chain_id),
                blank,
                self._stop,
                lambda done: self._tell(marker, State.COPYING, done, total),
                merged=merged,
            )
        return msgspec.structs.replace(marker, disk=record)

    def _put_merged(self, marker: LayerMarker, staging: Staging) -> LayerMarker:
        """In the place of the disk of a layer, one that shows all below it, too; as a merge there would have made it."""
        self._tell(marker, State.COPYING)
        with self._open_chain(marker) as (chain, sums):
            record = merge_chain(chain, sums, staging, layout.hex_of(marker.chain_id), interrupt=self._stop.check)
        return msgspec.structs.replace(marker, disk=record)

    @contextlib.contextmanager
    def _open_chain(self, marker: LayerMarker) -> Iterator[tuple[Chain, list[array[int]]]]:
        """The chain of the source that has a layer on top, and the checksums of each of its disks."""
        with self._source.disks.open_chain(self._chain_ids[: self._chain_ids.index(marker.chain_id) + 1]) as chain:
            sums = []
            for number, file in enumerate(chain.files):
                found = self._source.disks.read_grain_sums(file, merged=not number)
                if found is None:
                    raise InUseError(f"{file.path}: is being merged with those below it", hint="copy the image again in a while")
                sums.append(found)
            yield chain, sums

    def _put_disk(self, record: DiskRecord, staging: Staging, marker: LayerMarker) -> None:
        sums = self._read_sums(record)
        self._tell(marker, State.COPYING, 0, record.grains * GRAIN)
        with self._open(record.file) as file:
            if file.size != record.size:
                raise CorruptError(f"{file.path}: has {file.size} bytes, its marker says {record.size}")
            copy_disk(
                file,
                staging,
                record.file,
                sums,
                self._stop,
                lambda done: self._tell(marker, State.COPYING, done, record.grains * GRAIN),
            )
        put_file(staging, record.grain_sums, sums)

    def _read_sums(self, record: DiskRecord) -> bytes:
        path = f"{layout.DISKS}/{record.grain_sums}"
        sums = self._source.datastore.read_bytes(path, SUMS_LIMIT)
        if (digest := f"sha256:{hashlib.sha256(sums).hexdigest()}") != record.grain_sums_digest:
            raise CorruptError(f"{path}: its digest is {digest}, its marker says {record.grain_sums_digest}")
        if len(sums) != 4 * record.grains:
            raise CorruptError(f"{path}: has {len(sums)} bytes, for {record.grains} grains")
        return sums

    def _open(self, name: str) -> StoredFile:
        return self._source.datastore.open(f"{layout.DISKS}/{name}")

    def _tell(self, marker: LayerMarker, state: State, done: int = 0, total: int | None = None) -> None:
        self._progress(ProgressEvent(f"{self._shorts[marker.chain_id]} to {self._target.location}", state, done, total))


def files_of(marker: LayerMarker) -> list[str]:
    """Names in ``disks`` of what a layer has beside its marker."""
    if marker.disk is None:
        return [marker.recipe.file]
    names = [marker.disk.file, marker.recipe.file, marker.disk.grain_sums]
    if marker.disk.format == DiskFormat.VMFS_SPARSE:
        names.append(layout.delta_file(layout.hex_of(marker.chain_id)))
    return [name for name in names if name]


def _find_merge(markers: Sequence[LayerMarker], missing: Sequence[LayerMarker], max_depth: int) -> str | None:
    """The layer that is to come with a disk merged of all below, for the chain not to be deeper than that; None if it is not.

    It is one that is missing: disks that are there stay as they are.

    Args:
        markers: of the image's layers, lowest first: those of the target where it has them.
    """
    lacking = {marker.chain_id for marker in missing}
    chain: list[str | None] = [None]  # the scratch disk
    for marker in markers:
        if marker.disk is not None:
            chain = [] if marker.disk.merged else chain
            chain.append(marker.chain_id)
    if len(chain) <= max_depth:
        return None
    return next((chain_id for chain_id in chain[-max_depth:] if chain_id in lacking), None)


def _sums_of(marker: LayerMarker) -> str | None:
    return None if marker.disk is None else marker.disk.origin or marker.disk.grain_sums_digest
