"""Catalog: remembers layers, images, references and containers, so that a question costs one query and not a walk over the datastore.

The truth is on the datastore; the catalog can be deleted at any time and is filled again by ``imgstore rebuild``, or by itself when the
file is missing or of another version. Several processes may use one catalog file: SQLite's write-ahead log and its lock order them.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Select,
    Table,
    bindparam,
    create_engine,
    delete,
    event,
    exists,
    func,
    insert,
    or_,
    select,
)
from sqlalchemy.dialects.sqlite import Insert
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import StaticPool

from imgstore.catalog import tables
from imgstore.errors import AlreadyExistsError, CorruptError, DeniedError, ImgstoreError, NoSpaceError, UnavailableError

_BUSY_SECONDS = 30  # longer than any transaction of ours; then the holder hangs and we say so


@dataclass(frozen=True, slots=True)
class LayerRow:
    """A committed layer.

    Attributes:
        chain_id: identifies the layer with all below it.
        parent: chain id of the layer below, or None for the lowest.
        diff_id: digest of the layer's inflated tar.
        disk: path of its disk on the datastore, or None when the layer changes nothing.
        disk_size: bytes of the grains in its disk, 0 without one.
        size: bytes of the inflated tar.
        merged: whether the disk has no parent, because it shows all below it too.
    """

    chain_id: str
    parent: str | None
    diff_id: str
    disk: str | None
    disk_size: int
    size: int
    merged: bool = False


@dataclass(frozen=True, slots=True)
class ImageLayerRow:
    """A layer as one image names it: the digest of the compressed blob differs between images that share a chain id."""

    chain_id: str
    diff_id: str
    digest: str | None
    media_type: str


@dataclass(frozen=True, slots=True)
class ImageRow:
    """A committed image; ``manifest`` and ``config`` are the raw bytes that the digests cover.

    Attributes:
        parent: id of the image that it was made from here, None for one that came as it is; that one may be gone.
    """

    id: str
    manifest_digest: str | None
    manifest: bytes
    config: bytes
    layers: tuple[ImageLayerRow, ...]
    parent: str | None = None


@dataclass(frozen=True, slots=True)
class ReferenceRow:
    """A name of an image.

    Attributes:
        name: canonical, ``docker.io/library/alpine:3.10`` or ``docker.io/library/alpine@sha256:…``.
        digest: what the registry served under the name: an index or a manifest; None when no registry was asked.
        tagged: when the image was given the name by hand (RFC 3339, UTC), None where a registry or an archive gave it.
    """

    name: str
    image_id: str
    digest: str | None
    tagged: str | None = None


@dataclass(frozen=True, slots=True)
class ContainerRow:
    """A container.

    Attributes:
        name: without a leading slash; no two containers have the same.
        created: RFC 3339, UTC, with nanoseconds.
        chain_id: of the top layer that its disk stands on, or None.
        marker: the file that makes it exist, as it lies on the datastore.
        volumes: names of those that it has.
    """

    id: str
    name: str
    created: str
    image_id: str
    chain_id: str | None
    marker: bytes
    volumes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Contents:
    """All that a catalog knew of images at one moment: layers and images by id, references by name.

    Attributes:
        containers: how many each image has, by its id.
    """

    layers: list[LayerRow]
    images: list[ImageRow]
    references: list[ReferenceRow]
    containers: dict[str, int]


class NameTakenError(AlreadyExistsError):
    """Another container has the name."""

    def __init__(self, name: str, owner: str) -> None:
        super().__init__(
            f'Conflict. The container name "/{name}" is already in use by container "{owner}". '
            "You have to remove (or rename) that container to be able to reuse that name."
        )


class Catalog:
    """The four kinds of rows, by key. Every method is one transaction.

    Args:
        path: the SQLite file, or None for one in memory.

    Raises:
        UnavailableError: the file cannot be opened, or stays locked.
        CorruptError: the file is no SQLite database, or a damaged one.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._name = str(path) if path else "catalog in memory"
        self._turn: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if path is None:
            self._turn = threading.RLock()  # a database in memory has one connection, which all threads share
            self._engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
        else:
            self._engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": _BUSY_SECONDS})
        _configure(self._engine, in_file=path is not None)

    def is_current(self) -> bool:
        """Whether the tables are there, in this program's version."""
        with self._transaction() as connection:
            return bool(connection.exec_driver_sql("PRAGMA user_version").scalar_one() == tables.SCHEMA_VERSION)

    def replace_all(
        self,
        layers: Sequence[LayerRow],
        images: Sequence[ImageRow],
        references: Sequence[ReferenceRow],
        containers: Sequence[ContainerRow],
    ) -> None:
        """Puts exactly these rows in the place of all there were, tables included; all or nothing."""
        with self._transaction() as connection:
            for table in _existing_tables(connection):
                connection.exec_driver_sql(f'DROP TABLE "{table}"')
            tables.metadata.create_all(connection)
            for layer in layers:
                _put_layer(connection, layer)
            for image in images:
                _put_image(connection, image)
            for reference in references:
                _put_reference(connection, reference)
            _put_containers(connection, containers)
            connection.exec_driver_sql(f"PRAGMA user_version = {tables.SCHEMA_VERSION}")

    def discard(self) -> None:
        """Removes the file, whatever is in it: the next call begins with an empty one, which `is_current` says of it."""
        self._engine.dispose()
        if self._path is not None:
            try:
                for suffix in ("", "-wal", "-shm"):
                    Path(f"{self._path}{suffix}").unlink(missing_ok=True)
            except OSError as error:
                raise UnavailableError(f"{error.filename}: cannot be removed: {error.strerror}") from error

    def damage(self) -> list[str]:
        """What SQLite finds wrong with the file, a sentence each."""
        try:
            with self._transaction() as connection:
                said = [str(words) for words in connection.exec_driver_sql("PRAGMA integrity_check(10)").scalars()]
        except CorruptError as error:
            return [str(error)]
        return [] if said == ["ok"] else said

    def layer(self, chain_id: str) -> LayerRow | None:
        """The layer, or None."""
        return next(iter(self._layers(select(tables.layers).where(tables.layers.c.chain_id == chain_id))), None)

    def layers(self) -> list[LayerRow]:
        """All layers, by chain id."""
        return self._layers(select(tables.layers).order_by(tables.layers.c.chain_id))

    def put_layer(self, layer: LayerRow) -> None:
        """Adds the layer, or replaces what is known of it."""
        with self._transaction() as connection:
            _put_layer(connection, layer)

    def delete_layer(self, chain_id: str) -> None:
        """Forgets the layer; unknown ones are ignored."""
        with self._transaction() as connection:
            connection.execute(delete(tables.layers).where(tables.layers.c.chain_id == chain_id))

    def unused_layers(self) -> list[str]:
        """Chain ids of the layers that no image has, and no layer and no container stands on."""
        layers, children = tables.layers, tables.layers.alias()
        is_used = _has_user(layers.c.chain_id)
        is_parent = exists().where(children.c.parent == layers.c.chain_id)
        with self._transaction() as connection:
            query = select(layers.c.chain_id).where(~is_used, ~is_parent).order_by(layers.c.chain_id)
            return list(connection.execute(query).scalars())

    def is_used(self, chain_id: str) -> bool:
        """Whether an image has the layer, or a container stands on it."""
        with self._transaction() as connection:
            return bool(connection.execute(select(_has_user(chain_id))).scalar_one())

    def contents(self) -> Contents:
        """Everything, as it was at one moment; those who write do not wait for it."""
        with self._transaction(reading=True) as connection:
            layers = connection.execute(_select(tables.layers, LayerRow).order_by(tables.layers.c.chain_id))
            references = connection.execute(_select(tables.references, ReferenceRow).order_by(tables.references.c.name))
            return Contents(
                layers=[LayerRow(*row) for row in layers.all()],
                images=_images(connection),
                references=[ReferenceRow(*row) for row in references.all()],
                containers=_container_counts(connection),
            )

    def counts(self) -> tuple[int, int, int]:
        """How many images there are, how many layers, and how many of these several images have."""
        users = func.count(tables.image_layers.c.image_id.distinct())
        shared = select(tables.image_layers.c.chain_id).group_by(tables.image_layers.c.chain_id).having(users > 1)
        with self._transaction() as connection:
            images, layers, several = (
                connection.execute(select(func.count()).select_from(table)).scalar_one()
                for table in (tables.images, tables.layers, shared.subquery())
            )
        return images, layers, several

    def image(self, image_id: str) -> ImageRow | None:
        """The image, or None."""
        with self._transaction() as connection:
            return next(iter(_images(connection, image_id)), None)

    def images(self) -> list[ImageRow]:
        """All images, by id."""
        with self._transaction() as connection:
            return _images(connection)

    def children(self, image_id: str) -> list[str]:
        """Ids of the images that were made from this one."""
        with self._transaction() as connection:
            return list(connection.execute(select(tables.images.c.id).where(tables.images.c.parent == image_id)).scalars())

    def image_ids(self, prefix: str, limit: int = 2) -> list[str]:
        """At most ``limit`` ids of images that begin with ``prefix``; it holds no wildcard."""
        with self._transaction() as connection:
            query = select(tables.images.c.id).where(tables.images.c.id.startswith(prefix, autoescape=True)).limit(limit)
            return list(connection.execute(query).scalars())

    def put_image(self, image: ImageRow, references: Sequence[ReferenceRow]) -> None:
        """Adds the image with its references, or replaces what is known of them."""
        with self._transaction() as connection:
            _put_image(connection, image)
            for reference in references:
                _put_reference(connection, reference)

    def names_with_blob(self, chain_id: str, digest: str, prefix: str, limit: int) -> list[str]:
        """At most ``limit`` names beginning with ``prefix`` that a registry was asked for, of images that have this blob of the layer."""
        layers, references = tables.image_layers, tables.references
        query = (
            select(references.c.name)
            .distinct()
            .join(layers, layers.c.image_id == references.c.image_id)
            .where(layers.c.chain_id == chain_id, layers.c.digest == digest, references.c.digest.is_not(None))
            .where(references.c.name.startswith(prefix, autoescape=True))
            .limit(limit)
        )
        with self._transaction() as connection:
            return list(connection.execute(query).scalars())

    def delete_image(self, image_id: str) -> None:
        """Forgets the image and its references; its layers stay."""
        with self._transaction() as connection:
            connection.execute(delete(tables.images).where(tables.images.c.id == image_id))

    def reference(self, name: str) -> ReferenceRow | None:
        """The reference, or None."""
        return next(iter(self._references(select(tables.references).where(tables.references.c.name == name))), None)

    def references(self, image_id: str | None = None) -> list[ReferenceRow]:
        """The references of one image, or of all, by name."""
        query = select(tables.references).order_by(tables.references.c.name)
        return self._references(query if image_id is None else query.where(tables.references.c.image_id == image_id))

    def put_reference(self, reference: ReferenceRow) -> None:
        """Adds the name, or lets it name another image."""
        with self._transaction() as connection:
            _put_reference(connection, reference)

    def delete_reference(self, name: str) -> None:
        """Forgets the name; unknown ones are ignored."""
        with self._transaction() as connection:
            connection.execute(delete(tables.references).where(tables.references.c.name == name))

    def container(self, container_id: str) -> ContainerRow | None:
        """The container with this id, or None."""
        return next(iter(self._containers(tables.containers.c.id == container_id)), None)

    def container_named(self, name: str) -> ContainerRow | None:
        """The container with this name, or None."""
        return next(iter(self._containers(tables.containers.c.name == name)), None)

    def name_owners(self, names: Sequence[str]) -> dict[str, str]:
        """Of these names those that containers have, with the ids of these."""
        with self._transaction(reading=True) as connection:
            return _name_owners(connection, names)

    def container_ids(self, prefix: str, limit: int = 2) -> list[str]:
        """At most ``limit`` ids of containers that begin with ``prefix``; it holds no wildcard."""
        with self._transaction(reading=True) as connection:
            query = select(tables.containers.c.id).where(tables.containers.c.id.startswith(prefix, autoescape=True)).limit(limit)
            return list(connection.execute(query).scalars())

    def containers(self) -> list[ContainerRow]:
        """All containers, newest first."""
        return self._containers()

    def container_of(self, image_id: str) -> str | None:
        """Id of a container that was made from an image, or None."""
        with self._transaction(reading=True) as connection:
            query = select(tables.containers.c.id).where(tables.containers.c.image_id == image_id).limit(1)
            return connection.execute(query).scalar_one_or_none()

    def count_containers_of(self, image_id: str) -> int:
        """How many containers were made from an image."""
        with self._transaction(reading=True) as connection:
            query = select(func.count()).where(tables.containers.c.image_id == image_id)
            return connection.execute(query).scalar_one()

    def containers_with(self, volume: str) -> list[str]:
        """Ids of the containers that have this volume."""
        with self._transaction(reading=True) as connection:
            mounts = tables.container_volumes.c
            return list(
                connection.execute(
                    select(mounts.container_id).where(mounts.volume == volume).order_by(mounts.container_id)
                ).scalars()
            )

    def volume_users(self) -> dict[str, tuple[str, ...]]:
        """Ids of the containers that have a volume, by its name."""
        mounts = tables.container_volumes.c
        query = select(mounts.volume, mounts.container_id).order_by(mounts.container_id)
        users: dict[str, list[str]] = {}
        with self._transaction(reading=True) as connection:
            for volume, container_id in connection.execute(query).all():
                users.setdefault(volume, []).append(container_id)
        return {volume: tuple(ids) for volume, ids in users.items()}

    def used_volumes(self) -> set[str]:
        """Names of the volumes that a container has."""
        with self._transaction(reading=True) as connection:
            return set(connection.execute(select(tables.container_volumes.c.volume).distinct()).scalars())

    def count_containers(self) -> int:
        """How many there are."""
        with self._transaction(reading=True) as connection:
            return connection.execute(select(func.count()).select_from(tables.containers)).scalar_one()

    def put_containers(self, containers: Sequence[ContainerRow]) -> None:
        """Adds the containers, or replaces what is known of them; all or none.

        Raises:
            NameTakenError: another one has the name of one of them.
        """
        with self._transaction() as connection:
            _put_containers(connection, containers)

    def delete_container(self, container_id: str) -> None:
        """Forgets the container; unknown ones are ignored."""
        with self._transaction() as connection:
            connection.execute(delete(tables.containers).where(tables.containers.c.id == container_id))

    def _containers(self, *conditions: ColumnElement[bool]) -> list[ContainerRow]:
        containers, mounts = tables.containers.c, tables.container_volumes.c
        found = select(tables.containers).where(*conditions)
        theirs = select(mounts.container_id, mounts.volume).order_by(mounts.volume)
        if conditions:
            theirs = theirs.join(tables.containers).where(*conditions)
        volumes: dict[str, list[str]] = {}
        with self._transaction(reading=True) as connection:
            for container_id, volume in connection.execute(theirs).all():
                volumes.setdefault(container_id, []).append(volume)
            rows = connection.execute(found.order_by(containers.created.desc(), containers.id)).all()
        return [
            ContainerRow(id, name, created, image_id, chain_id, marker, tuple(volumes.get(id, ())))
            for id, name, created, image_id, chain_id, marker in rows
        ]

    def close(self) -> None:
        """Closes the file. The catalog is unusable afterwards."""
        self._engine.dispose()

    def _layers(self, query: Select[Any]) -> list[LayerRow]:
        with self._transaction() as connection:
            return [LayerRow(**row) for row in connection.execute(query).mappings()]

    def _references(self, query: Select[Any]) -> list[ReferenceRow]:
        with self._transaction() as connection:
            return [ReferenceRow(**row) for row in connection.execute(query).mappings()]

    @contextlib.contextmanager
    def _transaction(self, *, reading: bool = False) -> Iterator[Connection]:
        try:
            with self._turn, self._engine.connect() as connection:
                connection.execution_options(imgstore_reading=reading)
                with connection.begin():
                    yield connection
        except DatabaseError as error:
            raise _translate(error, self._name) from error


