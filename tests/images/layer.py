"""Layers as tars, written entry by entry in PAX form by Python's tarfile."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TypedDict, Unpack

MTIME_NS = 1_700_000_000_123_456_789
"""Modification time of an entry that is given none."""

NO_XATTRS: Mapping[str, bytes] = {}


class Attributes(TypedDict, total=False):
    """What an entry may be given beside its mode."""

    uid: int
    gid: int
    mtime_ns: int
    xattrs: Mapping[str, bytes]


class LayerTar:
    """An uncompressed layer being written. Names are bytes or text (as UTF-8), relative to the root."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tar = tarfile.open(path, "w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape")  # noqa: SIM115

    def __enter__(self) -> LayerTar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._tar.close()

    def file(self, name: str | bytes, data: bytes = b"", mode: int = 0o644, **attributes: Unpack[Attributes]) -> None:
        entry = self._entry(name, tarfile.REGTYPE, mode, **attributes)
        entry.size = len(data)
        self._tar.addfile(entry, io.BytesIO(data))

    def directory(self, name: str | bytes, mode: int = 0o755, **attributes: Unpack[Attributes]) -> None:
        self._tar.addfile(self._entry(name, tarfile.DIRTYPE, mode, **attributes))

    def symlink(self, name: str | bytes, target: str | bytes, **attributes: Unpack[Attributes]) -> None:
        entry = self._entry(name, tarfile.SYMTYPE, 0o777, **attributes)
        entry.linkname = _text(target)
        self._tar.addfile(entry)

    def hard_link(self, name: str | bytes, target: str | bytes) -> None:
        entry = self._entry(name, tarfile.LNKTYPE, 0o644)
        entry.linkname = _text(target)
        self._tar.addfile(entry)

    def device(
        self, name: str | bytes, kind: str, major: int, minor: int, mode: int = 0o600, **attributes: Unpack[Attributes]
    ) -> None:
        entry = self._entry(name, {"c": tarfile.CHRTYPE, "b": tarfile.BLKTYPE}[kind], mode, **attributes)
        entry.devmajor, entry.devminor = major, minor
        self._tar.addfile(entry)

    def fifo(self, name: str | bytes, mode: int = 0o644, **attributes: Unpack[Attributes]) -> None:
        self._tar.addfile(self._entry(name, tarfile.FIFOTYPE, mode, **attributes))

    def whiteout(self, name: str | bytes) -> None:
        directory, slash, last = _bytes(name).rpartition(b"/")
        self.file(directory + slash + b".wh." + last, mtime_ns=0)

    def opaque(self, name: str | bytes) -> None:
        self.file(_bytes(name) + b"/.wh..wh..opq", mtime_ns=0)

    def _entry(
        self,
        name: str | bytes,
        kind: bytes,
        mode: int,
        *,
        uid: int = 0,
        gid: int = 0,
        mtime_ns: int = MTIME_NS,
        xattrs: Mapping[str, bytes] = NO_XATTRS,
    ) -> tarfile.TarInfo:
        entry = tarfile.TarInfo(_text(name))
        entry.type, entry.mode, entry.uid, entry.gid = kind, mode, uid, gid
        entry.pax_headers = {f"SCHILY.xattr.{key}": _text(value) for key, value in xattrs.items()}
        seconds, nanoseconds = divmod(abs(mtime_ns), 10**9)
        if nanoseconds or mtime_ns < 0:
            sign = "-" if mtime_ns < 0 else ""
            entry.pax_headers["mtime"] = f"{sign}{seconds}.{nanoseconds:09}".rstrip("0").rstrip(".")
        else:
            entry.mtime = seconds
        return entry


def _text(name: str | bytes) -> str:
    return name if isinstance(name, str) else name.decode("utf-8", "surrogateescape")


def _bytes(name: str | bytes) -> bytes:
    return name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name
