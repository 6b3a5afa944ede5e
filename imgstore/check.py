"""Check: whether the catalog, the markers, the disks, their chains and the file systems on them say the same, and are whole."""

from __future__ import annotations

import contextlib
import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from crc32c import crc32c

from imgstore import disk_forms, layout
from imgstore.blocks import GRAIN
from imgstore.catalog.catalog import Catalog, ContainerRow
from imgstore.containers import Containers, marker_of
from imgstore.datastores.datastore import Datastore, StoredFile
from imgstore.disks import SUMS_LIMIT, Disks, layer_row
from imgstore.errors import ImgstoreError, InUseError, NotFoundError
from imgstore.ext4.check import check_file_system
from imgstore.ext4.recovery import recovered
from imgstore.images import Images
from imgstore.live_disks import LiveDisks
from imgstore.markers import HOSTED, DiskRecord, LayerMarker
from imgstore.vmdk.chain import MAX_DEPTH
from imgstore.vmdk.check import check_disk
from imgstore.vmdk.hosted import open_disk
from imgstore.vmdk.stack import open_disks
from imgstore.volume_markers import FoundVolume, disks_of, place_of
from imgstore.volumes import Volumes

_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        object: what it is wrong with: a path on the datastore, or ``catalog``.
        problem: what is wrong, with the numbers.
        offset: byte offset in the object, or None.
    """

    object: str
    problem: str
    offset: int | None = None


def check_store(
    datastore: Datastore,
    catalog: Catalog,
    disks: Disks,
    images: Images,
    containers: Containers,
    live_disks: LiveDisks,
    volumes: Volumes,
    *,
    read_data: bool = False,
) -> Iterator[Finding]:
    """Looks at everything and changes nothing. Disks that a guest has open are left out.

    Args:
        read_data: read every grain too, and compare it with its checksum; make the tar of each layer again, and compare its digest.
    """
    if damage := catalog.damage():
        yield from (Finding("catalog", problem) for problem in damage)
        return  # what it says of the rest means nothing
    yield from _check_layers(datastore, catalog, disks, read_data)
    yield from _check_images(images, catalog)
    yield from _check_references(images, catalog)
    yield from _check_file_systems(catalog, disks)
    yield from _check_containers(datastore, catalog, containers, live_disks)
    yield from _check_volumes(catalog, volumes)


def _check_layers(datastore: Datastore, catalog: Catalog, disks: Disks, read_data: bool) -> Iterator[Finding]:
    rows = {row.chain_id: row for row in catalog.layers()}
    scratch = f"{layout.DISKS}/{layout.disk_file(layout.SCRATCH)}"
    if datastore.exists(scratch):
        yield from _check_scratch(datastore, scratch, read_data)
    elif any(row.disk is not None and not row.merged for row in rows.values()):
        yield Finding(scratch, "the scratch disk is missing: every chain stands on it")
    there = set()
    for chain_id in disks.chain_ids():
        path = layout.layer_marker(chain_id)
        there.add(chain_id)
        try:
            marker = disks.read_marker(chain_id)
            if marker.replacement is not None:  # being replaced now
                marker = disks.settled(marker) or marker
        except ImgstoreError as error:
            known = "; the catalog has this layer" if chain_id in rows else ""
            yield Finding(path, f"{error}{known}")
            continue
        if rows.get(chain_id) != layer_row(marker):
            yield Finding(path, "the catalog says another thing of this layer, or does not know it")
        if marker.parent is not None and not datastore.exists(layout.layer_marker(marker.parent)):
            yield Finding(path, f"its parent layer {marker.parent} is missing")
        if marker.disk is not None:
            if marker.disk.format == HOSTED:
                yield from _check_disk(datastore, marker.disk, read_data)
            else:
                yield from _check_other(datastore, marker.disk, disks.capacity, read_data)
            if marker.disk.merged and marker.disk.format == HOSTED and marker.parent is not None:
                yield from _check_links(disks, marker)
        yield from _check_recipe(datastore, disks, marker, read_data)
    for chain_id in sorted(rows.keys() - there):
        yield Finding("catalog", f"layer {chain_id} is not on the datastore")


def _check_disk(datastore: Datastore, record: DiskRecord, read_data: bool) -> Iterator[Finding]:
    path = f"{layout.DISKS}/{record.file}"
    try:
        with datastore.open(path) as file:
            if file.size != record.size:
                yield Finding(path, f"has {file.size} bytes, its marker says {record.size}")
                return
    except NotFoundError as error:
        yield Finding(path, str(error))
        return
    yield from _check_vmdk(datastore, path)
    yield from _check_parent(datastore, path, record)
    sums_path = f"{layout.DISKS}/{record.grain_sums}"
    try:
        sums = datastore.read_bytes(sums_path, SUMS_LIMIT)
    except ImgstoreError as error:
        yield Finding(sums_path, str(error))
        return
    if (digest := "sha256:" + hashlib.sha256(sums).hexdigest()) != record.grain_sums_digest:
        yield Finding(sums_path, f"its digest is {digest}, its marker says {record.grain_sums_digest}")
    elif read_data:
        yield from _check_grains(datastore, path, sums_path)


def _check_other(datastore: Datastore, record: DiskRecord, capacity: int, read_data: bool) -> Iterator[Finding]:
    """A disk that has not the form hosted."""
    findings = [Finding(path, problem) for path, problem in disk_forms.problems(datastore, record, capacity)]
    yield from findings
    measured = disk_forms.measured_file(record)
    if measured is None or findings or not read_data:
        return
    with datastore.open(measured) as file:
        found = _digest(file)
    if found != record.grain_sums_digest:
        yield Finding(measured, f"its digest is {found}, its marker says {record.grain_sums_digest}")


def _check_scratch(datastore: Datastore, scratch: str, read_data: bool) -> Iterator[Finding]:
    if datastore.exists(disk_forms.BLANK_PATH):
        try:
            open_disks(datastore.open, scratch).close()
        except ImgstoreError as error:
            yield Finding(scratch, str(error))
        return
    yield from _check_vmdk(datastore, scratch)
    if read_data:
        yield from _check_grains(datastore, scratch, f"{layout.DISKS}/{layout.grain_sums_file(layout.SCRATCH)}")


def _check_parent(datastore: Datastore, path: str, record: DiskRecord) -> Iterator[Finding]:
    try:
        with contextlib.closing(open_disk(datastore.open(path))) as disk:
            if (disk.parent_cid is None) != record.merged:
                parent = "no parent" if disk.parent_cid is None else f"the parent {disk.parent_hint}"
                yield Finding(path, f"has {parent}, but its marker says that it {'was' if record.merged else 'was not'} merged")
    except ImgstoreError:
        return  # told already


def _check_links(disks: Disks, merged: LayerMarker) -> Iterator[Finding]:
    """Whether the disks below a merged one fit together: no chain of an image above leads through them."""
    try:
        disks.open_chain(_chain_ids(disks, merged)[:-1]).close()
    except ImgstoreError as error:
        yield Finding(f"chain below {layout.DISKS}/{layout.disk_file(layout.hex_of(merged.chain_id))}", str(error))


def _check_recipe(datastore: Datastore, disks: Disks, marker: LayerMarker, read_data: bool) -> Iterator[Finding]:
    path = f"{layout.DISKS}/{marker.recipe.file}"
    try:
        with datastore.open(path) as file:
            if file.size != marker.recipe.size:
                yield Finding(path, f"has {file.size} bytes, its marker says {marker.recipe.size}")
                return
            found = _digest(file)
        if found != marker.recipe.digest:
            yield Finding(path, f"its digest is {found}, its marker says {marker.recipe.digest}")
        elif read_data and not marker.covered:
            for _ in disks.read_layer(_chain_ids(disks, marker)):
                pass
    except ImgstoreError as error:
        yield Finding(path, str(error))


def _digest(file: StoredFile) -> str:
    digest = hashlib.sha256()
    for offset in range(0, file.size, _PIECE):
        digest.update(file.pread(offset, _PIECE))
    return f"sha256:{digest.hexdigest()}"


def _chain_ids(disks: Disks, marker: LayerMarker) -> list[str]:
    """The layer and all below it, lowest first."""
    chain_ids = [marker.chain_id]
    while marker.parent is not None and len(chain_ids) < MAX_DEPTH:
        marker = disks.read_marker(marker.parent)
        chain_ids.append(marker.chain_id)
    return chain_ids[::-1]


def _check_grains(datastore: Datastore, path: str, sums_path: str) -> Iterator[Finding]:
    """The grains are the end of the file, in the order of their sums."""
    try:
        sums = datastore.read_bytes(sums_path, SUMS_LIMIT)
        with datastore.open(path) as file:
            first = file.size - len(sums) // 4 * GRAIN
            for number, (wanted,) in enumerate(struct.iter_unpack("<I", sums[: len(sums) // 4 * 4])):
                offset = first + number * GRAIN
                found = crc32c(file.pread(offset, GRAIN)) if offset >= 0 else 0
                if found != wanted:
                    yield Finding(path, f"grain has CRC-32C {found:08x}, not {wanted:08x}", offset)
    except ImgstoreError as error:
        yield Finding(path, str(error))


def _check_vmdk(datastore: Datastore, path: str) -> Iterator[Finding]:
    try:
        with datastore.open(path) as file:
            for finding in check_disk(file):
                yield Finding(path, finding.problem, finding.offset)
    except ImgstoreError as error:
        yield Finding(path, str(error))


def _check_images(images: Images, catalog: Catalog) -> Iterator[Finding]:
    rows = {row.id: row for row in catalog.images()}
    layers = {row.chain_id for row in catalog.layers()}
    there = set()
    for image_id in images.ids():
        directory = layout.image_directory(image_id)
        there.add(image_id)
        try:
            row = images.read(image_id)
        except ImgstoreError as error:
            yield Finding(directory, str(error))
            continue
        if rows.get(image_id) != row:
            yield Finding(directory, "the catalog says another thing of this image, or does not know it")
        for layer in row.layers:
            if layer.chain_id not in layers:
                yield Finding(directory, f"its layer {layer.chain_id} is missing")
    for image_id in sorted(rows.keys() - there):
        yield Finding("catalog", f"image {image_id} is not on the datastore")


def _check_references(images: Images, catalog: Catalog) -> Iterator[Finding]:
    rows = {layout.reference_file(row.name): row for row in catalog.references()}
    known = {row.id for row in catalog.images()}
    there = set()
    for path in images.reference_paths():
        there.add(path)
        try:
            row = images.read_reference(path)
        except ImgstoreError as error:
            yield Finding(path, str(error))
            continue
        if rows.get(path) != row:
            yield Finding(path, f"the catalog says another thing of {row.name}, or does not know it")
        if row.image_id not in known:
            yield Finding(path, f"{row.name} names image {row.image_id}, which is missing")
    for path in sorted(rows.keys() - there):
        yield Finding("catalog", f"reference {rows[path].name} is not on the datastore")


def _check_file_systems(catalog: Catalog, disks: Disks) -> Iterator[Finding]:
    """The file system that each image shows; those of the layers below were such once."""
    seen = set()
    for image in catalog.images():
        chain_ids = [layer.chain_id for layer in image.layers]
        try:
            top = disks.top_disk(chain_ids)
            if top in seen:
                continue
            seen.add(top)
            with disks.open_view(chain_ids) as chain:
                for finding in check_file_system(chain):
                    yield Finding(f"file system of {top}", f"{finding.object}: {finding.problem}", finding.offset)
        except ImgstoreError as error:
            yield Finding(layout.image_directory(image.id), str(error))


def _check_containers(datastore: Datastore, catalog: Catalog, containers: Containers, live_disks: LiveDisks) -> Iterator[Finding]:
    rows = {row.id: row for row in catalog.containers()}
    there = set(containers.ids())
    for container_id in sorted(there):
        path = layout.container_marker(container_id)
        try:
            row = containers.read(container_id)
        except ImgstoreError as error:
            yield Finding(path, str(error))
            continue
        if rows.get(container_id) != row:
            yield Finding(path, "the catalog says another thing of this container, or does not know it")
        if not datastore.platform_disks:
            yield from _check_container_disk(live_disks, row)
    for container_id in sorted(rows.keys() - there):
        yield Finding("catalog", f"container {container_id} is not on the datastore")
    for path in containers.unfinished() or ():
        yield Finding(path, "no container has this disk")


def _check_container_disk(live_disks: LiveDisks, row: ContainerRow) -> Iterator[Finding]:
    """The disk, its chain, and the file system that it shows, unless that is the image's."""
    path = layout.container_disk(row.id)
    capacity = marker_of(row).capacity
    try:
        with live_disks.read(path) as chain:
            if chain.size != capacity:
                yield Finding(path, f"has a capacity of {chain.size} bytes, its marker says {capacity}")
            for finding in check_disk(chain.files[-1], sealed=False):
                yield Finding(path, finding.problem, finding.offset)
            if next(chain.own_ranges(), None) is not None:
                for problem in check_file_system(recovered(chain)):
                    yield Finding(f"file system of {path}", f"{problem.object}: {problem.problem}", problem.offset)
    except InUseError:
        return
    except ImgstoreError as error:
        yield Finding(path, str(error))