_KINDS: tuple[tuple[str, type[ImgstoreError], str], ...] = (
    ("SQLITE_FULL", NoSpaceError, ""),
    ("SQLITE_READONLY", DeniedError, ""),
    ("SQLITE_PERM", DeniedError, ""),
    ("SQLITE_CANTOPEN", DeniedError, ""),
    ("SQLITE_BUSY", UnavailableError, "is another program holding the catalog?"),
    ("SQLITE_LOCKED", UnavailableError, "is another program holding the catalog?"),
    ("SQLITE_IOERR", UnavailableError, ""),
)
"""By the beginning of the name of SQLite's error code (https://sqlite.org/rescode.html); of any other the file itself is the cause."""


def _translate(error: DatabaseError, name: str) -> ImgstoreError:
    code = getattr(error.orig, "sqlite_errorname", "")
    for prefix, kind, hint in _KINDS:
        if code.startswith(prefix):
            return kind(f"{name}: {error.orig}", hint=hint)
    return CorruptError(f"{name}: {error.orig}", hint="the catalog can be made again from the datastore: imgstore rebuild")


def _configure(engine: Engine, *, in_file: bool) -> None:
    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves, below
        connection.execute("PRAGMA foreign_keys = ON")
        if in_file:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")  # a lost last commit is found again on the datastore

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        reading = connection.get_execution_options().get("imgstore_reading")
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _existing_tables(connection: Connection) -> list[str]:
    names = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").scalars()
    order = {table.name: position for position, table in enumerate(reversed(tables.metadata.sorted_tables))}
    return sorted((name for name in names if not name.startswith("sqlite_")), key=lambda name: order.get(name, -1))


