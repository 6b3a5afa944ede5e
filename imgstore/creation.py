"""Creation: an image becomes containers: each a disk of its own over the image's, and a marker that says what it is to run.

What it costs follows neither the image's size nor how many containers there are: the disk is empty, and what lies below is not read.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from imgstore import layout, markers
from imgstore.answers import Mount
from imgstore.base_structure import add_base_structure
from imgstore.blocks import GRAIN
from imgstore.catalog.catalog import Catalog, ContainerRow, ImageRow, NameTakenError
from imgstore.container_names import check_container_name, generate_container_name
from imgstore.container_volumes import anonymous_volumes, named_volumes, remove_anonymous
from imgstore.containers import CREATING, Containers
from imgstore.datastores.datastore import Datastore
from imgstore.disks import Disks
from imgstore.errors import CorruptError, InvalidError, NotFoundError, UnsupportedError
from imgstore.ext4.grow import grow_file_system
from imgstore.ext4.reader import FileSystem
from imgstore.gc import kept
from imgstore.images import Images
from imgstore.leases import Leases, held
from imgstore.live_disks import LiveDisks, NewDisk, ParentLink
from imgstore.mounts import plan_mounts
from imgstore.quota import Quota
from imgstore.run_config import merge_run_config
from imgstore.structs import prepare
from imgstore.timestamps import format_timestamp
from imgstore.vmdk.chain import open_chain
from imgstore.vmdk.hosted import open_disk
from imgstore.volumes import Volumes
from registry_client.platform import Platform, choose

COUNT_MAX = 100_000
"""Containers that are made at once, all of them held in memory until they are there."""

_NAME_TRIES = 20
_STORAGE = 32 << 10
"""Bytes that a container takes on the datastore before it is written, about."""


@dataclass(frozen=True, slots=True)
class CreateOptions:
    """What containers are to be; see `Containers.create_container` of the store."""

    size: int | None = None
    read_only: bool = False
    mounts: Sequence[Mount] = ()
    vic_base: bool = False
    platform: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    host_config: Mapping[str, Any] = field(default_factory=dict)


class Creation:
    """Makes the containers of a store.

    Where the platform makes disks, it makes that of a container when a machine gets it first; here is then only what it is to run.
    """

    def __init__(
        self,
        datastore: Datastore,
        catalog: Catalog,
        leases: Leases,
        disks: Disks,
        live_disks: LiveDisks,
        images: Images,
        containers: Containers,
        volumes: Volumes,
        quota: Quota,
    ) -> None:
        self._datastore = datastore
        self._catalog = catalog
        self._leases = leases
        self._disks = disks
        self._live_disks = live_disks
        self._images = images
        self._containers = containers
        self._volumes = volumes
        self._quota = quota

    def create(self, reference: str, name: str | None, options: CreateOptions) -> ContainerRow:
        """One container. After a crash at any instant it is there whole, or what is left of it goes with the next start.

        Args:
            name: None: one is made up.

        Raises:
            NoSuchImageError, InvalidError, NameTakenError, QuotaExceededError: see the store.
        """
        if name is not None:
            name = check_container_name(name)
            self._containers.check_names([name])
        with self._planned(reference, options) as plan:
            return self._make(plan, [self._free_name() if name is None else name])[0]

    def create_many(self, reference: str, count: int, prefix: str | None, options: CreateOptions) -> list[ContainerRow]:
        """Containers named ``<prefix>-1`` to ``<prefix>-<count>``: all of them, or, unless the machine stops meanwhile, none.

        Takes three flushes of the storage, however many they are; what is to be written for each, into its disk or into a volume of its
        own, takes some more each.
        """
        if not 1 <= count <= COUNT_MAX:
            raise InvalidError(f"{count} containers: from 1 to {COUNT_MAX} can be made at once")
        chosen = f"{generate_container_name()}_{secrets.token_hex(3)}" if prefix is None else prefix
        names = [check_container_name(f"{chosen}-{number}") for number in range(1, count + 1)]
        self._containers.check_names(names)
        with self._planned(reference, options) as plan:
            if all(mount.volume for mount in plan.mounts):
                return self._make(plan, names)
            made: list[ContainerRow] = []
            try:
                for each in names:  # volumes of their own are made one by one anyhow, and are leased until the container is there
                    made += self._make(plan, [each])
            except BaseException:
                for row in made:
                    self._containers.remove(row.id)
                    remove_anonymous(self._volumes, row.volumes)
                raise
            return made

    @contextlib.contextmanager
    def _planned(self, reference: str, options: CreateOptions) -> Iterator[_Plan]:
        """What all containers of one call share; its image's disks stay as long as the block runs."""
        image = self._images.find(reference)
        top = image.layers[-1].chain_id if image.layers else None
        with kept(self._leases, () if top is None else (top,)):
            if top is not None and self._catalog.layer(top) is None:
                self._images.find(reference)  # removed meanwhile: in the usual words
                raise NotFoundError(f"image {image.id}: its layer {top} is missing", hint="imgstore check says more")
            yield self._plan(reference, image, top, options)

    def _plan(self, reference: str, image: ImageRow, top: str | None, options: CreateOptions) -> _Plan:
        head = _decode_head(image)
        platform = Platform.of(head.os, head.architecture, head.variant or "")
        _check_platform(reference, platform, options.platform)
        config = merge_run_config(head.config or {}, {**options.config, "Image": reference})
        by_platform = self._datastore.platform_disks
        if by_platform:
            _check_is_for_platform(options, self._disks.capacity)
        mounts = [] if by_platform else plan_mounts(options.mounts, config["Volumes"])
        parent = self._parent([layer.chain_id for layer in image.layers])
        capacity = _capacity(options.size, parent.size)
        marker = markers.ContainerMarker(
            id="",
            name="",
            created="",
            image=reference,
            image_id=image.id,
            chain_id=top,
            platform=str(platform),
            capacity=capacity,
            read_only=options.read_only,
            mounts=(),
            config=config,
            host_config=dict(options.host_config),
        )
        return _Plan(marker, parent, options.vic_base, mounts)

    def _parent(self, chain_ids: Sequence[str]) -> ParentLink:
        """The disk that containers of these layers stand on."""
        path = self._disks.top_disk(chain_ids)
        if self._datastore.platform_disks:
            return ParentLink(path, 0, self._disks.capacity)  # the platform reads it, when it makes the disk
        if not chain_ids:
            self._disks.make_scratch()
        with contextlib.closing(open_disk(self._datastore.open(path))) as disk:
            return ParentLink(path, disk.cid, disk.capacity)

    def _make(self, plan: _Plan, names: Sequence[str]) -> list[ContainerRow]:
        """Makes them; if a mount of theirs has no volume, there is one of them."""
        self._quota.check(len(names) * _STORAGE)
        with contextlib.ExitStack() as stack:
            mounts = stack.enter_context(self._mounted(plan)) if plan.mounts else ()
            return self._make_disks(plan, plan.markers_of(names, mounts))

    @contextlib.contextmanager
    def _mounted(self, plan: _Plan) -> Iterator[Sequence[Mount]]:
        with open_chain(self._datastore.open, plan.parent.path) as chain:
            tree = FileSystem(chain)
            image = plan.marker.image
            with (
                named_volumes(self._volumes, plan.mounts, image, tree),
                anonymous_volumes(self._volumes, plan.mounts, image, tree) as mounts,
            ):
                yield mounts

    def _make_disks(self, plan: _Plan, new: Sequence[markers.ContainerMarker]) -> list[ContainerRow]:
        nonce = secrets.token_hex(8)
        # The one keeps others from taking our disks for leftovers; of the other a file stays if we die, which has the next start look.
        with held(self._leases, CREATING, shared=True), held(self._leases, f"creation-{nonce}"):
            if self._datastore.platform_disks:
                return self._containers.commit(new)
            disks = [NewDisk(layout.container_disk(marker.id), marker.capacity, plan.parent) for marker in new]
            if len(disks) == 1:
                self._live_disks.create(*disks[0])
            else:
                self._live_disks.create_many(disks)
            try:
                for marker in new:
                    self._fill(plan, marker)
                return self._containers.commit(new)
            except BaseException:
                for disk in disks:
                    self._live_disks.remove(disk.path)
                raise

    def _fill(self, plan: _Plan, marker: markers.ContainerMarker) -> None:
        """Writes what the disk is to have from the start."""
        if marker.capacity == plan.parent.size and not plan.vic_base:
            return
        with self._live_disks.edit(layout.container_disk(marker.id)) as device:
            if marker.capacity > plan.parent.size:
                grow_file_system(device)
            if plan.vic_base:
                add_base_structure(device, marker.config["Hostname"], time.time_ns())

    def _free_name(self) -> str:
        for number in range(_NAME_TRIES):
            name = generate_container_name() + (f"_{secrets.token_hex(2)}" if number else "")
            with contextlib.suppress(NameTakenError):
                self._containers.check_names([name])
                return name
        return secrets.token_hex(6)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What the containers of one call share.

    Attributes:
        marker: without id, name, time, hostname and mounts.
        mounts: where one has no volume, each container gets a new one.
    """

    marker: markers.ContainerMarker
    parent: ParentLink
    vic_base: bool
    mounts: Sequence[Mount]

    def markers_of(self, names: Sequence[str], mounts: Sequence[Mount]) -> list[markers.ContainerMarker]:
        """Those of new containers with these names, each created a microsecond after the one before."""
        now = time.time_ns()
        records = tuple(markers.MountRecord(mount.volume, mount.destination, mount.read_only) for mount in mounts)
        return [self._marker(name, records, now + 1000 * number) for number, name in enumerate(names)]

    def _marker(self, name: str, mounts: tuple[markers.MountRecord, ...], time_ns: int) -> markers.ContainerMarker:
        container_id = secrets.token_hex(32)
        config = {**self.marker.config, "Hostname": self.marker.config.get("Hostname") or container_id[:12]}
        return msgspec.structs.replace(
            self.marker,
            id=container_id,
            name=name,
            created=format_timestamp(time_ns),
            mounts=mounts,
            config=config,
        )


class _Head(msgspec.Struct):
    """Of an image's configuration what its containers need."""

    os: str
    architecture: str
    variant: str | None = None
    config: dict[str, Any] | None = None