def _check_volumes(catalog: Catalog, volumes: Volumes) -> Iterator[Finding]:
    found, problems = volumes.read_all()
    yield from (Finding(*problem) for problem in problems)
    stores: dict[str, str] = {}
    seen: set[str] = set()
    for volume in found:
        marker, name = volume.marker, volume.marker.name
        path = place_of(volume.store, layout.volume_marker(name))
        if (other := stores.setdefault(name, volume.store.name)) != volume.store.name:
            yield Finding(path, f"volume store {other} has a volume {name} too, which hides this one")
        for disk in sorted(disks_of(marker)):
            yield from _check_volume_disk(volume, disk, marker.capacity if disk == marker.disk else None, seen)
    for name, users in catalog.volume_users().items():
        if name not in stores:
            yield from (Finding(layout.container_marker(user), f"its volume {name} is not there") for user in users)
    for path in volumes.leftovers():
        yield Finding(path, "no volume needs this disk")


def _check_volume_disk(volume: FoundVolume, disk: str, capacity: int | None, seen: set[str]) -> Iterator[Finding]:
    """The disk, those that it stands on, and the file system that it shows.

    Args:
        capacity: that it must have, or None.
        seen: disks that were looked at; what is looked at is added.
    """
    path = layout.volume_disk(disk)
    place = place_of(volume.store, path)
    try:
        with volume.store.disks.read(disk) as chain:
            if capacity is not None and chain.size != capacity:
                yield Finding(place, f"has a capacity of {chain.size} bytes, its marker says {capacity}")
            for file in chain.files:
                shown = place_of(volume.store, file.path)
                if shown not in seen:
                    seen.add(shown)
                    yield from (Finding(shown, wrong.problem, wrong.offset) for wrong in check_disk(file, sealed=False))
            for problem in check_file_system(recovered(chain)):
                yield Finding(f"file system of {place}", f"{problem.object}: {problem.problem}", problem.offset)
    except InUseError:
        return
    except ImgstoreError as error:
        yield Finding(place, str(error))
