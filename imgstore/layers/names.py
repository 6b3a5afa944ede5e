"""Names of tar entries: the normal form of paths, and the names that are no files (whiteouts).

Sources: OCI image-spec ``layer.md`` ("Whiteouts", "Opaque Whiteout"), Linux ``Documentation`` of aufs for ``.wh..wh.*``.
"""

from __future__ import annotations

from typing import Final

from imgstore.layers.tar_header import MAX_COMPONENT, MAX_PATH, MalformedError, shown

WHITEOUT_PREFIX: Final = b".wh."
OPAQUE_NAME: Final = b".wh..wh..opq"

# Directories of aufs's own that images of the aufs days hold in their root; docker leaves them out as well.
AUFS_NAMES: Final = frozenset({b".wh..wh.aufs", b".wh..wh.plnk", b".wh..wh.orph"})

_FIRST_UNUSUAL: Final = frozenset(b"./")


def normal_path(name: bytes, what: str = "path") -> bytes:
    """The normal form (see ``imgstore.changes``) of a name as tars hold them: ``./a``, ``/a``, ``a/``, ``a//b`` are all fine.

    Raises:
        MalformedError: empty, too long, with NUL, or with a ``..`` component.
    """
    if not name:
        raise MalformedError(f"{what} is empty")
    path = name[2:] if name.startswith(b"./") else name
    if path.endswith(b"/"):
        path = path[:-1]
    if (
        path
        and len(path) <= MAX_COMPONENT
        and path[0] not in _FIRST_UNUSUAL
        and b"/." not in path
        and b"//" not in path
        and b"\0" not in path
        and path[-1] != 0x2F
    ):
        return path
    if b"\0" in name:
        raise MalformedError(f"{what} holds a NUL byte: {shown(name)}")
    if len(path) > MAX_PATH:
        raise MalformedError(f"{what} has {len(path)} bytes, more than {MAX_PATH}")
    components = [component for component in path.split(b"/") if component not in (b"", b".")]
    for component in components:
        if component == b"..":
            raise MalformedError(f"{what} has a '..' component: {shown(name)}")
        if len(component) > MAX_COMPONENT:
            raise MalformedError(f"{what} has a component of {len(component)} bytes, more than {MAX_COMPONENT}")
    return b"/".join(components)


def has_whiteout(path: bytes) -> bool:
    """Whether any component of the path begins with ``.wh.``."""
    return path.startswith(WHITEOUT_PREFIX) or b"/.wh." in path


def is_aufs(path: bytes) -> bool:
    """Whether the path is, or lies in, one of aufs's own directories in the root."""
    return path.partition(b"/")[0] in AUFS_NAMES


def whiteout_path(path: bytes) -> tuple[bytes, bool]:
    """What a path whose name begins with ``.wh.`` removes.

    Returns:
        Path removed, and False; or the directory emptied, and True.

    Raises:
        MalformedError: the name is reserved, or names nothing that can be removed, or a whiteout stands for a directory.
    """
    parent, _, name = path.rpartition(b"/")
    if has_whiteout(parent):
        raise MalformedError("lies inside a whiteout")
    if name == OPAQUE_NAME:
        return parent, True
    removed = name.removeprefix(WHITEOUT_PREFIX)
    if removed in (b"", b".", b".."):
        raise MalformedError("is a whiteout of nothing that can be removed")
    if removed.startswith(WHITEOUT_PREFIX):
        raise MalformedError(f"is an unknown special name: {shown(name)}")
    return (parent + b"/" + removed if parent else removed), False
