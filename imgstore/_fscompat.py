"""Lets PyFilesystem2 be imported whatever setuptools is installed, or none. Import this module before the first ``import fs``.

``fs`` 2.4.16 asks setuptools' ``pkg_resources`` for two functions. setuptools 82 dropped that module, 80 warns when it is imported,
and virtual environments of Python 3.12 and later have no setuptools at all. A stand-in made of ``importlib.metadata`` serves ``fs``
while it is imported and is taken away afterwards, so that others who ask for ``pkg_resources`` see the truth. It also spares the
0.1 s that importing the real one takes.
"""

from __future__ import annotations

import importlib.metadata
import sys
import types
from collections.abc import Iterator


def _iterate_entry_points(group: str, name: str | None = None) -> Iterator[importlib.metadata.EntryPoint]:
    for entry_point in importlib.metadata.entry_points(group=group):
        if name is None or entry_point.name == name:
            yield entry_point


def _declare_namespace(name: str) -> None:
    """Nothing to do: packages that extend ``fs`` are found without it where they lie in the same directory."""


def _import_fs() -> None:
    if "fs" in sys.modules or sys.modules.get("pkg_resources") is not None:
        return
    stand_in = types.ModuleType("pkg_resources")
    stand_in.__dict__.update(declare_namespace=_declare_namespace, iter_entry_points=_iterate_entry_points)
    sys.modules["pkg_resources"] = stand_in
    try:
        import fs
        import fs.opener.registry  # noqa: F401  # keeps its own reference to the stand-in
    finally:
        del sys.modules["pkg_resources"]


_import_fs()