def _upsert_container() -> Insert:
    statement = upsert(tables.containers)
    values = {column.name: statement.excluded[column.name] for column in tables.containers.columns}
    return statement.on_conflict_do_update(["id"], set_=values)


# What every new container needs: to put these together takes longer than SQLite needs for them.
_PUT_CONTAINER = _upsert_container()
_DELETE_MOUNTS = delete(tables.container_volumes).where(tables.container_volumes.c.container_id == bindparam("old"))
_OWNERS = select(tables.containers.c.name, tables.containers.c.id).where(
    tables.containers.c.name.in_(bindparam("names", expanding=True))
)


def _put_layer(connection: Connection, layer: LayerRow) -> None:
    values = {column.name: getattr(layer, column.name) for column in tables.layers.columns}
    connection.execute(upsert(tables.layers).values(values).on_conflict_do_update(["chain_id"], set_=values))


def _put_image(connection: Connection, image: ImageRow) -> None:
    values = {column.name: getattr(image, column.name) for column in tables.images.columns}
    connection.execute(upsert(tables.images).values(values).on_conflict_do_update(["id"], set_=values))
    connection.execute(delete(tables.image_layers).where(tables.image_layers.c.image_id == image.id))
    for position, layer in enumerate(image.layers):
        connection.execute(
            insert(tables.image_layers).values(
                image_id=image.id,
                position=position,
                chain_id=layer.chain_id,
                diff_id=layer.diff_id,
                digest=layer.digest,
                media_type=layer.media_type,
            )
        )


