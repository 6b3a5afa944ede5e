"""Listing: what the catalog knows, as answers, with the sizes that the datastore measures."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from imgstore import layout
from imgstore.answers import Image, ImageUsage, Layer, Removal
from imgstore.catalog.catalog import Catalog, ImageLayerRow, ImageRow, LayerRow, ReferenceRow
from imgstore.datastores.datastore import Datastore
from imgstore.errors import CorruptError, NotFoundError
from imgstore.images import Removed, familiar
from registry_client.image_config import parse_time
from registry_client.platform import Platform


class _Run(msgspec.Struct):
    labels: Any = msgspec.field(default=None, name="Labels")


class _Head(msgspec.Struct):
    """The fields of a configuration that a list shows; it was checked when the image was committed."""

    os: str
    architecture: str
    variant: str | None = None
    created: Any = None
    config: _Run | None = None


_decode_head = msgspec.json.Decoder(_Head).decode
_platform = functools.lru_cache(maxsize=256)(Platform.of)


class Listing:
    """Reads a store's catalog and datastore; changes nothing."""

    def __init__(self, datastore: Datastore, catalog: Catalog) -> None:
        self._datastore = datastore
        self._catalog = catalog
        self._root = datastore.prefix
        self._scratch = f"{self._root}{layout.DISKS}/{layout.disk_file(layout.SCRATCH)}"

    def images(self) -> list[Image]:
        """All images, newest first, as they were at one moment."""
        contents = self._catalog.contents()
        sizes = self.layer_sizes()
        layers = {row.chain_id: row for row in contents.layers}
        names: dict[str, list[ReferenceRow]] = {}
        for reference in contents.references:
            names.setdefault(reference.image_id, []).append(reference)
        images = [
            self._image(row, names.get(row.id, ()), layers.get, sizes.__getitem__, contents.containers.get(row.id, 0))
            for row in contents.images
        ]
        return sorted(images, key=lambda image: (image.created is not None and image.created.timestamp(), image.id), reverse=True)

    def image(self, row: ImageRow) -> Image:
        """One image."""
        containers = self._catalog.count_containers_of(row.id)
        return self._image(row, self._catalog.references(row.id), self._catalog.layer, self._measure, containers)

    def layer_sizes(self) -> Counter[str]:
        """Bytes that each layer takes on the datastore, its disk and all files beside it, by chain id; those without a marker too."""
        sizes: Counter[str] = Counter()
        for name, size in self._datastore.usages(layout.DISKS).items():
            chain_id = layout.layer_of(name)
            if chain_id is not None:
                sizes[chain_id] += size
        return sizes

    def usages(self, sizes: Counter[str]) -> tuple[ImageUsage, ...]:
        """What each image takes, by id.

        Args:
            sizes: as `layer_sizes` gave them.
        """
        contents = self._catalog.contents()
        layers = {row.id: {layer.chain_id for layer in row.layers} for row in contents.images}
        users = Counter(chain_id for mine in layers.values() for chain_id in mine)
        tags: dict[str, list[str]] = {}
        for reference in contents.references:
            if "@" not in reference.name:
                tags.setdefault(reference.image_id, []).append(familiar(reference.name))
        usages = []
        for image_id, mine in layers.items():
            size = sum(sizes[chain_id] for chain_id in mine)
            unique = sum(sizes[chain_id] for chain_id in mine if users[chain_id] == 1)
            usages.append(ImageUsage(image_id, tuple(tags.get(image_id, ())), size, size - unique, unique))
        return tuple(usages)

    def _measure(self, chain_id: str) -> int:
        total = 0
        for path in layout.layer_files(chain_id):
            try:
                total += self._datastore.usage(path)
            except NotFoundError:  # no layer has all of them, and it may be gone by now
                continue
        return total

    def _image(
        self,
        row: ImageRow,
        references: Sequence[ReferenceRow],
        find_layer: Callable[[str], LayerRow | None],
        size_of: Callable[[str], int],
        containers: int,
    ) -> Image:
        try:
            head = _decode_head(row.config)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CorruptError(f"image {row.id}: its config in the catalog is damaged: {error}") from error
        platform = _platform(head.os, head.architecture, head.variant or "")
        rows = [find_layer(layer.chain_id) for layer in row.layers]
        layers = tuple(self._layer(layer, found, size_of) for layer, found in zip(row.layers, rows, strict=True))
        names = [familiar(reference.name) for reference in references]
        tagged = max((reference.tagged for reference in references if reference.tagged is not None), default=None)
        return Image(
            id=row.id,
            references=tuple(name for name in names if "@" not in name),
            digests=tuple(name for name in names if "@" in name),
            created=parse_time(head.created) if isinstance(head.created, str) else None,
            os=platform.os,
            architecture=platform.architecture,
            variant=platform.variant,
            size=sum({layer.chain_id: layer.size for layer in layers}.values()),
            layers=layers,
            disks=self._chain(rows),
            labels=_labels(head.config),
            parent=row.parent,
            tagged=None if tagged is None else parse_time(tagged),
            manifest_digest=row.manifest_digest,
            manifest_bytes=row.manifest,
            config_bytes=row.config,
            containers=containers,
        )

    def _chain(self, rows: Sequence[LayerRow | None]) -> tuple[str, ...]:
        """The disks that show these layers, given lowest first."""
        disks = [self._scratch]
        for row in rows:
            if row is not None and row.disk is not None:
                if row.merged:
                    disks.clear()
                disks.append(self._root + row.disk)
        return tuple(disks)

    def _layer(self, layer: ImageLayerRow, row: LayerRow | None, size_of: Callable[[str], int]) -> Layer:
        disk = None if row is None or row.disk is None else self._root + row.disk
        return Layer(layer.chain_id, layer.diff_id, layer.digest, disk, 0 if row is None else size_of(layer.chain_id))


def removal_of(removed: Removed, image: Image, layers: Sequence[str]) -> Removal:
    """The answer to a removal of ``image`` and then of ``layers``."""
    untagged = tuple(familiar(name) for name in removed.names)
    return Removal(untagged, (*removed.image_ids, *layers), len(removed.image_ids), image, removed.by_name)


def _labels(run: _Run | None) -> Mapping[str, str]:
    """Whatever an image says they are: only what can be a label is one."""
    labels = None if run is None else run.labels
    if not isinstance(labels, dict):
        return {}
    return {name: value for name, value in labels.items() if isinstance(value, str)}
