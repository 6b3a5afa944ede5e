"""Devices: the disks of a store in the hands of those who read and write them piece by piece."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from imgstore import gc, layout
from imgstore.answers import DeviceInfo
from imgstore.blocks import GuestDevice
from imgstore.catalog.catalog import ContainerRow, ImageRow
from imgstore.containers import marker_of
from imgstore.device_names import DeviceName, parse_device_name
from imgstore.errors import InUseError
from imgstore.images import familiar
from imgstore.store.core import StoreCore
from imgstore.vmdk.chain import Chain
from imgstore.vmdk.private import PrivateOverlay
from imgstore.vmdk.read_only import ReadOnlyDisk
from imgstore.volume_markers import FoundVolume


class Devices(StoreCore):
    """The methods of an `ImageStore` that open its disks as devices."""

    def devices(self) -> list[DeviceInfo]:
        """The disks that `open_device` can open: images by each of their tags, or by id, then containers, then volumes.

        Opens none of them, and does not ask who has them.
        """
        contents = self._catalog.contents()
        tags: dict[str, list[str]] = {}
        for reference in contents.references:
            if "@" not in reference.name:
                tags.setdefault(reference.image_id, []).append(familiar(reference.name))
        found = [
            self._describe_image(str(DeviceName("image", name)), image)
            for image in contents.images
            for name in tags.get(image.id, [image.id])
        ]
        found.sort(key=lambda info: info.name)
        found += map(_describe_container, self._catalog.containers())
        found += map(_describe_volume, self._volumes.read_all()[0])
        return found

    def device_info(self, name: str) -> DeviceInfo:
        """What `open_device` would open.

        Opens no disk: nobody is kept from it meanwhile, and that somebody has it is no obstacle.

        Args:
            name: as `open_device` has it; the answer has it too, and no other.

        Raises:
            InvalidError: the name is none.
            NotFoundError: there is no such image, container or volume.
        """
        wanted = parse_device_name(name)
        match wanted.kind:
            case "image":
                found = self._describe_image(name, self._images.find(wanted.reference))
            case "container":
                found = _describe_container(self._containers.find(wanted.reference))
            case "volume":
                found = _describe_volume(self._volumes.find(wanted.reference))
        return replace(found, name=name, read_only=found.read_only and not wanted.snapshot)

    def open_device(self, name: str, *, snapshot: bool = False, read_only: bool = False) -> GuestDevice:
        """Opens a disk for a guest. Closing the store leaves it open.

        Images can only be read, and their layers stay while they are. A container's or volume's disk is locked as QEMU would lock it,
        until the device is closed.

        Args:
            name: ``image/REFERENCE``, ``container/NAME`` or ``volume/NAME``; with ``?snapshot`` behind it as with ``snapshot``.
            snapshot: gives a private copy of the moment, which can be written and vanishes when it is closed.
            read_only: nothing is written, so that others may read the disk as well; a private copy is then none.

        Raises:
            InvalidError: the name is none.
            NotFoundError: there is no such image, container or volume.
            InUseError: somebody has the container's or volume's disk open in a way that forbids this.
            CorruptError: a disk is damaged, or does not fit its parent.
        """
        wanted = parse_device_name(name)
        wanted = wanted._replace(snapshot=(wanted.snapshot or snapshot) and not read_only)
        match wanted.kind:
            case "image":
                return self._open_image(wanted)
            case "container":
                return self._open_container(wanted, read_only=read_only)
            case "volume":
                return self._open_volume(wanted, read_only=read_only)

    def _describe_image(self, name: str, image: ImageRow) -> DeviceInfo:
        return DeviceInfo(name, self._disks.capacity, True, f"image {image.id}, {len(image.layers)} layers")

    def _open_image(self, wanted: DeviceName) -> GuestDevice:
        image = self._images.find(wanted.reference)
        layers = tuple(layer.chain_id for layer in image.layers)

        def open_chain(stack: contextlib.ExitStack) -> Chain:
            stack.enter_context(gc.kept(self._leases, layers[-1:]))  # and so those below it
            self._images.find(image.id)  # it may have gone before the layers were kept
            return stack.enter_context(self._disks.open_chain(layers))

        with _until_closed() as stack:
            chain = self._shared_chains.take(layers, open_chain)
            stack.callback(self._shared_chains.give_back, layers)
            return self._open_chain(wanted, chain, stack)

    def _open_container(self, wanted: DeviceName, *, read_only: bool) -> GuestDevice:
        marker = marker_of(self._containers.find(wanted.reference))
        path = layout.container_disk(marker.id)
        with _until_closed() as stack, _naming(f"container {marker.name}"):
            if not (wanted.snapshot or read_only or marker.read_only):
                return self._live_disks.attach(path)
            return self._open_chain(wanted, stack.enter_context(self._live_disks.read(path)), stack)

    def _open_volume(self, wanted: DeviceName, *, read_only: bool) -> GuestDevice:
        with _until_closed() as stack, _naming(f"volume {wanted.reference}"):
            if not (wanted.snapshot or read_only):
                return self._volumes.attach(wanted.reference)
            return self._open_chain(wanted, stack.enter_context(self._volumes.read(wanted.reference)), stack)

    def _open_chain(self, wanted: DeviceName, chain: Chain, stack: contextlib.ExitStack) -> GuestDevice:
        """The device that shows a chain; closing it closes the stack."""
        if not wanted.snapshot:
            return ReadOnlyDisk(chain, stack.close)
        file = stack.enter_context(self._datastore.create_unnamed(f"private overlay of {wanted._replace(snapshot=False)}"))
        return PrivateOverlay(chain, file, stack.close)


def _describe_container(container: ContainerRow) -> DeviceInfo:
    marker = marker_of(container)
    description = f"container {container.id} of {marker.image}"
    return DeviceInfo(str(DeviceName("container", container.name)), marker.capacity, marker.read_only, description)


def _describe_volume(volume: FoundVolume) -> DeviceInfo:
    marker = volume.marker
    return DeviceInfo(str(DeviceName("volume", marker.name)), marker.capacity, False, f"volume in {volume.store.name}")


@contextlib.contextmanager
def _until_closed() -> Iterator[contextlib.ExitStack]:
    """A stack that is closed after an error; else whoever was given its ``close`` does it."""
    stack = contextlib.ExitStack()
    try:
        yield stack
    except BaseException:
        stack.close()
        raise


@contextlib.contextmanager
def _naming(what: str) -> Iterator[None]:
    try:
        yield
    except InUseError as error:
        raise InUseError(f"{what}: {error}", hint=error.hint) from error
