"""Disks: prepared, then committed or discarded; and the chains they form. Where they lie: ``layout``."""

from __future__ import annotations

import contextlib
import hashlib
import posixpath
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from imgstore import disk_forms, layout, markers
from imgstore.blocks import GRAIN, BlockDevice, Bytes, ReadableFile
from imgstore.catalog.catalog import LayerRow
from imgstore.datastores.datastore import Datastore, StagedFile, Staging, list_names
from imgstore.errors import CorruptError, NotFoundError, UnsupportedError
from imgstore.ext4.format import format_file_system
from imgstore.layers.recipe import rebuild_tar
from imgstore.leases import Leases, held
from imgstore.markers import DiskRecord, LayerMarker
from imgstore.vmdk.chain import Chain, open_chain
from imgstore.vmdk.descriptor import derive_cid
from imgstore.vmdk.formats import DiskFormat
from imgstore.vmdk.grains import numbers_from_bytes
from imgstore.vmdk.hosted import DiskSummary, HostedDiskWriter, open_disk
from imgstore.vmdk.snapshot import SnapshotDevice
from imgstore.vmdk.stack import OpenDisks, open_disks

SUMS_LIMIT = 1 << 30
"""Bytes of checksums of one disk; the largest disk has an eighth of it."""

_COPY = 1 << 20

_SCRATCH_FILES = (*layout.disk_files(layout.SCRATCH)[:2], layout.grain_sums_file(layout.SCRATCH))


