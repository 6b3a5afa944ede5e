"""Quota: how much images, containers and volumes of a store may take together.

What counts are the blocks of their files, as ``du`` counts them, and those of layers that are being made. Who is about to bring something
reserves room for what is known of it, before it begins; before something becomes visible it is looked at whether all of it fits. So
concurrent pulls do not start what they cannot end, and nothing is ever there that is too much. What a guest writes to its disks counts,
but is not held up: then only new things are refused.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from imgstore import layout, markers
from imgstore.datastores.datastore import Datastore, list_names
from imgstore.errors import NoSpaceError, NotFoundError
from imgstore.leases import Leases, held, wait_for

_RESERVATION = "reserved-"
"""Begins the names of the leases whose notes say what is reserved, so that a reservation ends with its holder."""

_TURN = "quota"
"""Lease of who looks whether something fits, and takes it."""

_GB = 1 << 30


class QuotaExceededError(NoSpaceError):
    """The store has a limit, and what was asked for does not fit."""


@dataclass(frozen=True, slots=True)
class QuotaReport:
    """Bytes.

    Attributes:
        limit: of all together; None: there is none.
        images, containers, volumes: what each of them takes.
        reserved: for what is being brought.
    """

    limit: int | None
    images: int
    containers: int
    volumes: int
    reserved: int

    @property
    def used(self) -> int:
        """By all of them together, without what is reserved."""
        return self.images + self.containers + self.volumes


class Quota:
    """The limit of one store; kept on its datastore, so that it holds for all who open the store.

    Args:
        volume_bytes: tells what the volumes take, in all volume stores.
    """

    def __init__(self, datastore: Datastore, leases: Leases, volume_bytes: Callable[[], int]) -> None:
        self._datastore = datastore
        self._leases = leases
        self._volume_bytes = volume_bytes

    def limit(self) -> int | None:
        """Bytes, or None.

        Raises:
            CorruptError: its file is damaged.
        """
        try:
            data = self._datastore.read_bytes(layout.QUOTA, markers.LIMIT)
        except NotFoundError:
            return None
        return markers.decode(markers.QuotaMarker, data, layout.QUOTA).limit

    def set_limit(self, limit: int | None) -> None:
        """Sets the limit in bytes, durably, or takes it away; it may be less than what is used already."""
        if limit is not None:
            self._datastore.write_atomic(layout.QUOTA, markers.encode(markers.QuotaMarker(limit)))
            return
        with contextlib.suppress(NotFoundError):
            self._datastore.remove_file(layout.QUOTA)

    def report(self) -> QuotaReport:
        """What is used now. Takes time by the number of files."""
        images = measure(self._datastore, layout.DISKS) + measure(self._datastore, layout.REFERENCES)
        images += sum(measure(self._datastore, f"{layout.IMAGES}/{name}") for name in list_names(self._datastore, layout.IMAGES))
        reserved = sum(note.get("bytes", 0) for note in self._leases.notes(_RESERVATION))
        return QuotaReport(self.limit(), images, measure(self._datastore, layout.CONTAINERS), self._volume_bytes(), reserved)

    def check(self, size: int = 0) -> None:
        """Proves that ``size`` more bytes fit, whatever others have reserved: for what ends now, and had its own reservation.

        Raises:
            QuotaExceededError: they do not.
        """
        if self.limit() is not None and not _fits(report := self.report(), size):
            raise _exceeded(report, size)

    @contextlib.contextmanager
    def reserved(self, size: int) -> Iterator[None]:
        """Keeps room for ``size`` bytes inside the block, in this and all other processes.

        Raises:
            QuotaExceededError: there is none.
        """
        if self.limit() is None:
            yield
            return
        with held(self._leases, _TURN):
            report = self.report()
            if fits := _fits(report, report.reserved + size):
                lease = wait_for(self._leases, f"{_RESERVATION}{secrets.token_hex(8)}")
                lease.note({"bytes": size})
        if not fits:
            raise _exceeded(report, report.reserved + size)
        try:
            yield
        finally:
            lease.release()


def _fits(report: QuotaReport, size: int) -> bool:
    return report.limit is None or report.used + size <= report.limit


def _exceeded(report: QuotaReport, size: int) -> QuotaExceededError:
    # The words of VIC's quota, which its users' scripts know; it did not count volumes.
    kinds = (("image", report.images), ("container", report.containers), ("volume", report.volumes))
    usage = ", ".join(f"{kind} storage usage: {used / _GB:.3f}GB" for kind, used in kinds)
    reservation = f", storage reservation: {size / _GB:.3f}GB" if size else ""
    return QuotaExceededError(
        f"Storage quota exceeds. Storage quota: {(report.limit or 0) / _GB:.4g}GB, {usage}{reservation}",
        hint="remove images, containers or volumes, or raise the limit: imgstore quota SIZE",
    )


def measure(datastore: Datastore, directory: str) -> int:
    """Bytes of storage that the files in a directory take, those that are being made there included."""
    total = sum(datastore.usages(directory).values())
    return total + sum(sum(datastore.usages(part).values()) for part in datastore.parts(directory))
