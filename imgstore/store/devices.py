"""Devices: the disks of a store in the hands of those who read and write them piece by piece."""

from __future__ import annotations

import contextlib
import functools

from imgstore import gc
from imgstore.answers import DeviceInfo
from imgstore.blocks import GuestDevice
from imgstore.containers import marker_of
from imgstore.device_names import DeviceName, parse_device_name
from imgstore.errors import UnsupportedError
from imgstore.images import familiar
from imgstore.store.core import StoreCore
from imgstore.vmdk.chain import Chain
from imgstore.vmdk.read_only import ReadOnlyDisk


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
            DeviceInfo(
                str(DeviceName("image", name)), self._disks.capacity, True, f"image {image.id}, {len(image.layers)} layers"
            )
            for image in contents.images
            for name in tags.get(image.id, [image.id])
        ]
        found.sort(key=lambda info: info.name)
        for container in self._catalog.containers():
            marker = marker_of(container)
            description = f"container {container.id} of {marker.image}"
            name = str(DeviceName("container", container.name))
            found.append(DeviceInfo(name, marker.capacity, marker.read_only, description))
        for volume in self._volumes.read_all()[0]:
            name = str(DeviceName("volume", volume.marker.name))
            found.append(DeviceInfo(name, volume.marker.capacity, False, f"volume in {volume.store.name}"))
        return found

    def open_device(self, name: str, *, snapshot: bool = False) -> GuestDevice:
        """Opens a disk for a guest. Closing the store leaves it open.

        Images can only be read, and their layers stay while they are. A container's or volume's disk is locked as QEMU would lock it,
        until the device is closed.

        Args:
            name: ``image/REFERENCE``, ``container/NAME`` or ``volume/NAME``; with ``?snapshot`` behind it as with ``snapshot``.
            snapshot: gives a private copy of the moment, which can be written and vanishes when it is closed.

        Raises:
            InvalidError: the name is none.
            NotFoundError: there is no such image, container or volume.
            InUseError: somebody has the container's or volume's disk open in a way that forbids this.
            CorruptError: a disk is damaged, or does not fit its parent.
        """
        wanted = parse_device_name(name)
        if wanted.snapshot or snapshot or wanted.kind != "image":
            raise UnsupportedError(f"device {wanted}: only images can be opened")
        return self._open_image(wanted.reference)

    def _open_image(self, reference: str) -> GuestDevice:
        image = self._images.find(reference)
        layers = tuple(layer.chain_id for layer in image.layers)

        def open_chain(stack: contextlib.ExitStack) -> Chain:
            stack.enter_context(gc.kept(self._leases, dict.fromkeys(layers)))
            self._images.find(image.id)  # it may have gone before the layers were kept
            return stack.enter_context(self._disks.open_chain(layers))

        chain = self._shared_chains.take(layers, open_chain)
        return ReadOnlyDisk(chain, functools.partial(self._shared_chains.give_back, layers))
