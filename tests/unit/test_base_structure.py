"""What a VM of vSphere Integrated Containers finds in a container, over images that have parts of it, or something in its place."""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Iterable, Iterator

import pytest

from imgstore import layout
from imgstore.ext4.reader import FileSystem
from imgstore.store import ImageStore
from imgstore.vmdk.chain import open_chain

ADDED = [
    "/.tether",
    "/etc",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/mtab -> /proc/mounts",
    "/etc/resolv.conf",
    "/lib",
    "/lib/modules",
    "/proc",
    "/run",
    "/sys",
]


def member(name: str, *, data: bytes | None = None, target: str | None = None) -> tuple[tarfile.TarInfo, io.BytesIO]:
    """A file with ``data``, a link to ``target``, or a directory."""
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
    if target is not None:
        info.type, info.linkname = tarfile.SYMTYPE, target
    info.size = len(data or b"")
    return info, io.BytesIO(data or b"")


@contextlib.contextmanager
def container_of(members: Iterable[tuple[tarfile.TarInfo, io.BytesIO]]) -> Iterator[tuple[str, FileSystem]]:
    """The id and the files of a container of an image with these files."""
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w") as tar:
        for info, data in members:
            tar.addfile(info, data)
    body.seek(0)
    with ImageStore.open("mem://") as store:
        store.import_image(body, reference="tree", changes=["CMD /x"])
        made = store.create_container("tree", vic_base=True)
        assert list(store.check()) == []
        with open_chain(store._datastore.open, layout.container_disk(made.id)) as chain:
            yield made.id, FileSystem(chain)


def tree(file_system: FileSystem) -> list[str]:
    shown = []
    for change in file_system.changes():
        if change.path:
            target = getattr(change, "target", b"")
            shown.append(f"/{change.path.decode()}" + (f" -> {target.decode()}" if target else ""))
    return sorted(shown)


def read(file_system: FileSystem, path: bytes) -> bytes:
    return b"".join(file_system.read_file(file_system.lookup(path)))


def test_an_empty_image_gets_all() -> None:
    with container_of([member("x", data=b"")]) as (id, file_system):
        assert tree(file_system) == sorted([*ADDED, "/x"])
        assert read(file_system, b"etc/hostname") == id[:12].encode() + b"\n"
        assert file_system.status(file_system.lookup(b".tether")).mode == 0o777


@pytest.mark.parametrize(
    ("members", "gone", "new"),
    [
        ([member("etc/hosts", data=b"own")], [], []),
        (
            [member("usr/lib"), member("lib", target="usr/lib")],
            ["/lib", "/lib/modules"],
            ["/usr", "/usr/lib", "/usr/lib/modules", "/lib -> usr/lib"],
        ),
        (
            [member("etc", target="../../nowhere/at/all")],
            [path for path in ADDED if path.startswith("/etc")],
            ["/etc -> ../../nowhere/at/all"],
        ),
        ([member("etc", data=b"a file")], [path for path in ADDED if path.startswith("/etc/")], []),
        ([member("run", target="/run")], ["/run"], ["/run -> /run"]),
        ([member("etc/mtab", data=b"")], ["/etc/mtab -> /proc/mounts"], ["/etc/mtab"]),
    ],
    ids=["file", "link", "broken-link", "file-for-directory", "loop", "mtab"],
)
def test_what_the_image_has_stays(members: list[tuple[tarfile.TarInfo, io.BytesIO]], gone: list[str], new: list[str]) -> None:
    with container_of(members) as (_, file_system):
        assert tree(file_system) == sorted({*ADDED, *new} - set(gone))
        if members[0][0].name == "etc/hosts":
            assert read(file_system, b"etc/hosts") == b"own"