class Disks:
    """The disks of a store.

    Args:
        capacity: of every disk, in bytes.
    """

    def __init__(self, datastore: Datastore, leases: Leases, capacity: int) -> None:
        self._datastore = datastore
        self._leases = leases
        self.capacity = capacity

    def chain_ids(self) -> list[str]:
        """Chain ids of the layers on the datastore, whole or not."""
        found = (layout.layer_of(name) for name in list_names(self._datastore, layout.DISKS))
        return sorted({chain_id for chain_id in found if chain_id is not None})

    def find_all(self, chain_ids: Iterable[str]) -> Iterable[LayerMarker | None]:
        """What `find` says of each, in their order."""
        return self._datastore.each(self.find, chain_ids)

    def find(self, chain_id: str) -> LayerMarker | None:
        """The layer's marker, or None when the layer is not there, or not whole: then it is to be made again.

        Reads the marker, of the recipe its size, and of the disk its size, header and descriptor; ``imgstore check`` looks at everything.

        Raises:
            UnsupportedError: a newer imgstore wrote it.
        """
        marker = None
        while True:
            before = marker
            try:
                marker = self.read_marker(chain_id)
            except (NotFoundError, CorruptError):
                return None
            if not self._has_recipe(marker):
                return None
            found = self.settled(marker)
            if found is not None or marker == before:  # else its disk may have been replaced between our two looks
                return found

    def settled(self, marker: LayerMarker) -> LayerMarker | None:
        """The marker with the disk that lies there as its disk, and no replacement; None where the one that lies there is neither.

        Looks at the size, header and descriptor of the disk.
        """
        if marker.disk is None:
            return marker
        for record in (marker.disk, marker.replacement):
            if record is not None and self._is_whole(_path(record.file), record):
                return msgspec.structs.replace(marker, disk=record, replacement=None)
        return None

    def read_marker(self, chain_id: str) -> LayerMarker:
        """The layer's marker.

        Raises:
            NotFoundError: the layer is not there.
            CorruptError: the marker is damaged, or another layer's.
        """
        path = layout.layer_marker(chain_id)
        marker = markers.decode(LayerMarker, self._datastore.read_bytes(path, markers.LIMIT), path)
        if marker.chain_id != chain_id:
            raise CorruptError(f"{path}: is the marker of layer {marker.chain_id}")
        return marker

    def top_disk(self, chain_ids: Sequence[str]) -> str:
        """Path on the datastore of the disk that shows these layers, given lowest first; the scratch disk if none has one.

        Raises:
            NotFoundError: a layer is not there.
            UnsupportedError: the disk of a layer is not on this datastore, only one above that shows more.
        """
        for chain_id in reversed(chain_ids):
            marker = self.read_marker(chain_id)
            if marker.disk is not None:
                return _path(marker.disk.file)
            if marker.covered:
                raise UnsupportedError(
                    f"layer {chain_id}: its own disk is not on this datastore, only merged ones of images that have it",
                    hint="a store whose disks have the form hosted has it",
                )
        return _path(layout.disk_file(layout.SCRATCH))

    def on_machines(self) -> set[str]:
        """Chain ids of the layers whose disks virtual machines of the datastore's platform have, or stand on."""
        directory = f"{layout.DISKS}/"
        names = (path.removeprefix(directory) for path in self._datastore.files_in_use() if path.startswith(directory))
        return {chain_id for name in names if (chain_id := layout.layer_of(name)) is not None}

    def open_chain(self, chain_ids: Sequence[str]) -> Chain:
        """The chain that shows these layers, given lowest first; with none, the scratch disk, which is made if it is not there.

        Raises:
            NotFoundError: a layer or its disk is not there.
            CorruptError: a disk is damaged, or does not fit its parent.
            UnsupportedError: the disk that shows them is not here, or has a form on which no other can stand.
        """
        top = self.top_disk(chain_ids)
        if not chain_ids:
            self.make_scratch()
        return open_chain(self._datastore.open, top)

    def open_view(self, chain_ids: Sequence[str]) -> OpenDisks:
        """As `open_chain`, for those who only read what the layers show: of disks of any form."""
        top = self.top_disk(chain_ids)
        if not chain_ids:
            self.make_scratch()
        return open_disks(self._datastore.open, top)

    def open_child(self, parent: Chain, marker: LayerMarker) -> Chain:
        """The chain with one more layer on ``parent``, which it shares files with; ``parent`` itself when the layer changes nothing.

        Raises:
            CorruptError: the disk is damaged, or does not fit its parent.
        """
        if marker.disk is None:
            return parent
        disk = open_disk(self._datastore.open(_path(marker.disk.file)))
        return Chain([disk]) if disk.parent_cid is None else parent.with_child(disk)

    def read_grain_sums(self, file: ReadableFile, *, merged: bool) -> array[int] | None:
        """The checksums of the grains of a disk, of a layer or the scratch disk, in the order of its file.

        Args:
            file: the disk, open.
            merged: whether it has no parent, though it is a layer's.

        Returns:
            None where another disk has taken the place of this one since it was opened.

        Raises:
            NotFoundError: the layer, or the file of the checksums, is missing.
            CorruptError: the disk or the checksums are not as the marker says.
        """
        chain_id = layout.layer_of(posixpath.basename(file.path))
        if chain_id is None:
            return numbers_from_bytes(self._read_sums(_path(layout.grain_sums_file(layout.SCRATCH))))
        marker = self.read_marker(chain_id)
        settled = self.find(chain_id)
        if settled is None or settled.disk is None:
            raise CorruptError(f"{file.path}: is not whole: it is not as {layout.layer_marker(chain_id)} says")
        record = settled.disk
        if (record.size, record.merged) != (file.size, merged):
            return None
        path = _path(record.grain_sums)
        try:
            sums = self._read_sums(path)
        except NotFoundError:
            if self.read_marker(chain_id) != marker:
                return None
            raise
        if (digest := _digest_of(sums)) != record.grain_sums_digest:
            raise CorruptError(f"{path}: its digest is {digest}, its marker says {record.grain_sums_digest}")
        return numbers_from_bytes(sums)

    def read_layer(self, chain_ids: Sequence[str]) -> Iterator[Bytes]:
        """The uncompressed tar of the last of these layers, given lowest first: the bytes that were unpacked, in pieces of about a MiB.

        They are proved to be those only when the iteration ends without an error. Its size and diff id are in the layer's marker. The
        caller keeps the layers from being collected (``gc.kept``).

        Raises:
            NotFoundError: a layer, its disk or its recipe is not there.
            CorruptError: recipe or disk is damaged; the tar has another digest than the layer's diff id.
        """
        marker = self.read_marker(chain_ids[-1])
        with self.open_view(chain_ids) as chain:
            yield from self.rebuild_layer(chain, marker)

    def rebuild_layer(self, chain: BlockDevice, marker: LayerMarker) -> Iterator[Bytes]:
        """As ``read_layer``, of a layer that ``chain`` has on top."""
        if not 0 <= marker.size <= self.capacity:
            raise CorruptError(
                f"{layout.layer_marker(marker.chain_id)}: a tar of {marker.size} bytes, of a disk of {self.capacity}"
            )
        with self._datastore.open(_path(marker.recipe.file)) as file:
            yield from rebuild_tar(file, chain, size=marker.size, diff_id=marker.diff_id)

    def has_scratch(self) -> bool:
        """Whether the scratch disk is there, and whole as far as `find` looks."""
        return self.scratch_form() is not None

    def scratch_form(self) -> DiskFormat | None:
        """The form of the scratch disk; None where it is not there, or not whole as far as `find` looks."""
        if not self._datastore.exists(_path(layout.grain_sums_file(layout.SCRATCH))):
            return None
        if self._is_whole(_path(layout.disk_file(layout.SCRATCH)), None):
            return DiskFormat.HOSTED
        return disk_forms.scratch_form(self._datastore)

    def mend_scratch(self) -> None:
        """Makes the scratch disk again if there is a part of it: it has no marker that would say so. Only where that is hosted."""
        if any(self._datastore.exists(_path(name)) for name in _SCRATCH_FILES) and not self._has_blank():
            self.make_scratch()

    def make_scratch(self) -> None:
        """Makes the scratch disk unless it is there and whole. Its bytes follow from the capacity alone.

        Raises:
            UnsupportedError: the disks of the store have another form than hosted.
        """
        if self.has_scratch():
            return
        if self._has_blank():
            raise UnsupportedError(
                f"{_path(layout.disk_file(layout.SCRATCH))}: is not whole, and only made again where it came from",
                hint="copy an image here again",
            )
        with held(self._leases, "scratch"):
            if self.has_scratch():
                return
            for name in _SCRATCH_FILES:
                self._remove_file(_path(name))  # damaged
            disk = PreparedDisk.create(self._datastore, layout.SCRATCH, self.capacity, None)
            try:
                format_file_system(disk.device)
                chain = disk.device.chain()
                disk.publish()
                chain.close()
            except BaseException:
                disk.discard()
                raise

    def prepare(self, chain_id: str, parent: Chain) -> PreparedDisk:
        """A new disk over ``parent`` that nobody sees yet, for the layer ``chain_id``."""
        return PreparedDisk.create(self._datastore, layout.hex_of(chain_id), self.capacity, parent)

    def commit(
        self, disk: PreparedDisk, marker: LayerMarker, *, changed: bool, admit: Callable[[], None] = lambda: None
    ) -> LayerRow:
        """Makes a layer visible for good: publishes disk and recipe, then writes the marker.

        After a crash at any instant the layer is there whole, or not at all.

        Args:
            disk: has the layer, and its recipe.
            marker: without its disk.
            changed: False when the layer changes nothing: then of the disk only the recipe is published.
            admit: called when the files of the layer take the space that they need; its error leaves nothing of them.

        Raises:
            NoSpaceError: the datastore is full; the layer is not there.
        """
        self.remove(marker.chain_id)  # what a crash or damage left of an earlier one
        if changed:
            marker = msgspec.structs.replace(marker, disk=disk.publish())
        else:
            disk.publish_recipe()
        return self._show(marker, admit)

    def stage(self, stem: str) -> Staging:
        """For the files of a layer, or of the scratch disk, that come as they are from another store; `adopt` makes them visible."""
        return self._datastore.stage(layout.DISKS, stem)

    def adopt(self, staging: Staging, marker: LayerMarker, *, admit: Callable[[], None] = lambda: None) -> LayerRow:
        """As `commit`, of a layer whose files another store made, and the caller compared with their checksums."""
        self.remove(marker.chain_id)
        staging.publish()
        return self._show(marker, admit)

    def uncover(self, staging: Staging, marker: LayerMarker) -> LayerRow:
        """Gives a layer that is covered a disk, which ``staging`` has alone. After a crash it is covered as before, or has it."""
        self._remove_disk(marker.chain_id)  # what a crash left
        staging.publish()
        marker = self._imported(marker)
        self._write_marker(marker)
        return layer_row(marker)

    def adopt_scratch(self, staging: Staging) -> None:
        """Puts a scratch disk in the place of one that is not whole, or of none. The caller holds the lease ``scratch``."""
        for name in _SCRATCH_FILES:
            self._remove_file(_path(name))
        staging.publish()

    def _show(self, marker: LayerMarker, admit: Callable[[], None]) -> LayerRow:
        try:
            admit()
            marker = self._imported(marker)
        except BaseException:
            self.remove(marker.chain_id)
            raise
        self._write_marker(marker)
        return layer_row(marker)

    def replace(self, marker: LayerMarker, staging: Staging, record: DiskRecord) -> LayerMarker:
        """Puts a disk that shows the same in the place of a layer's. The caller has the lease of the layer.

        After a crash at any instant the one or the other lies there, and the layer is whole; ``settle_all`` removes what is left of
        the other. Who has the old one open reads on in it.

        Args:
            marker: of the layer.
            staging: has the new disk, and before it its checksums.
            record: of the new disk.

        Returns:
            The marker, as it is now.

        Raises:
            NoSpaceError, UnavailableError: the datastore is full, or failed; either disk lies there.
        """
        self._write_marker(msgspec.structs.replace(marker, replacement=record))
        staging.replace()
        return self._settle(marker.chain_id)

    def settle_all(self) -> None:
        """Ends replacements of disks that were cut off, but those that somebody is at."""
        for chain_id in self.chain_ids():
            with contextlib.suppress(NotFoundError, CorruptError):
                if self.read_marker(chain_id).replacement is None:
                    continue
                lease = self._leases.acquire(layer_lease(chain_id))
                if lease is None:
                    continue
                try:
                    self._settle(chain_id)
                finally:
                    lease.release()

    def remove_unfinished(self, chain_id: str) -> None:
        """Removes what is left of a layer that has no marker, unless someone is making it."""
        lease = self._leases.acquire(layer_lease(chain_id))
        if lease is None:
            return
        try:
            if not self._datastore.exists(layout.layer_marker(chain_id)):
                self.remove(chain_id)
        finally:
            lease.release()

    def remove(self, chain_id: str) -> None:
        """Removes the layer: marker first, so that a crash leaves it whole or gone. Not there is fine."""
        self._remove_file(layout.layer_marker(chain_id))
        self._remove_disk(chain_id)
        gone = [_path(name) for name in layout.disk_files(layout.hex_of(chain_id))]
        for path in layout.layer_files(chain_id)[1:]:
            if path not in gone:
                self._remove_file(path)

    def _remove_disk(self, chain_id: str) -> None:
        disk_forms.remove_made_disk(self._datastore, _path(layout.disk_file(layout.hex_of(chain_id))))
        for name in layout.disk_files(layout.hex_of(chain_id)):
            self._remove_file(_path(name))

    def _imported(self, marker: LayerMarker) -> LayerMarker:
        """The marker, when the platform has made the disk, if that is one that it makes."""
        if marker.disk is None or marker.disk.format != DiskFormat.VMFS:
            return marker
        record = disk_forms.import_disk(self._datastore, marker.disk, self.capacity)
        return msgspec.structs.replace(marker, disk=record)

    def _has_blank(self) -> bool:
        return self._datastore.exists(disk_forms.BLANK_PATH)

    def _settle(self, chain_id: str) -> LayerMarker:
        """Writes a marker that names the disk that lies there, and it alone; the caller has the lease of the layer."""
        marker = self.settled(self.read_marker(chain_id))
        if marker is None or marker.disk is None:
            raise CorruptError(f"{layout.layer_marker(chain_id)}: neither the disk that it names nor its replacement lies there")
        stem = layout.hex_of(chain_id)
        for name in {layout.grain_sums_file(stem), layout.merged_sums_file(stem)} - {marker.disk.grain_sums}:
            self._remove_file(_path(name))
        self._write_marker(marker)  # last: it is what tells that there is something left to do
        return marker

    def _write_marker(self, marker: LayerMarker) -> None:
        self._datastore.write_atomic(layout.layer_marker(marker.chain_id), markers.encode(marker))

    def _read_sums(self, path: str) -> bytes:
        sums = self._datastore.read_bytes(path, SUMS_LIMIT)
        if len(sums) % 4:
            raise CorruptError(f"{path}: has {len(sums)} bytes, not a multiple of 4")
        return sums

    def _has_recipe(self, marker: LayerMarker) -> bool:
        try:
            with self._datastore.open(_path(marker.recipe.file)) as file:
                return file.size == marker.recipe.size
        except NotFoundError:
            return False

    def _remove_file(self, path: str) -> None:
        with contextlib.suppress(NotFoundError):
            self._datastore.remove_file(path)

    def _is_whole(self, path: str, record: DiskRecord | None) -> bool:
        """Whether there is a disk, of the store's capacity, and of the size and content id on record, with a parent or without one.

        Of one that has not the form that stores have what `disk_forms.problems` looks at.
        """
        if record is not None and record.format != markers.HOSTED:
            return not any(disk_forms.problems(self._datastore, record, self.capacity))
        try:
            disk = open_disk(self._datastore.open(path))
        except (NotFoundError, CorruptError, UnsupportedError):
            return False
        with contextlib.closing(disk):
            said = None if record is None else (record.size, record.cid, record.merged)
            if said is not None and (disk.file.size, f"{disk.cid:08x}", disk.parent_cid is None) != said:
                return False
            return disk.capacity == self.capacity