prepare(_Head)


def _decode_head(image: ImageRow) -> _Head:
    try:
        return msgspec.json.decode(image.config, type=_Head)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptError(f"image {image.id}: its config cannot be run: {error}") from error


def _check_platform(reference: str, own: Platform, wanted: str | None) -> None:
    if wanted is not None and choose(Platform.parse(wanted), [own]) is None:
        raise NotFoundError(
            f"image with reference {reference} was found but does not match the specified platform: wanted {wanted}, actual: {own}"
        )


def _check_is_for_platform(options: CreateOptions, capacity: int) -> None:
    """Raises UnsupportedError if the disk would have to be written, or a volume made, where only the platform does that."""
    if options.size is not None and options.size != capacity:
        raise UnsupportedError(
            f"size of {options.size} bytes: on this datastore the platform makes the disk, as large as the image's, {capacity}"
        )
    if options.vic_base:
        raise UnsupportedError(
            "the files that VIC expects: on this datastore the platform makes the disk, and nothing is written to it"
        )
    if options.mounts:
        raise UnsupportedError(
            f"{options.mounts[0].destination}: on this datastore no volumes are made",
            hint="imgstore attach volume/NAME gives one to a machine",
        )


def _capacity(size: int | None, smallest: int) -> int:
    """Bytes: whole grains."""
    if size is None:
        return smallest
    capacity = -(-size // GRAIN) * GRAIN
    if capacity < smallest:
        raise InvalidError(f"size of {size} bytes: the disk of the image has {smallest}, and a container's cannot be smaller")
    return capacity
