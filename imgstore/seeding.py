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

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from crc32c import crc32c

from imgstore import gc, layout
from imgstore.answers import CopyResult
from imgstore.blocks import GRAIN
from imgstore.catalog.catalog import Catalog, ImageRow, ReferenceRow
from imgstore.datastores.datastore import Datastore, Staging, StoredFile
from imgstore.disks import Disks, layer_lease, layer_row
from imgstore.errors import CorruptError, InvalidError
from imgstore.images import Images, familiar
from imgstore.intake import NAMES
from imgstore.leases import Lease, Leases, held, wait_for
from imgstore.markers import DiskRecord, LayerMarker, RecipeRecord
from imgstore.progress import ProgressEvent, ProgressSink, State
from imgstore.quota import Quota, QuotaExceededError
from imgstore.stop import Stop
from imgstore.vmdk.check import check_disk
from imgstore.vmdk.grains import numbers_from_bytes

_PIECE = 1 << 20
"""Bytes that are read, compared and written at once: as much as goes past the page cache in one write."""

_SUMS_LIMIT = 1 << 30
"""Bytes of checksums of one disk; the largest disk has an eighth of it."""

_KEEP_GIL = 0
"""The sum of a grain takes 5 µs; to let other threads have the interpreter for that, and to get it back, takes longer."""


@dataclass(frozen=True, slots=True)
class Side:
    """The parts of an open store that a copy reads, or writes.

    Attributes:
        location: what errors and progress call the store.
        tidy: removes what interrupted work left there.
    """

    location: str
    datastore: Datastore
    catalog: Catalog
    leases: Leases
    disks: Disks
    images: Images
    quota: Quota
    tidy: Callable[[], None]


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
        CorruptError: a file is not what its marker says. Nothing of that layer is on the target.
        NotFoundError: a layer of the image is not in the source.
        QuotaExceededError, NoSpaceError: it does not fit the target.
        StoppedError: ``stop`` was set.
    """
    check_same_size(source.disks, target.disks, target.location)
    chain_ids = [layer.chain_id for layer in image.layers]
    with gc.kept(source.leases, dict.fromkeys(chain_ids)), gc.kept(target.leases, dict.fromkeys(chain_ids)):
        markers = [source.disks.read_marker(chain_id) for chain_id in dict.fromkeys(chain_ids)]
        copy = _ImageCopy(source, target, image, progress, stop)
        try:
            with target.quota.reserved(copy.plan(markers)):
                copy.bring_layers()
                stop.check()
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
        self._missing: list[LayerMarker] = []
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
        self._missing = [marker for marker in markers if there[marker.chain_id] is None]
        for marker in markers:
            found = there[marker.chain_id]
            if found is not None:
                self._tell(marker, State.EXISTS)
                if self._missing:
                    self._check_same(marker, found)
        usages = self._source.datastore.usages(layout.DISKS) if self._missing else {}
        return sum(usages.get(name, 0) for marker in self._missing for name in files_of(marker))

    def _check_same(self, ours: LayerMarker, theirs: LayerMarker) -> None:
        """Disks above a layer refer to the bytes below them: another converter may have put the same files elsewhere."""
        if _contents(ours) != _contents(theirs):
            raise InvalidError(
                f"layer {ours.chain_id}: is there as another version of imgstore converted it; the layers above do not fit on it",
                hint="remove the images there that have it, and copy them again",
            )

    def bring_layers(self) -> None:
        """Copies what `plan` found; returns when all of it is committed."""
        if not self._missing:
            return
        self._target.tidy()
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

    def _bring_scratch(self) -> None:
        """Every chain stands on the scratch disk: theirs must be ours."""
        sums_path = f"{layout.DISKS}/{layout.grain_sums_file(layout.SCRATCH)}"
        self._source.disks.make_scratch()
        sums = self._source.datastore.read_bytes(sums_path, _SUMS_LIMIT)
        with held(self._target.leases, "scratch"):
            if not self._target.disks.has_scratch():
                with self._target.disks.stage(layout.SCRATCH) as staging:
                    path = f"{layout.DISKS}/{layout.disk_file(layout.SCRATCH)}"
                    with self._source.datastore.open(path) as file:
                        _copy_disk(file, staging, layout.disk_file(layout.SCRATCH), sums, self._stop, lambda done: None)
                    _write(staging, layout.grain_sums_file(layout.SCRATCH), sums)
                    self._target.disks.adopt_scratch(staging)
            elif self._target.datastore.read_bytes(sums_path, _SUMS_LIMIT) != sums:
                raise InvalidError(
                    f"{layout.disk_file(layout.SCRATCH)}: was formatted by another version of imgstore; disks from here do not fit on it",
                    hint="remove all images and containers there, and the scratch disk, and copy again",
                )

    def _bring(self, marker: LayerMarker, committer: ThreadPoolExecutor, before: Future[None] | None) -> Future[None]:
        """Copies the files of a layer; they are committed after ``before``, in the background."""
        lease = wait_for(self._target.leases, layer_lease(marker.chain_id), waiting=lambda note: self._stop.check())
        try:
            if self._target.disks.find(marker.chain_id) is not None:  # somebody pulled or copied it meanwhile
                lease.release()
                self._tell(marker, State.EXISTS)
                return committer.submit(lambda: None)
            staging = self._target.disks.stage(layout.hex_of(marker.chain_id))
            try:
                self._copy_files(marker, staging)
            except BaseException:
                staging.discard()
                raise
        except BaseException:
            lease.release()
            raise
        # From here the files are the committer's: what interrupts us must not discard what is being published.
        return committer.submit(self._commit, before, marker, staging, lease)

    def _commit(self, before: Future[None] | None, marker: LayerMarker, staging: Staging, lease: Lease) -> None:
        try:
            with staging:
                if before is not None:
                    before.result()
                row = self._target.disks.adopt(staging, marker, admit=self._target.quota.check)
            self._target.catalog.put_layer(row)
        except BaseException:
            lease.abandon()  # the layer may be there, and the catalog not know it
            raise
        lease.release()
        self.copied.append(marker.chain_id)
        self.bytes += sum(self._target.datastore.usage(f"{layout.DISKS}/{name}") for name in files_of(marker))
        self._tell(marker, State.COPIED)

    def _copy_files(self, marker: LayerMarker, staging: Staging) -> None:
        total = marker.recipe.size if marker.disk is None else marker.disk.grains * GRAIN + marker.recipe.size

        def tell(done: int) -> None:
            self._tell(marker, State.COPYING, done, total)

        tell(0)
        if marker.disk is not None:
            sums = self._read_sums(marker.disk)
            with self._open(marker.disk.file) as file:
                if file.size != marker.disk.size:
                    raise CorruptError(f"{file.path}: has {file.size} bytes, its marker says {marker.disk.size}")
                _copy_disk(file, staging, marker.disk.file, sums, self._stop, tell)
        with self._open(marker.recipe.file) as file:
            _copy_recipe(file, staging, marker.recipe)
        if marker.disk is not None:
            _write(staging, marker.disk.grain_sums, sums)

    def _read_sums(self, record: DiskRecord) -> bytes:
        path = f"{layout.DISKS}/{record.grain_sums}"
        sums = self._source.datastore.read_bytes(path, _SUMS_LIMIT)
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
    return [marker.disk.file, marker.recipe.file, marker.disk.grain_sums]


def _contents(marker: LayerMarker) -> tuple[str | None, str]:
    """What a layer's disk holds, by its digest, and where: the recipe says."""
    return None if marker.disk is None else marker.disk.grain_sums_digest, marker.recipe.digest


