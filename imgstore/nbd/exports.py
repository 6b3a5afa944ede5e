"""Exports: which devices a server offers, under which names, and how."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from imgstore.answers import DeviceInfo
from imgstore.blocks import GuestDevice
from imgstore.errors import NotFoundError
from imgstore.nbd.protocol import STRING_MAX, TransmissionFlag

_SNAPSHOT = "?snapshot"


class Devices(Protocol):
    """Where devices come from: an ImageStore. Called in threads, and may wait for storage."""

    def open_device(self, name: str, *, read_only: bool = False) -> GuestDevice:
        """See ``ImageStore.open_device``."""
        ...

    def devices(self) -> Sequence[DeviceInfo]:
        """See ``ImageStore.devices``."""
        ...

    def device_info(self, name: str) -> DeviceInfo:
        """See ``ImageStore.device_info``."""
        ...


@dataclass(frozen=True)
class Exports:
    """What a server offers.

    Attributes:
        names: the only devices that are offered; empty for all. Of each its private copy (``?snapshot``) is offered as well. If there is
            one name, it is the default export, which clients ask for by the empty name.
        read_only: nothing can be written, whatever it is; so that many may read it.
    """

    devices: Devices
    names: Sequence[str] = ()
    read_only: bool = False

    def list(self) -> Iterator[tuple[bytes, bytes]]:
        """Name and description of each export that has a name which the protocol can carry."""
        descriptions = {info.name: info.description for info in self.devices.devices()}
        for name in self.names or descriptions:
            encoded = name.encode()
            if len(encoded) <= STRING_MAX:
                yield encoded, descriptions.get(name, "").encode(errors="replace")[:STRING_MAX]

    def open(self, name: str) -> GuestDevice:
        """Opens an export for one client; the caller closes it.

        Raises:
            NotFoundError: there is none, or it is not offered.
            ImgstoreError: what ``open_device`` raises.
        """
        return self.devices.open_device(self._resolve(name), read_only=self.read_only)

    def describe(self, name: str) -> tuple[int, TransmissionFlag]:
        """Size and flags of an export; opens nothing, so that who only asks is in nobody's way.

        Raises:
            NotFoundError: there is none, or it is not offered.
            ImgstoreError: what ``device_info`` raises.
        """
        info = self.devices.device_info(self._resolve(name))
        return info.size, transmission_flags(read_only=self.read_only or info.read_only)

    def _resolve(self, name: str) -> str:
        if not name and len(self.names) == 1:
            return self.names[0]
        if name and (not self.names or not {name, name.removesuffix(_SNAPSHOT)}.isdisjoint(self.names)):
            return name
        raise NotFoundError(f"export {name!r}: is not offered here")


def transmission_flags(*, read_only: bool) -> TransmissionFlag:
    """What a client may do with an export. Not `TransmissionFlag.SEND_DF`, which goes with structured replies.

    Several connections may share an export only where nobody writes: a writable one belongs to one client, as its disk does.
    """
    always = TransmissionFlag.HAS_FLAGS | TransmissionFlag.SEND_FLUSH | TransmissionFlag.SEND_FUA | TransmissionFlag.SEND_CACHE
    if read_only:
        return always | TransmissionFlag.READ_ONLY | TransmissionFlag.CAN_MULTI_CONN
    return always | TransmissionFlag.SEND_TRIM | TransmissionFlag.SEND_WRITE_ZEROES | TransmissionFlag.SEND_FAST_ZERO
