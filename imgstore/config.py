"""Where a store and the configuration are, and the defaults.

Pure: the environment comes in as a mapping, and only ``imgstore.cli`` reads the real one."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping

from imgstore.errors import InvalidError

DEFAULT_DISK_SIZE = 32 << 30
"""Capacity of every disk of a new store, in bytes; it costs nothing until it is used."""

STORE_VARIABLE = "IMGSTORE_STORE"
CONFIG_VARIABLE = "IMGSTORE_CONFIG"
SYSTEM_CONFIG = "/etc/imgstore/config.toml"
SYSTEM_STORE = "/var/lib/imgstore"


def store_location(environment: Mapping[str, str], *, is_root: bool) -> str:
    """Returns the store that is meant when the command line names none: an absolute path, or what IMGSTORE_STORE says.

    In this order: ``IMGSTORE_STORE`` (a path or a URL, as it stands); ``$XDG_DATA_HOME/imgstore``; ``/var/lib/imgstore`` for root;
    ``$HOME/.local/share/imgstore``. An empty variable counts as unset, and so does a relative ``XDG_DATA_HOME``
    (XDG Base Directory Specification 0.8).

    Raises:
        InvalidError: none of them says where.
    """
    if chosen := environment.get(STORE_VARIABLE):
        return chosen
    data_home = environment.get("XDG_DATA_HOME", "")
    if posixpath.isabs(data_home):
        return posixpath.join(data_home, "imgstore")
    if is_root:
        return SYSTEM_STORE
    home = environment.get("HOME", "")
    if not posixpath.isabs(home):
        raise InvalidError(
            f"store: no place for it, HOME is {home!r}",
            hint=f"name a directory with --store DIR or {STORE_VARIABLE}",
        )
    return posixpath.join(home, ".local/share/imgstore")


def config_files(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the places of the configuration file, of which the first that is there counts.

    ``IMGSTORE_CONFIG`` alone, if it is set: then it must be there. Else ``$XDG_CONFIG_HOME/imgstore/config.toml``, or
    ``$HOME/.config/imgstore/config.toml``, then ``/etc/imgstore/config.toml``.
    """
    if chosen := environment.get(CONFIG_VARIABLE):
        return (chosen,)
    config_home = environment.get("XDG_CONFIG_HOME", "")
    if not posixpath.isabs(config_home):
        config_home = posixpath.join(environment.get("HOME") or "/", ".config")
    return (posixpath.join(config_home, "imgstore/config.toml"), SYSTEM_CONFIG)


_DATASTORE_PATH = re.compile(r"\[[^\[\]]+\]( .*)?", re.DOTALL)


def is_vsphere_location(location: str) -> bool:
    """Returns whether it names a place on a vSphere datastore: ``vsphere://``, ``ds://`` or ``[DATASTORE] path``.

    A directory of this machine that looks like the last is written with ``./`` before it.
    """
    return location.startswith(("vsphere://", "ds://")) or _DATASTORE_PATH.fullmatch(location) is not None


def absolute_location(location: str, *, directory: str) -> str:
    """Returns a path made absolute from ``directory``; a URL (``scheme://``), or a place on vSphere, as it stands."""
    if "://" in location or is_vsphere_location(location):
        return location
    return posixpath.normpath(posixpath.join(directory, location))
