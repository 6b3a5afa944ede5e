"""Base structure: the files that the VMs of vSphere Integrated Containers expect in a container, whatever its image has.

Source: vmware/vic ``lib/portlayer/storage/image/vsphere/store.go`` (createBaseStructure). VIC had them in its scratch disk, below every
image; so what an image has itself stays as it is here too. Here they are put into the container's own disk: images stay what they are.
"""

from __future__ import annotations

from collections.abc import Iterator

from imgstore.blocks import WritableBlockDevice
from imgstore.changes import Entry, FileType
from imgstore.errors import InvalidError, NotFoundError
from imgstore.ext4.paths import resolve_path
from imgstore.ext4.reader import FileSystem
from imgstore.ext4.writer import LayerWriter

_DIRECTORIES = (
    (b"etc", 0o755),
    (b"lib/modules", 0o755),
    (b"proc", 0o555),
    (b"sys", 0o555),
    (b"run", 0o755),
    (b".tether", 0o777),
)
_HOSTS = b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


def add_base_structure(device: WritableBlockDevice, hostname: str, now_ns: int) -> None:
    """Adds what is not there: directories, ``/etc/hostname``, ``hosts``, ``resolv.conf`` (empty) and ``mtab``, and ``/.tether``.

    Links of the image on the way are followed inside it; where one leads nowhere, that file is left out. After an error the file
    system is half changed.

    Args:
        now_ns: since the epoch, in nanoseconds.

    Raises:
        FileSystemFullError: the disk is full.
        CorruptError, UnsupportedError: the file system cannot be read or written.
    """
    file_system = FileSystem(device)
    entries = [entry for wanted in _wanted(hostname, now_ns) if (entry := _missing(file_system, wanted)) is not None]
    if entries:
        writer = LayerWriter(device, now_ns=now_ns)
        for entry in entries:
            writer.apply(entry)
        writer.finish()


def _wanted(hostname: str, now_ns: int) -> Iterator[Entry]:
    for path, mode in _DIRECTORIES:
        yield Entry(path, FileType.DIRECTORY, mode, mtime_ns=now_ns)
    files = ((b"etc/hostname", hostname.encode() + b"\n"), (b"etc/hosts", _HOSTS), (b"etc/resolv.conf", b""))
    for path, data in files:
        yield Entry(path, FileType.REGULAR, 0o644, mtime_ns=now_ns, size=len(data), data=(memoryview(data),))
    yield Entry(b"etc/mtab", FileType.SYMLINK, 0o777, mtime_ns=now_ns, target=b"/proc/mounts")


def _missing(file_system: FileSystem, entry: Entry) -> Entry | None:
    """The entry where the image's links lead; None if something is there, or nothing can be."""
    above, _, name = entry.path.rpartition(b"/")
    try:
        place = resolve_path(file_system, above)
    except (NotFoundError, InvalidError):
        return None
    node = place.node
    if node is not None and (node.type is not FileType.DIRECTORY or file_system.child(node, name) is not None):
        return None
    entry.path = place.path + b"/" + name if place.path else name
    return entry
