"""Containers: made, named, found, removed. Their disks stand on images, and are written by guests.

A container is its disk and its marker, which is written last and removed first, in ``containers/``. Between two that want one name the
catalog decides, in one transaction; it never says that a container is there that has no marker.

Source: moby ``daemon/container.go`` (GetContainer), ``daemon/names.go``, ``daemon/rename.go``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import msgspec

from imgstore import layout, markers
from imgstore.answers import Container, Mount
from imgstore.catalog.catalog import Catalog, ContainerRow, NameTakenError
from imgstore.container_names import check_container_name
from imgstore.datastores.datastore import Datastore, list_names
from imgstore.errors import CorruptError, ImgstoreError, InUseError, InvalidError, NotFoundError
from imgstore.leases import Leases, held
from imgstore.live_disks import LiveDisks

CREATING = "containers"
"""Lease that all share who make containers; who looks for what others left half made wants it alone."""

_UNFINISHED = "containers-unfinished"
"""Lease that is abandoned to have the next start look again."""

_HEXADECIMAL = frozenset("0123456789abcdef")


class NoSuchContainerError(NotFoundError):
    """No container has this name or id."""


class Containers:
    """The containers of a store, on its datastore and in its catalog."""

    def __init__(self, datastore: Datastore, catalog: Catalog, live_disks: LiveDisks, leases: Leases) -> None:
        self._datastore = datastore
        self._catalog = catalog
        self._live_disks = live_disks
        self._leases = leases
        self._by_platform = datastore.platform_disks
        self._root = datastore.prefix

    def commit(self, new: Sequence[markers.ContainerMarker]) -> list[ContainerRow]:
        """Makes containers visible whose disks are there; all of them, or, if a name is taken, none.

        After a crash each of them is there or not. The caller holds ``CREATING``.

        Raises:
            NameTakenError: another container has one of the names.
        """
        rows = [row_of(marker, markers.encode(marker)) for marker in new]
        if len(rows) == 1:
            self._datastore.write_atomic(layout.container_marker(rows[0].id), rows[0].marker)
        else:
            prefix = len(layout.CONTAINERS) + 1
            self._datastore.write_many(
                layout.CONTAINERS, [(layout.container_marker(row.id)[prefix:], row.marker) for row in rows]
            )
        try:
            self._catalog.put_containers(rows)
        except BaseException:
            for row in rows:
                self._remove_marker(row.id)
                self._catalog.delete_container(row.id)  # a rebuild may have found the marker meanwhile
            raise
        return rows

    def check_names(self, names: Sequence[str]) -> None:
        """Raises NameTakenError if a container has one of the names."""
        for name, owner in self._catalog.name_owners(names).items():
            raise NameTakenError(name, owner)

    def find(self, text: str) -> ContainerRow:
        """The container that ``text`` names: its id, its name with or without a slash, or the unambiguous start of its id.

        Raises:
            NoSuchContainerError: there is none.
            InvalidError: several ids start so, or it is empty.
        """
        if not text:
            raise InvalidError('invalid name or ID supplied: ""')
        row = None
        if text.isascii():  # else it is none, and may be nothing that can be looked for
            row = self._catalog.container(text) or self._catalog.container_named(text.removeprefix("/")) or self._by_prefix(text)
        if row is None:
            raise NoSuchContainerError(f"No such container: {text}", hint="imgstore container ls lists those that are there")
        return row

    @contextlib.contextmanager
    def held(self, text: str) -> Iterator[ContainerRow]:
        """The container, found as `find` does; inside the block nobody else renames, removes or writes it.

        If the block fails on the way, or its process dies, the next start looks what there is.
        """
        container_id = self.find(text).id
        with held(self._leases, container_lease(container_id)):
            yield self.find(container_id)

    def rename(self, text: str, new: str) -> ContainerRow:
        """Gives the container another name. After a crash it has the one or the other.

        Raises:
            NoSuchContainerError: there is none.
            InvalidError: it has the name, or no container can have it.
            NameTakenError: another container has the name.
        """
        if not text or not new:
            raise InvalidError("Neither old nor new names may be empty")
        with self.held(text) as row:
            if row.name == new.removeprefix("/"):
                raise InvalidError("Renaming a container with the same name as its current name")
            name = check_container_name(new)
            self.check_names([name])
            data = markers.encode(msgspec.structs.replace(marker_of(row), name=name))
            self._datastore.write_atomic(layout.container_marker(row.id), data)
            renamed = replace(row, name=name, marker=data)
            try:
                self._catalog.put_containers([renamed])
            except NameTakenError:
                self._datastore.write_atomic(layout.container_marker(row.id), row.marker)
                raise
        return renamed

    def disk(self, container_id: str) -> str:
        """Path of the disk of a container."""
        if self._by_platform:
            return layout.platform_disk(layout.CONTAINERS, container_id)
        return layout.container_disk(container_id)

    def remove(self, text: str) -> ContainerRow:
        """Removes the container: marker, catalog, disk. A crash leaves it whole, or gone but for its disk, which the next start removes.

        Where the platform makes the disks, that goes first: a crash leaves a container whose disk was not made yet.

        Raises:
            NoSuchContainerError: there is none.
            InUseError: a guest has its disk open; nothing was removed.
        """
        with self.held(text) as row, contextlib.ExitStack() as stack:
            with contextlib.suppress(NotFoundError):  # a container that lost its disk can be removed all the same
                try:
                    stack.enter_context(self._removing_disk(row.id))
                except InUseError as error:
                    raise InUseError(f"container {row.name}: {error}", hint=error.hint) from error
            self._remove_marker(row.id)
            self._catalog.delete_container(row.id)
        return row

    def ids(self) -> list[str]:
        """Ids of the containers that have a marker, whole or not."""
        return [stem for stem, suffix in self._files() if suffix == "json"]

    def unfinished(self) -> list[str] | None:
        """Paths of disks that have no marker; None while someone is making containers, who has such for a moment."""
        lease = self._leases.acquire(CREATING)
        if lease is None:
            return None
        try:
            files = self._files()
        finally:
            lease.release()
        whole = {stem for stem, suffix in files if suffix == "json"}
        return [layout.container_disk(stem) for stem, suffix in files if suffix == "vmdk" and stem not in whole]

    def remove_unfinished(self) -> None:
        """Removes disks that have no marker, unless someone is making containers; then the next start looks again."""
        paths = self.unfinished()
        if paths is None:
            lease = self._leases.acquire(_UNFINISHED)
            if lease is not None:
                lease.abandon()
        for path in paths or ():
            with contextlib.suppress(InUseError, NotFoundError):  # a guest that outlives its container ends some day
                self._live_disks.remove(path)

    def finish_edits(self) -> None:
        """Ends the changes to disks that a crash cut off while they were committed; a guest must not see such a disk."""
        for stem, suffix in self._files():
            if suffix == "intent":
                with contextlib.suppress(ImgstoreError):  # in use, then not for long; or damaged, as a check says
                    self._live_disks.recover(layout.container_disk(stem))

    def read(self, container_id: str) -> ContainerRow:
        """A container, from what lies on the datastore.

        Raises:
            NotFoundError: its marker or its disk is not there; one that the platform makes may come later.
            CorruptError: its marker is damaged.
        """
        path = layout.container_marker(container_id)
        data = self._datastore.read_bytes(path, markers.LIMIT)
        marker = markers.decode(markers.ContainerMarker, data, path)
        if marker.id != container_id:
            raise CorruptError(f"{path}: is the marker of container {marker.id}")
        if not self._by_platform and not self._datastore.exists(layout.container_disk(container_id)):
            raise NotFoundError(f"{layout.container_disk(container_id)}: is missing")
        return row_of(marker, data)

    def answer(self, row: ContainerRow, size: int | None = None) -> Container:
        """A container as users see it.

        Args:
            size: bytes that its disk takes on the datastore; None: to be measured.
        """
        marker = marker_of(row)
        path = self.disk(row.id)
        return Container(
            id=row.id,
            name=row.name,
            created=parse_created(row.created),
            image=marker.image,
            image_id=row.image_id,
            platform=marker.platform,
            capacity=marker.capacity,
            read_only=marker.read_only,
            mounts=tuple(Mount(mount.volume, mount.destination, mount.read_only) for mount in marker.mounts),
            config=marker.config,
            host_config=marker.host_config,
            labels=marker.config.get("Labels") or {},
            disk=self._root + path,
            size_rw=self._measure(path) if size is None else size,
        )

    def answers(self) -> list[Container]:
        """All containers, newest first."""
        sizes = self._datastore.usages(layout.CONTAINERS)
        return [self.answer(row, sizes.get(layout.disk_file(row.id), 0)) for row in self._catalog.containers()]

    def _files(self) -> list[tuple[str, str]]:
        """Of each file in the directory what stands before the first dot, and behind it."""
        split = (name.partition(".") for name in list_names(self._datastore, layout.CONTAINERS))
        return [(stem, suffix) for stem, _, suffix in split]

    def _by_prefix(self, text: str) -> ContainerRow | None:
        if not set(text) <= _HEXADECIMAL:
            return None
        ids = self._catalog.container_ids(text)
        if len(ids) > 1:
            raise InvalidError(f"Multiple IDs found with provided prefix: {text}", hint="give more of its digits")
        return self._catalog.container(ids[0]) if ids else None

    def _removing_disk(self, container_id: str) -> contextlib.AbstractContextManager[None]:
        if not self._by_platform:
            return self._live_disks.removing(layout.container_disk(container_id))
        self._datastore.remove_platform_disk(self.disk(container_id))
        return contextlib.nullcontext()

    def _remove_marker(self, container_id: str) -> None:
        with contextlib.suppress(NotFoundError):
            self._datastore.remove_file(layout.container_marker(container_id))

    def _measure(self, path: str) -> int:
        try:
            return self._datastore.usage(path)
        except NotFoundError:
            return 0


def container_lease(container_id: str) -> str:
    """Name of the lease of who changes a container, or its disk; who reads its files shares it."""
    return f"container-{container_id}"


def row_of(marker: markers.ContainerMarker, data: bytes) -> ContainerRow:
    """What the catalog remembers of a container.

    Args:
        data: the marker's file.
    """
    volumes = tuple(sorted({mount.volume for mount in marker.mounts}))
    return ContainerRow(marker.id, marker.name, marker.created, marker.image_id, marker.chain_id, data, volumes)


def marker_of(row: ContainerRow) -> markers.ContainerMarker:
    """The marker of a container that the catalog remembers."""
    return markers.decode(markers.ContainerMarker, row.marker, f"container {row.id} in the catalog")


def parse_created(text: str) -> datetime:
    """The time in a marker; what is below a microsecond is cut off."""
    try:
        return datetime.fromisoformat(text[:26]).replace(tzinfo=UTC)
    except ValueError as error:
        raise CorruptError(f"a container's marker: created is {text[:40]!r}") from error
