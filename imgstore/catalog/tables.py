"""The catalog's tables. They mirror the markers on the datastore (``docs/reference/store-layout.md``) and hold nothing of their own."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, ForeignKey, Index, Integer, LargeBinary, MetaData, String, Table

SCHEMA_VERSION = 4
"""Kept in SQLite's ``user_version``. A catalog of another version is not migrated: it is rebuilt from the datastore."""

metadata = MetaData()

layers = Table(
    "layers",
    metadata,
    Column("chain_id", String, primary_key=True),
    Column("parent", String, nullable=True),
    Column("diff_id", String, nullable=False),
    Column("disk", String, nullable=True),  # path on the datastore; NULL: the layer changes nothing
    Column("disk_size", Integer, nullable=False),
    Column("size", Integer, nullable=False),
    Column("merged", Boolean, nullable=False),
    Index("layers_by_parent", "parent"),
)

images = Table(
    "images",
    metadata,
    Column("id", String, primary_key=True),
    Column("manifest_digest", String, nullable=True),
    Column("manifest", LargeBinary, nullable=False),
    Column("config", LargeBinary, nullable=False),
    Column("parent", String, nullable=True),
    Index("images_by_parent", "parent"),
)

image_layers = Table(
    "image_layers",
    metadata,
    Column("image_id", String, ForeignKey("images.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("chain_id", String, nullable=False),
    Column("diff_id", String, nullable=False),
    Column("digest", String, nullable=True),
    Column("media_type", String, nullable=False),
    Index("image_layers_by_chain", "chain_id"),
)

references = Table(
    "references",
    metadata,
    Column("name", String, primary_key=True),
    Column("image_id", String, ForeignKey("images.id", ondelete="CASCADE"), nullable=False),
    Column("digest", String, nullable=True),
    Column("tagged", String, nullable=True),
    Index("references_by_image", "image_id"),
)

# A container outlives its image where that is removed by force; its layers stay.
containers = Table(
    "containers",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("created", String, nullable=False),
    Column("image_id", String, nullable=False),
    Column("chain_id", String, nullable=True),
    Column("marker", LargeBinary, nullable=False),
    Index("containers_by_image", "image_id"),
    Index("containers_by_chain", "chain_id"),
)

container_volumes = Table(
    "container_volumes",
    metadata,
    Column("container_id", String, ForeignKey("containers.id", ondelete="CASCADE"), primary_key=True),
    Column("volume", String, primary_key=True),
    Index("container_volumes_by_volume", "volume"),
)
