"""Rebuild: the catalog made again from what lies on the datastore."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

from imgstore.catalog.catalog import Catalog, ContainerRow, ImageRow, LayerRow, NameTakenError, ReferenceRow
from imgstore.containers import Containers
from imgstore.disks import Disks, layer_row
from imgstore.errors import ImgstoreError
from imgstore.images import Images


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """What a rebuild found.

    Attributes:
        images: how many are whole.
        containers: how many are.
        disks: how many layers have a disk.
        left_out: what was not taken into the catalog, and why, a sentence each; it stays on the datastore.
    """

    images: int
    disks: int
    containers: int
    left_out: tuple[str, ...]


def rebuild(catalog: Catalog, disks: Disks, images: Images, containers: Containers) -> RebuildReport:
    """Puts into the catalog exactly what lies whole on the datastore.

    A layer counts as whole when its marker is, its disk and its recipe have the length that the marker says, and so for all layers
    below it; an image when all its layers do; a container when the layers that its disk stands on do. One that is not never hides the
    others. Nothing on the datastore is changed.

    Raises:
        UnsupportedError: a newer imgstore wrote a part of it.
    """
    left_out: list[str] = []
    layers = _whole_layers(disks, left_out)
    image_rows: dict[str, ImageRow] = {}
    image_ids = images.ids()
    for image_id, row in zip(image_ids, images.read_all(image_ids), strict=True):
        if isinstance(row, ImgstoreError):
            left_out.append(f"image {image_id}: {row}")
            continue
        missing = next((layer.chain_id for layer in row.layers if layer.chain_id not in layers), None)
        if missing is None:
            image_rows[image_id] = row
        else:
            left_out.append(f"image {image_id}: its layer {missing} is missing or damaged")
    references = _references(images, image_rows, left_out)
    container_rows = _containers(containers, containers.ids(), layers, left_out)
    catalog.replace_all(list(layers.values()), list(image_rows.values()), references, container_rows)
    _catch_up(catalog, containers, container_rows, layers)
    disk_count = sum(layer.disk is not None for layer in layers.values())
    return RebuildReport(len(image_rows), disk_count, len(container_rows), tuple(left_out))


def _whole_layers(disks: Disks, left_out: list[str]) -> dict[str, LayerRow]:
    found = {}
    chain_ids = disks.chain_ids()
    for chain_id, marker in zip(chain_ids, disks.find_all(chain_ids), strict=True):
        if marker is None:
            left_out.append(f"layer {chain_id}: its marker is missing or damaged, or its disk or its recipe has another length")
        else:
            found[chain_id] = layer_row(marker)
    whole = dict(found)
    while lost := [row for row in whole.values() if row.parent is not None and row.parent not in whole]:
        for row in lost:
            left_out.append(f"layer {row.chain_id}: its parent {row.parent} is missing or damaged")
            del whole[row.chain_id]
    return whole


def _containers(
    containers: Containers, ids: Iterable[str], layers: dict[str, LayerRow], left_out: list[str]
) -> list[ContainerRow]:
    rows = []
    names: dict[str, str] = {}
    for container_id in ids:
        try:
            row = containers.read(container_id)
        except ImgstoreError as error:
            left_out.append(f"container {container_id}: {error}")
            continue
        if row.chain_id is not None and row.chain_id not in layers:
            left_out.append(f"container {container_id}: the layer {row.chain_id} below its disk is missing or damaged")
        elif (owner := names.setdefault(row.name, row.id)) != row.id:
            left_out.append(f"name {row.name} of container {row.id}: container {owner} has it; this one is found by its id")
            rows.append(replace(row, name=row.id))
        else:
            rows.append(row)
    return rows


def _catch_up(catalog: Catalog, containers: Containers, rows: list[ContainerRow], layers: dict[str, LayerRow]) -> None:
    """Containers come and go while a rebuild runs: what came or went between its look and the catalog's change."""
    known, there = {row.id for row in rows}, set(containers.ids())
    for container_id in known - there:
        catalog.delete_container(container_id)
    for row in _containers(containers, there - known, layers, []):
        with contextlib.suppress(NameTakenError):  # its maker finds out, and takes it back
            catalog.put_containers([row])


def _references(images: Images, known: dict[str, ImageRow], left_out: list[str]) -> list[ReferenceRow]:
    rows = []
    for row in images.read_references(images.reference_paths()):
        if isinstance(row, ImgstoreError):
            left_out.append(str(row))
        elif row.image_id in known:
            rows.append(row)
        else:
            left_out.append(f"reference {row.name}: its image {row.image_id} is missing or damaged")
    return rows
