"""Contents: what is in an image: its disks, and the files on them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import BinaryIO

from imgstore.blocks import Bytes
from imgstore.changes import FileType
from imgstore.errors import InvalidError, NotFoundError
from imgstore.ext4.paths import resolve_path
from imgstore.ext4.reader import FileStatus, FileSystem
from imgstore.layers.tar_writer import write_tar
from imgstore.store.core import StoreCore


class Contents(StoreCore):
    """The methods of an `ImageStore` that look into images."""

    def disk_paths(self, reference: str) -> list[str]:
        """Paths of the disks of the image's chain, the one without parent first, its top disk last.

        On a local datastore they are absolute and can be given to a hypervisor, read-only; else they are paths on the datastore.
        """
        with self._open_view(reference) as chain:
            return [self._shown(path) for path in chain.paths]

    def status(self, reference: str, path: str | bytes) -> FileStatus:
        """What the file system of the image says of a file; a symbolic link is not followed.

        Raises:
            NotFoundError: no such image, or no such file in it.
        """
        with self._file_system(reference) as file_system:
            return file_system.status(file_system.lookup(_inside(path)))

    def resolve_path(self, reference: str, path: str | bytes, *, follow_last: bool = True) -> tuple[bytes, FileStatus]:
        """Where a path leads when symbolic links are followed, as for a process that has the image as its root; and what is there.

        Args:
            follow_last: follow the last component, too; always done when ``path`` ends with a slash.

        Raises:
            NotFoundError: no such image, or no such file in it.
            InvalidError: too many links, as in a loop.
        """
        with self._file_system(reference) as file_system:
            found = resolve_path(file_system, os.fsencode(path), follow_last=follow_last)
            if found.node is None:
                raise NotFoundError(f"{_text(path)}: /{_text(found.path)} does not exist")
            return found.path, file_system.status(found.node)

    def list_directory(self, reference: str, path: str | bytes) -> list[tuple[bytes, FileStatus]]:
        """The entries of a directory of the image, by name; a file that is no directory gives itself.

        Raises:
            NotFoundError: no such image, or no such file in it.
        """
        with self._file_system(reference) as file_system:
            inside = _inside(path)
            node = file_system.lookup(inside)
            status = file_system.status(node)
            if status.type is not FileType.DIRECTORY:
                return [(inside, status)]
            return [
                (name, file_system.status(file_system.node(number)))
                for name, number, _ in sorted(file_system.list_directory(node))
            ]

    def read_file(self, reference: str, path: str | bytes) -> Iterator[Bytes]:
        """The content of a regular file of the image, in pieces of at most a MiB; the image stays open as long as it is read.

        Raises:
            NotFoundError: no such image, or no such file in it.
            InvalidError: it is no regular file.
        """
        with self._file_system(reference) as file_system:
            node = file_system.lookup(_inside(path))
            if file_system.status(node).type is not FileType.REGULAR:
                raise InvalidError(f"{_text(path)}: is not a regular file")
            yield from file_system.read_file(node)

    def export(self, reference: str, out: BinaryIO) -> None:
        """Writes the image's whole file tree as a tar: POSIX with PAX records, names sorted, the same bytes each time."""
        with self._file_system(reference) as file_system:
            write_tar((change for change in file_system.changes() if change.path), out.write)

    @contextlib.contextmanager
    def _file_system(self, reference: str) -> Iterator[FileSystem]:
        with self._open_view(reference) as chain:
            yield FileSystem(chain)

    def _shown(self, path: str) -> str:
        return self._datastore.prefix + path


def _inside(path: str | bytes) -> bytes:
    """A path as a user types it, in the normal form of ``changes``; ``..`` stays inside the image."""
    given = os.fsencode(path)
    return os.path.normpath(b"/" + given).lstrip(b"/")


def _text(path: str | bytes) -> str:
    return os.fsdecode(path)
