"""Small tars for tests, made and read."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable

TIME = 1_700_000_000
"""What all files of such a tar have as their time, in seconds."""


def entry(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    """A member without data; of a directory with the mode 0755, else 0644."""
    member = tarfile.TarInfo(name)
    member.type, member.mtime = kind, TIME
    member.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    for field, value in fields.items():
        setattr(member, field, value)
    return member


def directory(name: str, **fields: object) -> tarfile.TarInfo:
    """A member that is a directory."""
    return entry(name, tarfile.DIRTYPE, **fields)


def link(name: str, target: str) -> tarfile.TarInfo:
    """A member that is a symbolic link."""
    return entry(name, tarfile.SYMTYPE, linkname=target)


def make_tar(*members: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A PAX archive of members, those with data as pairs."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for item in members:
            member, data = item if isinstance(item, tuple) else (item, b"")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def names_of(pieces: Iterable[bytes | bytearray | memoryview]) -> list[str]:
    """The names in an archive, sorted."""
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as tar:
        return sorted(tar.getnames())


def file_of(pieces: Iterable[bytes | bytearray | memoryview], name: str) -> bytes:
    """What a regular file of an archive has."""
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as tar:
        body = tar.extractfile(name)
        assert body is not None
        return body.read()