class PreparedDisk:
    """A disk that is being written: ``device`` takes its contents; then it is published once, or discarded."""

    def __init__(self, datastore: Datastore, staging: Staging, stem: str, device: SnapshotDevice) -> None:
        self._datastore = datastore
        self._staging = staging
        self._stem = stem
        self._recipe: StagedFile | None = None
        self.device = device

    @classmethod
    def create(cls, datastore: Datastore, stem: str, capacity: int, parent: Chain | None) -> PreparedDisk:
        """An empty one over ``parent``.

        Args:
            stem: the hex digits of the chain id, or ``scratch``; the content id is made from it.
        """
        staging = datastore.stage(layout.DISKS, stem)
        name = layout.disk_file(stem)
        try:
            writer = HostedDiskWriter(
                staging.create(name),
                capacity=capacity,
                cid=derive_cid(stem),
                extent_name=name,
                parent_cid=None if parent is None else parent.cid,
                parent_hint=None if parent is None else posixpath.basename(parent.path),
            )
        except BaseException:
            staging.discard()
            raise
        return cls(datastore, staging, stem, SnapshotDevice(writer, parent))

    def create_recipe(self) -> StagedFile:
        """The file for the recipe of the layer, empty; it is published with the disk. Called once."""
        self._recipe = self._staging.create(layout.recipe_file(self._stem))
        return self._recipe

    def publish_recipe(self) -> None:
        """Moves the recipe alone to its place, durably: the disk has nothing that its parent has not."""
        recipe = self._recipe
        if recipe is None:
            raise ValueError(f"{self._stem}: no recipe was written")
        with self._datastore.stage(layout.DISKS, self._stem) as staging:
            copy = staging.create(layout.recipe_file(self._stem))
            for offset in range(0, recipe.size, _COPY):
                copy.pwrite(offset, recipe.pread(offset, _COPY))
            copy.close()
            staging.publish()
        self.discard()

    def publish(self) -> DiskRecord:
        """Seals the disk and moves it to its place, durably; takes as long as the storage needs to take all of it."""
        summary = self.device.seal()
        sums_name = layout.grain_sums_file(self._stem)
        sums = self._staging.create(sums_name)
        sums.pwrite(0, summary.grain_sums)
        sums.close()
        if self._recipe is not None:
            self._recipe.close()
        self._staging.publish()
        return record_of(layout.disk_file(self._stem), summary, sums_name)

    def discard(self) -> None:
        """Leaves nothing of it. Allowed more than once, but not after ``publish``."""
        self.device.close()
        self._staging.discard()


def layer_lease(chain_id: str) -> str:
    """Name of the lease of who makes a layer."""
    return f"layer-{layout.hex_of(chain_id)}"


def layer_row(marker: LayerMarker) -> LayerRow:
    """What the catalog remembers of a layer."""
    disk = marker.disk
    if disk is None:
        return LayerRow(marker.chain_id, marker.parent, marker.diff_id, None, 0, marker.size)
    return LayerRow(
        marker.chain_id, marker.parent, marker.diff_id, _path(disk.file), disk.grains * GRAIN, marker.size, disk.merged
    )


def record_of(name: str, summary: DiskSummary, sums_name: str, *, merged: bool = False) -> DiskRecord:
    """What a layer's marker says of a disk that was just sealed."""
    digest = _digest_of(summary.grain_sums)
    return DiskRecord(name, summary.file_size, summary.grains, f"{summary.cid:08x}", sums_name, digest, merged)


def _digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _path(file: str) -> str:
    return f"{layout.DISKS}/{file}"