def _copy_disk(file: StoredFile, staging: Staging, name: str, sums: bytes, stop: Stop, tell: Callable[[int], None]) -> None:
    """A sealed disk, whose grains end the file in the order of their sums.

    Raises:
        CorruptError: a grain has another sum, or what the file has before its grains makes no sense.
    """
    first = file.size - len(sums) // 4 * GRAIN
    if first < 0:
        raise CorruptError(f"{file.path}: has {file.size} bytes, too few for {len(sums) // 4} grains")
    copy = staging.create(name)
    if not copy.clone(file):
        copy.truncate(file.size)
        for start, length in file.data_ranges(0, first):
            for offset in range(start, start + length, _PIECE):
                copy.pwrite(offset, _read(file, offset, min(_PIECE, start + length - offset)))
        wanted = numbers_from_bytes(sums)
        for offset in range(first, file.size, _PIECE):
            stop.check()
            data = _read(file, offset, min(_PIECE, file.size - offset))
            _compare(file.path, offset, data, wanted[(offset - first) // GRAIN :][: _PIECE // GRAIN])
            copy.pwrite(offset, data)
            tell(offset + len(data) - first)
    for finding in check_disk(copy):
        place = "" if finding.offset is None else f" at byte {finding.offset}"
        raise CorruptError(f"{file.path}{place}: {finding.problem}")
    copy.close()


def _compare(path: str, offset: int, data: bytes, sums: Sequence[int]) -> None:
    view = memoryview(data)
    for position, wanted in enumerate(sums):
        found = crc32c(view[position * GRAIN : (position + 1) * GRAIN], gil_release_mode=_KEEP_GIL)
        if found != wanted:
            raise CorruptError(f"{path} at byte {offset + position * GRAIN}: grain has CRC-32C {found:08x}, not {wanted:08x}")


def _copy_recipe(file: StoredFile, staging: Staging, record: RecipeRecord) -> None:
    if file.size != record.size:
        raise CorruptError(f"{file.path}: has {file.size} bytes, its marker says {record.size}")
    digest = hashlib.sha256()
    copy = staging.create(record.file)
    for offset in range(0, file.size, _PIECE):
        data = _read(file, offset, min(_PIECE, file.size - offset))
        digest.update(data)
        copy.pwrite(offset, data)
    if (found := f"sha256:{digest.hexdigest()}") != record.digest:
        raise CorruptError(f"{file.path}: its digest is {found}, its marker says {record.digest}")
    copy.close()


def _write(staging: Staging, name: str, data: bytes) -> None:
    file = staging.create(name)
    file.pwrite(0, data)
    file.close()


def _read(file: StoredFile, offset: int, length: int) -> bytes:
    data = file.pread(offset, length)
    if len(data) != length:
        raise CorruptError(f"{file.path} at byte {offset}: {length} bytes are needed, the file ends after {len(data)}")
    return data
