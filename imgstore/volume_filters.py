"""Volume filters: which volumes a list shows and a prune removes, in docker's words.

Source: vmware/vic ``lib/apiservers/engine/backends/filter/volume.go``; moby ``volume/service/convert.go``.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass

from imgstore.answers import Volume
from imgstore.errors import InvalidError
from imgstore.filters import Filters, Labels, has_labels, parse_boolean, parse_labels

LIST_FILTERS: Set[str] = frozenset({"dangling", "driver", "label", "name"})
PRUNE_FILTERS: Set[str] = frozenset({"all", "label", "label!"})


@dataclass(frozen=True, slots=True)
class VolumeFilter:
    """What a volume must be; every attribute that is set narrows it down.

    Attributes:
        dangling: True: no container has it; False: one has.
        anonymous: nobody gave it a name.
        drivers: one of these is its driver.
        names: one of these is a part of its name.
        labels: all of these: (name, value), or (name, None) for any value.
        without_labels: not all of these.
    """

    dangling: bool | None = None
    anonymous: bool = False
    drivers: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    labels: Labels = ()
    without_labels: Labels = ()

    def select(self, volumes: Iterable[Volume]) -> list[Volume]:
        """Those of the volumes that are meant."""
        return [volume for volume in volumes if self._is_meant(volume)]

    def _is_meant(self, volume: Volume) -> bool:
        if self.dangling is not None and self.dangling is bool(volume.used_by):
            return False
        if self.anonymous and not volume.anonymous:
            return False
        if self.drivers and volume.driver not in self.drivers:
            return False
        if self.names and not any(name in volume.name for name in self.names):
            return False
        if self.without_labels and has_labels(volume.labels, self.without_labels):
            return False
        return has_labels(volume.labels, self.labels)


def parse_list_filters(given: Filters) -> VolumeFilter:
    """The filters of a list.

    Raises:
        InvalidError: an unknown filter, or a value that makes no sense.
    """
    _check_known(given, LIST_FILTERS)
    return VolumeFilter(
        dangling=parse_boolean(given, "dangling"),
        drivers=tuple(given.get("driver", ())),
        names=tuple(given.get("name", ())),
        labels=parse_labels(given, "label"),
    )


def parse_prune_filters(given: Filters) -> VolumeFilter:
    """The filters of a prune: anonymous volumes that no container has, unless ``all=true`` says all that none has.

    Raises:
        InvalidError: an unknown filter, or a value that makes no sense.
    """
    _check_known(given, PRUNE_FILTERS)
    return VolumeFilter(
        dangling=True,
        anonymous=not parse_boolean(given, "all"),
        labels=parse_labels(given, "label"),
        without_labels=parse_labels(given, "label!"),
    )


def _check_known(given: Filters, known: Set[str]) -> None:
    for name in given:
        if name not in known:
            raise InvalidError(f"Invalid filter '{name}'")
