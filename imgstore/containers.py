"""Containers: made, named, found, removed. Their disks stand on images, and are written by guests.

A container is its disk and its marker, which is written last and removed first, in ``containers/``. The datastore is written before the
catalog, and on removal after it, as for images.
"""

from __future__ import annotations

from imgstore import layout, markers
from imgstore.catalog.catalog import Catalog, ContainerRow
from imgstore.datastores.datastore import Datastore, list_names
from imgstore.errors import CorruptError, NotFoundError


class NoSuchContainerError(NotFoundError):
    """No container has this name or id."""


class Containers:
    """The containers of a store, on its datastore and in its catalog."""

    def __init__(self, datastore: Datastore, catalog: Catalog) -> None:
        self._datastore = datastore
        self._catalog = catalog

    def ids(self) -> list[str]:
        """Ids of the containers that have a marker, whole or not."""
        stems = (name.partition(".") for name in list_names(self._datastore, layout.CONTAINERS))
        return [stem for stem, _, suffix in stems if suffix == "json"]

    def read(self, container_id: str) -> ContainerRow:
        """A container, from what lies on the datastore.

        Raises:
            NotFoundError: its marker or its disk is not there.
            CorruptError: its marker is damaged.
        """
        path = layout.container_marker(container_id)
        data = self._datastore.read_bytes(path, markers.LIMIT)
        marker = markers.decode(markers.ContainerMarker, data, path)
        if marker.id != container_id:
            raise CorruptError(f"{path}: is the marker of container {marker.id}")
        if not self._datastore.exists(layout.container_disk(container_id)):
            raise NotFoundError(f"{layout.container_disk(container_id)}: is missing")
        return row_of(marker, data)


def row_of(marker: markers.ContainerMarker, data: bytes) -> ContainerRow:
    """What the catalog remembers of a container.

    Args:
        data: the marker's file.
    """
    volumes = tuple(dict.fromkeys(mount.volume for mount in marker.mounts))
    return ContainerRow(marker.id, marker.name, marker.created, marker.image_id, marker.chain_id, data, volumes)