def _put_reference(connection: Connection, reference: ReferenceRow) -> None:
    values = {column.name: getattr(reference, column.name) for column in tables.references.columns}
    connection.execute(upsert(tables.references).values(values).on_conflict_do_update(["name"], set_=values))


def _put_containers(connection: Connection, containers: Sequence[ContainerRow]) -> None:
    owners = _name_owners(connection, [container.name for container in containers])
    for container in containers:
        owner = owners.setdefault(container.name, container.id)
        if owner != container.id:
            raise NameTakenError(container.name, owner)
    if containers:
        columns = [column.name for column in tables.containers.columns]
        values = [{name: getattr(container, name) for name in columns} for container in containers]
        connection.execute(_PUT_CONTAINER, values)
        connection.execute(_DELETE_MOUNTS, [{"old": container.id} for container in containers])
    mounts = [{"container_id": container.id, "volume": volume} for container in containers for volume in container.volumes]
    if mounts:
        connection.execute(insert(tables.container_volumes), mounts)


def _container_counts(connection: Connection) -> dict[str, int]:
    image_id = tables.containers.c.image_id
    rows = connection.execute(select(image_id, func.count()).group_by(image_id)).all()
    return {row[0]: row[1] for row in rows}


def _name_owners(connection: Connection, names: Sequence[str]) -> dict[str, str]:
    owners: dict[str, str] = {}
    for batch in _batches(names):
        owners.update((name, owner) for name, owner in connection.execute(_OWNERS, {"names": batch}).all())
    return owners


