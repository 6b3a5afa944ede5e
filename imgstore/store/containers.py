"""Containers: made of images, shown, renamed, removed."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from imgstore import gc
from imgstore.answers import Container, Mount
from imgstore.container_filters import parse_list_filters, parse_prune_filters
from imgstore.container_volumes import remove_anonymous
from imgstore.creation import CreateOptions, Creation
from imgstore.errors import InUseError, InvalidError, NotFoundError
from imgstore.filters import Filters
from imgstore.images import NoSuchImageError
from imgstore.intake import NAMES
from imgstore.leases import held
from imgstore.store.contents import Contents
from imgstore.vmdk.chain import open_chain


class Containers(Contents):
    """The methods of an `ImageStore` for containers."""

    def create_container(
        self,
        image: str,
        *,
        name: str | None = None,
        size: int | None = None,
        read_only: bool = False,
        mounts: Sequence[Mount] = (),
        vic_base: bool = False,
        platform: str | None = None,
        config: Mapping[str, Any] | None = None,
        host_config: Mapping[str, Any] | None = None,
    ) -> Container:
        """Makes a container: a disk of its own over the image's, which stays as it is. Costs the same for every image.

        Args:
            image: its name or id.
            name: None: one of two words is made up.
            size: capacity of the disk in bytes, rounded up to 64 KiB, not less than that of the image's disk; None: the same. A larger
                one has a larger file system.
            read_only: what runs is not to write the disk: kept and shown, and for the platform that runs it to see to.
            mounts: volumes; those that are not there are made. One without a volume gets one without a name.
            vic_base: add the files that the VMs of vSphere Integrated Containers expect, unless the image has them.
            platform: ``os/arch[/variant]`` that the image must be for.
            config: what the image's configuration is changed by, in Docker's names: ``Cmd``, ``Entrypoint``, ``Env``, ``Labels``, …
            host_config: how it is to run, in Docker's names; only kept and shown.

        After a crash at any instant the container is there whole, or not at all.

        Raises:
            NotFoundError: there is no such image, or it is for another platform.
            AlreadyExistsError: another container has the name.
            InvalidError: name, size, a mount or a value of ``config`` makes no sense, or there is nothing to run.
            NoSpaceError: the datastore is full, or the quota is.
        """
        options = CreateOptions(size, read_only, mounts, vic_base, platform, config or {}, host_config or {})
        with self._mended():
            return self._containers.answer(self._creation().create(image, name, options))

    def create_containers(
        self,
        image: str,
        count: int,
        *,
        name_prefix: str | None = None,
        size: int | None = None,
        read_only: bool = False,
        mounts: Sequence[Mount] = (),
        vic_base: bool = False,
        platform: str | None = None,
        config: Mapping[str, Any] | None = None,
        host_config: Mapping[str, Any] | None = None,
    ) -> list[Container]:
        """Makes many containers, named ``<name_prefix>-1`` and so on; all of them are durable when it returns.

        The storage is flushed a fixed number of times, however many they are; but options that are written into each disk, a larger
        size and ``vic_base``, take their time for each. If one of them cannot be made none is; after a crash each is there whole or not.

        Args:
            count: at most 100,000.
            name_prefix: None: one is made up.

        The others, and what is raised, are those of `create_container`.
        """
        options = CreateOptions(size, read_only, mounts, vic_base, platform, config or {}, host_config or {})
        with self._mended():
            rows = self._creation().create_many(image, count, name_prefix, options)
            return [self._containers.answer(row) for row in rows]

    def containers(self, filters: Filters | None = None) -> list[Container]:
        """The containers, newest first, as they were at one moment.

        Args:
            filters: as ``docker ps`` has them: ``ancestor``, ``before``, ``since``, ``id``, ``label``, ``name``, ``status``, ``volume``, …;
                all containers are ``created``.

        Raises:
            InvalidError: an unknown filter, or a value that makes no sense.
            NotFoundError: there is no container that ``before`` or ``since`` names.
        """
        wanted = parse_list_filters(filters or {}, self.container, self._descendants)
        return wanted.select(self._containers.answers())

    def container(self, reference: str) -> Container:
        """The container that ``reference`` names: an id, a name, or the unambiguous start of an id.

        Raises:
            NotFoundError: there is none.
            InvalidError: several ids start so.
        """
        return self._containers.answer(self._containers.find(reference))

    def container_disk_paths(self, reference: str) -> list[str]:
        """Paths of the disks of the container's chain, scratch first, its own last; as `disk_paths` gives those of an image.

        Raises:
            NotFoundError: there is no such container, or a disk is missing.
        """
        container = self._containers.find(reference)
        path = self._containers.disk(container.id)
        if self._datastore.platform_disks:
            return [*self._listing.image(self._images.find(container.image_id)).disks, self._shown(path)]
        with contextlib.suppress(InUseError):  # who has it open has ended what was cut off
            self._live_disks.recover(path)
        with open_chain(self._datastore.open, path) as chain:
            return [self._shown(file.path) for file in chain.files]

    def rename_container(self, reference: str, new: str) -> Container:
        """Gives a container another name.

        Raises:
            NotFoundError: there is no such container.
            AlreadyExistsError: another container has the name.
            InvalidError: it has this name, or no container can have it.
        """
        with self._mended():
            return self._containers.answer(self._containers.rename(reference, new))

    def remove_container(self, reference: str, *, volumes: bool = False) -> Container:
        """Removes a container with its disk, and returns what it was.

        Args:
            volumes: also those of its volumes that were made without a name, and that no other container has.

        Raises:
            NotFoundError: there is no such container.
            InUseError: a guest has its disk open; nothing was removed.
        """
        container = self.container(reference)
        with self._mended():
            row = self._containers.remove(container.id)
            self._collect_after([container])
            if volumes:
                remove_anonymous(self._volumes, row.volumes)
        return container

    def prune_containers(self, filters: Filters | None = None) -> tuple[list[Container], int]:
        """Removes containers whose disk no guest has open; their volumes stay.

        Args:
            filters: ``label``, ``label!``, ``until``.

        Returns:
            those that are gone, and the bytes that their disks took on the datastore.

        Raises:
            InvalidError: an unknown filter, or a value that makes no sense.
        """
        removed = []
        for container in parse_prune_filters(filters or {}).select(self._containers.answers()):
            with contextlib.suppress(InUseError, NotFoundError), self._mended():
                self._containers.remove(container.id)
                removed.append(container)
        with self._mended():
            self._collect_after(removed)
        return removed, sum(container.size_rw for container in removed)

    def _collect_after(self, removed: Sequence[Container]) -> None:
        """Removes the layers that nobody has any more, where the image of a container was removed before it."""
        if any(self._catalog.image(image_id) is None for image_id in {container.image_id for container in removed}):
            with held(self._leases, NAMES):
                gc.collect(self._disks, self._catalog, self._leases)

    def _creation(self) -> Creation:
        return Creation(
            self._datastore,
            self._catalog,
            self._leases,
            self._disks,
            self._live_disks,
            self._images,
            self._containers,
            self._volumes,
            self._quota,
        )

    def _descendants(self, reference: str) -> Collection[str]:
        try:
            image_ids = [self._images.find(reference).id]
        except (NoSuchImageError, InvalidError):
            return ()
        for image_id in image_ids:
            image_ids += self._catalog.children(image_id)
        return image_ids
