"""ContainerFiles: the files of containers: in, out, and what changed."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import BinaryIO

from imgstore.blocks import Bytes
from imgstore.changes import FileType
from imgstore.containers import marker_of
from imgstore.copies.archive import PathStatus, archive_of, find_path
from imgstore.copies.extraction import Extraction
from imgstore.copies.tree import normal
from imgstore.copies.users import find_owner
from imgstore.errors import InvalidError, NotFoundError
from imgstore.ext4.format import MAXIMUM_SIZE
from imgstore.ext4.reader import FileSystem
from imgstore.ext4.recovery import recovered
from imgstore.inputs import read_chunks
from imgstore.layers.compression import inflate_archive
from imgstore.layers.read_ahead import read_ahead
from imgstore.layers.tar_reader import read_changes
from imgstore.layers.tar_writer import tar_pieces
from imgstore.stop import Stop
from imgstore.store.core import StoreCore

_AHEAD = 4


class ContainerFiles(StoreCore):
    """The methods of an `ImageStore` that read and write the files of containers, their volumes included.

    Paths count from the root of the container; links on them are followed inside of it. Several may read a container's files at once;
    who writes waits until they have done, and they for it, for five minutes at most.
    """

    def container_status(self, reference: str, path: str | bytes) -> PathStatus:
        """What is at a path of a container. A symbolic link at its end is not followed, unless a slash comes after it.

        Raises:
            NotFoundError: no such container, or no such file in it.
            InvalidError: the path leads in circles, or goes on behind what is no directory.
            InUseError: a guest has the disk, or a volume on the way, open for writing.
            CorruptError, UnsupportedError: the file system is damaged, or cannot be read.
        """
        with self._trees.read(marker_of(self._containers.find(reference))) as tree, _missing(reference, path):
            return find_path(tree, os.fsencode(path))[0]

    def copy_from_container(self, reference: str, path: str | bytes) -> tuple[PathStatus, Generator[Bytes, None, None]]:
        """A file or directory of a container as a tar, as ``docker cp`` gets it.

        The names in it begin with the last component of the path: with that of a directory and all that is in it; with ``./`` for what
        is in a directory that ``/.`` comes after. The container's files stay as they are until the last piece has come, or until the
        iterator is closed. Sockets are left out.

        Returns:
            What is at the path, and pieces of at most about a MiB; an archive only if no error comes with them.

        Raises:
            As `container_status`.
        """
        with contextlib.ExitStack() as stack:
            tree = stack.enter_context(self._trees.read(marker_of(self._containers.find(reference))))
            with _missing(reference, path):
                found, place = find_path(tree, os.fsencode(path))
            pieces = tar_pieces(archive_of(tree, place, os.fsencode(found.name)), whiteouts=False)
            return found, _kept_open(stack.pop_all(), pieces)

    def copy_to_container(
        self,
        reference: str,
        path: str | bytes,
        tar: BinaryIO,
        *,
        keep_directories: bool = False,
        owner_of_user: bool = False,
        stop: Stop | None = None,
    ) -> None:
        """Unpacks a tar into a directory of a container, as ``docker cp`` does. All of it or, after any error, nothing.

        The links on the way to an entry are followed inside of the container; what an entry finds in its place goes, but a
        directory that meets one keeps what is in it. Names that begin with ``.wh.`` are ordinary ones.

        Args:
            path: a directory that is there, or a link to one.
            tar: read from where it stands, to its end; may be compressed with gzip, zstd, xz or bzip2. Nothing of it: nothing is done.
            keep_directories: refuse to put a directory in the place of another file, or the reverse.
            owner_of_user: all that is unpacked belongs to the user that the container runs as, as its own ``/etc/passwd`` says.
            stop: ends it from another thread.

        Raises:
            NotFoundError: no such container, or no such directory in it.
            InvalidError: the path is no directory, it cannot be written, or an entry cannot be put where it says.
            DeniedError: an entry goes to a read-only place further on.
            InUseError: a guest has the disk, or a volume on the way, open.
            NoSpaceError: the container's disk, or the datastore, has no room for it, or the quota has none.
            CorruptError: the tar is damaged, cut off or ambiguous, or the file system is.
        """
        stop = stop or Stop()
        container = marker_of(self._containers.find(reference))
        user = str(container.config.get("User") or "")
        owner = None
        if owner_of_user and user:
            with self._trees.read(container) as known:
                owner = find_owner(known, user)
        now_ns = time.time_ns()
        with self._trees.edit(container, now_ns, stop) as tree:
            with _missing(reference, path):
                destination = tree.follow(normal(os.fsencode(path)))
                kind = tree.type_at(destination)
                if kind is None:
                    raise NotFoundError(os.fsdecode(path))
            if kind is not FileType.DIRECTORY:
                raise InvalidError("extraction point is not a directory")
            mount = tree.place(destination).mount
            if tree.mounts[mount].read_only:
                raise InvalidError("mounted volume is marked read-only" if mount else "container rootfs is marked read-only")
            extraction = Extraction(tree, destination, keep_directories=keep_directories, owner=owner, now_ns=now_ns)
            pieces = read_ahead(inflate_archive(read_chunks(tar, "archive")), _AHEAD, name="imgstore-inflate")
            with closing(pieces):
                for change in read_changes(pieces, capacity=MAXIMUM_SIZE, whiteouts=False):
                    stop.check()
                    extraction.apply(change)
            self._quota.check()

    def export_container(self, reference: str) -> Generator[Bytes, None, None]:
        """The container's own file tree as a tar, as ``docker export`` gives it: without what volumes have.

        All attributes are in it. The container's files stay as they are until the last piece has come, or until the iterator is closed.

        Raises:
            As `container_status`, here or from the iterator.
        """
        with contextlib.ExitStack() as stack:
            chain = stack.enter_context(self._trees.read_disk(marker_of(self._containers.find(reference))))
            changes = FileSystem(recovered(chain)).changes()
            return _kept_open(stack.pop_all(), tar_pieces((change for change in changes if change.path), whiteouts=False))


def _kept_open(stack: contextlib.ExitStack, pieces: Iterator[Bytes]) -> Generator[Bytes, None, None]:
    """``pieces``, with ``stack`` open until the last has come, or until the generator is closed, begun or not."""

    def run() -> Generator[Bytes, None, None]:
        with stack:
            yield b""
            yield from pieces

    running = run()
    next(running)
    return running


@contextlib.contextmanager
def _missing(reference: str, path: str | bytes) -> Iterator[None]:
    """Says as docker does that there is no such file."""
    try:
        yield
    except NotFoundError as error:
        raise NotFoundError(f"Could not find the file {os.fsdecode(path)} in container {reference}") from error