def _batches(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """Pieces that SQLite takes as parameters of one statement."""
    return (names[start : start + 500] for start in range(0, len(names), 500))


def _has_user(chain_id: ColumnElement[str] | str) -> ColumnElement[bool]:
    return or_(
        exists().where(tables.image_layers.c.chain_id == chain_id), exists().where(tables.containers.c.chain_id == chain_id)
    )


def _select(table: Table, kind: type[LayerRow | ReferenceRow]) -> Select[Any]:
    """The columns in the order of the row's fields."""
    return select(*(table.c[field.name] for field in fields(kind)))


def _images(connection: Connection, image_id: str | None = None) -> list[ImageRow]:
    """One image, or all by id; two queries, however many there are."""
    images, layers = tables.images.c, tables.image_layers.c
    found = select(images.id, images.manifest_digest, images.manifest, images.config, images.parent).order_by(images.id)
    theirs = select(layers.image_id, layers.chain_id, layers.diff_id, layers.digest, layers.media_type)
    theirs = theirs.order_by(layers.image_id, layers.position)
    if image_id is not None:
        found, theirs = found.where(images.id == image_id), theirs.where(layers.image_id == image_id)
    layers_of: dict[str, list[ImageLayerRow]] = {}
    for owner, *layer in connection.execute(theirs).all():
        layers_of.setdefault(owner, []).append(ImageLayerRow(*layer))
    return [
        ImageRow(id, manifest_digest, manifest, config, tuple(layers_of.get(id, ())), parent)
        for id, manifest_digest, manifest, config, parent in connection.execute(found).all()
    ]
